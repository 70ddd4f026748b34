"""What the best of several takes by a score is worth: its onset F1 beside that of the mean take.

    ./run_lora_pipeline.sh --demo
    python -m benchmarks.best_of_samples --adapter demo_output/output/videos_tiny_16k/lora_checkpoints/best_lora.pt \\
        --clips demo_output/lora_data/clips.tsv --videos demo_output/videos --draw 32

For every held-out clip of the table, and for `--draw` further videos of the demo's kind that no run has trained on,
`--samples` takes are generated and ranked by each of `--rank-by`; the onset F1 is against the clip's original sound.
The unit is the video: the interval is a bootstrap over videos.

V videos, C clips, S takes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmaudio import cli
from mmaudio.data.captions import find_caption
from mmaudio.data.clip_table import read_clips
from mmaudio.evaluation.general_domain import spread_over_videos
from mmaudio.features.encoders import CONDITION_ENCODERS, Encoders, load_encoders
from mmaudio.features.mel import build_mel
from mmaudio.generation.generate import GenerationRequest, generate_samples
from mmaudio.generation.sampler import Sampler, fast_dtype, load_sampler
from mmaudio.generation.take_ranking import CONSENSUS, MOTION, Ranking, TakeScorer, rank_takes
from mmaudio.lora.adapter import merge
from mmaudio.lora.stack import read_stack
from mmaudio.lora.strength import AS_TRAINED
from mmaudio.media.audio_windows import read_audio_windows
from mmaudio.media.video import probe
from mmaudio.metrics.onsets import onset_f1, onset_times
from mmaudio.model.spec import CLIP_SECONDS
from mmaudio.synthetic.demo import plan_demo_videos, write_demo_videos
from mmaudio.utils.progress import progress
from mmaudio.weights.store import component_sha256

DRAW_SEED = 1_000
"""Seed of the drawn videos; the demo's own is 0."""
RESAMPLES = 10_000
LEVEL = 0.95

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeldOutClip:
    """A clip that training never saw, with its original sound in the video."""

    video: Path
    start: float
    seconds: float
    prompt: str


@dataclass(frozen=True)
class Outcome:
    """Scores of one clip's takes."""

    video: str
    onset_f1: Array
    """Of each take, (S,)."""
    scores: Mapping[str, Array]
    """By the metric that ranks, (S,) each."""

    def best(self, metric: str) -> float:
        """Onset F1 of the best take by `metric`."""
        return float(self.onset_f1[rank_takes(self.scores[metric].tolist(), Ranking(metric)).takes[0].index])


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser("Compare the best of several takes by a score with the mean take.")
    parser.prog = "python -m benchmarks.best_of_samples"
    parser.add_argument("--adapter", type=Path, help="the demo's adapter; without one the base model is measured")
    parser.add_argument("--model", default="tiny_16k", help="the base model")
    parser.add_argument("--clips", type=Path, help="the table of clips, whose test clips are taken")
    parser.add_argument("--videos", type=Path, help="the folder of the table's videos")
    parser.add_argument("--per_video", type=int, help="at most so many of the table's clips, evenly over its videos")
    parser.add_argument("--draw", type=int, default=0, help="further videos to draw, one clip each")
    parser.add_argument("--first", type=int, default=0, help="number of the first drawn video")
    parser.add_argument("--output", type=Path, default=Path("best_of_samples"), help="where drawn videos are written")
    parser.add_argument("--rank-by", nargs="+", choices=[CONSENSUS, MOTION], default=[CONSENSUS, MOTION], help="scores")
    parser.add_argument("--samples", type=int, default=8, help="takes per clip")
    parser.add_argument("--steps", type=int, help="solver steps; the model's default where not given")
    parser.add_argument("--weights", type=Path, help="the folder of the released weights")
    return parser


def held_out_clips(args: argparse.Namespace) -> Iterator[HeldOutClip]:
    """The test clips of the table, then the drawn videos."""
    if args.clips is not None:
        test = [clip for clip in read_clips(args.clips) if clip.split == "test"]
        videos = [clip.video for clip in test]
        num_clips = None if args.per_video is None else args.per_video * len(set(videos))
        for clip in [test[row] for row in spread_over_videos(videos, num_clips)]:
            yield HeldOutClip(args.videos / clip.video, clip.start, clip.seconds, clip.caption)
    planned = plan_demo_videos(args.output, args.first + args.draw, CLIP_SECONDS + 0.2, DRAW_SEED)[args.first :]
    missing = [video for video in planned if not video.path.is_file()]
    for _ in write_demo_videos(missing, os.cpu_count() or 1):
        pass
    for video in planned:
        yield HeldOutClip(video.path, 0.0, CLIP_SECONDS, find_caption(video.path, ""))


