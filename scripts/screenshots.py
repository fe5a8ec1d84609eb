"""Pictures of the report for the README, made from run folders by a headless Chromium.

    python scripts/screenshots.py RUN_A RUN_B --names "working pair" "failing pair" --out docs/images

Writes overlap.png (the overlap curves of both runs, the loss beneath), report.png (what a comparison begins
with), rollouts.png (rollouts token by token) and heatmap.png; and verdict.png where the second run's pair was checked
before (`opd check`). The first run should be the one that worked.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opdkit.report import write_report

# Chromium reads fd 3 and writes fd 4; a child in between puts the two pipes there.
LAUNCHER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
TAKES_SECONDS = 90  # at most, to draw a page on a slow machine


# --- a browser ----------------------------------------------------------------------------------------------


@dataclass
class Browser:
    """Headless Chromium, spoken to in DevTools messages over two pipes."""

    process: subprocess.Popen[bytes]
    to_browser: int
    from_browser: int
    events: list[dict[str, Any]] = field(default_factory=list, repr=False)
    buffer: bytes = field(default=b"", repr=False)
    last_id: int = 0
    session: str | None = None
    target: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TAKES_SECONDS
        while (reply := self.receive()).get("id") != self.last_id:
            self.events.append(reply)
            assert time.monotonic() < deadline, f"no answer to {method}"
        assert "error" not in reply, reply
        result: dict[str, Any] = reply["result"]
        return result

    def receive(self, seconds: float = 60) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            assert select.select([self.from_browser], [], [], seconds)[0], "the browser says nothing"
            chunk = os.read(self.from_browser, 1 << 20)
            assert chunk, "the browser is gone"
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def evaluate(self, expression: str) -> Any:
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def open(
        self,
        page: Path,
        *,
        width: int = 800,
        height: int = 600,
        dark: bool = False,
        zoom: float = 1,
        scripts: bool = True,
        wait: str = "document.documentElement?.dataset.drawn",
    ) -> None:
        """Open `page` in a tab of its own and wait until its last plot is drawn."""
        before, self.session, self.events = self.target, None, []
        self.target = self.call("Target.createTarget", url="about:blank")["targetId"]
        if before:
            self.call("Target.closeTarget", targetId=before)
        self.session = self.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        size = {"width": width, "height": height, "deviceScaleFactor": zoom, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=page.as_uri())
        self.wait_for(wait)

    def wait_for(self, expression: str, seconds: float = TAKES_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, (expression, self.events[-9:])
            time.sleep(0.1)

    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions, console output and logged errors (a blocked script or request is one of them)."""
        self.evaluate("1")  # collects what was sent before
        loud = (
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Log.entryAdded",
            "Page.javascriptDialogOpening",
        )
        return [event for event in self.events if event.get("method") in loud]

    def requests(self) -> list[str]:
        """Addresses asked for; a `data:` image (a drawn heatmap) is in the page and not an address."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]

    def press(self, key: str) -> None:
        """One key, by its DOM name: "Tab", "ArrowRight", "Escape"."""
        codes = {"Tab": 9, "Escape": 27, "End": 35, "Home": 36}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        named = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **named)

    def shoot(self, target: Path, area: dict[str, float] | None = None) -> Path:
        """A picture of what is in the window, or of an area of the page (x, y, width, height in its pixels)."""
        more = {"clip": {**area, "scale": 1}, "captureBeyondViewport": True} if area else {}
        data = self.call("Page.captureScreenshot", format="png", **more)["data"]
        target.write_bytes(base64.b64decode(data))
        return target


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browsing(chromium: str, profile: Path) -> Iterator[Browser]:
    """A browser of its own, closed at the end."""
    child_reads, we_write = os.pipe()
    we_read, child_writes = os.pipe()
    # above 9, so that neither is in the way when the launcher puts them at 3 and 4
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (child_reads, child_writes)]
    command = [
        sys.executable,
        "-c",
        LAUNCHER,
        *map(str, ends),
        chromium,
        *FLAGS,
        f"--user-data-dir={profile}",
    ]
    with subprocess.Popen(
        command, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        for fd in (child_reads, child_writes, *ends):
            os.close(fd)
        browser = Browser(process, we_write, we_read)
        yield browser
        browser.session = None
        os.write(we_write, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
    os.close(we_write)
    os.close(we_read)


# --- the pictures -------------------------------------------------------------------------------------------

EDGE = 16  # pixels of the page left around what is shown


def pictures(runs: list[Path], out: Path, names: list[str] | None) -> list[Path]:
    """All pictures of two runs, in `out`."""
    chromium = find_chromium()
    if chromium is None:
        sys.exit("no chromium on this machine: install one, or leave the pictures as they are")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        page = write_report(runs, Path(scratch) / "report.html", names=names)
        with browsing(chromium, Path(scratch) / "profile") as browser:
            browser.open(page, width=1280, height=1000, zoom=1.5)
            drawn = [
                _report(browser, out),
                _rollouts(browser, out),
                _heatmap(browser, out),
                _overlap(browser, out),
            ]
            assert browser.complaints() == [], browser.complaints()
            if (runs[1] / "check.json").is_file():
                drawn.append(_verdict(browser, runs[1], out, scratch=Path(scratch)))
    return drawn


def _report(browser: Browser, out: Path) -> Path:
    """From the top of the page to the end of the evidence's plots."""
    top, plots = _box(browser, "h1"), _box(browser, "#summary > .grid")
    height = plots["y"] + plots["height"] - top["y"]
    return browser.shoot(out / "report.png", _around(top | {"height": height}, browser))


