"""What the recipe of the UNet reads, tiny: drawings, tokenizer, text encoder, autoencoder, UNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.numpy import save_file

from sdcore.files.saving import save_component
from sdcore.text.encoder import CLIPTextConfig, CLIPTextEncoder
from sdcore.text.tokenizer import END, START, Tokenizer
from sdcore.unet.unet import UNet, UNetConfig
from train.emoji.data.settings import DataSettings
from train.emoji.data.vocabulary import learn_vocabulary

TOKENS = 77  # nearly every byte is a token of its own


def write_drawings(data: DataSettings) -> None:
    """Plain squares, each of its own colour, in the settings' folder."""
    random, side = np.random.default_rng(0), 16
    pictures = {}
    for style in data.styles:
        for concept in data.concepts:
            picture = np.full((side, side, 4), 255, np.uint8)
            picture[..., :3] = random.integers(0, 256, 3)
            pictures[f"{style}/{concept}"] = picture
    save_file(pictures, Path(data.folder) / "drawings.safetensors")


def write_networks(folder: Path) -> dict[str, str]:
    """The networks in a folder; gives the settings that name them."""
    torch.manual_seed(0)
    vocabulary, merges = learn_vocabulary(["a fox on red", "一只狐狸，红色背景"], 560)
    text = CLIPTextEncoder(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            projection_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            pad_token_id=vocabulary[END],
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
        )
    )
    tokenizer = Tokenizer.from_vocab(vocabulary, merges, max_length=TOKENS)
    tokenizer.save_pretrained(folder / "tokenizer")
    text.save_pretrained(folder / "text_encoder")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
    ).save_pretrained(folder / "vae")
    unet = UNetConfig(
        sample_size=16,
        block_out_channels=(16, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=16,
    )
    save_component(UNet(unet), folder / "unet")
    return {
        "autoencoder": str(folder / "vae"),
        "text_encoder": str(folder),
        "start_from": str(folder / "unet"),
    }
