"""The page of `raas_sglang view` in a real browser."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks.harness.server import free_port

NAMES = ("chromium", "chromium-browser", "google-chrome")
# A browser that is only tested asks nobody for anything.
FLAGS = (
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--no-first-run"),
)
TIMEOUT_S = 60
_errors: list[str] = []
expect.set_options(timeout=TIMEOUT_S * 1000)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser, whose pages must not have run into an error at the end.

    Raises:
        RuntimeError: there is none on this machine.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise RuntimeError(
            f"the tests of the page need a browser, found none of {', '.join(NAMES)}; "
            "install Chromium, on Debian as root: apt-get install chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()
        assert not _errors, _errors


def open_page(browser: Browser, url: str, **settings) -> Page:
    """A page, of which errors are noted."""
    page = browser.new_page(**settings)
    page.set_default_timeout(TIMEOUT_S * 1000)
    page.on("pageerror", lambda error: _errors.append(str(error)))
    page.goto(url)
    return page


class ViewProcess:
    """`python -m raas_sglang view`, as a person starts it."""

    def __init__(self, *arguments: str, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.arguments, self.log = arguments, log
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ViewProcess":
        command = [sys.executable, "-m", "raas_sglang", "view", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, *self.arguments], stdout=log, stderr=log)
        began = time.monotonic()
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() - began < TIMEOUT_S, self.log.read_text()
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None, "it was started"
        self.process.terminate()
        self.process.wait(TIMEOUT_S)

    def _answers(self) -> bool:
        try:
            return requests.get(self.url, timeout=5).ok
        except requests.ConnectionError:
            return False
