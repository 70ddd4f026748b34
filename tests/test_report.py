"""The report as its readers use it: in headless Chromium, from disk."""

import json
import time

import pytest
import report_material
from browser import absent, chromium
from scipy import stats

from mmaudio.evaluation.report import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(absent()), reason=absent() or "chromium is here")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    results = report_material.make_results(folder)
    page = folder / "index.html"
    write_report(page, report_material.with_strengths(results), None, report_material.background(results))
    return page


@pytest.fixture
def reader(page, tmp_path):
    """A browser with the page open; at the end it has shown no errors and asked no host."""
    with chromium(tmp_path) as browser:
        browser.look(1280, 900)
        browser.open(page)
        browser.downloads = tmp_path
        yield browser
        assert browser.errors() == []
        assert {address.split(":")[0] for address in browser.requests()} <= {"file", "data", "blob"}


def test_a_source_is_changed_at_the_same_position(reader):
    reader.click("#clip-1 .play")
    reader.wait("return deck.position > 0.5")
    before = reader.run("return [deck.owner.chosen, deck.position]")
    for key, name in (("1", "original"), ("2", "base"), ("3", "adapted")):
        reader.press(key)
        chosen, position = reader.run("return [deck.owner.chosen, deck.position]")
        assert chosen == name and before[1] <= position < before[1] + 3
        heard = reader.run("return [...deck.sounds].filter(([n, s]) => !s.muted).map(([n, s]) => n)")
        assert heard == [name]
    reader.press(" ")
    assert reader.run("return deck.playing") is False


def test_blind_votes_count_and_survive_a_reload(reader):
    reader.run("document.querySelector('#blind-start').click()")
    reader.press(" ")
    reader.wait("return heard.a > 0.6")
    reader.press("2")
    reader.wait("return !panel.votes[0].disabled")
    reader.click("[data-vote=b]")
    assert reader.run("return Object.keys(blind.state.votes).length") == 1
    reader.reload()
    end = time.monotonic() + 30  # the browser hands on what is stored in the background
    while "1 of 6" not in (said := reader.run("return byId('blind-kept').textContent")):
        kept = reader.run("return [blind.key, {...localStorage}]")
        assert time.monotonic() < end, f"the vote is not kept: {said!r}, {kept}"
        time.sleep(0.5)
        reader.reload()


@pytest.mark.parametrize(("wins", "votes"), [(0, 9), (12, 15), (5, 5), (1, 2), (40, 100)])
def test_the_interval_is_clopper_and_pearsons(reader, wins, votes):
    found = reader.run("return exactInterval(arguments[0], arguments[1])", wins, votes)
    assert found == pytest.approx(list(stats.binomtest(wins, votes).proportion_ci(method="exact")), abs=1e-6)


def test_the_votes_are_exported(reader):
    reader.run("document.querySelector('#blind-start').click()")
    reader.press(" ")
    reader.wait("return heard.a > 0.6")
    reader.press("2")
    reader.wait("return !panel.votes[0].disabled")
    reader.click("[data-vote=a]")
    reader.run("document.querySelector('#blind-show').click()")
    reader.run("document.querySelector('#blind-export').click()")
    end = time.monotonic() + 20
    while not list(reader.downloads.glob("*.json")):
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.1)
    assert json.loads(next(reader.downloads.glob("*.json")).read_text())["votes"]


def test_the_table_by_clip_sorts(reader):
    starts = (
        "return [...document.querySelectorAll('#by-clip-table tbody tr')].map(r => Number(r.cells[1].dataset.value))"
    )
    header = "document.querySelectorAll('#by-clip-table thead button')[1].click()"
    reader.run(header)
    assert reader.run(starts) == sorted(reader.run(starts))
    reader.run(header)
    assert reader.run(starts) == sorted(reader.run(starts), reverse=True)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_the_whole_width(reader, dark):
    reader.look(390, 844, dark)
    assert reader.run("return document.documentElement.scrollWidth") <= 390
