"""`python -m mmaudio.generation`: what it writes, says and refuses, for a video, a folder and a prompt."""

import shutil
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from random_model import MODEL, write_noise_video, write_random_weights
from video_files import read_audio, read_comment, write_encoded_video

from mmaudio import cli
from mmaudio.data.clip_table import read_left_out
from mmaudio.errors import ConfigError, DataError, MMAudioError
from mmaudio.generation import job_generator as command
from mmaudio.generation.__main__ import main
from mmaudio.generation.generate import GenerationRequest
from mmaudio.generation.jobs import plan_folder
from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora, expand_targets
from mmaudio.lora.checkpoint import AdapterFile, read_adapter, write_adapter
from mmaudio.model.networks import build_network


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_random_weights(folder)
    write_noise_video(folder / "clip.mp4", 0, 1.5)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    adapted = add_lora(build_network(MODEL), LoRAConfig(rank=2), torch.Generator().manual_seed(0))
    for name, parameter in adapted.named_parameters():
        parameter.data += 0.1 * ("lora_B" in name)
    targets = expand_targets(build_network(MODEL), LoRAConfig().target_modules)
    path = tmp_path_factory.mktemp("adapter") / "x.pt"
    write_adapter(path, AdapterFile(LoRAConfig(rank=2), adapter_state(adapted), MODEL, "", targets))
    return path


def run_command(base, output, *flags):
    """The command's exit status, or its error."""
    arguments = ["--model", MODEL, "--weights", str(base), "--steps", "2", "--device", "cpu", "--output", str(output)]
    return main([*arguments, *map(str, flags)])


def read_duration(path, kind):
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return float(stream.duration * stream.time_base)


@pytest.mark.slow
def test_a_video_gets_audio(base, tmp_path, capsys):
    video = base / "clip.mp4"
    assert run_command(base, tmp_path / "out", "--video", video, "--prompt", "a ball", "--negative-prompt", "hum") == 0
    sound, film = tmp_path / "out" / "clip.flac", tmp_path / "out" / "clip.mp4"
    assert capsys.readouterr().out.split() == [str(sound), str(film)]
    assert read_duration(sound, "audio") == pytest.approx(1.5, abs=0.04)
    assert read_duration(film, "video") == pytest.approx(1.5, abs=0.04)
    assert read_duration(film, "audio") == pytest.approx(1.5, abs=0.1)
    with av.open(str(video)) as a, av.open(str(film)) as b:
        packets = [[bytes(packet) for packet in source.demux(video=0) if packet.size] for source in (a, b)]
    assert packets[0] == packets[1]
    tags = read_comment(sound)
    assert tags == read_comment(film)
    assert tags["prompt"] == "a ball" and tags["negative_prompt"] == "hum" and tags["seed"] == 0 and tags["steps"] == 2


@pytest.mark.slow
def test_audio_depends_on_seed_prompt_video_and_solver_only(base, tmp_path):
    video = ["--video", base / "clip.mp4"]
    takes = {
        "plain": [*video],
        "again": [*video],
        "seed": [*video, "--seed", "1"],
        "prompt": [*video, "--prompt", "a dog barks"],
        "text": ["--prompt", "a dog barks", "--seconds", "1.48"],
        "midpoint": [*video, "--solver", "midpoint"],
        "guidance": [*video, "--guidance", "1"],
    }
    for name, flags in takes.items():
        assert run_command(base, tmp_path / f"{name}.flac", *flags) == 0
    files = {name: (tmp_path / f"{name}.flac").read_bytes() for name in takes}
    assert files["plain"] == files["again"]
    assert len({read_audio(tmp_path / f"{name}.flac").tobytes() for name in takes}) == len(takes) - 1


