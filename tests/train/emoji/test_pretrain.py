"""The recipes of autoencoder and text encoder: a few steps, and what they export opens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL

from sdcore import Autoencoder, CLIPTextEncoder, Tokenizer
from sdcore.training.run_settings import RunSettings
from tests.train.emoji.tiny_recipe import write_drawings, write_networks
from train.emoji import enlarge_autoencoder, pretrain_autoencoder, pretrain_text_encoder
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings
from train.emoji.pretrain_unet import Source, UNetSettings, build


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


def test_the_autoencoder_of_pictures_twice_as_large(data: DataSettings, tmp_path: Path) -> None:
    old = pretrain_autoencoder.AutoencoderSettings(
        data=data, block_out_channels=[8, 8, 16], run=loop(tmp_path / "a", 1)
    )
    pretrain_autoencoder.train(old)
    before = Autoencoder.from_pretrained(tmp_path / "a" / "vae")
    made = enlarge_autoencoder.enlarged(
        AutoencoderKL.from_pretrained(tmp_path / "a" / "vae"), first_channels=8
    )
    for ours, theirs in (("down_blocks.1", "down_blocks.0"), ("mid_block", "mid_block")):
        state, known = made.encoder.state_dict(), before.encoder.state_dict()
        names = [name for name in state if name.startswith(ours)]
        assert names
        for name in names:
            assert torch.equal(state[name], known[name.replace(ours, theirs)]), name
    settings = enlarge_autoencoder.EnlargingSettings(
        data=data,
        start_from=str(tmp_path / "a" / "vae"),
        first_channels=8,
        own_words=0.0,
        run=loop(tmp_path / "b", 12).model_copy(update={"warmup_steps": 1}),
    )
    enlarge_autoencoder.train(settings)
    found = rows(tmp_path / "b", "metrics.jsonl")
    assert found[-1]["latent"] < found[0]["latent"] and found[-1]["loss"] < found[0]["loss"]
    keys = {"psnr_db", "psnr_own_db", "latent_error", "crispness"}
    assert keys <= rows(tmp_path / "b", "evaluation.jsonl")[0].keys()
    after = Autoencoder.from_pretrained(tmp_path / "b" / "vae")
    assert after.factor == 2 * before.factor
    assert after.config.scaling_factor == before.config.scaling_factor
    large, small = torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 64, 64)
    assert after.encode(large).shape == before.encode(small).shape

    # A UNet that is trained in its latents is shown the scenes in its size, on the same grid.
    (tmp_path / "unet_run").mkdir()
    parts = write_networks(tmp_path) | {"autoencoder": str(tmp_path / "b" / "vae")}
    unet = UNetSettings(data=data, **parts, run=loop(tmp_path / "unet_run", 1))
    source = Source(unet, Scenes(data))
    assert build(unet, source.autoencoder).unet.config.sample_size == 16
    assert source.batch(0, 2).latents.shape[2:] == (16, 16)


def test_crispness_is_one_of_the_picture_itself_and_less_of_a_soft_one() -> None:
    torch.manual_seed(0)
    image = (torch.rand(2, 3, 16, 16) > 0.5).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    soft = torch.nn.functional.avg_pool2d(image, 3, stride=1, padding=1)
    assert enlarge_autoencoder.crispness(image, image) == pytest.approx(1)
    assert enlarge_autoencoder.crispness(soft, image) < 0.6
    assert enlarge_autoencoder.psnr(soft, image) < enlarge_autoencoder.psnr(image, image)


def test_a_unet_whose_convolutions_rest_and_scenes_in_newcomers_words(
    data: DataSettings, tmp_path: Path
) -> None:
    (tmp_path / "unet_run").mkdir()
    settings = UNetSettings(
        data=data,
        **write_networks(tmp_path),
        own_words=1.0,
        train_convolutions=False,
        grounding=0.1,
        run=loop(tmp_path / "unet_run", 3),
    )
    source = Source(settings, Scenes(data, own_words=settings.own_words))
    network = build(settings, source.autoencoder)
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert {name for name in trained if name.startswith("unet.")} == {
        name for name, _ in network.named_parameters() if ".attentions." in name
    }
    assert any(name.startswith("text_encoder.") for name in trained)
    batch = source.batch(0, 32)
    assert any(len(scene.objects) == 3 for scene in batch.scenes)
    grounding = source.grounding(batch)
    network(batch.latents, 500, batch.tokens.ids, grounding)
    assert 0 < float(grounding.loss()) < 1


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
