"""What the pipeline hands on to splitting, and what to training."""

from __future__ import annotations

import sys

import pytest

from mmaudio.data.clip_table import write_clips
from mmaudio.data.clips import Clip
from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora
from mmaudio.lora.checkpoint import AdapterFile, write_adapter
from mmaudio.lora.peft_layers import lora_layers
from mmaudio.model.networks import build_network
from mmaudio.pipeline.flags import build_job, build_parser
from mmaudio.pipeline.job import stage_commands, training_overrides
from mmaudio.pipeline.preflight import check_disk, check_settings
from mmaudio.pipeline.run import reset_stages


def job(tmp_path, flags=(), overrides=()):
    return build_job(build_parser().parse_args([str(tmp_path), "--model", "tiny_16k", *flags]), list(overrides))


def test_flags_and_settings_go_to_splitting(tmp_path):
    words = tmp_path / "words.tsv"
    words.write_text("video\tcaption\na.mp4\ta bell\n")
    flags = (
        "--recursive",
        "--captions",
        str(words),
        "--audio-track",
        "1",
        "--scenes",
        "--flags",
        "--keep-all",
        "--report",
        "--timeout-per-video",
        "60.0",
        "--workers",
        "3",
    )
    recursive_job = job(tmp_path, flags, ["split.stride=8", "max_steps=5", "validation.split_ratio=0.2"])
    split = stage_commands(recursive_job)["split"]
    assert split[split.index("--recursive") :][: len(flags)] == list(flags)
    assert split[-2:] == ["split.stride=8", "validation.split_ratio=0.2"]
    training = training_overrides(recursive_job)
    assert "max_steps=5" in training and "validation.split_ratio=0.2" in training
    assert not [text for text in training if text.startswith("split.")]
    check_settings(recursive_job)


def test_default_flags_are_not_passed_to_splitting(tmp_path):
    assert job(tmp_path).split_arguments == ()


def test_a_zero_that_is_no_default_is_passed_to_splitting(tmp_path):
    flags = ("--video-track", "0", "--val_ratio", "0.0")
    assert job(tmp_path, flags).split_arguments == flags


def test_a_wrong_setting_of_splitting_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'split\.stride'"):
        check_settings(job(tmp_path, overrides=["split.strid=8"]))


@pytest.mark.parametrize(
    ("flags", "overrides"),
    [
        (["--audio-track", "-1"], []),
        (["--timeout-per-video", "nan"], []),
        (["--timeout-per-video", "inf"], []),
        (["--workers", "0"], []),
        ([], ["split.seconds=nan"]),
        ([], ["split.stride=1e-7"]),
        ([], ["split.stride=inf"]),
        ([], ["split.val_ratio=nan"]),
    ],
)
def test_a_number_that_splitting_would_refuse_is_refused_before_any_work(tmp_path, flags, overrides):
    with pytest.raises(ConfigError):
        check_settings(job(tmp_path, flags, overrides))


def test_results_below_a_file_are_refused_with_the_plan(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes is a file; --output takes a folder"):
        check_disk(tmp_path / "notes" / "results", 1)


@pytest.mark.parametrize(("flag", "module"), [("--scenes", "shots"), ("--flags", "speech")])
def test_an_absent_extra_is_reported_before_any_work(tmp_path, monkeypatch, flag, module):
    monkeypatch.setattr(f"mmaudio.data.{module}.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"{flag} needs"):
        check_settings(job(tmp_path, [flag]))


def test_an_unusable_table_of_captions_is_reported_before_any_work(tmp_path):
    with pytest.raises(DataError, match=r"words\.tsv"):
        check_settings(job(tmp_path, ["--captions", str(tmp_path / "words.tsv")]))


def test_the_videos_and_the_precision_are_passed_on(tmp_path):
    recursive_job = job(tmp_path, ["--precision", "bf16"])
    assert f"video_root={tmp_path}" in training_overrides(recursive_job)
    extract = stage_commands(recursive_job)["extract"]
    assert extract[extract.index("--precision") + 1] == "bf16"
    assert "--precision" not in stage_commands(job(tmp_path))["extract"]


def test_from_split_removes_the_data_but_no_edited_table(tmp_path):
    reset_job = job(tmp_path, ["--output", str(tmp_path), "--from", "split"])
    folder, clip = reset_job.clips.parent, Clip("a_0", "a.mp4", 0.0, 8.0, "a bell", "train", -3.0, -20.0, 0.0)
    write_clips(reset_job.clips, [clip])
    for name in ("clips.scans.jsonl", "clips.splits.json", "clips.edited-1.tsv"):
        (folder / name).write_text("")
    reset_job.clips.write_text(reset_job.clips.read_text().replace("bell", "drum"))
    reset_stages(reset_job)
    assert {path.name for path in folder.iterdir()} == {"clips.tsv", "clips.checksums.json", "clips.edited-1.tsv"}
    write_clips(reset_job.clips, [clip])  # as splitting does: the edited one is kept
    reset_stages(reset_job)
    assert {path.name for path in folder.iterdir()} == {"clips.edited-1.tsv", "clips.edited-2.tsv"}


def test_permission_for_videos_outside_of_the_folder_is_passed_on(tmp_path):
    commands = stage_commands(job(tmp_path, ["--allow-outside"]))
    assert [stage for stage, command in commands.items() if "--allow-outside" in command] == ["extract", "evaluate"]
    assert not any("--allow-outside" in command for command in stage_commands(job(tmp_path)).values())


@pytest.mark.slow
def test_an_adapter_to_train_on_from_is_checked_before_any_work(tmp_path):
    first, lora = tmp_path / "out" / "output" / "x" / "best_lora.pt", LoRAConfig(rank=48)
    model = add_lora(build_network("tiny_16k"), lora)
    write_adapter(first, AdapterFile(lora, adapter_state(model), "tiny_16k", "", targets=list(lora_layers(model))))
    flags = ["--output", str(tmp_path / "out"), "--init-from", str(first)]
    first_job = job(tmp_path, flags, ["exp_id=y", "lora.rank=48"])
    assert f"init_from={first}" in training_overrides(first_job)
    check_settings(first_job)
    with pytest.raises(ConfigError, match=r"rank is 48 .* set lora\.rank=48 or more"):
        check_settings(job(tmp_path, flags, ["exp_id=y", "lora.rank=16"]))
    with pytest.raises(ConfigError, match=r"--from train renames .* -- exp_id=NAME"):
        check_settings(job(tmp_path, [*flags, "--from", "train"], ["exp_id=x", "lora.rank=48"]))
    with pytest.raises(WeightsError, match=r"made for tiny_16k, not for small_16k"):
        check_settings(job(tmp_path, [*flags, "--model", "small_16k"], ["lora.rank=48"]))
    with pytest.raises(WeightsError, match=r"none\.pt"):
        check_settings(job(tmp_path, ["--init-from", str(tmp_path / "none.pt")]))


def test_the_trackers_of_training_are_those_of_the_evaluation(tmp_path, monkeypatch):
    overrides = ["logging.trackers=[tensorboard, trackio]", "logging.project=dogs"]
    command = stage_commands(job(tmp_path, overrides=overrides))["evaluate"]
    assert command[command.index("--trackers") :][:4] == ["--trackers", "tensorboard,trackio", "--project", "dogs"]
    assert "--trackers" not in stage_commands(job(tmp_path))["evaluate"]
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match="trackio is not installed"):
        check_settings(job(tmp_path, overrides=overrides))
