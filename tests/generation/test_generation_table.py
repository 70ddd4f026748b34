"""A folder is made again only where something is missing or would be different now, and a table says what of what."""

import csv
import json
import shutil

import pytest
from mini_adapters import write_tiny_adapter
from random_model import MODEL, write_noise_video

from mmaudio.data.clip_table import read_left_out
from mmaudio.generation.__main__ import main
from mmaudio.generation.generate import GenerationRequest
from mmaudio.generation.generation_flags import build_parser
from mmaudio.generation.generation_table import GenerationTable
from mmaudio.generation.jobs import describe_job, plan_job
from mmaudio.generation.run_settings import open_table
from mmaudio.media.audio import read_audio
from mmaudio.metrics.loudness import loudness
from mmaudio.model.spec import model_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    write_noise_video(path / "a.mp4", 0, 1.2)
    write_noise_video(path / "b.mp4", 1, 1.2)
    (path / "b.txt").write_text("a cat")
    return path


@pytest.fixture
def run(base, folder, tmp_path, capsys):
    """run(*flags): the command for the folder, and the lines that it prints."""

    def run(*flags, status=0):
        arguments = ["--model", MODEL, "--weights", base, "--device", "cpu", "--folder", folder, "--steps", "1"]
        arguments += ["--output", tmp_path / "out", "--conditions", tmp_path / "kept", *flags]
        assert main([str(argument) for argument in arguments]) == status
        return capsys.readouterr().out.splitlines()

    return run


def read_table(tmp_path):
    with (tmp_path / "out" / "generation.tsv").open(encoding="utf-8", newline="") as file:
        return {row["output"]: row for row in csv.DictReader(file, delimiter="\t")}


@pytest.mark.slow
def test_a_second_run_makes_what_changed_and_says_so(run, folder, tmp_path):
    assert run("--prompt", "a dog")[-1] == "found 2 files = 2 made + 0 already there + 0 left out"
    rows = read_table(tmp_path)
    assert list(rows) == ["a.flac", "a.mp4", "b.flac", "b.mp4"]
    row = rows["b.mp4"]
    assert (row["video"], row["prompt"], row["seed"], row["adapter"], row["strength"]) == (
        "b.mp4",
        "a cat",
        "0",
        "",
        "",
    )
    settings = json.loads(row["settings"])
    assert (
        settings["model"] == MODEL
        and settings["steps"] == 1
        and settings["guidance"] == model_spec(MODEL).guidance_scale
    )
    assert run("--prompt", "a dog") == ["found 2 files = 0 made + 2 already there + 0 left out"]
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("b.*")}

    printed = run("--prompt", "two dogs")
    assert printed[0] == "made anew, changed: a.mp4: prompt" and printed[-1].startswith("found 2 files = 1 made + 1")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("b.*")} == times
    assert read_table(tmp_path)["a.flac"]["prompt"] == "two dogs"

    (tmp_path / "out" / "b.flac").unlink()
    printed = run("--prompt", "two dogs")
    assert len(printed) == 3 and printed[-1].startswith("found 2 files = 1 made + 1 already there + 0 left out")

    write_noise_video(folder / "a.mp4", 2, 1.2)
    printed = run("--prompt", "two dogs", "--loudness", "-30")
    assert printed[:2] == ["made anew, changed: a.mp4: loudness, video", "made anew, changed: b.mp4: loudness"]
    waveform, rate = read_audio(tmp_path / "out" / "b.mp4")
    assert float(loudness(waveform[None], rate)[0]) == pytest.approx(-30, abs=1)  # of AAC


@pytest.mark.slow
def test_a_file_that_was_edited_is_not_replaced_unasked(run, tmp_path):
    run("--prompt", "a dog")
    edited = tmp_path / "out" / "a.flac"
    content = edited.read_bytes()
    edited.write_bytes(content + b"edited")
    assert run("--prompt", "a dog")[-1].endswith("2 already there + 0 left out"), "nothing would be replaced"
    printed = run("--prompt", "two dogs", status=1)
    assert "a.flac was edited since it was generated; --overwrite replaces it" in printed[0]
    assert edited.read_bytes() == content + b"edited"
    assert [row.video for row in read_left_out(tmp_path / "out" / "generation.left_out.tsv")] == ["a.mp4"]
    run("--prompt", "two dogs", "--overwrite")
    assert edited.read_bytes() != content + b"edited"


@pytest.mark.slow
def test_another_base_under_the_same_name_makes_the_folder_anew(run, base, tmp_path):
    run("--prompt", "a dog")
    weights = base / "network.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert run("--prompt", "a dog")[0] == "made anew, changed: a.mp4: base model"
    finally:
        weights.write_bytes(content)


@pytest.mark.slow
def test_files_of_an_older_version_stay(run, tmp_path):
    run("--prompt", "a dog")
    (tmp_path / "out" / "generation.tsv").write_text("somebody else's")
    assert run("--prompt", "two dogs")[-1] == "found 2 files = 0 made + 2 already there + 0 left out"
    assert (tmp_path / "out" / "generation.tsv").read_text() == "somebody else's"


def test_a_control_character_in_a_prompt_keeps_its_row(tmp_path):
    job = plan_job(GenerationRequest(None, 'a "dog"\tbarks\nloudly, = 1', seed=3), tmp_path, 2)
    for path in job.outputs.paths:
        path.write_bytes(b"audio")
    GenerationTable(tmp_path, lambda job: describe_job(job, {"strength": 0.5})).record(job, [3, 4])
    same = GenerationTable(tmp_path, lambda job: describe_job(job, {"strength": 0.5}))
    assert same.find_changes(job) == "" and list(same.rows) == ["sound_seed3.flac", "sound_seed4.flac"]
    other = GenerationTable(tmp_path, lambda job: describe_job(job, {"strength": 0.7, "loudness": -23}))
    assert other.find_changes(job) == "strength, loudness"


def test_an_adapter_its_strength_and_the_seed_are_told_apart(base, folder, tmp_path):
    write_tiny_adapter(tmp_path)
    adapter = next(tmp_path.glob("*.pt"))

    def table_and_job(*flags):
        arguments = ["--folder", folder, "--output", tmp_path / "out", "--weights", tmp_path, "--model", MODEL, *flags]
        args = build_parser().parse_args([str(argument) for argument in arguments])
        request = GenerationRequest(folder / "a.mp4", "rain", seed=args.seed)
        return open_table(args), plan_job(request, args.output, 1)

    flags = ["--adapter", adapter, "--strength", "0.5"]
    table, job = table_and_job(*flags)
    for path in job.outputs.paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"audio")
    table.record(job, [0])
    row = read_table(tmp_path)["a.flac"]
    assert (row["adapter"], row["strength"]) == (adapter.name, "0.5")

    def find_changes(*flags):
        table, job = table_and_job(*flags)
        return table.find_changes(job)

    assert find_changes(*flags) == ""
    assert find_changes(*flags[:3], "joint=1,fused=0.5") == "strength"
    assert find_changes(*flags, "--seed", "4") == "seed"
    assert find_changes() == "adapter, strength"
    assert find_changes(*flags, "--num_steps", "7", "--keep_original", "-12") == "keep_original, steps"
    shutil.copy(adapter, tmp_path / "renamed.pt")
    assert find_changes("--adapter", tmp_path / "renamed.pt", *flags[2:]) == "adapter"
