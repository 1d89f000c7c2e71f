"""What tests of the page share."""

from __future__ import annotations

import base64
import io

from PIL import Image

from tests.app.serve.conftest import Live
from tests.browser import Browser

READY = "document.body?.dataset.ready === 'yes'"
DONE = "past.length === {} && running === null"


def shown(browser: Browser) -> Image.Image:
    url = browser.run("document.getElementById('picture').src")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def painted(browser: Browser, script: str) -> None:
    """Run a script and wait until what it began is painted."""
    before = browser.run("past.length")
    browser.run(f"{script}; 1")
    browser.wait(DONE.format(before + 1))


def opened(browser: Browser, live: Live, width: int = 1200, height: int = 900, **how: bool) -> None:
    browser.open(live.url, width, height, ready=READY, **how)
    browser.run("localStorage.clear()")
    browser.open(live.url, width, height, ready=READY, **how)
    browser.run("speak('en'); $('seed').value = 5; $('steps').value = 2")
    browser.run("$('width').value = 64; $('height').value = 64; $('prompt').value = 'grass'")
