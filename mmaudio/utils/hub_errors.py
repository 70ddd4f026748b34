"""Errors of the Hugging Face hub's client in a line that says what to do.

The client is imported where it is used: with its HTTP package it takes a quarter of a second.
"""

from __future__ import annotations

from huggingface_hub import constants


def download_errors() -> tuple[type[Exception], ...]:
    """Exceptions that a download raises, with those of the HTTP package that the hub's client is built on."""
    from huggingface_hub import errors

    return (OSError, RuntimeError, *errors.HfHubHTTPError.__bases__)


def client_errors() -> tuple[type[Exception], ...]:
    """The same of every other call; ValueError is an answer that the client does not understand."""
    return (*download_errors(), ValueError)


def explain_hub_error(error: Exception, repository: str) -> str:
    """Why the hub has not done what was asked, in one line."""
    from huggingface_hub import errors

    wrappers = (RuntimeError, errors.LocalEntryNotFoundError)  # raised around the error that says more
    while isinstance(error, wrappers) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to connect; unset it"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    message = error.server_message if isinstance(error, errors.HfHubHTTPError) else None
    answer = f" ({' '.join(message.split())})" if message else ""
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if status == 401 and "Invalid credentials" in str(error):
        return "the token is wrong or has ended; set HF_TOKEN to another, or log in again with `hf auth login`"
    if status == 401:
        return f"it wants a token, or has no {repository}; set HF_TOKEN, or log in with `hf auth login`"
    if status == 404 or isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no {repository}, or no right to see it"
    if status == 403:
        return f"it refuses{answer}; the token needs the right to do so in {repository.split('/')[0]}'s repositories"
    if status == 409:
        return f"another change came first, or the name is taken{answer}; run it again, or take another name"
    reason = (str(error).strip().splitlines() or [""])[0].removesuffix(".") or type(error).__name__
    return f"{reason}{answer}"


def hub_address(repository: str) -> str:
    """The address of a repository's page."""
    return f"{constants.ENDPOINT}/{repository}"
