"""Split a folder of videos into clips: look through every file, measure its sound, and write the table of clips.

    python training/split_videos_for_finetuning.py --input_dir ./my_videos --output_tsv ./lora_data/clips.tsv

Writes clips.tsv and, beside it, clips.left_out.tsv (what is not used and why) and clips.scans.jsonl (what was found in
each file: a second run, or one after a kill, looks only at files that changed). No clip is written as a file.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mmaudio import cli
from mmaudio.data.clips import SPLITS, STRIDE, left_out_path, write_clips, write_left_out
from mmaudio.data.scanning import ScanSettings, ScanStore
from mmaudio.data.splitting import SplitResult, SplitSettings, split_folder
from mmaudio.errors import DataError
from mmaudio.model.spec import SECONDS
from mmaudio.progress import progress


def parser() -> cli.Parser:
    """The command line."""
    made = cli.Parser("Split a folder of videos into clips and write their table.")
    made.add_argument("--input_dir", type=Path, required=True, help="the folder of videos")
    made.add_argument("--output_tsv", type=Path, default=Path("lora_data/clips.tsv"), help="the table to write")
    made.add_argument("--prompt", default="", help="caption of the videos without a .txt file of their name")
    made.add_argument("--seconds", type=float, default=SECONDS, help="duration of a clip")
    made.add_argument("--stride", type=float, default=STRIDE, help="seconds between the starts of two clips")
    made.add_argument("--val_ratio", type=float, default=0.1, help="share of the videos for validation")
    made.add_argument("--test_ratio", type=float, default=0.2, help="share of the videos for the test")
    made.add_argument("--silence_db", type=float, default=-60.0, help="clips whose peak is below this are left out")
    return made


def report(result: SplitResult) -> None:
    """Print what was found, what is used, and each file that is not with its reason."""
    looked = f"looked through {result.scanned}, {result.found - result.scanned} had not changed"
    print(f"found {result.found} files = {result.used} used + {len(result.unused)} left out ({looked})")
    for row in result.unused:
        print(f"  left out: {row.video}: {row.reason}")
    windows = result.unused_windows
    print(f"{len(result.clips) + len(windows)} windows = {len(result.clips)} clips + {len(windows)} left out")
    for reason, count in Counter(row.reason for row in windows).most_common():
        print(f"  left out: {count} x {reason}")
    for split in SPLITS:
        chosen = [clip for clip in result.clips if clip.split == split]
        print(f"  {split}: {len(chosen)} clips of {len({clip.video for clip in chosen})} videos")
    for note in result.notes:
        print(f"note: {note}")


def main(arguments: list[str]) -> int:
    """Split as `arguments` ask for."""
    args = parser().parse_args(arguments)
    settings = SplitSettings(
        ScanSettings(args.seconds, args.stride, args.silence_db), args.val_ratio, args.test_ratio, args.prompt
    )
    table: Path = args.output_tsv
    scans = table.with_suffix(".scans.jsonl")
    ignored = (table, left_out_path(table), scans)
    result = split_folder(
        args.input_dir, settings, ScanStore(scans), ignored, lambda files: progress(files, len(files), "videos")
    )
    report(result)
    write_left_out(left_out_path(table), result.left_out)
    if not result.clips:
        raise DataError(f"{args.input_dir}: none of its {result.found} files can be used; the reasons stand above")
    changed = write_clips(table, result.clips)
    print(f"{table}: {'written' if changed else 'still valid, not touched'}", flush=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
