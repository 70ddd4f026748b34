"""What the tabs share: errors as messages in the page, and numbers that a browser has sent."""

from __future__ import annotations

import functools
import html
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

from mmaudio import cli
from mmaudio.errors import ConfigError, MMAudioError
from mmaudio.utils.escapes import escape_controls

GPU_QUEUE: dict[str, Any] = {"concurrency_id": "gpu", "concurrency_limit": 1}
"""Of the events that compute: one after another, whichever browser they come from."""
LARGEST = 1e15
"""Numbers from here on are none that a field means."""
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
"""Of every event: the page is no programming interface."""


def explain_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """`handler`, function or generator, whose errors that a user can mend are shown in the page; text, not HTML."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def run_steps(*values: Any) -> Iterator[Any]:
            """The generator's values; errors are the page's."""
            try:
                yield from handler(*values)
            except (MMAudioError, OSError, MemoryError, RuntimeError) as error:
                raise page_error(error) from error

        return run_steps

    @functools.wraps(handler)
    def run(*values: Any) -> Any:
        """The function's result; errors are the page's."""
        try:
            return handler(*values)
        except (MMAudioError, OSError, MemoryError, RuntimeError) as error:
            raise page_error(error) from error

    return run


def page_error(error: Exception) -> Exception:
    """Gradio's error for one that a user can mend; any other as it is."""
    import gradio

    if isinstance(error, OSError):
        error = cli.describe_os_error(error)
    explained = cli.describe_out_of_memory(error, "take fewer takes or a shorter video") or error
    if not isinstance(explained, MMAudioError):
        return error
    shown: Exception = gradio.Error(html.escape(escape_controls(str(explained))), duration=None, print_exception=False)
    return shown


def whole_number(value: object, label: str) -> int | None:
    """A number of a field, None for an empty one; ConfigError for a fraction or anything else."""
    number = decimal(value, label)
    if number is not None and number != int(number):
        raise ConfigError(f"{label} {number:g}: a whole number")
    return None if number is None else int(number)


def decimal(value: object, label: str) -> float | None:
    """A number of a field, None for an empty one; ConfigError for anything else, infinity too."""
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) < LARGEST:
        raise ConfigError(f"{label} {text[:20]}: a number is expected")
    return number


def list_field(gr: Any, choices: list[Any], **settings: Any) -> Any:
    """A field for a name from a list that grows; this package checks what comes back.

    Gradio would, too, and show a name that is no longer there as HTML.
    """
    return gr.Dropdown(choices, allow_custom_value=True, **settings)


def optional_number(gr: Any, label: str, **settings: Any) -> Any:
    """A field for a number that may be empty; Gradio's own shows 0 then, and sends it."""
    return gr.Textbox(label=label, max_lines=1, **settings)


def text_field(value: object) -> str:
    """The text of a field."""
    return value if isinstance(value, str) else ""
