"""The configuration: the guide's keys work, every YAML composes, a mistake gets one line with the nearest name."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, load_script
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from mmaudio import config as config_module
from mmaudio.config import (
    CONFIG_FOLDER,
    LORA_SHORTCUTS,
    PRIMARY_CONFIG,
    TrainConfig,
    compose,
    dotted_names,
    register_schema,
)
from mmaudio.errors import ConfigError
from mmaudio.lora import config as lora_config
from mmaudio.lora.adapter import DEFAULT_TARGETS

PRESETS = sorted(path.stem for path in (CONFIG_FOLDER / "preset").glob("*.yaml"))


def test_the_defaults_are_those_of_the_guide():
    config = compose([])
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (64, 128.0, 0.1)
    assert (config.batch_size, config.gradient_accumulation_steps, config.effective_batch_size) == (8, 4, 32)
    assert (config.learning_rate, config.max_steps, config.warmup_steps) == (5e-4, 3000, 200)
    assert config.ema_decay and config.validation.enabled and config.validation.levels >= 8
    assert config.early_stopping.enabled and config.preserve_base == config.latent_noise == 0
    assert config.amp and not config.compile and tuple(config.lora.target_modules) == DEFAULT_TARGETS


def test_the_yaml_and_the_schema_agree():
    assert compose([]) == TrainConfig(), "config/lora_config.yaml is out of date: python training/write_config.py"


def test_the_yaml_files_are_what_write_config_writes():
    for path, text in load_script(ROOT / "training" / "write_config.py").yaml_files().items():
        assert path.read_text() == text, f"{path.name} is out of date: python training/write_config.py"


def test_the_yaml_lists_every_setting_with_a_comment():
    def names(nested, prefix=""):
        for name, value in nested.items():
            yield prefix + name
            yield from names(value, f"{prefix}{name}.") if isinstance(value, dict) else ()

    text = (CONFIG_FOLDER / f"{PRIMARY_CONFIG}.yaml").read_text()
    listed = {name for name in names(yaml.safe_load(text)) if name.split(".")[0] not in ("defaults", "hydra")}
    assert listed == set(dotted_names(TrainConfig)) - set(LORA_SHORTCUTS)
    settings = text[text.index("exp_id:") : text.index("hydra:\n")].splitlines()
    assert not [line for line in settings if re.match(r" *\w+: *[^ #]", line) and "  # " not in line]
    for name in PRESETS:
        second = (CONFIG_FOLDER / "preset" / f"{name}.yaml").read_text().splitlines()[1]
        assert second.startswith("# "), name


@pytest.mark.parametrize("value", ["d\u00e9", "a(b", '"x', "b)", "it's (x"])
def test_a_value_that_hydra_cannot_read_is_shown_as_it_is_written(value):
    with pytest.raises(ConfigError, match="cannot read this value") as refused:
        compose([f"features_dir={value}"])
    (argument,) = shlex.split(str(refused.value).partition(" it is written ")[2])
    assert compose([argument]).features_dir == value


def test_an_unreadable_key_gets_an_example_of_a_setting():
    with pytest.raises(ConfigError, match="key=value"):
        compose(["\u00e9=3"])


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_presets_compose_and_all_but_the_default_size_change_something(name):
    assert (compose([f"preset={name}"]) == compose([])) == (name == "small")


@pytest.mark.parametrize(
    "name, expected",
    {
        "very_small": {"lora.rank": 32, "max_steps": 1500, "learning_rate": 2e-4},
        "small": {"lora.rank": 64, "max_steps": 3000, "learning_rate": 5e-4},
        "medium": {"lora.rank": 128, "max_steps": 5000, "learning_rate": 1e-3},
        "more_capacity": {"lora.rank": 128, "lora.alpha": 256.0, "lora.dropout": 0.05, "max_steps": 5000},
        "regularize": {"lora.dropout": 0.2, "weight_decay": 0.02, "validation.split_ratio": 0.2},
        "low_memory": {"batch_size": 4, "gradient_accumulation_steps": 8, "gradient_checkpointing": True},
        "stable": {"learning_rate": 2e-4, "warmup_steps": 500},
    }.items(),
)
def test_presets_are_the_guides_recipes(name, expected):
    config = compose([f"preset={name}"])
    for key, value in expected.items():
        setting = config
        for name in key.split("."):
            setting = getattr(setting, name)
        assert setting == value, key


def test_presets_combine_and_the_command_line_wins():
    config = compose(["preset=[small,low_memory]", "batch_size=2", "lora.target_modules=['fused_blocks[*].attn.qkv']"])
    assert (config.batch_size, config.gradient_checkpointing, config.max_steps) == (2, True, 3000)
    assert config.lora.target_modules == ["fused_blocks[*].attn.qkv"]


@pytest.mark.slow
def test_guides_yaml_snippets_are_valid_keys():
    snippet = "lora: {rank: 128, alpha: 256.0, dropout: 0.05}\nmax_steps: 5000\nlearning_rate: 1e-3"
    for name, value in yaml.safe_load(snippet).items():
        for override in (
            [f"{name}.{k}={v}" for k, v in value.items()] if isinstance(value, dict) else [f"{name}={value}"]
        ):
            compose([override])
    assert compose(["learning_rate=1e-3"]).learning_rate == 1e-3


@pytest.mark.parametrize(
    "override, expected",
    [
        ("batchsize=3", "batch_size"),
        ("rnk=3", "did you mean 'rank'"),
        ("rank=0", "lora.rank=0"),
        ("lora.rnk=3", "lora.rank"),
        ("+lerning_rate=1", "learning_rate"),
        ("model=smal_16k", "small_16k"),
        ("preset=smal", "'small'"),
        ("batch_size=abc", "batch_size: Value 'abc'"),
        ("batch_size=1.5", "batch_size: Value '1.5'"),
        ("batch_size=0", "batch_size=0: at least 1"),
        ("learning_rate=-1", "learning_rate=-1"),
        ("learning_rate=nan", "learning_rate=nan"),
        ("schedule=cosin", "cosine"),
        ("optimizer=adam", "adamw"),
        ("latent_noise=-1", "latent_noise=-1"),
        ("validation.average_every=0", "average_every=0: at least 1"),
        ("lora.rank=0", "lora.rank=0"),
        ("lora=3", "lora: Invalid type"),
        ("validation.levels=2", "at least 8"),
        ("validation.split_ratio=2", "split_ratio=2"),
        ("early_stopping.patience=0", "patience=0"),
        ("exp_id=../elsewhere", "exp_id"),
        ("device=gpu", "cuda"),
        ("a b=c", "a b=c"),
    ],
)
def test_invalid_settings_are_one_line(override, expected):
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_the_launcher_for_slurm_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        register_schema()
        overrides = ["hydra/launcher=slurm", "hydra.launcher.timeout_min=30"]
        launcher = hydra_compose(PRIMARY_CONFIG, overrides, return_hydra_config=True).hydra.launcher
    assert launcher["_target_"].endswith("SlurmLauncher")
    assert (launcher.timeout_min, launcher.gpus_per_node, launcher.max_num_timeout) == (30, 1, 5)
    assert "%" not in launcher.submitit_folder, "a folder for each job is made after the job was started"


@pytest.mark.slow
def test_settings_that_contradict_the_optimizer_are_refused():
    assert compose(["optimizer=prodigy", "learning_rate=1"]).optimizer == "prodigy"
    with pytest.raises(ConfigError, match="leave lora_plus_ratio at 1"):
        compose(["optimizer=prodigy", "lora_plus_ratio=16"])


@pytest.mark.slow
def test_caption_dropout_defaults_to_that_of_the_video():
    assert compose(["drop_conditions=0.2"]).caption_dropout_prob == 0.2
    assert compose(["drop_conditions=0.2", "drop_captions=0.5"]).caption_dropout_prob == 0.5


@pytest.mark.slow
def test_shortcuts_set_the_keys_of_lora():
    config = compose(["rank=16", "alpha=32", "dropout=0.2", "target_modules=['fused_blocks[*].ffn']"])
    assert config == compose(
        ["lora.rank=16", "lora.alpha=32", "lora.dropout=0.2", "lora.target_modules=['fused_blocks[*].ffn']"]
    )
    assert compose(["preset=medium", "rank=16"]).lora.rank == 16
    assert config.to_dict()["lora"]["rank"] == 16 and "rank" not in config.to_dict()
    with pytest.raises(ConfigError, match=r"lora\.rank=32: rank=16 takes precedence"):
        compose(["rank=16", "lora.rank=32"])


def test_keys_are_dotted_names():
    assert {"exp_id", "lora", "lora.rank", "validation.split_ratio", "early_stopping.min_delta"} <= set(
        dotted_names(TrainConfig)
    )


@pytest.mark.parametrize("module", [config_module, lora_config])
def test_every_setting_has_a_docstring(module):
    """A string after every field, the short forms and the groups excepted: those say it where they are."""
    undocumented = {*LORA_SHORTCUTS, "lora", "validation", "early_stopping", "logging"}
    documented = 0
    for schema in ast.parse(Path(module.__file__).read_text()).body:
        if not isinstance(schema, ast.ClassDef):
            continue
        for entry, after in zip(schema.body, schema.body[1:], strict=False):
            if isinstance(entry, ast.AnnAssign) and (
                schema.name != "TrainConfig" or entry.target.id not in undocumented
            ):
                documented += 1
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), entry.target.id
    assert documented > 10
