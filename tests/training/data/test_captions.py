"""Captions: what is drawn is a function of (seed, epoch, sample), and nothing is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcore.training.data.captions import caption_of, full_caption
from sdcore.training.data.items import CaptionOptions, FileBlob, Item


def item(caption: str | None, **options: object) -> Item:
    return Item("a.png", FileBlob(Path("a.png")), caption, options=CaptionOptions(**options))  # type: ignore[arg-type]


def drawn(one: Item, epoch: int = 0, number: int = 0, seed: int = 0) -> str:
    return caption_of(one, one.options, seed, epoch, number)


@pytest.mark.parametrize(
    ("caption", "trigger", "prefix", "text"),
    [
        ("a red fox", "", "", "a red fox"),
        ("a red fox", "sks", "", "sks, a red fox"),
        ("a Sks fox", "sks", "", "a Sks fox"),
        ("asks", "sks", "", "sks, asks"),
        ("", "sks", "", "sks"),
        (None, "sks", "a photo of", "a photo of sks"),
        ("a fox", "", "a photo of", "a photo of a fox"),
        ("a fox", "", "", "a fox"),
    ],
)
def test_what_is_added(caption: str | None, trigger: str, prefix: str, text: str) -> None:
    one = item(caption, trigger=trigger, prefix=prefix)
    assert drawn(one) == full_caption(one) == text


tags = st.lists(st.text("abcdefg ", min_size=1, max_size=6).filter(str.strip), max_size=8)


@given(tags, st.integers(0, 9), st.integers(0, 2**40), st.integers(0, 99), st.integers(0, 99))
def test_shuffled_tags_are_the_same_ones(
    tags: list[str], keep: int, seed: int, epoch: int, number: int
) -> None:
    one = item(", ".join(tags), shuffle_tags=True, keep_tags=keep)
    text = drawn(one, epoch, number, seed)
    assert text == drawn(one, epoch, number, seed)
    got = [tag for tag in text.split(", ") if tag]
    wanted = [" ".join(tag.split()) for tag in tags]
    assert Counter(got) == Counter(wanted) and got[:keep] == wanted[:keep]


def test_orders_differ_between_epochs_and_samples() -> None:
    one = item("a, b, c, d, e, f, g, h", shuffle_tags=True)
    assert len({drawn(one, epoch, number) for epoch in range(4) for number in range(4)}) > 12


def test_the_share_of_dropped_captions() -> None:
    one = item("a fox", dropout=0.25, prefix="see")
    texts = Counter(drawn(one, epoch, number) for epoch in range(20) for number in range(100))
    assert set(texts) == {"", "see a fox"} and abs(texts[""] / 2000 - 0.25) < 0.04
