"""`mmaudio-lora push`: what is written and pushed, what is not, and a line for every refusal of the hub."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import TOKEN, Repository, serve_hub, use_hub
from mini_adapters import zero_adapter_state

from mmaudio.commands.push_adapter import check_repository, main
from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.lora.checkpoint import AdapterFile, read_adapter, write_adapter
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.hub_adapter import fetch_adapter
from mmaudio.media.audio import read_audio
from mmaudio.media.audio_file import read_audio_file, write_audio
from mmaudio.media.mux import write_video
from mmaudio.media.video import probe
from mmaudio.metrics.registry import PRIMARY
from mmaudio.metrics.statistics import compare
from mmaudio.weights.store import file_sha256

VIDEOS = ("aunt may.mp4", "secret.mp4", "birthday.mp4")
TARGETS = ["fused_blocks.0.attn.qkv"]
REPOSITORY = "anna/dogs"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An experiment with an adapter of small_16k, an evaluation, and the report's media of four clips."""
    folder = tmp_path_factory.mktemp("output") / "exp"
    lora = LoRAConfig(rank=1, alpha=2.0, dropout=0.0, target_modules=TARGETS)
    data = {"seconds": 8.0, "train": {"clips": 30, "videos": ["garden.mp4", "birthday.mp4"], "ids": ["garden_0"]}}
    adapter = AdapterFile(
        lora, zero_adapter_state("small_44k", TARGETS), "small_44k", "ab" * 32, TARGETS, 700, {}, data
    )
    path = folder / "lora_checkpoints" / "best_lora.pt"
    path.parent.mkdir(parents=True)
    write_adapter(path, adapter)
    clips = [(VIDEOS[0], 0), (VIDEOS[0], 8), (VIDEOS[1], 0), (VIDEOS[2], 0)]
    lines = ["set\tid\tvideo\tstart", *(f"held-out\t{video[:-4]}_{start}\t{video}\t{start}" for video, start in clips)]
    (folder / "metrics.tsv").write_text("\n".join(lines) + "\n")
    write_metrics(folder)
    media = folder / "report" / "media"
    for number in range(4):
        for offset, sound in enumerate(("base", "adapted")):
            write_audio(
                media / f"{number + 1:03d}_{sound}.flac", torch.full((16000,), 0.1 * number + 0.01 * offset), 16000
            )
    return folder


def write_metrics(folder, **changes):
    values = {PRIMARY: compare((1.0, 1.1, 0.9), (0.5, 0.61, 0.4), VIDEOS, "lower")}
    values["near_silent"] = compare((0.0, 0.1, 0.0), (0.0, 0.0, 0.1), VIDEOS, "lower")
    worse = {PRIMARY: asdict(compare((1.0, 1.1, 0.9), (1.5, 1.61, 1.4), VIDEOS, "lower"))}
    metrics = {
        "clips": 4,
        "videos": 3,
        "metrics": {name: asdict(value) for name, value in values.items()},
        "forgetting": worse,
        "recommended_strength": 0.75,
        "recommendation": "About as close as the best.",
        "adapter_sha256": [file_sha256(folder / "lora_checkpoints" / "best_lora.pt")],
        "adapters": [{"adapter": "best_lora.pt", "strength": 1.0}],
    }
    (folder / "metrics.json").write_text(json.dumps(metrics | changes))


