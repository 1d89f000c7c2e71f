"""An autoencoder of pictures twice as large whose latents are those that a trained UNet knows.

    python -m train.emoji.enlarge_autoencoder

A level is put before the encoder and behind the decoder of a trained autoencoder: factor 4 becomes
factor 8, Stable Diffusion's own, and the grid of latents stays as it is. The encoder is taught to
say of the large picture what the old one says of the small picture of the same scene; the decoder,
to draw the large picture from that. The UNet is not touched and paints twice as large afterwards.

Loss of the decoder: L1 + `edge_weight` times the L1 of the image gradients, which keeps outlines
crisp + `squared_weight` times the squared error. Loss of the encoder: the squared error of the
latents, which have unit variance. `evaluation.jsonl` has, on scenes of held-out drawings:

    psnr_db          of the decoder, from the old encoder's latents
    psnr_own_db      of encoder and decoder together
    latent_error     mean squared error of the new encoder's latents
    crispness        mean gradient at the originals' outlines, in shares of theirs; 1: as crisp
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
from train.emoji.data.layout import Scene
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings, SceneSettings
from train.emoji.pretrain_autoencoder import decode, encode, reconstruction_loss

OUTLINES = 0.05  # share of the pixels: those with the largest gradient
SHOWN = 8  # pictures in a row of reconstructions.png


class EnlargingSettings(SceneSettings):
    start_from: str = "runs/emoji/autoencoder/vae"
    first_channels: int = 16  # of the new level
    edge_weight: float = 1.0
    squared_weight: float = 5.0
    latent_weight: float = 1.0  # of the encoder's loss
    latent_noise: float = 0.05  # that the decoder bears: what a UNet paints is not exact
    own_words: float = 0.5  # share of scenes with recoloured things and groups
    run: RunSettings


def enlarged(old: AutoencoderKL, first_channels: int) -> AutoencoderKL:
    """The autoencoder with one level more, whose other levels have the weights of `old`."""
    config: Any = dict(old.config)
    levels = len(config["block_out_channels"])
    config["block_out_channels"] = (first_channels, *config["block_out_channels"])
    config["down_block_types"] = ("DownEncoderBlock2D",) * (levels + 1)
    config["up_block_types"] = ("UpDecoderBlock2D",) * (levels + 1)
    config["sample_size"] *= 2
    made: Any = AutoencoderKL.from_config(config)
    state = made.state_dict()
    for name, weight in old.state_dict().items():
        place = name
        if name.startswith("encoder.down_blocks."):
            level, rest = name.removeprefix("encoder.down_blocks.").split(".", 1)
            place = f"encoder.down_blocks.{int(level) + 1}.{rest}"
        if place in state and state[place].shape == weight.shape:
            state[place] = weight
    made.load_state_dict(state)
    return made


def pictures(scenes: Scenes, chosen: list[Scene], device: torch.device) -> tuple[Tensor, Tensor]:
    """The scenes as the old autoencoder sees them (B, 3, H, W), and twice as large."""
    side = scenes.settings.image_size
    small, large = (scenes.images(chosen, side=side * k).to(device) for k in (1, 2))
    return small, large.contiguous(memory_format=torch.channels_last)


def train(settings: EnlargingSettings) -> None:
    settings = settings.with_data()
    data = settings.data
    assert isinstance(data, DataSettings)
    scenes = Scenes(data, own_words=settings.own_words)
    unseen = Scenes(data, held_out=True) if data.held_out_pairs() else scenes
    torch.manual_seed(settings.run.seed)
    old: Any = AutoencoderKL.from_pretrained(settings.start_from, torch_dtype=torch.float32)
    built: Any = enlarged(old, settings.first_channels)
    model: AutoencoderKL = built.to(memory_format=torch.channels_last)
    run = Run(settings, settings.run, model)
    old = old.eval().requires_grad_(False).to(run.device)
    scale = float(old.config["scaling_factor"])
    check = pictures(unseen, [unseen.scene(1, i) for i in range(96)], run.device)

    for step in run.steps():
        size = settings.run.batch_size
        chosen = [scenes.scene(settings.run.seed, step * size + i) for i in range(size)]
        small, large = pictures(scenes, chosen, run.device)
        with run.autocast():
            known = encode(old, small).mean
            draws = [generator(settings.run.seed, "latent", step, i) for i in range(size)]
            noise = torch.stack([torch.randn(known.shape[1:], generator=draw) for draw in draws])
            noise = noise.to(known.device) * (settings.latent_noise / scale)
            said = encode(model, large).mean
            drawn = decode(model, known + noise).float()
        losses = {
            "loss": reconstruction_loss(drawn, large, settings.edge_weight),
            "squared": F.mse_loss(drawn, large),
            "latent": F.mse_loss(said.float() * scale, known.float() * scale),
        }
        total = losses["loss"] + settings.squared_weight * losses["squared"]
        total += settings.latent_weight * losses["latent"]
        run.log(**losses, grad_norm=run.update(total))
        if (step + 1) % settings.run.sample_every == 0:
            with run.averaged():
                evaluate(run, old, model, *check)

    with run.averaged():
        model.save_pretrained(run.folder / "vae")


@torch.no_grad()
def evaluate(
    run: Run, old: AutoencoderKL, model: AutoencoderKL, small: Tensor, large: Tensor
) -> None:
    """A row of figures, and `reconstructions.png`: originals over outputs."""
    scale = float(old.config["scaling_factor"])
    known = torch.cat([encode(old, part).mean for part in small.split(16)])
    said = torch.cat([encode(model, part).mean for part in large.split(16)])
    drawn, own = (
        torch.cat([decode(model, part) for part in latents.split(16)]).clamp(-1, 1)
        for latents in (known, said)
    )
    run.write(
        "evaluation.jsonl",
        {
            "step": run.step + 1,
            "psnr_db": psnr(drawn, large),
            "psnr_own_db": psnr(own, large),
            "latent_error": float(F.mse_loss(said * scale, known * scale)),
            "crispness": crispness(drawn, large),
        },
    )
    rows = torch.cat([large[:SHOWN], drawn[:SHOWN]]).add(1).mul(127.5).round().byte().cpu()
    grid = torch.cat([torch.cat(list(rows[i : i + SHOWN]), dim=2) for i in (0, SHOWN)], dim=1)
    replace_file(
        run.folder / "reconstructions.png", Image.fromarray(grid.permute(1, 2, 0).numpy()).save
    )


def psnr(output: Tensor, image: Tensor) -> float:
    """Mean of the pictures' peak signal-to-noise ratios in decibels; pixels in [-1, 1]."""
    error = F.mse_loss(output / 2, image / 2, reduction="none").mean(dim=(1, 2, 3))
    return float(-10 * error.clamp(min=1e-10).log10().mean())


def crispness(output: Tensor, image: Tensor) -> float:
    """Mean gradient at the outlines of `image`, in shares of the gradient that they have there."""
    seen, there = _gradient(output), _gradient(image)
    outlines = there >= torch.quantile(there[:16].flatten(), 1 - OUTLINES)
    return float(seen[outlines].mean() / there[outlines].mean().clamp(min=1e-6))


def _gradient(image: Tensor) -> Tensor:
    """Length of the difference to the right and lower neighbours: (B, H - 1, W - 1)."""
    across = image.diff(dim=-1)[..., :-1, :].square().sum(1)
    down = image.diff(dim=-2)[..., :-1].square().sum(1)
    return (across + down).sqrt()


if __name__ == "__main__":
    main(train, EnlargingSettings, "configs/train/emoji_enlarging.yaml", __doc__)
