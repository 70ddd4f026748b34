"""Files of repositories on the Hugging Face hub, in the hub's cache that other programs share."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants

from mmaudio.errors import WeightsError
from mmaudio.utils.heartbeat import has_bars
from mmaudio.utils.hub_errors import download_errors
from mmaudio.utils.progress import PlainBar, format_bytes
from mmaudio.utils.terminal import print_lines


def cache_folder() -> Path:
    """The hub's cache."""
    return Path(constants.HF_HUB_CACHE)


def find_cached(repository: str, names: Sequence[str]) -> Path | None:
    """The first of the files `names` that is in the cache, None where there is none; never connects."""
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        path = try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            return Path(path)
    return None


def fetch_file(repository: str, names: Sequence[str], size: int) -> Path:
    """Download the first of the files `names` that the repository has, with the hub's client.

    The client resumes, locks and shows progress. Raises WeightsError in one line where the file does not exist, the hub
    cannot be reached or the disk is full.
    """
    from huggingface_hub import errors, hf_hub_download

    print_lines(f"{names[0]}: fetching about {format_bytes(size)} from {constants.ENDPOINT}/{repository}", flush=True)
    bar_class = None if has_bars() else PlainBar  # None: the client's own bar
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, tqdm_class=bar_class))
        except errors.LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError
            raise _fetch_error(repository, name, error) from error
        except errors.EntryNotFoundError:
            continue
        except download_errors() as error:
            raise _fetch_error(repository, name, error) from error
    raise WeightsError(f"{' or '.join(names)}: not in {constants.ENDPOINT}/{repository}; get it elsewhere")


def _fetch_error(repository: str, name: str, error: Exception) -> WeightsError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return WeightsError(
            f"{name}: no space left in {cache_folder()}; make room, and the same command goes on, or set HF_HOME to a "
            "folder on another disk"
        )
    cause = error.__cause__ or error
    reason = (str(cause).splitlines() or [type(cause).__name__])[0].removesuffix(".")
    return WeightsError(
        f"{name}: cannot be fetched from {constants.ENDPOINT}/{repository} ({reason}); the same command goes on where "
        "it stopped"
    )


def expected_sha256(path: Path) -> str | None:
    """The SHA-256 of a large file in the hub's cache, which names blobs by it; None for any other file."""
    blob = path.resolve()
    if not path.is_relative_to(cache_folder()) or not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return None
    return blob.name
