"""Training from a configuration to an adapter: load, check, print the plan, run the loop.

result = train(compose(["model=tiny_16k", "preset=quick"]), torch.device("cpu"))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from mmaudio.cli import explain_out_of_memory
from mmaudio.config import TrainConfig
from mmaudio.data.feature_set import FeatureSet
from mmaudio.errors import TrainingError, WeightsError
from mmaudio.finetune import step_times
from mmaudio.finetune.base_samples import make_base_samples, pair_with_videos, read_base_samples
from mmaudio.finetune.checkpoint import Checkpoints, experiment_folder
from mmaudio.finetune.clip_sets import load_clip_sets
from mmaudio.finetune.cuda_graph import build_accumulator
from mmaudio.finetune.dataset import ClipDataset, build_dataset
from mmaudio.finetune.diagnostics import build_utilization_meter
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.feature_memory import FeatureMemory, estimate_feature_memory
from mmaudio.finetune.initial_adapter import check_held_out, load_initial_adapter, start_name
from mmaudio.finetune.loop import TrainingResult, TrainingRun, fit, is_finished
from mmaudio.finetune.micro_batch import choose_micro_batch
from mmaudio.finetune.precision import cast_frozen_weights, compute_dtype
from mmaudio.finetune.run_inputs import RunInputs
from mmaudio.finetune.run_summary import format_result_lines, format_start_lines
from mmaudio.finetune.sample_requests import build_requested_samples, plan_sample_requests
from mmaudio.finetune.samples import build_sample_generator
from mmaudio.finetune.state import TrainState, new_state
from mmaudio.finetune.torch_compile import can_compile, compile_blocks, eager_mode, explain_compile_errors
from mmaudio.finetune.tracker import Tracker
from mmaudio.finetune.validation import ValidationSet, build_validation_set
from mmaudio.lora.checkpoint import check_base, read_adapter, restore_folder
from mmaudio.lora.single_file import write_single_file
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.utils.files import remove_abandoned_files
from mmaudio.utils.locks import FileLocks
from mmaudio.utils.progress import working
from mmaudio.utils.trackers import check_trackers
from mmaudio.weights import store as weights
from mmaudio.weights.load_frozen import load_frozen

SMALLER_BATCH = "take a smaller batch, batch_size=4 gradient_accumulation_steps=8, or preset=low_memory"


def train(config: TrainConfig, device: torch.device, distributed: Distributed | None = None) -> TrainingResult:
    """Train, or continue, the experiment that `config` names. Raises the errors of what it loads and TrainingError."""
    check_trackers(config.logging.trackers)
    initial = load_initial_adapter(config)
    train_set, held_out = load_clip_sets(config)
    plan_sample_requests(config, train_set.seconds)  # a video that is missing is an error before any work
    if initial is not None:
        check_held_out(initial, config, [] if held_out is None else held_out.clips)
    weights.fetch_files(config.model, ("network",), config.weights_folder, config.offline)
    network, sha256 = load_network(config, device)
    if initial is not None:
        check_base(initial.adapter, config.model, sha256)
    network.set_duration(train_set.seconds)
    distributed = distributed or Distributed(device=device)
    with lock_experiment(experiment_folder(config)) if distributed.is_main else nullcontext():
        return train_adapter(network, RunInputs(config, sha256, train_set, held_out, initial), distributed)


@contextmanager
def lock_experiment(root: Path) -> Iterator[None]:
    """Hold the experiment's lock for the block; TrainingError where another process holds it."""
    with FileLocks(root) as locks:
        if not locks.acquire("training"):
            holder = locks.describe_holder("training")
            raise TrainingError(
                f"{root}: another process{holder} trains this experiment; wait for it, or take another exp_id"
            )
        remove_abandoned_files(Checkpoints(root).folder, min_age=0.0)  # nobody else writes there
        yield


