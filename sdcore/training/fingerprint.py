"""What tells models, and what is trained on, from others: hashes, for caches and for resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sdcore.training.data.captions import full_caption
from sdcore.training.data.scanned import Scanned

_SHOWN = 64  # numbers of each tensor that tell a model from others


def what_it_computes(*networks: nn.Module) -> str:
    """All that what networks compute depends on, but for what they are called with."""
    hashes = (f"{_hash(each, None)} {next(each.parameters()).dtype}" for each in networks)
    return f"{' '.join(hashes)} {torch.__version__}"


def of_networks(networks: Iterable[nn.Module]) -> str:
    """The hash of the beginning of each tensor of a model."""
    texts = [_hash(network, _SHOWN) for network in networks]
    return hashlib.blake2b(" ".join(texts).encode(), digest_size=16).hexdigest()


def of_pictures(pictures: Iterable[Scanned]) -> str:
    """The hash of what is trained on: contents, captions and repeats, in their order."""
    rows = [_row(picture) for picture in pictures]
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


def _row(picture: Scanned) -> list[Any]:
    item = picture.item
    return [picture.digest, full_caption(item), item.repeats, item.prior]


def _hash(network: nn.Module, most: int | None) -> str:
    """The hash of a network's parameters, or of so many numbers of each."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in network.named_parameters():
        numbers = parameter.detach().flatten()[:most].cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
