"""A server and a browser: what the page's tests and its picture have in common.

What is on the page is found by its accessible name, as a screen reader finds it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


class Server:
    """A server in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments, "--port", "0"],
                cwd=HERE,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        self.url = self._url()

    def _url(self) -> str:
        ends = time.monotonic() + 30
        while time.monotonic() < ends and self.process.poll() is None:
            found = re.search(r"(?:Serving|running) on (http://[0-9.:]+)", self.log.read_text())
            if found:
                return found[1]
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def choose(page: Any, model: str) -> None:
    models = page.get_by_role("list", name="Models", exact=True)
    models.get_by_role("button", name=re.compile(f"^{model} ")).click()
    page.get_by_role("heading", name=model, exact=True).wait_for()


def body(page: Any) -> Any:
    return page.get_by_role("textbox", name="Request body", exact=True)


def response(page: Any) -> Any:
    return page.get_by_role("region", name="Response", exact=True)


def send(page: Any, outcome: str = "Complete") -> None:
    page.get_by_role("button", name="Send", exact=True).click()
    response(page).get_by_text(outcome).first.wait_for()


def sent(page: Any, language: str = "curl") -> str:
    page.get_by_role("radiogroup", name="Language").get_by_text(language, exact=True).click()
    return str(page.get_by_role("group", name="Code of this request").inner_text())


def figure(page: Any, name: str) -> str:
    return str(page.get_by_role("status", name=name, exact=True).inner_text())


def items(page: Any) -> Any:
    return page.get_by_role("listbox", name="Items", exact=True).get_by_role("option")
