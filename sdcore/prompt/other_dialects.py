"""What of a prompt means something else in another dialect: so that nobody is surprised."""

from __future__ import annotations

import re

from sdcore.errors import UsageError
from sdcore.prompt.dialects import DIALECTS, find_dialect
from sdcore.prompt.text import Clauses, Slice, Steps

_SHOWN = 4
_LONGEST = 20_000  # letters; beyond them nobody has typed a prompt by hand
_MARKS = re.compile(r"[()\[\]\\<+]|\w-|BREAK|AND|\"\)\.|\d-|\)-")


def describe_other_dialects(prompt: str, dialect: str) -> list[str]:
    """One sentence for each stretch that this dialect reads as text and another as a mark or a
    weight, or to which another gives another weight.

    Nothing is said of what this dialect alone has a mark for: who chose the dialect wrote it on
    purpose.
    """
    if len(prompt) > _LONGEST or not _MARKS.search(prompt):
        return []
    mine = _weights(prompt, dialect)
    others = {
        name: _weights(prompt, name)
        for name in DIALECTS
        if name not in (dialect, "plain", "a1111-nonorm") and not _same(name, dialect)
    }
    found: dict[tuple[Slice, str], list[str]] = {}
    for name, theirs in others.items():
        for stretch in _stretches(prompt, mine, theirs, name):
            # Brackets mean little in compel, so a weight alone tells the two apart at every one.
            if "compel" in (name, dialect) and None not in theirs[slice(*stretch)]:
                continue
            found.setdefault((stretch, _said(theirs, stretch)), []).append(name)
    sentences = [
        f"{prompt[slice(*stretch)]!r:.80} in the prompt is read as {_said(mine, stretch)}; in the "
        f"dialect {' or '.join(names)} it would be {said}"
        for (stretch, said), names in sorted(found.items())
    ]
    rest = len(sentences) - _SHOWN
    return sentences[:_SHOWN] + [f"and {rest} more of this kind"] * (rest > 0)


def _same(name: str, dialect: str) -> bool:
    return find_dialect(name).parse is find_dialect(dialect).parse


def _weights(prompt: str, dialect: str) -> list[float | None]:
    """The weight of every letter; None for a mark, and for what is not read at every step alike.

    A prompt that the dialect refuses is all marks.
    """
    try:
        parsed = find_dialect(dialect).parse(prompt, False)
    except UsageError:
        return [None] * len(prompt)
    weights: list[float | None] = [None] * len(prompt)
    for part in parsed.parts:
        moments = [_weights_of(clauses) for clauses in part.timeline(Steps(2)).items]
        for slice_, weight in moments[0].items():
            if all(moment.get(slice_) == weight for moment in moments):
                weights[slice(*slice_)] = [weight] * (slice_[1] - slice_[0])
    return weights


def _weights_of(clauses: Clauses) -> dict[Slice, float]:
    return {
        slice_: fragment.weight * (clause.weight if len(clause.passages) == 1 else 1.0)
        for clause in clauses
        for passage in clause.passages
        for fragment in passage
        for slice_ in fragment.text.slices
    }


def _stretches(
    prompt: str, mine: list[float | None], theirs: list[float | None], name: str
) -> list[Slice]:
    """Where they differ, with the marks around it."""

    def differs(i: int) -> bool:
        ours, other = mine[i], theirs[i]
        if prompt[i].isspace() or ours is None:
            return False
        if other is None:  # compel drops quotation marks and brackets that weigh nothing
            return name != "compel" or prompt[i] not in '()"\\'
        return other != 1 and abs(ours - other) > 1e-9

    found: list[Slice] = []
    for i in range(len(prompt)):
        if not differs(i):
            continue
        if found and (not prompt[found[-1][1] : i].strip() or found[-1][1] == i):
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return found


def _said(weights: list[float | None], stretch: Slice) -> str:
    values = list(dict.fromkeys(weights[slice(*stretch)]))
    said = [f"weight {value:.4g}" for value in values if value not in (None, 1)]
    return " and ".join(said) or ("a mark" if None in values else "text")
