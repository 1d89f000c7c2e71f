"""The command line of a recipe: settings, exit codes, and what is said when it ends early."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdcore.training.command import main
from sdcore.training.run_settings import RunSettings
from sdcore.training.settings import Settings

ROOT = Path(__file__).parents[2]


class Recipe(Settings):
    run: RunSettings


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("run: {folder: r, steps: 1, batch_size: 1, learning_rate: 0.1}")
    return str(path)


def test_settings_reach_the_recipe(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Recipe] = []
    monkeypatch.setattr("sys.argv", ["recipe", "--config", config, "run.steps=3"])
    main(ran.append, Recipe, "unused.yaml", "doc")
    assert ran[0].run.steps == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--config", "nowhere.yaml"], 3, "nowhere.yaml is missing."),
        (["run.stepz=3"], 2, "did you mean 'steps'"),
        (["run.keep=0"], 2, "run.keep: Input should be greater than or equal to 1"),
        (["run.log_every=0"], 2, "run.log_every"),
        (["run.threads=-1"], 2, "run.threads"),
        (["run.threads=1000000"], 2, "run.threads"),  # of which the system has no so many
        (["run.steps=100000000"], 2, "run.steps"),  # of which checkpoints have no names
        (["run.batch_size=1000000000000"], 2, "run.batch_size"),
        (["run.seed=9223372036854775808"], 2, "run.seed"),
        (["run.learning_rate=.nan"], 2, "run.learning_rate"),
        (["run.steps=0"], 2, "run.steps"),
    ],
)
def test_what_does_not_fit_ends_in_three_parts(
    config: str,
    arguments: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "--config" not in arguments:
        arguments = ["--config", config, *arguments]
    monkeypatch.setattr("sys.argv", ["recipe", *arguments])
    with pytest.raises(SystemExit) as ended:
        main(lambda settings: pytest.fail("it ran"), Recipe, "unused.yaml", "doc")
    err = capsys.readouterr().err
    assert ended.value.code == code and said in err and "why:" in err and "try:" in err


def test_ctrl_c_is_no_traceback(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def recipe(settings: Recipe) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["recipe", "--config", config])
    with pytest.raises(SystemExit) as ended:
        main(recipe, Recipe, "unused.yaml", "doc")
    err = capsys.readouterr().err
    assert ended.value.code == 130 and "goes on from the newest checkpoint" in err


@pytest.mark.parametrize("name", ["yaml", "pydantic", "accelerate"])
def test_without_the_extra_one_line_says_what_to_install(name: str) -> None:
    code = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "import runpy; runpy.run_module('train.emoji.pretrain_unet', run_name='__main__')"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert f"{name} cannot be imported" in process.stderr and "sdcore[train]" in process.stderr
