"""The report in a real browser: what is drawn, what the keyboard does, and that nothing a run wrote becomes markup."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opdkit.report import write_report
from report_runs import (
    FINDING,
    PAYLOADS,
    bare_run,
    hostile_run,
    make_chain_run,
    make_run,
    make_story_run,
    said,
    write_rows,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from screenshots import Browser, browsing, find_chromium, pictures


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this file; where CI has none that is a failure, elsewhere a skip."""
    found = find_chromium()
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no chromium on this machine, and CI has to open the page")
        pytest.skip("no chromium on this machine")
    with browsing(found, tmp_path_factory.mktemp("profile")) as started:
        yield started


def plots_of(page: Path) -> int:
    return page.read_text(encoding="utf-8").count('<div class="plot"')


def curves(page: Path) -> int:
    drawn = page.read_text(encoding="utf-8").partition('id="figures">')[2].partition("</script>")[0]
    return sum(len(figure["traces"]) for figure in json.loads(drawn) if figure["kind"] != "heatmap")


@pytest.mark.chromium
def test_one_run_is_drawn_without_complaint_or_network(browser: Browser, tmp_path: Path) -> None:
    page = write_report([make_run(tmp_path / "good", success=True)])
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    folded = "document.querySelectorAll('details .plot').length"
    assert browser.evaluate("document.querySelectorAll('.js-plotly-plot').length") == plots_of(page) - 1 > 30
    assert browser.evaluate(folded) == 1
    assert browser.evaluate("document.querySelectorAll('.plot:not(:has(.main-svg))').length") == 1
    # each curve holds ink: a plot whose data was lost would still have axes
    assert browser.evaluate("document.querySelectorAll('.plot .scatterlayer path.js-line').length") == curves(
        page
    )
    assert browser.evaluate("document.querySelectorAll('.plot .heatmaplayer image').length") == 4
    assert browser.evaluate("document.querySelectorAll('.plot .errorbar').length") == 5
    browser.evaluate("document.querySelector('details.more').open = true")
    browser.wait_for("document.querySelectorAll('.plot .heatmaplayer image').length === 5")
    assert browser.complaints() == []


@pytest.mark.chromium
def test_two_runs_are_overlaid_and_can_be_switched_off(browser: Browser, tmp_path: Path) -> None:
    good = make_run(tmp_path / "a" / "run", success=True, steps=30)
    still = make_run(tmp_path / "b" / "run", success=False, steps=30)
    page = write_report([good, still], tmp_path / "both.html")
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.evaluate(
        "[...document.querySelectorAll('button[data-run]')].map(b => b.innerText.trim())"
    ) == [
        "a/run",
        "b/run",
    ]
    lines = "document.querySelector('#alignment .plot').querySelectorAll('path.js-line').length"
    assert browser.evaluate(lines) == 2
    browser.evaluate("document.querySelector('button[data-run]').click()")
    browser.wait_for(f"{lines} === 1")
    assert "DeepSeek-R1-Distill-Qwen-7B" in browser.evaluate("document.querySelector('#summary').innerText")


@pytest.mark.chromium
def test_a_run_with_nothing_in_it_is_still_a_page(browser: Browser, tmp_path: Path) -> None:
    page = write_report([bare_run(tmp_path / "run", [])])
    browser.open(page)
    assert browser.complaints() == []
    assert "metrics.jsonl is empty" in browser.evaluate("document.body.innerText")


SKELETON = """[...document.querySelectorAll('*')].map(
    (e) => e.tagName + ' ' + [...e.attributes].map((a) => a.name).sort().join(' ')).sort().join('\\n')"""
TAGS = "[...new Set([...document.querySelectorAll('*')].map((e) => e.tagName.toLowerCase()))].sort()"
LINKS = (
    "[...document.querySelectorAll('*')].map((e) => e.href ?? e.getAttribute('xlink:href')).filter((x) => x)"
)
LOSS = "document.querySelector('#alignment .plot')"


