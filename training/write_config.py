"""The YAML files of settings, written from the dataclasses' defaults and docstrings.

    python training/write_config.py

Run it after a change of a default or of a field's comment; a test compares the files with what it would write. A
comment is the first line of the docstring after the field.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

from mmaudio import cli
from mmaudio.config import CONFIG_FOLDER, LORA_SHORTCUTS, PRIMARY_CONFIG, SCHEMA_NAME, TrainConfig
from mmaudio.data.config import SPLIT_CONFIG_FILE, SplitConfigFile
from mmaudio.utils.files import atomic_write
from mmaudio.utils.terminal import print_lines

TRAIN_HEADER = f"""\
# The primary configuration: the defaults for some 20 videos. Every key can be set on the command line:
#   python train_lora.py exp_id=my_lora_experiment model=small_16k lora.rank=32
# preset= starts from another place: very_small, small, medium (how many videos there are); more_capacity, regularize,
# low_memory, stable (what to try when results disappoint); dora, pissa (these kinds of adapter); quick (trying things
# out on a CPU). Several: preset=[small,stable]
defaults:
  - {SCHEMA_NAME}
  - _self_
  - preset: []
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
"""
TRAIN_SECTIONS = (
    ("exp_id", "model", "custom_finetune"),
    ("clips_tsv", "features_dir", "output_dir", "weights", "video_root", "offline", "device", "resume"),
    ("init_from", "seed", "folds", "fold"),
    ("lora",),
    (
        *("batch_size", "gradient_accumulation_steps", "learning_rate", "optimizer", "lora_plus_ratio", "schedule"),
        *("max_steps", "warmup_steps", "weight_decay", "max_grad_norm", "drop_conditions", "drop_captions"),
        *("early_times", "latent_noise", "preserve_base", "preserve_share", "ema_decay"),
    ),
    ("amp", "base_bf16", "gradient_checkpointing", "compile", "cuda_graph", "merge_batches", "features_in_memory"),
    ("eval_every", "save_every", "validation", "early_stopping", "logging"),
)
"""The settings of TrainConfig in the order of the file, with a blank line before each section."""
HYDRA_SETTINGS = """
hydra:
  output_subdir: null             # the trainer itself writes config.yaml beside its results
  run:
    dir: .
  sweep:
    dir: ${output_dir}/${exp_id}
    subdir: .                       # the trainer itself makes a folder for each job
  job:
    config:
      override_dirname:
        exclude_keys: [exp_id, output_dir, clips_tsv, features_dir, weights, offline, video_root, device, resume]
"""
SPLIT_HEADER = """\
# Splitting: how videos are cut, and which clips are left out. Every key can be set on the command line, also of the
# pipeline:   ./run_lora_pipeline.sh my_videos -- split.stride=8 split.rules.max_frozen=null
"""
TRAIN_COLUMN, SPLIT_COLUMN = 34, 36
"""Column at which the comments start."""


def field_comments(schema: type) -> dict[str, str]:
    """First line of the docstring after every field of a dataclass, by the field's name."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(definition, ast.ClassDef)
    comments = {}
    for entry, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name) and isinstance(after, ast.Expr):
            comments[entry.target.id] = str(ast.literal_eval(after.value)).split("\n")[0]
    return comments


def format_value(value: object) -> str:
    """A plain value in YAML."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return str(value)


def settings_lines(settings: object, names: Sequence[str], column: int, indent: str = "") -> Iterator[str]:
    """YAML lines of the fields `names` of a dataclass object, with comments at `column` and indented groups."""
    comments = field_comments(type(settings))
    for name in names:
        value, comment = getattr(settings, name), comments.get(name, "")
        is_group, is_list = is_dataclass(value), isinstance(value, list) and value
        head = f"{indent}{name}:" if is_group or is_list else f"{indent}{name}: {format_value(value)}"
        yield f"{head:<{column - 1}} # {comment}" if comment else head
        if is_group:
            yield from settings_lines(value, [entry.name for entry in fields(value)], column, f"{indent}  ")
        elif is_list:
            yield from (f"{indent}  - {item}" for item in value)


def train_yaml() -> str:
    """Text of config/lora_config.yaml."""
    listed = {name for section in TRAIN_SECTIONS for name in section}
    expected = {entry.name for entry in fields(TrainConfig)} - set(LORA_SHORTCUTS)
    assert listed == expected, f"TRAIN_SECTIONS differ from TrainConfig in {listed ^ expected}"
    sections = ["\n".join(settings_lines(TrainConfig(), names, TRAIN_COLUMN)) + "\n" for names in TRAIN_SECTIONS]
    return "\n".join([TRAIN_HEADER, *sections]) + HYDRA_SETTINGS


def split_yaml() -> str:
    """Text of config/split_config.yaml."""
    return SPLIT_HEADER + "\n".join(settings_lines(SplitConfigFile(), ["split"], SPLIT_COLUMN)) + "\n"


def yaml_files() -> dict[Path, str]:
    """The text of every generated file, by its path."""
    return {CONFIG_FOLDER / f"{PRIMARY_CONFIG}.yaml": train_yaml(), SPLIT_CONFIG_FILE: split_yaml()}


def main(arguments: list[str]) -> None:
    """Write both files."""
    cli.Parser("Write config/*.yaml from the defaults of the dataclasses.").parse_args(arguments)
    for path, text in yaml_files().items():
        with atomic_write(path) as temporary:
            temporary.write_text(text)
        print_lines(path)


if __name__ == "__main__":
    cli.run(main)
