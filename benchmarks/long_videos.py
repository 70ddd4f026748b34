"""Audio of whole videos against independent clips of 8 s and passes of 30 s: onsets, loud mel distance, seams.

    python -m benchmarks.long_videos --adapter demo_output/output/videos_tiny_16k/lora_checkpoints/best_lora.pt

Draws videos of 60 s that no model was trained on, of four kinds: the demo's domain, sparse events of it (both with the
adapter), the base's domain, and continuous sound of it (both with the base model). Audio that exists in the output
folder is not generated again. About an hour on two CPU cores.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.loudness import read_flac
from mmaudio import cli
from mmaudio.api import LoRAMMAudio, load_pretrained_with_lora
from mmaudio.generation.sampler import compute_mel
from mmaudio.generation.windows import plan_windows
from mmaudio.media.audio import read_audio, resample_audio
from mmaudio.media.audio_file import write_audio
from mmaudio.media.mux import write_video
from mmaudio.metrics.onsets import Seconds, match_onsets, onset_f1, onset_times
from mmaudio.metrics.spectral import mel_l1_loud
from mmaudio.metrics.statistics import t_interval
from mmaudio.model.spec import ModelSpec, model_spec
from mmaudio.synthetic.demo import IMAGE_SIZE, SAMPLE_RATE
from mmaudio.synthetic.domains import BASE, DEMO, Domain
from mmaudio.synthetic.renderer import render_scene
from mmaudio.synthetic.scenes import Scene, build_scene, random_actor, random_scene
from mmaudio.utils.progress import progress

FPS = 25
SEED = 20
"""Of the videos; no other program of the project draws with it."""
PASS_SECONDS = {"whole": None, "clips of 8 s": 8.0, "passes of 30 s": 30.0}
"""Ways to generate the audio of a video, with the duration of each piece."""
DISTANCES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Seconds from the nearest join: edges of the rows of the table of onsets."""
SIDE_SECONDS = 0.1
"""Time before and after an instant whose difference is a step."""
CLEARANCE = 1.0
"""Seconds from a join outside which an instant counts as inside."""


@dataclass(frozen=True)
class VideoKind:
    """One kind of drawn video."""

    name: str
    domain: Domain
    has_adapter: bool
    motion_type: str = ""
    """Of its only object; empty: any scene of the domain."""
    events_per_second: float = 0.07

    def draw(self, seconds: float, generator: np.random.Generator) -> Scene:
        """Draw a scene."""
        if not self.motion_type:
            return random_scene(self.domain, seconds, generator)
        kinds = self.domain.kinds_with_motion(self.motion_type)
        if self.motion_type == "spin":
            kinds = tuple(kind for kind in kinds if kind.timbre.noise)
        kind = kinds[int(generator.integers(len(kinds)))]
        return build_scene(
            self.domain, [random_actor(kind, self.events_per_second, seconds, generator)], seconds, generator
        )


KINDS = (
    VideoKind("demo", DEMO, has_adapter=True),
    VideoKind("sparse", DEMO, has_adapter=True, motion_type="strike"),
    VideoKind("base", BASE, has_adapter=False),
    VideoKind("texture", BASE, has_adapter=False, motion_type="spin"),
)


