"""The dialect of the compel library (the syntax of InvokeAI).

    x+  x++  x-  (x y)1.3      weight 1.1, 1.21, 0.9, 1.3; brackets in brackets multiply
    "x y"+  x.attend(1.3)      the same
    \\(  \\)  \\"                 the character itself
    ("a", "b").and(1, 0.5)     one text after the other, in chunks of their own
    ("a", "b").blend(0.7, 0.3) one text that lies between
    withLora(name, 0.8)        a LoRA

`.swap()` and what else compel takes as an operator are refused. Rules: compel/prompt_parser.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from sdcore.errors import UsageError
from sdcore.prompt.text import Clause, Excerpt, Fragment, LoraTag, Parsed, Passage, Slice, always

PLUS, MINUS = 1.1, 0.9
_DEEPEST = 100
_SIGNS = r'()",.+\-='
_WORD = rf"(?>(?:\\[{_SIGNS}]|[-+](?![\s{_SIGNS}]|$)|[^\s{_SIGNS}])+)"
_NUMBER = r"(?:[+-]?(?:\d+\.\d*|\.\d+)|-?\d+)"
_PLAIN_WORD = re.compile(_WORD)
_WEIGHED_WORD = re.compile(rf"({_WORD})(\++|-+)")
_ATTEND = re.compile(rf"\s*\.attend\s*\(\s*(\++|-+|{_NUMBER})\s*\)")
_SUFFIX = re.compile(rf"\++|-+|{_NUMBER}")
_LORA = re.compile(rf"(?:useLora|withLora)\s*\(\s*([\w-]+)\s*(?:,\s*({_NUMBER})\s*)?\)", re.ASCII)
_SWAP = re.compile(r"\s*\.swap\s*\(")
_JOIN = re.compile(r"\s*\.(and|add|blend)\s*\(([^()]*)\)\s*")
_QUOTED = re.compile(r'"((?:\\"|[^"\n])*)"')
_FREE = re.compile(r"\S+?(?:(?<=,)(?=\S)|(?=\s|$))")  # compel puts a space after every comma
_SIMPLE = re.compile(rf"[^\s\\{_SIGNS}]+(?=\s|$)")
_SPACE = re.compile(r"\s*")


def parse(prompt: str, negative: bool = False) -> Parsed:
    """A prompt as compel reads it. UsageError on what compel knows and we do not."""
    reader = _Reader(prompt)
    clauses = reader.joined() or (Clause((reader.passage(0, len(prompt)),)),)
    return Parsed((always(clauses),), tuple(reader.loras))


@dataclass
class _Word:
    """prompt[start:end] with a weight."""

    start: int
    end: int
    weight: float = 1.0


@dataclass
class _Reader:
    """Recursive descent. Each method that reads at a place gives what it read and where it ended,
    or None if that is not what stands there."""

    prompt: str
    loras: list[LoraTag] = field(default_factory=list[LoraTag])

    def __post_init__(self) -> None:
        self._partner: dict[int, int] = {}
        opened: list[int] = []
        for match in re.finditer(r"\\.|[()]", self.prompt, re.DOTALL):
            if match[0] == "(":
                opened.append(match.start())
            elif match[0] == ")" and opened:
                self._partner[opened.pop()] = match.start()

    # --- the whole prompt: ("a", "b").and(), ("a", "b").blend() ---

    def joined(self) -> tuple[Clause, ...]:
        """The clauses of .and() or .blend(); none where the prompt is not one of these."""
        start = _SPACE.match(self.prompt).end()  # pyright: ignore[reportOptionalMemberAccess]
        end = self._partner.get(start)
        operator = None if end is None else _JOIN.match(self.prompt, end + 1)
        if operator is None or end is None:
            return ()
        passages = self._targets(start + 1, end)
        if operator.end() < len(self.prompt) or passages is None:
            _refuse(f".{operator[1]}()", "it must be the whole prompt")
        weights, normalise = _options(operator[2], f".{operator[1]}()")
        weights = weights or [1.0] * len(passages)
        if len(weights) != len(passages):
            _refuse(f".{operator[1]}()", f"{len(passages)} texts have {len(weights)} weights")
        if operator[1] != "blend":
            if not normalise:
                _refuse("no_normalize", "it belongs to .blend()")
            pairs = zip(passages, weights, strict=True)
            return tuple(Clause((passage,), weight=weight) for passage, weight in pairs)
        total = sum(weights) if normalise else 1.0
        if total == 0:
            _refuse(".blend()", "its weights add up to 0")
        return (Clause(tuple(passages), tuple(weight / total for weight in weights)),)

    def _targets(self, place: int, end: int) -> list[Passage] | None:
        passages: list[Passage] = []
        while True:
            place = self._skip(place)
            read = self._target(place, 1)
            quoted = _QUOTED.match(self.prompt, place, end)
            if read is None and quoted is not None:
                read = self._free_words(*quoted.span(1)), quoted.end()
            if read is None:
                return None
            passages.append(self._fragments(read[0]))
            place = self._skip(read[1])
            if place >= end:
                return passages
            if self.prompt[place] != ",":
                return None
            place += 1

    # --- text ---

    def passage(self, start: int, end: int) -> Passage:
        return self._fragments(self._free_words(start, end))

    def _free_words(self, start: int, end: int) -> list[_Word]:
        """Text in which a mark that means nothing is text."""
        words: list[_Word] = []
        place = self._skip(start)
        while place < end:
            simple = _SIMPLE.match(self.prompt, place, end)  # most words: a short cut
            read = None if simple else self._item(place, 0, end)
            if read is None:
                free = simple or _FREE.match(self.prompt, place, end)
                assert free is not None
                self._refuse_operators(free)
                read = [_Word(*free.span())], free.end()
            words += read[0]
            place = self._skip(read[1])
        return words

    def _item(self, place: int, depth: int, end: int) -> tuple[list[_Word], int] | None:
        """Something with a meaning: a LoRA, a weighed word or bracket, a bracket, a quotation."""
        lora = _LORA.match(self.prompt, place, end)
        if lora is not None:
            weight = float(lora[2]) if lora[2] else 1.0
            self.loras.append(LoraTag(lora[1], weight, weight))
            return [], lora.end()
        read = self._target(place, depth + 1)
        if read is None or read[1] > end:
            return None
        words, after = read
        if _SWAP.match(self.prompt, after, end):
            _refuse(".swap()", "words are swapped by a control, see sdcore.control.prompt_edit")
        suffix = _ATTEND.match(self.prompt, after, end)
        if suffix is not None:
            return _weigh(words, suffix[1]), suffix.end()
        word = _WEIGHED_WORD.match(self.prompt, place, end)
        if word is not None:
            return _weigh(words, word[2]), word.end()
        if self.prompt[place] not in '("':
            return None
        suffix = _SUFFIX.match(self.prompt, after, end)
        if suffix is not None:
            return _weigh(words, suffix[0]), suffix.end()
        return words, after

    def _target(self, place: int, depth: int) -> tuple[list[_Word], int] | None:
        """A quotation, a bracket or a word: what an operator can stand behind."""
        if depth > _DEEPEST:
            _refuse("This nesting", f"brackets are more than {_DEEPEST} deep")
        if self.prompt.startswith('"', place):
            quoted = _QUOTED.match(self.prompt, place)
            words = quoted and self._strict_words(*quoted.span(1), depth)
            return None if quoted is None or words is None else (words, quoted.end())
        if self.prompt.startswith("(", place):
            end = self._partner.get(place)
            words = None if end is None else self._strict_words(place + 1, end, depth)
            return None if end is None or words is None else (words, end + 1)
        word = _PLAIN_WORD.match(self.prompt, place)
        return None if word is None else ([_Word(*word.span())], word.end())

    def _strict_words(self, start: int, end: int, depth: int) -> list[_Word] | None:
        """The inside of a bracket or quotation; None where a mark in it has no meaning."""
        words: list[_Word] = []
        place = self._skip(start)
        while place < end:
            read = self._item(place, depth, end)
            if read is None:
                word = _PLAIN_WORD.match(self.prompt, place, end)
                if word is not None:
                    read = [_Word(*word.span())], word.end()
                elif self.prompt[place] in ",.":
                    read = [_Word(place, place + 1)], place + 1
                else:
                    return None
            words += read[0]
            place = self._skip(read[1])
        return words

    def _skip(self, place: int) -> int:
        return _SPACE.match(self.prompt, place).end()  # pyright: ignore[reportOptionalMemberAccess]

    def _refuse_operators(self, free: re.Match[str]) -> None:
        operator = re.search(r"\)?\.(and|add|blend|swap)\(", free[0])
        if operator is not None:
            _refuse(f".{operator[1]}()", "it stands where it joins nothing")

    def _fragments(self, words: list[_Word]) -> Passage:
        """Neighbours of one weight with nothing but space between them are one fragment."""
        fragments: list[_Word] = []
        for word in words:
            last = fragments[-1] if fragments else None
            near = last is not None and self._skip(last.end) == word.start > last.end
            if last is not None and near and last.weight == word.weight:
                last.end = word.end
            else:
                fragments.append(_Word(word.start, word.end, word.weight))
        return tuple(Fragment(self._excerpt(word), word.weight) for word in fragments)

    def _excerpt(self, word: _Word) -> Excerpt:
        """The text without the backslashes before brackets and quotation marks."""
        slices: list[Slice] = []
        start = word.start
        for escape in re.finditer(r'\\(?=[()"])', self.prompt[word.start : word.end]):
            slices.append((start, word.start + escape.start()))
            start = word.start + escape.end()
        slices.append((start, word.end))
        return Excerpt(self.prompt, tuple(piece for piece in slices if piece[0] < piece[1]))


def _weigh(words: list[_Word], operator: str) -> list[_Word]:
    """Words times 1.1 for each +, 0.9 for each -, or a number."""
    if set(operator) <= {"+"}:
        factor = PLUS ** len(operator) if len(operator) < 1000 else float("inf")
    elif set(operator) <= {"-"}:
        factor = MINUS ** len(operator)
    else:
        factor = float(operator)
    return [_Word(word.start, word.end, word.weight * factor) for word in words]


def _options(text: str, operator: str) -> tuple[list[float], bool]:
    """The numbers in .blend(...), and whether they are to be made to add up to 1."""
    fields = [field.strip() for field in text.split(",")] if text.strip() else []
    normalise = not (fields and fields[-1] == "no_normalize")
    fields = fields if normalise else fields[:-1]
    for field_text in fields:
        if not re.fullmatch(_NUMBER, field_text):
            _refuse(operator, f"{field_text!r:.40} is no weight")
    return [float(field_text) for field_text in fields], normalise


def _refuse(what: str, why: str) -> NoReturn:
    raise UsageError(
        f"{what} in the prompt cannot be read in the dialect compel.",
        f"In it {why}.",
        'Write ("a", "b").and(1, 1), ("a", "b").blend(0.7, 0.3), x+, x- or (x y)1.3.',
    )
