"""The page in a real browser, from an upload to the report of a training."""

import json
import time

import pytest
from browser import chromium, missing_browser
from page_server import copy_checkout, serve_page, write_trained_adapter
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from mmaudio.app.detached_job import RUNNING, DetachedJob
from mmaudio.synthetic.demo import plan_demo_videos, write_demo_video

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
    browser.wait("return document.querySelector('#generate')", seconds=WAIT)
    tab = "[...document.querySelectorAll('button[role=tab]')].find(tab => tab.textContent.includes(arguments[0]))"
    browser.run(f"{tab}.click()", name)


def choose(browser, selector, text):
    """Choose from a list, once it offers this."""
    browser.wait(f"return document.querySelector('{selector} input').getBoundingClientRect().width > 0", seconds=WAIT)
    option = "[...document.querySelectorAll('[role=option]')].find(item => item.textContent.includes(arguments[0]))"
    browser.click(f"{selector} input")
    browser.wait(f"return {option}", text)
    browser.driver.execute_script(f"return {option}", text).click()


def fill(browser, selector, text):
    """Write into a field, once it is shown."""
    field = f"{selector} textarea, {selector} input"
    browser.wait(f"return document.querySelector('{field}')?.getBoundingClientRect().width > 0", seconds=WAIT)
    field = browser.find(field)
    field.clear()
    field.send_keys(text, Keys.TAB)


def fits(browser):
    """Whether nothing is wider than a phone."""
    browser.resize(390, 844)
    width = browser.run("return document.documentElement.scrollWidth")
    browser.resize(1280, 1400)
    return width <= 390


def check_safe(browser):
    assert browser.run("return window.hacked") is None
    assert {address.split("/")[2] for address in browser.requests() if address.startswith("http")} <= {browser.host}


def generate(browser, folder):
    """Upload a video, generate with the adapter, compare with the base at the same position."""
    choose(browser, "#adapter", "stars")
    upload = browser.driver.find_element(By.CSS_SELECTOR, "#upload input[type=file]")
    upload.send_keys(str(folder / "videos" / "dogs" / f"{HOSTILE}.mp4"))
    browser.wait("return document.querySelector('#upload video')", seconds=WAIT)
    fill(browser, "#prompt", f"a star bounces {HOSTILE}")
    browser.click("#generate")
    browser.wait(f"{TAKES}.filter(length => length > 1.9).length == 2", seconds=WAIT)
    media = "[...document.querySelectorAll('#takes video')]"
    browser.run(f"{media}[1].playbackRate = 0.1; {media}[1].currentTime = 1; return {media}[1].play()")
    browser.click("#takes .switch")
    browser.wait(f"const [base, adapted] = {media}; return !base.paused && adapted.paused && base.currentTime >= 1")
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
    browser.wait("return document.querySelector('#captions')?.textContent.includes('hacked')", seconds=WAIT)
    assert "no video file" in browser.run("return document.querySelector('#left-out').textContent")
    assert fits(browser)


def wait_for_end(folder):
    """Wait until the training has ended; no page is open meanwhile."""
    job, end_time = DetachedJob(folder / "output" / "mini"), time.monotonic() + LONG_WAIT
    while job.state() == RUNNING:
        assert time.monotonic() < end_time, "\n".join(job.log_lines())
        time.sleep(0.2)


def test_from_an_upload_to_the_report(folder, checkout, tmp_path):
    with chromium(tmp_path) as browser:
        browser.resize(1280, 1400)
        with serve_page(checkout, folder, kill=True) as server:
            browser.host = server.address.split("/")[2]
            open_tab(browser, server.address, "Generate")
            generate(browser, folder)
            open_tab(browser, server.address, "Train")
            look(browser)
            browser.click("#start")
            browser.wait(f"{JOB_STATE}.includes('mini: running')", seconds=WAIT)
            browser.click("#start")
            browser.wait("return document.body.textContent.includes('mini: is running already')", seconds=WAIT)
            check_safe(browser)
        with serve_page(checkout, folder) as server:  # another one: the first was killed
            browser.host = server.address.split("/")[2]
            open_tab(browser, server.address, "Train")
            browser.wait(f"{JOB_STATE}.includes('mini: running')", seconds=WAIT)
            browser.open("about:blank")
            wait_for_end(folder)
            open_tab(browser, server.address, "Train")
            browser.wait(f"{JOB_STATE}.includes('mini: done')", seconds=WAIT)
            assert browser.wait("return document.querySelector('#losses svg')", seconds=WAIT)
            report = browser.wait("return document.querySelector('#job-report a.report')?.href", seconds=WAIT)
            open_tab(browser, server.address, "Experiments")
            browser.wait("return document.querySelector('#experiments')?.textContent.includes('mini')", seconds=WAIT)
            assert fits(browser)
            browser.open(report)
            assert "did it help" in browser.driver.title
            assert browser.run("return fetch(PAGE.clips[0].files.adapted).then(answer => answer.status)") == 200
            check_safe(browser)
    end = json.loads((folder / "output" / "mini" / "page_job" / "end.json").read_text())
    assert end == {"status": 0}
