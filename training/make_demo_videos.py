"""Write sample videos to try fine-tuning on: objects, colours and timbres that the embedded base was not trained on.

    python training/make_demo_videos.py --output_dir demo_videos

writes 16 videos of 32 s (H.264/AAC) with a caption beside each, in about 10 s on two CPU cores. The same flags give the
same videos; existing ones are not written again. `--domain chimes` has other colours and timbres than the demo's.
"""

from __future__ import annotations

from mmaudio import cli

if __name__ == "__main__":
    cli.handle_signals()  # the imports below take seconds

import os
from pathlib import Path

from mmaudio.errors import ConfigError
from mmaudio.synthetic.demo import is_complete, plan_demo_videos, write_demo_videos
from mmaudio.synthetic.domains import SAMPLE_DOMAINS
from mmaudio.utils.progress import progress
from mmaudio.utils.terminal import print_lines

MIN_VIDEOS = 8
"""With fewer, a kind of object is in one video only."""
MIN_SECONDS, MAX_SECONDS = 9, 600


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser("Write sample videos of a domain that tiny_16k was not trained on")
    parser.add_argument("--output_dir", type=Path, default=Path("demo_videos"), help="folder for the videos")
    parser.add_argument("--videos", type=int, default=16, help="how many, at least 8")
    parser.add_argument("--seconds", type=float, default=32.0, help="length of each, at least 9 s")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other videos")
    parser.add_argument("--domain", default="demo", choices=list(SAMPLE_DOMAINS), help="which objects and sounds")
    return parser


def main(arguments: list[str]) -> None:
    """Write the missing videos and print how many there are."""
    args = build_parser().parse_args(arguments)
    if args.videos < MIN_VIDEOS:
        raise ConfigError(
            f"--videos {args.videos}: with less than {MIN_VIDEOS}, kinds of object are heard in one video only"
        )
    if not MIN_SECONDS <= args.seconds <= MAX_SECONDS:
        raise ConfigError(f"--seconds {args.seconds:g}: a video is {MIN_SECONDS} to {MAX_SECONDS} s long")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed}: a number from 0 on")
    videos = plan_demo_videos(args.output_dir, args.videos, args.seconds, args.seed, args.domain)
    missing = [video for video in videos if not is_complete(video)]
    for _ in progress(write_demo_videos(missing, min(4, os.cpu_count() or 1)), len(missing), "sample videos"):
        pass
    existing = len(videos) - len(missing)
    print_lines(
        f"{args.output_dir}: {len(videos)} videos of {args.seconds:g} s ({len(missing)} made, {existing} already there)"
    )


if __name__ == "__main__":
    cli.run(main)