def load_adapted(args: argparse.Namespace) -> Sampler:
    """The base model's sampler with the adapter merged in."""
    sampler = load_sampler(args.model, args.weights, dtype=fast_dtype(cli.pick_device("cpu")))
    if args.adapter is not None:
        stack = read_stack([(args.adapter, AS_TRAINED)])
        adapted = stack.attach(sampler.network, args.model, component_sha256(args.model, "network", args.weights))
        sampler.network = merge(adapted).eval().requires_grad_(False)
    return sampler


def measure_clip(sampler: Sampler, encoders: Encoders, clip: HeldOutClip, args: argparse.Namespace) -> Outcome:
    """Generate the takes of a clip, score each, and compare it with the original."""
    codec = sampler.spec.codec
    request = GenerationRequest(clip.video, clip.prompt, start=clip.start, seconds=clip.seconds, num_steps=args.steps)
    waveforms = generate_samples(sampler, encoders, request, args.samples)
    scores = {
        metric: np.array(TakeScorer(Ranking(metric), sampler.spec, encoders).score(request, clip.seconds, waveforms))
        for metric in args.rank_by
    }
    original = next(read_audio_windows(probe(clip.video), [clip.start], codec.sample_rate, waveforms.shape[1]))
    to_mel = build_mel(codec.name)
    reference = onset_times(to_mel(original[None]), codec)[0]
    takes = onset_times(to_mel(waveforms), codec)
    return Outcome(clip.video.name, np.array([onset_f1(times, reference) for times in takes]), scores)


def video_gains(outcomes: Sequence[Outcome], metric: str) -> Array:
    """By how much the best take's onset F1 exceeds the mean take's, one value per video (V,): the mean of its clips."""
    videos = dict.fromkeys(outcome.video for outcome in outcomes)
    gains = {name: [o.best(metric) - float(o.onset_f1.mean()) for o in outcomes if o.video == name] for name in videos}
    return np.array([np.mean(values) for values in gains.values()])


def bootstrap_interval(values: Array) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of `values` (V,), with a fixed seed."""
    rows = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[rows].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def summary_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """What was measured: the takes, then a line for each score."""
    first = outcomes[0]
    mean = np.mean([outcome.onset_f1.mean() for outcome in outcomes])
    oracle = np.mean([outcome.onset_f1.max() for outcome in outcomes])
    num_videos = len({outcome.video for outcome in outcomes})
    lines = [
        f"{len(outcomes)} clips of {num_videos} videos, {len(first.onset_f1)} takes each",
        f"onset F1: mean take {mean:.3f}, best by the original itself {oracle:.3f}",
    ]
    for metric in first.scores:
        gains = video_gains(outcomes, metric)
        low, high = bootstrap_interval(gains)
        best = np.mean([outcome.best(metric) for outcome in outcomes])
        lines.append(
            f"best by {metric} {best:.3f}; gain by video {gains.mean():+.3f}, 95 % bootstrap interval "
            f"{low:+.3f} to {high:+.3f}"
        )
    return lines


def main(arguments: list[str]) -> int:
    """Measure and print."""
    args = build_parser().parse_args(arguments)
    cli.check_at_least(args, samples=2, draw=0, first=0, steps=1, per_video=1)
    sampler = load_adapted(args)
    encoders = load_encoders(args.model, args.weights, "cpu", CONDITION_ENCODERS)
    clips = list(held_out_clips(args))
    measured = progress(clips, len(clips), "clips")
    outcomes = []
    for clip in measured:
        outcomes.append(measure_clip(sampler, encoders, clip, args))
        columns = zip(outcomes[-1].onset_f1, *outcomes[-1].scores.values(), strict=True)
        values = ("/".join(f"{value:.4f}" for value in column) for column in columns)
        print(f"{clip.video.name}: {'/'.join(('onset F1', *args.rank_by))}", *values, flush=True)
    print("", *summary_lines(outcomes), sep="\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
