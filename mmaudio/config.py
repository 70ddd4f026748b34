"""Training settings: dataclasses with defaults and checks, composed by Hydra.

    config = compose(["model=tiny_16k", "preset=quick"])

Hydra checks names and types against the dataclasses, and their `__post_init__` checks the values. Below the entry
points a configuration is one of these objects, never a DictConfig. After a change of a default or of the first line of
a field's docstring, run `python training/write_config.py`.
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
from mmaudio.utils.checkout import ROOT
from mmaudio.utils.hydra_quote import quote_value
from mmaudio.utils.setting_checks import check_at_least, check_between, parse_folds
from mmaudio.utils.trackers import DEFAULT_TRACKERS, PROJECT

CONFIG_FOLDER = ROOT / "config"
PRIMARY_CONFIG = "lora_config"
SCHEMA_NAME = "train_schema"
SCHEDULES = ("cosine", "linear", "constant")
LORA_SHORTCUTS = ("rank", "alpha", "dropout", "target_modules")
"""Keys of `lora` that are also accepted at the top level, as in the guide."""
PATTERN_KEYS = ("lora.rank_pattern", "lora.alpha_pattern")
"""Settings whose values are dictionaries with arbitrary keys."""
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")


@dataclass
class ValidationConfig:
    """Losses on held-out clips, which select the best adapter."""

    enabled: bool = True
    """false: where there are hardly any clips; the last adapter counts as the best"""
    split_ratio: float | None = None
    """0.2: hold out a fifth of the videos anew; null: the split in clips.tsv"""
    levels: int = 8
    """flow times per clip, at fixed noise; more where there are few clips to measure"""
    average_every: int = 2
    """measure the EMA at every second evaluation, and at the last step"""

    def __post_init__(self) -> None:
        if self.split_ratio is not None:
            check_between("validation.split_ratio", self.split_ratio, 0.0, 0.9, low_open=True)
        check_at_least("validation.levels", self.levels, 8)
        check_at_least("validation.average_every", self.average_every, 1)


@dataclass
class EarlyStoppingConfig:
    """Stop of the training when the validation loss no longer falls."""

    enabled: bool = True
    """false: all of max_steps, for runs that are compared"""
    patience: int = 6
    """evaluations without improvement; more where the curve is noisy; it may cut lora.phases short"""
    min_delta: float = 0.0
    """how far the loss has to fall; more where tiny gains are not worth the time"""

    def __post_init__(self) -> None:
        check_at_least("early_stopping.patience", self.patience, 1)
        check_between("early_stopping.min_delta", self.min_delta, 0.0, math.inf)


@dataclass
class LoggingConfig:
    """Output to trackers and the terminal, with intervals in steps."""

    log_every: int = 10
    """means over so many steps; 1: every step, to look into trouble"""
    sample_every: int = 1000
    """audio, pictures and videos, also at the last step; fewer to listen earlier, 0: none"""
    sample_clips: int = 3
    """held-out clips per sample; each takes two generations"""
    sample_prompts: list[str] = field(default_factory=list)
    """texts to hear beside them: for every one of sample_videos, else alone"""
    sample_videos: list[str] = field(default_factory=list)
    """videos to hear from their beginning; without sample_prompts by the text beside each"""
    trackers: list[str] = field(default_factory=lambda: list(DEFAULT_TRACKERS))
    """also wandb and trackio, extras of the same names; samples go to tensorboard alone"""
    project: str = PROJECT
    """the project's name in wandb and trackio"""

    def __post_init__(self) -> None:
        check_at_least("logging.log_every", self.log_every, 1)
        check_at_least("logging.sample_every", self.sample_every, 0)
        check_at_least("logging.sample_clips", self.sample_clips, 1)


