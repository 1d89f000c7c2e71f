"""What the pages share: the embedded model, its runs, the terms, and what a page measures.

Shapes: C channels, h w latent grid, G columns of heatmaps (start, end, the words).
"""

from __future__ import annotations

import contextlib
import io
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from docs.book.drawing import Svg
from docs.book.source import Code, SourceError, read_source
from sdcore import RunControl, TextToImage, TextToImageResult, WordHeatmaps, chain

HERE = Path(__file__).parent
SOURCES = HERE / "source"
SEED, STEPS, SEEDS = 3, 8, (3, 4, 5)
# The book's prompt, then two others on which its claims must hold as well: (prompt, left, right).
PROMPTS = {
    "en": (
        ("a fox to the left of a cat", "fox", "cat"),
        ("a penguin to the left of a dog", "penguin", "dog"),
        ("a rocket to the left of a tree", "rocket", "tree"),
    ),
    "zh": (
        ("一只狐狸在一只猫的左边", "狐狸", "猫"),
        ("一只企鹅在一只狗的左边", "企鹅", "狗"),
        ("一枚火箭在一棵树的左边", "火箭", "树"),
    ),
}
# What stands for the English prompt and words in the code of the Chinese pages.
IN_CODE = {
    "a fox to the left of a cat": PROMPTS["zh"][0][0],
    "a cat to the left of a fox": "一只猫在一只狐狸的左边",
    '"fox"': '"狐狸"',
    '"cat"': '"猫"',
}


@dataclass
class Measured:
    """What a page shows and says: its figure, the values of its holes, its claims by id."""

    figure: Svg
    figures: dict[str, str] = field(default_factory=dict)
    claims: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One painting: the picture, latents and expected clean latents (1, C, h, w) of each step."""

    picture: Image.Image
    latents: list[Tensor]
    guesses: list[Tensor]
    image: int
    heatmaps: WordHeatmaps  # of all seeds

    def of(self, word: str, **chosen) -> Tensor:
        """A word's map (h, w), see `WordHeatmaps.of`."""
        return self.heatmaps.of(word, image=self.image, **chosen)

    def maps(self, **chosen) -> Tensor:
        """All maps (G, h, w): start, end, then the words."""
        return self.heatmaps.maps(image=self.image, **chosen)

    @property
    def words(self) -> list[str]:
        return [span.word for span in self.heatmaps.spans(self.image)]


class _Watch(RunControl):
    def __init__(self) -> None:
        self.latents: list[Tensor] = []
        self.guesses: list[Tensor] = []

    def on_guess(self, step, guess) -> None:
        self.guesses.append(guess().clone())

    def after_step(self, step, latents):
        self.latents.append(latents.clone())
        return latents


@cache
def model() -> TextToImage:
    return TextToImage.embedded()


def every_run(language: str) -> tuple[list[str], list[int]]:
    """What claims must hold on: three prompts with three seeds, as a batch of prompts and seeds."""
    prompts = [prompt for prompt, _, _ in PROMPTS[language]]
    return [prompt for prompt in prompts for _ in SEEDS], [*SEEDS] * len(prompts)


@cache
def plain(language: str) -> TextToImageResult:
    """`every_run`, with nobody looking on."""
    prompts, seeds = every_run(language)
    return model()(prompts, seed=seeds, steps=STEPS)


@cache
def watched(language: str) -> list[Run]:
    """`every_run`, and all that was seen of it."""
    prompts, seeds = every_run(language)
    watch, heatmaps = _Watch(), WordHeatmaps(model().tokenizer(prompts), windows=STEPS)
    result = model()(prompts, seed=seeds, steps=STEPS, control=chain(heatmaps, watch))
    return [
        Run(
            result.images[i],
            [x[i : i + 1] for x in watch.latents],
            [x[i : i + 1] for x in watch.guesses],
            i,
            heatmaps,
        )
        for i in range(len(prompts))
    ]


def run(language: str) -> Run:
    """The book's prompt, painted with SEED: what the figures show."""
    return watched(language)[SEEDS.index(SEED)]


def runs(language: str) -> list[tuple[str, str, Run]]:
    """(left word, right word, run) of `every_run`."""
    words = [pair for _, *pair in PROMPTS[language] for _ in SEEDS]
    return [(*pair, each) for pair, each in zip(words, watched(language), strict=True)]


@cache
def text_of(prompt: str) -> Tensor:
    """The text encoder's vectors (1, T, D)."""
    pipe = model()
    with torch.no_grad():
        return pipe.text_encoder(pipe.tokenizer(prompt).ids).last_hidden_state


@cache
def ran(code: str) -> tuple[str, dict[str, Any]]:
    """What a page's code prints, and the names that it leaves."""
    out, names = io.StringIO(), {"__name__": "page"}
    with contextlib.redirect_stdout(out), torch.enable_grad():
        exec(compile(code, "page", "exec"), names)
    if not out.getvalue():
        raise SourceError(f"code prints nothing: {code[:60]}")
    return out.getvalue(), names


def left_by(page: int, seed: int = 0) -> dict[str, Any]:
    """The names that the first code of a page leaves: figures show what the page's code made.

    `seed` stands in place of the 0 of its `torch.manual_seed(0)`.
    """
    (path,) = SOURCES.glob(f"{page:02}_*.md")
    code = next(block.text for block in read_source(path).body if isinstance(block, Code))
    return ran(code.replace("torch.manual_seed(0)", f"torch.manual_seed({seed})"))[1]


def fine(site) -> bool:
    """The finest grid on which the embedded model reads the text, on the way up."""
    return site.place == "up" and site.level == 1


@cache
def terms() -> dict[str, dict]:
    return tomllib.loads((HERE / "terms.toml").read_text("utf-8"))


def many(count: int, language: str) -> str:
    """A large number as its language counts: 18 million, 1800 万, 8.6 亿."""
    if language != "zh":
        return f"{count / 1e6:.{int(count < 1e7)}f} million"
    return f"{count / 1e8:.1f} 亿" if count >= 1e8 else f"{round(count / 1e4, -2):.0f} 万"


def term(name: str, language: str, **values: object) -> str:
    """A label from the term table; `a.b` is in table a. A missing half raises KeyError."""
    found: dict = terms()
    for part in name.split("."):
        found = found[part]
    return found[language].format(**values)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
