"""The benchmark of the whole job: its weights fit the models, its figures are those of the samples, it runs small."""

import math
import re

import pytest
from helpers import manifest

from benchmarks.whole_job import Sample, StageUse, empty_state, main, make_weights
from mmaudio.features.synchformer import build_synchformer
from mmaudio.features.vae import build_vae
from mmaudio.model.networks import build_network
from mmaudio.weights.load_frozen import load_frozen

RELEASED = {
    "network": "network_small_16k",
    "vae": "vae_16k",
    "synchformer": "synchformer",
    "clip": "clip_vit_h_14_384",
}


@pytest.mark.parametrize(
    "component", [pytest.param(name, marks=pytest.mark.slow) if name == "clip" else name for name in RELEASED]
)
def test_random_weights_have_the_released_keys_and_shapes(component):
    released = {key: tuple(shape) for key, (_, shape) in manifest(RELEASED[component]).items()}
    random = {key: tuple(tensor.shape) for key, tensor in empty_state("small_16k", component).items()}
    assert random.items() <= released.items() and len(random) > 0.3 * len(released)


@pytest.mark.slow
def test_random_weights_are_loaded(tmp_path):
    make_weights(tmp_path, "tiny_16k")
    network = load_frozen(lambda: build_network("tiny_16k"), "tiny_16k", "network", tmp_path)
    load_frozen(lambda: build_vae("tiny_16k"), "tiny_16k", "vae", tmp_path)
    load_frozen(lambda: build_synchformer("tiny_16k"), "tiny_16k", "synchformer", tmp_path)
    assert (network.latent_std == 1).all() and network.empty_clip_feat.std() > 0.01


def test_a_stage_has_its_time_its_busy_cores_and_its_share_of_a_larger_job():
    samples = [Sample(10.0, 4.0, 2**30, 20.0, 1024.0), Sample(12.0, 7.0, 3 * 2**30, 40.0, 3072.0)]
    cells = StageUse("train", samples).cells(100, "steps", 5.0)
    assert cells == ["train", "2 s", "30 %", "1.5", "3.0 GiB", "3.0 GiB", "50 steps/s", "10 s"]
    without = [Sample(0.0, 0.0, 0, None, None), Sample(1.0, 1.0, 2**30, None, None)]
    assert StageUse("split", without).cells(3, "clips", 1.0)[2:6] == ["", "1.0", "1.0 GiB", ""]


@pytest.mark.slow
def test_the_whole_job_has_a_row_for_every_stage(tmp_path, capfd, shared_base_outputs):
    small = ["--model", "tiny_16k", "--videos", "1", "--minutes", "0.4", "--side", "64", "--steps", "2"]
    main([*small, "--output", str(tmp_path)])
    rows = [line.split("|")[1:-1] for line in capfd.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows[1:]] == ["plan", "split", "extract", "train", "evaluate"]
    assert all(math.isfinite(float(row[3])) and float(row[3]) > 0 for row in rows[1:])


def test_the_stand_in_of_the_encoders_is_busy_for_its_pauses(tmp_path, capsys):
    small = ["--model", "tiny_16k", "--videos", "2", "--minutes", "0.2", "--side", "64", "--encoder_ms", "20"]
    main([*small, "--output", str(tmp_path)])
    line = capsys.readouterr().out.splitlines()[-1]
    numbers = re.match(r"4 windows of 2 videos in ([\d.]+) s: ([\d.]+) windows/s, 20 ms each .* busy (\d+)% ", line)
    assert numbers, line
    seconds, rate, busy = map(float, numbers.groups())
    assert rate == pytest.approx(4 / seconds, rel=0.1) and 8 / seconds - 3 <= busy <= 100
    assert len(list((tmp_path / "paused").glob("*.safetensors"))) == 2
