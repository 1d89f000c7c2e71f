"""One recipe with each text encoder: what is equal, which words are wrong, and the whole way."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.numpy import save_file

from bench import text_encoder_speed, text_encoders
from bench.text_encoders import ASKED, prompts_by_length, wrong_words
from sdcore import Autoencoder, CLIPTextEncoder, TextToImage, Tokenizer
from sdcore.errors import FileError, UsageError
from sdcore.text.recurrent_encoder import RecurrentTextEncoder, load_text_encoder
from sdcore.training.settings import load_settings
from train.emoji import pretrain_unet
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings
from train.emoji.imitate_text_encoder import ImitationSettings, imitate
from train.emoji.pretrain_unet import UNetSettings

NETWORKS = ("transformer", "lstm", "rnn")
CONFIG = Path(__file__).parents[2] / "configs" / "train" / "text_encoder_comparison.yaml"


@pytest.fixture
def fresh_accelerator():
    """accelerate remembers the first precision of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("drawings")
    random = np.random.default_rng(0)
    settings = DataSettings(
        concepts={name: name for name in ("fox", "cat", "tree", "apple")},
        styles={name: name for name in ("noto", "flat")},
        held_out_combinations=[("fox", "tree")],
        held_out_pairs_share=0.0,
        two_objects_share=0.4,
        folder=str(folder),
    )
    pictures = {}
    for style in settings.styles:
        for concept in settings.concepts:
            pictures[f"{style}/{concept}"] = np.full((128, 128, 4), 255, np.uint8)
            pictures[f"{style}/{concept}"][..., :3] = random.integers(0, 256, 3)
    save_file(pictures, folder / "drawings.safetensors")
    return settings


def unet_settings(data: DataSettings, sd_folder: Path, run: Path, network: str) -> UNetSettings:
    return UNetSettings.model_validate(
        {
            "data": data.model_dump(),
            "autoencoder": str(sd_folder / "vae"),
            "text_encoder": str(sd_folder),
            "text_network": network,
            "block_out_channels": [32, 32],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "run": {"folder": str(run), "steps": 2, "batch_size": 2, "learning_rate": 1e-3}
            | {"sample_every": 9, "precision": "no"},
        }
    )


def test_only_the_text_encoder_differs(data, sd_folder, tmp_path):
    autoencoder = Autoencoder.from_pretrained(sd_folder / "vae")
    built = {}
    for name in ("trained", *NETWORKS):
        torch.manual_seed(0)
        built[name] = pretrain_unet.build(
            unet_settings(data, sd_folder, tmp_path, name), autoencoder
        )
    wanted = built["trained"].unet.state_dict()
    for network in built.values():
        assert all(torch.equal(x, wanted[k]) for k, x in network.unet.state_dict().items())
    weights = {n: sum(p.numel() for p in b.text_encoder.parameters()) for n, b in built.items()}
    assert max(weights.values()) / min(weights.values()) < 1.1
    fresh, trained = (
        built[name].text_encoder.state_dict()["text_model.embeddings.token_embedding.weight"]
        for name in ("transformer", "trained")
    )
    assert fresh.shape == trained.shape and not torch.equal(fresh, trained)
    assert built["lstm"].text_encoder.config.cell == "lstm"


def test_the_settings_of_the_comparison_are_read():
    ours = load_settings(UNetSettings, CONFIG).with_data()
    assert isinstance(ours.data, DataSettings) and len(ours.data.concepts) == 12
    path = CONFIG.with_name("text_encoder_imitation.yaml")
    for name in NETWORKS:
        settings = load_settings(ImitationSettings, path, [f"network={name}"])
        assert settings.network == name and settings.with_data().data == ours.data


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("network", ["transformer", "lstm"])  # an RNN is an LSTM with another cell
def test_another_network_learns_what_the_teacher_says(data, sd_folder, tmp_path, network):
    run = {"folder": str(tmp_path), "steps": 20, "batch_size": 8, "learning_rate": 1e-2}
    run |= {"sample_every": 20, "log_every": 1, "warmup_steps": 1, "precision": "no"}
    settings = ImitationSettings.model_validate(
        {"data": data.model_dump(), "teacher": str(sd_folder), "network": network, "run": run}
    )
    imitate(settings)
    left = [json.loads(row)["left"] for row in (tmp_path / "metrics.jsonl").open("rb")]
    assert left[-1] < 0.5 * left[0]
    found = load_text_encoder(tmp_path / "text_encoder")
    assert isinstance(found, CLIPTextEncoder if network == "transformer" else RecurrentTextEncoder)
    tokenizer = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    teacher = load_text_encoder(sd_folder / "text_encoder")
    ids = tokenizer("a fox on red").ids
    wanted = teacher(ids).last_hidden_state
    share = (found(ids).last_hidden_state - wanted).square().mean() / wanted.var()
    assert share < 1  # nearer than any one vector for all


