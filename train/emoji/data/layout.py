"""Where things stand in a scene: sizes, places, relations, groups; and what a scene is.

All in pixels of a picture of 64; a larger picture is the same, enlarged.
"""

from __future__ import annotations

from dataclasses import dataclass

SIDE = 64
SIZES = {"big": 56, "": 40, "small": 28}  # "" is the size that goes without saying
PLACES = ("center", "left", "right", "top", "bottom")
RELATIONS = {  # where the first object is, seen from the second
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
MARGIN = 4  # pixels between an object and the edge it stands at
APART = 15  # pixels from the middle of the picture to the middle of one of several small objects
GROUPS = {  # number of small things of one kind -> where each is, in `APART`s from the middle
    2: ((-1, 0), (1, 0)),
    3: ((0, -1), (-1, 1), (1, 1)),
}


@dataclass(frozen=True)
class Drawn:
    """One object of a scene: what it is and the square it fills (x, y, side in pixels of 64).

    color: in which it is drawn instead of its own; empty: as it is.
    """

    concept: str
    style: str
    size: str
    place: str
    box: tuple[int, int, int]
    color: str = ""


@dataclass(frozen=True)
class Scene:
    """Ground truth of a picture; `relation` is empty unless there are two different objects.

    names: what the caption calls the objects, in their order; it says them in that order. Several
        of one kind have one name.
    """

    objects: tuple[Drawn, ...]
    background: str
    relation: str
    caption: str
    names: tuple[str, ...] = ()

    @property
    def single(self) -> bool:
        """Whether there is one object alone, in its own colours."""
        return len(self.objects) == 1 and not self.objects[0].color


def box_at(place: str, size: int, side: int = SIDE) -> tuple[int, int, int]:
    """The square of an object `size` wide at a place of a picture `side` wide."""
    free, middle = side - size, (side - size) // 2
    x = {"left": MARGIN, "right": free - MARGIN}.get(place, middle)
    y = {"top": MARGIN, "bottom": free - MARGIN}.get(place, middle)
    return x, y, size


def box_beside(dx: float, dy: float, side: int = SIDE) -> tuple[int, int, int]:
    """The square of a small object so many `APART`s from the middle."""
    size = SIZES["small"]
    x, y = (round((side - size) / 2 + d * APART) for d in (dx, dy))
    return x, y, size
