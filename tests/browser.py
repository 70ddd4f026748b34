"""Headless Chromium through chromedriver: what a reader of a page sees, does and is sent.

    with chromium(downloads) as browser:
        browser.open(path_of_a_page)

Speaks WebDriver (https://www.w3.org/TR/webdriver2/) by the standard library; the browser finds no host but loopback.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEYS = {" ": "\ue00d", "ArrowLeft": "\ue012", "ArrowRight": "\ue014", "Tab": "\ue004", "Enter": "\ue007"}
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--disable-background-networking",
    "--no-first-run",
)


def missing_browser() -> str:
    """Why pages cannot be driven here; empty where they can."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


class Browser:
    """One session, one window."""

    def __init__(self, address: str, downloads: Path) -> None:
        self._address = address
        chrome = {
            "args": list(ARGUMENTS),
            "binary": shutil.which("chromium"),
            "perfLoggingPrefs": {"enablePage": False},
        }
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": chrome,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{session['sessionId']}"
        self.devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def close(self) -> None:
        """End the session and its browser."""
        self._ask("DELETE", self._session)

    def open(self, page: Path) -> None:
        """Open a file, as a double click would."""
        self._ask("POST", f"{self._session}/url", {"url": page.as_uri()})

    def reload(self) -> None:
        """Load the page again."""
        self._ask("POST", f"{self._session}/refresh", {})

    def run(self, script: str, *arguments: object) -> Any:
        """What a function with this body returns; a promise is waited for."""
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector: str) -> None:
        """A real click on the first element that matches, scrolled into view."""
        self.run(
            "document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})", selector
        )
        element = self._ask("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"{self._session}/element/{element[ELEMENT]}/click", {})

    def click_at(self, selector: str, share: float) -> None:
        """A real click at this share of an element's width, at half its height."""
        self.run(
            "document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})", selector
        )
        box = self.run("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector)
        spot = {"x": box["left"] + share * box["width"], "y": box["top"] + box["height"] / 2, "button": "left"}
        for kind in ("mousePressed", "mouseReleased"):
            self.devtools("Input.dispatchMouseEvent", type=kind, clickCount=1, **spot)

    def press(self, key: str) -> None:
        """A key, where the focus is."""
        stroke = [{"type": kind, "value": KEYS.get(key, key)} for kind in ("keyDown", "keyUp")]
        self._ask("POST", f"{self._session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": stroke}]})

    def wait(self, script: str, *arguments: object, seconds: float = 20) -> Any:
        """What the script returns as soon as that is true; AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while not (answer := self.run(script, *arguments)):
            assert time.monotonic() < end, f"still not so: {script}"
            time.sleep(0.05)
        return answer

    def devtools(self, command: str, **parameters: object) -> Any:
        """A command of the DevTools protocol."""
        body = {"cmd": command, "params": parameters}
        return self._ask("POST", f"{self._session}/goog/cdp/execute", body)

    def resize(self, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Set the size in CSS pixels and the preferred colours."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """Write what is visible as PNG."""
        path.write_bytes(base64.b64decode(self._ask("GET", f"{self._session}/screenshot")))

    def errors(self) -> list[str]:
        """What the console showed since the last call, above the level of information."""
        lines = self._log("browser")
        return [line["message"] for line in lines if line["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call."""
        events = [json.loads(line["message"])["message"] for line in self._log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = self._ask("POST", f"{self._session}/se/log", {"type": kind})
        return lines

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None


@contextmanager
def chromium(downloads: Path) -> Iterator[Browser]:
    """A browser while the block runs; what it downloads goes to `downloads`."""
    command = ["chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        try:
            assert driver.stdout is not None
            line = ""
            while not (port := re.search(r"on port (\d+)\.", line)):
                line = driver.stdout.readline()
                assert line, "chromedriver ended"
            browser = Browser(f"http://127.0.0.1:{port[1]}", downloads)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
