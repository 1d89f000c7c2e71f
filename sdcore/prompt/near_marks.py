"""Marks in a prompt that nearly are one: the dialect's tool reads them as text, and nobody says so.

    (red:1,3)  （red:1.3）  (red：1.3)      a number or a sign of another language
    <lora x:1>  <lora:x:1  withLora(a.b)   a LoRA that would not be used
    Embedding:x  embedding :x              a learned word that would be spelled

What is read stays what the tool reads; here it is said. What is another dialect's mark exactly is
said by other_dialects.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from sdcore.prompt.text import Parsed
from sdcore.text.tokenizer import Tokenizer

Parse = Callable[[str, bool], Parsed]

_LONGEST = 20_000  # letters; beyond them nobody has typed a prompt by hand
_SHOWN = 4
_NUMBER = r"[-+−＋－]?[.,，．]?\d(?:[\d.,，．]*\d)?"
_ROUND = re.compile(rf"[(（]([^()（）]{{1,200}}?)[:：;；]\s*({_NUMBER})\s*[)）]")
_SQUARE = re.compile(rf"[\[［]([^\[\]［］]{{1,200}})[:：]\s*({_NUMBER})\s*[\]］]")
_WIDE_SQUARE = re.compile(r"［[^\[\]［］]{0,200}[:：|｜][^\[\]［］]{0,200}］")
_TAG = re.compile(
    r"(?:[<＜]|&lt;)\s*(?:lora|lyco)s?\s*[:：;\s][^<>＜＞\n]{1,120}[>＞]?"
    r"|(?<![\w<＜;])(?:lora|lyco):[\w.-]{1,100}:[\d.]{1,8}[>＞]?",  # without its first sign
    re.IGNORECASE,
)
_SOUND_TAG = re.compile(r"<(\w+):([^>]+)>")
_WITH_LORA = re.compile(r"\b(?:with|use)_?lora\s*[(（][^()（）\n]{0,120}[)）]?", re.IGNORECASE)
_SOUND_WITH_LORA = re.compile(
    r"(?:useLora|withLora)\s*\(\s*[\w-]+\s*(?:,\s*[+-]?[\d.]+\s*)?\)", re.ASCII
)
_EMBEDDING = re.compile(r"\bembeddings?\s*[:：]\s*[\w<][\w.<>-]*", re.IGNORECASE)
_SOUND_EMBEDDING = re.compile(r"embedding:\S+")
_NAI_WEIGHT = re.compile(r"(?<![\w.:])-?\d{0,3}\.?\d{1,3}::[^:\n]{1,200}::")
_NAI_BRACES = re.compile(r"\{[^{}|\n]{1,200}\}")
_CHOICE = re.compile(r"\{[^{}\n]{0,200}\|[^{}\n]{0,200}\}")
_WILDCARD = re.compile(r"(?<!\w)__[\w/*-]{1,80}__(?!\w)")
_OF_PART = re.compile(rf"[:：;；]\s*({_NUMBER})\s*(?=\bAND\b|\Z)")
_BEHIND = re.compile(rf"[)）\"]\s*({_NUMBER})|[＋]+|（[^()（）]{{1,200}}）[+-]+")


def with_near_marks(parse: Parse, kind: str) -> Parse:
    """The same parser, with a note for each mark that nearly is one.

    Args:
        kind: of the dialect: plain, a1111, comfy or compel.
    """

    def noted(prompt: str, negative: bool = False) -> Parsed:
        parsed = parse(prompt, negative)
        notes = near_marks(prompt, kind)
        return replace(parsed, notes=(*parsed.notes, *notes)) if notes else parsed

    return noted


def near_marks(prompt: str, kind: str) -> list[str]:
    """A sentence without its beginning for each."""
    if len(prompt) > _LONGEST:
        return []
    found = list(dict.fromkeys(_found(prompt, kind)))
    rest = len(found) - _SHOWN
    return found[:_SHOWN] + [f"there are {rest} more marks of this kind"] * (rest > 0)


def _found(prompt: str, kind: str) -> Iterator[str]:
    if kind == "a1111":
        for mark in _TAG.finditer(prompt):
            if not _SOUND_TAG.fullmatch(mark[0]):
                yield _said(mark[0], "a LoRA is written <lora:name:0.8>")
    if kind == "compel":
        for mark in _WITH_LORA.finditer(prompt):
            if not _SOUND_WITH_LORA.fullmatch(mark[0]):
                how = "a LoRA is written withLora(name, 0.8), its name in letters, digits, - and _"
                yield _said(mark[0], how)
    yield from _embeddings(prompt, kind)
    yield from _weights(prompt, kind)
    yield from _of_no_dialect(prompt)


def _of_no_dialect(prompt: str) -> Iterator[str]:
    """Marks of NovelAI and of extensions, which no dialect here has."""
    for mark in (*_NAI_WEIGHT.finditer(prompt), *_NAI_BRACES.finditer(prompt)):
        yield _said(mark[0], "NovelAI's weights are not there; write (words:1.05)")
    for mark in _CHOICE.finditer(prompt):
        yield _said(mark[0], "nothing is chosen of it; write the one that is meant")
    for mark in _WILDCARD.finditer(prompt):
        yield _said(mark[0], "wildcards are not there; write the words")


def _embeddings(prompt: str, kind: str) -> Iterator[str]:
    for mark in _EMBEDDING.finditer(prompt):
        if kind != "comfy":
            how = "this is ComfyUI's mark; here a learned word is called by its name"
        elif _SOUND_EMBEDDING.fullmatch(mark[0]):
            continue
        else:
            how = "a learned word is written embedding:name, in small letters without spaces"
        yield _said(mark[0], how)


def unknown_embeddings(prompt: str, tokenizer: Tokenizer) -> list[str]:
    """A sentence for each learned word of ComfyUI's that the model was not taught."""
    named = dict.fromkeys(re.findall(r"\bembedding:[^\s,()]+", prompt[:_LONGEST]))
    return [
        f"{word!r:.100} is no learned word of this model, so its letters are read; ComfyUI would "
        "leave it out"
        for word in named
        if not tokenizer.learned_in(word)
    ][:_SHOWN]


def _weights(prompt: str, kind: str) -> Iterator[str]:
    if kind == "compel":
        for mark in _BEHIND.finditer(prompt):
            if mark[1] is None or _is_odd(mark[0]) or mark[0][1:2].isspace():
                yield _said(mark[0], "a weight is written (words)1.3 or word+")
        return
    written = "a weight is written (words:1.3)"
    written += ", in a dialect that has weights" if kind == "plain" else ""
    for mark in _ROUND.finditer(prompt):
        if _is_odd(mark[0].replace(mark[1], "", 1)):
            yield f"the number in {mark[0]!r:.100} is read as text: {written}"
    if kind != "a1111":
        return
    for mark in _OF_PART.finditer(prompt) if re.search(r"\bAND\b", prompt) else ():
        if _is_odd(mark[0]):
            yield _said(mark[0], "the weight of a part is written words AND others :1.3")
    for mark in (*_SQUARE.finditer(prompt), *_WIDE_SQUARE.finditer(prompt)):
        inside = mark[1] if mark.re is _SQUARE else ""
        if _is_odd(mark[0].replace(inside, "", 1)):
            yield _said(mark[0], "a change is written [from:to:0.4], turns [a|b]")


def _is_odd(mark: str) -> bool:
    """Whether it holds a sign that no tool takes for the one that it looks like."""
    return any(sign in mark for sign in ",，．；;：（）［］｜＋－−")


def _said(mark: str, how: str) -> str:
    return f"{mark.strip()!r:.100} is read as text: {how}"
