"""The words that a model was taught, and which words of a text are none of them.

A small model knows the words of its training captions and no others. Its folder may list them in
words.json; a model without the file is taken to know every word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property, lru_cache
from pathlib import Path

from sdcore.errors import FileError
from sdcore.files.jsonfile import is_list, read_json
from sdcore.text.tokenizer import UNSPACED

FILE_NAME = "words.json"
_KEYS = ("names", "other")

_SIGNS = (  # what stands between words: spaces and punctuation, but not emoji
    r"\s!-/:-@\[-`{-~\u0080-\u00bf\u2000-\u200c\u200e-\u206f\u3000-\u3004\u3008-\u303f"
    r"\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_LETTERS = f"[^{_SIGNS}{UNSPACED}]+"
_WORD = re.compile(f"{_LETTERS}(?:['\u2019-]{_LETTERS})*")
_WITHOUT_SPACES = re.compile(f"[{UNSPACED}]")
_UNIT = re.compile(f"{_WORD.pattern}|{_WITHOUT_SPACES.pattern}")
_RUN = re.compile(f"[^{_SIGNS}]+(?:['\u2019-][^{_SIGNS}]+)*")
# Words of Chinese that only join others: no picture shows them, so no model needs to know them.
# Within a word most of them mean something, as 地 does in 草地; the first few hardly do.
_PARTICLES = "的了和与" + "地得着过及跟或而且之个里中内"
_JOINING = _PARTICLES[:4]
# Of words, and of Chinese, which says in one sign what takes several letters:
_LIKE = (0.75, 0.6)  # likeness of spelling, 0 to 1, from which on a name is called near
_LONGEST_TYPED = 100  # letters; a longer word is like none
_SHORTEST_PART = (3, 1)  # letters of a name that is looked for inside an unknown word


@dataclass(frozen=True)
class KnownWords:
    """What a model was taught to read. Upper and lower case are one.

    Attributes:
        names: what captions are about (things, colours, styles), each a word, several ("red
            apple"), or Chinese. Of these, parts of an unknown word are recognised ("wolfhound").
        other: the words around them: "a", "to the left of", "背景".
    """

    names: frozenset[str]
    other: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str], other: Iterable[str]) -> KnownWords:
        return cls(frozenset(map(_normal, names)), frozenset(map(_normal, other)))

    @cached_property
    def phrases(self) -> frozenset[str]:
        """All that is written without spaces."""
        return frozenset(t for t in self.names | self.other if _WITHOUT_SPACES.search(t))

    @cached_property
    def words(self) -> frozenset[str]:
        """All single words of what is written with spaces."""
        return self.name_words | _words_of(self.other)

    def unknown(self, text: str) -> list[str]:
        """The words of a text that were not taught, each once, in order.

        Words are taken one by one: whoever was taught "ice cream" knows "ice". Another form of a
        word is another word, as it is for the tokenizer. Chinese is read as the known phrases that
        cover most of it; what they leave is unknown.
        """
        runs = _RUN.findall(_normal(text))
        left = [word for run in runs for word in self._left_over(_UNIT.findall(run))]
        found = [word.strip(_JOINING) for word in left if word.strip(_PARTICLES)]
        return list(dict.fromkeys(found))

    def near(self, word: str, count: int = 3) -> list[str]:
        """Names that are spelled like an unknown word, or begin or end it, the likest first.

        Where it is another number of a known word ("foxes"), that word alone.
        """
        return list(_near(self, word))[:count]

    @cached_property
    def name_words(self) -> frozenset[str]:
        """All single words of names."""
        return _words_of(self.names)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.phrases), default=1)

    def _left_over(self, units: list[str]) -> list[str]:
        """What known phrases leave of words and signs that no space divides, as little as can be.

        Of several ways to cover as much, the one with the fewest phrases.
        """
        # For the first `end` units: how many are left, phrases used, where the last piece begins.
        best = [(0, 0, 0)]
        for end in range(1, len(units) + 1):
            ways = [(best[end - 1][0] + 1, best[end - 1][1], end - 1)]
            for start in range(max(0, end - self._longest), end):
                if self._knows("".join(units[start:end])):
                    ways.append((best[start][0], best[start][1] + 1, start))
            best.append(min(ways))
        left: list[str] = []  # from the last to the first
        end = len(units)
        while end:
            lost, _, start = best[end]
            piece = units[start] if lost > best[start][0] else "\n"
            left.append(piece if _WITHOUT_SPACES.match(piece) else f"\n{piece}\n")
            end = start
        return "".join(reversed(left)).split()

    def _knows(self, word: str) -> bool:
        parts = re.split("['\u2019-]", word)  # the tokenizer, too, reads them one by one
        return word in self.phrases or all(part in self.words for part in parts)


@lru_cache(maxsize=1024)
def _near(known: KnownWords, word: str) -> Sequence[str]:
    """All near names. A word that is not known comes again with each picture, and looking takes as
    long as a step of a small model."""
    if len(word) > _LONGEST_TYPED:
        return []
    chinese = bool(_WITHOUT_SPACES.search(word))
    names = known.phrases & known.names if chinese else known.name_words
    numbers = [form for form in _other_numbers(word) if form in known.words]
    if numbers and not chinese:
        return numbers[:1]
    least, shortest = _LIKE[chinese], _SHORTEST_PART[chinese]
    likeness: dict[str, float] = {}
    matcher = SequenceMatcher(None, b=word)
    for name in sorted(names):
        matcher.set_seq1(name)
        likeness[name] = matcher.ratio()
    found = [
        name
        for name, ratio in likeness.items()
        if ratio >= least
        or (len(name) >= shortest and (word.startswith(name) or word.endswith(name)))
    ]
    return sorted(found, key=lambda name: -likeness[name])


def describe_unknown(known: KnownWords, texts: Iterable[str], most: int = 8) -> str:
    """One line that names the unknown words of texts and what is near each; "" if there are none.

    Args:
        most: so many words are named; the others are counted.
    """
    words = list(dict.fromkeys(word for text in texts for word in known.unknown(text)))
    if not words:
        return ""
    named: list[str] = []
    for word in words[:most]:
        near = known.near(word)
        named.append(f"{word!r:.60}" + (f" (near: {', '.join(near)})" if near else ""))
    if len(words) > most:
        more = len(words) - most
        named.append(f"{more} other word{'s' * (more > 1)}")
    listed = " or ".join([", ".join(named[:-1]), named[-1]] if named[:-1] else named)
    foreign = not known.phrases and any(map(_WITHOUT_SPACES.search, words))
    language = "; it was taught no Chinese or Japanese" if foreign else ""
    return f"the model does not know {listed}{language}"


def read_known_words(folder: Path) -> KnownWords | None:
    """The words.json of a model's folder; None if there is none.

    Raises:
        FileError: it is not an object of the lists "names" and "other".
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    lists = read_json(path)
    for key in (*_KEYS, *lists):
        value = lists.get(key)
        if key not in _KEYS or not is_list(value) or not all(_is_text(v) for v in value):
            raise FileError(
                f"{path} cannot be used.",
                f"{key!r:.80} is {value!r:.80}; it holds two lists of words, 'names' and 'other'.",
                "Correct the file, or remove it.",
            )
    return KnownWords.of(*(lists[key] for key in _KEYS))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _normal(text: str) -> str:
    """As the tokenizer reads it: composed letters in lower case."""
    return unicodedata.normalize("NFC", text).lower()


def _words_of(texts: Iterable[str]) -> frozenset[str]:
    """The words of texts; "t-shirt" is two, as for the tokenizer."""
    return frozenset(word for text in texts for word in re.findall(_LETTERS, text))


def _other_numbers(word: str) -> list[str]:
    """What may be the singular or the plural of an English word."""
    forms = [f"{word}s", f"{word}es"]
    for ending, other in (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", "")):
        if word.endswith(ending):
            forms.append(word.removesuffix(ending) + other)
        if other and word.endswith(other):
            forms.append(word.removesuffix(other) + ending)
    return forms
