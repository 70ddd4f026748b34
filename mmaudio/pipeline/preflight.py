"""Is this machine fit for the job, and what will it cost: the check and plan stage of the pipeline."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import av
import torch

from mmaudio.config import TrainConfig, compose
from mmaudio.data.captions import read_captions
from mmaudio.data.clips import find_videos, video_below
from mmaudio.data.config import SplitConfig, compose_split
from mmaudio.data.folder_split import SplitSettings
from mmaudio.data.scan import ScanSettings
from mmaudio.data.shots import check_scenes
from mmaudio.data.speech import check_flags
from mmaudio.errors import ConfigError, DataError
from mmaudio.generation.sampler import fast_dtype
from mmaudio.lora.targets import fresh_targets
from mmaudio.media.video import probe
from mmaudio.model import cost_model as planning
from mmaudio.model.networks import build_network
from mmaudio.model.spec import SECONDS, model_spec
from mmaudio.pipeline.job import SPLIT_KEYS, Job, training_overrides
from mmaudio.utils.matmul_speed import matmul_speed
from mmaudio.utils.progress import amount
from mmaudio.weights import hub
from mmaudio.weights import store as weights
from mmaudio.weights.registry import PARTS

DECODERS = ("h264", "hevc", "vp9", "aac", "opus")
"""What most users' files need."""
LONG = 2 * 3600.0
"""Seconds above which a plan without a GPU stops and asks."""
CLIP_BYTES = 1.3e6
"""Disk space of one clip's features, released sizes, float32."""
SPARE_BYTES = 2e9
"""Disk space for results and the media of the report."""


def check_settings(job: Job) -> None:
    """The error that splitting or training would end with, before anything is fetched or looked at.

    ConfigError for settings, an extra that is not installed, an adapter that does not fit; DataError for captions.
    """
    if "--scenes" in job.split:
        check_scenes()
    if "--flags" in job.split:
        check_flags()
    if "--captions" in job.split:
        read_captions(Path(job.split[job.split.index("--captions") + 1]))
    check_splitting(job)
    if torch.cuda.is_available() and job.gpus > torch.cuda.device_count():
        raise ConfigError(f"--gpus {job.gpus}: there are {torch.cuda.device_count()} here")
    if not torch.cuda.is_available() and job.gpus > max(2, cores := os.cpu_count() or 1):
        raise ConfigError(
            f"--gpus {job.gpus}: there is no GPU here, and so many processes are too many for {cores} cores"
        )
    config = compose(training_overrides(job))
    with torch.device("meta"):
        network = build_network(config.model)
    fresh_targets(network, config.lora)


def cutting(job: Job) -> SplitConfig:
    """How the videos will be cut; ConfigError for unknown settings."""
    return compose_split([text for text in job.split if text.startswith(SPLIT_KEYS)])


def check_splitting(job: Job) -> None:
    """ConfigError for settings of splitting that make no sense."""
    cut = cutting(job)
    given = dict(zip(job.split, job.split[1:], strict=False))
    track, timeout = int(given.get("--audio-track", 0)), given.get("--timeout-per-video")
    scan = ScanSettings(cut.seconds, cut.stride, cut.silence_db, cut.max_gap, track, False, cut.scene_tolerance)
    SplitSettings(scan, cut.rules, cut.val_ratio, cut.test_ratio, timeout=None if timeout is None else float(timeout))


def plan(job: Job, go_on: bool) -> bool:
    """Check the machine and the settings, print the plan; whether the job should go on.

    Raises ConfigError for settings that make no sense, DataError where no video is there, WeightsError for absent
    weights.
    """
    model = model_spec(job.model)
    config = compose(training_overrides(job))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"== plan\nmodel:    {model.name} ({model.licence})\nmachine:  {machine(device)}")
    print(f"decoder:  PyAV {av.__version__}, {missing_decoders() or 'all common codecs'}")
    seconds, videos = usable_seconds(job)
    cut = cutting(job)
    clips = round(max(0.0, seconds - videos * (cut.seconds - cut.stride)) / cut.stride)
    check_disk(job.base, clips * cut.seconds / SECONDS)
    costs = estimates(job, config, clips, device, cut.seconds)
    print(f"videos:   {videos} in {job.videos}, {seconds / 60:.1f} min, about {clips} clips of {cut.seconds:g} s")
    if (below := other_video(job)) is not None:
        print(f"          more in sub-folders, such as {below}: --recursive takes them")
    print(f"training: at most {config.steps} steps of {config.effective_batch} clips, rank {config.lora.rank}")
    stated = ", ".join(f"{name} {planning.readable(cost)}" for name, cost in costs.items())
    print(f"time:     about {stated}; besides, reading the videos and the report")
    print(f"weights:  {weights_line(job)}")
    print(f"results:  {job.experiment}", flush=True)
    total = sum(costs.values())
    if device.type == "cpu" and total > LONG and not go_on:
        print(f"\nThis takes about {planning.readable(total)} here: {model.name} wants a GPU. Two ways on:")
        print("  --model tiny_16k   the small model that ships here, to try the whole job in minutes")
        print("  --yes              start all the same", flush=True)
        return False
    if job.offline:
        weights.require(model.name, job.weights)
    return True


