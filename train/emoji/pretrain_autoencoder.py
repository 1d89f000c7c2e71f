"""Recipe (a): the autoencoder of the embedded model, diffusers' `AutoencoderKL` at emoji size.

    python -m train.emoji.pretrain_autoencoder
    python -m train.emoji.pretrain_autoencoder run.batch_size=256     # on a GPU
    python -m train.emoji.pretrain_autoencoder start_from=sdcore/models/emoji/vae decoder_only=true

The last one sharpens what a trained UNet paints: the latents stay what that UNet has learned.
Loss: L1 + L1 of the image gradients (keeps edges) + a small KL, which keeps the latents smooth
(Rombach et al. 2022, arXiv:2112.10752, without the adversarial part: drawings have no texture to
invent). The exported folder holds `scaling_factor` = 1 / standard deviation of the latents.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor

from sdcore.files.atomic import replace_file
from sdcore.training.command import main
from sdcore.training.run import Run
from sdcore.training.run_settings import RunSettings
from sdcore.training.state import generator
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings, SceneSettings


class AutoencoderSettings(SceneSettings):
    block_out_channels: list[int] = [32, 64, 128]
    latent_channels: int = 4
    kl_weight: float = 5e-4
    squared_weight: float = 0.0  # of the mean squared error, which PSNR counts
    equivariance_weight: float = 0.0  # of turned and halved latents; see `turned_and_halved`
    start_from: str = ""  # folder of an autoencoder whose weights to begin with; empty: random ones
    decoder_only: bool = False  # leave the encoder, and so the latents, as they are
    run: RunSettings


def build(settings: AutoencoderSettings, image_size: int) -> AutoencoderKL:
    if settings.start_from:
        model = AutoencoderKL.from_pretrained(settings.start_from, torch_dtype=torch.float32)
        assert isinstance(model, AutoencoderKL)
        return model
    levels = len(settings.block_out_channels)
    blocks: dict[str, Any] = {  # annotated as tuples of one
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": settings.block_out_channels,
    }
    return AutoencoderKL(
        **blocks,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
        sample_size=image_size,
    )


def images(scenes: Scenes, seed: int, step: int, count: int) -> Tensor:
    """Batch number `step` of scene pictures: (count, 3, H, W) in [-1, 1]."""
    return scenes.images([scenes.scene(seed, step * count + i) for i in range(count)])


def draw_latents(model: AutoencoderKL, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Picture -> (latents that `noise` (B, C, h, w) picks, mean KL per latent value)."""
    assert model.quant_conv is not None
    with torch.set_grad_enabled(model.quant_conv.weight.requires_grad):
        posterior = encode(model, image)
    return posterior.mean + posterior.std * noise, posterior.kl().mean() / noise[0].numel()


def encode(model: AutoencoderKL, image: Tensor) -> Any:
    """The distribution of a picture's latents, which has `mean`, `std` and `kl()`."""
    answer: Any = model.encode(image)
    return answer.latent_dist


def decode(model: AutoencoderKL, latents: Any) -> Tensor:
    """The picture (B, 3, H, W) that latents (B, C, h, w) stand for."""
    answer: Any = model.decode(latents)
    return answer.sample


def turned_and_halved(x: Tensor, turns: int) -> Tensor:
    """Pictures or latents (B, C, h, w) at half their size, turned by quarters: (B, C, h/2, w/2).

    Latents that mean the same when they are turned or shrunk as pictures do are smooth, and a UNet
    learns them sooner (EQ-VAE, Kouzelis et al. 2025, arXiv:2502.09509; there other sizes as well).
    """
    return F.avg_pool2d(torch.rot90(x, turns, (2, 3)), 2)


def reconstruction_loss(output: Tensor, image: Tensor, edge_weight: float = 1.0) -> Tensor:
    """Mean L1 of the pixels, and `edge_weight` times that of their gradients.

    Gradients are the differences to the right and to the lower neighbour.
    """
    difference = output - image
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + edge_weight * edges


def train(settings: AutoencoderSettings) -> None:
    settings = settings.with_data()
    data = settings.data
    assert isinstance(data, DataSettings)
    scenes = Scenes(data)
    unseen = Scenes(data, held_out=True) if data.held_out_pairs() else scenes
    torch.manual_seed(settings.run.seed)
    built: Any = build(settings, data.image_size)
    model: AutoencoderKL = built.to(memory_format=torch.channels_last)
    if settings.decoder_only:
        assert model.quant_conv is not None
        for part in (model.encoder, model.quant_conv):
            part.requires_grad_(False)
    run = Run(settings, settings.run, model)
    factor = 2 ** (len(model.config["block_out_channels"]) - 1)
    shape = (model.config["latent_channels"], *[data.image_size // factor] * 2)
    check = images(unseen, seed=1, step=0, count=128).to(run.device)

    for step in run.steps():
        image = images(scenes, settings.run.seed, step, settings.run.batch_size)
        image = image.to(run.device, memory_format=torch.channels_last)
        draws = [generator(settings.run.seed, "latent", step, i) for i in range(len(image))]
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
        turns, moved = step % 4, None
        with run.autocast():
            latents, kl = draw_latents(model, image, noise.to(image.device))
            output = decode(model, latents)
            if settings.equivariance_weight:
                moved = decode(model, turned_and_halved(latents, turns))
        losses = {
            "loss": reconstruction_loss(output.float(), image),
            "squared": F.mse_loss(output.float(), image),
            "kl": kl,
        }
        total = losses["loss"] + settings.squared_weight * losses["squared"]
        total += settings.kl_weight * kl
        if moved is not None:
            losses["moved"] = reconstruction_loss(moved.float(), turned_and_halved(image, turns))
            total += settings.equivariance_weight * losses["moved"]
        run.log(**losses, grad_norm=run.update(total))
        if (step + 1) % settings.run.sample_every == 0:
            evaluate(run, model, check)

    if not settings.decoder_only:
        set_scale(run, model, scenes)
    model.save_pretrained(run.folder / "vae")


@torch.no_grad()
def evaluate(run: Run, model: AutoencoderKL, image: Tensor) -> None:
    """PSNR, of held-out (style, concept) pairs if there are any; originals over outputs."""
    output = decode(model, encode(model, image).mean).clamp(-1, 1)
    error = F.mse_loss(output / 2, image / 2, reduction="none").mean(dim=(1, 2, 3))
    run.write(
        "evaluation.jsonl", {"step": run.step + 1, "psnr_db": float(-10 * error.log10().mean())}
    )
    rows = torch.cat([image[:16], output[:16]], dim=0).add(1).mul(127.5).round().byte().cpu()
    grid = torch.cat([torch.cat(list(rows[i : i + 16]), dim=2) for i in (0, 16)], dim=1)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    replace_file(run.folder / "reconstructions.png", picture.save)


@torch.no_grad()
def set_scale(run: Run, model: AutoencoderKL, scenes: Scenes) -> None:
    """Note the scale that gives latents unit variance."""
    image = images(scenes, seed=2, step=0, count=512).to(run.device)
    latents = torch.cat([encode(model, part).mean for part in image.split(64)])
    model.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    spread = latents.std(dim=(0, 2, 3)).mul(model.config["scaling_factor"]).tolist()
    run.write(
        "evaluation.jsonl", {"step": run.step, **{f"std_{i}": s for i, s in enumerate(spread)}}
    )


if __name__ == "__main__":
    main(train, AutoencoderSettings, "configs/train/emoji_autoencoder.yaml", __doc__)