@pytest.mark.chromium
def test_nothing_a_run_wrote_becomes_markup(browser: Browser, tmp_path: Path) -> None:
    """Element by element and attribute by attribute, the page of hostile runs is that of harmless ones.

    One page holds a run per payload, so all of them are also overlaid in one plot and its hover label.
    """
    harmless = [hostile_run(tmp_path / "harmless", f"plain words {i}") for i in range(len(PAYLOADS))]
    hostile = [hostile_run(tmp_path / "hostile", payload) for payload in PAYLOADS]
    page = write_report(harmless)
    browser.open(page)
    assert "plain words 3" in hovered(browser)
    expected = [static_skeleton(page, browser), browser.evaluate(TAGS), *ours(browser)]
    page = write_report(hostile)
    browser.open(page)
    assert "<img src=x onerror='window.hit = 1'>" in hovered(browser)
    assert [static_skeleton(page, browser), browser.evaluate(TAGS), *ours(browser)] == expected
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.evaluate("window.hit") is None
    assert not set("\u202e\u2066\x1b\u2028") & set(browser.evaluate("document.body.innerText"))


def hovered(browser: Browser) -> str:
    """The text of the label that appears where the mouse rests on the first plot of alignment."""
    browser.evaluate(f"{LOSS}.scrollIntoView({{block: 'center'}})")
    box = browser.evaluate(f"{LOSS}.getBoundingClientRect().toJSON()")
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    deadline = time.monotonic() + 30
    while not (found := browser.evaluate(f"{LOSS}.querySelector('.hoverlayer').textContent")):
        assert time.monotonic() < deadline
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", **place)
        place["x"] += 1
        time.sleep(0.2)
    return str(found)


def ours(browser: Browser) -> list[Any]:
    """Where the links of the drawn page lead inside it, and how many there are; plotly must not add any."""
    links = [str(link).partition("#")[2] for link in browser.evaluate(LINKS)]
    return [links, len(links)]


def static_skeleton(page: Path, browser: Browser) -> str:
    """Elements and attribute names as parsed, before plotly adds its own, which depend on the data."""
    written, plotly, _ = page.read_text(encoding="utf-8").partition("* plotly.js")  # the rest is constant
    assert plotly
    html = json.dumps(written)
    parsed = f"new DOMParser().parseFromString({html}, 'text/html')"
    found: str = browser.evaluate(SKELETON.replace("document", parsed))
    return found


@pytest.mark.chromium
def test_the_policy_stops_a_script_that_is_not_ours(browser: Browser, tmp_path: Path) -> None:
    """Were escaping ever to fail, the policy is what stands behind it."""
    page = write_report([make_run(tmp_path / "run", success=True, steps=2)])
    broken = page.read_text(encoding="utf-8").replace("</main>", "<script>window.hit = 1</script></main>")
    broken = broken.replace("</main>", "<img src='x' onerror='window.hit = 1'></main>")
    page.write_text(broken, encoding="utf-8")
    browser.open(page)
    assert browser.evaluate("window.hit") is None
    assert browser.complaints() != []


# --- rollouts, by keyboard, mouse and filter ----------------------------------------------------------------

FOCUSED = "document.activeElement"
CARD = "(document.querySelector('#card').hidden ? '' : document.querySelector('#card').innerText)"
REACHABLE = "document.querySelectorAll('.tokens')[0].querySelectorAll('.t[tabindex=\"0\"]').length"


def text_of_focus(browser: Browser) -> str:
    found: str = browser.evaluate(f"{FOCUSED}.matches('.tokens .t') ? {FOCUSED}.textContent : ''")
    return found


