"""Headless Chromium by its own debugging pipe: one page, what it says on the console, and its answers."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

FLAGS = [
    "--headless",
    "--no-sandbox",  # a container's root has no other way
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


class Browser:
    """Talks NUL-ended JSON, https://chromedevtools.github.io/devtools-protocol.

    Attributes:
        events: what Chromium said unasked since the page was opened.
    """

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._session = 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": params} | session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path, width: int, *, dark: bool = False) -> None:
        """Load a page from disk, `width` CSS pixels wide, and wait until it stands."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500
        )
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def print(self, file: Path) -> None:
        """The page as a PDF on A4."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": False, "preferCSSPageSize": True}
        file.write_bytes(base64.b64decode(self.call("Page.printToPDF", **size)["data"]))

    def seen(self, *methods: str) -> list[dict[str, Any]]:
        """Parameters of the events of these kinds since the page was opened."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def _read(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "Chromium ended"
            message += byte
        return json.loads(message)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A fresh Chromium with an empty profile, ended afterwards."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    assert program is not None, "Chromium is missing; install it with: apt-get install chromium"
    child_reads, we_write = os.pipe()
    we_read, child_writes = os.pipe()
    # The protocol wants descriptors 3 and 4; bash puts them there (dash knows only those of one digit).
    command = ["bash", "-c", f'exec "$@" 3<&{child_reads} 4>&{child_writes}', "bash", program, *FLAGS]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        os.fdopen(we_write, "wb") as commands,
        os.fdopen(we_read, "rb") as answers,
        subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(child_reads, child_writes),
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        os.close(child_reads)
        os.close(child_writes)
        try:
            yield Browser(commands, answers)
        finally:
            process.terminate()
