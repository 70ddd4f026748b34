"""Whatever stands in a field of the page, it is a valid request or one clear error."""

import pytest

from mmaudio.app import generate_tab, train_tab
from mmaudio.app.config import AppConfig
from mmaudio.app.experiment_list import export_experiment, find_experiments, merge_experiment
from mmaudio.app.folders import Folders
from mmaudio.app.markup import show_experiment
from mmaudio.errors import ConfigError, MMAudioError

GENERATE = {
    "upload": None,
    "video": "",
    "prompt": "rain",
    "negative_prompt": "",
    "adapter_1": "",
    "strength_1": 1,
    "has_base": True,
    "takes": 1,
    "rank_by": "",
    "seed": 0,
    "adapter_2": "",
    "strength_2": 1,
    "model": "tiny_16k",
    "seconds": "",
    "steps": "",
    "guidance": "",
}
TRAIN = {
    "videos": ".",
    "name": "dogs",
    "model": "tiny_16k",
    "steps": "6",
    "rank": "",
    "learning_rate": "",
    "prompt": "",
    "recursive": False,
    "keep_all": False,
    "seconds": "3",
    "val_ratio": "",
    "test_ratio": "0.3",
}
PATHS = ["..", "../x", "/etc/passwd", "a\0b", "\ud800", "x" * 5000, ["x"], {"path": "x"}, 7]


@pytest.fixture
def config(tmp_path):
    return AppConfig(Folders.create(tmp_path / "videos", tmp_path / "output"), offline=True)


def flags(config, changes):
    return generate_tab.build_request(config, GENERATE | changes).flags(config, config.folders.output / "x")


@pytest.mark.parametrize("value", PATHS, ids=lambda value: ascii(value)[:12])
def test_no_path_of_a_field_is_taken_as_it_is(config, value):
    for field in ("video", "adapter_1", "adapter_2", "upload"):
        if isinstance(value, str):
            with pytest.raises(MMAudioError):
                flags(config, {field: value})
    for field in ("videos", "name"):
        with pytest.raises(MMAudioError):
            train_tab.build_request(TRAIN | {field: value}).arguments(config)
    with pytest.raises(MMAudioError):
        train_tab.find_job(config, value)


@pytest.mark.parametrize(
    "changes",
    [
        {"takes": 99},
        {"takes": "many"},
        {"steps": "1.5"},
        {"seconds": "nan"},
        {"seed": "inf"},
        {"guidance": "1e400"},
        {"rank_by": "../x"},
        {"model": "<b>"},
        {"prompt": "x" * 5000},
        {"strength_1": "high", "adapter_1": "x"},
    ],
)
def test_a_value_out_of_range_is_one_clear_error(config, changes):
    with pytest.raises(ConfigError) as error:
        flags(config, changes)
    assert len(str(error.value)) < 300


def test_a_text_that_looks_like_a_flag_stays_a_text(config):
    assert "--prompt=--output=/etc" in flags(config, {"prompt": "--output=/etc"})
    arguments = train_tab.build_request(TRAIN | {"prompt": "--output /etc"}).arguments(config)
    assert "--prompt=--output /etc" in arguments and f"--output={config.folders.output / 'dogs'}" in arguments


def test_training_is_the_command_of_its_fields(config):
    arguments = train_tab.build_request(TRAIN).arguments(config)
    assert arguments == [
        str(config.folders.videos),
        "--model=tiny_16k",
        f"--output={config.folders.output / 'dogs'}",
        "--offline",
        "--test_ratio=0.3",
        "--yes",
        "--",
        "exp_id=dogs",
        "max_steps=6",
        "split.seconds=3.0",
        "split.stride=3.0",
    ]


@pytest.mark.slow
def test_an_experiment_is_listed_merged_and_exported_without_leaving_its_folder(config, tmp_path):
    from page_server import write_trained_adapter

    experiment = config.folders.output / "<b>stars"
    write_trained_adapter(experiment)
    (config.folders.output / "linked").symlink_to(tmp_path)
    (listed,) = find_experiments(config.folders)
    assert (listed.name, listed.model()) == ("<b>stars", "tiny_16k")
    assert "<b>" not in show_experiment(listed) and "&lt;b&gt;stars" in show_experiment(listed)
    assert export_experiment(config.folders, "<b>stars").parent == experiment / "lora_checkpoints"
    path, comfyui = merge_experiment(config, "<b>stars", "0.5", "fp16")
    assert path.parent == experiment / "merged" and path.is_file() and "ComfyUI" in comfyui
    for strength, dtype in (("../../x", "fp16"), ("1", "../x"), ("2", "fp16")):
        with pytest.raises(ConfigError):
            merge_experiment(config, "<b>stars", strength, dtype)
