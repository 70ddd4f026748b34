"""Every metric by name: its title and unit, which way is better, what it can and what it cannot say.

Definitions and sources stand with the functions: `spectra` (mel and STFT distances, centroid, bandwidth), `onsets`,
`loudness` (also near-silence), `takes` (duplicates, diversity) and `sets` (KAD, FD, KL, ISC); the velocity loss is
`measure.velocity_losses`. Those that need a model that listens: `features.desync`, `clap`, and `panns` for the sets'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmaudio.errors import ConfigError
from mmaudio.model.spec import lookup

LOWER, HIGHER = "lower", "higher"
ORIGINAL, CODEC, BASE, ADAPTED = "original", "codec", "base", "adapted"
"""The sounds of a clip: its own, the same through the codec and back, and what each model made."""


@dataclass(frozen=True)
class Metric:
    """What a metric is called, which way is better, and what it can and cannot say."""

    title: str
    better: str
    """`lower` or `higher`."""
    says: str
    silent: str
    """What it does not say."""
    unit: str = ""
    """Empty for a number without one."""
    of_set: bool = False
    """True: it has a value for a set of sounds, not for a clip."""
    alone: bool = False
    """True: a sound has a value without the original, whose own value is then worth knowing."""
    counts: bool = False
    """Whether the overall verdict listens to it: see `statistics.overall`."""


METRICS = {
    "velocity_loss": Metric(
        "Velocity loss",
        LOWER,
        "How well the model predicts the direction from noise to the original's latents, at a fixed grid of times.",
        "It is what training minimises, not how the result sounds.",
        counts=True,
    ),
    "mel_l1_loud": Metric(
        "Mel distance, loud cells",
        LOWER,
        "How far the spectrum is from the original's where the original is clearly audible.",
        "A sound that is as good but different counts as far; sound added in the quiet parts does not count.",
        counts=True,
    ),
    "mel_l1": Metric(
        "Mel distance, all cells",
        LOWER,
        "How far the whole spectrum over time is from the original's.",
        "Quiet cells are many: the noise floor weighs as much as what is heard.",
        counts=True,
    ),
    "onset_f1": Metric(
        "Onset F1",
        HIGHER,
        "How many of the original's onsets (hits, starts) have one of their own within 0.1 s, and the other way round.",
        "What the onsets sound like, and sounds without clear onsets.",
        counts=True,
    ),
    "desync": Metric(
        "DeSync",
        LOWER,
        "How far the sound is from the picture in time, as Synchformer hears and sees it (from 0 to 2 s).",
        "What the sound is; a steady sound has no right time, and its value is then chance.",
        "s",
        alone=True,
        counts=True,
    ),
    "stft_distance": Metric(
        "Multi-resolution STFT distance",
        LOWER,
        "How far the spectrum is from the original's at three resolutions, in shape and in level.",
        "Like every distance to one original, it calls a sound that is as good but different far.",
    ),
    "loudness_difference": Metric(
        "Loudness difference",
        LOWER,
        "How far the loudness of the whole clip is from the original's.",
        "Where in the clip it is loud, and what it sounds like. Originals have a peak of 0.95, as in training.",
        "LU",
    ),
    "onset_precision": Metric(
        "Onset precision",
        HIGHER,
        "How many of the sound's own onsets are where the original has one.",
        "Which of the original's onsets are missing: recall has it.",
    ),
    "onset_recall": Metric(
        "Onset recall",
        HIGHER,
        "How many of the original's onsets are there.",
        "Onsets that are too many: precision has it.",
    ),
    "onset_lag": Metric(
        "Onset lag",
        LOWER,
        "By how much the sound has to be shifted for its onsets to meet the original's best.",
        "Whether they meet well after that; sounds without onsets have no value.",
        "s",
    ),
    "centroid_difference": Metric(
        "Spectral centroid difference",
        LOWER,
        "How far the sound's mean frequency, its brightness, is from the original's.",
        "Two different sounds can be equally bright.",
        "Hz",
    ),
    "bandwidth_difference": Metric(
        "Spectral bandwidth difference",
        LOWER,
        "How far the spread of frequencies around their mean is from the original's.",
        "Two different sounds can be equally wide.",
        "Hz",
    ),
    "near_silent": Metric(
        "Near-silent output",
        LOWER,
        "How much of the time in which the original is audible the sound is all but silent.",
        "Whether what is heard is right.",
    ),
    "duplicates": Metric(
        "Duplicates across seeds",
        LOWER,
        "How many pairs of takes of one clip, from different noise, are practically the same.",
        "Whether takes that differ are good. Needs two samples per clip.",
    ),
    "diversity": Metric(
        "Diversity across seeds",
        HIGHER,
        "How far the takes of one clip are from each other, as a mel distance between them.",
        "Noise is diverse, too; and where a picture leaves no doubt, good takes are alike. Needs two samples per clip.",
    ),
    "clap": Metric(
        "CLAP similarity to the caption",
        HIGHER,
        "How well the sound fits the clip's caption, as CLAP hears it (cosine, -1 to 1).",
        "When anything happens; captions that say little say little here. Clips without one have no value.",
        alone=True,
    ),
    "kl": Metric(
        "KL divergence of sound classes",
        LOWER,
        "How far the classes that PANNs hears in the sound are from those that it hears in the original.",
        "Time, loudness and quality within a class.",
        "nats",
    ),
    "kad": Metric(
        "Kernel audio distance",
        LOWER,
        "How far the generated sounds as a set are from the originals as a set, without bias in small sets.",
        "Whether a sound fits its own picture; a small set gives a wide spread, and values below zero.",
        of_set=True,
    ),
    "fd": Metric(
        "Frechet distance",
        LOWER,
        "How far the Gaussian fitted to the generated sounds is from that of the originals.",
        "Whether a sound fits its own picture. Its bias in small sets is larger than most effects.",
        of_set=True,
    ),
    "isc": Metric(
        "Inception score",
        HIGHER,
        "How clear and how varied the classes are that PANNs hears.",
        "The originals: clear sounds of the wrong kind score as well.",
        alone=True,
        of_set=True,
    ),
}
"""Every metric, in the order in which a report shows them."""
PRIMARY = "mel_l1_loud"
"""The metric that the overall verdict starts from: what is heard, where there is something to hear."""
TAKES = ("duplicates", "diversity")
"""Metrics between the takes of a clip: they need two."""


def chosen_metrics(names: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics called `names` (None: all) in the report's order, always with `PRIMARY`; ConfigError for others."""
    wanted = set(METRICS if names is None else names)
    for name in wanted:
        lookup(METRICS, name, "metrics")
    if not wanted:
        raise ConfigError(f"metrics: none is named; there are {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in wanted | {PRIMARY})
