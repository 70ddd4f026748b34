"""Split a folder of videos into clips: look through every file, measure picture and sound, write the table of clips.

    python training/split_videos_for_finetuning.py --input_dir ./my_videos --output_tsv ./lora_data/clips.tsv

Writes clips.tsv and, beside it, clips.left_out.tsv (what is not used and why), clips.scans.jsonl (what was found in
each file: a second run, or one after a kill, looks only at files that changed), clips.splits.json (which videos are
held out) and with --report clips.report.html. No clip is written as a file. `config/split_config.yaml` lists every
threshold; `split.rules.max_frozen=null` and the like at the end of the command change one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mmaudio import cli
from mmaudio.data.clips import SPLITS, check_table, left_out_path, write_clips, write_left_out
from mmaudio.data.config import compose_split
from mmaudio.data.filters import kind
from mmaudio.data.folder_split import SplitResult, SplitSettings, split_folder
from mmaudio.data.scan import ScanSettings, ScanStore
from mmaudio.data.shots import check_scenes
from mmaudio.data.speech import check_flags
from mmaudio.data.splits import Remembered
from mmaudio.errors import DataError
from mmaudio.utils.progress import progress


def parser() -> cli.Parser:
    """The command line."""
    made = cli.Parser("Split a folder of videos into clips and write their table.")
    add = made.add_argument
    add("--input_dir", type=Path, required=True, help="the folder of videos")
    add("--output_tsv", type=Path, default=Path("lora_data/clips.tsv"), help="the table to write")
    add("--recursive", action="store_true", help="search sub-folders too")
    add("--captions", type=Path, help="a table (.tsv, .csv, .jsonl) of captions by video or by clip")
    add("--prompt", default="", help="caption of the videos that have none of their own")
    add("--audio-track", type=int, default=0, help="which sound track, counted from 0")
    add("--scenes", action="store_true", help="no clip across a shot boundary (needs the extra `scenes`)")
    add("--flags", action="store_true", help="note how much speech and music is in a clip (needs the extra `flags`)")
    add("--keep-all", action="store_true", help="keep clips that break a rule of the configuration")
    add("--report", action="store_true", help="write a page that shows every clip, used or left out")
    add("--timeout-per-video", type=float, help="seconds for one file; 120 and 5 for each MB of it if not given")
    add("--seconds", type=float, help="duration of a clip; 8 if not given")
    add("--stride", type=float, help="seconds between the starts of two clips; 4 if not given")
    add("--val_ratio", type=float, help="share of the videos for validation; 0.1 if not given")
    add("--test_ratio", type=float, help="share of the videos for the test; 0.2 if not given")
    add("--silence_db", type=float, help="sound below this peak is silence; -60 if not given")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="settings of config/split_config.yaml")
    return made


def read_settings(arguments: list[str]) -> tuple[SplitSettings, Path, Path, bool]:
    """The settings, the folder of videos, the table to write, and whether a report is wanted."""
    args = parser().parse_intermixed_args(arguments)
    flags = {name: getattr(args, name) for name in ("seconds", "stride", "val_ratio", "test_ratio", "silence_db")}
    given = [f"split.{name}={value}" for name, value in flags.items() if value is not None]
    given += [] if args.silence_db is None else [f"split.rules.min_peak_db={args.silence_db}"]
    config = compose_split([*args.overrides, *given])
    if args.scenes:
        check_scenes()
    if args.flags:
        check_flags()
    scan = ScanSettings(
        config.seconds,
        config.stride,
        config.silence_db,
        config.max_gap,
        args.audio_track,
        args.scenes,
        config.scene_tolerance,
        args.flags,
    )
    settings = SplitSettings(
        scan,
        config.rules,
        config.val_ratio,
        config.test_ratio,
        args.prompt,
        args.captions,
        args.keep_all,
        args.recursive,
        args.timeout_per_video,
        args.debug,
    )
    return settings, args.input_dir, args.output_tsv, args.report


def report(result: SplitResult) -> None:
    """Print what was found, what is used, and each file that is not with its reason."""
    looked = f"looked through {result.scanned}, {result.found - result.scanned} had not changed"
    print(f"found {result.found} files = {result.used} used + {len(result.unused)} left out ({looked})")
    for row in result.unused:
        print(f"  left out: {row.video}: {row.reason}")
    windows = result.unused_windows
    print(f"{len(result.clips) + len(windows)} windows = {len(result.clips)} clips + {len(windows)} left out")
    for reason, count in Counter(kind(row.reason) for row in windows).most_common():
        print(f"  left out: {count} x {reason}")
    for split in SPLITS:
        chosen = [clip for clip in result.clips if clip.split == split]
        print(f"  {split}: {len(chosen)} clips of {len({clip.video for clip in chosen})} videos")
    with_words = sum(bool(clip.caption) for clip in result.clips)
    if with_words < len(result.clips):
        print(f"  captions: {with_words} of {len(result.clips)} clips have one; the others go without words")
    broken = Counter(clip.breaks for clip in result.clips if clip.breaks)
    for rules, count in broken.most_common():
        print(f"  kept all the same: {count} x {rules}")
    for note in result.notes:
        print(f"note: {note}")


def main(arguments: list[str]) -> int:
    """Split as `arguments` ask for."""
    settings, folder, table, wants_page = read_settings(arguments)
    check_table(table)
    beside = {name: table.with_suffix(f".{name}") for name in ("scans.jsonl", "splits.json", "report.html")}
    ignored = [table, left_out_path(table), *beside.values()]
    if folder.resolve() in table.resolve().parent.parents:
        ignored.append(table.parent)  # clips, features and results below the folder of videos
    result = split_folder(
        folder,
        settings,
        ScanStore(beside["scans.jsonl"]),
        tuple(ignored),
        lambda files: progress(files, len(files), "videos"),
        Remembered(beside["splits.json"], settings.shares),
    )
    report(result)
    write_left_out(left_out_path(table), result.left_out)
    if wants_page:
        from mmaudio.data.contact_sheet import write_contact_sheet  # here, for torchvision takes a second to import

        page = beside["report.html"]
        write_contact_sheet(
            page, folder, result, settings.scan.track, lambda scans: progress(scans, len(scans), "strips")
        )
        print(f"{page}: open it in a browser")
    if not result.clips:
        raise DataError(f"{folder}: none of its {result.found} files can be used; the reasons stand above")
    changed = write_clips(table, result.clips)
    print(f"{table}: {'written' if changed else 'still valid, not touched'}", flush=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
