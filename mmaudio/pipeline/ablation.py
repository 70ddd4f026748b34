"""Ablation of the settings for small sets: the same training with one setting changed at a time.

    python training/compare_settings.py --clips demo_output/lora_data/clips.tsv \\
        --features demo_output/lora_data/features --output demo_output/settings

Every run uses the same seed and features. Its best adapter is compared with that of the first run, clip by clip: by the
velocity loss on the test clips, which no selection has used, and on clips of the base model's own domain and the base's
own sounds of generic captions, where a higher loss means forgetting: of captions that `preserve_base` trains on, and of
those that are held back. With the source videos (`--videos`) the generated sounds are compared with the originals too:
the loss hardly weighs the solver's first steps, which decide what sound it will be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmaudio import cli
from mmaudio.config import TrainConfig, compose
from mmaudio.data.feature_set import FeatureSet
from mmaudio.data.feature_store import load_features
from mmaudio.data.generic_captions import held_back_captions, training_captions
from mmaudio.errors import ConfigError, DataError
from mmaudio.evaluation.config import SamplingConfig
from mmaudio.evaluation.general_domain import load_general_domain
from mmaudio.evaluation.inference import sample_latents, velocity_losses
from mmaudio.evaluation.measurement import decode_clip, measure_audio
from mmaudio.evaluation.original_audio import read_original_audio
from mmaudio.features.encoders import ENCODER_COMPONENTS
from mmaudio.features.mel import build_mel
from mmaudio.finetune.base_samples import make_base_samples, read_base_samples
from mmaudio.finetune.early_stopping import compute_paired_change
from mmaudio.finetune.loop import TrainingResult
from mmaudio.finetune.metrics_log import METRICS_FILE
from mmaudio.finetune.trainer import load_network, train
from mmaudio.generation.sampler import Sampler, fast_dtype, load_sampler
from mmaudio.lora.checkpoint import attach_adapter, read_adapter
from mmaudio.metrics.metric_inputs import ADAPTED
from mmaudio.metrics.registry import METRICS, PRIMARY
from mmaudio.model.spec import MODELS, model_spec
from mmaudio.report.sections import VALIDATION, read_history
from mmaudio.utils.files import atomic_write
from mmaudio.utils.hydra_quote import quote_value
from mmaudio.utils.terminal import print_lines
from mmaudio.weights.store import missing_files

SOUND_METRICS = (PRIMARY, "onset_f1")
"""What sounds are compared by."""
Column = tuple[str, str]
"""Columns of the table: the name of a set, and of a metric."""


@dataclass(frozen=True)
class Trial:
    """One training run: its name in the table and its overrides."""

    name: str
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Folder name."""
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.name).split())


TRIALS = (
    Trial("as preset=quick"),
    Trial("another seed", ("seed=1",)),
    Trial("a third seed", ("seed=2",)),
    Trial("lora.dropout=0", ("lora.dropout=0",)),
    Trial("lora.dropout=0.3", ("lora.dropout=0.3",)),
    Trial("drop_captions=0.5", ("drop_captions=0.5",)),
    Trial("weight_decay=0", ("weight_decay=0",)),
    Trial("weight_decay=0.1", ("weight_decay=0.1",)),
    Trial("early_times=0", ("early_times=0",)),
    Trial("preserve_base=0", ("preserve_base=0",)),
    Trial("preserve_base=2", ("preserve_base=2",)),
    Trial("preserve_base=4", ("preserve_base=4",)),
    Trial("latent_noise=0.1", ("latent_noise=0.1",)),
    Trial("half the learning rate", ("learning_rate=1.5e-3",)),
    Trial("lora.rank=8", ("lora.rank=8", "lora.alpha=16")),
)
"""The first is the baseline of the comparison; the second shows the variation by chance."""


@dataclass(frozen=True)
class ComparisonInputs:
    """Data, model, device and output folder of all runs."""

    clips: Path
    features: Path
    output: Path
    model: str
    weights: Path | None
    offline: bool
    device: torch.device
    videos: Path | None = None
    """The folder of the source videos; None: no sounds are compared."""


@dataclass(frozen=True)
class ComparedClips:
    """Clips that every run is measured on."""

    features: FeatureSet
    video_root: Path | None = None
    """The folder of their videos, where sounds are compared."""


@dataclass(frozen=True)
class TrialResult:
    """Measurements of a finished run."""

    trial: Trial
    training: TrainingResult
    last_loss: float
    """Validation loss of the last adapter."""
    values: dict[Column, list[float]]
    """Measured values of every clip with the best adapter."""


def trial_overrides(trial: Trial, inputs: ComparisonInputs, overrides: Sequence[str]) -> list[str]:
    """Hydra overrides of one run."""
    return [
        f"exp_id={trial.folder}",
        f"model={inputs.model}",
        f"clips_tsv={quote_value(inputs.clips)}",
        f"features_dir={quote_value(inputs.features)}",
        f"output_dir={quote_value(inputs.output)}",
        f"device={inputs.device}",
        "preset=quick",
        "early_stopping.enabled=false",
        "logging.sample_every=0",
        *([] if inputs.weights is None else [f"weights={quote_value(inputs.weights)}"]),
        *(["offline=true"] if inputs.offline else []),
        *overrides,
        *trial.overrides,
    ]


