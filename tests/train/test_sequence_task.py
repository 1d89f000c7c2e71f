"""The sequence tasks: right answers, equal budgets, the same examples for all, results kept."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from sdcore.errors import UsageError
from sdcore.training.settings import load_settings
from train import sequence_task
from train.chart import Point, line_chart
from train.sequence_task import (
    FIRST,
    LAST,
    MODELS,
    SequenceSettings,
    accuracy,
    build,
    count_weights,
    examples,
    matching_width,
    train,
    words_of,
)

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
TASKS = ("reverse", "parity")


def tiny(folder: Path, **changes: object) -> SequenceSettings:
    values = {"task": "reverse", "learning_rates": {"rnn": 1e-3, "transformer": 1e-3}}
    values |= {"weights": 2000, "steps": 3, "batch_size": 4, "seeds": [1, 2], "folder": str(folder)}
    values |= {"longest_trained": 3, "test_lengths": [2, 5], "test_examples": 6}
    return SequenceSettings.model_validate(values | changes)


def test_answers_are_right_and_end():
    draw = torch.Generator().manual_seed(0)
    source, answer = examples("reverse", 5, 4, draw)
    assert (source >= 2).all() and (source < words_of("reverse")).all()
    assert torch.equal(answer[:, :-1], source.flip(1)) and (answer[:, -1] == LAST).all()
    source, answer = examples("parity", 50, 7, draw)
    ones = [row.count(3) for row in source.tolist()]
    assert answer.tolist() == [[2 + n % 2, LAST] for n in ones]
    assert {n % 2 for n in ones} == {0, 1}


@pytest.mark.parametrize("task", TASKS)
def test_all_networks_have_one_budget(task):
    settings = load_settings(SequenceSettings, CONFIGS / f"sequence_{task}.yaml")
    assert settings.task == task and set(settings.learning_rates) <= set(MODELS)
    assert len(settings.seeds) >= 3
    for name in settings.learning_rates:
        width = matching_width(name, words_of(task), settings.weights)
        with torch.device("meta"):
            weights = count_weights(build(name, words_of(task), width))
        assert abs(weights / settings.weights - 1) < 0.05, name


def test_accuracy_is_of_whole_answers(tmp_path):
    """A network that writes what it is told shows how the written words are counted."""

    class Fixed(torch.nn.Module):
        def __init__(self, wrong_rows: int) -> None:
            super().__init__()
            self.wrong_rows = wrong_rows

        def start(self, source, real=None):
            answer = torch.nn.functional.pad(source.flip(1), (0, 1), value=LAST)
            answer[: self.wrong_rows, 1] = 2 + (answer[: self.wrong_rows, 1] - 1) % 8
            return answer, 0

        def step(self, words, state):
            answer, written = state
            logits = torch.nn.functional.one_hot(answer[:, written], 10)[:, None].float()
            return logits, (answer, written + 1)

    settings = tiny(tmp_path)
    assert accuracy(settings, Fixed(0), 4) == 1
    assert accuracy(settings, Fixed(2), 4) == pytest.approx(4 / 6)


def test_every_network_is_shown_the_same(tmp_path, monkeypatch):
    seen: dict[str, list] = {}

    def watch(model, source, answer):
        seen.setdefault(type(model).__name__, []).append((source.tolist(), answer.tolist()))
        return 0.0

    monkeypatch.setattr(sequence_task, "training_step", watch)
    train(tiny(tmp_path, seeds=[1]))
    assert len(seen["Transformer"]) == 3 and seen["Transformer"] == seen["RecurrentTranslator"]


def test_a_stopped_comparison_goes_on(tmp_path, capsys):
    whole = tiny(tmp_path / "whole", speed_lengths=[3])
    train(whole)
    assert "| transformer" in capsys.readouterr().out
    path = tmp_path / "whole" / "reverse.json"
    straight = json.loads(path.read_text("utf-8"))
    assert [(run["model"], run["seed"]) for run in straight["runs"]] == [
        *(("rnn", 1), ("transformer", 1), ("rnn", 2), ("transformer", 2)),
    ]
    assert {(r["model"], r["length"], r["what"]) for r in straight["speed"]} == {
        (name, 3, what) for name in ("rnn", "transformer") for what in ("step", "write")
    }
    cut = straight | {"runs": straight["runs"][:1], "speed": []}
    path.write_text(json.dumps(cut), "utf-8")
    train(whole)
    resumed = json.loads(path.read_text("utf-8"))
    assert resumed["runs"][0] == straight["runs"][0]
    for ours, theirs in zip(resumed["runs"], straight["runs"], strict=True):
        assert ours | {"step_ms": 0} == theirs | {"step_ms": 0}
    with pytest.raises(UsageError, match="other settings"):
        train(tiny(tmp_path / "whole", steps=4))


def test_an_unknown_network_is_refused(tmp_path):
    with pytest.raises(UsageError, match="gru"):
        train(tiny(tmp_path, learning_rates={"gru": 1e-3}))


def test_it_learns(tmp_path):
    settings = tiny(tmp_path, task="parity", longest_trained=2, test_lengths=[1, 2], steps=150)
    settings = settings.model_copy(update={"batch_size": 32, "learning_rates": {"rnn": 1e-2}})
    width = matching_width("rnn", words_of("parity"), settings.weights)
    run = sequence_task.train_one(settings, "rnn", 1, width)
    assert run["accuracy"] == {"1": 1.0, "2": 1.0} and run["loss"] < 0.2


def test_a_chart_is_read_as_it_is_meant(tmp_path):
    points = [Point(1, 100, 90, 100), Point(16, 0, 0, 50)]
    path = tmp_path / "chart.svg"
    line_chart(
        path,
        {"a & b": points, "other": points[:1]},
        title="t < u",
        x_label="length",
        y_label="percent",
        y_ticks=[0, 50, 100],
        marked=(1, 1, "seen"),
    )
    root = ElementTree.parse(path).getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "t < u", "length", "percent", "seen", "1", "16", "100"} <= set(texts)
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    tops = [float(circle.get("cy")) for circle in circles]
    assert len(circles) == 3 and tops[0] == tops[2] < tops[1]


def test_marks_are_no_words_of_a_task():
    assert {FIRST, LAST} == {0, 1} and min(map(words_of, TASKS)) > 2
