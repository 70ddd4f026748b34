"""Features that stay on disk: the same clips, batches, order and losses as in memory, and little memory."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mini_training
import pytest
import torch
from helpers import mini
from mini_training import write_shards

from mmaudio.data.feature_set import FEATURE_NAMES, build_lazy_feature_set
from mmaudio.data.feature_store import load_features, open_features
from mmaudio.errors import DataError
from mmaudio.finetune import feature_memory
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.feature_memory import MEMORY_SHARE, FeatureMemory, estimate_feature_memory
from mmaudio.lora.adapter import LoRAConfig
from mmaudio.model.spec import model_spec
from mmaudio.utils.memory import cgroup_headroom, free_memory, group_headroom

CPU = torch.device("cpu")


@pytest.fixture
def stored(tmp_path):
    """Seven clips of three videos on disk, the first without a caption, and three for validation."""
    rows = mini_training.clip_rows(7) + mini_training.clip_rows(3, "val")
    rows[0] = replace(rows[0], caption="")
    write_shards(tmp_path, rows)
    return {split: open_features(tmp_path / "clips.tsv", tmp_path, split, "tiny_16k") for split in ("train", "val")}


def test_rows_read_from_disk_equal_those_in_memory(tmp_path, stored):
    loaded, clips = load_features(tmp_path / "clips.tsv", tmp_path, "train"), stored["train"]
    assert (clips.ids, clips.captions, len(clips.shards)) == (loaded.ids, loaded.captions, 3)
    index = torch.tensor([6, 0, 3, 3])
    joined, subset = clips.concat(stored["val"]), clips.subset([5, 2])
    assert joined.ids == loaded.ids + stored["val"].ids and subset.ids == [loaded.ids[5], loaded.ids[2]]
    for name in FEATURE_NAMES:
        whole, column = getattr(loaded, name), clips.lazy_tensor(name)
        assert column.shape == whole.shape and torch.equal(column[index], whole[index])
        assert torch.equal(getattr(subset.load(), name), whole[[5, 2]])
        validation = stored["val"].lazy_tensor(name).load()
        assert torch.equal(joined.lazy_tensor(name)[torch.tensor([8, 1])], torch.stack([validation[1], whole[1]]))


def test_clips_of_two_lengths_are_refused(tmp_path):
    short = replace(mini_training.MINI, latent_tokens=20)
    parts = [mini_training.random_features(2), mini_training.random_features(2, short)]
    rows = mini_training.clip_rows(4, videos=2)
    clips = [row for video in ("train0.mp4", "train1.mp4") for row in rows if row.video == video]
    with pytest.raises(DataError, match=r"train1\.mp4: features of another size than train0\.mp4's"):
        build_lazy_feature_set(parts, [[0, 1], [0, 1]], clips, "tiny_16k")


@pytest.mark.parametrize("trained", [False, True], ids=["projected once", "trained projections"])
def test_conditions_from_disk_equal_those_in_memory(stored, trained):
    network = mini().requires_grad_(trained)
    near, far = (build_dataset(network, stored["train"], CPU, resident) for resident in (True, False))
    assert near.resident and not far.resident and far.nbytes() == 0 < near.nbytes()
    index = torch.tensor([5, 0, 5, 2])
    masks = torch.tensor([[True, False, False, False], [False, False, True, False]])
    for one, other in zip(
        near.conditions(network, index, *masks).tensors(), far.conditions(network, index, *masks).tensors(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert torch.equal(near.mean[index], far.mean[index]) and torch.equal(near.std[index], far.std[index])


SETTINGS = {
    "lora": {},
    "latent noise, preserved base": {"latent_noise": 0.1, "preserve_base": 0.5},
    "bf16": {"amp": True},
    "all weights": {"lora": LoRAConfig(enabled=False), "learning_rate": 1e-3},
}


def run(folder, stored, **settings):
    """Train the miniature on the clips: the result, the losses and gradient norms, the order of the clips."""
    outcome = mini_training.train_mini(folder, train=stored["train"], held_out=stored["val"], **settings)
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    state = torch.load(outcome.folder / "lora_checkpoints" / "state.pt", weights_only=True)["state"]
    numbers = [row[key] for key in ("train/loss", "validation/loss", "train/grad_norm") for row in rows if key in row]
    return outcome, numbers, (state["order"]["order"].tolist(), state["order"]["position"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_training_from_disk_gives_the_same_batches_and_losses(tmp_path, stored, name):
    settings = {"max_steps": 4, **SETTINGS[name]}  # seven clips in batches of four: three epochs
    _, near, order = run(tmp_path / "near", stored, features_in_memory=True, **settings)
    _, far, same_order = run(tmp_path / "far", stored, features_in_memory=False, **settings)
    assert order == same_order and len(near) == 4 + 3 + 4
    tolerance = 2**-8 if name == "bf16" else 1e-4  # where a rounded value lies on the border, it may go either way
    assert far == pytest.approx(near, rel=tolerance)


@pytest.mark.slow
def test_a_run_may_resume_with_its_features_elsewhere(tmp_path, stored, capsys):
    _, whole, _ = run(tmp_path / "whole", stored, features_in_memory=True)
    run(tmp_path / "parts", stored, features_in_memory=True, max_steps=2, schedule="constant", eval_every=2)
    assert "stay on disk" not in capsys.readouterr().out
    outcome, parts, _ = run(tmp_path / "parts", stored, features_in_memory=False, schedule="constant")
    output = capsys.readouterr().out
    assert outcome.new_steps == 4 and "features:   stay on disk" in output and "resumed:    at step 2" in output
    assert parts[:2] == pytest.approx(whole[:2], rel=1e-5)


@pytest.mark.slow
def test_features_that_do_not_fit_stay_on_disk(tmp_path, stored, capsys, monkeypatch):
    needed = estimate_feature_memory(mini().requires_grad_(False), list(stored.values()), CPU).needed
    near = [build_dataset(mini().requires_grad_(False), clips, CPU) for clips in stored.values()]
    size = sum(clips.nbytes() for clips in near)
    assert needed == pytest.approx(size, rel=0.01), "what is counted is what they take"
    for free, expected in ((size / MEMORY_SHARE * 0.9, True), (size / MEMORY_SHARE * 1.1, False)):
        monkeypatch.setattr(feature_memory, "free_memory", lambda device, free=int(free): free)
        run(tmp_path / str(free), stored, max_steps=1)
        assert ("stay on disk, 0.00 GB for 0.00 GB of free memory" in capsys.readouterr().out) == expected
    assert not FeatureMemory(51, 100).fits and FeatureMemory(50, 100).fits


def test_free_memory_respects_a_cgroup_limit(tmp_path):
    assert group_headroom(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert group_headroom(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert group_headroom(tmp_path) is None
    assert free_memory(CPU) > 2**20


@pytest.mark.parametrize(
    ("group", "headroom"),
    [("/batch/job_7/step_0", 300), ("/batch", 900), ("/", None), ("/../other", None), (None, None)],
)
def test_the_smallest_cgroup_headroom_counts(tmp_path, group, headroom):
    """A batch scheduler limits the job, in whose group those of its steps lie."""
    for name, limit in (("batch", 1000), ("batch/job_7", 400), ("batch/job_7/step_0", "max")):
        folder = tmp_path / "groups" / name
        folder.mkdir(parents=True)
        for key, value in (("max", limit), ("current", 100), ("stat", "inactive_file 0")):
            (folder / f"memory.{key}").write_text(f"{value}\n")
    if group is not None:
        (tmp_path / "cgroup").write_text(f"1:name=systemd:/\n0::{group}\n")
    assert cgroup_headroom(tmp_path / "cgroup", tmp_path / "groups") == headroom


SCRIPT = """
import re, sys
from pathlib import Path
import torch
from mmaudio.data.feature_store import open_features
from mmaudio.finetune.dataset import build_dataset
from mmaudio.model.networks import build_network