def run_trial(
    trial: Trial, inputs: ComparisonInputs, overrides: Sequence[str], sets: Mapping[str, ComparedClips]
) -> TrialResult | TrainingResult:
    """Train, unless done before, and measure; only the training result if a signal ended it."""
    config = compose(trial_overrides(trial, inputs, overrides))
    result = train(config, inputs.device)
    if result.signal is not None:
        return result
    adapter = result.folder / "lora_checkpoints" / "best_lora.pt"
    last_loss = read_last_validation_loss(result.folder)
    return TrialResult(trial, result, last_loss, measure_adapter(adapter, config, inputs, sets))


def read_last_validation_loss(folder: Path) -> float:
    """Read the last validation loss of a run; DataError if there is none."""
    losses = [row[VALIDATION] for row in read_history(folder / METRICS_FILE) if VALIDATION in row]
    if not losses:
        raise DataError(f"{folder}: no validation loss; the comparison needs validation.enabled=true")
    return losses[-1]


def measure_adapter(
    adapter: Path | None, config: TrainConfig, inputs: ComparisonInputs, sets: Mapping[str, ComparedClips]
) -> dict[Column, list[float]]:
    """Values of every clip with the adapter, or with the base alone (None).

    These are the velocity loss of every set, and the sounds' metrics where its videos are at hand.
    """
    network, sha256 = load_network(config, inputs.device)
    if adapter is not None:
        attach_adapter(network, read_adapter(adapter), inputs.model, sha256)
    sampler = load_sampler(inputs.model, inputs.weights, inputs.device, network, fast_dtype(inputs.device))
    values = {}
    for name, clips in sets.items():
        network.set_duration(clips.features.seconds)
        values[name, "velocity_loss"] = velocity_losses(sampler, clips.features, SamplingConfig(), name)
        if clips.video_root is not None:
            sounds = measure_sounds(sampler, clips.features, clips.video_root, name)
            values |= {(name, metric): of_clips for metric, of_clips in sounds.items()}
    return values


def measure_sounds(sampler: Sampler, features: FeatureSet, video_root: Path, name: str) -> dict[str, list[float]]:
    """SOUND_METRICS of a generated sound of every clip against the original; `name` is the progress bar's."""
    codec, to_mel = sampler.spec.codec, build_mel(sampler.spec.codec.name).to(sampler.device)
    latents = sample_latents(sampler, features, SamplingConfig(), name)
    values: dict[str, list[float]] = {metric: [] for metric in SOUND_METRICS}
    for clip, samples in zip(features.clips, latents, strict=True):
        length = samples.shape[1] * codec.hop_length * 2
        (original,) = read_original_audio(video_root, [clip], codec.sample_rate, length)
        decoded = decode_clip(sampler, to_mel, original.to(sampler.device), {ADAPTED: samples})
        measured = measure_audio(decoded, codec, SOUND_METRICS)[ADAPTED].values
        for metric in SOUND_METRICS:
            values[metric].append(measured.get(metric, math.nan))
    return values


def check_videos(folder: Path, features: FeatureSet) -> None:
    """Raise DataError where a video of the clips is not in `folder`."""
    for clip in features.clips:
        if not (folder / clip.video).is_file():
            raise DataError(f"--videos {folder}: {clip.video} is not there, a video of held-out clips")


def load_general_clips(inputs: ComparisonInputs, folder: Path | None) -> ComparedClips | None:
    """Load clips of the base model's own domain, from an evaluation's `folder` or shipped with the model, if any."""
    spec = model_spec(inputs.model)
    if folder is not None:
        return ComparedClips(load_features(folder / "clips.tsv", folder, "test", inputs.model))
    general, reason = load_general_domain(spec, None, inputs.output / "general", inputs.weights, inputs.device)
    if general is None:
        print_lines(f"forgetting: not measured, {reason}")
        return None
    return ComparedClips(general.features, general.video_root if inputs.videos else None)


def load_generic_sounds(inputs: ComparisonInputs, seconds: float) -> dict[str, ComparedClips]:
    """The base's sounds of generic captions: of those that `preserve_base` trains on, and of those held back."""
    config = compose(trial_overrides(TRIALS[0], inputs, []))
    if missing := missing_files(inputs.model, config.weights_folder, (ENCODER_COMPONENTS["clip"],)):
        print_lines(f"generic captions: not measured, {missing[0].names[0]} is not at hand")
        return {}
    network, sha256 = load_network(config, inputs.device)
    network.set_duration(seconds)
    captions = {"captions trained on": training_captions, "captions held back": held_back_captions}
    sets = {}
    for name, read_captions in captions.items():
        arguments = (network, config, sha256, seconds, read_captions(inputs.model))
        make_base_samples(*arguments)
        sets[name] = ComparedClips(read_base_samples(*arguments))
    return sets


