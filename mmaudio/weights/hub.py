"""Files of repositories on the Hugging Face hub, in its own cache, where other programs look for them too."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache

from mmaudio.errors import WeightsError
from mmaudio.utils.progress import PlainBar, amount

FAILURES: tuple[type[Exception], ...] = (OSError, RuntimeError, *errors.HfHubHTTPError.__bases__)
"""What a download raises: also the errors of the HTTP package that the hub's client happens to be built on."""


def cache() -> Path:
    """The hub's cache."""
    return Path(constants.HF_HUB_CACHE)


def cached(repository: str, names: Sequence[str]) -> Path | None:
    """The first of the files that is in the cache; nothing is connected to."""
    for name in names:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def fetch(repository: str, names: Sequence[str], size: int) -> Path:
    """The first of the files that the repository has, through the hub's client: it resumes, locks and shows progress.

    Raises WeightsError in one line where it is not there, cannot be reached or has no room.
    """
    print(f"{names[0]}: fetching about {amount(size)} from {constants.ENDPOINT}/{repository}", flush=True)
    bar = None if sys.stderr.isatty() else PlainBar  # None: the client's own
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, tqdm_class=bar))
        except errors.LocalEntryNotFoundError as error:  # it is an EntryNotFoundError too
            raise _failed(repository, name, error) from error
        except errors.EntryNotFoundError:
            continue
        except FAILURES as error:
            raise _failed(repository, name, error) from error
    raise WeightsError(f"{' or '.join(names)}: not in {constants.ENDPOINT}/{repository}; get it elsewhere")


def _failed(repository: str, name: str, error: Exception) -> WeightsError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return WeightsError(
            f"{name}: no space left in {cache()}; make room, and the same command goes on, or set HF_HOME to a folder "
            "on another disk"
        )
    cause = error.__cause__ or error
    reason = (str(cause).splitlines() or [type(cause).__name__])[0].removesuffix(".")
    return WeightsError(
        f"{name}: cannot be fetched from {constants.ENDPOINT}/{repository} ({reason}); the same command goes on where "
        "it stopped"
    )


def expected_sha256(path: Path) -> str | None:
    """What the hub says of a file in its cache, which names large files by their SHA-256; None for any other file."""
    blob = path.resolve()
    if not path.is_relative_to(cache()) or not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return None
    return blob.name
