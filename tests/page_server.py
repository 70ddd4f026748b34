"""The page as a user starts it: the command as a process, from a checkout without the clips that ship with tiny_16k.

Those are for the measure of forgetting, which takes longer than everything that the page's tests are about.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from helpers import ROOT

from mmaudio.api import load_pretrained_with_lora
from mmaudio.lora.adapter import LoRAConfig, adapter_state
from mmaudio.lora.checkpoint import AdapterFile, write_adapter
from mmaudio.weights.store import component_sha256

LIMIT = 600
"""Seconds after which an answer that does not come is a failure."""
PARTS_OF_A_CHECKOUT = ("train_lora.py", "evaluate_lora.py", "training", "config", "mmaudio")


def copy_checkout(folder: Path) -> Path:
    """A copy of the checkout in `folder`, without the clips that ship."""
    for name in PARTS_OF_A_CHECKOUT:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
        else:
            ignored = shutil.ignore_patterns("__pycache__", "general")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored, dirs_exist_ok=True)
    return folder


def write_trained_adapter(experiment: Path) -> None:
    """An adapter of tiny_16k with small random values, as an experiment has it."""
    generator, config = torch.Generator().manual_seed(0), LoRAConfig(rank=4, alpha=8.0)
    model = load_pretrained_with_lora("tiny_16k", lora_config=config, device="cpu").peft_model
    state = {
        name: value + 0.02 * torch.randn(value.shape, generator=generator)
        for name, value in adapter_state(model).items()
    }
    path = experiment / "lora_checkpoints" / "best_lora.pt"
    path.parent.mkdir(parents=True)
    sha256, targets = component_sha256("tiny_16k", "network"), list(model.base_model.targeted_module_names)
    write_adapter(path, AdapterFile(config, state, "tiny_16k", sha256, targets))


class PageServer:
    """The running command, and requests to it that no page would make."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process, self.address = process, address

    def get(self, path: str, host: str | None = None) -> tuple[int, bytes]:
        """Status and body of a request."""
        headers = {} if host is None else {"Host": host}
        return self._open(urllib.request.Request(f"{self.address}{path}", headers=headers))

    def upload(self, name: str, content: bytes) -> tuple[int, bytes]:
        """Status and body of an upload."""
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        connection = http.client.HTTPConnection(self.address.split("/")[2], timeout=LIMIT)
        with suppress(ConnectionError):  # it may answer and close before everything is sent
            connection.request("POST", "/gradio_api/upload", head + content + b"\r\n--x--\r\n", kind)
        with closing(connection):
            answer = connection.getresponse()
            return answer.status, answer.read()

    def call(self, button: str, changes: dict[int, Any]) -> str:
        """The last event after a click on a button, with other values for some of its fields, by their numbers."""
        session = uuid.uuid4().hex  # the server forgets what waits in one that a client has left
        page = json.loads(self.get("config")[1])
        components = {item["id"]: item for item in page["components"]}
        event = next(
            item
            for item in page["dependencies"]
            for target, _ in item["targets"]
            if target in components and components[target]["props"].get("elem_id") == button
        )
        values = [components[number]["props"].get("value") for number in event["inputs"]]
        data = [changes.get(place, value) for place, value in enumerate(values)]
        body = {"data": data, "fn_index": event["id"], "session_hash": session, "event_data": None}
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}gradio_api/queue/join", json.dumps(body).encode(), kind)
        status, answer = self._open(request)
        if status != 200:
            return answer.decode()
        with urllib.request.urlopen(
            f"{self.address}gradio_api/queue/data?session_hash={session}", timeout=LIMIT
        ) as lines:
            for line in lines:
                if b'"process_completed"' in line:
                    return str(line.decode())
        return ""

    def _open(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@contextmanager
def serve_page(checkout: Path, folder: Path, *flags: str, kill: bool = False) -> Iterator[PageServer]:
    """The page over `videos` and `output` in `folder`; ended by SIGTERM, or killed."""
    command = [sys.executable, "-m", "mmaudio.commands", "app", "--videos", "videos", "--output", "output", *flags]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    with (folder / "page.log").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = ""
        while not (address := re.search(r"http://\S+", line)):
            line = process.stdout.readline()
            assert line, (folder / "page.log").read_text()
        yield PageServer(process, address[0])
    finally:
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        process.wait(LIMIT)
        process.stdout.close()
