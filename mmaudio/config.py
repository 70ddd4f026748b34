"""Everything about training that can be configured, with its checks; the only place that registers with Hydra.

    config = compose(["model=tiny_16k", "preset=quick"])

Names and types are checked by Hydra against these dataclasses, meaning by their `__post_init__`. Below the entry
points a configuration is one of these objects, never a DictConfig.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmaudio.errors import ConfigError
from mmaudio.lora.config import LoRAConfig
from mmaudio.model.spec import model_spec
from mmaudio.utils.hydra_quote import quoted

FOLDER = Path(__file__).resolve().parents[1] / "config"
"""The checkout's YAML files."""
PRIMARY = "lora_config"
SCHEMA = "train_schema"
SCHEDULES = ("cosine", "linear", "constant")
SHORT = ("rank", "alpha", "dropout", "target_modules")
"""Keys of `lora` that may also stand at the top, as the guide writes them."""
PATTERNS = ("lora.rank_pattern", "lora.alpha_pattern")
"""Keys whose values have keys of the user's own."""
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")


@dataclass
class ValidationConfig:
    """The losses on held-out clips that choose the best adapter."""

    enabled: bool = True
    """false: all time for training, and the last adapter counts as the best; where there are hardly any clips."""
    split_ratio: float | None = None
    """Share of the training and validation videos to hold out anew; null keeps the split of clips.tsv."""
    levels: int = 8
    """Flow times at which every clip is measured, at fixed noise."""
    average_every: int = 2
    """Measure the running average, too, at every so many evaluations and at the last step."""

    def __post_init__(self) -> None:
        if self.split_ratio is not None:
            _between("validation.split_ratio", self.split_ratio, 0.0, 0.9, low_open=True)
        _at_least("validation.levels", self.levels, 8)
        _at_least("validation.average_every", self.average_every, 1)


@dataclass
class EarlyStoppingConfig:
    """Stops training when the validation loss no longer falls."""

    enabled: bool = True
    """false: all of max_steps, for runs that are compared."""
    patience: int = 6
    """Evaluations without an improvement before it stops, in whichever phase; raise it where the curve is noisy."""
    min_delta: float = 0.0
    """How far the clips' validation losses have to fall on average to count as an improvement."""

    def __post_init__(self) -> None:
        _at_least("early_stopping.patience", self.patience, 1)
        _between("early_stopping.min_delta", self.min_delta, 0.0, math.inf)


@dataclass
class LoggingConfig:
    """What goes to TensorBoard and the terminal, and how often, in steps."""

    log_every: int = 10
    """Means over so many steps; 1 to see every step."""
    sample_every: int = 1000
    """Sounds, mel pictures and videos of held-out clips; also at the last step. 0: never."""
    sample_clips: int = 3
    """How many held-out clips, evenly over them; each takes two generations every time."""

    def __post_init__(self) -> None:
        _at_least("logging.log_every", self.log_every, 1)
        _at_least("logging.sample_every", self.sample_every, 0)
        _at_least("logging.sample_clips", self.sample_clips, 1)


