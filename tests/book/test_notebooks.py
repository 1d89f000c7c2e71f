"""The notebooks hold what the pages hold, and their cells run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from docs.book.__main__ import main
from docs.book.building import localized, sources
from docs.book.source import LANGUAGES, Code
from tests.book.answers import RIGHT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("notebooks")
    assert main(["notebooks", "--to", str(to)]) == 0
    return to


def cells_of(folder: Path, name: str, kind: str) -> list[str]:
    made = json.loads((folder / f"{name}.ipynb").read_text("utf-8"))
    assert made["nbformat"] == 4 and all(cell["id"] for cell in made["cells"])
    assert not any(cell.get("outputs") for cell in made["cells"])
    return ["".join(c["source"]) for c in made["cells"] if c["cell_type"] == kind]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_is_a_notebook_with_its_code(folder: Path, language: str) -> None:
    for source in sources():
        name = source.name if language == "en" else f"{source.name}.{language}"
        code = cells_of(folder, name, "code")
        wanted = [localized(b.text, language).strip() for b in source.body if isinstance(b, Code)]
        assert code[1:-1] == wanted
        text = "\n".join(cells_of(folder, name, "markdown"))
        assert source.named["exercise"][language] in text and "docs.book check" not in text
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            assert (folder / picture).resolve().is_file()


def test_the_cells_run_and_judge(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    *cells, judge = cells_of(folder, "05_looking_back.zh", "code")
    names: dict = {"__name__": "__main__"}
    for cell in cells:
        exec(cell, names)
    assert "66.5 %" in capsys.readouterr().out
    with pytest.raises(NotImplementedError):
        exec(judge, names)
    definition = judge[judge.index("def key(") : judge.index("hint =")]
    names["key"] = RIGHT[5]
    exec(judge.replace(definition, ""), names)
    assert capsys.readouterr().out == "答对了。\n"