@pytest.mark.chromium
def test_tokens_are_reached_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report([make_chain_run(tmp_path / "run", works=False)]), width=1280, height=900)
    words = browser.evaluate(
        "[...document.querySelector('.tokens').querySelectorAll('.t')].map(t => t.textContent)"
    )
    browser.evaluate("[...document.querySelectorAll('#filters input:checked')].at(-1).focus()")
    for _ in range(5):
        browser.press("Tab")
        if text_of_focus(browser):
            break
    assert text_of_focus(browser) == words[0] == "run"
    assert "student" in browser.evaluate(CARD) and "teacher" in browser.evaluate(CARD)
    browser.press("ArrowRight")
    assert text_of_focus(browser) == words[1]
    assert words[1] in browser.evaluate(CARD)
    assert browser.evaluate(f"{FOCUSED}.getAttribute('aria-describedby')") == "card"
    assert browser.evaluate(REACHABLE) == 1
    browser.press("End")
    assert text_of_focus(browser) == words[-1]
    browser.press("ArrowRight")  # there is nothing further: it stays
    assert text_of_focus(browser) == words[-1]
    browser.press("Home")
    assert text_of_focus(browser) == words[0]
    browser.press("Escape")
    assert browser.evaluate(CARD) == "" and text_of_focus(browser) == words[0]
    browser.press("ArrowRight")
    assert browser.evaluate(CARD) != ""
    browser.press("Tab")  # the whole response is one stop
    assert not browser.evaluate(f"document.querySelector('.tokens').contains({FOCUSED})")
    browser.wait_for(f"{CARD} === ''")
    assert browser.complaints() == []


@pytest.mark.chromium
def test_arrows_up_and_down_change_the_line(browser: Browser, tmp_path: Path) -> None:
    folder = make_chain_run(tmp_path / "run", works=False)
    browser.open(write_report([folder]), width=390, height=844)
    browser.evaluate("document.querySelector('.tokens').style.width = '9rem'")
    browser.evaluate("document.querySelector('.tokens .t').focus()")
    top = f"{FOCUSED}.getBoundingClientRect().top"
    before = browser.evaluate(top)
    browser.press("ArrowDown")
    assert browser.evaluate(top) > before
    browser.press("ArrowUp")
    assert browser.evaluate(top) == before
    browser.press("ArrowUp")
    assert browser.evaluate(top) == before


@pytest.mark.chromium
def test_the_card_tells_what_both_models_would_say(browser: Browser, tmp_path: Path) -> None:
    """By mouse: the numbers are those of the run, and the card stays while the pointer is on it."""
    folder = make_chain_run(tmp_path / "run", works=False)
    top = [["7", -0.1, -3.0], ["9", -3.0, -0.1]]
    tokens = {
        "text": ["7"],
        "student_logp": [-0.1],
        "teacher_logp": [-3.0],
        "student_top": [top],
        "teacher_top": [top],
    }
    row = {"response": "7", "score": 0.0, "finish_reason": "stop", "tokens": tokens}
    (folder / "rollouts" / "step_10.jsonl").write_text(json.dumps(row) + "\n")
    browser.open(write_report([folder]), width=1280, height=900)
    browser.evaluate("document.querySelector('.tokens .t').scrollIntoView({block: 'center'})")
    point_at(browser, ".tokens .t")
    browser.wait_for(f"{CARD} !== ''")
    rows = (
        "[...document.querySelectorAll('#card tbody tr')].map(r => [...r.cells].map(c => c.innerText.trim()))"
    )
    assert browser.evaluate(rows) == [["7 TAKEN", "90.5 %", "5.0 %"], ["9", "5.0 %", "90.5 %"]]
    assert "The student gives it 18 times as much (log-ratio −2.90 nats)" in browser.evaluate(CARD)
    point_at(browser, "#card")
    time.sleep(0.4)
    assert browser.evaluate(CARD) != ""
    point_at(browser, "h1")
    browser.wait_for(f"{CARD} === ''")


