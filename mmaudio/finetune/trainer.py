"""From a configuration to a trained adapter: load, check, say what will happen, fit.

outcome = train(compose(["model=tiny_16k", "preset=quick"]), torch.device("cpu"))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from mmaudio.config import TrainConfig
from mmaudio.data.feature_store import ClipSet, FeatureSet
from mmaudio.errors import TrainingError, WeightsError
from mmaudio.finetune.checkpoint import Checkpoints, Origin, experiment_folder
from mmaudio.finetune.cuda_graph import batch_for
from mmaudio.finetune.dataset import Room, load_data, material, room
from mmaudio.finetune.diagnostics import meter
from mmaudio.finetune.distributed import Team
from mmaudio.finetune.early_stopping import Change
from mmaudio.finetune.loop import Outcome, Run, finished, fit
from mmaudio.finetune.precision import compute_dtype, settle_frozen
from mmaudio.finetune.run_summary import adapter_lines, data_lines, memory_line
from mmaudio.finetune.samples import Samples
from mmaudio.finetune.state import TrainState, new_state
from mmaudio.finetune.torch_compile import compile_blocks, compile_errors, uncompiled
from mmaudio.finetune.tracker import Tracker
from mmaudio.finetune.validation import held_out as draw_held_out
from mmaudio.generation.sampler import load_sampler
from mmaudio.lora.checkpoint import read_adapter
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.utils.locks import Claims
from mmaudio.weights import store as weights
from mmaudio.weights.load_frozen import load_frozen


def train(config: TrainConfig, device: torch.device, team: Team | None = None) -> Outcome:
    """Train, or continue, the experiment that `config` names. Raises the errors of what it loads and TrainingError."""
    train_set, held_set = load_data(config)
    weights.fetch(config.model, ("network",), _folder(config), config.offline)
    network, sha256 = load_network(config, device)
    network.set_duration(train_set.seconds)
    team = team or Team(device=device)
    with alone(experiment_folder(config)) if team.leads else nullcontext():
        return train_on(network, sha256, config, train_set, held_set, team)


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep other trainings from writing into the experiment `root`; TrainingError where one does so already."""
    with Claims(root) as claims:
        if not claims.take("training"):
            raise TrainingError(f"{root}: another process trains this experiment; wait for it, or take another exp_id")
        yield


def load_network(config: TrainConfig, device: torch.device) -> tuple[MMAudio, str]:
    """The base network on `device` and the hash of its file; WeightsError where it is missing."""
    folder = _folder(config)
    network = load_frozen(lambda: build_network(config.model), config.model, "network", folder, device)
    return network, weights.identity(config.model, "network", folder)


def train_on(
    network: MMAudio,
    base_sha256: str,
    config: TrainConfig,
    train_set: ClipSet,
    held_set: ClipSet | None,
    team: Team,
) -> Outcome:
    """Train an adapter for a loaded network, which is adapted in place."""
    team.share(config.effective_batch)  # refuses what does not divide, before any work
    files = Checkpoints(experiment_folder(config))
    origin = Origin(config, base_sha256, train_set, held_set)
    state = new_state(network, config, len(train_set))
    if held_set is not None:
        state.progress.videos = held_set.videos
    resumed = files.load(state, origin)
    team.wait()
    ready(state, config, team.device)
    space = room(network, [train_set, *([] if held_set is None else [held_set])], team.device, team.size)
    resident = not team.any(not space.enough) if config.features_in_memory is None else config.features_in_memory
    clips = material(network, train_set, team.device, resident)
    held = None
    if held_set is not None:
        held = draw_held_out(material(network, held_set, team.device, resident), held_set.ids, config.validation.levels)
    tracker = Tracker(files.root if team.leads else None, config, state.step if resumed else None)
    run = Run(state, clips, held, origin, files, tracker, team, batch_for(clips, config))
    with compile_errors(team.device):
        if team.leads:
            with uncompiled(config):  # what is measured there would be compiled for nothing
                begin(run, resumed, space)
        result = fit(run)
    if team.leads:
        end(run, result)
    return result


def ready(state: TrainState, config: TrainConfig, device: torch.device) -> None:
    """Settle how the steps are computed, once the adapter has the values that it starts from."""
    settle_frozen(state.network, config, compute_dtype(device, config.amp))
    if config.compile:
        compile_blocks(state.network)


