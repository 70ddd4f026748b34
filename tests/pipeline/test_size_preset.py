"""The preset by the number of videos: on a GPU alone, never against the user or a training that has begun."""

import pytest
from omegaconf import OmegaConf

from mmaudio.config import compose
from mmaudio.pipeline.flags import build_job, build_parser
from mmaudio.pipeline.job import has_gpu, training_overrides
from mmaudio.pipeline.size_preset import choose_preset, preset_by_size


def build(tmp_path, *overrides, model="small_16k"):
    arguments = [str(tmp_path), "--model", model, "--output", str(tmp_path / "out")]
    return build_job(build_parser().parse_args(arguments), ["exp_id=x", *overrides])


def begin_training(job, *settings):
    """An experiment as training leaves it, with these settings."""
    (job.experiment / "lora_checkpoints").mkdir(parents=True)
    (job.experiment / "lora_checkpoints" / "state.pt").write_bytes(b"")
    OmegaConf.save(OmegaConf.create(compose(list(settings)).to_dict()), job.experiment / "config.yaml")


def preset_of(job):
    return [text for text in training_overrides(job) if text.startswith("preset=")]


@pytest.mark.parametrize(
    ("count", "preset"),
    [(1, "very_small"), (10, "very_small"), (11, "small"), (50, "small"), (51, "medium"), (5000, "medium"), (0, None)],
)
def test_the_number_of_videos_chooses_on_a_gpu(count, preset):
    assert preset_by_size(count, on_gpu=True) == preset
    assert preset_by_size(count, on_gpu=False) is None


def test_the_plan_says_it_and_training_gets_it(tmp_path):
    job, reason = choose_preset(build(tmp_path, "batch_size=2"), 6, on_gpu=True)
    assert reason == "preset=very_small for 6 videos; preset=NAME and other keys after -- win over it"
    config = compose(training_overrides(job))
    assert (config.lora.rank, config.max_steps, config.learning_rate, config.batch_size) == (32, 1500, 2e-4, 2)


def test_keys_of_the_user_win(tmp_path):
    job, _ = choose_preset(build(tmp_path, "lora.rank=8"), 60, on_gpu=True)
    config = compose(training_overrides(job))
    assert (config.lora.rank, config.max_steps) == (8, 5000)
    for name in ("preset=stable", "+preset=stable"):
        assert choose_preset(build(tmp_path, name), 6, on_gpu=True) == (build(tmp_path, name), "")
        assert preset_of(build(tmp_path, name)) in ([name], [])


def test_without_a_gpu_nothing_changes(tmp_path):
    job = build(tmp_path)
    assert choose_preset(job, 6, on_gpu=False) == (job, "")
    assert preset_of(job) == ([] if has_gpu() else ["preset=quick"])


def test_a_narrow_model_gets_the_largest_preset_that_fits(tmp_path):
    job, reason = choose_preset(build(tmp_path, model="tiny_16k"), 60, on_gpu=True)
    assert job.preset == "small" and reason.startswith("preset=small for 60 videos")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "count", "preset"),
    [([], 6, "small"), (["preset=very_small"], 11, "very_small"), (["lora.rank=8"], 6, "very_small")],
)
def test_a_training_that_has_begun_keeps_its_settings(tmp_path, settings, count, preset):
    job = build(tmp_path)
    begin_training(job, *settings)
    assert choose_preset(job, count, on_gpu=True)[0].preset == preset
