"""Samples while training of a user's own prompts and videos."""

import mini_training
import pytest
import torch
from random_model import MODEL, write_random_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from video_files import random_encoders, write_tone_video

from mmaudio.config import LoggingConfig, compose
from mmaudio.data.feature_set import build_feature_set
from mmaudio.errors import ConfigError, DataError
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.run_inputs import RunInputs
from mmaudio.finetune.sample_requests import plan_sample_requests
from mmaudio.finetune.trainer import train, train_adapter
from mmaudio.media.video import probe
from mmaudio.model.networks import build_network
from mmaudio.model.spec import model_spec


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    random_encoders(folder)
    write_random_weights(folder, encoders=False)
    write_tone_video(folder / "walk.mp4", 8.2)
    (folder / "walk.txt").write_text("steps in snow")
    return folder


@pytest.mark.slow
def test_prompts_and_videos_are_heard_while_training(weights, tmp_path):
    spec = model_spec(MODEL).network
    features = mini_training.random_features(4, spec)
    train_set = build_feature_set(features, mini_training.clip_rows(4), MODEL)
    logging = LoggingConfig(
        sample_every=1, sample_clips=1, sample_prompts=["rain / wind", ""], sample_videos=[str(weights / "walk.mp4")]
    )
    config = mini_training.build_config(tmp_path, weights=str(weights), max_steps=1, logging=logging)
    network = build_network(MODEL)
    network.requires_grad_(False)
    result = train_adapter(network, RunInputs(config, "0" * 64, train_set, None), Distributed())
    folders = {path.name.rsplit("_", 1)[0]: path for path in (result.folder / "samples").glob("own_*")}
    assert folders.keys() == {"own_walk_rain_wind", "own_walk"}
    files = {f"{name}.{suffix}" for name in ("base", "step-000001") for suffix in ("flac", "mp4")}
    for folder in folders.values():
        assert {path.name for path in folder.iterdir()} == files | {"step-000001.png"}
        assert probe(folder / "step-000001.mp4").duration == pytest.approx(8, abs=0.2)
    assert (
        folders["own_walk"].joinpath("base.flac").read_bytes()
        != folders["own_walk_rain_wind"].joinpath("base.flac").read_bytes()
    )
    events = EventAccumulator(str(result.folder), {"images": 0, "audio": 0})
    events.Reload()
    names = [folder.name for folder in folders.values()]
    assert {f"{name}/{kind}" for name in names for kind in ("base", "adapted")} <= set(events.Tags()["audio"])
    assert {f"{name}/base, adapted" for name in names} <= set(events.Tags()["images"])
    assert "train0/truth" in events.Tags()["audio"], "beside the clips"


def plan(**logging):
    config = compose([f"model={MODEL}"])
    config.logging = LoggingConfig(**logging)
    return [(clip.video, clip.caption) for clip in plan_sample_requests(config, 8.0)]


def test_every_video_has_every_prompt_or_the_text_beside_it(weights):
    video = str(weights / "walk.mp4")
    assert plan(sample_prompts=["rain", "wind", "rain"]) == [("", "rain"), ("", "wind")]
    assert plan(sample_videos=[video]) == [(video, "steps in snow")]
    assert plan(sample_videos=[video], sample_prompts=["rain", ""]) == [(video, "rain"), (video, "")]
    assert plan() == []
    overrides = [f'logging.sample_videos=["{video}"]', "logging.sample_prompts=[rain on tin,wind]"]
    logging = compose([f"model={MODEL}", *overrides]).logging
    assert (logging.sample_videos, logging.sample_prompts) == ([video], ["rain on tin", "wind"])


def test_a_video_that_is_missing_or_short_is_an_error_before_training(weights, tmp_path):
    mini_training.write_shards(tmp_path, mini_training.clip_rows(2), model_spec(MODEL).network)
    write_tone_video(tmp_path / "short.mp4", 2)
    for name, words in {"nowhere.mp4": "nowhere.mp4: not there", "short.mp4": "short.mp4: 2.00 s of picture"}.items():
        logging = LoggingConfig(sample_videos=[str(tmp_path / name)])
        config = mini_training.build_config(tmp_path, weights=str(tmp_path / "none"), logging=logging)
        config.clips_tsv, config.features_dir = str(tmp_path / "clips.tsv"), str(tmp_path)
        config.validation.enabled = False
        with pytest.raises(DataError, match=f"logging.sample_videos: {words}"):
            train(config, torch.device("cpu"))
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sample_every": 0, "sample_prompts": ["rain"]}, "sample_every=0: no samples"),
        ({"sample_prompts": ["rain", " "]}, "an empty text without sample_videos"),
    ],
)
def test_senseless_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        plan(**settings)