@dataclass
class TrainConfig:
    """One training run. The defaults suit some 20 videos on one GPU; `preset=` has other starting points."""

    exp_id: str = "my_lora_experiment"
    """Results go to `output_dir/exp_id`."""
    model: str = "small_16k"
    """The base model: tiny_16k to try things, the 44k ones for full bandwidth."""
    custom_finetune: bool = True
    """Train on clips of one's own. false: `features_dir` is what the public reference's extraction wrote, a memory map
    with its table or a folder of some; `clips_tsv` is not read then."""

    clips_tsv: str = "lora_data/clips.tsv"
    """The table that splitting wrote."""
    features_dir: str = "lora_data/features"
    """The folder that extraction wrote."""
    output_dir: str = "output"
    """Folder of all experiments."""
    weights: str | None = None
    """Folder of the released weights; null looks in ./weights and ./ext_weights."""
    offline: bool = False
    """Absent weights are an error, instead of being fetched; HF_HUB_OFFLINE=1 says the same."""
    video_root: str | None = None
    """Folder of the source videos, for the samples' videos; null: sounds and pictures alone."""
    device: str = "auto"
    """auto takes a GPU where there is one; cpu, cuda or cuda:N to choose."""
    resume: bool = True
    """Continue what is in the experiment's folder. false: start over in a new folder beside it."""
    seed: int = 42
    """Of everything random; change it to see how much of a difference is chance."""

    batch_size: int = 8
    """Clips that go through the network at once, on each device."""
    gradient_accumulation_steps: int = 4
    """A step takes batch_size * gradient_accumulation_steps clips, over all devices together."""
    learning_rate: float = 5e-4
    """The highest rate. Prodigy finds its own, as a multiple of this: leave it at 1 there."""
    optimizer: str = "adamw"
    """adamw; adamw8bit where the optimizer's state is what does not fit (full fine-tuning); prodigy to need no rate."""
    lora_plus_ratio: float = 1.0
    """LoRA+: how much faster the B matrices learn than the A matrices; 16 where training is slow to start."""
    schedule: str = "cosine"
    """cosine or linear: falls after the warm-up; constant: stays, for runs of unknown length."""
    max_steps: int = 3000
    """Optimizer steps; more where the validation loss still falls at the end. It may be raised in a finished run."""
    warmup_steps: int = 200
    """Steps over which the rate rises; longer where training is unstable."""
    weight_decay: float = 0.01
    """Pulls the adapter toward doing nothing; more where the validation loss rises early."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this; lower where single steps throw training off."""
    drop_conditions: float = 0.1
    """Probability that a clip is trained without its video, and, independently, without its text."""
    drop_captions: float | None = None
    """The same for the text alone; null: drop_conditions. More where all captions are alike, so that the video counts.
    """
    latent_noise: float = 0.0
    """Deviation of noise added to the normalised latents; 0.05 to 0.2 where a few clips are learned by heart."""
    preserve_base: float = 0.0
    """Weight of a loss that keeps the velocity without conditions near the base model's; 0.1 to 1 against forgetting.
    It takes a second pass per step."""
    ema_decay: float = 0.99
    """Running average of the adapter, evaluated and saved beside it: steadier at high rates. 0: none; 0.999 suits
    5000 steps and more."""
    amp: bool = True
    """bfloat16 where the machine has instructions for it and they pay: GPUs from 2020 on, newer CPUs."""
    base_bf16: bool = False
    """Keep the frozen weights of the blocks in bfloat16, half the memory: where a large model does not fit otherwise.
    For DoRA: of all others amp, which this needs, keeps them so by itself."""
    gradient_checkpointing: bool = False
    """Recompute activations: a third slower, several times less memory."""
    compile: bool = False
    """torch.compile for each block: minutes at the start, faster steps on a GPU."""
    cuda_graph: bool = False
    """On a GPU, record a batch once and replay it, for speed: a small network's operations take longer to start than
    to run. Not with gradient_checkpointing, preserve_base, lora.enabled=false or features that do not fit there."""
    features_in_memory: bool | None = None
    """true: all features on the device, for speed. false: read from disk for every batch, to the same numbers, where
    there are too many. null: true where they fit into half of the device's free memory."""
    eval_every: int = 100
    """Steps between two evaluations; fewer where a run is short or early stopping should notice sooner."""
    save_every: int = 100
    """Steps between two saves: at most so much is done again after a power cut. A signal saves at once."""

    rank: int | None = None
    """Short for lora.rank, as the next three are for theirs; where both are set, the short one counts."""
    alpha: float | None = None
    dropout: float | None = None
    target_modules: list[str] | None = None
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        short = {name: getattr(self, name) for name in SHORT if getattr(self, name) is not None}
        lost = [f"{name}={short[name]:g}" for name in ("rank", "alpha") if name in short and self.lora.phases]
        if lost:
            raise ConfigError(f"{lost[0]} would count for nothing beside lora.phases: set it in the phases")
        self.lora = dataclasses.replace(self.lora, **short)
        self.rank = self.alpha = self.dropout = self.target_modules = None
        model_spec(self.model)
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.,=-]*)*", self.exp_id):
            raise ConfigError(f"exp_id={self.exp_id!r}: it names a folder; letters, digits, dot, dash, underscore")
        for name, known in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r}: unknown{_nearest(getattr(self, name), known)}")
        self._check_together()
        for name in ("batch_size", "gradient_accumulation_steps", "max_steps", "eval_every", "save_every"):
            _at_least(name, getattr(self, name), 1)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device={self.device!r}: unknown; it is auto, cpu, cuda or cuda:N")
        _at_least("warmup_steps", self.warmup_steps, 0)
        _between("seed", self.seed, 0, 2**63 - 1)
        _between("learning_rate", self.learning_rate, 0.0, 1.0, low_open=True)
        _between("weight_decay", self.weight_decay, 0.0, 1.0)
        _between("max_grad_norm", self.max_grad_norm, 0.0, math.inf, low_open=True)
        _between("lora_plus_ratio", self.lora_plus_ratio, 0.0, 1000.0, low_open=True)
        _between("drop_conditions", self.drop_conditions, 0.0, 0.9)
        _between("drop_captions", self.caption_dropout, 0.0, 1.0)
        _between("latent_noise", self.latent_noise, 0.0, 1.0)
        _between("preserve_base", self.preserve_base, 0.0, 100.0)
        _between("ema_decay", self.ema_decay, 0.0, 0.99999)

    def _check_together(self) -> None:
        """ConfigError for settings that do not go with each other."""
        if self.optimizer == "prodigy" and self.lora_plus_ratio != 1:
            raise ConfigError("optimizer=prodigy takes one rate for all: leave lora_plus_ratio at 1")
        if self.lora.phases and self.optimizer != "adamw":
            raise ConfigError(f"optimizer={self.optimizer}: its state cannot grow with lora.phases; take adamw")
        if self.lora.init_lora_weights == "pissa" and self.weight_decay:
            raise ConfigError(
                f"lora.init_lora_weights=pissa with weight_decay={self.weight_decay:g}: that would pull at the "
                "base's own weights; set weight_decay=0 (preset=pissa)"
            )
        if not self.lora.enabled and (self.base_bf16 or self.lora_plus_ratio != 1):
            name = "base_bf16" if self.base_bf16 else "lora_plus_ratio"
            raise ConfigError(f"lora.enabled=false trains every weight: {name} is for adapters alone")

    @property
    def caption_dropout(self) -> float:
        """Probability that a clip is trained without its text."""
        return self.drop_conditions if self.drop_captions is None else self.drop_captions

    @property
    def effective_batch(self) -> int:
        """Clips of one optimizer step, over all devices."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def steps(self) -> int:
        """Optimizer steps of the run: those of `lora.phases` or `lora.max_steps` where one is set, else `max_steps`."""
        return self.lora.steps or self.max_steps

    def plain(self) -> dict[str, Any]:
        """Nested dictionaries of plain values, as written into YAML files and checkpoints."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in SHORT}


