"""configs/train/gpu.yaml, tiny and on the CPU: it trains, is killed, and resumes to the bit."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

from sdcore import TextToImage
from sdcore.training.settings import load_settings
from sdcore.training.state import latest_checkpoint, load_checkpoint
from sdcore.unet.unet import UNet
from tests.train.emoji.tiny_recipe import write_drawings, write_networks
from train.emoji.data.settings import DataSettings
from train.emoji.pretrain_unet import Check, UNetSettings, train

ROOT = Path(__file__).parents[3]
CONFIG = "configs/train/gpu.yaml"
STEPS, EVERY = 5, 1


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate remembers the first precision of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All that makes it small: networks of a few weights, drawings of one pixel, few steps."""
    folder = tmp_path_factory.mktemp("gpu")
    data_file = ROOT / "configs" / "train" / "emoji_data.yaml"
    values = yaml.safe_load(data_file.read_text("utf-8"))
    (folder / "data.yaml").write_text(yaml.safe_dump(values | {"folder": str(folder)}), "utf-8")
    data = load_settings(DataSettings, folder / "data.yaml")
    write_drawings(data)
    run = {"steps": STEPS, "batch_size": 4, "warmup_steps": 3, "checkpoint_every": EVERY}
    run |= {"sample_every": STEPS, "log_every": 5, "threads": 1}
    small = {"data": str(folder / "data.yaml"), **write_networks(folder)}
    return [f"{key}={value}" for key, value in small.items()] + [
        f"run.{key}={value}" for key, value in run.items()
    ]


@pytest.mark.usefixtures("few_captions")
@pytest.mark.slow
def test_killed_and_resumed_is_straight_to_the_bit(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Check, "TIMES", (900,))  # of the losses that are noted beside samples
    killed = [*overrides, f"run.folder={tmp_path / 'killed'}"]
    command = [sys.executable, "-m", "train.emoji.pretrain_unet", "--config", CONFIG, *killed]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while latest_checkpoint(tmp_path / "killed" / "checkpoints") is None:
        assert process.poll() is None and process.stderr, process.communicate()[1].decode()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    reached = latest_checkpoint(tmp_path / "killed" / "checkpoints")
    assert reached is not None and load_checkpoint(reached)[0] < STEPS

    train(load_settings(UNetSettings, ROOT / CONFIG, killed))
    straight = [*overrides, f"run.folder={tmp_path / 'straight'}", f"run.sample_every={STEPS + 1}"]
    train(load_settings(UNetSettings, ROOT / CONFIG, straight))
    ends = []
    for name in ("killed", "straight"):
        path = latest_checkpoint(tmp_path / name / "checkpoints")
        assert path is not None
        ends.append(load_checkpoint(path))
    (step, resumed), (last, at_once) = ends
    assert step == last == STEPS and resumed.keys() == at_once.keys()
    assert {"model", "optimizer", "average"} <= resumed.keys()
    for part, tensors in at_once.items():
        different = [key for key, t in tensors.items() if not torch.equal(resumed[part][key], t)]
        assert tensors.keys() == resumed[part].keys() and not different
    start = UNet.from_pretrained(next(o for o in overrides if "start_from" in o).split("=")[1])
    weight = start.state_dict()["conv_in.weight"]
    assert not torch.equal(weight, at_once["model"]["unet.conv_in.weight"]), "it has trained"
    assert torch.allclose(weight, at_once["model"]["unet.conv_in.weight"], atol=0.05), "from it"
    samples = tmp_path / "killed" / "samples"
    assert len((samples / "captions.txt").read_text("utf-8").splitlines()) == 16
    assert Image.open(samples / f"step-{STEPS:06d}.png").size == (8 * 64, 4 * 64)
    assert TextToImage.from_pretrained(tmp_path / "killed" / "model")("一只狐狸", steps=1).images
