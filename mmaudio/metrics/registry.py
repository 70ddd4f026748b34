"""Registry of the metrics: title, unit, which way is better, what each says and does not say, and how it is computed.

An entry is the only place of a metric: the evaluation computes it, and `metrics.json`, the report and `--metrics` have
it. Definitions and sources stand with the functions that the entries call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mmaudio.errors import ConfigError
from mmaudio.metrics import passt
from mmaudio.metrics.clap import find_clap
from mmaudio.metrics.desync_score import find_desync
from mmaudio.metrics.distribution import too_few_for_fd, too_few_for_splits
from mmaudio.metrics.diversity import diversity, duplicates
from mmaudio.metrics.loudness import loudness, near_silent
from mmaudio.metrics.metric_inputs import MetricInputs
from mmaudio.metrics.onsets import f1_score, onset_lag
from mmaudio.metrics.panns import find_panns
from mmaudio.metrics.pretrained_metrics import EMBEDDINGS, LOGITS, FindModel
from mmaudio.metrics.set_statistics import (
    SetMetric,
    frechet_statistic,
    inception_deviation,
    inception_statistic,
    kad_statistic,
)
from mmaudio.metrics.spectral import mel_l1, mel_l1_loud, stft_distance
from mmaudio.model.spec import lookup

LOWER, HIGHER = "lower", "higher"


@dataclass(frozen=True)
class Metric:
    """One metric; at most one of its last four fields says where its values come from."""

    title: str
    better: str
    """`lower` or `higher`."""
    describes: str
    limits: str
    """What it does not describe."""
    published: str = ""
    """Whether its value may be held against published tables; empty for one without a published name."""
    unit: str = ""
    """Empty for a number without one."""
    needs: str = "sounds that can be measured"
    """What a clip has to have for a value."""
    reference_free: bool = False
    """Whether a sound has a value without the original, whose own value is then worth knowing."""
    in_verdict: bool = False
    """Whether the overall verdict takes it into account: see `statistics.overall_verdict`."""
    compute: Callable[[MetricInputs], Tensor | Iterable[float]] | None = None
    """Computes one value per sample of a clip from audio alone."""
    compare_samples: Callable[[MetricInputs], float] | None = None
    """Computes one value from all samples of a clip: it needs two."""
    find_model: FindModel | None = None
    """Finds the pretrained model that computes it."""
    set_metric: SetMetric | None = None
    """Computes one value for a whole set of clips, from outputs of the model that `find_model` finds."""

    @property
    def of_set(self) -> bool:
        """Whether it has a value for a set of sounds, not for a clip."""
        return self.set_metric is not None


METRICS = {
    "velocity_loss": Metric(  # computed with the network: evaluation.inference.velocity_losses
        "Velocity loss",
        LOWER,
        describes="How well the model predicts the direction from noise to the original's latents, at a fixed grid of "
        "times.",
        limits="It is what training minimises, not how the result sounds.",
        in_verdict=True,
    ),
    "mel_l1_loud": Metric(
        "Mel distance, loud cells",
        LOWER,
        describes="How far the spectrum is from the original's where the original is clearly audible.",
        limits="A sound that is as good but different counts as far; sound added in the quiet parts does not count.",
        needs="a clip whose original has a loud cell",
        in_verdict=True,
        compute=lambda c: mel_l1_loud(c.mel, c.original.mel.expand_as(c.mel), c.codec.log_base),
    ),
    "mel_l1": Metric(
        "Mel distance, all cells",
        LOWER,
        describes="How far the whole spectrum over time is from the original's.",
        limits="Quiet cells are many: the noise floor weighs as much as the audible part.",
        in_verdict=True,
        compute=lambda c: mel_l1(c.mel, c.original.mel.expand_as(c.mel)),
    ),
    "onset_f1": Metric(
        "Onset F1",
        HIGHER,
        describes="How many of the original's onsets (hits, starts) have one of their own within 0.1 s, and the other "
        "way round.",
        limits="What the onsets sound like, and sounds without clear onsets.",
        in_verdict=True,
        compute=lambda c: [f1_score(precision, recall) for precision, recall in c.onset_precision_and_recall],
    ),
    "desync": Metric(
        "DeSync",
        LOWER,
        describes="How far the sound is from the picture in time, as Synchformer estimates it (from 0 to 2 s).",
        limits="What the sound is; a steady sound has no right time, and its value is then chance.",
        published="The same computation as in the release's tables; those are of other videos.",
        unit="s",
        needs="clips whose picture and sound are at least 8 s long",
        reference_free=True,
        in_verdict=True,
        find_model=find_desync,
    ),
    "stft_distance": Metric(
        "Multi-resolution STFT distance",
        LOWER,
        describes="How far the spectrum is from the original's at three resolutions, in shape and in level.",
        limits="Like every distance to one original, it calls a sound that is as good but different far.",
        needs="a clip whose original is not silent",
        compute=lambda c: stft_distance(c.audio, c.original.audio[None], c.original.stfts),
    ),
    "loudness_difference": Metric(
        "Loudness difference",
        LOWER,
        describes="How far the loudness of the whole clip is from the original's.",
        limits="Where in the clip it is loud, and what it sounds like. Originals have a peak of 0.95, as in training.",
        unit="LU",
        needs="clips of 0.4 s or more",
        compute=lambda c: (loudness(c.audio, c.sample_rate) - c.original.loudness).abs(),
    ),
    "onset_precision": Metric(
        "Onset precision",
        HIGHER,
        describes="How many of the sound's own onsets are where the original has one.",
        limits="Which of the original's onsets are missing: recall has it.",
        compute=lambda c: [precision for precision, _ in c.onset_precision_and_recall],
    ),
    "onset_recall": Metric(
        "Onset recall",
        HIGHER,
        describes="How many of the original's onsets are there.",
        limits="Onsets that are too many: precision has it.",
        compute=lambda c: [recall for _, recall in c.onset_precision_and_recall],
    ),
    "onset_lag": Metric(
        "Onset lag",
        LOWER,
        describes="By how much the sound has to be shifted for its onsets to meet the original's best.",
        limits="Whether they meet well after that; sounds without onsets have no value.",
        unit="s",
        needs="clips whose sounds have onsets",
        compute=lambda c: onset_lag(c.onset_envelope, c.original.onset_envelope, c.frame_seconds).abs(),
    ),
    "centroid_difference": Metric(
        "Spectral centroid difference",
        LOWER,
        describes="How far the sound's mean frequency, its brightness, is from the original's.",
        limits="Two different sounds can be equally bright.",
        unit="Hz",
        needs="sounds that are not digital silence",
        compute=lambda c: c.centroid_and_bandwidth_difference[0],
    ),
    "bandwidth_difference": Metric(
        "Spectral bandwidth difference",
        LOWER,
        describes="How far the spread of frequencies around their mean is from the original's.",
        limits="Two different sounds can be equally wide.",
        unit="Hz",
        needs="sounds that are not digital silence",
        compute=lambda c: c.centroid_and_bandwidth_difference[1],
    ),
    "near_silent": Metric(
        "Near-silent output",
        LOWER,
        describes="Share of the time in which the original is audible and the sound is all but silent.",
        limits="Whether the audible part is right.",
        needs="a clip whose original is audible",
        compute=lambda c: near_silent(c.audio, c.original.audio, c.sample_rate),
    ),
    "duplicates": Metric(
        "Duplicates across seeds",
        LOWER,
        describes="How many pairs of samples of one clip, from different noise, are practically the same.",
        limits="Whether samples that differ are good. Needs two samples per clip.",
        compare_samples=lambda c: duplicates(c.sample_distances),
    ),
    "diversity": Metric(
        "Diversity across seeds",
        HIGHER,
        describes="How far the samples of one clip are from each other, as a mel distance between them.",
        limits="Noise is diverse, too; and where a picture leaves no doubt, good samples are alike. Needs two "
        "samples per clip.",
        compare_samples=lambda c: diversity(c.sample_distances),
    ),
    "clap": Metric(
        "CLAP similarity to the caption (clap-htsat-unfused)",
        HIGHER,
        describes="How well the sound fits the clip's caption, by CLAP's embeddings (cosine, -1 to 1).",
        limits="When anything happens; captions that say little say little here. Clips without one have no value.",
        published="Only against values of the same checkpoint, laion/clap-htsat-unfused: most tables take others.",
        needs="clips that have a caption",
        reference_free=True,
        find_model=find_clap,
    ),
    "kl": Metric(
        "KL divergence of sound classes",
        LOWER,
        describes="How far the sound classes that PANNs recognises in the sound are from those in the original.",
        limits="Time, loudness and quality within a class.",
        published="The same computation as in tables with PANNs (Cnn14_16k, softmax of the logits, the mean removed), "
        "for clips of 8 s. Values by PaSST are others.",
        unit="nats",
        find_model=find_panns,
    ),
    "kl_passt": Metric(
        "KL divergence of sound classes (PaSST)",
        LOWER,
        describes="How far the sound classes that PaSST recognises in the sound are from those in the original.",
        limits="Time, loudness and quality within a class.",
        published="The same computation as in MMAudio's tables with PaSST (passt-s-f128-p16-s10-ap.476-swa, softmax of "
        "the logits), for clips of 8 s with silence up to the model's 10 s. Values by PANNs, and of 10 s of sound, are "
        "others.",
        unit="nats",
        find_model=passt.find_passt,
    ),
    "kad": Metric(
        "Kernel audio distance",
        LOWER,
        describes="How far the generated sounds as a set are from the originals as a set, without bias in small sets.",
        limits="Whether a sound fits its own picture; a small set gives a wide spread, and values below zero.",
        published="Not: here no sound is compared with its own original, and the bandwidth is that of these originals.",
        find_model=find_panns,
        set_metric=SetMetric(EMBEDDINGS, kad_statistic),
    ),
    "fd": Metric(
        "Frechet distance",
        LOWER,
        describes="How far the Gaussian fitted to the generated sounds is from that of the originals.",
        limits="Whether a sound fits its own picture. Its bias in small sets is larger than most effects.",
        published="The same computation as FD with PANNs, but only sets of the same size have the same bias.",
        find_model=find_panns,
        set_metric=SetMetric(EMBEDDINGS, frechet_statistic, has_interval=False, too_few=too_few_for_fd),
    ),
    "fd_passt": Metric(
        "Frechet distance (PaSST)",
        LOWER,
        describes="How far the Gaussian fitted to PaSST's embeddings of the generated sounds is from the originals'.",
        limits="Whether a sound fits its own picture. Its bias in small sets is larger than most effects.",
        published="The same computation as FD with PaSST in MMAudio's tables, for clips of 8 s with silence up to the "
        "model's 10 s, but only sets of the same size have the same bias. Values by PANNs are others.",
        find_model=passt.find_passt,
        set_metric=SetMetric(passt.EMBEDDINGS, frechet_statistic, has_interval=False, too_few=too_few_for_fd),
    ),
    "isc": Metric(
        "Inception score",
        HIGHER,
        describes="How clear and how varied the sound classes are that PANNs recognises.",
        limits="The originals: clear sounds of the wrong kind score as well.",
        published="The same computation as in tables with PANNs (softmax of the logits, mean of 10 shuffled splits), "
        "but few clips in a split score lower: only sets of the same size compare.",
        reference_free=True,
        find_model=find_panns,
        set_metric=SetMetric(LOGITS, inception_statistic, too_few=too_few_for_splits, deviation=inception_deviation),
    ),
}
"""Every metric, in the order in which a report shows them."""
PRIMARY = "mel_l1_loud"
"""The metric that the overall verdict starts from: the spectrum where the original is audible."""


def select_metrics(names: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics called `names` (None: all) in the report's order, always with `PRIMARY`; ConfigError for others."""
    requested = set(METRICS if names is None else names)
    for name in requested:
        lookup(METRICS, name, "metrics")
    if not requested:
        raise ConfigError(f"metrics: none is named; there are {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in requested | {PRIMARY})
