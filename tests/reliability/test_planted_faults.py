"""A fault in any stage of a command ends it in three parts, with no picture and no draft left.

"Something went wrong that should not have" is for faults of ours alone: this lists every stage from
which it can be reached. For the corpus of bad inputs its count is zero (test_corpus.py).
"""

from __future__ import annotations

import errno
import importlib
from pathlib import Path
from typing import Any

import pytest

from sdcore.app import paint

# stage -> what is called in it
STAGES = {
    "flags": "sdcore.app.flags.adapters",
    "jobs": "sdcore.job.job.make_jobs",
    "output": "sdcore.app.output.check_output",
    "model": "sdcore.app.model_choice.ModelChoice.load",
    "known words": "sdcore.app.session.warn_of_unknown_words",
    "prompt": "sdcore.prompt.dialects.parse_prompt",
    "text encoder": "sdcore.text.encoder.CLIPTextEncoder.forward",
    "UNet": "sdcore.unet.unet.UNet.forward",
    "loop": "sdcore.sampling.loop.denoise",
    "autoencoder": "sdcore.image.autoencoder.Autoencoder.decode",
    "pixels": "sdcore.image.pictures.to_images",
    "settings": "sdcore.metadata.png.write_parameters",
    "file": "sdcore.files.atomic._finish",
}
FAULTS: list[tuple[Exception, int, str]] = [
    (KeyError("planted"), 1, "should not have"),
    (RuntimeError("planted\nin two lines"), 1, "should not have"),
    (OSError(errno.EIO, "planted", "a.png"), 3, "a.png could not be"),
    (MemoryError("planted"), 4, "not enough memory"),
    (RuntimeError("CUDA out of memory"), 4, "not enough memory"),
]


def plant(monkeypatch: pytest.MonkeyPatch, place: str, fault: Exception) -> None:
    """Let a function fail, under every name that modules of sdcore have for it."""
    import sys

    module, _, name = place.rpartition(".")
    owner: Any = None
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:  # a method
        module, _, cls = module.rpartition(".")
        owner = getattr(importlib.import_module(module), cls)
    real = getattr(owner, name)

    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(owner, name, fail)
    for other in [m for n, m in sys.modules.items() if n.startswith("sdcore.")]:
        for known in [n for n, value in vars(other).items() if value is real]:
            monkeypatch.setattr(other, known, fail)


@pytest.mark.parametrize(("fault", "code", "said"), FAULTS, ids=lambda each: f"{each!s:.20}")
@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_in_a_stage(
    sd_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    read_once: None,
    stage: str,
    fault: Exception,
    code: int,
    said: str,
) -> None:
    plant(monkeypatch, STAGES[stage], fault)
    flags = ["--model", str(sd_folder), "--steps", "1", "--output", str(tmp_path / "out")]
    found = paint.main(["a fox", "--seed", "1", *flags])
    err = capsys.readouterr().err
    if stage in ("settings", "file") and isinstance(fault, OSError):  # the picture is written
        said = "could not be written"
    assert (found, "Traceback" in err) == (code, False), err
    message = err[err.index("error: ") :]
    assert said in message and message.count("\n  why: ") == message.count("\n  try: ") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or path.suffix == ".draft"]