def load_network(config: TrainConfig, device: torch.device) -> tuple[MMAudio, str]:
    """The base network on `device` and the hash of its file; WeightsError where it is missing."""
    folder = config.weights_folder
    network = load_frozen(lambda: build_network(config.model), config.model, "network", folder, device)
    return network, weights.component_sha256(config.model, "network", folder)


def train_adapter(network: MMAudio, inputs: RunInputs, distributed: Distributed) -> TrainingResult:
    """Train an adapter for a loaded network, which is adapted in place."""
    distributed.shard(inputs.config.effective_batch_size)  # refuses what does not divide, before any work
    with working("preparing the training") if distributed.is_main else nullcontext():
        run = prepare_run(network, inputs, distributed)
    with explain_compile_errors(distributed.device), explain_out_of_memory(SMALLER_BATCH):
        result = fit(run)
    if distributed.is_main:
        keep_step_times(run)
        finish(run, result)
    return result


def prepare_run(network: MMAudio, inputs: RunInputs, distributed: Distributed) -> TrainingRun:
    """The adapter's state, new or continued, and the data in memory; prints the plan."""
    config, is_main = inputs.config, distributed.is_main
    checkpoints = Checkpoints(experiment_folder(config))
    base_samples = load_base_samples(network, inputs, distributed) if config.preserve_base else None
    initial = None if inputs.initial is None else inputs.initial.adapter
    num_base_samples = 0 if base_samples is None else len(base_samples)
    state = new_state(network, config, len(inputs.train), num_base_samples, initial)
    state.history.videos = [] if inputs.held_out is None else inputs.held_out.videos
    resumed = checkpoints.load(state, inputs)
    distributed.barrier()
    gain = decide_to_compile(state, inputs, distributed)
    config = replace(config, compile=state.compiled)
    inputs = replace(inputs, config=config)
    prepare_network(state, config, distributed.device)
    memory = measure_feature_memory(network, inputs, distributed)
    dataset, validation_set = build_datasets(network, inputs, distributed, memory)
    tracker = Tracker(checkpoints.root if is_main else None, config, state.step if resumed else None)
    if gain:
        tracker.print_line(gain)
    state.micro_batch = choose_micro_batch(state, dataset, config, distributed)
    accumulate = build_accumulator(dataset, config, tracker.print_line)
    run = TrainingRun(state, dataset, validation_set, inputs, checkpoints, tracker, distributed, accumulate)
    if base_samples is not None:
        run.base_samples = build_dataset(network, base_samples, distributed.device)
    if is_main:
        with explain_compile_errors(distributed.device), eager_mode(config):  # compiling for these would be in vain
            start(run, resumed, memory)
    return run


def decide_to_compile(state: TrainState, inputs: RunInputs, distributed: Distributed) -> str:
    """Set `state.compiled`: as configured, as before a resume, or by measured times; the reason of the latter."""
    config = inputs.config
    if config.compile is not None:
        state.compiled = config.compile
    elif not state.step:
        resident = config.features_in_memory
        if resident is None:
            resident = measure_feature_memory(state.network, inputs, distributed).fits
        name = step_times.key(config, inputs.train.seconds, resident, distributed)
        gain = step_times.explain_gain(name, config.total_steps) if distributed.is_main else ""
        if distributed.all_reduce_any(bool(gain)):
            state.compiled = not distributed.all_reduce_any(not can_compile(state.network))
            return gain if state.compiled else ""
    return ""


def keep_step_times(run: TrainingRun) -> None:
    """Keep what the steps took, for the choice of later runs."""
    times = step_times.measure(run.step_seconds)
    if times is not None:
        name = step_times.key(run.config, run.inputs.train.seconds, run.dataset.resident, run.distributed)
        step_times.keep(name, run.state.compiled, times)


