"""What the settings for small sets do: the same training with each of them changed, on the same features.

    python training/compare_settings.py --clips demo_output/lora_data/clips.tsv \\
        --features demo_output/lora_data/features --output demo_output/settings

Every run starts from the same seed, and its best adapter is compared with the first run's, clip by clip: by the
velocity loss of the held-out (test) clips, by which nothing was chosen, and of clips of the base model's own domain,
which shows what was forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmaudio import cli
from mmaudio.config import TrainConfig, compose
from mmaudio.data.feature_store import FeatureSet, load_features
from mmaudio.errors import ConfigError, DataError
from mmaudio.evaluation.general_domain import general_set
from mmaudio.evaluation.inference import Draws, velocity_losses
from mmaudio.finetune.early_stopping import change
from mmaudio.finetune.loop import Outcome
from mmaudio.finetune.tracker import JSONL
from mmaudio.finetune.trainer import load_network, train
from mmaudio.generation.sampler import fast_dtype, load_sampler
from mmaudio.lora.checkpoint import attach, read_adapter
from mmaudio.model.spec import MODELS, model_spec
from mmaudio.report.sections import VALIDATION, read_history
from mmaudio.utils.hydra_quote import quoted


@dataclass(frozen=True)
class Trial:
    """One run: its name in the table, and what it changes."""

    name: str
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.name).split())


TRIALS = (
    Trial("as preset=quick"),
    Trial("another seed", ("seed=1",)),
    Trial("lora.dropout=0", ("lora.dropout=0",)),
    Trial("lora.dropout=0.3", ("lora.dropout=0.3",)),
    Trial("drop_captions=0.5", ("drop_captions=0.5",)),
    Trial("weight_decay=0", ("weight_decay=0",)),
    Trial("weight_decay=0.1", ("weight_decay=0.1",)),
    Trial("preserve_base=0.5", ("preserve_base=0.5",)),
    Trial("latent_noise=0.1", ("latent_noise=0.1",)),
)
"""The first is what the others are compared with; the second says what is chance."""


@dataclass(frozen=True)
class Place:
    """Where the data and weights are, and where the runs go."""

    clips: Path
    features: Path
    output: Path
    model: str
    weights: Path | None
    offline: bool
    device: torch.device


@dataclass(frozen=True)
class Result:
    """A run that has ended."""

    trial: Trial
    outcome: Outcome
    last: float
    """Validation loss of the adapter that training ended with."""
    losses: dict[str, list[float]]
    """Velocity losses of the best adapter's clips, by set."""


def settings_of(trial: Trial, place: Place, overrides: Sequence[str]) -> list[str]:
    """What training is told in one run: Hydra overrides."""
    return [
        f"exp_id={trial.folder}",
        f"model={place.model}",
        f"clips_tsv={quoted(place.clips)}",
        f"features_dir={quoted(place.features)}",
        f"output_dir={quoted(place.output)}",
        f"device={place.device}",
        "preset=quick",
        "early_stopping.enabled=false",
        "logging.sample_every=0",
        *([] if place.weights is None else [f"weights={quoted(place.weights)}"]),
        *(["offline=true"] if place.offline else []),
        *overrides,
        *trial.overrides,
    ]


def run_trial(trial: Trial, place: Place, overrides: Sequence[str], sets: Mapping[str, FeatureSet]) -> Result | Outcome:
    """Train, or find trained, and measure; the outcome alone where a signal ended it. Raises what training raises."""
    config = compose(settings_of(trial, place, overrides))
    outcome = train(config, place.device)
    if outcome.signal is not None:
        return outcome
    adapter = outcome.folder / "lora_checkpoints" / "best_lora.pt"
    return Result(trial, outcome, last_validation(outcome.folder), losses_of(adapter, config, place, sets))


def last_validation(folder: Path) -> float:
    """The last validation loss that a run wrote; DataError where it wrote none."""
    found = [row[VALIDATION] for row in read_history(folder / JSONL) if VALIDATION in row]
    if not found:
        raise DataError(f"{folder}: no evaluation in it; settings are compared with validation, leave it on")
    return found[-1]


