"""The recipes of autoencoder and text encoder: a few steps, and what they export opens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from sdcore import Autoencoder, CLIPTextEncoder, Tokenizer
from sdcore.training.run_settings import RunSettings
from tests.train.emoji.tiny_recipe import write_drawings, write_networks
from train.emoji import pretrain_autoencoder, pretrain_text_encoder
from train.emoji.data.settings import DataSettings


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate remembers the first precision of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    settings = DataSettings(
        concepts={"fox": "fox", "cat": "cat", "tree": "tree"},
        styles={"noto": "noto", "flat": "flat"},
        held_out_combinations=[("fox", "tree")],
        folder=str(tmp_path),
    )
    write_drawings(settings)
    return settings


def loop(folder: Path, steps: int) -> RunSettings:
    return RunSettings(
        folder=str(folder),
        steps=steps,
        batch_size=4,
        learning_rate=1e-3,
        precision="no",
        log_every=1,
        sample_every=steps,
    )


def rows(folder: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def test_the_autoencoder(data: DataSettings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = pretrain_autoencoder.AutoencoderSettings(
        data=data, block_out_channels=[8, 8, 8], equivariance_weight=0.5, run=loop(run, 3)
    )
    pretrain_autoencoder.train(settings)
    losses = rows(run, "metrics.jsonl")
    assert len(losses) == 3 and {"loss", "squared", "kl", "moved"} <= losses[0].keys()
    assert rows(run, "evaluation.jsonl")[0]["psnr_db"] > 0
    assert (run / "reconstructions.png").is_file()
    autoencoder = Autoencoder.from_pretrained(run / "vae")
    assert autoencoder.factor == 4 and autoencoder.config.scaling_factor != 0.18215
    before = autoencoder.encode(torch.zeros(1, 3, 64, 64))

    settings = settings.model_copy(
        update={
            "start_from": str(run / "vae"),
            "decoder_only": True,
            "run": loop(tmp_path / "b", 1),
        }
    )
    pretrain_autoencoder.train(settings)
    after = Autoencoder.from_pretrained(tmp_path / "b" / "vae").encode(torch.zeros(1, 3, 64, 64))
    assert torch.equal(after, before), "the latents stay"


def test_the_text_encoder(data: DataSettings, tmp_path: Path) -> None:
    write_networks(tmp_path)
    run = tmp_path / "run"
    settings = pretrain_text_encoder.TextSettings(
        data=data,
        start_from=str(tmp_path),
        width=16,
        image_width=48,
        image_layers=1,
        image_patch=32,
        run=loop(run, 3),
    )
    pretrain_text_encoder.train(settings)
    found = rows(run, "metrics.jsonl")
    assert [row["shared"] for row in found] == [1, 0, 1]
    evaluation = rows(run, "evaluation.jsonl")[0]
    assert {"concept_seen", "concept_held_out"} <= evaluation.keys()
    tokenizer = Tokenizer.from_pretrained(run / "tokenizer")
    ids = tokenizer("a fox").ids
    trained, start = (
        CLIPTextEncoder.from_pretrained(folder / "text_encoder")(ids).pooled
        for folder in (run, tmp_path)
    )
    assert not torch.equal(trained, start)
