"""The command that trains: what its line may say, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdcore.app.train import main
from tests.training.fine_tuning import QUICK, write_pictures


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "5", "data=pics"], "Settings have no dashes, as run.steps=500; `"),
        (["--run.steps=5", "data=pics"], "Settings have no dashes"),
        (["--dry-run", "--verify-resume", "data=pics"], "not allowed with argument"),
        (["my_pictures"], "data=my_pictures"),
        ([], "Set data=FOLDER"),
        (["--config", "nowhere.yaml"], "nowhere.yaml is missing"),
        (["data=nowhere"], "The data nowhere are missing"),
    ],
)
def test_a_line_that_cannot_be_used(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as ended:  # argparse ends the program itself
        code = ended.code
    err = capsys.readouterr().err
    assert code in (2, 3) and said in err and "why:" in err and "try:" in err


def test_dry_run_proof_and_training_by_the_same_line(
    sd_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_pictures(tmp_path / "1.10 #3")  # a name that YAML would read otherwise
    quick = [f"{key}={value}" for key, value in {**QUICK, "run.steps": 1}.items()]
    line = [f"model={sd_folder}", f"data={pictures}", f"run.folder={tmp_path / 'run'}", *quick]
    assert main(["--dry-run", *line]) == 0
    assert "4 found, 4 used" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.safetensors"))
    assert main(["--verify-resume", *line]) == 0
    assert "are equal to the bit" in capsys.readouterr().out
    assert main(line) == 0
    assert "paint with it: sdcore paint" in capsys.readouterr().out
    assert (tmp_path / "run" / "run.safetensors").exists()
