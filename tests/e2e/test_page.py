"""The status page of a real agent, in a real browser: what it shows while runs are delivered, fail, and wait."""

from __future__ import annotations

import contextlib
import os
import signal
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import faults
from tests.browser import CHROMIUM, Browser
from tests.faults import FaultProxy
from tests.servers import MlflowServer, free_port
from tests.spooling import Ferry, SpooledRun, a_bit_of_everything, live_writer, unique, wait_until

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

HOSTILE = "\x1b[2J<img src=x onerror=\"document.title='owned'\"> \u202eevil\u2066 <b>bold</b>"

#: Black on white and the like, as a screen reader's user or one with a bright screen needs it.
READABLE = 4.5

CONTRASTS = """(() => {
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  const told = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))];
    told.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.textContent.trim().slice(0, 40)]);
  }
  return told;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultProxy]:
    with FaultProxy(mlflow_server.port) as proxy:
        yield proxy


@pytest.fixture
def ferry(tmp_path: Path, proxy: FaultProxy) -> Ferry:
    return Ferry(tmp_path / "spool", tmp_path / "state", proxy.url)


def looks(browser: Browser, scheme: str, width: int) -> None:
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)


def spoken(browser: Browser) -> Counter[str]:
    """The roles that a screen reader is told of."""
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    return Counter(node["role"]["value"] for node in nodes if not node["ignored"])


@contextlib.contextmanager
def paged(ferry: Ferry, browser: Browser, log: Path) -> Iterator[str]:
    """An agent with a page; what the browser showed last is kept beside the log."""
    url = f"http://127.0.0.1:{free_port()}/"
    browser.failures.clear()
    with ferry.agent("--http", url.removeprefix("http://").rstrip("/"), log=log):
        wait_until(lambda: "status page: " in log.read_text(), "the page opens")
        try:
            yield url
        finally:
            browser.picture(log.with_suffix(".png"))
            browser.call("Page.navigate", url="about:blank")


def test_a_page_shows_runs_as_they_are_delivered_refused_and_kept(
    ferry: Ferry, proxy: FaultProxy, browser: Browser, tmp_path: Path
) -> None:
    experiment = unique("digits")
    a_bit_of_everything(ferry.spool, experiment, run_name="has arrived", points=20)
    refused = SpooledRun(ferry.spool, experiment, run_name="changed its mind")
    refused.params({"lr": "1"})
    refused.params({"lr": "2"})
    refused.end()
    with (
        live_writer(ferry.spool, unique("still training")) as live,
        paged(ferry, browser, tmp_path / "agent.log") as url,
    ):
        browser.go(
            url, "Live", "1 run needs you", "changed its mind: param 'lr'", "Changing param values is not allowed"
        )
        shown = browser.wait_for("still training", "has arrived", "answers", f"mlferry retry {refused.run_id}")
        assert "mlferry drop --record" in shown
        live.await_steps(300)
        for width in (1280, 390):
            looks(browser, "light", width)
            roles = spoken(browser)
            assert roles >= Counter({"banner": 1, "main": 1, "status": 2, "list": 2, "listitem": 3, "table": 1}), width
            assert roles >= Counter({"row": 2, "columnheader": 6, "rowheader": 1, "cell": 3}), width
        proxy.add(faults.CUT_BEFORE, times=None)
        live.await_steps(300)
        browser.wait_for("The server does not answer", "records to deliver", "does not answer")
        proxy.clear()
        live.kill()
        browser.wait_for("answers", "Nothing is on its way", within_s=120)
        for scheme in ("light", "dark"):
            for width in (1280, 390):
                looks(browser, scheme, width)
                browser.picture(tmp_path / f"{scheme}-{width}.png")
                assert browser.run("document.documentElement.scrollWidth") <= width
                poor = [found for found in browser.run(CONTRASTS) if found[0] < READABLE]
                assert not poor, (scheme, width)
    assert browser.failures == []


def test_names_are_text_on_the_page(ferry: Ferry, browser: Browser, tmp_path: Path) -> None:
    run = SpooledRun(ferry.spool, unique(HOSTILE), run_name=HOSTILE)
    run.metrics(1, {"m": 1.0})
    with paged(ferry, browser, tmp_path / "agent.log") as url:
        shown = browser.go(url, "Live", "<b>bold</b>")
        assert "\\x1b[2J<img src=x" in shown and "\\u202eevil\\u2066" in shown
        assert browser.run("[...document.querySelectorAll('main img, main b b, main a[href^=http]')].length") == 0
        assert "owned" not in browser.run("document.title")
        # Even a script that got there would not run, and nothing would be fetched from elsewhere.
        assert browser.run(
            "(async () => { const told = [];"
            " addEventListener('securitypolicyviolation', e => told.push(e.violatedDirective));"
            " try { document.body.innerHTML += '<p>'; } catch { told.push('types'); }"
            " try { await fetch('http://localhost:1/'); } catch { told.push('fetch'); }"
            " const it = document.createElement('p'); it.setAttribute('onclick', 'document.title=`ran`'); it.click();"
            " await new Promise(r => setTimeout(r, 200)); return told.includes('types') && told.includes('connect-src')"
            " && document.title !== 'ran'; })()"
        )


def test_the_page_comes_back_with_the_agent_and_rests_while_nobody_sees_it(
    ferry: Ferry, browser: Browser, tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "agent.log"
    with ferry.agent("--http", f"127.0.0.1:{port}", log=log):
        wait_until(lambda: "status page: " in log.read_text(), "the page opens")
        browser.go(f"http://127.0.0.1:{port}/", "Live", "Everything that was logged is on the server")
    browser.wait_for("No connection to the agent")
    with ferry.agent("--http", f"127.0.0.1:{port}", log=log):
        browser.wait_for("Live")
        browser.run("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        browser.run("document.dispatchEvent(new Event('visibilitychange'))")
        browser.wait_for("Paused")
        streams = f"http://127.0.0.1:{port}/metrics"
        wait_until(lambda: b"mlferry_status_streams 0.0" in _read(streams), "the stream has ended")
        browser.run("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        browser.wait_for("Live")
    browser.call("Page.navigate", url="about:blank")


def test_an_agent_whose_address_is_taken_delivers_and_says_so(ferry: Ferry, tmp_path: Path) -> None:
    path, log = tmp_path / "page.sock", tmp_path / "agent.log"
    path.write_text("something else")
    a_bit_of_everything(ferry.spool, unique("digits"), points=5)
    with ferry.agent("--http", f"unix:{path}", log=log):
        wait_until(lambda: "no status page at unix:" in log.read_text(), "it says so")
        wait_until(lambda: ferry("status").returncode == 0, "everything is delivered")
    assert path.read_text() == "something else"
    assert os.stat(path).st_nlink == 1


def test_an_agent_with_lookers_reads_its_settings_anew_and_stops_at_once(ferry: Ferry, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "agent.log"
    url = f"http://127.0.0.1:{port}/"
    with ferry.agent("--http", f"127.0.0.1:{port}", log=log) as agent:
        wait_until(lambda: "status page: " in log.read_text(), "the page opens")
        with urllib.request.urlopen(url + "events", timeout=30) as looking:
            assert looking.readline() == b"event: status\n"
            agent.send_signal(signal.SIGHUP)
            wait_until(lambda: log.read_text().count("status page: ") == 2, "it is open again")
            assert b"ok" in _read(url + "healthz")
        with urllib.request.urlopen(url + "events", timeout=30):
            agent.terminate()
            assert agent.wait(10) == 0
    assert "Traceback" not in log.read_text()


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return bytes(answer.read())
