"""What an evaluation reads: videos, table, features, base and adapter."""

import json

import pytest
import torch
from evaluation_inputs import ENCODERS, SECONDS, random_features, write_random_adapter
from random_model import MODEL, write_noise_video, write_random_weights

from mmaudio.data.clip_table import left_out_path, write_clips, write_left_out
from mmaudio.data.clips import Clip, LeftOut
from mmaudio.data.feature_store import Header, shard_path, write_shard

VIDEOS = ("one.mp4", "two.mp4", "three.mp4", "four.mp4")
SPLITS = ("test", "test", "test", "train")


@pytest.fixture(scope="module")
def root(tmp_path_factory, nothing_ships, brief_vocoder):
    """Videos, table, features, base and adapter, as the earlier stages leave them."""
    root = tmp_path_factory.mktemp("evaluation")
    generator = torch.Generator().manual_seed(2)
    (root / "videos").mkdir()
    clips = []
    for seed, (video, split) in enumerate(zip(VIDEOS, SPLITS, strict=True)):
        write_noise_video(root / "videos" / video, seed, 4.0)
        video_clips = [
            Clip(f"{video[:-4]}_{start}", video, start, start + SECONDS, "a <b>ball</b>", split, -1.0, -20.0, 0.0)
            for start in (0.0, 2.0)
        ]
        header = Header(
            video,
            [c.id for c in video_clips],
            [c.caption for c in video_clips],
            MODEL,
            SECONDS,
            ENCODERS,
            "s",
            "p",
            "t",
        )
        write_shard(shard_path(root / "features", video), header, random_features(2, generator))
        clips += video_clips
    write_clips(root / "clips.tsv", clips)
    write_left_out(left_out_path(root / "clips.tsv"), [LeftOut("notes.txt", "no video file (.txt)")])
    write_random_weights(root / "weights", encoders=False)
    folder = root / "exp" / "lora_checkpoints"
    folder.mkdir(parents=True)
    write_random_adapter(folder / "best_lora.pt", root / "weights")
    history = [
        {"step": 0, "validation/loss": 1.5},
        {"step": 5, "train/loss": 1.4},
        {"step": 10, "train/loss": 1, "validation/loss": 1.1},
    ]
    lines = [json.dumps(line) for line in history]
    (root / "exp" / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1']))  # killed while writing
    return root
