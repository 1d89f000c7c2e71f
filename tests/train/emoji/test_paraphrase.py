"""Captions that mean the same, and a text encoder that learns it without pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdcore import TextToImage
from sdcore.text.known_words import read_known_words
from sdcore.text.recurrent_encoder import load_text_encoder
from sdcore.text.tokenizer import Tokenizer
from sdcore.training.run_settings import RunSettings
from sdcore.unet.unet import UNet
from tests.train.emoji.tiny_recipe import write_drawings, write_networks
from train.emoji import paraphrase
from train.emoji.data.layout import GROUPS, Drawn, Scene, box_beside
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings
from train.emoji.paraphrase import ParaphraseSettings, Said, collect, in_grammar, pairs, together
from train.emoji.pretrain_unet import MODEL_INDEX, SCHEDULER


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    settings = DataSettings(
        concepts={"fox": "fox", "cat": "cat", "tree": "tree", "owl": "owl"},
        styles={"flat": "flat", "neon": "neon"},
        held_out_pairs_share=0.0,
        folder=str(tmp_path),
    )
    write_drawings(settings)
    return settings


def thing(concept: str, size: str = "big", place: str = "center", color: str = "") -> Drawn:
    return Drawn(concept, "flat", size, place, (0, 0, 8), color)


def test_what_the_grammar_says_of_newcomers_scenes() -> None:
    one = in_grammar(Scene((thing("fox"),), "white", "", ""))
    assert one == Said("a big fox in flat style on a white background", ("fox",))
    small = in_grammar(Scene((thing("owl", "small", "left"),), "orange", "", ""))
    assert small is not None
    assert small.caption == "a small owl in flat style on the left on an orange background"
    pair = in_grammar(Scene((thing("fox"), thing("owl")), "white", "to the left of", ""))
    assert pair is not None and pair.names == ("fox", "owl")
    assert pair.caption.startswith("a fox to the left of an owl in flat style")
    two = tuple(Drawn("fox", "flat", "small", "center", box_beside(*p)) for p in GROUPS[2])
    group = in_grammar(Scene(two, "white", "", "two foxes"))
    assert group is not None and group.names == ("fox", "fox")
    assert in_grammar(Scene((*two, two[0]), "white", "", "")) is None, "it cannot count to three"
    assert in_grammar(Scene((thing("fox", color="blue"),), "white", "", "")) is None


def test_batches_are_functions_of_their_step_and_hold_both_kinds(data: DataSettings) -> None:
    settings = ParaphraseSettings(data=data, empty=0.1, run=loop(data.folder))
    scenes, grammar = Scenes(data, own_words=1.0), Scenes(data)
    batch = pairs(scenes, grammar, settings, 0, 5, 200)
    assert batch == pairs(scenes, grammar, settings, 0, 5, 200)
    assert batch != pairs(scenes, grammar, settings, 0, 6, 200)
    same = sum(ours == theirs for ours, theirs in batch)
    assert 20 < same < 100 and any(ours.caption == "" for ours, _ in batch)
    assert len({ours.caption for ours, _ in batch}) > 100


def test_a_group_is_read_at_its_one_name() -> None:
    marks = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]] * 2)
    two, pair = Said("a fox a fox", ("fox", "fox")), Said("a fox an owl", ("fox", "owl"))
    summed = together(marks, [Said("foxes", ("foxes",)), pair], [two, pair])
    assert summed[0].tolist() == [[1, 0], [1, 0]] and torch.equal(summed[1], marks[1])


def loop(folder: str) -> RunSettings:
    return RunSettings(
        folder=folder,
        steps=12,
        batch_size=8,
        learning_rate=3e-3,
        warmup_steps=1,
        precision="no",
        log_every=1,
        sample_every=12,
    )


def write_model(folder: Path) -> None:
    folder.mkdir()
    write_networks(folder)
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX), "utf-8")
    (folder / "scheduler").mkdir()
    config = SCHEDULER | {"prediction_type": "v_prediction"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config), "utf-8")


def test_readings_are_the_outputs_of_the_layers(data: DataSettings, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_model(model)
    tokenizer = Tokenizer.from_pretrained(model / "tokenizer")
    encoder = load_text_encoder(model / "text_encoder")
    unet = UNet.from_pretrained(model / "unet").eval()
    readings = collect(model, unet, Scenes(data), encoder, tokenizer)
    text = encoder(tokenizer(["a fox"]).ids).last_hidden_state
    some = torch.tensor([3, 1])
    found = readings(text, torch.zeros(1, text.shape[1], 2), some)
    layers = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]
    assert len(found) == len(layers) > 1
    for (read, _), key, value, bank in zip(
        found, readings.keys, readings.values, readings.queries, strict=True
    ):
        heads = bank.shape[0]
        k, v = (x(text)[0].unflatten(-1, (heads, -1)).transpose(0, 1) for x in (key, value))
        right = torch.nn.functional.scaled_dot_product_attention(bank[:, some], k, v)
        assert torch.allclose(read[0], right, atol=1e-5)


def test_a_text_encoder_learns_it_and_the_model_opens(data: DataSettings, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_model(model)
    settings = ParaphraseSettings(
        data=data,
        teacher=str(model),
        vocabulary=str(model),
        queries=16,
        run=loop(str(tmp_path / "run")),
    )
    paraphrase.train(settings)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    left = [json.loads(line)["left"] for line in lines]
    assert sum(left[-3:]) < 0.8 * sum(left[:3])
    row = json.loads((tmp_path / "run" / "evaluation.jsonl").read_text("utf-8"))
    assert {"own_left", "grammar_left"} <= row.keys()
    pipe = TextToImage.from_pretrained(tmp_path / "run" / "model")
    before = load_text_encoder(model / "text_encoder").state_dict()
    after = pipe.text_encoder.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    known = read_known_words(tmp_path / "run" / "model")
    assert known is not None and known.unknown("two cute foxes") == []
    assert known.unknown("three foxes") == ["three"], "no caption of the grammar says so"
