"""Compare a base model and an adapter on held-out videos, and write a report with sound and picture.

    python evaluate_lora.py --lora_checkpoint output/EXP/lora_checkpoints/best_lora.pt --test_videos ./my_videos \\
        --compare_original

Writes metrics.json, metrics.tsv and report/index.html beside the checkpoint's folder (or into --output). Does nothing
where they are still valid.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from mmaudio import cli
from mmaudio.errors import ConfigError
from mmaudio.evaluation.config import Request
from mmaudio.evaluation.evaluate import evaluate
from mmaudio.evaluation.inference import Draws
from mmaudio.evaluation.strength_sweep import USUAL, chosen_strengths
from mmaudio.generation.sampler import fast_dtype
from mmaudio.model.spec import MODELS


def parser() -> cli.Parser:
    """The command line."""
    made = cli.Parser("Compare a base model and an adapter on held-out videos.")
    made.add_argument("--lora_checkpoint", type=Path, required=True, help="the adapter, such as best_lora.pt")
    made.add_argument("--test_videos", type=Path, required=True, help="the folder of videos that the clips are of")
    made.add_argument(
        "--compare_original", action="store_true", help="compare with the original model and sound: always done"
    )
    made.add_argument("--model", choices=list(MODELS), help="the base model, for an adapter that names none")
    made.add_argument("--clips", type=Path, default=Path("lora_data/clips.tsv"), help="the table of clips")
    made.add_argument("--features", type=Path, default=Path("lora_data/features"), help="the folder of features")
    made.add_argument("--output", type=Path, help="where results go; the experiment's folder where not given")
    made.add_argument("--general_videos", type=Path, help="videos of other things, to show what was forgotten")
    made.add_argument("--metrics", type=names_of, help="only these, comma separated; all that can be where not given")
    made.add_argument(
        "--check-data", action="store_true", help="list the training clips whose sound does not fit the picture"
    )
    made.add_argument("--samples", type=int, default=1, help="sounds per clip, each from other noise")
    made.add_argument(
        "--strengths",
        default=",".join(map(str, USUAL)),
        metavar="S,S,...",
        help="strengths of the adapter to try besides 0 and 1, on a few clips; none: '' (default %(default)s)",
    )
    made.add_argument(
        "--include-training",
        action="store_true",
        help="compare clips of videos that were trained on, too, and mark them",
    )
    made.add_argument("--seed", type=int, default=0, help="what all noise is drawn from")
    made.add_argument("--guidance", type=float, help="strength of guidance; the model's own where not given")
    made.add_argument("--steps", type=int, help="solver steps; the model's own where not given")
    made.add_argument("--max_clips", type=int, help="at most so many held-out clips, evenly over the videos")
    made.add_argument("--batch_size", type=int, default=8, help="clips that are computed together")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_weights_flags()
    return made


def main(arguments: list[str]) -> int:
    """Evaluate as `arguments` ask for."""
    args = parser().parse_args(arguments)
    for flag in ("samples", "steps", "max_clips", "batch_size"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ConfigError(f"--{flag} {value}: at least 1")
    if args.guidance is not None and not 1 <= args.guidance < math.inf:
        raise ConfigError(f"--guidance {args.guidance:g}: a number from 1, for none, up; 4.5 is usual")
    device = cli.pick_device(args.device)
    request = Request(
        checkpoint=args.lora_checkpoint,
        videos=args.test_videos,
        clips=args.clips,
        features=args.features,
        output=args.output or experiment(args.lora_checkpoint),
        draws=Draws(args.seed, args.samples, args.steps, args.guidance, args.batch_size),
        weights=args.weights,
        offline=cli.is_offline(args.offline),
        general_videos=args.general_videos,
        model=args.model,
        strengths=strengths(args.strengths),
        include_training=args.include_training,
        max_clips=args.max_clips,
        metrics=args.metrics,
        check_data=args.check_data,
        device=device,
        dtype=fast_dtype(device),
    )
    start = time.monotonic()
    report = evaluate(request)
    print(f"report: {report} ({time.monotonic() - start:.0f} s)", flush=True)
    return 0


def strengths(text: str) -> tuple[float, ...]:
    """The strengths in a list such as `0.5,0.75`; ConfigError for anything else."""
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"--strengths {text}: numbers with commas between them, such as 0.5,0.75") from None
    return chosen_strengths(values)


def names_of(text: str) -> tuple[str, ...]:
    """Comma-separated names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def experiment(checkpoint: Path) -> Path:
    """The folder of the experiment that an adapter belongs to, the adapter's own where it lies alone."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "lora_checkpoints" else folder / f"{checkpoint.stem}_evaluation"


if __name__ == "__main__":
    cli.run(main)
