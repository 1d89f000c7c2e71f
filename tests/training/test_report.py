"""The report of a run: what lies in the folder is what the page says, whatever lies there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcore.errors import FileError
from sdcore.training.report import write_report
from sdcore.training.report_curves import MOST_POINTS

LIMIT = 8_000_000
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{data}} &amp; <b>"


class Page(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def said(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self) -> dict[str, Any]:
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', self.text)
        assert found is not None
        return json.loads(found[1])


def report(folder: Path, *, running: bool = False) -> Page:
    path = write_report(folder, running=running)
    assert path == folder / "report.html"
    assert path.stat().st_size <= LIMIT
    return Page(path.read_text("utf-8"))


def write_rows(path: Path, rows: Iterable[object]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_samples(
    folder: Path, steps: Iterable[int], size: tuple[int, int] = (96, 48), prompts: Any = ()
) -> None:
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for step in steps:
        for name in (f"{step}.png", f"{step}-heat.png"):
            pixels = draws.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "samples" / name)
        rows.append({"step": step, "file": f"{step}.png", "heatmap": f"{step}-heat.png"})
    listed = json.dumps({"rows": rows, "prompts": list(prompts)})
    (folder / "samples" / "samples.json").write_text(listed)


def settings(folder: Path, steps: int) -> None:
    lines = f"method: lora\nrun:\n  steps: {steps}\n  batch_size: 4\n  folder: here\n"
    (folder / "resolved.yaml").write_text(lines)


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert "Stopped at step 0." in page.said
    assert "No numbers yet." in page.said and "No pictures yet." in page.said
    assert page.data == {"curves": [], "last": 1, "refresh": 0}


def test_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    metrics = [
        {"step": s, "loss": 0.1 + 1 / (s + 3), "lr": 1e-4 * s, "mine": -s, "note": "x", "ok": True}
        for s in range(0, 200, 10)
    ]
    evaluation = [{"step": s, "validation_loss": 0.3 - s / 1000, "drift": s / 7} for s in (50, 190)]
    write_rows(tmp_path / "metrics.jsonl", metrics)
    write_rows(tmp_path / "evaluation.jsonl", evaluation)
    page = report(tmp_path)
    titles = re.findall(r"<figcaption><b>(.*?)</b>", page.text)
    assert titles == ["Loss", "Validation loss", "Learning rate", "Mine", "Drift"]
    names = ["loss", "validation_loss", "lr", "mine", "drift"]
    for name, curve in zip(names, page.data["curves"], strict=True):
        rows = [row for row in (*metrics, *evaluation) if name in row]
        assert curve["steps"] == [row["step"] for row in rows]
        assert curve["values"] == [row[name] for row in rows]
    assert page.data["last"] == 190
    assert len(page.data["curves"][0]["smoothed"]) == 20 and not page.data["curves"][1]["smoothed"]
    assert page.said.count("0.25") >= 1  # validation loss at step 50, in the table


def test_smoothing_keeps_a_constant_and_follows_a_step(tmp_path: Path) -> None:
    values = [1.0] * 100 + [3.0] * 100
    write_rows(tmp_path / "metrics.jsonl", [{"step": s, "loss": v} for s, v in enumerate(values)])
    smoothed = report(tmp_path).data["curves"][0]["smoothed"]
    assert smoothed[:100] == pytest.approx([1.0] * 100)
    assert 1 < smoothed[100] < 1.5 and smoothed[-1] == pytest.approx(3, abs=0.01)
    assert smoothed == sorted(smoothed)


def test_a_curve_is_drawn_where_its_numbers_are(tmp_path: Path) -> None:
    """The path's points, put back through the labels of the scale, are the numbers."""
    write_rows(tmp_path / "metrics.jsonl", [{"step": s, "mine": s * s / 10} for s in range(0, 11)])
    page = report(tmp_path)
    drawn = re.search(r'<path class="raw" d="M([^"]+)"', page.text)
    marks = re.search(r'<div class="marks linear"[^>]*>(.*?)</div>', page.text)
    assert drawn is not None and marks is not None
    labels = [float(mark) for mark in re.findall(r"<span>(.*?)</span>", marks[1])]
    points = [tuple(map(float, point.split())) for point in drawn[1].split("L")]
    for step, (x, y) in enumerate(points):
        assert x == step * 100
        value = labels[-1] + (1 - y / 300) * (labels[0] - labels[-1])
        assert value == pytest.approx(step * step / 10, abs=0.01)