def losses_of(
    adapter: Path, config: TrainConfig, place: Place, sets: Mapping[str, FeatureSet]
) -> dict[str, list[float]]:
    """Velocity losses of every set's clips with the adapter."""
    network, sha256 = load_network(config, place.device)
    attach(network, read_adapter(adapter), place.model, sha256)
    sampler = load_sampler(place.model, place.weights, place.device, network, fast_dtype(place.device))
    found = {}
    for name, clips in sets.items():
        network.set_duration(clips.seconds)
        found[name] = velocity_losses(sampler, clips, Draws(), name)
    return found


def general_clips(place: Place, folder: Path | None) -> FeatureSet | None:
    """Clips of the base's own domain: those of an evaluation's `folder`, else the model's; None where it has none."""
    spec = model_spec(place.model)
    if folder is not None:
        return load_features(folder / "clips.tsv", folder, "test", place.model)
    found, why = general_set(spec, None, place.output / "general", place.weights, place.device)
    if found is None:
        print(f"forgetting: not measured, {why}")
        return None
    return found.features


def table(results: Sequence[Result], sets: Mapping[str, FeatureSet]) -> list[str]:
    """Lines of a table in Markdown: every run beside the first."""
    first = results[0]
    head = ["setting", "validation", "at step", "at the end"]
    head += [cell for name in sets for cell in (name, "change, 95 % interval")]
    rows = []
    for run in results:
        row = [run.trial.name, f"{run.outcome.best:.4f}", str(run.outcome.best_step), f"{run.last:.4f}"]
        for name, clips in sets.items():
            own = run.losses[name]
            row += [f"{sum(own) / len(own):.4f}", "" if run is first else beside(first.losses[name], own, clips.videos)]
        rows.append(row)
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def beside(before: list[float], after: list[float], videos: list[str]) -> str:
    """The mean change of the clips' losses, with its interval over `videos` where there are several."""
    found = change(before, after, videos)
    if found.interval is None:
        return f"{found.mean:+.4f}"
    return f"{found.mean:+.4f} ({found.interval[0]:+.4f} to {found.interval[1]:+.4f})"


def parser() -> cli.Parser:
    """The command line."""
    made = cli.Parser("Train once for each setting and compare validation and forgetting.")
    made.usage = "compare_settings.py [flags] [-- HYDRA_OVERRIDE ...]"
    made.add_argument("--clips", type=Path, default=Path("lora_data/clips.tsv"), help="the table of clips")
    made.add_argument("--features", type=Path, default=Path("lora_data/features"), help="their features")
    made.add_argument("--output", type=Path, default=Path("output/settings"), help="the runs' folders and the table")
    made.add_argument("--model", default="tiny_16k", choices=list(MODELS), help="the base model")
    made.add_argument("--general", type=Path, help="an evaluation's folder `general`; else the model's own videos")
    made.add_argument(
        "--only", nargs="+", metavar="SETTING", help="these of the settings; the first run is always there"
    )
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_weights_flags()
    return made


def main(arguments: list[str]) -> int:
    """Run what is missing and print the table, which is also written to OUTPUT/settings.md."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    args, overrides = parser().parse_args(arguments[:cut]), arguments[cut + 1 :]
    offline, device = cli.is_offline(args.offline), cli.pick_device(args.device)
    place = Place(args.clips, args.features, args.output, args.model, args.weights, offline, device)
    trials = chosen(args.only)
    sets = {"held out": load_features(place.clips, place.features, "test", place.model)}
    general = general_clips(place, args.general)
    if general is not None:
        sets["base's own domain"] = general
    results = []
    for trial in trials:
        print(f"\n== {trial.name}", flush=True)
        result = run_trial(trial, place, overrides, sets)
        if isinstance(result, Outcome):
            return 128 + (result.signal or 0)
        results.append(result)
    lines = table(results, sets)
    (place.output / "settings.md").write_text("\n".join(lines) + "\n")
    print("", *lines, sep="\n")
    return 0


def chosen(names: Sequence[str] | None) -> list[Trial]:
    """The first trial and those of the names, all without any; ConfigError for a name that is none."""
    known = {trial.name: trial for trial in TRIALS}
    for name in names or []:
        if name not in known:
            raise ConfigError(f"--only {name!r}: no such setting; there are {', '.join(map(repr, known))}")
    return [trial for trial in TRIALS if names is None or trial is TRIALS[0] or trial.name in names]
