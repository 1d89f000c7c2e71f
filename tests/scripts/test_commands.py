"""The scripts as files: each is its command, says what it takes, and loads little for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sdcore.app.cli import COMMANDS

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "sample").glob("[a-z]*.py"))
HEAVY = ("torch", "numpy", "PIL", "diffusers", "transformers", "pydantic")
# Runs each of the commands with --help, and says what it printed and what it loaded.
ASK_ALL = """
import contextlib, io, json, runpy, sys
answers = {}
for command in sys.argv[1:]:
    (module, *sys.argv[1:]), said = [*command.split(), "--help"], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__")
    answers[command] = [said.getvalue(), [m for m in %r if m in sys.modules]]
print(json.dumps(answers))
"""


def test_help_loads_nothing_heavy() -> None:
    names = ["sdcore", *(f"sdcore {name}" for name in COMMANDS)]
    names += [f"sample.{name}" for name in SCRIPTS]
    names += [f"bench.{name}" for name in ("heatmap_truth", "model_card", "prompt_control")]
    command = [sys.executable, "-c", ASK_ALL % (HEAVY,), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    answers = json.loads(done.stdout)
    assert list(answers) == names
    for name, (said, loaded) in answers.items():
        assert said.startswith("usage:") and not loaded, (name, loaded)


def test_a_model_is_inspected_without_torch(sd_folder: Path) -> None:
    code = "import runpy, sys\ntry: runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    code += "finally: assert 'torch' not in sys.modules"
    script = ROOT / "sample" / "inspect_model.py"
    command = [sys.executable, "-c", code, str(script), str(sd_folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["pipeline"] == "StableDiffusionPipeline"


def test_a_terminal_that_cannot_show_a_name_ends_no_run(sd_folder: Path, tmp_path: Path) -> None:
    script = str(ROOT / "sample" / "text_to_image.py")
    command = [
        sys.executable,
        script,
        "一只狐狸",
        "a fox",
        "--model",
        str(sd_folder),
        "--steps",
        "1",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command += ["--output", str(tmp_path), "--batch-size", "1"]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert len(done.stdout.splitlines()) == 2
    assert {path.name for path in tmp_path.glob("*.png")} == {"一只狐狸.png", "a-fox.png"}
