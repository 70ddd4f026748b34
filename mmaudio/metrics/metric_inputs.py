"""Inputs of the metrics: the audio of one clip, and intermediates that several metrics share.

S samples of a clip (generated from different noise; the original is one), T audio samples, M mel bands, F mel frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from mmaudio.metrics.diversity import sample_distances
from mmaudio.metrics.loudness import loudness
from mmaudio.metrics.onsets import Seconds, onset_envelope, peak_times, precision_and_recall
from mmaudio.metrics.spectral import centroid_and_bandwidth, resolution_magnitudes
from mmaudio.model.spec import CodecSpec

ORIGINAL, CODEC, BASE, ADAPTED = "original", "codec", "base", "adapted"
"""The sounds of a clip: its own, the same after the codec's round trip, and what each model generates."""


@dataclass(frozen=True)
class ClipAudio:
    """All sounds of one clip, as a pretrained metric gets them."""

    waveforms: Mapping[str, Tensor]
    """(S, T) by the name of the sound: original, codec, base, adapted."""
    sample_rate: int
    sync_features: Tensor
    """Synchformer's features of the video (tokens, width), as the network reads them."""
    caption: str = ""


@dataclass(frozen=True)
class OriginalAudio:
    """A clip's own sound, and what the metrics need of it for every sound that is compared with it."""

    audio: Tensor
    """(T,)"""
    mel: Tensor
    """(M, F), logarithms in the codec's own base."""
    codec: CodecSpec

    @cached_property
    def stfts(self) -> list[Tensor]:
        """Magnitudes (1, bins, frames) at each resolution of the STFT distance."""
        return resolution_magnitudes(self.audio[None])

    @cached_property
    def loudness(self) -> Tensor:
        """Loudness in LUFS, (1,)."""
        return loudness(self.audio[None], self.codec.sample_rate)

    @cached_property
    def onset_envelope(self) -> Tensor:
        """Onset envelope (F,)."""
        return onset_envelope(self.mel[None], self.codec)[0]

    @cached_property
    def onset_times(self) -> Seconds:
        """Onsets in seconds."""
        return peak_times(self.onset_envelope[None], self.codec)[0]

    @cached_property
    def centroid_and_bandwidth(self) -> tuple[Tensor, Tensor]:
        """Spectral centroid and bandwidth in hertz, (1,) each."""
        return centroid_and_bandwidth(self.audio[None], self.codec.sample_rate)


@dataclass(frozen=True)
class MetricInputs:
    """The samples of one sound and the original that they are compared with."""

    audio: Tensor
    """(S, T)"""
    mel: Tensor
    """(S, M, F), logarithms in the codec's own base."""
    original: OriginalAudio

    @property
    def codec(self) -> CodecSpec:
        """The codec whose spectrograms these are."""
        return self.original.codec

    @property
    def sample_rate(self) -> int:
        """Audio samples per second."""
        return self.codec.sample_rate

    @property
    def frame_seconds(self) -> float:
        """Seconds between two mel frames."""
        return self.codec.hop_length / self.codec.sample_rate

    @cached_property
    def onset_envelope(self) -> Tensor:
        """Onset envelopes of the samples (S, F)."""
        return onset_envelope(self.mel, self.codec)

    @cached_property
    def onset_times(self) -> list[Seconds]:
        """Onsets of each sample in seconds."""
        return peak_times(self.onset_envelope, self.codec)

    @cached_property
    def onset_precision_and_recall(self) -> list[tuple[float, float]]:
        """Precision and recall of each sample's onsets."""
        return [precision_and_recall(times, self.original.onset_times) for times in self.onset_times]

    @cached_property
    def centroid_and_bandwidth_difference(self) -> tuple[Tensor, Tensor]:
        """Differences in spectral centroid and in bandwidth from the original's in hertz, (S,) each."""
        centroid, bandwidth = centroid_and_bandwidth(self.audio, self.sample_rate)
        original_centroid, original_bandwidth = self.original.centroid_and_bandwidth
        return (centroid - original_centroid).abs(), (bandwidth - original_bandwidth).abs()

    @cached_property
    def sample_distances(self) -> list[float]:
        """Mel distances of all pairs of samples in powers of ten."""
        return sample_distances(self.mel, self.codec.log_base)
