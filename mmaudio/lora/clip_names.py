"""Names of clips and videos in an adapter's file: hashes of them in files that leave the machine.

data = hash_names(adapter.data)                       # {"train": {"clips": 35, "videos": ["sha256:1f0c..."], ...}}
is_listed("dog.mp4", data["train"]["videos"])         # True: whoever has the video can tell, nobody else
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

_PREFIX = "sha256:"
_LISTS = ("ids", "videos")
"""Entries that hold names."""


def hash_name(name: str) -> str:
    """A hash in place of a name; of a hash, the hash."""
    return name if name.startswith(_PREFIX) else _PREFIX + hashlib.sha256(name.encode()).hexdigest()[:16]


def hash_names(data: Mapping[str, Any]) -> dict[str, Any]:
    """The `data` of an adapter's file with hashes in place of names; counts stay."""
    hashed: dict[str, Any] = {}
    for key, value in data.items():
        if key in _LISTS:
            hashed[key] = [hash_name(str(name)) for name in value]
        elif isinstance(value, list):  # the lineage
            hashed[key] = [hash_names(entry) if isinstance(entry, Mapping) else entry for entry in value]
        else:
            hashed[key] = hash_names(value) if isinstance(value, Mapping) else value
    return hashed


def hide_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training without the names of the user's files: of videos to hear samples of, of folders."""
    hidden = dict(config)
    if hidden.get("init_from"):
        hidden["init_from"] = PurePath(hidden["init_from"]).name
    if "sample_videos" in (logging := hidden.get("logging") or {}):
        hidden["logging"] = {**logging, "sample_videos": []}
    return hidden


def is_listed(name: str, names: Collection[str]) -> bool:
    """Whether `names`, or hashes of names, include `name`."""
    return name in names or hash_name(name) in names
