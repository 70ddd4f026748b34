"""The vocoder of each codec: mel spectrograms to waveforms."""

from __future__ import annotations

from mmaudio.features.bigvgan import BigVGAN
from mmaudio.features.griffin_lim import GriffinLim
from mmaudio.model.spec import codec_spec, lookup

VOCODERS: dict[str, type[BigVGAN] | type[GriffinLim]] = {"bigvgan": BigVGAN, "griffin_lim": GriffinLim}
"""Each is called with a log-mel (B, mels, frames) and returns samples (B, 1, frames * hop)."""


def build_vocoder(mode: str) -> BigVGAN | GriffinLim:
    """The vocoder of the codec `mode` with fresh weights; raises ConfigError naming the nearest codec."""
    spec = codec_spec(mode)
    return lookup(VOCODERS, spec.vocoder, "vocoder")(spec)
