"""Chromium without a window, for tests of pages: real mouse, keys, touch, sizes and colours."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

# Chromium reads commands from descriptor 3 and answers on 4.
_ON_3_AND_4 = (
    "import os, sys; i, o = (os.dup(int(n)) for n in sys.argv[1:3]); os.dup2(i, 3); os.dup2(o, 4); "
    "os.set_inheritable(3, True); os.set_inheritable(4, True); "
    "os.execvp(sys.argv[3], sys.argv[3:])"
)


def start_browser(profile: Path) -> Browser:
    """A Chromium with a profile of its own; the test is skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium")
    return Browser(program, profile)


class Browser:
    """Chromium, spoken to over a pipe in the DevTools protocol."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self.out = os.pipe()
        self.into, theirs_out = os.pipe()
        self.count = 0
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", _ON_3_AND_4, str(theirs_in), str(theirs_out)),
                *(program, *flags, f"--user-data-dir={profile}"),
            ],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.answers = os.fdopen(self.into, "rb")
        self.session = ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.said: list[str] = []
        self.ask("Runtime.enable")
        self.ask("Log.enable")

    def ask(self, method: str, **parameters: Any) -> Any:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.said.append(json.dumps(answer["params"]))
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> bytes:
        letters = bytearray()
        while (letter := self.answers.read(1)) != b"\0":
            assert letter, "Chromium has ended"
            letters += letter
        return bytes(letters)

    def run(self, script: str) -> Any:
        answer = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(
        self,
        url: str,
        width: int,
        height: int,
        dark: bool = False,
        ready: str = "typeof maps !== 'undefined' && maps !== null",
    ) -> None:
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.ask("Emulation.setDeviceMetricsOverride", **shape)
        self.ask("Emulation.setTouchEmulationEnabled", enabled=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=url)
        self.wait(ready)

    def wait(self, condition: str) -> None:
        for _ in range(600):
            if self.run(condition):
                return
            time.sleep(0.1)
        raise AssertionError(f"never became true: {condition}")

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """x, y, width and height of an element, which is brought into sight."""
        found = f"document.querySelector('{selector}')"
        self.run(f"{found}.scrollIntoView({{block: 'nearest'}})")
        x, y, w, h = self.run(
            f"(b => [b.x, b.y, b.width, b.height])({found}.getBoundingClientRect())"
        )
        return x, y, w, h

    def middle(self, selector: str) -> tuple[float, float]:
        x, y, w, h = self.box(selector)
        return x + w / 2, y + h / 2

    def key(self, key: str, *, shift: bool = False) -> None:
        numbers = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowRight": 39, "ArrowDown": 40}
        number = (numbers | {"Home": 36, "Delete": 46})[key]
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": number}
        pressed["modifiers"] = 8 * shift
        text = {"text": "\r"} if key == "Enter" else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **pressed, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def mouse(self, kind: str, x: float, y: float, **more: object) -> None:
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str, count: int = 1) -> None:
        x, y = self.middle(selector)
        for number in range(1, count + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.mouse(kind, x, y, button="left", clickCount=number)

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """From one place of an element to another, as parts of its width and height."""
        x, y, w, h = self.box(selector)
        places = [(x + part[0] * w, y + part[1] * h) for part in (start, end)]
        middle = tuple((a + b) / 2 for a, b in zip(*places, strict=True))
        self.mouse("mousePressed", *places[0], button="left", clickCount=1)
        for place in (middle, places[1]):
            self.mouse("mouseMoved", *place, button="left", buttons=1)
        self.mouse("mouseReleased", *places[1], button="left", clickCount=1)

    def touch(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """A finger from one place of an element to another."""
        x, y, w, h = self.box(selector)
        for kind, part in (("touchStart", start), ("touchMove", end)):
            points = [{"x": x + part[0] * w, "y": y + part[1] * h}]
            self.ask("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        self.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def shot(self, path: Path) -> None:
        image = self.ask("Page.captureScreenshot", captureBeyondViewport=False)["data"]
        path.write_bytes(base64.b64decode(image))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.answers.close()
        os.close(self.out)
