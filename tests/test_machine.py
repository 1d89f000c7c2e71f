"""What is measured on a machine is measured once, and a broken memory costs a measurement."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdcore import machine
from sdcore.app.model_choice import ModelChoice
from sdcore.machine import bfloat16_gain, remembered


def test_a_measurement_is_made_once_for_machine_torch_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCORE_CACHE", str(tmp_path / "new"))
    values = iter([1.23456, 2.0, 3.0, 4.0, 5.0])
    assert remembered("a", lambda: next(values)) == 1.23
    assert remembered("a", lambda: next(values)) == 1.23
    assert remembered("b", lambda: next(values)) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert remembered("a", lambda: next(values)) == 3
    file = tmp_path / "new" / "measured.json"
    assert list(json.loads(file.read_text()).values()) == [1.23, 2.0, 3.0]
    for torn in ("{", "[]", json.dumps(dict.fromkeys(json.loads(file.read_text()), -1))):
        file.write_text(torn)
        assert remembered("a", lambda: 4) == 4
        assert remembered("a", lambda: 5) == 4


def test_a_home_that_cannot_be_written_only_costs_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SDCORE_CACHE", str(tmp_path / "file"))
    values = iter([1, 2])
    assert [remembered("a", lambda: next(values)) for _ in range(2)] == [1, 2]


def test_the_cache_is_where_the_system_has_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDCORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert machine.cache_folder() == Path("/caches/sdcore")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert machine.cache_folder() == Path.home() / ".cache/sdcore"


def test_bfloat16_is_measured_as_it_multiplies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCORE_CACHE", str(tmp_path))
    seconds = {torch.float32: 3.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(machine, "_multiply", seconds.__getitem__)
    assert bfloat16_gain() == 1.5
    monkeypatch.undo()
    assert machine._multiply(torch.float32) > 0


@pytest.mark.parametrize(("gain", "precision"), [(1.1, "float32"), (2.5, "bfloat16")])
def test_commands_paint_in_what_the_processor_multiplies_fast(
    gain: float,
    precision: str,
    sd_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SDCORE_CACHE", str(tmp_path))
    remembered("bfloat16", lambda: gain)
    pipe = ModelChoice(str(sd_folder), device="cpu").load()
    assert pipe.dtype == getattr(torch, precision)
    assert ("multiplies it 2.5 x as fast" in capsys.readouterr().err) == (gain > 2)
    chosen = ModelChoice(str(sd_folder), device="cpu", precision="fp32").load()
    assert chosen.dtype == torch.float32
    assert ModelChoice(device="cpu").load().dtype == torch.float32  # the embedded model is small


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the allocator of Linux")
@pytest.mark.parametrize(("given", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "0"}, False)])
def test_commands_keep_what_they_free_and_hand_it_back_when_told(given: dict, kept: bool) -> None:
    code = """
import re, threading
from pathlib import Path
import torch
from sdcore.machine import keep_freed_memory, return_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

def work():
    torch.ones(100 << 20, dtype=torch.uint8)

keep_freed_memory()
before = resident()
thread = threading.Thread(target=work)
thread.start()
thread.join()
after = resident()
return_freed_memory()
print(after - before > 90, resident() - before < 50)
"""
    others = {key: v for key, v in os.environ.items() if not key.startswith("MALLOC_")}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, env={**others, **given})
    assert (done.returncode, done.stdout) == (0, f"{kept} True\n"), done.stderr
