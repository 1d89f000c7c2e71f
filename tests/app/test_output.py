"""Names of files: patterns, words left whole, what every system takes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from sdcore import Job
from sdcore.app.output import Names, check_output, is_file, slug
from sdcore.errors import UsageError


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red apple, photo!", "a-red-apple-photo"),
        ("con", "con-image"),
        ("LPT1", "lpt1-image"),
        ("???", "image"),
        ("一只狐狸在左边", "一只狐狸在左边"),
        ("cafe\u0301 olé", "café-olé"),
        ("नमस्ते दुनिया", "नमस्ते-दुनिया"),
        ("x" * 99, "x" * 60),
    ],
)
def test_a_prompt_as_a_name(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_no_word_is_cut() -> None:
    words = ["an", "extraordinarily", "long", "prompt", "about", "lighthouses", "at", "night"]
    name = slug(" ".join(words))
    assert len(name) <= 60 and name.split("-") == words[: len(name.split("-"))]


def test_a_pattern_is_filled_in() -> None:
    names = Names(Path("out/{date}/{index:03d}-{seed}-{prompt}.png"))
    job = Job("a red fox", seed=7)
    day = f"{datetime.now():%Y-%m-%d}"
    assert [names.next(job) for _ in range(2)] == [
        Path(f"out/{day}/001-7-a-red-fox.png"),
        Path(f"out/{day}/002-7-a-red-fox.png"),
    ]
    assert Names(Path("{date}")).next(job) == Path(f"{day}/a-red-fox.png")
    assert Names(Path("out")).next(job) == Path("out/a-red-fox.png")
    assert Names(Path("{{x}}-{seed}.png")).next(job) == Path("{x}-7.png")


@pytest.mark.parametrize(
    "pattern", ["{sed}.png", "{seed!r}.png", "{seed.real}.png", "{seed", "{}.png"]
)
def test_a_pattern_that_cannot_be_filled_is_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be filled"):
        check_output(tmp_path / pattern, [Job("a fox", seed=1)])


def test_folders_may_have_a_dot(tmp_path: Path) -> None:
    assert not is_file(Path("run.v2"))
    assert is_file(Path("a.PNG"))
    check_output(tmp_path / "run.v2", [Job("a fox")])
    with pytest.raises(UsageError, match="PNG files"):
        is_file(Path("a.jpg"))


def test_a_name_that_is_too_long_is_found_before_painting(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more than 255"):
        check_output(tmp_path / ("x" * 260 + ".png"), [Job("a fox")])
    check_output(tmp_path / "{prompt}.png", [Job("一" * 300)])
