"""A training and its evaluation in wandb and Trackio, offline, by the real packages."""

import os

import mini_training
import pytest

from mmaudio.config import LoggingConfig

pytestmark = pytest.mark.slow
VIDEO = "aunt may.mp4"


def train(folder, *trackers, **settings):
    """Train the miniature with these trackers; its settings name a video."""
    logging = LoggingConfig(log_every=1, sample_every=0, trackers=list(trackers), project="mini")
    logging.sample_videos = [VIDEO]
    return mini_training.train_mini(folder, max_steps=3, logging=logging, **settings)


def test_wandb_has_the_scalars_and_the_settings_and_no_name_of_a_video(tmp_path):
    result = train(tmp_path, "wandb", "tensorboard", "wandb", offline=True)
    (file,) = (result.folder / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    for name in (b"train/loss", b"validation/loss", b"final/best_step", b"lora.rank", b"mini", b"exp"):
        assert name in content
    assert VIDEO.encode() not in content and str(tmp_path).encode() not in content
    assert list(result.folder.glob("events.*")) and (result.folder / "metrics.jsonl").is_file()


def test_trackio_has_every_step_of_a_run_that_went_on(tmp_path, capsys):
    from trackio.sqlite_storage import SQLiteStorage

    mini_training.train_mini(
        tmp_path, max_steps=2, logging=LoggingConfig(log_every=1, sample_every=0, trackers=["trackio"], project="mini")
    )
    result = train(tmp_path, "trackio")
    assert not list(result.folder.glob("events.*"))
    assert SQLiteStorage.get_project_db_path("mini").is_relative_to(os.environ["TRACKIO_DIR"]), "not the user's"
    assert SQLiteStorage.get_runs("mini") == ["exp"]
    rows = SQLiteStorage.get_logs("mini", "exp")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3]
    assert [row["step"] for row in rows if "validation/loss" in row] == [0, 2, 3]
    assert SQLiteStorage.get_run_config("mini", "exp")["lora.rank"] == 4
