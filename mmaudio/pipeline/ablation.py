"""Ablation of the settings for small sets: the same training with one setting changed at a time.

    python training/compare_settings.py --clips demo_output/lora_data/clips.tsv \\
        --features demo_output/lora_data/features --output demo_output/settings

Every run uses the same seed and features. Its best adapter is compared with that of the first run, clip by clip: by the
velocity loss on the test clips, which no selection has used, and on clips of the base model's own domain and the base's
own sounds of generic captions, where a higher loss means forgetting: of captions that `preserve_base` trains on, and of
those that are held back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmaudio import cli
from mmaudio.config import TrainConfig, compose
from mmaudio.data.feature_set import FeatureSet
from mmaudio.data.feature_store import load_features
from mmaudio.data.generic_captions import held_back_captions, training_captions
from mmaudio.errors import ConfigError, DataError
from mmaudio.evaluation.config import SamplingConfig
from mmaudio.evaluation.general_domain import load_general_domain
from mmaudio.evaluation.inference import velocity_losses
from mmaudio.features.encoders import ENCODER_COMPONENTS
from mmaudio.finetune.base_samples import make_base_samples, read_base_samples
from mmaudio.finetune.early_stopping import compute_paired_change
from mmaudio.finetune.loop import TrainingResult
from mmaudio.finetune.metrics_log import METRICS_FILE
from mmaudio.finetune.trainer import load_network, train
from mmaudio.generation.sampler import fast_dtype, load_sampler
from mmaudio.lora.checkpoint import attach_adapter, read_adapter
from mmaudio.model.spec import MODELS, model_spec
from mmaudio.report.sections import VALIDATION, read_history
from mmaudio.utils.files import atomic_write
from mmaudio.utils.hydra_quote import quote_value
from mmaudio.utils.terminal import print_lines
from mmaudio.weights.store import missing_files


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
    Trial("lora.dropout=0", ("lora.dropout=0",)),
    Trial("lora.dropout=0.3", ("lora.dropout=0.3",)),
    Trial("drop_captions=0.5", ("drop_captions=0.5",)),
    Trial("weight_decay=0", ("weight_decay=0",)),
    Trial("weight_decay=0.1", ("weight_decay=0.1",)),
    Trial("preserve_base=0.25", ("preserve_base=0.25",)),
    Trial("preserve_base=0.5", ("preserve_base=0.5",)),
    Trial("preserve_base=1", ("preserve_base=1",)),
    Trial("preserve_base=4", ("preserve_base=4",)),
    Trial("preserve_base=1 preserve_share=0.5", ("preserve_base=1", "preserve_share=0.5")),
    Trial("latent_noise=0.1", ("latent_noise=0.1",)),
    Trial("half the learning rate", ("learning_rate=1e-3",)),
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


@dataclass(frozen=True)
class TrialResult:
    """Measurements of a finished run."""

    trial: Trial
    training: TrainingResult
    last_loss: float
    """Validation loss of the last adapter."""
    losses: dict[str, list[float]]
    """Velocity loss of every clip with the best adapter, by set."""


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
    trial: Trial, inputs: ComparisonInputs, overrides: Sequence[str], sets: Mapping[str, FeatureSet]
) -> TrialResult | TrainingResult:
    """Train, unless done before, and measure; only the training result if a signal ended it."""
    config = compose(trial_overrides(trial, inputs, overrides))
    result = train(config, inputs.device)
    if result.signal is not None:
        return result
    adapter = result.folder / "lora_checkpoints" / "best_lora.pt"
    last_loss = read_last_validation_loss(result.folder)
    return TrialResult(trial, result, last_loss, compute_losses(adapter, config, inputs, sets))


def read_last_validation_loss(folder: Path) -> float:
    """Read the last validation loss of a run; DataError if there is none."""
    losses = [row[VALIDATION] for row in read_history(folder / METRICS_FILE) if VALIDATION in row]
    if not losses:
        raise DataError(f"{folder}: no validation loss; the comparison needs validation.enabled=true")
    return losses[-1]


def compute_losses(
    adapter: Path, config: TrainConfig, inputs: ComparisonInputs, sets: Mapping[str, FeatureSet]
) -> dict[str, list[float]]:
    """Velocity losses of the clips of every set with the adapter."""
    network, sha256 = load_network(config, inputs.device)
    attach_adapter(network, read_adapter(adapter), inputs.model, sha256)
    sampler = load_sampler(inputs.model, inputs.weights, inputs.device, network, fast_dtype(inputs.device))
    losses = {}
    for name, clips in sets.items():
        network.set_duration(clips.seconds)
        losses[name] = velocity_losses(sampler, clips, SamplingConfig(), name)
    return losses


def load_general_clips(inputs: ComparisonInputs, folder: Path | None) -> FeatureSet | None:
    """Load clips of the base model's own domain, from an evaluation's `folder` or shipped with the model, if any."""
    spec = model_spec(inputs.model)
    if folder is not None:
        return load_features(folder / "clips.tsv", folder, "test", inputs.model)
    general, reason = load_general_domain(spec, None, inputs.output / "general", inputs.weights, inputs.device)
    if general is None:
        print_lines(f"forgetting: not measured, {reason}")
        return None
    return general.features


def load_generic_sounds(inputs: ComparisonInputs, seconds: float) -> dict[str, FeatureSet]:
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
        sets[name] = read_base_samples(*arguments)
    return sets


def format_table(results: Sequence[TrialResult], sets: Mapping[str, FeatureSet]) -> list[str]:
    """Lines of a Markdown table that compares every run with the first."""
    first = results[0]
    head = ["setting", "validation", "at step", "at the end"]
    head += [cell for name in sets for cell in (name, "change, 95 % interval")]
    rows = []
    for run in results:
        row = [run.trial.name, f"{run.training.best_loss:.4f}", str(run.training.best_step), f"{run.last_loss:.4f}"]
        for name, clips in sets.items():
            losses = run.losses[name]
            units = [clip.video or clip.id for clip in clips.clips]  # a caption's sound has no video
            change = "" if run is first else format_change(first.losses[name], losses, units)
            row += [f"{sum(losses) / len(losses):.4f}", change]
        rows.append(row)
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def format_change(before: list[float], after: list[float], units: list[str]) -> str:
    """Format the mean change of the clips' losses, with its confidence interval over several videos or captions."""
    change = compute_paired_change(before, after, units)
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
    parser.add_argument("--general", type=Path, help="an evaluation's folder `general`; else the model's own videos")
    parser.add_argument(
        "--only", nargs="+", metavar="SETTING", help="only these settings; the first run is always included"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_weights_flags()
    return parser


def main(arguments: list[str]) -> int:
    """Run the missing trials, then print the table and write it to OUTPUT/settings.md."""
    flags, overrides = cli.split_overrides(arguments)
    args = build_parser().parse_args(flags)
    offline, device = cli.is_offline(args.offline), cli.pick_device(args.device)
    inputs = ComparisonInputs(args.clips, args.features, args.output, args.model, args.weights, offline, device)
    trials = select_trials(args.only)
    sets = {"held out": load_features(inputs.clips, inputs.features, "test", inputs.model)}
    general = load_general_clips(inputs, args.general)
    if general is not None:
        sets["base's own domain"] = general
    sets |= load_generic_sounds(inputs, sets["held out"].seconds)
    results = []
    for trial in trials:
        print_lines("", f"== {trial.name}", flush=True)
        result = run_trial(trial, inputs, overrides, sets)
        if isinstance(result, TrainingResult):
            return 128 + (result.signal or 0)
        results.append(result)
    lines = format_table(results, sets)
    with atomic_write(inputs.output / "settings.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    print_lines("", *lines)
    return 0


def select_trials(names: Sequence[str] | None) -> list[Trial]:
    """The first trial and those called `names`, or all for None; ConfigError for an unknown name."""
    known = {trial.name: trial for trial in TRIALS}
    for name in names or []:
        if name not in known:
            raise ConfigError(f"--only {name!r}: no such setting; there are {', '.join(map(repr, known))}")
    return [trial for trial in TRIALS if names is None or trial is TRIALS[0] or trial.name in names]
