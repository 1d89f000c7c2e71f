"""What emoji scenes are made of: concepts, styles, backgrounds, places, what is held out."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, Self

from pydantic import field_validator

from sdcore.training.settings import Settings, load_settings

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "gray": (150, 150, 150),
    "red": (215, 60, 60),
    "orange": (245, 160, 70),
    "yellow": (250, 225, 100),
    "light green": (175, 225, 160),
    "dark green": (50, 110, 70),
    "light blue": (165, 215, 245),
    "dark blue": (45, 65, 140),
    "purple": (150, 105, 195),
    "pink": (250, 190, 205),
}


class Words(Settings):
    """What else a concept is called."""

    also: list[str] = []  # other English names
    zh: list[str]  # Chinese names, the usual one first
    measure: str = "个"  # the measure word that counts it in Chinese


Color = tuple[int, int, int]  # red, green, blue, 0-255


class Style(Settings):
    """How the things are drawn: by whom, and in which colours."""

    pack: str  # drawing pack
    tint: tuple[Color, Color] | None = None  # instead of black and of white; between them, a blend
    paper: Color | None = None  # behind the drawing: what its lines enclose, and a rim around it
    shade: float = 0.0  # so much of white at the upper left, lit, and of black at the lower right
    zh: str = ""  # its Chinese name; empty: Chinese captions call it by the English one


class DataSettings(Settings):
    """The set of scenes; a scene is a function of these settings, a seed and an index."""

    # Concept name -> icon name in the packs; where packs differ, their names with a space between.
    concepts: dict[str, str]
    styles: dict[str, Style]  # style name -> how; the name of a pack alone: as it draws them
    backgrounds: dict[str, Color] = BACKGROUNDS
    words: dict[str, Words] = {}  # concept name -> its other names
    chinese_share: float = 0.0  # of the captions
    plurals: dict[str, str] = {}  # name -> its plural, where the rule does not give it
    plural_share: float = 0.0  # of the English captions of one object
    held_out_pairs_share: float = 0.1  # of the (style, concept) pairs, never shown in training
    held_out_combinations: list[tuple[str, str]] = []  # two-object scenes never shown in training
    image_size: int = 64  # pixels, square
    jitter: int = 0  # pixels by which an object may be off its place, each way
    two_objects_share: float = 0.35  # of the scenes
    size_shares: dict[Literal["big", "medium", "small"], float] = {
        "big": 0.4,
        "medium": 0.3,
        "small": 0.3,
    }  # of the scenes with one object
    center_share: float = 0.2  # of the objects that could stand elsewhere; the others anywhere
    folder: str = "runs/data/emoji"  # where the built drawings lie

    @field_validator("styles", mode="before")
    @classmethod
    def _as_the_pack_draws(cls, styles: Any) -> Any:
        if not isinstance(styles, dict):
            return styles
        return {
            name: {"pack": style} if isinstance(style, str) else style
            for name, style in styles.items()
        }

    def chinese_styles(self) -> dict[str, str]:
        """Style name -> what Chinese captions call it."""
        return {name: style.zh or name for name, style in self.styles.items()}

    def held_out_pairs(self) -> set[tuple[str, str]]:
        """(style, concept) pairs kept from training: the lowest hashes, at most one per concept.

        A concept keeps its other styles, so that a held-out pair is an unseen combination of a
        known concept and a known style.
        """
        pairs = [(style, concept) for style in self.styles for concept in self.concepts]
        wanted = round(self.held_out_pairs_share * len(pairs))
        chosen: dict[str, tuple[str, str]] = {}
        for pair in sorted(pairs, key=lambda p: hashlib.sha256("/".join(p).encode()).digest()):
            if len(chosen) < wanted:
                chosen.setdefault(pair[1], pair)
        return set(chosen.values())


class SceneSettings(Settings):
    """What every recipe's settings begin with: the scenes to train on.

    `data` names a file; `with_data` puts what it says in its place, so that `resolved.yaml`
    repeats the run even when that file has changed since.
    """

    data: str | DataSettings = "configs/train/emoji_data.yaml"

    def with_data(self) -> Self:
        if isinstance(self.data, DataSettings):
            return self
        return self.model_copy(update={"data": load_settings(DataSettings, self.data)})
