"""A folder of videos that changed since training began is told with the plan, before any work."""

import shutil
from dataclasses import replace

import pytest
from helpers import mini
from mini_training import write_shards

from mmaudio.data.clip_table import left_out_path, write_left_out
from mmaudio.data.clips import Clip, LeftOut
from mmaudio.data.feature_store import read_header, shard_path, write_shard
from mmaudio.data.fingerprint import fingerprint
from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora
from mmaudio.lora.checkpoint import AdapterFile, write_adapter
from mmaudio.lora.peft_layers import lora_layers
from mmaudio.pipeline import run
from mmaudio.pipeline.data_changes import find_data_changes
from mmaudio.pipeline.flags import build_job, build_parser
from mmaudio.pipeline.preflight import report_data_changes

VIDEOS = ("a.mp4", "b.mp4", "c.mp4")


@pytest.fixture
def trained_job(tmp_path):
    """A job whose training has begun with three videos, one of which is held out, and left a file out."""
    videos, output = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for name in (*VIDEOS, "notes.mp4"):
        (videos / name).write_text(name)
    arguments = [str(videos), "--model", "tiny_16k", "--output", str(output)]
    job = build_job(build_parser().parse_args(arguments), ["exp_id=x"])
    splits = dict(zip(VIDEOS, ("train", "val", "test"), strict=True))
    rows = [Clip(name[0], name, 0.0, 8.0, "", split, -3.0, -20.0, 0.1) for name, split in splits.items()]
    write_shards(job.clips.parent, rows, features=job.features)
    for name in VIDEOS:
        shard = shard_path(job.features, name)
        write_shard(shard, replace(read_header(shard), source=fingerprint(videos / name), left_out="a test"), None)
    write_left_out(left_out_path(job.clips), [LeftOut("notes.mp4", "no video")])
    data = {"train": {"videos": ["a.mp4"]}, "validation": {"videos": ["b.mp4"]}}
    folder = job.experiment / "lora_checkpoints"
    folder.mkdir(parents=True)
    lora = LoRAConfig(rank=4)
    model = add_lora(mini(), lora)
    adapter = AdapterFile(lora, adapter_state(model), "tiny_16k", "0" * 64, targets=list(lora_layers(model)), data=data)
    write_adapter(folder / "last_lora.pt", adapter)
    (folder / "state.pt").write_bytes(b"")
    return job


def test_an_unchanged_folder_and_one_without_training_say_nothing(trained_job, capsys):
    assert not report_data_changes(trained_job) and capsys.readouterr().out == ""
    (trained_job.videos / "d.mp4").write_text("new")
    (trained_job.experiment / "lora_checkpoints" / "state.pt").unlink()
    assert not report_data_changes(trained_job) and capsys.readouterr().out == ""


def test_what_changed_is_told_with_two_ways_on(trained_job, capsys):
    (trained_job.videos / "c.mp4").unlink()  # for the test alone: training goes on without it
    assert find_data_changes(trained_job) == {}
    (trained_job.videos / "b.mp4").write_text("another")
    assert not report_data_changes(trained_job), "it may be the same video still, copied"
    assert "1 changed (b.mp4)" in capsys.readouterr().out
    (trained_job.videos / "a.mp4").rename(trained_job.videos / "d.mp4")
    assert report_data_changes(trained_job)
    printed = capsys.readouterr().out
    assert "1 new (d.mp4), 1 gone (a.mp4), 1 changed (b.mp4)" in printed
    assert "Two ways on" in printed and "--from train" in printed and "-- exp_id=NAME" in printed
    best = trained_job.experiment / "lora_checkpoints" / "best_lora.pt"
    shutil.copyfile(best.with_name("last_lora.pt"), best)
    (trained_job.experiment.parent / "x-2").mkdir()
    report_data_changes(trained_job)
    printed = capsys.readouterr().out
    assert "Three ways on" in printed and f"  --init-from {best} -- exp_id=x-3\n" in printed


def test_other_captions_are_told_and_end_the_training(trained_job, capsys):
    videos = trained_job.videos
    (videos / "c.txt").write_text("a bell")  # for the test alone
    assert find_data_changes(trained_job) == {}
    (videos / "b.TXT").write_text("a bell")
    assert report_data_changes(trained_job), "training checks the captions, too"
    assert "1 with other captions (b.mp4)" in capsys.readouterr().out
    (videos / "b.TXT").unlink()
    assert find_data_changes(trained_job) == {}
    (videos / "caption.txt").write_text("a bell")
    assert find_data_changes(trained_job) == {"with other captions": ["a.mp4", "b.mp4"]}
    (videos / "caption.txt").unlink()
    assert find_data_changes(replace(trained_job, prompt="bells")) == {"with other captions": ["a.mp4", "b.mp4"]}
    table = trained_job.root / "words.tsv"
    table.write_text("video\tcaption\na.mp4\ta bell\n")
    with_table = replace(trained_job, split_arguments=("--captions", str(table)))
    assert find_data_changes(with_table) == {"with other captions": ["a.mp4"]}


@pytest.mark.slow
def test_the_plan_and_the_dry_run_tell_it_before_any_work(trained_job, capsys):
    (trained_job.videos / "d.mp4").write_text("new")
    output = trained_job.root
    arguments = [str(trained_job.videos), "--model", "tiny_16k", "--output", str(output)]
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    for flags, status in (["--dry-run"], 0), ([], 1):
        assert run.main([*arguments, *flags, "--", "exp_id=x"]) == status
        assert "1 new (d.mp4)" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert run.main([*arguments, "--dry-run", "--from", "train", "--", "exp_id=x"]) == 0
    assert "1 new" not in capsys.readouterr().out
