"""The page in a real browser, from an upload to the report of a training."""

import json
import time
from contextlib import ExitStack, suppress

import pytest
from browser import chromium, missing_browser
from page_server import copy_checkout, serve_page, write_trained_adapter
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from mmaudio.app.detached_job import GPU_LOCK, RUNNING, DetachedJob
from mmaudio.app.folders import UPLOADS
from mmaudio.synthetic.demo import plan_demo_videos, write_demo_video
from mmaudio.utils.locks import FileLocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(bool(missing_browser()), reason=missing_browser() or "chromium is here"),
]
HOSTILE = "<img src=x onerror=window.hacked=1>"
TAKES = "return [...document.querySelectorAll('#takes video')].map(video => video.duration)"
JOB_STATE = "return (document.querySelector('#job-state textarea')?.value ?? '')"
WAIT, LONG_WAIT = 240, 900
"""Seconds after which a state that does not come is a failure, on the slowest machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos, one of them with HTML in its name and caption, and an experiment with an adapter."""
    folder = tmp_path_factory.mktemp("page")
    videos = plan_demo_videos(folder / "videos" / "dogs", 3, 2.0, 1)
    for video in videos:
        write_demo_video(video)
    videos[0].path.rename(videos[0].path.with_name(f"{HOSTILE}.mp4"))
    (folder / "videos" / "dogs" / f"{HOSTILE}.txt").write_text(f"{HOSTILE} {{{{constructor}}}} ${{window.hacked=1}}")
    (folder / "videos" / "dogs" / "notes.pdf").write_text("no video")
    write_trained_adapter(folder / "output" / "stars")
    yield folder
    job = DetachedJob(folder / "output" / "mini")
    if job.state() == RUNNING:  # where a test failed
        job.stop()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


def open_tab(browser, address, name):
    browser.open(address)
    tab = "[...document.querySelectorAll('button[role=tab]')].find(tab => tab.textContent.includes(arguments[0]))"
    browser.wait(f"return document.querySelector('#generate') && {tab}", name)
    browser.run(f"{tab}.click()", name)
    browser.wait(f"return {tab}?.ariaSelected == 'true'", name)


def wait_for_field(browser, field):
    browser.wait(f"return document.querySelector('{field}')?.getBoundingClientRect().width > 0")


def choose(browser, selector, text):
    """Choose from a list, once it offers this; a list that is drawn anew meanwhile closes."""
    field, end_time = f"{selector} input", time.monotonic() + WAIT
    option = "[...document.querySelectorAll('[role=option]')].find(item => item.textContent.includes(arguments[0]))"
    wait_for_field(browser, field)
    while browser.run(f"return document.querySelector('{field}').value") != text:
        assert time.monotonic() < end_time, f"{selector} does not offer {text}"
        if element := browser.run(f"return {option}", text):
            with suppress(WebDriverException):
                element.click()
        else:
            browser.run("document.activeElement.blur()")
            browser.click(field)
        time.sleep(0.1)


def fill(browser, selector, text):
    """Write into a field, once it is shown."""
    selector = f"{selector} textarea, {selector} input"
    wait_for_field(browser, selector)
    field = browser.find(selector)
    field.clear()
    field.send_keys(text, Keys.TAB)
    assert field.get_attribute("value") == text


def fits(browser):
    """Whether nothing is wider than a phone, once the page is laid out anew."""
    browser.resize(390, 844)
    browser.wait("return innerWidth == 390 && document.documentElement.scrollWidth <= 390")
    browser.resize(1280, 1400)
    return browser.wait("return innerWidth == 1280")


def check_safe(browser):
    assert browser.run("return window.hacked") is None
    assert {address.split("/")[2] for address in browser.requests() if address.startswith("http")} <= {browser.host}


