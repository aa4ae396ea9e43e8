"""A real browser for tests: Debian's chromium without a screen, driven by its own DevTools protocol over a websocket.

Owns the browser's process, its profile folder and one page; tells what the page shows and which of its requests failed. It
needs no driver and no package beyond aiohttp.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["CHROMIUM", "Browser"]

CHROMIUM = shutil.which("chromium")

_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1400,1000"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--disable-extensions", "--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank"),
)
_START_S, _ANSWER_S = 60.0, 30.0


class Browser:
    """One page in a browser of its own, with its profile below ``folder``. Use it as a context manager.

    ``failures``: what the page's own server refused or the page's own scripts raised, in order, since it was last cleared.
    """

    def __init__(self, folder: Path) -> None:
        self.failures: list[str] = []
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._urls: dict[str, str] = {}
        self._asked = 0

    def __enter__(self) -> Browser:
        assert CHROMIUM is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                [CHROMIUM, f"--user-data-dir={self._folder / 'profile'}", *_FLAGS],
                **{"stdout": log, "stderr": log, "start_new_session": True},
            )
        try:
            self._loop.run_until_complete(self._connect())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(self._disconnect())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._loop.close()

    # -- what a test does ----------------------------------------------------------------------------------------------

    def go(self, url: str, *texts: str, within_s: float = 60.0) -> str:
        """Open a page and wait until it shows all of ``texts``; returns what it shows."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        return self.wait_for(*texts, within_s=within_s)

    def wait_for(self, *texts: str, within_s: float = 60.0) -> str:
        """Wait until the page shows all of ``texts``; returns what it shows."""
        deadline = time.monotonic() + within_s
        while missing := [text for text in texts if text not in (shown := self.text())]:
            if time.monotonic() > deadline:
                raise AssertionError(f"the page does not show {missing} but:\n{shown[:3000]}\nfailed: {self.failures}")
            self._loop.run_until_complete(asyncio.sleep(0.1))
        return self.text()

    def text(self) -> str:
        """What the page shows, as one would copy it."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def click(self, text: str) -> None:
        """Click on the smallest thing that shows exactly this text."""
        found = self.run(
            "(() => { const all = [...document.querySelectorAll('a,button,[role],span,div,label,h3')]"
            f".filter(e => e.innerText && e.innerText.trim() === {json.dumps(text)});"
            " if (!all.length) return false; const it = all[all.length - 1]; it.scrollIntoView({block: 'center'});"
            " it.click(); return true; })()"
        )
        assert found, f"nothing shows {text!r}:\n{self.text()[:3000]}"

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return told["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write what the page looks like to a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Any command of the DevTools protocol."""
        return self._loop.run_until_complete(self._call(method, params))

    # -- the protocol --------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        port = await self._port()
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            [page] = [target for target in await answer.json() if target["type"] == "page"]
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        self._listening = asyncio.create_task(self._listen())
        for domain in ("Page", "Runtime", "Network"):
            await self._call(f"{domain}.enable", {})

    async def _port(self) -> int:
        file, deadline = self._folder / "profile/DevToolsActivePort", time.monotonic() + _START_S
        while not (file.exists() and file.read_text().strip()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._folder / "chromium.log").read_text(errors="replace")[-3000:])
            await asyncio.sleep(0.05)
        return int(file.read_text().split()[0])

    async def _disconnect(self) -> None:
        self._listening.cancel()
        await self._socket.close()
        await self._session.close()

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._asked += 1
        answer = self._answers[self._asked] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._asked, "method": method, "params": params})
        told = await asyncio.wait_for(answer, _ANSWER_S)
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']}")
        return dict(told["result"])

    async def _listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            else:
                self._note(told["method"], told["params"])

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self._urls[told["requestId"]] = f"{told['request']['method']} {told['request']['url']}"
        elif method == "Network.responseReceived" and told["response"]["status"] >= 400:
            self.failures.append(f"{told['response']['status']} {self._urls.get(told['requestId'])}")
        elif method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.failures.append(str(details.get("exception", details).get("description", details["text"]))[:500])