def begin(run: Run, resumed: bool, space: Room) -> None:
    """Write the configuration, prepare the pictures and print what is going to happen."""
    config, say, state = run.config, run.tracker.say, run.state
    say(f"experiment: {run.files.root}")
    if finished(state, config):
        return
    run.files.write_config(config)
    dtype = compute_dtype(run.team.device, config.amp)
    for line in [*adapter_lines(state, config), *data_lines(run.origin.train, run.origin.held_out, config)]:
        say(line)
    if not run.clips.resident:
        say(f"features:   stay on disk, {space} (features_in_memory); every batch is read and projected")
    say(memory_line(state, run.clips, None if run.held is None else run.held.clips, config))
    say(f"computing:  on {run.team.device} in {str(dtype).removeprefix('torch.')}, processes: {run.team.size}")
    if config.warmup_steps >= config.steps:
        say(f"warm-up:    warmup_steps={config.warmup_steps} reaches the last step: low rates throughout")
    run.tracker.samples = samples(run, dtype)
    if run.team.device.type == "cuda":
        run.tracker.meter = meter(state, run.clips, config)
    if resumed:
        say(f"resumed:    at step {state.step} of {config.steps}, from {run.files.state}")


def samples(run: Run, dtype: torch.dtype) -> Samples | None:
    """The clips to show, held-out ones where there are any; None where that is off or the decoder is not here."""
    config, shown = run.config, run.origin.held_out or run.origin.train
    if not config.logging.sample_every:
        return None
    try:
        weights.fetch(config.model, ("vae", "vocoder"), _folder(config), config.offline)
        sampler = load_sampler(config.model, _folder(config), run.team.device, run.state.network, dtype)
    except WeightsError as error:
        run.tracker.say(f"pictures:   none, the decoder is not here ({error})")
        return None
    count = min(config.logging.sample_clips, len(shown))
    spread = [round(number * (len(shown) - 1) / max(1, count - 1)) for number in range(count)]
    chosen = shown.subset(spread).load()
    return Samples(sampler, chosen, videos(run, chosen))


def videos(run: Run, shown: FeatureSet) -> Path | None:
    """The folder of source videos where it holds those of the clips to show."""
    if run.config.video_root is None:
        return None
    root = Path(run.config.video_root)
    absent = [name for name in shown.videos if not (root / name).is_file()]
    if absent:
        run.tracker.say(f"videos:     none, {root / absent[0]} is not there (video_root)")
    return None if absent else root


def end(run: Run, result: Outcome) -> None:
    """Print how it ended, and where the adapters are; TrainingError as `check_best`."""
    say, files = run.tracker.say, run.files
    if result.reason == "interrupted":
        say(f"interrupted at step {result.step}, saved; the same command continues from here")
        return
    if not result.new_steps:
        check_best(files.best)
    done = f"finished at step {result.step} ({result.reason})"
    more = "max_steps" if result.reason == "max_steps" else "early_stopping.patience"
    say(done if result.new_steps else f"nothing to do: this run {done}; a higher {more} would continue it")
    if result.best_step == 0:
        say("no evaluation was better than the base model: best_lora.pt changes nothing. Try preset=more_capacity")
    elif result.gain is not None:
        say(f"validation: {result.base:.4f} for the base, {result.best:.4f} at step {result.best_step}, the best")
        say(f"            change {result.gain}: {judged(result.gain)}")
    say(f"adapter:    {files.best}")


def judged(gain: Change) -> str:
    """What a change from the base to the best evaluation is worth: of many, the best looks better by chance, too."""
    return "better, on the clips that also chose this step" if gain.sure else "cannot tell"


def check_best(path: Path) -> None:
    """TrainingError where the adapter of a finished run is gone or cannot be read."""
    if not path.exists():
        raise TrainingError(f"{path} is gone, though its run is finished; start over with resume=false")
    try:
        read_adapter(path)
    except WeightsError as error:
        raise TrainingError(f"{error}, or start over with resume=false: its run is finished") from error


def _folder(config: TrainConfig) -> Path | None:
    return None if config.weights is None else Path(config.weights)