@dataclass
class TrainConfig:
    """Settings of one training run. The defaults suit some 20 videos on one GPU; `preset=` selects others.

    The first line after every field is its comment in config/lora_config.yaml, which `training/write_config.py` writes.
    """

    exp_id: str = "my_lora_experiment"
    """results go to output_dir/exp_id; a name for every experiment"""
    model: str = "small_16k"
    """tiny_16k, small_16k, small_44k, medium_44k, large_44k, large_44k_v2"""
    custom_finetune: bool = True
    """false: features_dir is what the public reference's extraction wrote

    A memory map with its table, or a folder of several; `clips_tsv` is not read then."""
    clips_tsv: str = "lora_data/clips.tsv"
    """the table that splitting wrote"""
    features_dir: str = "lora_data/features"
    """the folder that extraction wrote"""
    output_dir: str = "output"
    """folder of all experiments"""
    weights: str | None = None
    """folder of the released weights; null: ./weights, ./ext_weights"""
    offline: bool = False
    """true: absent weights are an error, instead of being fetched; also HF_HUB_OFFLINE=1"""
    video_root: str | None = None
    """folder of the source videos, for samples/*.mp4; null: audio and pictures alone"""
    device: str = "auto"
    """auto: a GPU if there is one; cpu; cuda; cuda:1: one of several GPUs"""
    resume: bool = True
    """false: start over in a new folder"""
    init_from: str | None = None
    """an adapter of the same base to train on from; null: a new one"""
    seed: int = 42
    """another one shows how much of a difference is chance"""
    folds: str = "off"
    """a number, auto or on: train so often without some videos, then on all; see docs/training.md"""
    fold: int | None = None
    """train this one of the folds alone, from 1 on: for several GPUs, or a cluster"""

    batch_size: int = 8
    """clips at once on each device; less where memory is short"""
    gradient_accumulation_steps: int = 4
    """clips per step, over all devices: batch_size times this"""
    learning_rate: float = 5e-4
    """lower where training is unstable or overfits, higher where it is slow

    The peak of the schedule. Prodigy estimates a multiple of it: leave it at 1 there."""
    optimizer: str = "adamw"
    """adamw8bit: less memory, for full fine-tuning; prodigy: finds its rate (learning_rate=1)"""
    lora_plus_ratio: float = 1.0
    """LoRA+: 16 lets the B matrices learn 16 times faster"""
    schedule: str = "cosine"
    """linear: more steps at middle rates; constant: where max_steps may be raised later"""
    max_steps: int = 3000
    """more where the validation loss still falls at the end; a finished run continues"""
    warmup_steps: int = 200
    """more where training is unstable"""
    weight_decay: float = 0.01
    """more where the validation loss rises early"""
    max_grad_norm: float = 1.0
    """lower where single steps throw training off"""
    drop_conditions: float = 0.1
    """as the base model was trained; guidance needs it

    Probability that a clip is trained without its video and, independently, without its text."""
    drop_captions: float | None = None
    """null: as drop_conditions; more where all captions are alike"""
    early_times: float = 0.3
    """share of clips trained nearer to the noise, where the sound is chosen; 0: the base's times"""
    latent_noise: float = 0.0
    """0.05 to 0.2 where a few clips are learned by heart

    Standard deviation of noise added to the normalised latents."""
    preserve_base: float = 0.0
    """1 to 4 against forgetting the base model

    Weight of the mean squared distance of the velocity from the base's, on audio that it makes of generic captions."""
    preserve_share: float = 0.25
    """samples of the base per clip of a step, for preserve_base; more forget less, and take longer"""
    ema_decay: float = 0.99
    """EMA of the adapter, evaluated and saved beside it; 0: none; 0.999: from 5000 steps on"""
    amp: bool = True
    """bfloat16 where the machine is fast at it"""
    base_bf16: bool = False
    """true: DoRA's frozen weights in bfloat16, as amp keeps the others'

    Half the memory, if a large model does not fit otherwise; needs `amp`."""
    gradient_checkpointing: bool = False
    """true: several times less memory, a third slower"""
    compile: bool | None = None
    """true: minutes at the start, faster steps on a GPU; null: where earlier runs show a gain; false"""
    cuda_graph: bool | None = None
    """null: on a GPU record a batch once, replay it at every step; true: or fail; false

    Not with gradient_checkpointing, lora.enabled=false, features off the GPU, nor for preserve_base's samples."""
    merge_batches: bool | None = None
    """null: on a GPU, with batch_size=8, a step's clips at once as memory allows; true; false"""
    features_in_memory: bool | None = None
    """null: on the device where they fit, else read for every batch; true; false

    The numbers are the same. They fit if they take at most half of the device's free memory."""
    eval_every: int = 100
    """fewer in short runs, and where early stopping should notice sooner"""
    save_every: int = 100
    """at most so many steps are repeated after a power cut; a signal saves at once"""

    rank: int | None = None
    """Short form of lora.rank, like the next three of theirs; if both are set, the short form counts."""
    alpha: float | None = None
    dropout: float | None = None
    target_modules: list[str] | None = None
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """rank: 32 and so on may also stand alone, without lora"""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        shortcuts = {name: getattr(self, name) for name in LORA_SHORTCUTS if getattr(self, name) is not None}
        for name in ("rank", "alpha"):
            if name in shortcuts and self.lora.phases:
                raise ConfigError(f"{name}={shortcuts[name]:g} has no effect beside lora.phases: set it in the phases")
        self.lora = dataclasses.replace(self.lora, **shortcuts)
        self.rank = self.alpha = self.dropout = self.target_modules = None
        model_spec(self.model)
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.,=-]*)*", self.exp_id):
            raise ConfigError(
                f"exp_id={self.exp_id!r}: a folder name is expected; letters, digits, dot, dash, underscore"
            )
        for name, known in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r}: unknown{_suggest(getattr(self, name), known)}")
        self._check_combinations()
        self.folds = parse_folds("folds=", self.folds, self.fold)
        for name in ("batch_size", "gradient_accumulation_steps", "max_steps", "eval_every", "save_every"):
            check_at_least(name, getattr(self, name), 1)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ConfigError(f"device={self.device!r}: unknown; it is auto, cpu, cuda, cuda:N or mps")
        check_at_least("warmup_steps", self.warmup_steps, 0)
        check_between("seed", self.seed, 0, 2**63 - 1)
        check_between("learning_rate", self.learning_rate, 0.0, 1.0, low_open=True)
        check_between("weight_decay", self.weight_decay, 0.0, 1.0)
        check_between("max_grad_norm", self.max_grad_norm, 0.0, math.inf, low_open=True)
        check_between("lora_plus_ratio", self.lora_plus_ratio, 0.0, 1000.0, low_open=True)
        check_between("drop_conditions", self.drop_conditions, 0.0, 0.9)
        check_between("drop_captions", self.caption_dropout_prob, 0.0, 1.0)
        check_between("early_times", self.early_times, 0.0, 1.0)
        check_between("latent_noise", self.latent_noise, 0.0, 1.0)
        check_between("preserve_base", self.preserve_base, 0.0, 100.0)
        check_between("preserve_share", self.preserve_share, 0.0, 4.0, low_open=True)
        check_between("ema_decay", self.ema_decay, 0.0, 0.99999)

    def _check_combinations(self) -> None:
        """Raise ConfigError for settings that exclude each other."""
        if self.optimizer == "prodigy" and self.lora_plus_ratio != 1:
            raise ConfigError("optimizer=prodigy uses one rate for all parameters: leave lora_plus_ratio at 1")
        if self.lora.phases and self.optimizer != "adamw":
            raise ConfigError(f"optimizer={self.optimizer}: its state cannot grow with lora.phases; take adamw")
        if self.lora.init_lora_weights == "pissa" and self.weight_decay:
            raise ConfigError(
                f"lora.init_lora_weights=pissa with weight_decay={self.weight_decay:g}: the decay would act on "
                "the base weights; set weight_decay=0 (preset=pissa)"
            )
        if not self.lora.enabled and (self.base_bf16 or self.lora_plus_ratio != 1):
            name = "base_bf16" if self.base_bf16 else "lora_plus_ratio"
            raise ConfigError(f"lora.enabled=false trains every weight: {name} is for adapters alone")

    @property
    def caption_dropout_prob(self) -> float:
        """Probability that a clip is trained without its text."""
        return self.drop_conditions if self.drop_captions is None else self.drop_captions

    @property
    def weights_folder(self) -> Path | None:
        """The folder of `weights`; None: the cache."""
        return None if self.weights is None else Path(self.weights)

    @property
    def effective_batch_size(self) -> int:
        """Clips of one optimizer step, over all devices."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def base_samples_per_step(self) -> int:
        """Samples of the base in one optimizer step, over all devices; 0 where the base is not preserved."""
        return max(1, round(self.preserve_share * self.effective_batch_size)) if self.preserve_base else 0

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run: those of `lora.phases` or `lora.max_steps` if set, else `max_steps`."""
        return self.lora.total_steps or self.max_steps

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain values, as stored in YAML files and checkpoints."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in LORA_SHORTCUTS}


