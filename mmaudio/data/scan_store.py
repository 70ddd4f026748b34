"""Store of video scans in a JSON lines file, so that a second run decodes only files that changed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmaudio.data.scan import MeasuredWindow, ScanSettings, VideoScan, scan_key
from mmaudio.utils.files import unwritable_error

_KEYS = {"windows": "spans"}
"""Keys in the file that differ from the names of VideoScan's fields."""


class ScanStore:
    """The scans of a folder in a file of JSON lines; a line is appended as soon as a video has been scanned."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        self._ends_within_line = bool(text) and not text.endswith("\n")
        scans = [_parse_scan(line) for line in text.split("\n")]
        self._scans = {scan.key: scan for scan in scans if scan is not None}

    def find(self, path: Path, settings: ScanSettings, video: str) -> VideoScan | None:
        """The scan of the file `path`, known as `video`, where neither it nor the settings changed."""
        return self._scans.get(scan_key(path, settings, video))

    def add(self, scan: VideoScan) -> None:
        """Append `scan`; MMAudioError where the file cannot be written."""
        self._scans[scan.key] = scan
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._ends_within_line + json.dumps(_to_json(scan), ensure_ascii=False) + "\n")
        except OSError as error:
            raise unwritable_error(self.path, error) from error
        self._ends_within_line = False


def _to_json(scan: VideoScan) -> dict[str, Any]:
    return {_KEYS.get(name, name): value for name, value in asdict(scan).items()}


def _parse_scan(line: str) -> VideoScan | None:
    """The scan of a line; None for one that a kill truncated."""
    try:
        content = json.loads(line)
        windows = [MeasuredWindow(**window) for window in content.pop("spans")]
        return VideoScan(**content, windows=windows)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
