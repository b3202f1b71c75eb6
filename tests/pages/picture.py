"""Make the README's picture of the page: `python tests/pages/picture.py`.

Needs Debian's chromium, `pip install playwright`, and `modelserve[client]`.
"""

import re
import tempfile
from pathlib import Path

from browsing import CHROMIUM, FLAGS, ROOT, Server, choose, response, send
from playwright.sync_api import sync_playwright

PICTURE = ROOT / "examples" / "playground.png"
SIZE = {"width": 1280, "height": 800}


def main() -> None:
    """Serve the first example, ask it for a text, and take the picture."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        server = Server(Path(folder), "modelserve", str(ROOT / "examples/01_quickstart/app.py"))
        try:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport=SIZE, color_scheme="light")
            page.goto(server.url)
            models = page.get_by_role("list", name="Models")
            models.get_by_role("button", name=re.compile("^writer ready")).wait_for()
            choose(page, "writer")
            send(page)
            response(page).get_by_text("Complete").wait_for()
            page.mouse.move(0, 0)
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=PICTURE)
            browser.close()
        finally:
            server.stop()
    print(PICTURE)


if __name__ == "__main__":
    main()
