"""Push an experiment's adapter to the Hugging Face hub, with a model card.

    mmaudio-lora push anna/dogs output/dogs --card_only      # writes output/dogs/hub, to read first
    mmaudio-lora push anna/dogs output/dogs --private
    mmaudio-lora push anna/dogs output/dogs --samples 4      # and what four held-out clips sound like

Everything that is pushed lies in EXPERIMENT/hub: README.md, PEFT's two files, the single file, the samples.
"""

from __future__ import annotations

import re
from pathlib import Path

from mmaudio import cli
from mmaudio.errors import ConfigError, DataError
from mmaudio.lora.checkpoint import AdapterFile, read_adapter, write_peft_files
from mmaudio.lora.single_file import write_single_file
from mmaudio.model.spec import MODELS
from mmaudio.report.card_samples import (
    MAX_SAMPLES,
    SAMPLES_FOLDER,
    HeldOutRow,
    choose_samples,
    read_held_out,
    select_played,
    write_samples,
)
from mmaudio.report.model_card import read_evaluation, render_card
from mmaudio.utils.files import atomic_folder, atomic_write
from mmaudio.utils.hub_errors import hub_address
from mmaudio.utils.progress import format_bytes, working
from mmaudio.utils.terminal import print_lines
from mmaudio.weights.hub_upload import upload_folder
from mmaudio.weights.store import file_sha256

CARD = "README.md"
MAX_NAME = 96
"""Characters of a repository's name, as the hub has it."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Push an experiment's adapter to the Hugging Face hub, with a model card.")
    parser.add_argument("repository", metavar="USER/NAME", help="the repository; made where there is none")
    parser.add_argument("experiment", metavar="EXPERIMENT", type=Path, help="the experiment's folder: output/EXP_ID")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--card_only", "--card-only", action="store_true", help="write what would be pushed, and stop")
    parser.add_argument(
        "--samples",
        type=int,
        default=0,
        help=f"push so many held-out clips of your videos, at most {MAX_SAMPLES}: the audio of base and adapted model",
    )
    parser.add_argument(
        "--with_video", "--with-video", action="store_true", help="the picture of these clips, too, with that audio"
    )
    parser.add_argument("--token", help="the hub's token; HF_TOKEN, or that of `hf auth login`, where not given")
    return parser


def main(arguments: list[str]) -> int:
    """Write the files, and push them unless `--card_only`."""
    args = build_parser().parse_args(arguments)
    check_repository(args.repository)
    if not 0 <= args.samples <= MAX_SAMPLES:
        raise ConfigError(f"--samples {args.samples}: 0 to {MAX_SAMPLES}")
    if args.with_video and not args.samples:
        raise ConfigError("--with_video: it is for the clips of --samples; say how many")
    folder = write_folder(args.repository, args.experiment, args.samples, args.with_video)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = format_bytes(sum(path.stat().st_size for path in files))
    print_lines(f"{folder}: {size} in {', '.join(str(path.relative_to(folder)) for path in files)}", flush=True)
    if args.card_only:
        print_lines(f"the card: {folder / CARD}; nothing was pushed")
        return 0
    visibility = "as private" if args.private else "for everybody, unless the repository is private"
    print_lines(f"pushing to {hub_address(args.repository)}, {visibility}", flush=True)
    with working("pushing"):
        upload_folder(folder, args.repository, args.private, args.token, SAMPLES_FOLDER)
    print_lines(f"pushed: {hub_address(args.repository)}; use it with --adapter {args.repository}")
    return 0


def check_repository(name: str) -> None:
    """Raise ConfigError for what is no name of a repository with its owner."""
    if not _REPOSITORY.fullmatch(name) or len(name) > MAX_NAME or re.search(r"--|\.\.", name):
        raise ConfigError(
            f"{name}: a repository is USER/NAME, your name on the hub and one of letters, digits, '-', '_' and '.', of "
            f"at most {MAX_NAME} characters in all"
        )


def write_folder(repository: str, experiment: Path, num_samples: int, with_video: bool) -> Path:
    """Write what is pushed into EXPERIMENT/hub, in place of what is there; the folder.

    Raises WeightsError without an adapter, DataError where there are fewer clips to show.
    """
    path = experiment / "lora_checkpoints" / "best_lora.pt"
    adapter = read_experiment(experiment, path)
    rows = read_held_out(experiment / "metrics.tsv")
    evaluation = read_evaluation(experiment / "metrics.json", file_sha256(path), _chose_step(adapter, rows))
    if evaluation is None:
        print_lines(f"note: {experiment} has no evaluation of this adapter; the card will say so")
    rows = select_played(experiment / "report", rows)
    samples = choose_samples(rows, num_samples, adapter.data.get("train", {}).get("videos", ()))
    if len(samples) < num_samples or (samples and evaluation is None):
        number = len(samples) if evaluation is not None else 0
        raise DataError(f"--samples {num_samples}: the evaluation of this adapter has {number} clips to show")
    target = experiment / "hub"
    with atomic_folder(target) as folder:
        write_peft_files(folder, adapter)
        write_single_file(folder / f"{repository.split('/')[1]}.safetensors", adapter)
        names = write_samples(experiment / "report", samples, folder, with_video) if samples else []
        with atomic_write(folder / CARD) as card:
            card.write_text(render_card(repository, adapter, evaluation, names), encoding="utf-8")
    return target


def read_experiment(experiment: Path, path: Path) -> AdapterFile:
    """The experiment's best adapter; ConfigError where there is none, or one that no PEFT file can hold."""
    if not path.is_file():
        other = Path("output") / experiment
        hint = f"; did you mean {other}?" if other.is_dir() else ""
        raise ConfigError(f"{experiment}: no experiment, which has lora_checkpoints/{path.name}{hint}")
    adapter = read_adapter(path)
    if not adapter.lora.enabled:
        raise ConfigError(f"{experiment}: full fine-tuning changes the whole model, and has no adapter to push")
    if adapter.base_model not in MODELS:
        raise ConfigError(f"{path}: it does not name its base model, which the card has to")
    return adapter


def _chose_step(adapter: AdapterFile, rows: list[HeldOutRow]) -> bool:
    """Whether clips that were compared also chose the best step of training."""
    validation = set(adapter.data.get("validation", {}).get("ids", ()))
    return any(row.id in validation for row in rows)


if __name__ == "__main__":
    cli.run(main)
