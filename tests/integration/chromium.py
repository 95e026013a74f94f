"""A headless Chromium for tests, driven through its own debugging pipe: no driver, no port, no
further package.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
import json
import os
from pathlib import Path
import select
import shutil
import subprocess
import tempfile
import time
from typing import Any

PATIENCE = 60.0  # seconds; a busy machine starts a browser slowly


@cache
def find_chromium() -> str | None:
    """Path of a Chromium or Chrome on this machine that starts (some systems have a stub that only
    asks to install one), or None.
    """
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"):
        path = shutil.which(name)
        try:
            if (
                path
                and subprocess.run(
                    [path, "--version"], capture_output=True, timeout=PATIENCE
                ).returncode
                == 0
            ):
                return path
        except (OSError, subprocess.TimeoutExpired):
            continue
    return None


class Page:
    """One tab."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        """Everything the browser reported by itself: requests, messages of the console,
        exceptions.
        """

    def _receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._reading], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError("Chromium did not answer")
            chunk = os.read(self._reading, 2**20)
            if not chunk:
                raise RuntimeError("Chromium ended")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._writing, data) :]
        until = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(until)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def attach(self) -> None:
        """Open a tab, to which all further commands go; an earlier one is left alone."""
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def screen(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Size and colours of the screen; a phone has touch and two pixels per point."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media="screen", features=features)

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self.visit(path.resolve().as_uri())

    def visit(self, address: str) -> None:
        """Load an address and wait until it is there."""
        self.events.clear()
        self.call("Page.navigate", url=address)
        until = time.monotonic() + PATIENCE
        while self.evaluate("document.readyState") != "complete" and time.monotonic() < until:
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page; promises are waited for."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(
                result["exceptionDetails"]
                .get("exception", {})
                .get("description", "exception in the page")
            )
        return result["result"].get("value")

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """What is on the screen, or the whole page, as PNG."""
        path.write_bytes(
            base64.b64decode(
                self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)[
                    "data"
                ]
            )
        )

    def requests(self) -> list[str]:
        """Addresses the page asked for, itself and its own data URIs left out."""
        urls = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("data:", "file:"))]

    def complaints(self) -> list[str]:
        """Exceptions and errors in the console."""
        found = [
            str(event["params"])
            for event in self.events
            if event.get("method") == "Runtime.exceptionThrown"
        ]
        entries = [
            event["params"]["entry"]
            for event in self.events
            if event.get("method") == "Log.entryAdded"
        ]
        return found + [
            entry["text"] for entry in entries if entry["level"] in ("error", "warning")
        ]


@contextmanager
def chromium_page(*more: str) -> Iterator[Page]:
    """Start a browser with an empty profile and further options, give its tab, and end it."""
    program = find_chromium()
    if program is None:
        raise RuntimeError("there is no Chromium on this machine")
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()

    def connect() -> None:  # the protocol's pipe is file descriptors 3 and 4
        high_read, high_write = os.dup(command_read), os.dup(answer_write)
        os.dup2(high_read, 3)
        os.dup2(high_write, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            *more,
        ]
        process = subprocess.Popen(
            [program, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(command_read)
        os.close(answer_write)
        try:
            page = Page(answer_read, command_write)
            page.attach()
            yield page
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(answer_read)
            os.close(command_write)
