"""The figures of a card: what they count, which concepts they show, where they are written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench import model_card
from bench.judge import Reading
from bench.model_card import BEGIN, END, Effort, by_style, concepts, training_time, worst_concepts
from bench.own_prompts import KINDS, MEASURES
from bench.prompt_control import MODEL, parts
from bench.prompts import Prompt
from bench.verdict import score
from sdcore.errors import FileError

# concept -> style -> what is seen in its pictures: (concept, style)
SEEN = {
    "fox": {"noto": [("fox", "noto")] * 6, "flat": [("fox", "noto")] * 3},
    "cat": {"noto": [("fox", "noto")] * 2 + [("cat", "noto")], "flat": [("dog", "flat")]},
    "dog": {"noto": [("cat", "noto")], "flat": []},
}


@pytest.fixture
def pairs() -> list[tuple[Prompt, Reading]]:
    found = []
    for concept, styles in SEEN.items():
        for style, seen in styles.items():
            for name, drawn in seen:
                prompt = Prompt("a fox", (concept,), style, "red", "", "left", "", style == "flat")
                found.append((prompt, Reading(name, drawn, "red", (-8.0, 0.0), {})))
    halves = {"left": "fox", "right": "cat", "top": "fox", "bottom": "fox"}
    two = Prompt("two", ("fox", "cat"), "noto", "red", "small", "", "to the right of", False)
    return [*found, (two, Reading("fox", "noto", "red", (0.0, 0.0), halves))]


@pytest.fixture
def result(pairs: list[tuple[Prompt, Reading]], tmp_path: Path) -> Path:
    prompts, readings = zip(*pairs, strict=True)
    rows = {MODEL: score(prompts, readings)}
    settings = {"seed": 0, "steps": 25, "scheduler": "ddim", "guidance_scale": 2.0, "data": "d"}
    pictures = [asdict(p) | {"read": asdict(r)} for p, r in pairs]
    path = tmp_path / "prompt_control.json"
    path.write_text(json.dumps({"rows": rows, "settings": settings, "pictures": pictures}), "utf-8")
    return path


def test_what_was_written_is_read_again(pairs: list[tuple[Prompt, Reading]], result: Path) -> None:
    read, again = model_card.read_result(result)
    assert list(again) == pairs and read["settings"]["steps"] == 25
    assert len(parts([prompt for prompt, _ in again])) == 3


def test_concepts_and_styles(pairs: list[tuple[Prompt, Reading]]) -> None:
    found = concepts(pairs)
    assert {name: tally for name, (tally, _) in found.items()} == {
        "fox": (9, 9),
        "cat": (1, 4),
        "dog": (0, 1),
    }
    assert found["cat"][1] == {"fox": 2, "dog": 1}
    lines = by_style(pairs).splitlines()
    # Both objects are seen, though each in the other's half.
    assert lines[3] == "| noto | 70 (40-89, n 10) | 100 (72-100, n 10) | 100 (21-100, n 1) | - |"
    assert lines[2] == "| flat | 75 (30-95, n 4) | 25 (5-70, n 4) | - | noto 3 |"


def test_the_worst_are_the_surest_to_be_bad(pairs: list[tuple[Prompt, Reading]]) -> None:
    text = worst_concepts(pairs)
    assert "1 of 3 concepts were right in every picture" in text and "1 to 9 times" in text
    # One miss of one says less than three of four.
    assert text.splitlines()[-2:] == ["| cat | 4 | 1 | fox 2, dog 1 |", "| dog | 1 | 0 | cat 1 |"]
    assert worst_concepts(pairs, 1).splitlines()[-1].startswith("| cat")


def test_figures_replace_what_stood_between_the_markers(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "card.md"
    page.write_text(f"# Card\n\n{BEGIN}\nold \\1 figures\n{END}\n\nLimits.\n", "utf-8")
    for _ in range(2):
        model_card.run(model_card._parser().parse_args([str(result), str(page)]))
    text = page.read_text("utf-8")
    assert text.startswith(f"# Card\n\n{BEGIN}\n") and text.endswith(f"\n{END}\n\nLimits.\n")
    assert "old" not in text and text.count("| pictures |") == 1 and "| cat | 4 | 1 |" in text
    assert "kWh" not in text  # no training run was named
    assert text.split(BEGIN)[1].split(END)[0].strip() in capsys.readouterr().out
    page.write_text("# Card\n", "utf-8")
    with pytest.raises(FileError, match="no place"):
        model_card.run(model_card._parser().parse_args([str(result), str(page)]))
    for wrong in ("[]", '{"pictures": ["a"]}', '{"rows": {}, "settings": {}, "pictures": []}', "{"):
        result.write_text(wrong, "utf-8")
        with pytest.raises(FileError, match="no result"):
            model_card.run(model_card._parser().parse_args([str(result)]))


def test_newcomers_words_have_a_table_where_they_were_asked(result: Path) -> None:
    read, pairs = model_card.read_result(result)
    assert "newcomers" not in model_card.figures(read, pairs)
    row = dict.fromkeys(MEASURES, (1, 2))
    rows = {kind + part: row for kind in KINDS.values() for part in ("", ", English")}
    read["own_words"] = {"model": rows, "ceiling": rows}
    text = model_card.figures(json.loads(json.dumps(read)), pairs)
    head = "| prompts | concept | style | color | background | number | both objects | all |"
    table = text.split(head)[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 2 * len(KINDS) + len(KINDS)  # real drawings are not taken in parts
    assert table[0].startswith("| no style named | 50.0 (9-91, n 2) |")
    assert table[-1].startswith("| ceiling: a number |")


def test_time_and_energy_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text("run: {batch_size: 32}\n", "utf-8")
    # Stopped after step 200, resumed from step 100, at twice the speed.
    rows = [(0, 40), (100, 40), (200, 40), (100, 80), (200, 80), (300, 80)]
    lines = [json.dumps({"step": step, "images_per_second": rate}) for step, rate in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), "utf-8")
    hours, images = training_time(tmp_path)
    assert images == 301 * 32
    assert hours == pytest.approx((201 * 32 / 40 + 100 * 32 / 80) / 3600)
    effort = Effort(hours=50, images=1_500_000, cores=2, watts=10)
    assert effort.kilowatt_hours == 1.0
    assert "50.0 hours on 2 cores" in str(effort) and "1,500,000 scenes" in str(effort)
    assert "not measured" in str(effort) and "about 1 kWh" in str(effort)
    with pytest.raises(FileError, match="metrics"):
        training_time(tmp_path / "none")
