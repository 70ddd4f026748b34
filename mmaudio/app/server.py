"""A page in the browser: generate, train, look at experiments.

    mmaudio-lora app --videos my_videos --output output

Reads and writes in these two folders only. It listens on this machine alone; with --host others reach it, and
--password or MMAUDIO_APP_PASSWORD is needed. A training that it starts goes on when the page or this program ends.
"""

from __future__ import annotations

from mmaudio import cli

if __name__ == "__main__":
    cli.handle_signals()  # the imports below take seconds

import importlib.util
import os
import threading
from pathlib import Path

from mmaudio.app.config import AppConfig
from mmaudio.app.folders import Folders
from mmaudio.errors import ConfigError
from mmaudio.utils.locks import FileLocks
from mmaudio.utils.terminal import print_lines

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
PASSWORD_VARIABLE = "MMAUDIO_APP_PASSWORD"
MIN_PASSWORD = 8
PAGE_LOCK = "the page"


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Serve a page in the browser: generate, train, look at experiments.")
    parser.add_argument("--videos", type=Path, default=Path("my_videos"), help="the folder of videos, made if absent")
    parser.add_argument("--output", type=Path, default=Path("output"), help="the folder of experiments and results")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 is all of them")
    parser.add_argument("--port", type=int, help="the first free one from 7860 on if not given")
    parser.add_argument(
        "--password", help=f"needed with --host; or set {PASSWORD_VARIABLE}, which no list of processes shows"
    )
    parser.add_argument("--max-upload", "--max_upload", type=int, default=500, help="MB of one uploaded file")
    parser.add_argument("--device", default="auto", help="of generation: auto, cpu, cuda, cuda:N or mps")
    parser.add_weights_flags()
    return parser


def read_password(host: str, flag: str | None) -> str:
    """The password, empty where none is needed; ConfigError where it is absent or short."""
    password = flag or os.environ.get(PASSWORD_VARIABLE, "")
    if not password and host not in LOCAL_HOSTS:
        raise ConfigError(f"--host {host}: others reach the page there; give a --password, or set {PASSWORD_VARIABLE}")
    if password and len(password) < MIN_PASSWORD:
        raise ConfigError(f"--password: {len(password)} characters; {MIN_PASSWORD} or more")
    return password


def check_extra() -> None:
    """ConfigError where Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError('the page needs Gradio, which is not installed: pip install "mmaudio-lora[ui]"')


def main(arguments: list[str]) -> int:
    """Serve the page until a signal ends it."""
    args = build_parser().parse_args(arguments)
    cli.check_at_least(args, port=1, max_upload=1)
    password = read_password(args.host, args.password)
    check_extra()
    weights = None if args.weights is None else args.weights.resolve()
    folders = Folders.create(args.videos, args.output)
    cli.pick_device(args.device)
    config = AppConfig(folders, weights, cli.is_offline(args.offline), args.device)
    os.environ["GRADIO_TEMP_DIR"] = str(folders.uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with FileLocks(folders.uploads) as locks:
        if not locks.acquire(PAGE_LOCK):
            raise ConfigError(
                f"{folders.output}: another app serves it{locks.describe_holder(PAGE_LOCK)}; open its page"
            )
        from mmaudio.app.page import build_page, launch_page

        page = build_page(config, locks)
        try:
            address = launch_page(page, config, args.host, args.port, password, f"{args.max_upload}mb")
            print_lines(
                f"videos:   {folders.videos}", f"results:  {folders.output}", f"page:     {address}", flush=True
            )
            threading.Event().wait()
        finally:
            page.close(verbose=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
