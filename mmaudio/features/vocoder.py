"""Registry of vocoders: log-mel spectrograms to waveforms."""

from __future__ import annotations

from mmaudio.features.bigvgan import BigVGAN
from mmaudio.features.griffin_lim import GriffinLim
from mmaudio.model.spec import codec_spec, lookup

VOCODERS: dict[str, type[BigVGAN] | type[GriffinLim]] = {"bigvgan": BigVGAN, "griffin_lim": GriffinLim}
"""By name; each maps log-mel (B, n_mels, frames) to samples (B, 1, frames * hop_length)."""


def build_vocoder(mode: str) -> BigVGAN | GriffinLim:
    """Build the vocoder of the codec `mode` with fresh weights; ConfigError names the nearest codec."""
    spec = codec_spec(mode)
    return lookup(VOCODERS, spec.vocoder, "vocoder")(spec)