def load_base_samples(network: MMAudio, inputs: RunInputs, distributed: Distributed) -> FeatureSet:
    """The base's own samples of generic captions, with the training clips' videos.

    The main process makes those that do not exist yet.
    """
    arguments = (network, inputs.config, inputs.base_sha256, inputs.train.seconds)
    if distributed.is_main:
        make_base_samples(*arguments)
    distributed.barrier()
    return pair_with_videos(read_base_samples(*arguments), inputs.train, inputs.config.seed)


def prepare_network(state: TrainState, config: TrainConfig, device: torch.device) -> None:
    """Cast and compile the network, once the adapter has the values that it starts from."""
    cast_frozen_weights(state.network, config, compute_dtype(device, config.amp))
    if config.compile:
        compile_blocks(state.network)


def measure_feature_memory(network: MMAudio, inputs: RunInputs, distributed: Distributed) -> FeatureMemory:
    """The memory that the features of training and validation need on this process's device."""
    sets = [inputs.train, *([] if inputs.held_out is None else [inputs.held_out])]
    return estimate_feature_memory(network, sets, distributed.device, distributed.world_size)


def build_datasets(
    network: MMAudio, inputs: RunInputs, distributed: Distributed, memory: FeatureMemory
) -> tuple[ClipDataset, ValidationSet | None]:
    """The clips to train on and to validate on, in memory where that is asked for or fits in every process."""
    config, device = inputs.config, distributed.device
    if config.features_in_memory is None:
        resident = not distributed.all_reduce_any(not memory.fits)
    else:
        resident = config.features_in_memory
    dataset = build_dataset(network, inputs.train, device, resident)
    if inputs.held_out is None:
        return dataset, None
    held_out = build_dataset(network, inputs.held_out, device, resident)
    return dataset, build_validation_set(held_out, inputs.held_out.ids, config.validation.levels)


def start(run: TrainingRun, resumed: bool, memory: FeatureMemory) -> None:
    """Write the configuration, print the plan and prepare samples and diagnostics."""
    config, tracker, state, device = run.config, run.tracker, run.state, run.distributed.device
    tracker.print_line(f"experiment: {run.checkpoints.root}")
    if is_finished(state, config):
        return
    run.checkpoints.write_config(config)
    for line in format_start_lines(run, memory):
        tracker.print_line(line)
    shown_clips = run.inputs.held_out or run.inputs.train
    tracker.samples = build_sample_generator(config, shown_clips, state.network, device, tracker.print_line)
    if tracker.samples is not None:
        seconds = run.inputs.train.seconds
        tracker.requested_samples = build_requested_samples(config, tracker.samples.sampler, seconds)
    if device.type == "cuda":
        tracker.meter = build_utilization_meter(state, run.dataset, config)
    if resumed:
        tracker.print_line(f"resumed:    at step {state.step} of {config.total_steps}, from {run.checkpoints.state}")


def finish(run: TrainingRun, result: TrainingResult) -> None:
    """Print how training ended, and where the adapters are; TrainingError as `check_adapters`."""
    if result.reason != "interrupted" and not result.new_steps:
        check_adapters(run)
    for line in format_result_lines(result, run.checkpoints.best, start_name(run.config)):
        run.tracker.print_line(line)
    if run.config.lora.enabled and run.checkpoints.best.exists():
        write_single_file(run.checkpoints.single, read_adapter(run.checkpoints.best))
        run.tracker.print_line(f"one file:   {run.checkpoints.single}")


def check_adapters(run: TrainingRun) -> None:
    """Write PEFT folders again that are gone or damaged; TrainingError where an adapter of a finished run is."""
    checkpoints = run.checkpoints
    if not checkpoints.best.exists():
        raise TrainingError(f"{checkpoints.best} is gone, though its run is finished; start over with resume=false")
    for path in filter(Path.exists, (checkpoints.best, checkpoints.last, checkpoints.ema)):
        try:
            if restore_folder(path):
                run.tracker.print_line(f"{path.with_suffix('')}: was gone or damaged, and is written again")
        except WeightsError as error:
            raise TrainingError(f"{error}, or start over with resume=false: its run is finished") from error