def anonymous_memory():  # also what other processes have pushed out
    sizes = re.findall(r"(?:RssAnon|VmSwap):\\s+(\\d+)", Path("/proc/self/status").read_text())
    return sum(map(int, sizes)) * 1024

torch.set_num_threads(1)
folder, resident = Path(sys.argv[1]), sys.argv[2] == "memory"
network = build_network("tiny_16k").requires_grad_(False)
none = torch.zeros(4, dtype=torch.bool)
network.preprocess_conditions(network.empty_clip(4), network.empty_sync(4), network.empty_text(4))
before = anonymous_memory()
clips = build_dataset(network, open_features(folder / "clips.tsv", folder, "train", "tiny_16k"), none.device, resident)
for rows in torch.randperm(len(clips)).split(4):
    if len(rows) == 4:
        clips.conditions(network, rows, none, none)
        clips.mean[rows], clips.std[rows]
print(anonymous_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured through Linux's /proc")
def test_a_set_on_disk_takes_little_memory(tmp_path):
    """800 clips, 117 MB: what the process itself holds after every clip was in a batch."""
    write_shards(tmp_path, mini_training.clip_rows(800, videos=8), model_spec("tiny_16k").network)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert size > 110e6
    grown = {}
    for where in ("memory", "disk"):
        process = subprocess.run(
            [sys.executable, "-c", SCRIPT, tmp_path, where],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"},
        )
        assert process.returncode == 0, process.stderr
        grown[where] = int(process.stdout)
    assert grown["disk"] < 0.1 * size and grown["memory"] > 0.9 * size, grown
