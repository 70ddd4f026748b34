"""Split of a folder of videos into clips: scan every file, measure video and audio, write the table of clips.

    python training/split_videos_for_finetuning.py --input_dir ./my_videos --output_tsv ./lora_data/clips.tsv

Writes clips.tsv and, beside it, clips.left_out.tsv (unused files and windows, with reasons), clips.scans.jsonl (the
measurements of each file: a second run, or one after a kill, scans only files that changed), clips.splits.json (which
videos are held out) and with --report clips.report.html. No clip is written as a file. `config/split_config.yaml` lists
every threshold; `split.rules.max_frozen=null` and the like at the end of the command change one.
"""

from __future__ import annotations

import sys

from mmaudio import cli
from mmaudio.utils.subprocess_worker import import_for_workers

if __name__ == "__main__":
    cli.handle_signals()  # the imports below take seconds
    if "--input_dir" in sys.argv:
        import_for_workers("mmaudio.data.scan")

import argparse
from collections import Counter
from pathlib import Path

from mmaudio.data.clip_table import check_table_path, left_out_path, write_clips, write_left_out
from mmaudio.data.clips import SPLITS
from mmaudio.data.config import compose_split_config
from mmaudio.data.filters import reason_kind
from mmaudio.data.folder_split import SplitResult, SplitSettings, split_folder
from mmaudio.data.scan import ScanSettings
from mmaudio.data.scan_store import ScanStore
from mmaudio.data.shots import check_scenes_extra
from mmaudio.data.speech import check_flags_extra
from mmaudio.data.split_files import SplitFiles
from mmaudio.data.splits import SplitStore
from mmaudio.data.video_files import find_videos
from mmaudio.errors import DataError
from mmaudio.utils.locks import wait_for_lock
from mmaudio.utils.progress import progress
from mmaudio.utils.terminal import print_lines

CONFIG_FLAGS = ("seconds", "stride", "val_ratio", "test_ratio", "silence_db")
"""Flags that override a key of `config/split_config.yaml`."""


EXAMPLES = 2
"""So many of the commonest reasons are printed with an example."""


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Split a folder of videos into clips and write their table.")
    parser.single_flags = ("--captions",)
    add = parser.add_argument
    add("--input_dir", type=Path, required=True, help="the folder of videos")
    add("--output_tsv", type=Path, default=Path("lora_data/clips.tsv"), help="the table to write")
    add("--recursive", action="store_true", help="search sub-folders too")
    add(
        "--captions",
        type=Path,
        help="a table (.tsv, .csv, .jsonl) of captions by video or by clip",
    )
    add("--prompt", default="", help="caption of the videos that have none of their own")
    add("--audio-track", type=int, default=0, help="number of the audio track, counted from 0")
    add("--video-track", type=int, help="number of the picture, from 0; the default, else the longest that moves")
    add("--scenes", action="store_true", help="no clip across a shot boundary (needs the extra `scenes`)")
    add("--flags", action="store_true", help="note how much speech and music is in a clip (needs the extra `flags`)")
    add("--keep-all", action="store_true", help="keep clips that break a rule of the configuration")
    add("--folds", action="store_true", help="for training with folds: no word on too few held-out videos")
    add("--report", action="store_true", help="write a page that shows every clip, used or left out")
    add("--timeout-per-video", type=float, help="seconds for one file; 120 and 5 for each MB of it if not given")
    add("--workers", type=int, help="files that are scanned at once; one per core if not given")
    add("--seconds", type=float, help="duration of a clip; 8 if not given")
    add("--stride", type=float, help="seconds between the starts of two clips; 4 if not given")
    add("--val_ratio", type=float, help="share of the videos for validation; 0.1 if not given")
    add("--test_ratio", type=float, help="share of the videos for the test; 0.2 if not given")
    add("--silence_db", type=float, help="audio below this peak is silence; -60 if not given")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="settings of config/split_config.yaml")
    return parser


