"""How much one request may ask for: checked by name, before anything of it is allocated.

A job's text may come from a picture or over a network, and a few letters can ask for terabytes. The
budget is generous: who needs more raises a part of it by its name. A record of a job does not hold
it, so that no file raises its own.

Of the machine's memory what a run holds at once is estimated from below, so that what is refused
could not have been painted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches

from sdcore.checks import as_int, shown
from sdcore.errors import MemoryLimitError, UsageError
from sdcore.size import Size

_MOST = 2**62
_WHOLE = re.compile(r"[0-9]{1,19}")
# Without a limit of its own a picture has at most so many times the pixels of the model's size, or
# so many; and never more than the last, whatever the model.
_TIMES, _LEAST_PIXELS, _MOST_PIXELS = 64, 1024**2, 2**28


@dataclass(frozen=True)
class Budget:
    """What one request may ask for.

    Attributes:
        letters: of a prompt.
        tokens: that a text encoder reads for one picture: in all parts of the prompt, and in all
            texts that it has in the course of a run; and that a batch reads at once.
        steps: of a run.
        images: of a request.
        pixels: of a picture; None is 64 times those of the model's own size, at least 1024 x 1024.
        adapters: LoRAs, and learned words.
        memory: bytes that are held at once; None is what the machine has free.

    Raises:
        UsageError: a part is no whole number above 0.
    """

    letters: int = 20_000
    tokens: int = 20_000
    steps: int = 1000
    images: int = 100_000
    pixels: int | None = None
    adapters: int = 100
    memory: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if as_int(value, 1, _MOST) is None:
                raise UsageError(
                    f"The budget's {field.name} is {shown(value)}.",
                    "It says how much one request may ask for.",
                    "Use a whole number above 0.",
                )

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Budget:
        """The budget with parts raised as in "letters=50000". UsageError where it cannot be."""
        budget, known = cls(), [field.name for field in fields(cls)]
        for text in texts:
            name, _, number = text.partition("=")
            digits = number.replace("_", "").strip()
            if name not in known or not _WHOLE.fullmatch(digits):
                near = get_close_matches(name, known, n=1)
                raise UsageError(
                    f"The budget {text!r:.80} cannot be used.",
                    f"It has the parts {', '.join(known)}, each a whole number.",
                    f"Use for example {near[0] if near else 'letters'}=50000.",
                )
            budget = replace(budget, **{name: int(digits)})
        return budget

    def check(self, name: str, asked: int, of: str) -> None:
        """Refuse more than a part of it allows.

        Args:
            of: what asks for so much, as a sentence about it begins: "The prompt".

        Raises:
            UsageError: it is more; the hint says how to raise that part.
        """
        allowed = getattr(self, name)
        if asked > allowed:
            raise _refusal(name, asked, allowed, of)

    def check_size(self, size: Size, native: Size | None = None) -> None:
        """Refuse a picture of too many pixels. Raises UsageError.

        Args:
            native: the model's own size, where a model is known.
        """
        sides = [as_int(side, 1, _MOST) for side in size.width_height]
        if None in sides:
            raise UsageError(
                f"The size {shown(size.width)} x {shown(size.height)} cannot be used.",
                "A picture has a whole number of pixels in width and height.",
                "Use for example 512 and 512.",
            )
        allowed = self.pixels or _MOST_PIXELS
        if self.pixels is None and native is not None:
            allowed = min(allowed, max(_TIMES * native.area, _LEAST_PIXELS))
        if size.area > allowed:
            raise _refusal("pixels", size.area, allowed, f"A picture of {size}")

    def check_memory(self, needed: int, free: int | None, what: str) -> None:
        """Refuse what cannot be held at once.

        Args:
            needed: bytes, at least.
            free: bytes that the machine has; None is not known.
            what: is painted, as a sentence about it begins.

        Raises:
            MemoryLimitError: it is more than the budget, or than what is free.
        """
        allowed = free if self.memory is None else self.memory
        if allowed is not None and needed > allowed:
            gib = 1 << 30
            raise MemoryLimitError(
                f"{what} needs at least {needed / gib:.1f} GiB at once.",
                f"There are {allowed / gib:.1f} GiB for it.",
                "Use a smaller size, fewer pictures at once, the autoencoder in tiles, or raise "
                f"the budget: memory={needed}.",
            )


def _refusal(name: str, asked: int, allowed: int, of: str) -> UsageError:
    most = asked <= _MOST  # more is no number that a budget can have
    return UsageError(
        f"{of} asks for {f'{asked:,}' if most else shown(asked)} {name}.",
        f"One request may ask for {allowed:,}.",
        f"Ask for less, or raise the budget: {name}={asked}." if most else "Ask for less.",
    )
