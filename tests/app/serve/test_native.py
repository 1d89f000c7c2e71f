"""A job over HTTP: the same bits, seen step by step, edited, stopped, and read back."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image

from sdcore import Job, PromptEdit, RegionSettings, Size, TextToImage, WordHeatmaps, job_to_dict
from sdcore.app.adapters import Adapters
from sdcore.app.model_choice import ModelChoice
from sdcore.app.serve.asked import Door
from sdcore.app.serve.models import Models
from sdcore.app.serve.painter import Painter
from sdcore.control.prompt_edit import EditSettings
from sdcore.job.budget import Budget
from sdcore.job.sources import Picture
from tests.app.serve.conftest import listening

JOB = Job("a red fox on a tree", "bad", seed=9, steps=3, size=Size(64, 48), scheduler="ddim")


@pytest.fixture(scope="module")
def pipe(sd_folder) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


def events(ask: httpx.Client, **body: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    with ask.stream("POST", "/api/paint", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def opened(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png)))


def test_a_job_is_the_same_picture_with_the_same_record_seen_or_not(ask, pipe) -> None:
    for heatmaps in (False, True):
        said = list(events(ask, job=job_to_dict(JOB), heatmaps=heatmaps))
        assert [name for name, _ in said] == ["queued", *["step"] * 3, "picture"]
        (_, last), result = said[-1], pipe.paint(JOB)
        picture = opened(last["png"])
        assert picture.tobytes() == result.images[0].tobytes()
        assert picture.info["sdcore"] == result.settings[0].to_json()
        assert [step["index"] for name, step in said if name == "step"] == [0, 1, 2]
        first = said[1][1]["picture"]
        assert opened(first.partition(",")[2]).size == (64, 48)


def test_words_have_the_maps_of_the_run(ask, pipe) -> None:
    *_, (_, last) = events(ask, job=job_to_dict(JOB), heatmaps=True)
    heatmaps = WordHeatmaps(pipe.tokenizer(JOB.prompt))
    pipe.paint(JOB, heatmaps)
    words = [word for word in last["words"] if not word["special"]]
    assert [word["word"] for word in words] == JOB.prompt.split()
    assert [JOB.prompt[word["start"] : word["end"]] for word in words] == JOB.prompt.split()
    for word in words:
        levels = base64.b64decode(word["map"])
        expected = heatmaps.of(words.index(word)).flatten()
        assert word["grid"] == list(heatmaps.of(words.index(word)).shape)
        found = [word["low"] + (word["high"] - word["low"]) * level / 255 for level in levels]
        assert found == pytest.approx(expected.tolist(), abs=(word["high"] - word["low"]) / 500)
    total = sum(word["share"] for word in last["words"])
    assert total == pytest.approx(1, abs=1e-3)


def test_regions_are_the_same_bits_and_their_words_are_told_apart(ask, pipe) -> None:
    regions = (
        RegionSettings("a small tree", (0, 0, 0.5, 1)),
        RegionSettings("a fox", (0.5, 0, 1, 1)),
    )
    job = replace(JOB, dialect="a1111", regions=regions)
    *_, (_, last) = events(ask, job=job_to_dict(job), heatmaps=True)
    assert opened(last["png"]).tobytes() == pipe.paint(job).images[0].tobytes()
    assert last["job"]["regions"] == job_to_dict(job)["regions"]
    words = [word for word in last["words"] if not word["special"]]
    texts = [job.prompt, *(region.prompt for region in regions)]
    assert [texts[w["of"]][w["start"] : w["end"]] for w in words] == " ".join(texts).split()
    assert [w["of"] for w in words] == [0] * 6 + [1] * 3 + [2] * 2


def test_an_edit_holds_the_rest(ask, pipe) -> None:
    edit = {"to": "a red cat on a tree", "reweight": {"cat": 2.0}, "keep_layout": 0.5}
    *_, (_, last) = events(ask, job=job_to_dict(JOB), edit=edit, heatmaps=True)
    jobs = [JOB, replace(JOB, prompt=edit["to"])]
    settings = EditSettings(cross=(0, 0.5), layout=(0, 0.5), scales={"cat": 2.0})
    control = PromptEdit(pipe.tokenizer([job.prompt for job in jobs]), settings)
    expected = pipe.paint(jobs, control)
    picture = opened(last["png"])
    assert picture.tobytes() == expected.images[1].tobytes()
    assert picture.info["sdcore"] == expected.settings[1].to_json()
    assert "cat" in [word["word"] for word in last["words"]]


def test_a_draft_comes_before_the_picture_and_changes_no_bit_of_it(ask, pipe) -> None:
    job = replace(JOB, steps=10)
    edit = {"to": "a red cat on a tree"}
    body = {"job": job_to_dict(job), "edit": edit, "heatmaps": True}
    *_, (_, alone) = events(ask, **body)
    said = list(events(ask, **body, draft=True))
    assert [name for name, _ in said] == ["queued", "draft", *["step"] * 10, "picture"]
    assert said[-1][1] == alone
    assert not any("picture" in told for name, told in said if name == "step")
    few = replace(job, steps=4)
    *_, (_, expected) = events(ask, **{**body, "job": job_to_dict(few)})
    draft = said[1][1]
    assert opened(draft["picture"].partition(",")[2]).tobytes() == opened(expected["png"]).tobytes()
    assert draft["words"] == expected["words"]
    names = [name for name, _ in events(ask, **{**body, "job": job_to_dict(few)}, draft=True)]
    assert "draft" not in names, "few steps need none"


def test_an_edit_may_have_fewer_words(ask) -> None:
    *_, (name, last) = events(ask, job=job_to_dict(JOB), edit={"to": "a fox"}, heatmaps=True)
    assert name == "picture"
    assert [word["word"] for word in last["words"] if not word["special"]] == ["a", "fox"]
    assert [word["noun"] for word in last["words"] if not word["special"]] == [False, True]


def test_pictures_come_by_the_name_that_the_source_has(ask, pipe) -> None:
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG")
    job = {"prompt": "a cat", "seed": 1, "steps": 4, "source": {"image": "mine", "strength": 0.5}}
    picture = base64.b64encode(file.getvalue()).decode()
    *_, (_, last) = events(ask, job=job, pictures={"mine": picture})
    expected = pipe.paint(Job("a cat", seed=1, steps=4, source=Picture(image, 0.5)))
    assert opened(last["png"]).tobytes() == expected.images[0].tobytes()


def test_words_that_the_model_does_not_know_are_told(ask, sd_folder, tmp_path) -> None:
    *_, (_, last) = events(ask, job=job_to_dict(JOB))
    assert last["notes"] == [], "a model without a list is taken to know all"
    for part in sd_folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "words.json").write_text('{"names": ["fox", "red"], "other": ["a", "on"]}')
    models = Models(ModelChoice(str(tmp_path)), Adapters())
    with (
        listening(Door(models, Budget()), Painter(models)) as live,
        httpx.Client(base_url=live.url, timeout=120, trust_env=False) as client,
    ):
        *_, (_, last) = events(client, job=job_to_dict(JOB))
    told = ["the model does not know 'tree'", "negative prompt: the model does not know 'bad'"]
    assert last["notes"] == told


def test_other_models_come_by_name(ask, sd2_folder) -> None:
    choices = ask.get("/api/choices").json()
    assert "second" in choices["models"] and "ddim" in choices["methods"]
    first = choices["models"][0]
    *_, (_, last) = events(ask, job=job_to_dict(JOB), model="second")
    other = TextToImage.from_pretrained(sd2_folder).paint(JOB)
    assert opened(last["png"]).tobytes() == other.images[0].tobytes()
    *_, (_, last) = events(ask, job=job_to_dict(JOB), model=first)
    assert opened(last["png"]).tobytes() != other.images[0].tobytes()


def test_what_a_picture_says_comes_back_as_the_job(ask, pipe) -> None:
    *_, (_, last) = events(ask, job=job_to_dict(JOB))
    said = ask.post("/api/read", content=base64.b64decode(last["png"])).json()
    assert said["origin"] == "sdcore"
    *_, (_, again) = events(ask, job=said["job"])
    assert again["png"] == last["png"]
    assert ask.post("/api/read", content=b"no picture").status_code == 400


def test_a_task_can_be_stopped_and_the_next_one_is_painted(ask, live) -> None:
    long = job_to_dict(replace(JOB, steps=900))
    with ask.stream("POST", "/api/paint", json={"job": long}) as answer:
        lines = answer.iter_lines()
        queued = json.loads(next(x for x in lines if x.startswith("data")).removeprefix("data: "))
        assert ask.post(f"/api/tasks/{queued['id']}/stop").json() == {"known": True}
        rest = "\n".join(lines)
        assert "event: error" in rest and "was stopped" in rest
    with ask.stream("POST", "/api/paint", json={"job": long}) as answer:
        next(answer.iter_lines())  # and then whoever asked goes away
    *_, (name, _) = events(ask, job=job_to_dict(JOB))
    assert name == "picture"
    states = [task["state"] for task in ask.get("/api/tasks").json()]
    assert states[-3:] == ["stopped", "stopped", "done"]


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"job": {}},
        {"job": {"prompt": 3}},
        {"job": {"promt": "a"}},
        {"job": {"prompt": "a", "steps": 5000}},
        {"job": {"prompt": "a" * 30_000}},
        {"job": {"prompt": "a", "width": 8_000_000, "height": 8_000_000}},
        {"job": {"prompt": "a"}, "images": 9},
        {"job": {"prompt": "a", "regions": [{"prompt": "b", "box": [0, 0, 1, 1]}]}},
        {"job": {"prompt": "a", "dialect": "a1111", "regions": [{"prompt": "b", "box": [0, 0]}]}},
        {"job": {"prompt": "a"}, "images": True},
        {"job": {"prompt": "a"}, "model": "gone"},
        {"job": {"prompt": "a"}, "model": "../../etc"},
        {"job": {"prompt": "a"}, "edit": {"to": 1}},
        {"job": {"prompt": "a"}, "edit": {"reweight": {"a": "x"}}},
        {"job": {"prompt": "a"}, "edit": {"steps_window": [0.1]}},
        {"job": {"prompt": "a"}, "edits": {}},
        {"job": {"prompt": "a"}, "pictures": {"x": "!!"}},
        {"job": {"prompt": "a"}, "pictures": {"x": "aGVsbG8="}},
        {"job": {"prompt": "a", "source": {"image": "x", "strength": 1}}},
    ],
)
def test_what_cannot_be_painted_is_refused_at_the_door(ask, live, body) -> None:
    before = len(live.painter.tasks)
    answer = ask.post("/api/paint", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert all(error[part].endswith(".") for part in ("what", "why", "hint"))
    assert len(live.painter.tasks) == before