def read_settings(args: argparse.Namespace) -> SplitSettings:
    """The settings of the configuration and the flags; ConfigError where they are not valid."""
    flags = {name: getattr(args, name) for name in CONFIG_FLAGS}
    overrides = [f"split.{name}={value}" for name, value in flags.items() if value is not None]
    overrides += [] if args.silence_db is None else [f"split.rules.min_peak_db={args.silence_db}"]
    config = compose_split_config([*args.overrides, *overrides])
    if args.scenes:
        check_scenes_extra()
    if args.flags:
        check_flags_extra()
    return SplitSettings(
        scan=ScanSettings(
            seconds=config.seconds,
            stride=config.stride,
            silence_db=config.silence_db,
            max_gap=config.max_gap,
            track=args.audio_track,
            video_track=args.video_track,
            scenes=args.scenes,
            scene_tolerance=config.scene_tolerance,
            flags=args.flags,
        ),
        rules=config.rules,
        val_ratio=config.val_ratio,
        test_ratio=config.test_ratio,
        normalize=config.normalize,
        prompt=args.prompt,
        captions=args.captions,
        keep_all=args.keep_all,
        recursive=args.recursive,
        timeout=args.timeout_per_video,
        with_folds=args.folds,
        workers=args.workers,
        debug=args.debug,
    )


def print_result(result: SplitResult, left_out_table: Path) -> None:
    """Print the numbers of files and clips, and each file that is left out with its reason."""
    scanned = f"scanned {result.scanned_count}, {result.file_count - result.scanned_count} had not changed"
    print_lines(f"found {result.file_count} files = {result.used} used + {len(result.unused)} left out ({scanned})")
    for row in result.unused:
        print_lines(f"  left out: {row.video}: {row.reason}")
    windows = result.unused_windows
    print_lines(f"{len(result.clips) + len(windows)} windows = {len(result.clips)} clips + {len(windows)} left out")
    for number, (kind, count) in enumerate(Counter(reason_kind(row.reason) for row in windows).most_common()):
        example = next(row for row in windows if reason_kind(row.reason) == kind)
        where = f", as {example.video} from {example.start:g} s ({example.reason})" if number < EXAMPLES else ""
        print_lines(f"  left out: {count} x {kind}{where}")
    if result.left_out:
        print_lines(f"  all that is left out, with the reasons: {left_out_table}")
    for split in SPLITS:
        clips = [clip for clip in result.clips if clip.split == split]
        print_lines(f"  {split}: {len(clips)} clips of {len({clip.video for clip in clips})} videos")
    with_caption = sum(bool(clip.caption) for clip in result.clips)
    if with_caption < len(result.clips):
        print_lines(f"  captions: {with_caption} of {len(result.clips)} clips have one; the others have none")
    broken_rules = Counter(clip.breaks for clip in result.clips if clip.breaks)
    for rules, count in broken_rules.most_common():
        print_lines(f"  used although they break a rule: {count} x {rules}")
    for note in result.notes:
        print_lines(f"note: {note}")


def write_report(page: Path, videos: Path, result: SplitResult) -> None:
    """Write the contact sheet of `result`, whose videos lie in the folder `videos`."""
    from mmaudio.data.contact_sheet import write_contact_sheet  # here, as torchvision takes a second to import

    write_contact_sheet(page, videos, result, lambda scans: progress(scans, len(scans), "strips"))
    print_lines(f"{page}: open it in a browser")


def main(arguments: list[str]) -> int:
    """Split a folder as the command line `arguments` request."""
    args = build_parser().parse_intermixed_args(arguments)
    settings, table = read_settings(args), args.output_tsv
    check_table_path(table)
    find_videos(args.input_dir)  # where there is no such folder, none is made for the table
    with wait_for_lock(table.parent, table.name, f"another process splits videos into {table}"):
        split(args.input_dir, table, settings, args.report)
    return 0


def split(videos: Path, table: Path, settings: SplitSettings, report: bool) -> None:
    """Scan the folder `videos`, print what is used and write the tables; DataError where nothing can be used."""
    files = SplitFiles(table)
    result = split_folder(
        videos,
        settings,
        ScanStore(files.scans),
        files.ignored_paths(videos),
        lambda paths: progress(paths, len(paths), "videos"),
        SplitStore(files.splits, settings.ratios),
    )
    print_result(result, left_out_path(table))
    write_left_out(left_out_path(table), result.left_out)
    if report:
        write_report(files.page, videos, result)
    if not result.clips:
        raise DataError(f"{videos}: none of its {result.file_count} files can be used; the reasons stand above")
    is_changed = write_clips(table, result.clips)
    print_lines(f"{table}: {'written' if is_changed else 'still valid, not touched'}", flush=True)


if __name__ == "__main__":
    cli.run(main)