@pytest.mark.chromium
def test_a_card_of_hostile_tokens_is_text(browser: Browser, tmp_path: Path) -> None:
    """Every card of every hostile run holds the elements of a harmless one, and its text letter by letter."""
    visit = """[...document.querySelectorAll('.tokens .t')].map((token) => {
        token.focus();
        const card = document.querySelector('#card');
        return [[...card.querySelectorAll('*')].map((e) => e.tagName).join(' '), card.textContent];
    })"""
    shapes: list[set[str]] = []
    for kind, payloads in (("harmless", ["words", "others"]), ("hostile", PAYLOADS)):
        browser.open(write_report([hostile_run(tmp_path / kind, payload) for payload in payloads]))
        cards = browser.evaluate(visit)
        assert len(cards) == 2 * len(payloads)
        shapes.append({shape for shape, _ in cards})
        if kind == "hostile":
            told = "".join(said for _, said in cards)
            assert "<img␣src=x␣onerror='window.hit␣=␣1'>" in told and "&lt;script&gt;" in told
    assert shapes[1] <= shapes[0]
    assert browser.evaluate("window.hit") is None
    assert browser.complaints() == []


def point_at(browser: Browser, selector: str) -> None:
    box = browser.evaluate(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **place)


@pytest.mark.chromium
def test_filters_leave_what_they_say(browser: Browser, tmp_path: Path) -> None:
    """By keyboard, over two runs and two steps, together with the switches of the runs."""
    folders = [make_chain_run(tmp_path / name, works=name == "a") for name in "ab"]
    browser.open(write_report(folders), width=1280, height=900)
    left = "[...document.querySelectorAll('.rollout')].filter(r => r.checkVisibility()).map(r => r.dataset.marks)"
    status = "document.querySelector('#filtered').textContent"
    assert len(browser.evaluate(left)) == 24
    browser.evaluate("document.querySelector('input[name=mark]').focus()")
    for mark in ("right", "wrong", "cut", "finished"):
        browser.press("ArrowRight")
        marks = browser.evaluate(left)
        assert marks and all(mark in found.split() for found in marks)
        assert browser.evaluate(status) == f"{len(marks)} of 24 rollouts"
        told = browser.evaluate(f"document.querySelector('input[value={mark}] + span small').textContent")
        assert int(told) == len(marks)
    browser.press("ArrowRight")
    browser.evaluate("document.querySelector('input[value=last]').click()")
    assert len(browser.evaluate(left)) == 12
    browser.evaluate("document.querySelector('button[data-run=\"1\"]').click()")
    assert len(browser.evaluate(left)) == 6
    assert browser.evaluate("[...document.querySelectorAll('.group')].filter(g => !g.hidden).length") == 1
    assert browser.complaints() == []


@pytest.mark.chromium
def test_folded_rollouts_are_opened_by_a_filter(browser: Browser, tmp_path: Path) -> None:
    folder = make_chain_run(tmp_path / "run", works=True)
    path = folder / "rollouts" / "step_100.jsonl"
    path.write_text(path.read_text() * 3)
    browser.open(write_report([folder]))
    left = "[...document.querySelectorAll('.group[data-step=last] .rollout')].filter(r => r.checkVisibility()).length"
    seen = browser.evaluate(left)
    browser.evaluate("document.querySelector('input[value=right]').click()")
    assert (seen, browser.evaluate(left)) == (8, 9)


@pytest.mark.chromium
def test_without_scripts_the_rollouts_can_be_read(browser: Browser, tmp_path: Path) -> None:
    page = write_report([make_chain_run(tmp_path / "run", works=False)])
    browser.open(page, scripts=False, wait="document.readyState === 'complete'")
    said = browser.evaluate("document.body.innerText")
    assert browser.evaluate("document.querySelector('.tokens').textContent").startswith("run ")
    assert "Curves are drawn by a script" in said and "Where the models differ most" in said
    assert not browser.evaluate("document.querySelector('#filters').checkVisibility()")
    assert browser.evaluate("document.querySelectorAll('.down2, .down3, .up2, .up3').length") > 6
    # the sign is told by the line as well as by the colour
    lines = "[...new Set([...document.querySelectorAll('pre .{}')].map(t => getComputedStyle(t).textDecorationStyle))]"
    assert browser.evaluate(lines.format("up2")) == ["solid"]
    assert browser.evaluate(lines.format("down2")) == ["wavy"]


