"""A page that was written, shown to whoever sits before it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sdcore.app.command import tell
from sdcore.errors import is_terminal


def show_page(path: Path, *, wanted: bool = True) -> None:
    """Open a page in the browser where there is a display; elsewhere say where it is.

    Nothing is opened for a program that reads what is printed.
    """
    address = path.resolve().as_uri()
    if wanted and is_terminal(sys.stdout) and has_display():
        import webbrowser

        if webbrowser.open(address):
            tell(f"opened in the browser: {address}")
            return
    tell(f"to see it, open this in a browser: {address}")


def has_display() -> bool:
    """Whether a browser that is started here would be seen."""
    if os.environ.get("BROWSER"):  # somebody says how, as editors do on machines far away
        return True
    if sys.platform in ("win32", "darwin"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