def test_the_log_scale_is_for_losses_above_zero(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": 10.0**-s, "other_loss": s, "mine": 1} for s in range(4)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    page = report(tmp_path)
    assert [box["data-log"] for box in page.all("input") if "data-log" in box] == ["0"]
    line = re.search(r'<g class="log">.*?class="raw" d="M([^"]+)"', page.text)
    assert line is not None
    heights = [float(point.split()[1]) for point in line[1].split("L")]
    falls = [b - a for a, b in pairwise(heights)]
    assert falls == pytest.approx([falls[0]] * 3, abs=0.2)


def test_the_later_of_two_rows_of_a_step_counts(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": 1.0} for s in (0, 10, 20)] + [{"step": 10, "loss": 5.0}]
    write_rows(tmp_path / "metrics.jsonl", rows)
    assert report(tmp_path).data["curves"][0]["values"] == [1.0, 5.0, 1.0]


def test_damaged_lines_are_counted_and_the_rest_is_shown(tmp_path: Path) -> None:
    good = '{"step": 0, "loss": 1.5}\n{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n'
    bad = '[1]\nnothing\n{"loss": 2}\n{"step": "3", "loss": 2}\n{"step": -1, "loss": 2}\n'
    huge = '{"step": 3, "loss": 1' + "0" * 400 + "}\n"
    (tmp_path / "metrics.jsonl").write_text(good + bad + huge + '{"step": 4, "lo')
    page = report(tmp_path)
    assert page.data["curves"][0] == {
        "steps": [0, 1, 2, 3],
        "values": [1.5, None, 0.5, None],
        "smoothed": [],
    }
    assert "metrics.jsonl has 6 damaged lines." in page.said
    assert "not finite" in page.said


@pytest.mark.parametrize(
    "values", [(1e308, -1e308), (5e-324, 0), (1e99, 1e-99), (0, 0), (-3, -3, -3), (1e-17, 1)]
)
def test_any_numbers_can_be_drawn(values: tuple[float, ...], tmp_path: Path) -> None:
    rows = [{"step": n, "loss": v} for n, v in enumerate(values * 60)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    write_rows(tmp_path / "evaluation.jsonl", [{"step": 10**30, "x": values[0]}])
    page = report(tmp_path)
    for path in page.all("path"):
        assert not re.search(r"nan|inf|e[+-]?\d\d\d", str(path["d"]))


def test_other_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text("run: [")
    (tmp_path / "data.json").write_text("{")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "samples.json").write_bytes(b"\xff")
    (tmp_path / "evaluation.jsonl").write_bytes(b"\xff\xfe\n")
    (tmp_path / "metrics.jsonl").mkdir()
    page = report(tmp_path)
    assert "metrics.jsonl cannot be read: It is a folder." in page.said
    for name in ("resolved.yaml", "data.json", "samples.json", "evaluation.jsonl"):
        assert name in page.said


@pytest.mark.parametrize("running", [False, True])
def test_state_and_time_left(running: bool, tmp_path: Path) -> None:
    settings(tmp_path, 600)
    rows = [{"step": s, "loss": 1, "images_per_second": 2.0} for s in range(0, 300, 10)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    page = report(tmp_path, running=running)
    assert page.all("progress") == [{"value": "290", "max": "600"}]
    refreshes = [m for m in page.all("meta") if m.get("http-equiv") == "refresh"]
    if running:  # 310 steps of 4 pictures at 2 a second
        assert "Running: step 290 of 600. About 10 minutes left." in page.said
        assert [m["content"] for m in refreshes] == ["30"] and page.data["refresh"] == 30
    else:
        assert "Stopped at step 290 of 600." in page.said and not refreshes
    write_rows(tmp_path / "metrics.jsonl", [{"step": 9 * n, "seconds": n} for n in range(1, 11)])
    if running:
        assert "step 90 of 600. About a minute left." in report(tmp_path, running=True).said
        write_rows(tmp_path / "metrics.jsonl", [{"step": 90, "seconds_left": 7200}])
        assert "step 90 of 600. About 2 hours left." in report(tmp_path, running=True).said


def test_a_run_is_finished_when_its_last_checkpoint_is(tmp_path: Path) -> None:
    settings(tmp_path, 600)
    write_rows(tmp_path / "metrics.jsonl", [{"step": 580, "loss": 1}])
    (tmp_path / "checkpoints" / "step-00000600").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-notes.txt").touch()
    assert "Finished: 600 steps." in report(tmp_path).said


def test_pictures_stand_by_step_with_their_heatmaps_and_the_base_apart(tmp_path: Path) -> None:
    write_samples(tmp_path, (0, 100, 200), prompts=("a red fox", "a tree"))
    page = report(tmp_path)
    assert [image["alt"] for image in page.all("img")] == [
        *("Base model", "Heatmap, Base model", "Step 200", "Heatmap, Step 200"),
        *("Step 100", "Heatmap, Step 100"),
    ]
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))
    base, rows = page.text.index('class="base"'), page.text.index('class="rows"')
    assert base < page.text.index('alt="Base model"') < rows < page.text.index('alt="Step 100"')
    assert "a red fox" in page.said and page.text.count("<ol") == 1


def test_a_picture_for_each_prompt(tmp_path: Path) -> None:
    write_samples(tmp_path, (0, 10))
    rows = [{"step": 10, "file": ["0.png", "10.png"], "heatmap": ["0-heat.png"]}]
    listed = {"rows": rows, "prompts": ["a red fox", "a tree"]}
    (tmp_path / "samples" / "samples.json").write_text(json.dumps(listed))
    page = report(tmp_path)
    assert [image["alt"] for image in page.all("img")] == [
        *("Step 10: a red fox", "Heatmap, Step 10: a red fox", "Step 10: a tree"),
    ]


def test_files_outside_of_the_folder_are_not_shown(tmp_path: Path) -> None:
    write_samples(tmp_path, (0, 10))
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    rows = [
        {"step": 0, "file": "../private.png"},
        {"step": 1, "file": str(tmp_path / "private.png")},
        {"step": 2, "file": "gone.png", "heatmap": None},
        {"step": "x", "file": "10.png"},
        {"step": 10, "file": "10.png", "heatmap": 3},
        "nothing",
    ]
    (tmp_path / "samples" / "samples.json").write_text(json.dumps({"rows": rows, "prompts": 1}))
    page = report(tmp_path)
    assert [image["alt"] for image in page.all("img")] == ["Step 10"]
    assert "gone.png cannot be read." in page.said


def test_the_data_are_summed_up_as_they_are_noted(tmp_path: Path) -> None:
    buckets = [{"size": f"{n} x 64", "pictures": 1000 * n} for n in range(3, 300)]
    data = {"pictures": 24, "skipped": {"broken.png": "torn"}, "buckets": buckets, "tags": ["a", 1]}
    data |= {"mixed": [{"a": 1}, [2, True]], "nothing": None}
    (tmp_path / "data.json").write_text(json.dumps(data))
    page = report(tmp_path)
    said = re.sub("<[^>]+>", " ", page.text)
    for text in (
        *("broken.png +torn", "size +pictures +3 x 64 +3,000 +4 x 64 +4,000", "97 more."),
        *("tags +a, 1", "mixed +a +1 +2, yes|mixed +a +1 +2, True", "nothing +none"),
    ):
        assert re.search(text, said), text


def test_whatever_comes_from_outside_is_text(tmp_path: Path) -> None:
    folder = tmp_path / "a<b> & 'run'"
    folder.mkdir()
    write_samples(folder, (0, 5), prompts=(HOSTILE, "\u202e\ud83d\ude00"))
    write_rows(folder / "metrics.jsonl", [{"step": 1, HOSTILE: 2.5}, {"step": 3, HOSTILE: 1.5}])
    (folder / "data.json").write_text(
        json.dumps({HOSTILE: HOSTILE, "list": [{HOSTILE: [HOSTILE]}, [HOSTILE]]})
    )
    (folder / "resolved.yaml").write_text(json.dumps({"run": {"steps": 10}, "p": {"x": HOSTILE}}))
    page = report(folder)
    plain = report_of_plain(tmp_path / "plain")
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2 and tags.count("b") == 1 and tags.count("style") == 1
    assert not [a for _, a in page.elements for name in a if name.startswith("on")]
    assert len(page.all("img")) == len(plain.all("img")) == 4
    assert HOSTILE in "".join(page.words)
    titles = re.findall(r"<title>(.*?)</title>", page.text)
    assert titles == ["a&lt;b&gt; &amp; &#x27;run&#x27;: Stopped at step 5 of 10"]


def report_of_plain(folder: Path) -> Page:
    folder.mkdir()
    write_samples(folder, (0, 5), prompts=("a", "b"))
    return report(folder)


def test_the_page_needs_nothing_else_and_allows_nothing_else(tmp_path: Path) -> None:
    write_samples(tmp_path, (0, 5))
    page = report(tmp_path, running=True)
    policy = next(m["content"] for m in page.all("meta") if "default-src" in str(m.get("content")))
    assert str(policy).startswith("default-src 'none'; img-src data:; script-src 'sha256-")
    assert not page.all("link") and not page.all("iframe") and not page.all("a")
    addresses = [a for _, at in page.elements for n, a in at.items() if n in ("src", "href")]
    assert all(str(address).startswith("data:image/") for address in addresses)
    assert "style" not in {name for _, at in page.elements for name in at}, "the policy forbids it"


@pytest.mark.parametrize("count", [3, 400])
def test_the_size_stays_bounded(count: int, tmp_path: Path) -> None:
    """Long runs are thinned out: spikes stay, the ends stay, and pictures become fewer."""
    rows = 40_000
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for s in range(rows):
            numbers = {f"n{c}": (s * 7919 % 1000) / 1000 + c for c in range(6)}
            spike = {"loss": 99.0 if s == 20_001 else 0.1 + (s % 10) / 100}
            file.write(json.dumps({"step": s, **spike, **numbers}) + "\n")
    (tmp_path / "data.json").write_text(json.dumps({f"k{n}": "x" * 5000 for n in range(500)}))
    write_samples(tmp_path, range(0, count * 10, 10), (400, 400) if count < 10 else (160, 160))
    page = report(tmp_path)
    loss = page.data["curves"][0]
    assert len(loss["steps"]) <= MOST_POINTS
    assert (loss["steps"][0], loss["steps"][-1]) == (0, rows - 1)
    assert loss["values"][loss["steps"].index(20_001)] == 99.0
    pictures = [str(image["alt"]) for image in page.all("img")]
    assert "Base model" in pictures and f"Step {(count - 1) * 10:,}" in pictures
    assert len(pictures) <= 48
    if count == 400:
        assert "24 of 400 validations are shown." in page.said


def test_pictures_that_are_too_large_become_smaller(tmp_path: Path) -> None:
    write_samples(tmp_path, range(0, 120, 10), (896, 896))
    images = report(tmp_path).all("img")
    sizes = {int(str(image["width"])) for image in images}
    assert len(sizes) == 1 and 128 < sizes.pop() < 768


def test_a_picture_that_was_painted_anew_is_shown_anew(tmp_path: Path) -> None:
    write_samples(tmp_path, (0,))
    first = report(tmp_path).all("img")[0]["src"]
    Image.new("RGB", (96, 48), "red").save(tmp_path / "samples" / "0.png")
    assert report(tmp_path).all("img")[0]["src"] != first
    (tmp_path / "samples" / "0.png").write_bytes(b"nothing")
    assert "0.png cannot be read." in report(tmp_path).said


def test_an_older_page_is_replaced_and_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    write_report(tmp_path, running=True)
    assert "Stopped" in report(tmp_path).said
    (tmp_path / "file").touch()
    with pytest.raises(FileError):
        write_report(tmp_path / "file", running=False)
