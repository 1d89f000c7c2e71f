"""What the pages share: the embedded model, its runs, the terms, and what a page measures.

Shapes: C channels, h w latent grid, G columns of heatmaps (start, end, the words).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from docs.book.drawing import Svg
from sdcore import RunControl, TextToImage, WordHeatmaps, chain

HERE = Path(__file__).parent
SEED, STEPS, SEEDS = 3, 12, (3, 4, 5)
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


@cache
def painted(prompt: str, pipe: TextToImage | None = None, steps: int = STEPS) -> list[Run]:
    """The prompt painted with each of SEEDS, and all that was seen of it; by `pipe`, if given."""
    pipe = pipe or model()
    prompts, watch = [prompt] * len(SEEDS), _Watch()
    heatmaps = WordHeatmaps(pipe.tokenizer(prompts), windows=steps)
    result = pipe(prompts, seed=SEEDS, steps=steps, control=chain(heatmaps, watch))
    return [
        Run(
            result.images[i],
            [x[i : i + 1] for x in watch.latents],
            [x[i : i + 1] for x in watch.guesses],
            i,
            heatmaps,
        )
        for i in range(len(SEEDS))
    ]


def run(prompt: str) -> Run:
    """The prompt painted with SEED: what the figures show."""
    return painted(prompt)[SEEDS.index(SEED)]


def runs(language: str) -> list[tuple[str, str, Run]]:
    """(left word, right word, run) of three prompts with three seeds: what claims must hold on."""
    return [
        (left, right, each) for prompt, left, right in PROMPTS[language] for each in painted(prompt)
    ]


@cache
def text_of(prompt: str) -> Tensor:
    """The text encoder's vectors (1, T, D)."""
    pipe = model()
    with torch.no_grad():
        return pipe.text_encoder(pipe.tokenizer(prompt).ids).last_hidden_state


def fine(site) -> bool:
    """The finest grid on which the embedded model reads the text, on the way up."""
    return site.place == "up" and site.level == 1


@cache
def terms() -> dict[str, dict]:
    return tomllib.loads((HERE / "terms.toml").read_text("utf-8"))


def term(name: str, language: str, **values: object) -> str:
    """A label from the term table; `a.b` is in table a. A missing half raises KeyError."""
    found: dict = terms()
    for part in name.split("."):
        found = found[part]
    return found[language].format(**values)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