def test_prompts_of_three_lengths(data):
    prompts = prompts_by_length(data, 24, seed=0)
    assert {name: len(found) for name, found in prompts.items()} == dict.fromkeys(ASKED, 24)
    assert {p.text for p in prompts["one word"]} == set(data.concepts)
    assert all(p.size == "small" and p.place and not p.relation for p in prompts["sentence"])
    assert all(len(p.concepts) == 2 and p.relation for p in prompts["relation"])
    assert len({p.concepts[0] for p in prompts["sentence"]}) == len(data.concepts)


def test_one_kind_of_word_is_wrong_and_nothing_else(data):
    source = Scenes(data)
    scenes = [source.scene(1, i) for i in range(80)]
    found = wrong_words(data, scenes)
    assert set(found) == {
        *("right", "background", "style", "relation", "order", "concept", "size", "place"),
    }
    right = dict(found["right"])
    assert list(right) == list(range(80))
    for kind, rows in found.items():
        for i, caption in rows:
            if kind == "right":
                continue
            assert caption != right[i], kind
            lost = Counter(right[i].split()) - Counter(caption.split())
            if kind == "order":
                assert not lost and scenes[i].relation
            elif kind == "concept":
                assert set(lost) == {scenes[i].objects[0].concept}
            elif kind == "style":
                assert set(lost) == {scenes[i].objects[0].style}
            assert (kind in ("relation", "order")) <= bool(scenes[i].relation)
    assert len(found["order"]) + len(found["concept"]) == 80


@pytest.mark.usefixtures("fresh_accelerator", "few_captions")
def test_trained_exported_and_measured(data, sd_folder, tmp_path, capsys):
    for name in ("transformer", "rnn"):
        pretrain_unet.train(unet_settings(data, sd_folder, tmp_path / name, name))
    exported = json.loads((tmp_path / "rnn" / "model" / "model_index.json").read_text("utf-8"))
    assert exported["text_encoder"] == ["sdcore", "RecurrentTextEncoder"]
    pipe = text_encoders.open_model(tmp_path / "rnn" / "model", "cpu")
    assert isinstance(pipe.text_encoder, RecurrentTextEncoder) and pipe.defaults.steps == 25
    opened = TextToImage.from_pretrained(tmp_path / "rnn" / "model")
    assert isinstance(opened.text_encoder, RecurrentTextEncoder)

    command = f"--runs {tmp_path} --out {tmp_path} --prompts 12 --scenes 20 --steps 1"
    arguments = text_encoders._parser().parse_args(
        [*command.split(), "--networks", "transformer", "rnn"]
    )
    capsys.readouterr()
    text_encoders.run(arguments)
    printed = capsys.readouterr().out
    assert printed.count("\n| transformer") == 3 and "| rnn, floor |" in printed
    result = json.loads((tmp_path / "text_encoders.json").read_text("utf-8"))
    assert set(result) == {"transformer", "rnn"}
    assert result["rnn"]["control"]["sentence"]["model"]["place"][1] == 12
    assert result["rnn"]["wrong words"]["background"][2] == 20

    arguments.prompts = 3
    with pytest.raises(UsageError, match="3 prompts"):
        text_encoders.run(arguments)
    arguments.prompts, arguments.networks = 12, ["transformer", "lstm"]
    arguments.out = str(tmp_path / "none")
    with pytest.raises(FileError, match=r"no model in .*lstm"):  # and not after the first's hour
        text_encoders.run(arguments)
    assert not (tmp_path / "none").exists()


def test_speed_of_every_network_and_length(tmp_path, capsys):
    command = f"--lengths 3 5 --batches 1 2 --rounds 2 --out {tmp_path}".split()
    text_encoder_speed.run(text_encoder_speed._parser().parse_args(command))
    rows = json.loads((tmp_path / "text_encoder_speed.json").read_text("utf-8"))["rows"]
    assert len(rows) == 5 * 2 * 2 and all(row["ms"] > 0 for row in rows)
    assert "| 2 | 5 |" in capsys.readouterr().out


def test_torchs_layers_give_what_ours_give():
    """They are timed in place of ours, so they must do the same work."""
    networks = text_encoder_speed.make_networks(8, "cpu")
    ids = torch.randint(700, (2, 6))
    for cell in ("lstm", "rnn"):
        ours, theirs = networks[cell], networks[f"{cell}, torch's"]
        state = ours.state_dict()
        for i in range(4):
            layer, cell_name = (
                f"text_model.layers.{i}.recurrence",
                f"text_model.layers.{i}.recurrence.cell",
            )
            state[f"{layer}.layer.weight_ih_l0"] = state.pop(f"{cell_name}.from_input.weight")
            bias = state.pop(f"{cell_name}.from_input.bias")
            state[f"{layer}.layer.bias_ih_l0"] = bias
            state[f"{layer}.layer.bias_hh_l0"] = torch.zeros_like(bias)
            state[f"{layer}.layer.weight_hh_l0"] = state.pop(f"{cell_name}.from_state.weight")
        theirs.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(theirs(ids).last_hidden_state, ours(ids).last_hidden_state)
