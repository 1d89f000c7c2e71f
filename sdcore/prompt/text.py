"""What a dialect makes of a prompt, always as pieces of what the user typed.

    prompt ─dialect─► Parsed ─► parts (of an AND) ─steps─► texts in the order of time
                                        text ─► clauses ─► passages ─► fragments

A fragment is text of one weight. Offsets lead from every letter back into the prompt. A plain
prompt is one part, one text, one clause, one passage and one fragment.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Generic, TypeVar

Slice = tuple[int, int]
BREAK = " BREAK "  # joins texts that are read apart, in dialects that know it
Item = TypeVar("Item")
Other = TypeVar("Other")


@dataclass(frozen=True)
class Excerpt:
    """Text that is left of a prompt: slices of it, in order, joined without anything between."""

    prompt: str
    slices: tuple[Slice, ...]

    @classmethod
    def of_all(cls, prompt: str) -> Excerpt:
        """The prompt as it is."""
        return cls(prompt, ((0, len(prompt)),) if prompt else ())

    @cached_property
    def text(self) -> str:
        """The slices, joined."""
        return "".join(self.prompt[start:end] for start, end in self.slices)

    @cached_property
    def _ends(self) -> list[int]:
        """Where each slice ends in `text`."""
        return list(accumulate(end - start for start, end in self.slices))

    def origin(self, start: int, end: int) -> Slice:
        """Where text[start:end], not empty, begins and ends in the prompt."""
        return self._place(start), self._place(end - 1) + 1

    def _place(self, index: int) -> int:
        number = bisect_right(self._ends, index)
        return self.slices[number][1] - (self._ends[number] - index)

    def pick(self, stretches: Iterable[Slice]) -> Excerpt:
        """These stretches of `text`, joined."""
        slices: list[Slice] = []
        for start, end in stretches:
            if start < end:
                slices += self._slices(start, end)
        return Excerpt(self.prompt, tuple(slices))

    def _slices(self, start: int, end: int) -> list[Slice]:
        first, last = bisect_right(self._ends, start), bisect_right(self._ends, end - 1)
        slices = list(self.slices[first : last + 1])
        slices[0] = (self._place(start), slices[0][1])
        slices[-1] = (slices[-1][0], self._place(end - 1) + 1)
        return slices


@dataclass(frozen=True)
class Fragment:
    """Text of one weight; `starts_chunk` sends it to a new chunk, as BREAK does."""

    text: Excerpt
    weight: float = 1.0
    starts_chunk: bool = False


Passage = tuple[Fragment, ...]


@dataclass(frozen=True)
class Clause:
    """One stretch of text for the UNet: its passages, mixed by `shares`.

    A `weight` other than 1 moves all of it towards, or away from, the empty prompt.
    """

    passages: tuple[Passage, ...]
    shares: tuple[float, ...] = (1.0,)
    weight: float = 1.0


Clauses = tuple[Clause, ...]


@dataclass(frozen=True)
class Steps:
    """How often the UNet is called, and how often in an earlier pass at another size."""

    count: int
    before: int = 0


@dataclass(frozen=True)
class Timeline(Generic[Item]):
    """What is read in the course of a run, in order.

    Attributes:
        items: what is read, one after the other.
        last_steps: for each of them the last step, counted from 0, at which it is read.
    """

    items: tuple[Item, ...]
    last_steps: tuple[int, ...]

    def number_at(self, step: int) -> int:
        """Which of the items is read at a step, counted from 0."""
        return min(bisect_left(self.last_steps, step), len(self.items) - 1)

    def at(self, step: int) -> Item:
        """What is read at a step, counted from 0."""
        return self.items[self.number_at(step)]

    def map(self, change: Callable[[Item], Other]) -> Timeline[Other]:
        """Something else in place of each item, for the same steps; once for each distinct item."""
        known = {id(item): item for item in self.items}
        changed = {key: change(item) for key, item in known.items()}
        return Timeline(tuple(changed[id(item)] for item in self.items), self.last_steps)


@dataclass(frozen=True)
class ParsedPart:
    """One prompt of an AND and its weight.

    timeline: for the steps of a run, the texts that are read.
    """

    weight: float
    timeline: Callable[[Steps], Timeline[Clauses]]


@dataclass(frozen=True)
class LoraTag:
    """A LoRA that a prompt asks for: how much of it for the text encoders and for the UNet.

    blocks: how much for each block, as the prompt says it; "" is all alike.
    """

    name: str
    text_encoder: float = 1.0
    unet: float = 1.0
    blocks: str = ""


@dataclass(frozen=True)
class Parsed:
    """A prompt as one dialect reads it.

    notes: what the user should know, each a sentence without its beginning.
    """

    parts: tuple[ParsedPart, ...]
    loras: tuple[LoraTag, ...] = ()
    notes: tuple[str, ...] = ()


def always(clauses: Clauses, weight: float = 1.0) -> ParsedPart:
    """A part that is the same at every step."""
    return ParsedPart(weight, lambda steps: Timeline((clauses,), (steps.count,)))
