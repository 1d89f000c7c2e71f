"""The native kernels under the sanitizers of addresses and of undefined behaviour."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_no_read_or_write_beyond_its_memory(tmp_path: Path) -> None:
    """The same source under the sanitizers of addresses and of undefined behaviour."""
    for name, flags in (("avx2", ["-mavx2", "-mfma"]), ("plain", [])):
        checked = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
        path = tmp_path / f"{name}.so"
        sources = sorted(str(path) for path in (ROOT / "sdcore/kernels").glob("*.cpp"))
        build = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", *checked, *flags]
        subprocess.run([*build, *sources, "-o", str(path)], check=True)
        asan, runtime = (
            subprocess.run(
                ["g++", f"-print-file-name={file}"], check=True, capture_output=True, text=True
            ).stdout.strip()
            for file in ("libasan.so", "libubsan.so")
        )
        environment = {
            **os.environ,
            "LD_PRELOAD": f"{asan}:{runtime}",
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": str(ROOT),
            "PYTHONMALLOC": "malloc",
        }
        script = ROOT / "tests/kernels/sanitized.py"
        done = subprocess.run(
            [sys.executable, str(script), str(path)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["400", "attentions", "200", "convolutions", "equal"]
