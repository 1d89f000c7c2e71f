"""Probing captions: all names of a thing come to mean it, and what is exported has changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from sdcore.text.encoder import CLIPTextEncoder
from sdcore.text.tokenizer import Tokenizer
from sdcore.training.run_settings import RunSettings
from tests.train.emoji.tiny_recipe import write_drawings, write_networks
from train.emoji.data.layout import Drawn, Scene
from train.emoji.data.settings import DataSettings, Words
from train.emoji.pretrain_text_encoder import TextSettings, begin
from train.emoji.read_captions import Probes, ReadingSettings, answers, possible_answers, train


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate remembers the first precision of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    settings = DataSettings(
        concepts={"fox": "fox", "cat": "cat"},
        styles={"noto": "noto"},
        backgrounds={"red": (200, 0, 0)},
        words={
            "fox": Words(zh=["狐狸"], measure="只"),
            "cat": Words(also=["kitten"], zh=["猫"], measure="只"),
        },
        chinese_share=0.3,
        held_out_pairs_share=0.0,
        folder=str(tmp_path),
    )
    write_drawings(settings)
    return settings


def test_every_name_of_a_thing_comes_to_mean_it(data: DataSettings, tmp_path: Path) -> None:
    write_networks(tmp_path)
    loop = RunSettings(
        folder=str(tmp_path / "run"),
        steps=60,
        batch_size=16,
        learning_rate=1e-2,
        warmup_steps=5,
        precision="no",
        log_every=1,
    )
    train(ReadingSettings(data=data, start_from=str(tmp_path), run=loop))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert sum(row["concept"] for row in rows[-10:]) / 10 > 0.95  # 0.5 is chance
    assert sum(row["concept"] for row in rows[:3]) / 3 < 0.9
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    before, after = (
        CLIPTextEncoder.from_pretrained(folder / "text_encoder").state_dict()
        for folder in (tmp_path, tmp_path / "run")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    Tokenizer.from_pretrained(tmp_path / "run" / "tokenizer")


def test_the_concept_is_asked_at_the_tokens_of_the_name(tmp_path: Path) -> None:
    write_networks(tmp_path)
    encoder = CLIPTextEncoder.from_pretrained(tmp_path / "text_encoder")
    probes = Probes(encoder, 3, [2])
    states: list[torch.Tensor] = []
    probes.concept.register_forward_pre_hook(lambda _, given: states.append(given[0]))
    ids = torch.arange(10).repeat(2, 1)
    marks = torch.zeros(2, 10, 2)
    marks[0, 3:5, 0] = marks[1, 2, 0] = marks[1, 7, 1] = 1  # the first caption has one object
    loss, right = probes.loss(ids, marks, torch.tensor([[1, 0], [2, 0]]), torch.zeros(2, 1).long())
    read = encoder(ids).last_hidden_state
    expected = torch.stack([read[0, 3:5].mean(0), read[1, 2], read[1, 7]])
    assert torch.allclose(states[0], expected, atol=1e-6)
    assert loss.ndim == 0 and len(right) == 2


def test_a_scene_answers_every_question_with_one_of_the_answers(data: DataSettings) -> None:
    one = Drawn("fox", "noto", "big", "left", (0, 0, 56))
    two = Drawn("cat", "noto", "big", "left", (0, 0, 56))
    possible = possible_answers(data)
    for scene in (Scene((one,), "red", "", ""), Scene((one, two), "red", "above", "")):
        found = answers(scene)
        assert found.keys() == possible.keys()
        assert all(found[question] in possible[question] for question in possible)
    assert answers(Scene((one, two), "red", "above", ""))["place"] == "above"


def test_the_contrastive_recipe_can_begin_with_a_trained_text_encoder(tmp_path: Path) -> None:
    write_networks(tmp_path)
    loop = RunSettings(folder="", steps=1, batch_size=1, learning_rate=1.0)
    tokenizer, encoder = begin(TextSettings(start_from=str(tmp_path), run=loop), scenes=None)
    kept = CLIPTextEncoder.from_pretrained(tmp_path / "text_encoder")
    pairs = zip(encoder.parameters(), kept.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert tokenizer(["a fox"]).ids.shape[0] == 1
