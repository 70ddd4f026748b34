"""The help of training: every setting with its default and one line, read from config/lora_config.yaml.

That file is written from the settings' types and docstrings.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmaudio.config import CONFIG_FOLDER, PRIMARY_CONFIG

WIDTH = 42
"""Columns of a setting and its default."""
INTRODUCTION = """\
usage: {command} [key=value ...] [--multirun] [--offline] [--debug]

Train a LoRA adapter on extracted features, or continue where an earlier call stopped.

Examples:
  {command} exp_id=dogs model=small_16k
  {command} exp_id=dogs model=small_16k preset=small lora.rank=32
  {command} --multirun lora.rank=16,32,64          one run after the other

Presets, which start from other values (preset=NAME or preset=[NAME,NAME]):
  {presets}

Settings with their defaults (from {path}):"""


def format_help(command: str) -> list[str]:
    """The lines of the help of `command`."""
    presets = sorted(path.stem for path in (CONFIG_FOLDER / "preset").glob("*.yaml"))
    path = CONFIG_FOLDER / f"{PRIMARY_CONFIG}.yaml"
    introduction = INTRODUCTION.format(command=command, presets=", ".join(presets), path=path)
    return [*introduction.split("\n"), *format_settings(path.read_text(encoding="utf-8"))]


def format_settings(text: str) -> Iterator[str]:
    """The settings of the YAML file as they are typed, `lora.rank=64`, with their explanations."""
    lines = text[text.index("\n\n") : text.index("\nhydra:")].strip().split("\n")
    group = ""
    for line in lines:
        setting, _, explanation = line.partition("# ")
        key, _, value = setting.strip().partition(":")
        if key.startswith("-"):
            continue
        if not setting.startswith(" "):
            group = ""
        if not key:
            yield ""
        elif not value.strip() and not setting.startswith(" "):
            group = f"{key}."
        else:
            entry = f"  {group}{key}={value.strip() or '[...]'}"
            yield f"{entry:<{WIDTH}} {explanation}".rstrip()
