"""Make sample videos to try fine-tuning on: objects, colours and sounds that the embedded base has not met.

    python training/make_demo_videos.py --output_dir demo_videos

writes 16 videos of 32 s (H.264/AAC) with a caption beside each, in about 10 s on two CPU cores. The same flags give the
same videos; those that are there already are kept.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmaudio import cli
from mmaudio.errors import ConfigError
from mmaudio.synthetic.demo import demo_videos, is_made, make_demo_videos
from mmaudio.utils.progress import progress


def parser() -> cli.Parser:
    """The flags."""
    flags = cli.Parser("Make sample videos of a domain that tiny_16k has not met")
    flags.add_argument("--output_dir", type=Path, default=Path("demo_videos"), help="folder for the videos")
    flags.add_argument("--videos", type=int, default=16, help="how many, at least 8")
    flags.add_argument("--seconds", type=float, default=32.0, help="length of each, at least 9 s")
    flags.add_argument("--seed", type=int, default=0, help="other seeds give other videos")
    return flags


def main(arguments: list[str]) -> None:
    """Make what is missing and say what there is."""
    flags = parser().parse_args(arguments)
    if flags.videos < 8:
        raise ConfigError(f"--videos {flags.videos}: with less than 8, kinds of object are heard in one video only")
    if not 9 <= flags.seconds <= 600:
        raise ConfigError(f"--seconds {flags.seconds:g}: a video is 9 to 600 s long")
    if flags.seed < 0:
        raise ConfigError(f"--seed {flags.seed}: a number from 0 on")
    videos = demo_videos(flags.output_dir, flags.videos, flags.seconds, flags.seed)
    missing = [video for video in videos if not is_made(video)]
    for _ in progress(make_demo_videos(missing, min(4, os.cpu_count() or 1)), len(missing), "sample videos"):
        pass
    kept = len(videos) - len(missing)
    print(
        f"{flags.output_dir}: {len(videos)} videos of {flags.seconds:g} s ({len(missing)} made, {kept} already there)"
    )


if __name__ == "__main__":
    cli.run(main)
