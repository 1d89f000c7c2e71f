"""What starts every command."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sdcore.app import model_choice


def test_commands_start_without_torchs_compiler_and_leave_it_to_whoever_wants_it() -> None:
    code = """
import sys
from argparse import Namespace
from sdcore.app import command

def work(_):
    from sdcore.image.autoencoder import Autoencoder
    import diffusers, torch
    print("torch._dynamo" in sys.modules, end=" ")
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    print(compiled(torch.ones(1)).item(), "torch._dynamo" in sys.modules)

sys.exit(command.run(work, lambda arguments, options: None, []))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False 2.0 True\n"), done.stderr


def test_the_best_device_is_cuda_then_apples_then_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, best in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert model_choice._best_device() == best
        precision = {"cuda": "fp16", "mps": "fp32"}.get(best)
        assert precision is None or model_choice._best_precision(best, small=False) == precision


@pytest.mark.parametrize(("given", "found"), [({}, "50000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "")])
def test_threads_wait_less_busily_where_nobody_says_how(given: dict, found: str) -> None:
    code = """
import os, sys
from sdcore.app import command

def work(_):
    print(os.environ.get("GOMP_SPINCOUNT", ""))

command._import_without_compiler = lambda: None
sys.exit(command.run(work, lambda arguments, options: None, []))
"""
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**kept, **given}
    )
    assert (done.returncode, done.stdout) == (0, f"{found}\n"), done.stderr
