"""Videos that a browser has sent: looked at before anything uses them, and put into the folder of videos."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mmaudio.app.folders import Folders
from mmaudio.data.video_files import VIDEO_SUFFIXES
from mmaudio.errors import ConfigError, DataError
from mmaudio.media.video import probe
from mmaudio.utils.files import atomic_write


def check_upload(folders: Folders, path: str) -> Path:
    """The file of an upload that can be opened as a video; DataError for any other."""
    upload = folders.find_upload(path)
    if upload.suffix.lower() not in VIDEO_SUFFIXES:
        raise DataError(
            f"{upload.name}: no video file ({upload.suffix or 'no suffix'}); {', '.join(VIDEO_SUFFIXES)} are"
        )
    probe(upload)
    return upload


def add_upload(folders: Folders, path: str, target: Path) -> Path:
    """Put an upload into the folder `target` of videos under its own name; an existing file stays as it is."""
    upload = check_upload(folders, path)
    name = re.sub(r"[^\w. -]+", "_", upload.name).lstrip(". -")
    if (target / name).exists() or not name:
        raise ConfigError(f"{name}: is there already in {target.name}; rename the one or the other")
    with atomic_write(target / name) as temporary:
        shutil.copyfile(upload, temporary)
    return target / name
