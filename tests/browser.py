"""Headless Chromium through selenium: what a reader of a page sees, does and is sent.

    with chromium(downloads) as browser:
        browser.open(address_of_a_page)

The browser finds no host but loopback.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

KEYS = {" ": Keys.SPACE, "ArrowLeft": Keys.ARROW_LEFT, "ArrowRight": Keys.ARROW_RIGHT, "Enter": Keys.ENTER}
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--no-first-run",
)
STANDS_STILL = """
const element = document.querySelector(arguments[0]);
if (!element) return false;
element.scrollIntoView({block: 'center', behavior: 'instant'});
const {x, y} = element.getBoundingClientRect();
return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
  const later = element.getBoundingClientRect();
  done(element.isConnected && later.x === x && later.y === y);
})));
"""
"""Whether an element is there and stays where it is from one picture to the next: what loads above it moves it."""
CENTRE = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"


def missing_browser() -> str:
    """Why pages cannot be driven here; empty where they can."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


class Browser:
    """One session, one window."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver = driver
        self.run = driver.execute_script
        """What a function with this body returns; a promise is waited for."""
        self.reload = driver.refresh
        self.devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def open(self, page: Path | str) -> None:
        """Open a file, as a double click would, or an address."""
        self.driver.get(page.as_uri() if isinstance(page, Path) else page)

    def find(self, selector: str) -> WebElement:
        """The first element that matches, scrolled into view."""
        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        self.run(CENTRE, element)
        return element

    def click(self, selector: str) -> None:
        """A real click on the first element that matches, once it is there and stands still."""
        self.wait(STANDS_STILL, selector)
        self.find(selector).click()

    def click_at(self, selector: str, share: float) -> None:
        """A real click at this share of an element's width, at half its height."""
        element = self.find(selector)
        offset = round((share - 0.5) * element.rect["width"])
        ActionChains(self.driver, duration=0).move_to_element_with_offset(element, offset, 0).click().perform()

    def press(self, key: str) -> None:
        """A key, where the focus is."""
        ActionChains(self.driver).send_keys(KEYS.get(key, key)).perform()

    def wait(self, script: str, *arguments: object, seconds: float = 240) -> Any:
        """What the script returns as soon as that is true; AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while not (answer := self.run(script, *arguments)):
            assert time.monotonic() < end, f"still not so: {script}"
            time.sleep(0.05)
        return answer

    def devtools(self, command: str, **parameters: object) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def resize(self, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Set the size in CSS pixels and the preferred colours."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """Write what is visible as PNG."""
        self.driver.save_screenshot(str(path))

    def errors(self) -> list[str]:
        """What the console showed since the last call, above the level of information."""
        return [line["message"] for line in self._log("browser") if line["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call."""
        events = [json.loads(line["message"])["message"] for line in self._log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = self.driver.get_log(kind)
        return lines


@contextmanager
def chromium(downloads: Path) -> Iterator[Browser]:
    """A browser while the block runs; what it downloads goes to `downloads`."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.add_experimental_option("perfLoggingPrefs", {"enablePage": False})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(240)
    try:
        yield Browser(driver, downloads)
    finally:
        driver.quit()
