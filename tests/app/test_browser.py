"""A page is opened where somebody sits before it, and named elsewhere; with a real terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = "import sys; from pathlib import Path; from sdcore.app.browser import show_page; "
SHOW += "show_page(Path(sys.argv[1]), wanted=sys.argv[2] == 'yes')"


@pytest.fixture
def show(tmp_path: Path):
    """Show a page in a process; gives what was said, and what the browser was asked to open."""
    note, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > "{note}"\n', "utf-8")
    browser.chmod(0o755)

    def call(page: Path, *, terminal: bool = True, wanted: bool = True, display: bool = True):
        ours, theirs = pty.openpty()
        away = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION")
        environment = {name: value for name, value in os.environ.items() if name not in away}
        environment |= {"BROWSER": str(browser)} if display else {}
        done = subprocess.run(
            [sys.executable, "-c", SHOW, str(page), "yes" if wanted else "no"],
            stdout=theirs if terminal else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            timeout=60,
        )
        os.close(theirs)
        os.close(ours)
        return done.stderr, note.read_text("utf-8") if note.exists() else None

    return call


def test_a_page_is_opened_before_a_person(show, tmp_path: Path) -> None:
    page = tmp_path / "a fox 狐.html"
    said, opened = show(page)
    assert opened == page.as_uri()
    assert said == f"opened in the browser: {page.as_uri()}\n"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="a display is always there")
@pytest.mark.parametrize("why", ["display", "terminal", "wanted"])
def test_elsewhere_it_is_named(show, tmp_path: Path, why: str) -> None:
    page = tmp_path / "page.html"
    said, opened = show(page, **{why: False})
    assert opened is None
    assert said == f"to see it, open this in a browser: {page.as_uri()}\n"
