"""Which words of an English prompt name things, by a rule that needs no dictionary.

A prompt is mostly noun phrases, and an English noun phrase ends in its noun: "a red fox on a tall
tree". So the last word before a preposition, a verb in -ing, a mark or the end is taken for a noun.
It is a guess, good enough to choose what is shown first; nothing else hangs on it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sdcore.text.tokenizer import Span

_WORD = re.compile(r"[a-z][a-z'-]*")
# Words before which a phrase has ended, and that name nothing themselves.
_BETWEEN = frozenset(
    _WORD.findall(
        "a an the this that these those some any every each no my your his her its our their one "
        "two three four five six seven eight nine ten and or but with without of on in at by to "
        "from into onto over under above below behind beside between among near around through "
        "across against along for as like than is are was were be being been has have while very "
        "who which it he she they up down left right front top bottom next"
    )
)
_THINGS_IN_ING = frozenset(
    _WORD.findall(
        "building painting king ring wing string spring thing ceiling clothing lightning drawing "
        "morning evening wedding sling earring railing"
    )
)
# What ends phrases about the picture as a whole, and colours.
_NOT_SEEN = frozenset(
    _WORD.findall(
        "style quality detailed masterpiece background resolution uhd hdr hd realistic "
        "photorealistic cinematic beautiful red green blue yellow orange purple pink brown black "
        "white gray grey"
    )
)


def nouns(spans: Sequence[Span], prompt: str) -> list[bool]:
    """For each word of a prompt whether it is taken for a noun."""
    found: list[bool] = []
    for i, span in enumerate(spans):
        after = spans[i + 1] if i + 1 < len(spans) else None
        ends = after is None or _ends_phrase(after.word)
        ends = ends or bool(prompt[span.end : after.start if after else None].strip())
        found.append(ends and _names_something(span.word.lower()))
    return found


def _names_something(word: str) -> bool:
    return not _ends_phrase(word) and len(word) > 1 and word not in _NOT_SEEN


def _ends_phrase(word: str) -> bool:
    """Whether a phrase ends before this word."""
    word = word.lower()
    if _WORD.fullmatch(word) is None or word in _BETWEEN:
        return True
    return word.endswith("ing") and len(word) > 4 and word not in _THINGS_IN_ING
