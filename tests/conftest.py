"""What all tests share: threads, the gpu marker, and tiny model folders written by diffusers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# torch and diffusers are imported where they are used: the process that hands tests out to workers
# reads this file, too, and has no use for them.

# How fast a machine draws examples, beside other tests, says nothing about what is tested.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One core's worth: tiny tensors gain nothing from more, and results do not depend on it."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or changes what sdcore found out about the machine it runs on; and on every
    machine commands paint in float32 and with torch's convolutions where a test does not say
    otherwise.
    """
    import torch

    from sdcore.kernels.library import VARIANTS
    from sdcore.machine import remembered

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDCORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        for number in {1, 2, threads, os.cpu_count() or 1}:
            torch.set_num_threads(number)
            remembered("bfloat16", lambda: 1.0)
            for native in VARIANTS:
                remembered(f"convolution {native}", lambda: 1.0)
        torch.set_num_threads(threads)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if "gpu" in item.keywords]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where a test computes: on the CPU, and on a CUDA device where there is one."""
    return request.param


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> Any:
    """The type in which a test computes."""
    import torch

    return getattr(torch, request.param)


@pytest.fixture(scope="module")
def few_captions() -> Iterator[None]:
    """Exports look through fewer captions for the words around the names of things."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.emoji.data.words.CAPTIONS", 200)
        yield


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the layout of Stable Diffusion 1.5, written by diffusers."""
    from tests import tiny

    return tiny.write_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the layout of Stable Diffusion 2.1: v-prediction, linear projection."""
    from tests import tiny

    return tiny.write_sd2(tmp_path_factory.mktemp("sd2"))


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the layout of Stable Diffusion XL, with both text encoders."""
    from tests import tiny

    return tiny.write_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def refiner_folder(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the layout of Stable Diffusion XL's refiner, with `sdxl_folder`'s parts."""
    from tests import tiny

    return tiny.write_refiner(tmp_path_factory.mktemp("refiner"), sdxl_folder)


@pytest.fixture(scope="session")
def models_read() -> dict[tuple[str, ...], Any]:
    return {}


@pytest.fixture
def read_once(
    sd_folder: Path,
    sdxl_folder: Path,
    models_read: dict[tuple[str, ...], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`TextToImage.from_pretrained` reads the same model but once.

    For tests of commands, each of which would read it: that a call leaves nothing on its model is
    held by tests/reliability/test_calls_share_nothing.py.
    """
    from sdcore import TextToImage
    from sdcore.pipeline.text_to_image import EMBEDDED

    real = TextToImage.from_pretrained
    stay = {str(folder) for folder in (sd_folder, sdxl_folder, EMBEDDED)}

    def read(folder: str | Path, **how: Any) -> TextToImage:
        if str(folder) not in stay:
            return real(folder, **how)
        key = (str(folder), *(f"{name}={value}" for name, value in sorted(how.items())))
        if key not in models_read:
            models_read[key] = real(folder, **how)
        return models_read[key]

    monkeypatch.setattr(TextToImage, "from_pretrained", read)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium; what needs it is skipped where there is none."""
    from tests.browser import start_browser

    started = start_browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()