def register_schema() -> None:
    """Register the schema with Hydra; entry points call it, importing does not."""
    ConfigStore.instance().store(name=SCHEMA_NAME, node=TrainConfig)


def to_train_config(composed: Any) -> TrainConfig:
    """Convert a composed DictConfig to a checked TrainConfig; ConfigError for a wrong type or an invalid value."""
    try:
        return cast(TrainConfig, OmegaConf.to_object(composed))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error


def compose(overrides: list[str], folder: Path = CONFIG_FOLDER) -> TrainConfig:
    """Compose the configuration of `folder` with Hydra overrides; ConfigError with the nearest name for a mistake."""
    register_schema()
    check_override_names(overrides, folder)
    try:
        with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
            composed = hydra_compose(PRIMARY_CONFIG, overrides=allow_new_keys(overrides))
            _check_shortcuts(overrides, composed)
            return to_train_config(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from error


def allow_new_keys(overrides: list[str]) -> list[str]:
    """Prefix the overrides of PATTERN_KEYS with `++`, without which Hydra accepts no new keys."""
    return [f"++{text}" if text.startswith(tuple(f"{name}=" for name in PATTERN_KEYS)) else text for text in overrides]


def _check_shortcuts(overrides: list[str], composed: Any) -> None:
    """Raise ConfigError for an override such as `lora.rank` that its short form would replace."""
    for name in LORA_SHORTCUTS:
        hidden = [text for text in overrides if text.lstrip("+").startswith(f"lora.{name}=")]
        if hidden and composed[name] is not None:
            raise ConfigError(f"{hidden[0]}: {name}={composed[name]} takes precedence; set one of the two")


def check_override_names(overrides: list[str], folder: Path = CONFIG_FOLDER) -> None:
    """Raise ConfigError with the nearest key for an override with an unknown key or an unreadable value."""
    groups = [path.name for path in folder.iterdir() if path.is_dir()]
    known = [*dotted_names(TrainConfig), *groups]
    for override in map(_parse_override, overrides):
        name = override.key_or_group.split("@")[0]
        if name in known or name.split(".")[0] == "hydra" or name.startswith("hydra/"):
            continue
        raise ConfigError(f"{override.input_line}: there is no key {name!r}{_suggest(name, known)}")


def _parse_override(text: str) -> Override:
    """Parse an override as Hydra does; ConfigError that shows how to quote an unreadable value."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        name, _, value = text.partition("=")
        if not re.fullmatch(r"[\w./@]+", name, re.ASCII):
            raise ConfigError(f"{text}: a setting is written key=value, such as batch_size=4") from error
        quoted = f"{name}={quote_value(value)}"
        argument = shlex.quote(quoted) if re.search(r'["$`\\!]', quoted) else f'"{quoted}"'
        raise ConfigError(f"{text}: Hydra cannot read this value; as a text it is written {argument}") from error


def dotted_names(schema: type, prefix: str = "") -> list[str]:
    """Dotted names of all fields of a dataclass, including nested ones."""
    names = []
    for entry in dataclasses.fields(schema):
        names.append(prefix + entry.name)
        if dataclasses.is_dataclass(entry.default_factory):
            names += dotted_names(cast(type, entry.default_factory), f"{prefix}{entry.name}.")
    return names


def _suggest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`; did you mean ...?` with the nearest whole name, else the name with the nearest last component."""
    leaves = {key.rsplit(".", 1)[-1]: key for key in known}
    whole = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    leaf = difflib.get_close_matches(name.rsplit(".", 1)[-1], leaves, n=1, cutoff=0.5)
    best = whole or [leaves[key] for key in leaf] or difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; did you mean {best[0]!r}?"


def _one_line(error: Exception) -> str:
    """Shorten a Hydra or OmegaConf message to one line with the key and the problem."""
    text = str(error.__cause__ or error) if isinstance(error, HydraException) else str(error)
    option = re.search(r"Could not find '(\w+)/(.*)'\s+Available options in '\w+':\s+([\w\s]+?)\n\s*Config", text)
    if option:
        group, name, options = option.group(1), option.group(2), option.group(3).split()
        return f"{group}={name}: unknown{_suggest(name, options)} There are: {', '.join(options)}"
    key = re.search(r"full_key: (\S+)", text)
    problem = " ".join(text.split("\n    full_key:")[0].split())
    return f"{key.group(1)}: {problem}" if key else problem
