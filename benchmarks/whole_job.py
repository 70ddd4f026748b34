"""The whole job as a user runs it, by stage: time, how busy cores and GPU were, memory, clips or steps per second.

    python -m benchmarks.whole_job --videos 4 --minutes 5 --steps 600
    python -m benchmarks.whole_job --model tiny_16k --videos 3 --minutes 1 --steps 50
    python -m benchmarks.whole_job --memory_gb 8
    python -m benchmarks.whole_job --videos 8 --minutes 1 --encoder_ms 50

Makes moving, noisy videos at 25 frames per second and, for a released model, weights of its sizes with random values;
both are kept for the next run. Then it runs the pipeline on them, with its defaults but for the number of steps, and
prints a table with a column for 20 videos of 5 minutes and 3000 steps: every stage in proportion, start-up included.
`--memory_gb` is what a process may take of the GPU. `--encoder_ms` measures the readers of extraction alone, without a
GPU and without weights (`benchmarks.encoder_pauses`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.encoder_pauses import measure_readers
from benchmarks.noisy_videos import write_noisy_video
from benchmarks.timing import describe_device
from mmaudio import cli
from mmaudio.data.clip_table import read_clips
from mmaudio.features.clip import build_clip
from mmaudio.features.synchformer import build_synchformer
from mmaudio.features.vae import build_vae
from mmaudio.features.vocoder import build_vocoder
from mmaudio.model.networks import build_network
from mmaudio.model.spec import model_spec
from mmaudio.pipeline.job import STAGES
from mmaudio.utils.checkout import ROOT
from mmaudio.utils.files import atomic_write
from mmaudio.utils.progress import working
from mmaudio.weights.registry import COMPONENTS, weights_file

SCALED_VIDEOS, SCALED_MINUTES, SCALED_STEPS = 20, 5.0, 3000
"""The job that the last column is of."""
POLL_SECONDS = 0.5
GPU_QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")
WEIGHT_SCALE = 0.02
"""Standard deviation of the random weights."""
CAPTION = "traffic on a wet street"


@dataclass(frozen=True)
class Sample:
    """What the job used up to an instant."""

    time: float
    cpu_seconds: float
    """Of all its processes so far."""
    memory: int
    """Bytes that they have in memory now."""
    gpu_percent: float | None
    """How busy the first GPU is; None without one."""
    gpu_mib: float | None


@dataclass
class StageUse:
    """What one stage used."""

    name: str
    samples: list[Sample] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Its time."""
        return self.samples[-1].time - self.samples[0].time

    @property
    def busy_cores(self) -> float:
        """Cores that were busy, in the mean."""
        return (self.samples[-1].cpu_seconds - self.samples[0].cpu_seconds) / max(self.seconds, 1e-9)

    def cells(self, count: float, unit: str, scale: float) -> list[str]:
        """The stage's row: the rate is of `count` things named `unit`, the scaled job has `scale` times its work."""
        percents = [sample.gpu_percent for sample in self.samples if sample.gpu_percent is not None]
        gpu_mib = [sample.gpu_mib for sample in self.samples if sample.gpu_mib is not None]
        return [
            self.name,
            f"{self.seconds:.0f} s",
            f"{sum(percents) / len(percents):.0f} %" if percents else "",
            f"{self.busy_cores:.1f}",
            f"{max(sample.memory for sample in self.samples) / 2**30:.1f} GiB",
            f"{max(gpu_mib) / 1024:.1f} GiB" if gpu_mib else "",
            f"{count / max(self.seconds, 1e-9):.2g} {unit}/s",
            f"{self.seconds * scale:.0f} s",
        ]


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Run the whole job and print what every stage takes.")
    parser.usage = "python -m benchmarks.whole_job [flags]"
    parser.add_argument("--model", default="small_16k", help="the base model")
    parser.add_argument("--videos", type=int, default=4, help="number of videos")
    parser.add_argument("--minutes", type=float, default=5.0, help="length of each")
    parser.add_argument("--side", type=int, default=720, help="height of the pictures in pixels, 16:9")
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    parser.add_argument("--memory_gb", type=float, help="of the GPU, for each process; all of it if not given")
    parser.add_argument("--encoder_ms", type=float, help="extract alone, with a pause of so long for every window")
    parser.add_argument("--output", type=Path, default=Path("whole_job"), help="where everything is written")
    return parser