def write_videos(folder: Path, kind: VideoKind, count: int, seconds: float) -> list[Path]:
    """Write `count` videos of a kind, each with its caption beside it; existing ones are not written again."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind.name}_{number:02d}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        generator = np.random.default_rng((SEED, KINDS.index(kind), number))
        rendered = render_scene(kind.draw(seconds, generator), FPS, IMAGE_SIZE, SAMPLE_RATE, generator)
        path.with_suffix(".txt").write_text(rendered.caption + "\n", encoding="utf-8")
        write_video(path, rendered.frames, FPS, rendered.waveform, SAMPLE_RATE)
    return paths


def generate_audio(model: LoRAMMAudio, video: Path, way: str, seconds: float, num_steps: int) -> Tensor:
    """The audio (samples,) of a video, in one of the ways, kept as a file beside the video."""
    name = way.replace(" ", "_")
    path = video.with_name(f"{video.stem}_{name}.flac")
    if not path.exists():
        prompt = video.with_suffix(".txt").read_text(encoding="utf-8").strip()
        length = PASS_SECONDS[way] or seconds
        pieces = []
        for number, start in enumerate(np.arange(0, seconds, length).tolist()):
            one_pass, piece_seconds = PASS_SECONDS[way] is not None, min(length, seconds - start)
            options = {"start": start, "seconds": piece_seconds, "seed": number, "num_steps": num_steps}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # 30 s in one pass are what is asked for
                pieces.append(model.generate(video, prompt, one_pass=one_pass, **options))
        write_audio(path, torch.cat(pieces).numpy(), model.sample_rate)
    return read_flac(path)[0]


def find_joins(spec: ModelSpec, way: str, seconds: float) -> list[float]:
    """Middles of the places at which pieces meet, in seconds: overlaps of windows, ends of passes."""
    length = PASS_SECONDS[way]
    if length is not None:
        return np.arange(length, seconds, length).tolist()
    grid = plan_windows(spec.codec, seconds)
    ends = [start + grid.window_seconds for start in grid.start_times[:-1]]
    return [(end + start) / 2 for end, start in zip(ends, grid.start_times[1:], strict=True)]


def distances_to(joins: Sequence[float], times: Iterable[float]) -> Seconds:
    """Distance of every time from the nearest join, in seconds."""
    values = np.asarray(list(times), np.float64)
    return np.abs(values[:, None] - np.asarray(joins)[None]).min(1) if len(joins) else np.full(len(values), np.inf)


def onset_counts(times: Seconds, reference: Seconds, joins: Sequence[float]) -> Seconds:
    """By row of `DISTANCES`: (matched, all) onsets of both sounds, (rows, 2); 2 matched / all is the F1."""
    pairs = match_onsets(times, reference)
    matched = [time for pair in pairs for time in pair]
    every = [*times.tolist(), *reference.tolist()]
    counts = [np.histogram(distances_to(joins, values), DISTANCES)[0] for values in (matched, every)]
    return np.stack(counts, axis=1).astype(np.float64)


def measure_steps(waveform: Tensor, spec: ModelSpec, times: Sequence[float]) -> Seconds:
    """Steps at each of `times`: of the level in dB, and of the mel spectrum in powers of ten; (times, 2)."""
    mel = compute_mel(waveform[None], spec)[0].double() * np.log10(spec.codec.log_base)
    side = round(SIDE_SECONDS * spec.codec.sample_rate)
    frames = round(side / spec.codec.hop_length)
    rows = []
    for time in times:
        sample = round(time * spec.codec.sample_rate)
        frame = round(sample / spec.codec.hop_length)
        before, after = waveform[max(0, sample - side) : sample], waveform[sample : sample + side]
        levels = [10 * torch.log10(sound.double().square().mean().clamp(min=1e-12)) for sound in (before, after)]
        spectra = mel[:, max(0, frame - frames) : frame].mean(1), mel[:, frame : frame + frames].mean(1)
        rows.append((float((levels[1] - levels[0]).abs()), float((spectra[1] - spectra[0]).abs().mean())))
    return np.asarray(rows)


def compare_seams(waveforms: Sequence[Tensor], spec: ModelSpec, way: str, seconds: float) -> list[float]:
    """Share of the joins whose step is above 95 % of those inside, and the median step there and inside; level, mel."""
    joins = find_joins(spec, way, seconds)
    grid = np.arange(SIDE_SECONDS, seconds - SIDE_SECONDS, SIDE_SECONDS)
    inside = grid[distances_to(joins, grid) > CLEARANCE].tolist()
    at_joins = np.concatenate([measure_steps(waveform, spec, joins) for waveform in waveforms])
    between = np.concatenate([measure_steps(waveform, spec, inside) for waveform in waveforms])
    limit = np.percentile(between, 95, axis=0)
    columns = ((at_joins > limit).mean(0), np.median(at_joins, axis=0), np.median(between, axis=0), limit)
    return [float(column[index]) for index in range(2) for column in columns]


def describe_difference(values: Sequence[float] | Seconds) -> str:
    """The mean with its 95 % interval."""
    interval = t_interval(values)
    bounds = "" if interval is None else f" ({interval[0]:+.3f} to {interval[1]:+.3f})"
    return f"{np.mean(values):+.3f}{bounds}"


def format_onsets(
    kind: VideoKind, originals: Sequence[Tensor], audio: dict[str, list[Tensor]], spec: ModelSpec, seconds: float
) -> list[str]:
    """Rows of the table of onsets and mel distance, and of onsets by distance from a join of windows."""

    def onsets(waveform: Tensor) -> Seconds:
        """Onset times of a waveform (T,), in seconds."""
        return onset_times(compute_mel(waveform[None], spec), spec.codec)[0]

    references = [onsets(original) for original in originals]
    joins = find_joins(spec, "whole", seconds)
    lines: list[str] = []
    whole_scores: list[float] = []
    for way, waveforms in audio.items():
        pairs = list(zip([onsets(waveform) for waveform in waveforms], references, strict=True))
        scores = [onset_f1(times, reference) for times, reference in pairs]
        counts = np.sum([onset_counts(times, reference, joins) for times, reference in pairs], axis=0)
        by_distance = [f"{matched / count:.3f}" if count else "" for matched, count in counts]
        mel = np.nanmean([loud_distance(*pair, spec) for pair in zip(waveforms, originals, strict=True)])
        whole_scores = whole_scores or scores
        change = describe_difference(np.subtract(whole_scores, scores)) if way != "whole" else ""
        lines.append(
            "| " + " | ".join([kind.name, way, f"{np.mean(scores):.3f}", f"{mel:.3f}", change, *by_distance]) + " |"
        )
    return lines


def loud_distance(waveform: Tensor, original: Tensor, spec: ModelSpec) -> float:
    """Mel distance in the original's loud cells, of sounds (samples,)."""
    samples = min(len(waveform), len(original))
    mel, reference = (compute_mel(sound[None, :samples], spec) for sound in (waveform, original))
    return mel_l1_loud(mel, reference, spec.codec.log_base).item()


