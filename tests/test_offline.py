"""Without a connection every command names the files that it lacks and where they were looked for; no socket opens."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from mini_training import clip_rows, random_features
from random_model import write_noise_video

from mmaudio.data.clip_table import write_clips
from mmaudio.data.feature_store import VERSION, Header, encoder_names, shard_path, write_shard
from mmaudio.lora.adapter import LoRAConfig
from mmaudio.lora.checkpoint import AdapterFile, write_adapter
from mmaudio.model.spec import model_spec

MODEL = "small_16k"
FILES = {
    "network": "mmaudio_small_16k.pth",
    "vae": "v1-16.pth",
    "vocoder": "best_netG.pt",
    "synchformer": "synchformer_state_dict.pth",
    "clip": "open_clip_model.safetensors",
}
SCRIPT = """
import sys
connections = []
events = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg")
sys.addaudithook(lambda event, _: connections.append(event) if event in events else None)
sys.path[:0] = [ROOT, ROOT + "/training"]

import evaluate_lora, extract_features_finetuning, train_lora
from mmaudio.errors import MMAudioError
from mmaudio.generation import __main__ as generation
from mmaudio.model.lora_mmaudio import load_pretrained_with_lora
from mmaudio.pipeline import run as pipeline

flags = ["--offline"] if sys.argv[1] == "flag" else []

def attempt(name, call):
    print("@", name, flush=True)
    try:
        print("status", call())
    except MMAudioError as error:
        print("error:", error, flush=True)

attempt("generate", lambda: generation.main(["--prompt", "rain", "--model", "small_16k", *flags]))
attempt("extract", lambda: extract_features_finetuning.main(
    ["--input_tsv", "clips.tsv", "--video_root", "videos", "--output_dir", "out", *flags]))
attempt("evaluate", lambda: evaluate_lora.main(
    ["--lora_checkpoint", "best_lora.pt", "--test_videos", "videos", "--clips", "clips.tsv", *flags]))
attempt("load", lambda: load_pretrained_with_lora("small_16k", device="cpu", offline=bool(flags)))
attempt("plan", lambda: pipeline.main(["videos", "--dry-run", *flags]))
attempt("train", lambda: train_lora.main(
    ["model=small_16k", "clips_tsv=clips.tsv", "features_dir=features", "preset=quick", *flags]))
if flags:
    attempt("plan with a connection", lambda: pipeline.main(["videos", "--dry-run"]))
print("@ connections", connections)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video, its clips with features, and an adapter; no weights."""
    place = tmp_path_factory.mktemp("work")
    (place / "videos").mkdir()
    write_noise_video(place / "videos" / "train0.mp4", 0, 9.0)
    spec = model_spec(MODEL)
    rows = [*clip_rows(1), *clip_rows(1, "val")]
    write_clips(place / "clips.tsv", rows)
    encoders = {kind: f"{name}:0" for kind, name in encoder_names(spec).items()}
    for row in rows:
        header = Header(row.video, [row.id], [row.caption], MODEL, 8.0, encoders, "0", "0", "0", "", VERSION)
        write_shard(shard_path(place / "features", row.video), header, random_features(1, spec.network))
    layer, width = "fused_blocks.0.attn.qkv", spec.network.width
    state = {
        f"base_model.model.{layer}.lora_A.weight": torch.zeros(2, width),
        f"base_model.model.{layer}.lora_B.weight": torch.zeros(3 * width, 2),
    }
    write_adapter(place / "best_lora.pt", AdapterFile(LoRAConfig(rank=2), state, MODEL, "", [layer]))
    return place


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["flag", "environment"])
def test_every_offline_command_names_missing_files_and_does_not_connect(folder, asked):
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    if asked == "environment":
        environment["HF_HUB_OFFLINE"] = "1"
    script = SCRIPT.replace("ROOT", repr(str(ROOT)))
    result = subprocess.run(
        [sys.executable, "-c", script, asked], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    outputs = dict(section.split("\n", 1) for section in result.stdout.split("@ ")[1:-1])
    lacking = {
        "generate": ("network", "vae", "vocoder", "clip"),
        "extract": ("vae", "synchformer", "clip"),
        "evaluate": ("network", "vae", "vocoder"),
        "load": ("network",),
        "train": ("network",),
    }
    for name, parts in lacking.items():
        assert {section for section, file in FILES.items() if file in outputs[name]} == set(parts), outputs[name]
        assert f"{len(parts)} weights files of small_16k are not in weights, ext_weights, " in outputs[name]
        assert "https://" in outputs[name] and "--offline" in outputs[name]
    assert "weights:  not here: mmaudio_small_16k.pth 629 MB, " in outputs["plan"]
    if asked == "flag":
        plan = outputs["plan with a connection"]
        assert "weights:  6.7 GB to fetch into " in plan and "open_clip_model.safetensors 3.9 GB" in plan
    assert result.stdout.endswith("@ connections []\n")
