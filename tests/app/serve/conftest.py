"""A server that listens, with a tiny model, and a folder with another one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from sdcore.app.adapters import Adapters
from sdcore.app.model_choice import ModelChoice
from sdcore.app.model_folders import ModelFolders
from sdcore.app.serve.asked import Door
from sdcore.app.serve.models import Models
from sdcore.app.serve.painter import Painter
from sdcore.app.serve.web import make_app
from sdcore.job.budget import Budget


@dataclass
class Live:
    """A server that listens."""

    url: str
    door: Door
    painter: Painter

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def listening(door: Door, painter: Painter, token: str | None = None) -> Iterator[Live]:
    taken = socket.create_server(("127.0.0.1", 0))
    app = make_app(door, painter, token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
    thread.start()
    try:
        yield Live(f"http://127.0.0.1:{taken.getsockname()[1]}", door, painter)
    finally:
        server.should_exit = True
        thread.join(30)
        taken.close()


@pytest.fixture(scope="package")
def live(
    sd_folder: Path, sd2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    root = tmp_path_factory.mktemp("models")
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / "second").symlink_to(sd2_folder)
    folders = ModelFolders({"checkpoints": (root / "checkpoints",)})
    models = Models(ModelChoice(str(sd_folder)), Adapters(folders=folders))
    with listening(Door(models, Budget(images=8)), Painter(models)) as server:
        yield server


@pytest.fixture
def ask(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=120, trust_env=False) as client:
        yield client
