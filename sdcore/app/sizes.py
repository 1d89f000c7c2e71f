"""Sizes in flags: width and height, and those of a second pass."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from sdcore.errors import UsageError

if TYPE_CHECKING:
    from sdcore.metadata.image_settings import HiresSettings

_SIDES = ("width", "height")
_STRENGTH = 0.4


def add_hires_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "paint it again at this size, from what was painted first (default: no)"
    add("--hires", metavar="WxH", help=text)
    text = f"how much is painted anew then, above 0 to 1 (default: {_STRENGTH})"
    add("--hires-strength", type=float, metavar="X", help=text)


def read_hires(options: argparse.Namespace) -> HiresSettings | None:
    """What --hires and its strength say, or None. UsageError where they cannot be used."""
    from sdcore.metadata.image_settings import HiresSettings
    from sdcore.pipeline.request import check_size

    strength = options.hires_strength
    if strength is not None and not 0 < strength <= 1:
        raise UsageError(
            f"--hires-strength is {strength:g}.",
            "It is the share of the second pass's steps that are run.",
            "Use 0.3 to sharpen, 0.7 to add details.",
        )
    if options.hires is None:
        if strength is not None and options.source is None:
            raise UsageError(
                f"--hires-strength {strength:g} has no effect.",
                "There is no second pass without --hires.",
                "Add --hires, such as --hires 1024x1024.",
            )
        return None
    sides = zip(_SIDES, _read_sides("--hires", options.hires), strict=True)
    width, height = (check_size(side, f"{name} in --hires") for name, side in sides)
    return HiresSettings(width, height, _STRENGTH if strength is None else strength)


def parse_size(options: argparse.Namespace) -> dict[str, int | None]:
    """Width and height as far as they are given. UsageError where they cannot be."""
    from sdcore.pipeline.request import check_size

    sides = options.width, options.height
    if options.size is not None:
        if sides != (None, None):
            raise UsageError(
                f"--size {options.size} cannot be used beside --width or --height.",
                "It stands in place of both.",
                "Leave one of them out.",
            )
        sides = _read_sides("--size", options.size)
    named = zip(_SIDES, sides, strict=True)
    return {name: s if s is None else check_size(s, name) for name, s in named}


def _read_sides(flag: str, text: str) -> tuple[int, int]:
    """Width and height of WxH, or of one number for both."""
    found = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text.lower())
    if found is None:
        raise UsageError(
            f"{flag} {text} cannot be used.",
            "It is one number, or width and height joined by x.",
            f"Use for example {flag} 512 or {flag} 768x512.",
        )
    return int(found[1]), int(found[2] or found[1])
