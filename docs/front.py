"""The picture at the head of the README: words, where each is read, and one word changed.

python -m docs.front     paint it and write docs/front.en.svg and docs/front.zh.svg
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from docs.book.drawing import FAINT, INK, Svg
from sdcore import EditSettings, PromptEdit, TextToImage, WordHeatmaps, chain, read_tokens

HERE = Path(__file__).parent
SEED, STEPS = 1, 12
COLORS = ("#1f77ff", "#7b1fa2", "#d0021b")
NEW = "#b45309"
_SIDE, _GAP, _TOP = 150, 14, 58


@dataclass(frozen=True)
class Front:
    """What one language shows: a prompt, the words whose maps are drawn, the one that is changed
    (old, new), and the captions."""

    prompt: str
    words: tuple[str, ...]
    change: tuple[str, str]
    title: str
    painted: str
    read: str


FRONTS = {
    "en": Front(
        "a penguin to the left of a red apple in flat style, light blue background",
        ("penguin", "left", "apple"),
        ("penguin", "fox"),
        "A prompt, its picture, where three of its words are read, and one word changed",
        "what it paints",
        "where {} is read",
    ),
    "zh": Front(
        "一只企鹅在红苹果的左边，扁平风格，浅蓝色背景",
        ("企鹅", "左边", "红苹果"),
        ("企鹅", "狐狸"),
        "一句提示词、画出的图、其中三个词在图中被读到的位置，以及换掉一个词之后的图",
        "画出的图",
        "「{}」在哪里被读到",
    ),
}


def drawn(pipe: TextToImage, front: Front) -> Svg:
    """The sheet of one language."""
    prompts = [front.prompt, front.prompt.replace(*front.change)]
    edit = PromptEdit(
        read_tokens(prompts, pipe.tokenizer), EditSettings(cross=(0, 0.5), layout=(0, 0.4))
    )
    heatmaps = WordHeatmaps(pipe.tokenizer(prompts))
    control = chain(heatmaps, edit)
    before, after = pipe(prompts, seed=[SEED, SEED], steps=STEPS, control=control).images
    columns = len(front.words) + 2
    sheet = Svg(columns * (_SIDE + _GAP) + 2 * _GAP, _TOP + _SIDE + 36, front.title)
    colors = dict(zip(front.words, COLORS, strict=True))
    sheet.words(sheet.width / 2, 28, _marked(front.prompt, colors), size=20)
    captions: list[list[tuple[str, str]]] = [[(front.painted, FAINT)]]
    pictures = [before]
    for word, color in colors.items():
        pictures.append(tinted(before, heatmaps.of(word, image=0), color))
        captions.append(_marked(front.read.format(word), {word: color}))
    old, new = front.change
    pictures.append(after)
    captions.append([(old, colors[old]), (" → ", FAINT), (new, NEW)])
    for column, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = _GAP + column * (_SIDE + _GAP) + (column == columns - 1) * _GAP
        enlarged = picture.resize((192, 192), Image.Resampling.BICUBIC)
        sheet.picture(enlarged, x, _TOP, _SIDE)
        sheet.words(x + _SIDE / 2, _TOP + _SIDE + 18, caption, size=14)
    return sheet


def tinted(picture: Image.Image, heat: Tensor, color: str) -> Image.Image:
    """A picture in light grey, and a colour over it as strong as a map (h, w)."""
    grey = picture.convert("L").convert("RGB")
    pale = np.asarray(Image.blend(grey, Image.new("RGB", grey.size, "white"), 0.45), float)
    low, high = heat.min(), heat.max()
    share = ((heat - low) / (high - low).clamp(min=1e-12))[None, None].float()
    share = F.interpolate(share, picture.size[::-1], mode="bicubic").clamp(0, 1)
    strength = 0.85 * share[0, 0].numpy()[..., None]
    ink = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], float)
    return Image.fromarray(np.round(pale * (1 - strength) + ink * strength).astype(np.uint8))


def _marked(text: str, colors: dict[str, str]) -> list[tuple[str, str]]:
    """A text in pieces, each with its colour: those that are named, the others in ink."""
    pieces, done = [], 0
    for word, color in sorted(colors.items(), key=lambda one: text.index(one[0])):
        at = text.index(word)
        pieces += [(text[done:at], INK), (word, color)]
        done = at + len(word)
    return [*pieces, (text[done:], INK)]


def made(language: str) -> str:
    """The picture of one language, as SVG."""
    torch.set_num_threads(1)  # the same sums on every machine
    return str(drawn(TextToImage.embedded(), FRONTS[language]))


def path_of(language: str) -> Path:
    return HERE / f"front.{language}.svg"


if __name__ == "__main__":
    for language in FRONTS:
        path_of(language).write_text(made(language), "utf-8")
        print(path_of(language))