def format_table(
    results: Sequence[TrialResult], base: Mapping[Column, list[float]], sets: Mapping[str, ComparedClips]
) -> list[str]:
    """Lines of a Markdown table that compares every run with the first; the base alone stands before them."""
    first, columns = results[0], list(base)
    head = ["setting", "validation", "at step", "at the end"]
    titles = [name if metric == "velocity_loss" else f"{name}: {METRICS[metric].title}" for name, metric in columns]
    head += [cell for title in titles for cell in (title, "change, 95 % interval")]
    rows = [["the base alone", "", "", "", *(cell for column in columns for cell in (format_mean(base[column]), ""))]]
    for run in results:
        row = [run.trial.name, f"{run.training.best_loss:.4f}", str(run.training.best_step), f"{run.last_loss:.4f}"]
        for column in columns:
            clips, values = sets[column[0]].features.clips, run.values[column]
            units = [clip.video or clip.id for clip in clips]  # a caption's sound has no video
            change = "" if run is first else format_change(first.values[column], values, units)
            row += [format_mean(values), change]
        rows.append(row)
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def format_mean(values: Sequence[float]) -> str:
    """Format the mean of the clips that have a value; empty where none has one."""
    known = [value for value in values if not math.isnan(value)]
    return f"{np.mean(known):.4f}" if known else ""


def format_change(before: list[float], after: list[float], units: list[str]) -> str:
    """Format the clips' mean change, with its confidence interval over several videos or captions; empty without."""
    rows = [row for row, pair in enumerate(zip(before, after, strict=True)) if not any(map(math.isnan, pair))]
    if not rows:
        return ""
    pairs = [before[row] for row in rows], [after[row] for row in rows]
    change = compute_paired_change(*pairs, [units[row] for row in rows])
    if change.interval is None:
        return f"{change.mean:+.4f}"
    return f"{change.mean:+.4f} ({change.interval[0]:+.4f} to {change.interval[1]:+.4f})"


def build_parser() -> cli.Parser:
    """Parser of the command line."""
    parser = cli.Parser("Train once for each setting and compare validation and forgetting.")
    parser.usage = "compare_settings.py [flags] [-- HYDRA_OVERRIDE ...]"
    parser.add_argument("--clips", type=Path, default=Path("lora_data/clips.tsv"), help="the table of clips")
    parser.add_argument("--features", type=Path, default=Path("lora_data/features"), help="their features")
    parser.add_argument("--output", type=Path, default=Path("output/settings"), help="the runs' folders and the table")
    parser.add_argument("--model", default="tiny_16k", choices=list(MODELS), help="the base model")
    parser.add_argument("--videos", type=Path, help="the source videos: their clips' sounds are compared as well")
    parser.add_argument(
        "--general",
        type=Path,
        help="an evaluation's folder `general`, for losses; else the model's videos",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="SETTING", help="only these: names, or key=value; the first run is always included"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_weights_flags()
    return parser


def main(arguments: list[str]) -> int:
    """Run the missing trials, then print the table and write it to OUTPUT/settings.md."""
    flags, overrides = cli.split_overrides(arguments)
    args = build_parser().parse_args(flags)
    offline, device = cli.is_offline(args.offline), cli.pick_device(args.device)
    folders = args.clips, args.features, args.output
    inputs = ComparisonInputs(*folders, args.model, args.weights, offline, device, args.videos)
    trials = select_trials(args.only)
    for trial in trials:
        compose(trial_overrides(trial, inputs, overrides))  # an error, before anything is computed
    held_out = load_features(inputs.clips, inputs.features, "test", inputs.model)
    if inputs.videos is not None:
        check_videos(inputs.videos, held_out)
    sets = {"held out": ComparedClips(held_out, inputs.videos)}
    general = load_general_clips(inputs, args.general)
    if general is not None:
        sets["base's own domain"] = general
    sets |= load_generic_sounds(inputs, held_out.seconds)
    base = measure_adapter(None, compose(trial_overrides(TRIALS[0], inputs, overrides)), inputs, sets)
    results = []
    for trial in trials:
        print_lines("", f"== {trial.name}", flush=True)
        result = run_trial(trial, inputs, overrides, sets)
        if isinstance(result, TrainingResult):
            return 128 + (result.signal or 0)
        results.append(result)
    lines = format_table(results, base, sets)
    with atomic_write(inputs.output / "settings.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    print_lines("", *lines)
    return 0


def select_trials(names: Sequence[str] | None) -> list[Trial]:
    """The first trial and those called `names`, or all for None; ConfigError for an unknown name.

    A name of settings, `key=value key=value`, need not be among TRIALS.
    """
    known = {trial.name: trial for trial in TRIALS}
    names = None if names is None else list(dict.fromkeys(names))
    for name in names or []:
        words = name.split()
        if name not in known and not (words and all(re.fullmatch(r"[^=]+=.*", word) for word in words)):
            raise ConfigError(
                f"--only {name!r}: no such setting; it is key=value, or one of {', '.join(map(repr, known))}"
            )
    settings = [Trial(name, tuple(name.split())) for name in names or [] if name not in known]
    return [trial for trial in TRIALS if names is None or trial is TRIALS[0] or trial.name in names] + settings