def weights_line(job: Job) -> str:
    """Which weights are here, and which would be fetched from where: how large they are, and where they go."""
    absent = weights.missing(job.model, job.weights)
    if not absent:
        return "all here"
    listed = ", ".join(f"{file.name} {amount(file.size)}" for file in absent)
    if job.offline:
        return f"not here: {listed}"
    total = amount(sum(file.size for file in absent))
    places = {str(hub.cache() if file.repository else weights.cache()) for file in absent}
    return f"{total} to fetch into {' and '.join(sorted(places))}: {listed}"


def fetch_weights(job: Job) -> None:
    """Fetch what is absent, and check what is here; WeightsError where that fails."""
    weights.fetch(job.model, PARTS, job.weights, job.offline)


def machine(device: torch.device) -> str:
    """The device that will compute, in words."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{torch.cuda.get_device_name(device)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    return f"no GPU; {os.cpu_count()} processor cores, torch {torch.__version__.split('+')[0]}"


def missing_decoders() -> str:
    """The common codecs that this PyAV cannot decode, empty where there is none."""
    absent = [name for name in DECODERS if name not in av.codecs_available]
    return f"cannot decode {', '.join(absent)}" if absent else ""


def usable_seconds(job: Job) -> tuple[float, int]:
    """Duration of all videos that open, in seconds, and their count; a dry run of the demo has none yet."""
    if job.demo and not job.videos.is_dir():
        return 0.0, 0
    seconds, count = 0.0, 0
    for path in find_videos(job.videos, recursive="--recursive" in job.split):
        try:
            seconds += probe(path).duration
        except DataError:
            continue  # splitting names it, with the reason
        count += 1
    return seconds, count


def other_video(job: Job) -> str | None:
    """A video in a sub-folder, where none of them is asked for."""
    if "--recursive" in job.split or not job.videos.is_dir():
        return None
    return video_below(job.videos, (job.clips.parent,))


def check_disk(base: Path, clips: float) -> None:
    """ConfigError where nothing can be written, or the disk has no room for `clips` of the usual length."""
    place = next(folder for folder in [base.resolve(), *base.resolve().parents] if folder.exists())
    if not place.is_dir():
        raise ConfigError(f"{base}: {place} is a file; --output takes a folder")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{place}: cannot be written; take --output with a folder of yours")
    free, wanted = shutil.disk_usage(place).free, clips * CLIP_BYTES + SPARE_BYTES
    print(f"disk:     {free / 1e9:.0f} GB free in {place}, about {wanted / 1e9:.1f} GB needed")
    if free < wanted:
        raise ConfigError(
            f"{place}: {free / 1e9:.1f} GB free, {wanted / 1e9:.1f} GB needed; make room or take --output"
        )


def estimates(
    job: Job, config: TrainConfig, clips: int, device: torch.device, seconds: float = SECONDS
) -> dict[str, float]:
    """Seconds for extraction and training, of clips of `seconds`, at this machine's measured speed."""
    model, fast = model_spec(job.model), fast_dtype(device)
    low = job.precision == "bf16" or (job.precision == "auto" and device.type != "cpu")
    encoding, training = fast if low else torch.float32, fast if config.amp else torch.float32
    speed = {dtype: matmul_speed(device, dtype) for dtype in {encoding, training}}
    encoders = speed[encoding] * planning.efficiency("encoders", device, encoding)
    network = speed[training] * planning.efficiency("training", device, training)
    computing = planning.training_flops(model, config.steps * config.effective_batch) / network
    share = seconds / SECONDS  # of the computing of a clip of the usual length, about
    batches = config.steps * config.gradient_accumulation_steps
    starting = 0.0 if device.type == "cpu" else planning.launching(model.network, batches, config.cuda_graph)
    return {
        "extract": planning.extraction_flops(model) * clips * share / encoders,
        "train": max(computing * share, starting),
    }