def format_tables(
    sounds: dict[VideoKind, tuple[list[Tensor], dict[str, list[Tensor]]]], spec: ModelSpec, seconds: float
) -> list[str]:
    """Lines of the two Markdown tables: onsets and distance, and seams."""
    edges = [f"{low:g} to {high:g} s" for low, high in itertools.pairwise(DISTANCES)]
    head = ["videos", "audio", "onset F1", "mel distance, loud cells", "F1 of the whole less this", *edges]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind, (originals, audio) in sounds.items():
        lines += format_onsets(kind, originals, audio, spec, seconds)
    step = ["share of joins above 95 % of inside", "median at joins", "median inside", "95 % of inside"]
    head = ["videos", "audio", *(f"{name}, {unit}" for unit in ("dB", "mel") for name in step)]
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind, (_, audio) in sounds.items():
        for way, waveforms in audio.items():
            if find_joins(spec, way, seconds):
                cells = " | ".join(f"{value:.2f}" for value in compare_seams(waveforms, spec, way, seconds))
                lines.append(f"| {kind.name} | {way} | {cells} |")
    return lines


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Compare the audio of whole videos with independent clips and with long passes.")
    parser.usage = "python -m benchmarks.long_videos [flags]"
    parser.add_argument("--adapter", type=Path, help="of the demo's domain; default: the base model alone")
    parser.add_argument("--output", type=Path, default=Path("long_videos"), help="where everything is written")
    parser.add_argument("--videos", type=int, default=4, help="of each kind")
    parser.add_argument("--kinds", nargs="+", default=[kind.name for kind in KINDS], help="of video")
    parser.add_argument("--ways", nargs="+", choices=PASS_SECONDS, default=list(PASS_SECONDS), help="of generating")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each")
    parser.add_argument("--steps", type=int, default=25, help="solver steps")
    return parser


def main(arguments: list[str]) -> None:
    """Write the videos, generate their audio in every way, and print the tables."""
    args = build_parser().parse_args(arguments)
    model = load_pretrained_with_lora("tiny_16k", lora_checkpoint=args.adapter)
    spec = model_spec(model.model_name)
    sounds: dict[VideoKind, tuple[list[Tensor], dict[str, list[Tensor]]]] = {}
    for kind in (kind for kind in KINDS if kind.name in args.kinds):
        model.set_strength(1.0 if kind.has_adapter else 0.0)
        videos = write_videos(args.output, kind, args.videos, args.seconds)
        originals = [resample_audio(*read_audio(video), model.sample_rate) for video in videos]
        sounds[kind] = (originals, {way: [] for way in args.ways})
        for video in progress(videos, len(videos), kind.name):
            for way in args.ways:
                sounds[kind][1][way].append(generate_audio(model, video, way, args.seconds, args.steps))
    print("", *format_tables(sounds, spec, args.seconds), sep="\n")


if __name__ == "__main__":
    cli.run(main)
