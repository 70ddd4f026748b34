"""The rules that leave clips out, and the file and the command line that set them."""

from __future__ import annotations

import pytest

from mmaudio.data.config import SplitConfig, compose_split_config
from mmaudio.data.filters import FilterRules, reason_kind
from mmaudio.data.scan import MeasuredWindow, ScanSettings
from mmaudio.errors import ConfigError

GOOD = {"peak_db": -3.0, "rms_db": -20.0, "silence": 0.5, "lufs": -20.0}


@pytest.mark.parametrize(
    ("measured", "kinds"),
    [
        ({}, []),
        ({"peak_db": -61.0, "lufs": -70.0, "silence": 1.0}, ["silent"]),
        ({"lufs": -66.0, "silence": 1.0}, ["faint"]),
        ({"silence": 0.99}, ["mostly silent"]),
        ({"clipped": 0.03}, ["clipped sound"]),
        ({"black": 0.9, "frozen": 1.0}, ["black picture"]),
        ({"frozen": 0.95}, ["frozen picture"]),
        ({"mismatch": 0.5, "clipped": 0.5}, ["sound missing", "clipped sound"]),
        ({"mismatch": 0.1, "clipped": 0.02, "black": 0.8, "frozen": 0.9, "silence": 0.98}, []),
    ],
)
def test_each_rule_gives_its_reason(measured, kinds):
    window = MeasuredWindow(0, 8, **{**GOOD, **measured})
    assert [reason_kind(reason) for reason in FilterRules().find_violations(window)] == kinds


@pytest.mark.parametrize(
    ("rules", "measured", "reason"),
    [
        ({"max_mismatch": 0.05}, {"mismatch": 0.0507}, "sound missing: for 0.051 s, at most 0.05 s"),
        ({}, {"peak_db": -60.02}, "silent: peak -60.02 dB, at least -60 dB"),
        ({}, {"lufs": -65.04}, "faint: -65.04 LUFS, at least -65"),
        ({"max_silence": 0.985}, {"silence": 0.9852}, "mostly silent: 98.52% of it, at most 98.5%"),
        ({}, {"clipped": 0.02004}, "clipped sound: 2.004% of the samples, at most 2%"),
        ({}, {"clipped": 0.031}, "clipped sound: 3.1% of the samples, at most 2%"),
        ({}, {"black": 0.801}, "black picture: 80.1% of it, at most 80%"),
        ({}, {"frozen": 0.95}, "frozen picture: 95% of it, at most 90%"),
    ],
)
def test_a_reason_tells_the_value_from_its_limit(rules, measured, reason):
    window = MeasuredWindow(0, 8, **{**GOOD, **measured})
    assert FilterRules(**rules).find_violations(window) == [reason]


def test_a_rule_can_be_turned_off():
    worst = MeasuredWindow(0, 8, clipped=1.0, black=1.0, frozen=1.0, mismatch=8.0)
    assert FilterRules(None, None, None, None, None, None, None).find_violations(worst) == []


def test_the_shipped_config_states_the_defaults():
    assert compose_split_config([]) == SplitConfig()
    config = SplitConfig()
    settings = ScanSettings()
    assert (config.seconds, config.stride, config.silence_db) == (
        settings.seconds,
        settings.stride,
        settings.silence_db,
    )
    assert (config.max_gap, config.scene_tolerance) == (settings.max_gap, settings.scene_tolerance)


def test_overrides_change_the_settings():
    config = compose_split_config(["split.rules.max_frozen=null", "split.stride=8", "validation.split_ratio=0.25"])
    assert (config.rules.max_frozen, config.stride, config.val_ratio) == (None, 8.0, 0.25)
    assert config.rules.max_black == 0.8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split.rules.max_frosen=1", "did you mean 'split.rules.max_frozen'"),
        ("split.strid=8", "did you mean 'split.stride'"),
        ("split.stride=often", "often"),
        ("split.rules.max_black=1.5", "a share from 0 to 1"),
        ("split.rules.min_lufs=nan", "a number, or null"),
        ("stride", "there is no key"),
    ],
)
def test_invalid_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        compose_split_config([override])
