"""What all tests share: threads, the gpu marker, and tiny model folders written by diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import tiny


def pytest_configure() -> None:
    # One core's worth: tiny tensors gain nothing from threads, and results do not depend on them.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def few_captions() -> Iterator[None]:
    """Exports look through fewer captions for the words around the names of things."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.emoji.data.words.CAPTIONS", 200)
        yield


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the layout of Stable Diffusion 1.5, written by diffusers."""
    return tiny.write_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the layout of Stable Diffusion 2.1: v-prediction, linear projection."""
    return tiny.write_sd2(tmp_path_factory.mktemp("sd2"))


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the layout of Stable Diffusion XL, with both text encoders."""
    return tiny.write_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def refiner_folder(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the layout of Stable Diffusion XL's refiner, with `sdxl_folder`'s parts."""
    return tiny.write_refiner(tmp_path_factory.mktemp("refiner"), sdxl_folder)
