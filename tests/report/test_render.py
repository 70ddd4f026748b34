"""The report as its readers use it: in headless Chromium, from disk."""

import json
import time

import pytest
import report_results
from browser import chromium, missing_browser
from scipy import stats

from mmaudio.report.number_format import format_number
from mmaudio.report.render import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(bool(missing_browser()), reason=missing_browser() or "chromium is here"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    results = report_results.make_results(folder)
    page = folder / "index.html"
    write_report(page, report_results.with_strengths(results), None, report_results.make_provenance(results))
    return page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests: to start one takes longer than most of them."""
    downloads = tmp_path_factory.mktemp("downloads")
    with chromium(downloads) as browser:
        browser.downloads = downloads
        yield browser


@pytest.fixture
def reader(page, browser):
    """A browser with the page open for the first time; at the end it has shown no errors and asked no host."""
    browser.resize(1280, 900)
    browser.open("about:blank")
    browser.errors(), browser.requests()  # those of an earlier test that failed
    browser.open(page)
    if browser.run("localStorage.clear(); history.replaceState(null, ''); return blind.state"):
        browser.reload()
    assert browser.run("return [blind.state, history.state]") == [None, None]
    yield browser
    assert browser.errors() == []
    assert {address.split(":")[0] for address in browser.requests()} <= {"file", "data", "blob"}


RATE = 0.0625
"""The slowest that the browser plays: the clip outlasts the test on any machine."""
SLOWLY = f"""
const play = HTMLMediaElement.prototype.play;
HTMLMediaElement.prototype.play = function () {{ this.playbackRate = {RATE}; return play.call(this); }};
"""


def test_switching_the_audio_source_keeps_the_position(reader):
    reader.run(SLOWLY)
    reader.click("#clip-1 .play")
    reader.wait("if (deck.position <= 0.05) return false; deck.seek(1); return true")
    reader.wait("return deck.position > 1")
    tolerance, before, start = reader.run("return [AUDIO_TOLERANCE, deck.position, performance.now()]")
    for number, name in enumerate(("original", "base", "adapted"), 1):
        reader.press(str(number))
        chosen, position, now = reader.run("return [deck.player.selected, deck.position, performance.now()]")
        played, slack = RATE * (now - start) / 1000, number * tolerance  # at each switch
        assert chosen == name and before - slack <= position <= before + played + slack
        heard = reader.run("return [...deck.sounds].filter(([n, s]) => !s.muted).map(([n, s]) => n)")
        assert heard == [name]
    reader.press(" ")
    assert reader.run("return deck.playing") is False


def listen(reader, condition):
    """Listen to the pair until `condition` holds: from the beginning again where it has ended."""
    reader.wait(f"if (!deck.playing) deck.play(); return {condition}", seconds=120)


REFUSED = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }"


@pytest.mark.parametrize("stored", [True, False])
def test_blind_votes_count_and_survive_a_reload(reader, stored):
    if not stored:
        reader.run(REFUSED)
    reader.run("document.querySelector('#blind-start').click()")
    reader.press(" ")
    listen(reader, "listened.a > 0.6")
    reader.press("2")
    listen(reader, "!panel.votes[0].disabled")
    reader.click("[data-vote=b]")
    assert reader.run("return Object.keys(blind.state.votes).length") == 1
    stored, text = reader.run("return [blind.stored, byId('blind-storage').textContent]")
    assert stored == (reader.run("return localStorage.getItem(blind.key)") is not None)
    assert ("1 of 6" in text) if stored else ("does not keep votes" in text and "export" in text)
    reader.reload()
    assert "1 of 6" in reader.run("return byId('blind-storage').textContent")
    assert reader.run("return blind.state.votes.length") == 1


def test_an_unplayable_pair_does_not_reveal_its_source(reader):
    reader.run("for (const clip of PAGE.clips) clip.files.adapted = 'data:audio/flac,adapted'")
    reader.run("document.querySelector('#blind-start').click()")
    reader.wait("return !pair.error.hidden")
    messages = reader.run("return [pair.error.innerText, byId('status').textContent]")
    assert "cannot be played" in messages[0] and "adapted" not in "".join(messages)


def test_starting_over_deletes_the_votes(reader):
    vote = "blind.state = newState(); blind.state.votes.push({ preferred: 'base' }); saveState(); showView('intro')"
    reader.run(f"{vote}; window.confirm = () => true")
    reader.run("panel.clear.click()")
    reader.reload()
    assert reader.run("return blind.state") is None


def test_deleted_votes_do_not_return_from_the_tabs_history(reader):
    vote = "blind.state = newState(); blind.state.votes.push({ preferred: 'base' }); saveState(); showView('intro')"
    reader.run(f"{vote}; window.confirm = () => true; location.hash = '#clip-1'")
    reader.run("panel.clear.click(); history.back()")
    reader.wait("return location.hash === '' && !history.state?.[blind.key]")
    reader.run("localStorage.clear()")
    reader.reload()
    assert reader.run("return blind.state") is None


@pytest.mark.parametrize(("wins", "votes"), [(0, 9), (12, 15), (5, 5), (1, 2), (40, 100)])
def test_the_vote_interval_is_clopper_pearson(reader, wins, votes):
    interval = reader.run("return exactInterval(arguments[0], arguments[1])", wins, votes)
    assert interval == pytest.approx(list(stats.binomtest(wins, votes).proportion_ci(method="exact")), abs=1e-6)


def test_the_votes_are_exported(reader):
    reader.run("document.querySelector('#blind-start').click()")
    reader.press(" ")
    listen(reader, "listened.a > 0.6")
    reader.press("2")
    listen(reader, "!panel.votes[0].disabled")
    reader.click("[data-vote=a]")
    reader.run("document.querySelector('#blind-show').click()")
    reader.run("document.querySelector('#blind-export').click()")
    end = time.monotonic() + 120
    while not list(reader.downloads.glob("*.json")):
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.1)
    assert json.loads(next(reader.downloads.glob("*.json")).read_text())["votes"]


def test_numbers_are_written_alike_by_page_and_script(reader):
    values = [0, 1e-9, 3e-6, 0.00042, -0.0123, 0.5, 9.87, -123.45, 12345.6]
    assert reader.run("return arguments[0].map(formatNumber)", values) == [format_number(value) for value in values]


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
def test_the_page_fits_a_phones_width(reader, dark):
    reader.resize(390, 844, dark)
    assert reader.run("return document.documentElement.scrollWidth") <= 390


CONTRAST = """
const colour = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return { rgb: [r, g, b], a }; };
const over = (top, under) => top.rgb.map((value, i) => value * top.a + under[i] * (1 - top.a));
const linear = value => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
const light = rgb => 0.2126 * linear(rgb[0]) + 0.7152 * linear(rgb[1]) + 0.0722 * linear(rgb[2]);
const behind = node => {
  const layers = [];
  for (let at = node; at; at = at.parentElement) {
    const paint = colour(getComputedStyle(at).backgroundColor);
    if (paint.a) layers.push(paint);
    if (paint.a === 1) break;
  }
  return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
};
const ratios = [];
for (const node of document.querySelectorAll("body *")) {
  const words = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
  if (!words || !node.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
  const style = getComputedStyle(node), svg = node instanceof SVGElement;
  const under = behind(node), ink = over(colour(svg ? style.fill : style.color), under);
  const [high, low] = [light(ink), light(under)].sort((a, b) => b - a), ratio = (high + 0.05) / (low + 0.05);
  const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  const name = node.className.baseVal ?? node.className;
  ratios.push([ratio / (large ? 3 : 4.5), ratio, node.tagName, name, node.textContent.trim().slice(0, 40)]);
}
return ratios.sort((a, b) => a[0] - b[0]);
"""
"""Every visible text with the contrast of its ink and what lies behind it, the worst first: over what WCAG 2.2, 1.4.3
asks, then the ratio itself."""


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_enough_contrast(reader, dark):
    reader.resize(1280, 900, dark)
    reader.run("for (const details of document.querySelectorAll('details')) details.open = true")
    ratios = reader.run(CONTRAST)
    assert len(ratios) > 200
    assert [text for text in ratios if text[0] < 1] == []
    reader.run("document.querySelector('h1').style.color = arguments[0]", "#444" if dark else "#bbb")
    assert [text for text in reader.run(CONTRAST) if text[0] < 1]