@pytest.mark.slow
def test_samples_are_named_by_their_seeds(base, tmp_path, capsys):
    text = ["--prompt", "a dog barks", "--seconds", "1"]
    assert run_command(base, tmp_path / "a", *text, "--samples", "3", "--seed", "4") == 0
    names = ["sound_seed4.flac", "sound_seed5.flac", "sound_seed6.flac"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    assert run_command(base, tmp_path / "b.flac", *text, "--seed", "5") == 0
    assert read_comment(tmp_path / "b.flac") == read_comment(tmp_path / "a" / names[1])
    assert run_command(base, tmp_path / "c.wav", *text, "--samples", "2") == 0
    assert sorted(path.name for path in tmp_path.glob("c*")) == ["c_seed0.wav", "c_seed1.wav"]
    capsys.readouterr()
    assert run_command(base, tmp_path / "d", "--video", base / "clip.mp4", "--samples", "2") == 0
    assert [line.rsplit("/", 1)[1] for line in capsys.readouterr().out.split()] == [
        "clip_seed0.flac",
        "clip_seed0.mp4",
        "clip_seed1.flac",
        "clip_seed1.mp4",
    ]


@pytest.mark.slow
def test_an_adapter_acts_with_its_strength(base, adapter, tmp_path):
    text = ["--prompt", "a dog barks", "--seconds", "1"]
    assert run_command(base, tmp_path / "base.flac", *text) == 0
    for strength in ("0", "0.5", "1.5"):
        flags = ["--adapter", adapter, "--strength", strength]
        assert run_command(base, tmp_path / f"{strength}.flac", *text, *flags) == 0
    assert run_command(base, tmp_path / "full.flac", *text, "--adapter", adapter) == 0
    assert (tmp_path / "base.flac").read_bytes() == (tmp_path / "0.flac").read_bytes()
    assert len({read_audio(tmp_path / f"{name}.flac").tobytes() for name in ("0", "0.5", "1.5", "full")}) == 4
    assert read_comment(tmp_path / "0.5.flac")["strength"] == 0.5


@pytest.mark.slow
def test_several_adapters_add_up_in_any_order_and_parts_have_their_strength(base, adapter, tmp_path):
    other, text = tmp_path / "y.pt", ["--prompt", "a dog barks", "--seconds", "1"]
    adapter_file = read_adapter(adapter)
    write_adapter(other, replace(adapter_file, state={key: -value for key, value in adapter_file.state.items()}))
    pairs = {"a": ["--adapter", adapter, "--strength", "0.5"], "b": ["--adapter", other, "--strength", "joint=0"]}
    takes = {"ab": [*pairs["a"], *pairs["b"]], "ba": [*pairs["b"], *pairs["a"]], "a": pairs["a"], "b": pairs["b"]}
    for name, flags in takes.items():
        assert run_command(base, tmp_path / f"{name}.flac", *text, *flags) == 0
    audio = {name: read_audio(tmp_path / f"{name}.flac").tobytes() for name in takes}
    assert audio["ab"] == audio["ba"] and len(set(audio.values())) == 3
    strengths = [("x.pt", 0.5), ("y.pt", "joint=0,fused=1,rest=1")]
    assert read_comment(tmp_path / "ab.flac")["adapters"] == [{"adapter": n, "strength": s} for n, s in strengths]
    write_adapter(other, replace(adapter_file, base_model="small_16k"))
    with pytest.raises(MMAudioError, match=r"y\.pt: it was trained on small_16k, and .*x\.pt on tiny_16k"):
        run_command(tmp_path / "no_weights", tmp_path / "c.flac", *text, *takes["ab"])


@pytest.mark.slow
def test_the_caption_beside_a_video_is_its_prompt(base, tmp_path, capsys):
    write_noise_video(tmp_path / "dog.mp4", 0, 1.5)
    (tmp_path / "dog.txt").write_text("a dog\nbarks\n")
    for name, flags in {"caption": [], "prompt": ["--prompt", "rain"], "none": ["--prompt", ""]}.items():
        assert run_command(base, tmp_path / f"{name}.flac", "--video", tmp_path / "dog.mp4", *flags) == 0
    prompts = [read_comment(tmp_path / f"{name}.flac")["prompt"] for name in ("caption", "prompt", "none")]
    assert prompts == ["a dog barks", "rain", ""]
    assert 'note: the prompt beside dog.mp4: "a dog barks"' in capsys.readouterr().err


def make_folder(folder):
    """Videos good and bad, with and without a caption, and what is no video."""
    folder.mkdir()
    write_noise_video(folder / "a.mp4", 0, 1.5)
    write_encoded_video(folder / "a.webm", "webm", "libvpx")
    write_noise_video(folder / "b.mp4", 0, 1.2)
    (folder / "b.txt").write_text("a cat")
    (folder / "broken.mp4").write_bytes(b"no video at all")
    write_noise_video(folder / "short.mp4", 1, 0.5)
    (folder / "notes.pdf").write_bytes(b"notes")
    return folder


@pytest.mark.slow
def test_a_folder_loads_its_encoders_once(base, tmp_path, capsys, monkeypatch):
    folder, out, loads = make_folder(tmp_path / "in"), tmp_path / "out", []
    for name in ("load_sampler", "load_encoders"):
        real = getattr(command, name)
        monkeypatch.setattr(command, name, lambda *a, real=real, **k: loads.append(real.__name__) or real(*a, **k))
    assert run_command(base, out, "--folder", folder, "--prompt", "a dog") == 1
    printed = capsys.readouterr().out
    assert loads == ["load_sampler", "load_encoders"]
    names = ["a.mp4.flac", "a.mp4.mp4", "a.webm.flac", "a.webm.webm", "b.flac", "b.mp4"]
    names += ["generation.left_out.tsv", "generation.tsv"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert "left out: broken.mp4: no video\n" in printed
    assert "left out: short.mp4: 0.48 s of picture from 0 s on; generation takes at least 1 s\n" in printed
    assert "left out: notes.pdf: no video file (.pdf)\n" in printed
    assert printed.endswith("found 6 files = 3 made + 0 already there + 3 left out\n")
    assert read_comment(out / "b.flac")["prompt"] == "a cat" and read_comment(out / "a.webm.webm")["prompt"] == "a dog"


def test_videos_of_one_stem_get_separate_files(tmp_path):
    write_noise_video(tmp_path / "in" / "a.mp4", 0, 1)
    for name in ("a.mov", "a.mp4.m4v", "a.mp4.m4v.mov", "B.mp4", "c.d.mp4"):
        shutil.copy(tmp_path / "in" / "a.mp4", tmp_path / "in" / name)
    plan = plan_folder(tmp_path / "in", GenerationRequest(tmp_path, "rain"), tmp_path / "out", 1, overwrite=False)
    files = [file.name.lower() for job in plan.jobs for file in job.outputs.paths]
    assert len(plan.jobs) == 6 and len(set(files)) == len(files)
    assert {"b.flac", "c.d.flac", "a.mp4.flac", "a.mov.flac"} <= set(files)


@pytest.mark.slow
def test_a_folder_continues_where_it_stopped(base, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b", "c"):
        write_noise_video(folder / f"{name}.mp4", 0, 1.2)
    arguments = [base, out, "--folder", folder, "--prompt", "a dog"]
    assert run_command(*arguments) == 0
    assert capsys.readouterr().out.endswith("found 3 files = 3 made + 0 already there + 0 left out\n")
    mtimes = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    for name in ("b.flac", "b.mp4", "c.mp4"):
        (out / name).unlink()
    assert run_command(*arguments) == 0
    assert capsys.readouterr().out.endswith("found 3 files = 2 made + 1 already there + 0 left out\n")
    assert all((out / name).stat().st_mtime_ns == mtimes[name] for name in ("a.flac", "a.mp4"))
    (out / "c.mp4").unlink()
    (out / "generation.tsv").unlink()
    assert run_command(*arguments) == 1
    printed = capsys.readouterr().out
    assert "left out: c.mp4: " in printed and "c.flac is there already, others are not; take --overwrite" in printed
    assert printed.endswith("found 3 files = 0 made + 2 already there + 1 left out\n")
    assert run_command(*arguments, "--overwrite") == 0
    assert capsys.readouterr().out.endswith("found 3 files = 3 made + 0 already there + 0 left out\n")
    assert (out / "a.flac").stat().st_mtime_ns != mtimes["a.flac"]
    assert run_command(*arguments) == 0
    assert capsys.readouterr().out == "found 3 files = 0 made + 3 already there + 0 left out\n"


@pytest.mark.slow
def test_a_video_that_was_named_before_is_no_new_failure(base, tmp_path, capsys, monkeypatch):
    folder, out = make_folder(tmp_path / "in"), tmp_path / "out"
    arguments = [base, out, "--folder", folder, "--prompt", "a dog"]
    assert run_command(*arguments) == 1
    rows = {row.video: row.reason for row in read_left_out(out / "generation.left_out.tsv")}
    assert rows.keys() == {"broken.mp4", "short.mp4", "notes.pdf"} and rows["broken.mp4"] == "no video"
    assert run_command(*arguments) == 0
    assert "left out: broken.mp4: no video\n" in capsys.readouterr().out, "it is named again"
    write_noise_video(folder / "new.mp4", 0, 1.2)
    assert run_command(*arguments) == 0
    (folder / "new_broken.mp4").write_bytes(b"no video either")
    assert [run_command(*arguments) for _ in range(2)] == [1, 0]
    for name in ("b.flac", "generation.tsv"):
        (out / name).unlink()
    assert [run_command(*arguments) for _ in range(2)] == [1, 0]
    for name in ("broken.mp4", "new_broken.mp4", "short.mp4", "notes.pdf"):
        (folder / name).unlink()
    assert run_command(*arguments, "--overwrite") == 0
    assert read_left_out(out / "generation.left_out.tsv") == []


@pytest.mark.slow
def test_a_job_that_fails_again_is_no_new_failure(base, tmp_path, monkeypatch):
    folder, out, real = make_folder(tmp_path / "in"), tmp_path / "out", command.generate_samples

    def fail_once_started(sampler, encoders, request, *others):
        if request.video.name == "b.mp4":
            raise DataError("b.mp4: its frames cannot be decoded")
        return real(sampler, encoders, request, *others)

    monkeypatch.setattr(command, "generate_samples", fail_once_started)
    arguments = [base, out, "--folder", folder, "--prompt", "a dog"]
    assert [run_command(*arguments) for _ in range(2)] == [1, 0]


@pytest.mark.slow
def test_existing_files_are_not_overwritten_by_default(base, tmp_path):
    video, out = base / "clip.mp4", tmp_path / "out"
    out.mkdir()
    (out / "clip.mp4").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"clip\.mp4: is there already; --overwrite replaces it"):
        run_command(base, out, "--video", video)
    assert [path.read_bytes() for path in out.iterdir()] == [b"precious"]
    assert run_command(base, out, "--video", video, "--overwrite") == 0
    assert read_duration(out / "clip.mp4", "video") == pytest.approx(1.5, abs=0.04)
    for flags in ([], ["--overwrite"]):
        with pytest.raises(ConfigError, match="the video itself would be overwritten"):
            run_command(base, base, "--video", video, *flags)
        with pytest.raises(ConfigError, match="with --folder it is a folder, and not that of the videos"):
            run_command(base, base, "--folder", base, *flags)


@pytest.mark.slow
def test_audio_starts_at_the_given_time_and_silence_is_noted(base, tmp_path, capsys):
    write_noise_video(tmp_path / "a.mp4", 0, 3.0)
    assert run_command(base, tmp_path / "b.mp4", "--video", tmp_path / "a.mp4", "--start", "1", "--seconds", "1.5") == 0
    assert "note: a.mp4: 2.00 s of picture, audio for 1.5 s of it" in capsys.readouterr().err
    sound = read_audio(tmp_path / "b.mp4")
    assert np.abs(sound[:15_000]).max() < 1e-3 < np.abs(sound[17_000:]).max()
    assert run_command(base, tmp_path / "c.flac", "--video", tmp_path / "a.mp4", "--seconds", "10") == 0
    assert "note: a.mp4: the picture ends after 3.00 s, and the audio with it" in capsys.readouterr().err
    assert read_duration(tmp_path / "c.flac", "audio") == pytest.approx(3.0, abs=0.04)


@pytest.mark.slow
def test_a_file_of_another_kind_is_an_error(base, tmp_path, capsys):
    write_encoded_video(tmp_path / "a.avi", "avi", "mpeg4")
    assert run_command(base, tmp_path / "out", "--video", tmp_path / "a.avi") == 0
    assert "note: a.avi: its picture is copied into .mp4, as a .avi is not written" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.mp4").exists()


@pytest.mark.slow
def test_one_pass_beyond_the_duration_of_training_is_warned_of(base, tmp_path, capsys):
    assert run_command(base, tmp_path / "a.flac", "--prompt", "rain", "--seconds", "8.5", "--one-pass") == 0
    assert "warning: 8.5 s in one pass: models are trained on 8 s" in capsys.readouterr().err
    assert read_duration(tmp_path / "a.flac", "audio") == pytest.approx(8.5, abs=0.04)


@pytest.mark.slow
def test_a_whole_video_gets_audio_that_follows_prompts_over_time(base, tmp_path, capsys):
    write_noise_video(tmp_path / "long.mp4", 0, 10)
    (tmp_path / "prompts.tsv").write_text("from\tto\tprompt\n0\t4\train\n4\t\ta dog\n")
    video = ["--video", tmp_path / "long.mp4"]
    assert run_command(base, tmp_path / "out", *video, "--prompts", tmp_path / "prompts.tsv") == 0
    captured = capsys.readouterr()
    assert not captured.err and "warning" not in captured.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["long.flac", "long.mp4"]
    assert read_duration(tmp_path / "out" / "long.flac", "audio") == pytest.approx(10, abs=0.04)
    assert read_comment(tmp_path / "out" / "long.mp4")["prompts"] == [[0, 4, "rain"], [4, None, "a dog"]]
    assert run_command(base, tmp_path / "one.flac", *video, "--prompt", "rain") == 0
    assert not np.array_equal(read_audio(tmp_path / "one.flac"), read_audio(tmp_path / "out" / "long.flac"))


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ([], ConfigError, "neither a video nor a prompt"),
        (["--video", "VIDEO", "--start", "1.2"], DataError, "at least 1 s"),
        (["--video", "VIDEO", "--output", "sound.mp3"], ConfigError, "ends in .flac, .wav, .mp4"),
        (["--video", "VIDEO", "--output", "sound.webm"], ConfigError, "does not take the picture of clip.mp4"),
        (["--prompt", "rain", "--output", "sound.mp4"], ConfigError, "no --video"),
        (["--prompt", "rain", "--model", "tiny_17k"], ConfigError, "did you mean 'tiny_16k'"),
        (["--prompt", "rain", "--steps", "0"], ConfigError, "steps=0"),
        (["--prompt", "rain", "--seconds", "0.5"], ConfigError, "1 to 3600 s"),
        (["--prompt", "rain", "--seconds", "31", "--one-pass"], ConfigError, "1 to 30 s in one pass"),
        (["--prompt", "rain", "--prompts", "p.tsv"], ConfigError, "in place of --prompt"),
        (["--prompts", "p.tsv"], DataError, "p.tsv: cannot be read"),
        (["--prompt", "rain", "--samples", "0"], ConfigError, "--samples 0"),
        (["--prompt", "rain", "--samples", "1000001"], ConfigError, "--samples 1000001: at most 1000000"),
        (["--prompt", "rain", "--strength", "1"], ConfigError, "no --adapter"),
        (["--prompt", "rain", "--adapter", "ADAPTER", "--adapter", "ADAPTER"], ConfigError, "named twice"),
        (["--prompt", "rain", "--adapter", "ADAPTER", "--strength", "1.6"], ConfigError, "--strength 1.6: from 0"),
        (["--prompt", "rain", "--adapter", "ADAPTER", "--strength", "-0.1"], ConfigError, "--strength -0.1: from 0"),
        (["--prompt", "rain", "--adapter", "ADAPTER", "--model", "small_16k"], MMAudioError, "tiny_16k"),
        (["--folder", "nowhere"], DataError, "nowhere: not there"),
        (["--folder", "BASE", "--output", "sound.flac"], ConfigError, "with --folder it is a folder"),
    ],
)
def test_invalid_requests_are_refused(base, adapter, tmp_path, flags, error, words):
    names = {"VIDEO": base / "clip.mp4", "ADAPTER": adapter, "BASE": base}
    with pytest.raises(error, match=words):
        run_command(base, tmp_path, *[names.get(word, word) for word in flags])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--video", "a.mp4", "--folder", "b"], 2, "not allowed with argument"),
        (["--prompt", "rain", "--solver", "rk4"], 2, "invalid choice: 'rk4'"),
        (["--prompt", "rain", "--seconds", "9999"], 2, "1 to 3600 s"),
        (["--video", "nowhere.mp4"], 1, "nowhere.mp4: not there"),
    ],
)
def test_an_error_is_one_line_with_its_exit_status(capsys, monkeypatch, tmp_path, arguments, status, words):
    monkeypatch.setattr("sys.argv", ["generation", *arguments, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit_info:
        cli.run(main)
    printed = capsys.readouterr().err
    assert exit_info.value.code == status
    assert words in printed and printed.startswith("error: ") and printed.count("\n") == 1


def test_a_folder_without_usable_videos_fails(base, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="none of its 1 files can be used"):
        run_command(base, tmp_path / "out", "--folder", tmp_path / "in")
    assert "left out: a.mp4: no video" in capsys.readouterr().out
