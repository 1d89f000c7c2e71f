"""Every exercise: the right answer passes, and each of three wrong ones gets a hint of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from docs.book import checking
from docs.book.__main__ import main
from docs.book.book import terms
from docs.book.building import sources
from tests.book.answers import RIGHT, WRONG

PAGES = [source.number for source in sources()]


@pytest.mark.parametrize("page", PAGES)
@torch.no_grad()
def test_the_right_answer_passes(page: int) -> None:
    assert checking.judged(page, RIGHT[page]) is None


@pytest.mark.parametrize("page,hint", [(page, hint) for page in PAGES for hint in WRONG[page]])
@torch.no_grad()
def test_a_wrong_answer_gets_its_hint(page: int, hint: str) -> None:
    assert checking.judged(page, WRONG[page][hint]) == f"hints.{page:02}.{hint}"


@pytest.mark.parametrize("page", PAGES)
def test_three_typical_mistakes_and_no_other_hints(page: int) -> None:
    assert len(WRONG[page]) == 3
    assert set(terms()["hints"][f"{page:02}"]) == {*WRONG[page], "other"}


def test_a_stub_is_written_then_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "4"]) == 2
    stub = tmp_path / "answers" / "04.py"
    text = stub.read_text("utf-8")
    assert "def forget_bias(steps, keep):" in text and "遗忘门" in text and "forget gate" in text
    assert main(["check", "4"]) == 1  # NotImplementedError
    assert "NotImplementedError" in capsys.readouterr().err
    head, _, _ = text.partition("    raise")
    stub.write_text(head + "    return keep ** (1 / steps)\n", "utf-8")
    assert main(["check", "4", "--language", "zh"]) == 1
    assert "sigmoid 之前的偏置" in capsys.readouterr().out
    gate = "    gate = keep ** (1 / steps)\n"
    stub.write_text(f"{head}{gate}    return torch.logit(torch.tensor(gate))\n", "utf-8")
    assert main(["check", "4", "--language", "en"]) == 0
    assert capsys.readouterr().out == "Right.\n"
    assert stub.is_file()


def test_a_file_without_the_function_and_a_page_without_an_exercise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = tmp_path / "mine.py"
    answer.write_text("x = 1\n", "utf-8")
    assert main(["check", "4", "--file", str(answer)]) == 1
    assert "forget_bias" in capsys.readouterr().out
    assert main(["check", "99"]) == 2


def test_a_file_that_cannot_be_read_and_one_that_ends_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "07.py"
    file.write_bytes(b"\xff\xfe\x00")
    for unreadable in (tmp_path, file):
        assert main(["check", "7", "--file", str(unreadable)]) == 1
        said = capsys.readouterr()
        assert "UTF-8" in said.out and "Traceback" not in said.err
    for ends in ("import sys; sys.exit(0)", "raise KeyboardInterrupt"):
        file.write_text(ends, "utf-8")
        assert main(["check", "7", "--file", str(file)]) == 1
        assert "with the error above" in capsys.readouterr().out
