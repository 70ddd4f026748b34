"""Checks of settings and machine, and the plan with time estimates, before the pipeline runs."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import torch

from mmaudio.config import TrainConfig, compose
from mmaudio.data.caption_table import read_captions
from mmaudio.data.clips import MIN_VERDICT_VIDEOS
from mmaudio.data.config import SplitConfig, compose_split_config
from mmaudio.data.folder_split import SplitSettings, default_workers
from mmaudio.data.folds import read_fold_plan
from mmaudio.data.generic_captions import training_captions
from mmaudio.data.scan import ScanSettings
from mmaudio.data.shots import check_scenes_extra
from mmaudio.data.speech import check_flags_extra
from mmaudio.data.splits import SplitRatios
from mmaudio.data.verdict_needs import count_held_out
from mmaudio.errors import ConfigError, MMAudioError
from mmaudio.finetune.base_samples import FOLDER as BASE_SAMPLES_FOLDER
from mmaudio.generation.sampler import fast_dtype
from mmaudio.model import cost_model
from mmaudio.model.spec import CLIP_SECONDS, model_spec
from mmaudio.pipeline.data_changes import describe_data_changes, find_data_changes, starts_anew
from mmaudio.pipeline.fold_plan import count_job_folds, fold_experiments, print_folds
from mmaudio.pipeline.job import SPLIT_KEYS, Job, best_adapter_path, training_overrides
from mmaudio.pipeline.size_preset import check_training, choose_preset
from mmaudio.pipeline.stage_server import may_fork
from mmaudio.pipeline.video_folder import (
    find_video_in_subfolder,
    measure_videos,
    print_verdict_needs,
    split_ratios,
)
from mmaudio.utils.matmul_speed import measure_matmul_speed
from mmaudio.utils.progress import format_bytes
from mmaudio.utils.terminal import join_command, print_lines
from mmaudio.weights import hub
from mmaudio.weights import store as weights
from mmaudio.weights.registry import COMPONENTS

COMMON_DECODERS = ("h264", "hevc", "vp9", "aac", "opus")
"""Codecs of most users' videos."""
STRENGTH_SWEEP = 3, 8
"""Strengths that an evaluation tries, and on how many clips: those of `evaluation.strength_sweep`."""
LONG_SECONDS = 2 * 3600.0
"""Estimated duration from which on a job without a GPU needs --yes."""
CLIP_BYTES = 1.3e6
"""Disk space of the features of one clip, released sizes, float32."""
SPARE_BYTES = 2e9
"""Disk space for results and the media of the report."""

matmul_speed = functools.cache(measure_matmul_speed)
"""The speed of matrix products by device and dtype, each measured once."""


def check_settings(job: Job) -> None:
    """Raise the errors that splitting or training would raise, before anything is fetched or read.

    ConfigError for settings, an extra that is not installed, an adapter that does not fit; DataError for captions.
    """
    if "--scenes" in job.split_arguments:
        check_scenes_extra()
    if "--flags" in job.split_arguments:
        check_flags_extra()
    if "--captions" in job.split_arguments:
        read_captions(Path(job.split_arguments[job.split_arguments.index("--captions") + 1]))
    check_splitting(job)
    if torch.cuda.is_available() and job.gpus > torch.cuda.device_count():
        raise ConfigError(f"--gpus {job.gpus}: there are {torch.cuda.device_count()} here")
    if not torch.cuda.is_available() and job.gpus > max(2, cores := os.cpu_count() or 1):
        raise ConfigError(
            f"--gpus {job.gpus}: there is no GPU here, and so many processes are too many for {cores} cores"
        )
    check_training(job)


def read_split_config(job: Job) -> SplitConfig:
    """Settings of splitting; ConfigError for unknown settings."""
    flags = zip(job.split_arguments, job.split_arguments[1:], strict=False)
    ratios = [f"split.{flag[2:]}={value}" for flag, value in flags if flag in ("--val_ratio", "--test_ratio")]
    return compose_split_config([*(text for text in job.split_arguments if text.startswith(SPLIT_KEYS)), *ratios])


def check_splitting(job: Job) -> None:
    """Raise ConfigError for invalid settings of splitting."""
    split = read_split_config(job)
    flags = dict(zip(job.split_arguments, job.split_arguments[1:], strict=False))
    video_track, timeout, workers = map(flags.get, ("--video-track", "--timeout-per-video", "--workers"))
    scan = ScanSettings(
        split.seconds,
        split.stride,
        split.silence_db,
        split.max_gap,
        track=int(flags.get("--audio-track", 0)),
        video_track=None if video_track is None else int(video_track),
        scene_tolerance=split.scene_tolerance,
    )
    timeout_seconds = None if timeout is None else float(timeout)
    SplitSettings(
        scan,
        split.rules,
        split.val_ratio,
        split.test_ratio,
        timeout=timeout_seconds,
        workers=None if workers is None else int(workers),
    )