@pytest.fixture
def experiment(original, tmp_path):
    shutil.copytree(original, tmp_path / "exp")
    return tmp_path / "exp"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve_hub() as site:
        use_hub(site, tmp_path / "home", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield site


def push(experiment, *flags):
    assert main([REPOSITORY, str(experiment), *flags]) == 0


def card_of(experiment):
    """Front matter and text of the card."""
    _, front, text = (experiment / "hub" / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_can_be_read_before_anything_is_pushed(experiment, hub, capsys):
    push(experiment, "--card_only")
    assert hub.requests == [] and "nothing was pushed" in capsys.readouterr().out
    front, text = card_of(experiment)
    assert front == {
        "license": "cc-by-nc-4.0",
        "library_name": "peft",
        "base_model": "hkchengrex/MMAudio",
        "base_model_relation": "adapter",
        "pipeline_tag": "text-to-audio",
        "tags": ["mmaudio", "lora", "video-to-audio", "small_44k"],
    }
    assert "30 clips of 8 s from 2 videos, 700 steps." in text and "4 clips of 3 held-out videos" in text
    assert "**Better: the adapter brings held-out clips closer to their originals**" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 and "| 1.000 | 0.503 | −0.497 | −0.511 to −0.482 | better | lower |" in rows[1]
    assert "**What it forgot:** Worse on other audio." in text and "Recommended strength:** 0.75. About" in text
    assert "--adapter anna/dogs --strength 0.75 --output" in text and '[("anna/dogs", 0.75)]' in text
    assert "put `dogs.safetensors` into `models/loras`" in text and "Samples" not in text and "&" not in text


def test_what_is_pushed_is_read_back_and_names_no_video(experiment, hub, monkeypatch, capsys):
    push(experiment)
    files = hub.repositories[REPOSITORY].files
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "dogs.safetensors"}
    words = (b"aunt", b"secret", b"garden", b"birthday")
    assert not any(word in content for content in files.values() for word in words)
    assert not hub.repositories[REPOSITORY].private
    assert capsys.readouterr().out.count(f"{hub.address}/{REPOSITORY}") == 2
    monkeypatch.chdir(experiment)
    fetch_adapter(Path(REPOSITORY), offline=False)
    assert read_adapter(Path(REPOSITORY)).step == 700
    push(experiment)
    uploads = [request for request in hub.requests if request.startswith("PUT")]
    assert len(uploads) == 2, "large files that are there are not sent again"


def test_samples_are_of_held_out_videos_and_go_again(experiment, hub):
    push(experiment, "--samples", "3", "--private")
    repository = hub.repositories[REPOSITORY]
    assert repository.private
    names = [f"samples/0{number}_{sound}.flac" for number in (1, 2, 3) for sound in ("adapted", "base")]
    assert sorted(name for name in repository.files if "samples" in name) == names
    levels = [read_audio_file(experiment / "hub" / f"samples/0{n}_adapted.flac")[0].mean() for n in (1, 2, 3)]
    assert levels == pytest.approx([0.01, 0.21, 0.11], abs=1e-3), "a clip of each video first, none that was trained on"
    text = card_of(experiment)[1]
    assert f'<audio controls src="{hub.address}/anna/dogs/resolve/main/samples/02_base.flac"></audio>' in text
    push(experiment, "--private")
    assert not any("samples" in name for name in repository.files)
    with pytest.raises(DataError, match="--samples 4: the evaluation of this adapter has 3 clips to show"):
        push(experiment, "--samples", "4")
    (experiment / "report" / "media" / "003_base.flac").unlink()
    with pytest.raises(DataError, match=r"003_base\.flac: not there; evaluate again, or leave --samples out"):
        push(experiment, "--samples", "3")
    assert not (experiment / "hub" / "samples").exists()


def test_with_the_picture_where_that_is_asked(experiment):
    frames = [torch.full((32, 48, 3), 9 * number, dtype=torch.uint8).numpy() for number in range(25)]
    write_video(experiment / "report" / "media" / "001.mp4", frames, 25, torch.zeros(16000).numpy(), 16000)
    push(experiment, "--samples", "1", "--with_video", "--card_only")
    video = experiment / "hub" / "samples" / "01_adapted.mp4"
    assert probe(video).width == 48 and read_audio(video)[0].mean() == pytest.approx(0.01, abs=2e-3)
    assert "<video controls src=" in card_of(experiment)[1]
    with pytest.raises(ConfigError, match="--with_video: it is for the clips of --samples"):
        push(experiment, "--with_video", "--card_only")


@pytest.mark.parametrize(
    "changes", [{"adapter_sha256": ["0" * 64]}, {"adapters": [{"adapter": "a", "strength": 0.5}]}, {"metrics": 3}]
)
def test_an_evaluation_of_another_adapter_is_not_on_the_card(experiment, capsys, changes):
    write_metrics(experiment, **changes)
    push(experiment, "--card_only")
    assert "It was not compared with its base model" in card_of(experiment)[1]
    assert "has no evaluation of this adapter" in capsys.readouterr().out
    with pytest.raises(DataError, match="has 0 clips to show"):
        push(experiment, "--card_only", "--samples", "1")


def test_what_limits_the_verdict_is_on_the_card(experiment):
    path = experiment / "lora_checkpoints" / "best_lora.pt"
    adapter = read_adapter(path)
    lineage = [{"exp_id": "first", "train": {"clips": 5, "videos": ["secret.mp4"]}}]
    data = {
        **adapter.data,
        "validation": {"clips": 1, "videos": ["secret.mp4"], "ids": ["secret_0"]},
        "lineage": lineage,
    }
    write_adapter(path, replace(adapter, data=data, base_model="tiny_16k"))
    write_metrics(experiment, trained_clips=2)
    push(experiment, "--card_only")
    front, text = card_of(experiment)
    assert "also chose the best step of training" in text and "2 of them are of videos that the adapter was" in text
    assert "Before that, an adapter that it was trained on from: 5 clips from 1 video." in text
    assert front["license"] == "mit" and "base_model" not in front and "ComfyUI cannot use it" in text


def refused(experiment, *flags):
    """The line that a user reads."""
    with pytest.raises(WeightsError) as error:
        push(experiment, *flags)
    assert str(error.value).isprintable() and len(str(error.value)) < 400
    return str(error.value).removeprefix(f"{REPOSITORY}: cannot be pushed to ")


def test_every_refusal_is_a_line(experiment, hub, monkeypatch):
    page = f"{hub.address}/{REPOSITORY}: "
    assert refused(experiment, "--token", "hf_wrong").startswith(f"{page}the token is wrong or has ended")
    monkeypatch.delenv("HF_TOKEN")
    assert refused(experiment).startswith(f"{page}it wants a token")
    assert not hub.repositories
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for route, status, words in (
        ("repos/create", 403, "it refuses (not today); the token needs the right"),
        ("/preupload/", 403, "it refuses (not today)"),
        ("/preupload/", 404, "there is no anna/dogs"),
        ("/objects/", 403, "it refuses (not today)"),
        ("/commit/", 409, "another change came first, or the name is taken (not today)"),
        ("/commit/", 0, "Server disconnected"),
    ):
        hub.answers = {route: status}
        assert refused(experiment).startswith(page + words), (route, status)
        assert not any(repository.files for repository in hub.repositories.values()), "all files arrive, or none"
    hub.answers = {}
    push(experiment)
    assert len(hub.repositories[REPOSITORY].files) == 4


def test_an_upload_that_is_cut_goes_on(experiment, hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.answers = {"PUT /objects/": 0}
    assert "Server disconnected" in refused(experiment)
    hub.answers = {}
    push(experiment)
    assert len(hub.repositories[REPOSITORY].files) == 4


def test_private_is_not_what_is_public_already(experiment, hub):
    hub.repositories[REPOSITORY] = Repository()
    with pytest.raises(ConfigError, match=r"--private: .* is there already, and public"):
        push(experiment, "--private")
    assert hub.repositories[REPOSITORY].files == {}


def test_wrong_use_is_refused_before_anything_is_written(experiment, tmp_path, monkeypatch):
    for name in ("dogs", "a/b/c", "anna/", "/dogs", "anna/../x", "anna/do gs", "anna/" + "d" * 99):
        with pytest.raises(ConfigError, match="a repository is USER/NAME"):
            check_repository(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output" / "exp").mkdir(parents=True)
    shutil.move(experiment, tmp_path / "output" / "dogs")
    with pytest.raises(ConfigError, match=r"no experiment, .*; did you mean output/dogs\?"):
        main([REPOSITORY, "dogs"])
    with pytest.raises(ConfigError, match="--samples 7: 0 to 6"):
        main([REPOSITORY, "output/dogs", "--samples", "7"])
    path = tmp_path / "output" / "dogs" / "lora_checkpoints" / "best_lora.pt"
    write_adapter(path, replace(read_adapter(path), lora=LoRAConfig(enabled=False), state={"a": torch.zeros(1)}))
    with pytest.raises(ConfigError, match="full fine-tuning"):
        main([REPOSITORY, "output/dogs"])
    assert not (tmp_path / "output" / "dogs" / "hub").exists()