@pytest.mark.chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(width: int, browser: Browser, tmp_path: Path) -> None:
    folders = [make_chain_run(tmp_path / name, works=name == "a") for name in "ab"]
    rollout = {"response": "x" * 4000, "prompt": "y" * 900, "group": "z" * 190}
    (folders[0] / "rollouts" / "step_10.jsonl").write_text(json.dumps(rollout) + "\n")
    names = ["a rather long name of a run that worked", "n" * 70]
    browser.open(write_report(folders, names=names), width=width, height=844, dark=True)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    browser.evaluate("document.querySelector('.tokens .t').focus()")
    box = browser.evaluate("document.querySelector('#card').getBoundingClientRect().toJSON()")
    assert box["left"] >= 0 and box["right"] <= width
    assert browser.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.chromium
def test_histograms_hold_every_response(browser: Browser, tmp_path: Path) -> None:
    folders = [make_chain_run(tmp_path / name, works=name == "a") for name in "ab"]
    browser.open(write_report(folders), width=1280)
    counts = "[...document.querySelectorAll('#reward .plot')].map(p => p.data.flatMap(t => t.customdata).reduce((a, b) => a + b))"
    assert browser.evaluate(counts) == [128] * 4
    assert browser.evaluate("document.querySelectorAll('#reward .bars .point path').length") > 40
    label = browser.evaluate("document.querySelector('#reward .plot').getAttribute('aria-label')")
    assert "AUROC" in label


@pytest.mark.chromium
@pytest.mark.parametrize("story", ["sft", "grpo", "improve", "push_down"])
def test_a_story_without_a_teacher_is_a_whole_page(story: str, browser: Browser, tmp_path: Path) -> None:
    page = write_report([make_story_run(tmp_path / "run", story)])
    browser.open(page)
    assert browser.complaints() == []
    assert browser.evaluate("document.querySelectorAll('.plot:not(:has(.main-svg))').length") == 0
    empty = "[...document.querySelectorAll('main section')].filter(s => s.innerText.trim().split('\\n').length < 2).length"
    assert browser.evaluate(empty) == 0


@pytest.mark.chromium
def test_every_link_and_control_has_a_name_and_a_place(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report([make_chain_run(tmp_path / n, works=n == "a") for n in "ab"]))
    nowhere = "[...document.querySelectorAll('a[href^=\"#\"]')].filter(a => !document.querySelector(a.getAttribute('href')))"
    assert browser.evaluate(f"{nowhere}.length") == 0
    unnamed = "[...document.querySelectorAll('button, summary, a')].filter(e => !(e.ariaLabel || e.textContent).trim())"
    assert browser.evaluate(f"{unnamed}.filter(e => !e.closest('.plot')).length") == 0
    assert browser.evaluate("document.querySelectorAll('[id]').length") == browser.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
    )
    # a link to a token shows its card
    browser.evaluate("document.querySelector('.disputes').open = true")
    browser.evaluate("document.querySelector('.disputes a').click()")
    browser.wait_for(f"{CARD} !== ''")


# --- pictures -----------------------------------------------------------------------------------------------


@pytest.mark.chromium
def test_pictures_for_the_readme(tmp_path: Path) -> None:
    folders = [make_chain_run(tmp_path / name, works=name == "a") for name in "ab"]
    (folders[1] / "check.json").write_text(json.dumps(said("change_teacher")))
    write_rows(folders[1] / "findings.jsonl", [FINDING])
    drawn = pictures(folders, tmp_path / "images", ["working pair", "failing pair"])
    names = ["heatmap.png", "overlap.png", "report.png", "rollouts.png", "verdict.png"]
    assert sorted(path.name for path in drawn) == names
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG") and 15_000 < path.stat().st_size < 1_000_000