def _verdict(browser: Browser, run: Path, out: Path, *, scratch: Path) -> Path:
    """A run by itself: what the check said, what came, and what was found on the way."""
    page = write_report([run], scratch / "verdict.html")
    browser.open(page, width=1280, height=1000, zoom=1.5)
    top, end = _box(browser, "h1"), _box(browser, "#findings")
    height = end["y"] + end["height"] - top["y"]
    return browser.shoot(out / "verdict.png", _around(top | {"height": height}, browser))


def _rollouts(browser: Browser, out: Path) -> Path:
    """The rollouts of the first run, with the card of the first token that its teacher disputes."""
    browser.evaluate("document.querySelector('#samples').scrollIntoView()")
    browser.evaluate(
        "['.down3', '.down2', '.t'].map(kind => document.querySelector(`.rollout[open] .tokens ${kind}`))"
        ".find(token => token)?.focus({preventScroll: true})"
    )
    return browser.shoot(out / "rollouts.png", _window(browser))


def _heatmap(browser: Browser, out: Path) -> Path:
    """Two quantities of both runs."""
    browser.evaluate("document.activeElement.blur(); document.querySelector('#position').scrollIntoView()")
    area = _box(browser, "#position")
    bottom = browser.evaluate(
        "Math.max(...[...document.querySelectorAll('#position > .grid figure')].slice(0, 4)"
        ".map(figure => figure.getBoundingClientRect().bottom)) + scrollY"
    )
    return browser.shoot(out / "heatmap.png", _around(area | {"height": bottom - area["y"]}, browser))


def _overlap(browser: Browser, out: Path) -> Path:
    """The two curves of the README's first screen, drawn large by the page's own plotly."""
    browser.evaluate(OVERLAP)
    browser.wait_for("document.querySelectorAll('#overlap .plot .main-svg').length > 1")
    return browser.shoot(out / "overlap.png", _box(browser, "#overlap"))


# The figures that the comparison begins with, once more: overlap above, loss beneath, one legend for both.
OVERLAP = """(() => {
  const plots = Array.from(document.querySelectorAll('#summary .plot'));
  const named = (name) => plots.find((plot) => plot.getAttribute('aria-label').startsWith(name + '.'));
  const place = document.createElement('div');
  place.id = 'overlap';
  place.style.cssText = 'width: 900px; padding: 12px 20px; background: var(--page)';
  document.querySelector('main').prepend(place);
  for (const [name, title] of [['overlap_ratio', 'likely tokens shared'], ['loss', 'loss (nats)']]) {
    const source = named(name), box = document.createElement('div');
    box.className = 'plot';
    box.style.height = '230px';
    place.append(box);
    const traces = source.data.map((trace) => ({...trace, showlegend: name === 'overlap_ratio'}));
    const layout = JSON.parse(JSON.stringify(source.layout));
    Object.assign(layout, {height: 230, showlegend: name === 'overlap_ratio',
      legend: {orientation: 'h', y: 1.18, x: 0, font: {size: 14}}, font: {...layout.font, size: 14}});
    layout.yaxis.title.text = title;
    layout.yaxis.title.font.size = 13;
    layout.xaxis.title.text = name === 'loss' ? 'step' : '';
    delete layout.xaxis.range;
    layout.margin = {l: 70, r: 10, t: 34, b: 40};  // the same for both, so that the steps stand above each other
    layout.xaxis.automargin = layout.yaxis.automargin = false;
    layout.yaxis.autorange = false;
    const most = Math.max(...traces.flatMap((trace) => trace.y));
    layout.yaxis.range = name === 'loss' ? [-0.03 * most, 1.1 * most] : [0, 1];
    Plotly.newPlot(box, traces, layout, {displayModeBar: false});
  }
})()"""


def _box(browser: Browser, selector: str) -> dict[str, float]:
    box = browser.evaluate(
        f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
        "return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height} })()"
    )
    return dict(box)


def _around(box: dict[str, float], browser: Browser) -> dict[str, float]:
    """The whole width of `main`, and a little air."""
    main = _box(browser, "main")
    return {
        "x": main["x"],
        "y": max(0.0, box["y"] - EDGE),
        "width": main["width"],
        "height": box["height"] + 2 * EDGE,
    }


def _window(browser: Browser) -> dict[str, float]:
    """What is in the window, without the bar at its top."""
    bar = browser.evaluate("document.querySelector('nav').offsetHeight")
    main = _box(browser, "main")
    top = browser.evaluate("scrollY")
    return {"x": main["x"], "y": top + bar, "width": main["width"], "height": 1000.0 - bar}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--names", nargs=2, metavar="NAME", help="what the pictures call the two runs")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    asked = parser.parse_args()
    for picture in pictures(asked.runs, asked.out, asked.names):
        print(picture)


if __name__ == "__main__":
    main()
