"""Patterns of strangers: matched as before, and given up where that would take for ever."""

from __future__ import annotations

import pytest

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.lora import patterns
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.patterns import match_names
from mmaudio.lora.peft_compat import lora_settings
from mmaudio.lora.targets import layer_settings

QKV = "joint_blocks.0.latent_block.attn.qkv"
ENDLESS = (r"(\w|\w\w|[a-z._0-9])*[!?]", r"(?:(?:.|..)*?)*?[!?]")
PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(patterns, "MATCH_SECONDS", 0.05)


def test_names_are_matched_as_a_whole():
    matches = match_names({"a": r"(.*\.)?qkv", "b": "qk", "c": r"joint.*[^v]"}, [QKV, "proj"])
    assert matches == {"a": [QKV], "b": [], "c": []}


@pytest.mark.parametrize("pattern", ENDLESS)
@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_of_peft_that_would_never_end_is_refused(soon, setting, pattern):
    with pytest.raises(WeightsError, match=r"adapter_config\.json is invalid: .* takes too long to match"):
        lora_settings(PEFT | {setting: {pattern: 4}}, [QKV])


def test_a_pattern_of_ours_ends(soon):
    with pytest.raises(ConfigError, match=r"takes too long to match|matches nothing"):
        layer_settings(LoRAConfig(rank_pattern={"*a" * 25 + "b": 4}), [f"{QKV}.{'a' * 60}"])


def test_many_patterns_have_the_time_of_one(monkeypatch):
    monkeypatch.setattr(patterns, "MATCH_SECONDS", 1e-6)
    with pytest.raises(ConfigError, match="takes too long to match"):
        match_names({str(number): f".*{number}.*" for number in range(100)}, [QKV] * 100)


@pytest.mark.parametrize("pattern", ["[" * 100_000, "(" * 400, "a{9999999999999999999}", "a**"])
def test_an_invalid_pattern_is_refused(pattern):
    with pytest.raises(WeightsError, match=r"not a valid pattern|characters, more than 500"):
        lora_settings(PEFT | {"rank_pattern": {pattern: 4}}, [QKV])
    with pytest.raises(ConfigError, match="has 100000 characters, more than 500"):
        layer_settings(LoRAConfig(rank_pattern={"[" * 100_000: 4}), [QKV])
