"""Runs that paint, killed at random times: whole pictures or none, and no draft for long."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from PIL import Image

from sdcore import Job, Size, TextToImage
from sdcore.files import atomic
from sdcore.metadata.png import read_recipe, save_png
from tests import tiny

LONGEST = 0.6  # seconds until a kill; a picture takes a tenth of that


def kill(count: int, seed: int = 0) -> int:
    """Kill so many, and print what was found; 1 where something was not as it should be.

    Every process is a fork that paints picture after picture into one folder, some with SIGTERM
    and some with SIGKILL in the middle of a write.
    """
    rng, found = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        pipe = TextToImage.from_pretrained(tiny.write_sd(Path(name) / "sd"))
        folder = Path(name) / "out"
        paint(pipe, folder, 0)  # warm
        for number in range(count):
            ending = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
            found[run_and_kill(pipe, folder, number, rng.uniform(0, LONGEST), ending)] += 1
            found["drafts left by a kill"] += bool(list(folder.glob(".*")))
        atomic._swept.clear()
        paint(pipe, folder, count)  # which sweeps what the last one left
        found["pictures"] = len(pictures := sorted(folder.glob("*.png")))
        for path in pictures:
            try:
                Image.open(path).load()
                read_recipe(path)
            except Exception as error:
                found["DAMAGED"] += 1
                print(f"{path.name}: {error!r}")
        left = [path.name for path in folder.iterdir() if path.suffix != ".png"]
        found["LEFT AT THE END"] = len(left)
    print(f"{count} kills: {', '.join(f'{name} {n}' for name, n in sorted(found.items()))}")
    return int(bool(found["DAMAGED"] or found["LEFT AT THE END"]))


def run_and_kill(
    pipe: TextToImage, folder: Path, number: int, after: float, ending: signal.Signals
) -> str:
    """How a process ended that painted until it was killed."""
    child = os.fork()
    if not child:
        import torch

        torch.set_num_threads(1)
        atomic._swept.clear()  # a process of its own sweeps at its first write
        while True:
            paint(pipe, folder, number)
    time.sleep(after)
    os.kill(child, ending)
    _, status = os.waitpid(child, 0)
    return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"


def paint(pipe: TextToImage, folder: Path, number: int) -> None:
    result = pipe.paint(Job("a fox", seed=number, steps=1, size=Size(64, 64)), progress=False)
    save_png(result.images[0], folder / "fox.png", result.settings[0])


if __name__ == "__main__":
    sys.exit(kill(int(sys.argv[1])))
