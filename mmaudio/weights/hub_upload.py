"""Upload of a folder to a repository on the Hugging Face hub, as one commit."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import logging as hub_logging

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.utils.hub_errors import client_errors, explain_hub_error, hub_address


def upload_folder(folder: Path, repository: str, private: bool, token: str | None, replaced: str) -> None:
    """Create the repository where there is none, and commit the files; those of the folder `replaced` go that are old.

    `token` None: HF_TOKEN, or what `hf auth login` has stored. All files arrive, or none. Raises WeightsError in one
    line where the hub refuses or the connection ends, ConfigError where a public repository is there and `private`.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    api, verbosity = HfApi(token=token), hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)  # a line for every time that it tries again says nothing to a user
    try:
        api.create_repo(repository, private=True if private else None, exist_ok=True)
        info = api.model_info(repository)
        if private and not info.private:
            raise ConfigError(
                f"--private: {hub_address(repository)} is there already, and public; take another name, or make it "
                "private on its page first"
            )
        present = [sibling.rfilename for sibling in info.siblings or []]
        old = [name for name in present if name.startswith(f"{replaced}/") and name not in files]
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        deletions = [CommitOperationDelete(name) for name in old]
        api.create_commit(repository, [*operations, *deletions], commit_message="Adapter of MMAudio-LoRA")
    except client_errors() as error:
        raise WeightsError(
            f"{repository}: cannot be pushed to {hub_address(repository)}: {explain_hub_error(error, repository)}"
        ) from error
    finally:
        hub_logging.set_verbosity(verbosity)
