"""Text-to-image diffusion in which you can see and steer how a prompt controls the picture.

The names below are loaded when they are first used, so `import sdcore` costs next to nothing.
The way from prompt to picture: tokenizer, text_encoder, attention, transformer, unet, guidance,
schedulers, autoencoder, pipeline.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdcore.attention import Site as Site
    from sdcore.attention import use_attention as use_attention
    from sdcore.autoencoder import Autoencoder as Autoencoder
    from sdcore.pipeline import TextToImage as TextToImage
    from sdcore.schedulers import make_scheduler as make_scheduler
    from sdcore.text_encoder import CLIPTextConfig as CLIPTextConfig
    from sdcore.text_encoder import CLIPTextEncoder as CLIPTextEncoder
    from sdcore.tokenizer import Tokenizer as Tokenizer
    from sdcore.unet import UNet as UNet
    from sdcore.unet import UNetConfig as UNetConfig

__version__ = "0.1.0"

_HOME = {
    "TextToImage": "pipeline",
    "UNet": "unet",
    "UNetConfig": "unet",
    "CLIPTextEncoder": "text_encoder",
    "CLIPTextConfig": "text_encoder",
    "Tokenizer": "tokenizer",
    "Autoencoder": "autoencoder",
    "Site": "attention",
    "use_attention": "attention",
    "make_scheduler": "schedulers",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sdcore' has no attribute {name!r}")
    value = getattr(import_module(f"sdcore.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