def make_videos(folder: Path, count: int, minutes: float, side: int) -> None:
    """Write the videos that are not there, with a caption beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"street_{side}_{minutes:g}_{number:03d}.mp4"
        if not path.is_file():
            with working(f"making {path.name}"):
                write_noisy_video(path, 60 * minutes, side, seed=number)
        path.with_suffix(".txt").write_text(f"{CAPTION}\n", encoding="utf-8")


def make_weights(folder: Path, model: str) -> None:
    """Write the files of a released model that are not there: their keys and shapes, and random values."""
    folder.mkdir(parents=True, exist_ok=True)
    for component in COMPONENTS:
        file = weights_file(model, component)
        if file is None or (folder / file.name).is_file():
            continue
        with working(f"making {file.name}"):
            state = {key: random_values(key, tensor) for key, tensor in empty_state(model, component).items()}
            with atomic_write(folder / file.name) as temporary:
                if file.name.endswith(".safetensors"):
                    save_file(state, temporary)
                else:
                    torch.save(state if file.key is None else {file.key: state}, temporary)


def empty_state(model: str, component: str) -> dict[str, Tensor]:
    """The state dict of a component, on the meta device."""
    spec = model_spec(model)
    builders: dict[str, Callable[[], nn.Module]] = {
        "network": lambda: build_network(model),
        "vae": lambda: build_vae(spec.codec.name),
        "vocoder": lambda: build_vocoder(spec.codec.name),
        "synchformer": lambda: build_synchformer(spec.sync.name),
        "clip": lambda: build_clip(spec.clip.name).model,
    }
    with torch.device("meta"):
        return builders[component]().state_dict()


def random_values(key: str, like: Tensor) -> Tensor:
    """Values for an entry of a state dict: ones where a deviation or a count is expected."""
    if not like.is_floating_point() or key.endswith(("std", "running_var")):
        return torch.ones(like.shape, dtype=like.dtype)
    return WEIGHT_SCALE * torch.randn(like.shape, dtype=like.dtype)


def pipeline_command(args: argparse.Namespace, videos: Path) -> list[str]:
    """The job's command, with its defaults but for the number of steps."""
    command = [sys.executable, "-m", "mmaudio.pipeline", str(videos), "--model", args.model, "--yes", "--offline"]
    if not model_spec(args.model).bundled:
        command += ["--weights", str((args.output / "weights").resolve())]
    settings = [f"max_steps={args.steps}", "exp_id=job", "early_stopping.enabled=false"]
    return [*command, "--from", STAGES[0], "--output", str(args.output.resolve()), "--", *settings]


def memory_limit(gigabytes: float | None) -> dict[str, str]:
    """The environment in which a process may take so much of the GPU; ConfigError without a GPU."""
    if gigabytes is None:
        return {}
    device = cli.pick_device("cuda")
    share = gigabytes * 1e9 / torch.cuda.get_device_properties(device).total_memory
    return {"PYTORCH_CUDA_ALLOC_CONF": f"per_process_memory_fraction:{min(share, 1.0):.4f}"}


def take_sample(process: psutil.Process) -> Sample:
    """What the job uses now; ended processes count in their parents' times."""
    cpu_seconds, memory = 0.0, 0
    for member in [process, *process.children(recursive=True)]:
        try:
            with member.oneshot():
                cpu_seconds += sum(member.cpu_times()[:4])
                memory += member.memory_info().rss
        except psutil.Error:
            continue
    values: Sequence[float | None] = (None, None)
    if shutil.which(GPU_QUERY[0]) is not None:
        printed = subprocess.run(GPU_QUERY, capture_output=True, text=True, check=False).stdout.splitlines()
        values = [float(value) for value in printed[0].split(",")] if printed else values
    return Sample(time.monotonic(), cpu_seconds, memory, *values)


def watch_job(command: Sequence[str], environment: Mapping[str, str]) -> list[StageUse]:
    """Run the job, print what it prints, and measure it; SystemExit where it fails."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=variables) as process:
        root, end = psutil.Process(process.pid), threading.Event()
        stages = [StageUse("plan", [take_sample(root)])]

        def poll() -> None:
            """Add samples to the stage that runs, until the job has ended."""
            while not end.wait(POLL_SECONDS):
                stages[-1].samples.append(take_sample(root))

        watcher = threading.Thread(target=poll)
        watcher.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            name = line.strip().removeprefix("== ")
            if name in STAGES:
                sample = take_sample(root)
                stages[-1].samples.append(sample)
                stages.append(StageUse(name, [sample]))
        end.set()
        watcher.join()
    if process.returncode:
        sys.exit(f"the job ended with status {process.returncode}")
    return stages


def format_table(stages: Sequence[StageUse], args: argparse.Namespace) -> list[str]:
    """Lines of the Markdown table."""
    num_clips = len(read_clips(args.output / "lora_data" / "clips.tsv"))
    videos_scale = SCALED_VIDEOS * SCALED_MINUTES / (args.videos * args.minutes)
    head = ["stage", "time", "GPU busy", "cores busy", "memory", "GPU memory", "rate"]
    head.append(f"{SCALED_VIDEOS} x {SCALED_MINUTES:g} min, {SCALED_STEPS} steps")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for stage in stages:
        is_training = stage.name == "train"
        scale = {"plan": 1.0, "train": SCALED_STEPS / args.steps}.get(stage.name, videos_scale)
        cells = stage.cells(args.steps if is_training else num_clips, "steps" if is_training else "clips", scale)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(arguments: list[str]) -> None:
    """Make what is absent, run the job, print the table."""
    args = build_parser().parse_args(arguments)
    cli.check_at_least(args, videos=1, steps=1, side=32)
    environment = memory_limit(args.memory_gb)
    videos = args.output / f"videos_{args.videos}"
    make_videos(videos, args.videos, args.minutes, args.side)
    if args.encoder_ms is not None:
        print(measure_readers(videos, 60 * args.minutes, args.model, args.encoder_ms, args.output / "paused"))
        return
    if not model_spec(args.model).bundled:
        make_weights(args.output / "weights", args.model)
    stages = watch_job(pipeline_command(args, videos.resolve()), environment)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    what = f"{args.videos} videos of {args.minutes:g} min at {args.side}p, {args.steps} steps of {args.model}"
    print("", f"{what}; {describe_device(device)}", "", *format_table(stages, args), sep="\n")


if __name__ == "__main__":
    cli.run(main)
