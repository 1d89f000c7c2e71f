"""Prompts that change while the picture is painted, as the web UI writes them.

    [from:to:when]   [to:when]   [from::when]   from before `when`, to after it
    [one|two|three]                             one of them at each step, in turn

`when` with a point is a share of the steps (0.4), without one a number of steps (8). Brackets that
are neither are left as they are, for the weights. The web UI counts steps from 1 where it divides
them, and from 0 where it asks: [a:b:8] reads `a` nine times, and [a|b] reads `a` twice before it
goes to `b`. We do the same. A prompt with a `|` that is in no such bracket,
or with a `\\` at its end, has no schedules at all: the web UI cannot parse it, and reads it as it
is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from sdcore.prompt.text import Slice, Steps

_TOKENS = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|\\]")
_WHEN = re.compile(r"\s*([+-]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)\s*")


@dataclass(frozen=True)
class _Change:
    before: _Group
    after: _Group
    when: str

    def choose(self, step: int, steps: Steps) -> _Group:
        return self.before if step <= self.last(steps) else self.after

    def last(self, steps: Steps) -> int:
        """The last step, counted from 1, that still reads `before`."""
        if "." in self.when:
            # A second pass has the shares from 1 on.
            number = (float(self.when) - (1 if steps.before else 0)) * steps.count
        else:
            number = float(self.when) - steps.before
        return steps.count if number >= steps.count else int(max(number, -1.0))


@dataclass(frozen=True)
class _Turns:
    choices: tuple[_Group, ...]

    def choose(self, step: int, steps: Steps) -> _Group:
        return self.choices[(step - 1) % len(self.choices)]


_Node: TypeAlias = "Slice | _Group | _Change | _Turns"


@dataclass
class _Group:
    """Nodes in a row. `sound`: no bracket, colon or | among them lacks its partner."""

    nodes: list[_Node] = field(default_factory=lambda: [])
    sound: bool = True


@dataclass
class _Open:
    """A bracket that is not closed yet, and what stands in it, divided by : and |."""

    start: int
    round: bool
    segments: list[_Group] = field(default_factory=lambda: [_Group()])
    dividers: list[Slice] = field(default_factory=list[Slice])

    def divided_by(self, text: str) -> str:
        return "".join(text[start:end] for start, end in self.dividers)

    def as_it_is(self, end: int | None, sound: bool) -> _Group:
        """The bracket with its contents, for what comes after schedules."""
        nodes: list[_Node] = [(self.start, self.start + 1), self.segments[0]]
        for divider, segment in zip(self.dividers, self.segments[1:], strict=True):
            nodes += [divider, segment]
        return _Group(nodes if end is None else [*nodes, (end - 1, end)], sound)


class Schedule:
    """The parts of a text that change with the step."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._root, self.changes = _parse(text)

    @property
    def times(self) -> list[str]:
        """Every `when`, as it was written."""
        return [change.when for change in self.changes if isinstance(change, _Change)]

    def ends(self, steps: Steps) -> list[int]:
        """The steps, counted from 1, after which the text may change, and the last step."""
        ends = {steps.count}
        for change in self.changes:
            if isinstance(change, _Turns):
                ends.update(range(1, steps.count + 1))
            elif change.last(steps) >= 1:
                ends.add(change.last(steps))
        return sorted(ends)

    def at(self, step: int, steps: Steps) -> tuple[Slice, ...]:
        """What is left of the text at a step, counted from 1."""
        found: list[Slice] = []
        waiting: list[_Node] = [self._root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, tuple):
                found.append(node)
            elif isinstance(node, _Group):
                waiting += reversed(node.nodes)
            else:
                waiting.append(node.choose(step, steps))
        return tuple(found)


def _parse(text: str) -> tuple[_Group, tuple[_Change | _Turns, ...]]:
    """Everything in the text, and what in it changes; in time that grows with its length."""
    unchanged = _Group([(0, len(text))])
    if "[" not in text or "]" not in text:
        return unchanged, ()
    changes: list[_Change | _Turns] = []
    stack = [_Open(-1, True)]  # the outermost is no bracket
    for match in _TOKENS.finditer(text):
        token, top = match[0], stack[-1]
        if token == "\\":
            return unchanged, ()
        if token in "([":
            stack.append(_Open(match.start(), token == "("))
        elif token in ")]" and len(stack) > 1 and top.round == (token == ")"):
            stack.pop()
            node = _close(text, top, match.end())
            if node is None:
                return unchanged, ()
            if isinstance(node, _Change | _Turns):
                changes.append(node)
            parent = stack[-1].segments[-1]
            parent.nodes.append(node)
            parent.sound &= not isinstance(node, _Group) or node.sound
        elif token in ":|" and len(stack) > 1:
            top.dividers.append(match.span())
            top.segments.append(_Group())
        elif token == "|":
            return unchanged, ()
        else:  # text, or a mark without a partner
            top.segments[-1].nodes.append(match.span())
            top.segments[-1].sound &= token not in ")]:"
    while len(stack) > 1:
        unclosed = stack.pop()
        if "|" in unclosed.divided_by(text):
            return unchanged, ()
        stack[-1].segments[-1].nodes.append(unclosed.as_it_is(None, sound=False))
    return (stack[0].segments[0], tuple(changes)) if changes else (unchanged, ())


def _close(text: str, bracket: _Open, end: int) -> _Node | None:
    """What a closed bracket is; None: a | in it has no meaning."""
    segments, dividers = bracket.segments, bracket.divided_by(text)
    sound = all(segment.sound for segment in segments)
    if not bracket.round and sound and dividers and set(dividers) == {"|"}:
        return _Turns(tuple(segments))
    if "|" in dividers:
        return None
    when = None
    if not bracket.round and dividers in (":", "::"):
        when = _WHEN.fullmatch(text, bracket.dividers[-1][1], end - 1)
    if when and all(segment.sound for segment in segments[:-1]):
        before = segments[0] if dividers == "::" else _Group()
        return _Change(before, segments[-2], when[1])
    plain = sound and (not dividers or (bracket.round and dividers == ":"))
    return bracket.as_it_is(end, plain)