def register() -> None:
    """Put the schema into Hydra's store; entry points call it, importing does not."""
    ConfigStore.instance().store(name=SCHEMA, node=TrainConfig)


def to_config(composed: Any) -> TrainConfig:
    """The checked object of a composed DictConfig; ConfigError for a value of the wrong type or without sense."""
    try:
        return cast(TrainConfig, OmegaConf.to_object(composed))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error


def compose(overrides: list[str], folder: Path = FOLDER) -> TrainConfig:
    """The configuration of `folder` with Hydra overrides; ConfigError, with the nearest name, for what does not fit."""
    register()
    check_names(overrides, folder)
    try:
        with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
            composed = hydra_compose(PRIMARY, overrides=with_new_keys(overrides))
            _refuse_hidden(overrides, composed)
            return to_config(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from error


def with_new_keys(overrides: list[str]) -> list[str]:
    """The overrides with Hydra's `++` before those of PATTERNS: without it, it takes no keys that it does not know."""
    return [f"++{text}" if text.startswith(tuple(f"{name}=" for name in PATTERNS)) else text for text in overrides]


def _refuse_hidden(overrides: list[str], composed: Any) -> None:
    """ConfigError for an override of `lora.rank` and the like that a short form would hide."""
    for name in SHORT:
        hidden = [text for text in overrides if text.lstrip("+").startswith(f"lora.{name}=")]
        if hidden and composed[name] is not None:
            raise ConfigError(f"{hidden[0]}: {name}={composed[name]} counts before it; set one of the two")


def check_names(overrides: list[str], folder: Path = FOLDER) -> None:
    """ConfigError for an override of a key that does not exist or that cannot be read, naming the nearest key."""
    groups = [path.name for path in folder.iterdir() if path.is_dir()]
    known = [*keys(TrainConfig), *groups]
    for override in map(_parsed, overrides):
        name = override.key_or_group.split("@")[0]
        if name in known or name.split(".")[0] == "hydra" or name.startswith("hydra/"):
            continue
        raise ConfigError(f"{override.input_line}: there is no key {name!r}{_nearest(name, known)}")


def _parsed(text: str) -> Override:
    """An override as Hydra reads it; ConfigError that shows how to quote a value that it cannot read."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        name, _, value = text.partition("=")
        if not re.fullmatch(r"[\w./@]+", name, re.ASCII):
            raise ConfigError(f"{text}: a setting is written key=value, such as batch_size=4") from error
        told = f"{name}={quoted(value)}"
        told = shlex.quote(told) if re.search(r'["$`\\!]', told) else f'"{told}"'
        raise ConfigError(f"{text}: Hydra cannot read this value; as a text it is written {told}") from error


def keys(schema: type, prefix: str = "") -> list[str]:
    """Dotted names of every field of a dataclass, nested ones included."""
    found = []
    for entry in dataclasses.fields(schema):
        found.append(prefix + entry.name)
        if dataclasses.is_dataclass(entry.default_factory):
            found += keys(cast(type, entry.default_factory), f"{prefix}{entry.name}.")
    return found


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"lora": {"rank": 4}}` as `{"lora.rank": 4}`."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`; did you mean ...`: the nearest whole name, else the nearest last component, else nothing."""
    leaves = {key.rsplit(".", 1)[-1]: key for key in known}
    whole = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    leaf = difflib.get_close_matches(name.rsplit(".", 1)[-1], leaves, n=1, cutoff=0.5)
    best = whole or [leaves[key] for key in leaf] or difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; did you mean {best[0]!r}?"


def _one_line(error: Exception) -> str:
    """A Hydra or OmegaConf message in one line: which key, what is wrong, without the advice on stack traces."""
    text = str(error.__cause__ or error) if isinstance(error, HydraException) else str(error)
    option = re.search(r"Could not find '(\w+)/(.*)'\s+Available options in '\w+':\s+([\w\s]+?)\n\s*Config", text)
    if option:
        group, name, there = option.group(1), option.group(2), option.group(3).split()
        return f"{group}={name}: unknown{_nearest(name, there)} There are: {', '.join(there)}"
    key = re.search(r"full_key: (\S+)", text)
    what = " ".join(text.split("\n    full_key:")[0].split())
    return f"{key.group(1)}: {what}" if key else what


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value}: at least {least}")


def _between(name: str, value: float, low: float, high: float, low_open: bool = False) -> None:
    if not math.isfinite(value) or not low <= value <= high or (low_open and value == low):
        above = "above" if low_open else "at least"
        upper = "" if math.isinf(high) else f" and at most {high:g}"
        raise ConfigError(f"{name}={value:g}: expected {above} {low:g}{upper}")
