from __future__ import annotations

import pytest

from sdcore.kernels import attention, convolution
from sdcore.kernels import library as libraries
from sdcore.kernels.library import VARIANTS, Library


def built() -> list[Library]:
    """The libraries that this processor runs, not only the best of them."""
    found = [
        Library(path, name) for name in VARIANTS for path in libraries.HERE.glob(f"native_{name}.*")
    ]
    return [library for library in found if library.runs_here()]


BUILT = built()


@pytest.fixture(params=BUILT, ids=[library.name for library in BUILT])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    for kernel in (attention, convolution):
        monkeypatch.setattr(kernel, "library", lambda: request.param)
    return request.param