def generate(browser, folder):
    """Upload a video, generate with the adapter, compare with the base at the same position."""
    choose(browser, "#adapter", "stars")
    upload = browser.driver.find_element(By.CSS_SELECTOR, "#upload input[type=file]")
    upload.send_keys(str(folder / "videos" / "dogs" / f"{HOSTILE}.mp4"))
    browser.wait("return document.querySelector('#upload video')")
    fill(browser, "#prompt", f"a star bounces {HOSTILE}")
    browser.click("#generate")
    browser.wait(f"{TAKES}.filter(length => length > 1.9).length == 2")
    media = "const media = [...document.querySelectorAll('#takes video')];"
    browser.run(f"{media} media[1].loop = true; media[1].playbackRate = 0.1; media[1].currentTime = 1")
    browser.run(f"{media} return media[1].play()")
    note = "window.switched = [media[0].currentTime, media[1].currentTime, media[1].paused]"
    browser.run(f"{media} media[0].addEventListener('play', () => {{ {note} }})")
    browser.click("#takes .switch")
    position, last_position, is_paused = browser.wait("return window.switched")
    assert is_paused and position == pytest.approx(last_position, abs=0.1)
    assert fits(browser)


def look(browser):
    """Look at the clips of a folder."""
    choose(browser, "#folder", "dogs")
    fill(browser, "#name", "mini")
    choose(browser, "#model", "tiny_16k")
    browser.click("#settings button")
    for selector, value in (("#train-steps", "2"), ("#clip-seconds", "2"), ("#test-ratio", "0.3")):
        fill(browser, selector, value)
    browser.click("#look")
    browser.wait("return document.querySelector('#captions')?.textContent.includes('hacked')")
    browser.wait("return document.querySelector('#left-out').textContent.includes('no video file')")
    assert fits(browser)


def wait_for_end(folder):
    """Wait until the training has ended; no page is open meanwhile."""
    job, end_time = DetachedJob(folder / "output" / "mini"), time.monotonic() + LONG_WAIT
    while job.state() == RUNNING:
        assert time.monotonic() < end_time, "\n".join(job.log_lines())
        time.sleep(0.2)


def test_from_an_upload_to_the_report(folder, checkout, tmp_path):
    locks = FileLocks(folder / "output" / UPLOADS)
    with ExitStack() as stack, chromium(tmp_path) as browser:
        browser.resize(1280, 1400)
        with serve_page(checkout, folder, kill=True) as server:
            browser.host = server.address.split("/")[2]
            open_tab(browser, server.address, "Generate")
            generate(browser, folder)
            open_tab(browser, server.address, "Train")
            look(browser)
            stack.enter_context(locks)
            assert locks.acquire(GPU_LOCK)  # the training waits until both pages have seen it run
            browser.click("#start")
            browser.wait(f"{JOB_STATE}.includes('mini: running')")
            browser.click("#start")
            browser.wait("return document.body.textContent.includes('mini: is running already')")
            check_safe(browser)
        with serve_page(checkout, folder) as server:  # another one: the first was killed
            browser.host = server.address.split("/")[2]
            open_tab(browser, server.address, "Train")
            browser.wait(f"{JOB_STATE}.includes('mini: running')")
            browser.open("about:blank")
            stack.close()
            wait_for_end(folder)
            open_tab(browser, server.address, "Train")
            browser.wait(f"{JOB_STATE}.includes('mini: done')")
            assert browser.wait("return document.querySelector('#losses svg')")
            report = browser.wait("return document.querySelector('#job-report a.report')?.href")
            open_tab(browser, server.address, "Experiments")
            browser.wait("return document.querySelector('#experiments')?.textContent.includes('mini')")
            assert fits(browser)
            browser.open(report)
            assert "did it help" in browser.driver.title
            assert browser.run("return fetch(PAGE.clips[0].files.adapted).then(answer => answer.status)") == 200
            check_safe(browser)
    end = json.loads((folder / "output" / "mini" / "page_job" / "end.json").read_text())
    assert end == {"status": 0}