@dataclass(frozen=True)
class Plan:
    """The estimated seconds by stage, and whether to begin."""

    stage_seconds: dict[str, float]
    is_accepted: bool
    job: Job
    """The job with the preset and the folds for its number of videos."""


def confirm_plan(job: Job, accept_long: bool, load_seconds: float = 0.0) -> Plan:
    """Print the plan with time estimates; not accepted if the job takes long and `accept_long` is not set.

    `load_seconds`: what the imports of this module took, a measure of the machine.
    Raises ConfigError for invalid settings, DataError without videos, WeightsError for absent weights with --offline.
    """
    model = model_spec(job.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print_lines("== plan", f"model:    {model.name} ({model.licence})", f"machine:  {describe_machine(device)}")
    print_lines(f"decoder:  PyAV {av.__version__}, {describe_missing_decoders() or 'all common codecs'}")
    seconds, names = measure_videos(job)
    job, preset_reason = choose_preset(job, len(names), device.type == "cuda")
    job = replace(job, num_folds=count_job_folds(job, len(names), device.type == "cuda"))
    config, split = compose(training_overrides(job)), read_split_config(job)
    ratios = split_ratios(job, split)
    clips = round(max(0.0, seconds - len(names) * (split.seconds - split.stride)) / split.stride)
    check_disk(job.root, clips * split.seconds / CLIP_SECONDS)
    step, sweep = find_step(job.experiment, job), find_sweep(job, names, ratios)
    costs, training = estimate_stages(job, config, clips, ratios, device, split.seconds, sweep)
    scanning = cost_model.SCAN_SPEED * max(1, min(default_workers(), len(names)))
    stage_seconds = {"split": seconds / scanning, **costs}
    for name, share in (cost_model.FORKED_START_SHARES if may_fork() else cost_model.START_SHARES).items():
        stage_seconds[name] += share * load_seconds
    print_lines(
        f"videos:   {len(names)} in {job.videos}, {seconds / 60:.1f} min, about {clips} clips of {split.seconds:g} s"
    )
    if (example := find_video_in_subfolder(job)) is not None:
        print_lines(f"          more in sub-folders, such as {example}: --recursive takes them")
    print_verdict_needs(job, names, ratios)
    print_folds(job, len(names), training, lambda n: estimate_evaluation(job, round(clips / n), device, split.seconds))
    print_training(config, step, preset_reason)
    durations = ", ".join(f"{name} {cost_model.format_duration(cost)}" for name, cost in stage_seconds.items())
    print_lines(f"time:     about {durations}")
    print_lines(f"weights:  {describe_weights(job)}")
    print_lines(f"results:  {job.experiment}", flush=True)
    must_begin_anew = report_data_changes(job)
    total = sum(stage_seconds.values())
    if device.type == "cpu" and total > LONG_SECONDS and not accept_long:
        print_ways_on(model.name, total)
        return Plan(stage_seconds, is_accepted=False, job=job)
    if job.offline:
        weights.require_files(model.name, job.weights)
    return Plan(stage_seconds, accept_long or not must_begin_anew, job)


def print_training(config: TrainConfig, step: int, preset_reason: str) -> None:
    """Print the size of the training, the steps that are done, and why it has these settings."""
    done = f"; {step} are done" if step else ""
    batch = f"{config.effective_batch_size} clips, rank {config.lora.rank}"
    print_lines(f"training: at most {config.total_steps} steps of {batch}{done}")
    if preset_reason:
        print_lines(f"settings: {preset_reason}")


def print_ways_on(model: str, seconds: float) -> None:
    """Print what to do about a job that takes long without a GPU."""
    print_lines("", f"This takes about {cost_model.format_duration(seconds)} here: {model} wants a GPU. Two ways on:")
    print_lines("  --model tiny_16k   the small model that ships here, to try the whole job in minutes")
    print_lines("  --yes              start all the same", flush=True)


def report_data_changes(job: Job) -> bool:
    """Say what changed in the folder since training began; True where training cannot continue with it.

    It can where a file is another one with the same content.
    """
    changes = find_data_changes(job)
    if not changes:
        return False
    print_lines("", f"Videos changed since the training in {job.experiment} began: {describe_data_changes(changes)}.")
    adapter = best_adapter_path(job)
    may_train_on = adapter.is_file() and read_fold_plan(job.experiment) is None  # that of folds has seen all videos
    number = "Three" if may_train_on else "Two"
    print_lines(f"Training goes on only with the clips that it began with. {number} ways on, unless you put them back:")
    print_lines("  --from train       begin training anew; the experiment is kept under another name")
    print_lines("  -- exp_id=NAME     train another experiment", flush=True)
    if may_train_on:
        command = join_command(["--init-from", str(adapter), "--", f"exp_id={free_exp_id(job)}"])
        print_lines(
            f"  {command}",
            "                     train on from its adapter, with the videos as they are now",
            flush=True,
        )
    return not changes.keys() <= {"changed"}


def free_exp_id(job: Job) -> str:
    """A name for another experiment beside the job's."""
    names = (f"{job.exp_id}-{number}" for number in itertools.count(2))
    return next(name for name in names if not job.experiment.with_name(name).exists())


def describe_weights(job: Job) -> str:
    """List the absent weights with their sizes, and the folders into which they would be fetched."""
    absent = weights.missing_files(job.model, job.weights)
    if not absent:
        return "all here"
    names = ", ".join(f"{file.name} {format_bytes(file.size)}" for file in absent)
    if job.offline:
        return f"not here: {names}"
    total = format_bytes(sum(file.size for file in absent))
    folders = {str(hub.cache_folder() if file.repository else weights.cache_folder()) for file in absent}
    return f"{total} to fetch into {' and '.join(sorted(folders))}: {names}"


def fetch_weights(job: Job) -> None:
    """Fetch absent weights and check the present ones; WeightsError on failure."""
    weights.fetch_files(job.model, COMPONENTS, job.weights, job.offline)


def describe_machine(device: torch.device) -> str:
    """Describe the device."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{torch.cuda.get_device_name(device)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    return f"no GPU; {os.cpu_count()} processor cores, torch {torch.__version__.split('+')[0]}"


def describe_missing_decoders() -> str:
    """Name the common codecs that this PyAV cannot decode; empty if there are none."""
    absent = [name for name in COMMON_DECODERS if name not in av.codecs_available]
    return f"cannot decode {', '.join(absent)}" if absent else ""


def check_disk(root: Path, clips: float) -> None:
    """Raise ConfigError if `root` cannot be written, or if the disk has no room for `clips` of the usual length."""
    parent = next(folder for folder in [root.resolve(), *root.resolve().parents] if folder.exists())
    if not parent.is_dir():
        raise ConfigError(f"{root}: {parent} is a file; --output takes a folder")
    if not os.access(parent, os.W_OK):
        raise ConfigError(f"{parent}: cannot be written; take --output with a folder of yours")
    free, needed = shutil.disk_usage(parent).free, clips * CLIP_BYTES + SPARE_BYTES
    print_lines(f"disk:     {free / 1e9:.0f} GB free in {parent}, about {needed / 1e9:.1f} GB needed")
    if free < needed:
        raise ConfigError(
            f"{parent}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed; make room or take --output"
        )


def estimate_seconds(
    job: Job, config: TrainConfig, clips: int, device: torch.device, seconds: float = CLIP_SECONDS
) -> dict[str, float]:
    """Estimate the seconds of extraction and training, with clips of `seconds`, from the measured matmul speed."""
    model, num_steps = model_spec(job.model), config.total_steps
    encode_low = job.precision == "bf16" or (job.precision == "auto" and device.type != "cpu")
    encoder_dtype = fast_dtype(device) if encode_low else torch.float32
    encoder_speed = expected_speed("encoders", device, encoder_dtype)
    samples, base_samples = num_steps * config.effective_batch_size, num_steps * config.base_samples_per_step
    computing = cost_model.training_flops(model, samples, base_samples) / training_speed(config, device)
    scale = seconds / CLIP_SECONDS  # cost relative to a clip of the usual length, about
    batches = num_steps * config.gradient_accumulation_steps
    base_batches = num_steps * -(-config.base_samples_per_step // config.batch_size)
    recorded = config.cuda_graph is not False and config.lora.enabled and not config.gradient_checkpointing
    launching = cost_model.launch_seconds(model.network, batches, recorded, base_batches)
    return {
        "extract": cost_model.extraction_flops(model) * clips * scale / encoder_speed,
        "train": computing * scale if device.type == "cpu" else max(computing * scale, launching),
    }


def training_speed(config: TrainConfig, device: torch.device) -> float:
    """Expected operations per second of training."""
    return expected_speed("training", device, fast_dtype(device) if config.amp else torch.float32)


def estimate_base_samples(job: Job, config: TrainConfig, device: torch.device, seconds: float = CLIP_SECONDS) -> float:
    """Seconds of the base's own sounds, which training makes before its first step: for all folds together.

    None where they are not asked for, ship with the model, or were made before.
    """
    ship = seconds == CLIP_SECONDS and (weights.ASSETS / config.model / weights.BASE_SAMPLES_FILE).is_file()
    if not config.preserve_base or ship or any((job.features / BASE_SAMPLES_FOLDER).glob("*.pt")):
        return 0.0
    flops = cost_model.sampling_flops(model_spec(job.model), len(training_captions(config.model)))
    return flops / training_speed(config, device) * seconds / CLIP_SECONDS


def estimate_stages(
    job: Job,
    config: TrainConfig,
    clips: int,
    ratios: SplitRatios,
    device: torch.device,
    seconds: float,
    sweep: tuple[int, int],
) -> tuple[dict[str, float], float]:
    """The seconds of extraction, training (its steps that are left) and evaluation, and of one whole training."""
    costs = estimate_seconds(job, config, clips, device, seconds)
    training = costs["train"] + estimate_checks(job, config, round(clips * ratios.val), config.total_steps, device)
    shares = [find_step(experiment, job) / config.total_steps for experiment in fold_experiments(job)]
    held_out = clips / job.num_folds if job.num_folds else clips * ratios.test
    evaluation = max(1, job.num_folds) * estimate_evaluation(job, round(held_out), device, seconds, sweep)
    left = sum(max(0.0, 1 - share) for share in shares)
    making = estimate_base_samples(job, config, device, seconds) if left else 0.0
    return {"extract": costs["extract"], "train": left * training + making, "evaluate": evaluation}, training


def estimate_checks(job: Job, config: TrainConfig, val_clips: int, num_steps: int, device: torch.device) -> float:
    """Estimate the seconds of the validation losses and the samples of a training of `num_steps` steps."""
    if num_steps <= 0:
        return 0.0
    model, logging = model_spec(job.model), config.logging
    losses = (1 + num_steps // config.eval_every) * val_clips * config.validation.levels * (1 + bool(config.ema_decay))
    times = 1 + num_steps // logging.sample_every if logging.sample_every else 0
    samples = times * min(val_clips, logging.sample_clips)
    flops = cost_model.training_check_flops(model, losses, samples)
    speed = expected_speed("training", device, fast_dtype(device))
    return flops / speed + estimate_decoding(job, samples * cost_model.DECODING_SOUNDS, device)


def estimate_decoding(job: Job, sounds: int, device: torch.device) -> float:
    """Estimate the seconds to decode and measure sounds of 8 s."""
    return cost_model.decoding_flops(model_spec(job.model), sounds) / matmul_speed(device, torch.float32)


def expected_speed(stage: str, device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a stage, as `cost_model.expected_efficiency` has it, by the measured matmul speed."""
    return matmul_speed(device, dtype) * cost_model.expected_efficiency(stage, device, dtype)


def find_step(experiment: Path, job: Job) -> int:
    """The step from which a training that has begun in the folder `experiment` continues; 0 where it starts."""
    adapter = experiment / "lora_checkpoints" / "last_lora.pt"
    if starts_anew(job) or not adapter.is_file():
        return 0
    from mmaudio.lora.checkpoint import read_adapter  # here, as peft takes seconds to import

    try:
        return read_adapter(adapter).step or 0
    except MMAudioError:  # training says what is wrong with it
        return 0


def find_sweep(job: Job, videos: Sequence[str], ratios: SplitRatios) -> tuple[int, int]:
    """How many strengths an evaluation tries, and on how many clips: none where too few of `videos` are held out."""
    num_held_out = len(videos) if job.num_folds else count_held_out(videos, ratios, {})
    return STRENGTH_SWEEP if num_held_out >= MIN_VERDICT_VIDEOS else (0, 0)


def estimate_evaluation(
    job: Job, clips: int, device: torch.device, seconds: float, sweep: tuple[int, int] = STRENGTH_SWEEP
) -> float:
    """Estimate the seconds of an evaluation on `clips` clips of `seconds`, and on the model's own.

    `sweep`: the strengths that it tries, and on how many clips.
    """
    model, speed = model_spec(job.model), expected_speed("training", device, fast_dtype(device))
    counts = [clips, len(list((weights.ASSETS / model.name / weights.GENERAL_VIDEOS_FOLDER).glob("*.mp4")))]
    flops = cost_model.evaluation_flops(model, counts, *sweep)
    strengths, sweep_clips = sweep
    sounds = sum(cost_model.DECODING_SOUNDS * count + strengths * min(count, sweep_clips) for count in counts)
    media = sum(counts) * cost_model.MEDIA_SECONDS
    return (flops / speed + estimate_decoding(job, sounds, device) + media) * seconds / CLIP_SECONDS
