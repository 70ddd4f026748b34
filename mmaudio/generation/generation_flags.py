"""The flags of the generation command."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmaudio import cli
from mmaudio.errors import ConfigError
from mmaudio.generation.audio_mix import AudioMix
from mmaudio.generation.generate import MAX_ONE_PASS_SECONDS, MAX_SECONDS, MIN_SECONDS
from mmaudio.generation.solver import ADAPTIVE, METHODS
from mmaudio.generation.take_ranking import RANKINGS
from mmaudio.lora.stack import pair_strengths
from mmaudio.model.spec import CLIP_SECONDS

DEFAULT_MODEL = "small_16k"


def build_parser() -> cli.Parser:
    """Build the command line."""
    parser = cli.Parser("Generate audio for a video, for a folder of videos, or for a prompt alone.")
    if not parser.prog.startswith("mmaudio-lora"):
        parser.prog = "python -m mmaudio.generation"
    parser.single_flags = ("--video", "--image", "--folder")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--video", type=Path, help="the video; without one the audio follows the prompt alone")
    source.add_argument("--image", type=Path, help="a still as the video: what is in it is heard, and nothing moves")
    source.add_argument("--folder", type=Path, help="all videos in it; unusable files are listed and skipped")
    _add_prompt_flags(parser)
    parser.add_argument("--model", help=f"the base model; the adapter's, or {DEFAULT_MODEL}")
    parser.add_adapter_flags()
    parser.add_argument(
        "--video-track",
        "--video_track",
        type=int,
        help="which picture of a file with several, counted from 0; the default one, else the longest that moves",
    )
    _add_sampling_flags(parser)
    _add_ranking_flags(parser)
    _add_output_flags(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_weights_flags()
    return parser


def _add_prompt_flags(parser: cli.Parser) -> None:
    parser.add_argument(
        "--prompt",
        help="describes the audio; if not given: the .txt of the video's name beside it, or its folder's "
        "caption.txt. With --folder these come first, and --prompt is for videos without any",
    )
    parser.add_argument(
        "--prompts", type=Path, help="a table of prompts that change over time, with the columns from, to and prompt"
    )
    parser.add_argument(
        "--mask-away-clip",
        "--mask_away_clip",
        action="store_true",
        help="the timing from the picture, the meaning from the text alone",
    )
    parser.add_argument("--negative-prompt", "--negative_prompt", help="describes what the audio shall not contain")


def _add_sampling_flags(parser: cli.Parser) -> None:
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"duration, {MIN_SECONDS:g} to {MAX_SECONDS:g}, at most to the video's end; the whole video where not "
        f"given, {CLIP_SECONDS:g} for a prompt alone",
    )
    parser.add_argument(
        "--one-pass",
        "--one_pass",
        action="store_true",
        help=f"one pass of the network over all of it, up to {MAX_ONE_PASS_SECONDS:g} s, instead of windows of "
        f"{CLIP_SECONDS:g} s, the duration that models are trained on, which are denoised together",
    )
    parser.add_argument("--start", type=float, default=0.0, help="seconds of the video at which the audio begins")
    parser.add_argument(
        "--steps", "--num-steps", "--num_steps", type=int, help="solver steps; the model's default where not given"
    )
    parser.add_argument(
        "--method",
        "--solver",
        choices=METHODS,
        default=METHODS[0],
        help=f"euler: of first order; midpoint, heun: of second; {ADAPTIVE}: chooses its steps (an extra, torchdiffeq)",
    )
    parser.add_argument("--guidance", type=float, help="guidance scale, 1 for none; the model's default if not given")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise: the same seed gives the same audio")
    parser.add_argument(
        "--samples",
        type=int,
        default=1,
        help="samples of each video, in one batch, with the seeds from --seed on; "
        "more than one are called NAME_seed0, NAME_seed1, ...",
    )


def _add_ranking_flags(parser: cli.Parser) -> None:
    parser.add_argument(
        "--rank-by",
        "--rank_by",
        choices=RANKINGS,
        help="keep the best of the samples by a metric that needs no original: consensus, the agreement of a sample's "
        "onsets with those of the others, and motion, with the picture, need no weights. Scores are printed, in the "
        "files' tags and in NAME.takes.tsv",
    )
    parser.add_argument("--keep", type=int, help="how many of the ranked samples are written, as NAME_best1, ...; 1")


def _add_output_flags(parser: cli.Parser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("sound"), help="a folder, or a file: .flac, .wav, or a video's suffix"
    )
    parser.add_argument("--loudness", type=float, help="of the result, in LUFS such as -23; as generated if not given")
    parser.add_argument(
        "--keep-original",
        "--keep_original",
        type=float,
        help="mix the video's own sound under the new one, amplified by so many dB, such as -12",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing files; otherwise they are an error, and with "
        "--folder videos are skipped whose files exist and would be the same",
    )
    parser.add_argument(
        "--conditions", type=Path, help="a folder for the features of videos, which are kept; a cache if not given"
    )


def check_flags(args: argparse.Namespace) -> None:
    """Raise ConfigError for invalid values, before any file is read."""
    cli.check_at_least(args, samples=1, keep=1)
    build_mix(args)
    if args.keep is not None and args.rank_by is None:
        raise ConfigError(f"--keep {args.keep}: the best by what? Name a metric with --rank-by ({', '.join(RANKINGS)})")
    if args.rank_by is not None and args.samples < max(2, args.keep or 1):
        raise ConfigError(
            f"--rank-by {args.rank_by} with --samples {args.samples}: take more --samples, such as 8, to keep "
            f"{args.keep or 1} of them"
        )
    if args.prompts is not None and (args.folder is not None or args.prompt is not None):
        raise ConfigError("--prompts is for one video or text, in place of --prompt")
    if args.video_track is not None and args.video is None and args.folder is None:
        raise ConfigError(f"--video-track {args.video_track}: there is no --video or --folder to take a picture of")
    pair_strengths(args.adapter, args.strength)


def build_mix(args: argparse.Namespace) -> AudioMix:
    """What is done to the generated audio; ConfigError for invalid values."""
    return AudioMix(args.loudness, args.keep_original)
