"""What starts every command."""

from __future__ import annotations

import subprocess
import sys


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
