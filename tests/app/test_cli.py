"""The command `sdcore`: its subcommands are the modules of the app, named as they are."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from sdcore import __version__
from sdcore.app import cli


def test_the_list_of_commands(capsys) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert capsys.readouterr() == ("", said)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sdcore {__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_subcommand_takes_the_name_that_was_typed(name, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: sdcore {name} [-h]") and ".py" not in said
    with pytest.raises(SystemExit, match="2"):
        cli.main([name, "--no-such-flag"])
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "why: " in err and f"`sdcore {name} --help`" in err
    assert "--no-such-flag" in err or "are required" in err


def test_a_flag_that_is_nearly_one_is_refused_with_it(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["paint", "a fox", "--stepz", "3"])
    assert "try: Did you mean --steps?" in capsys.readouterr().err


def test_a_message_names_a_flag_of_one_word(capsys, tmp_path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert cli.main(["image", str(tmp_path / "a.png"), "a fox", "--strength", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: --strength is 2.0.")


def test_exit_codes_are_those_of_the_subcommand(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["paint"]) == 2
    assert cli.main(["paint", "a cat", "--model", "no/such"]) == 3
    assert capsys.readouterr().err.count("error: ") == 2


@pytest.mark.parametrize(("name", "said"), [("pain", "`sdcore paint`"), ("xyz", "--help")])
def test_what_is_no_command_is_refused_with_a_near_one(name, said, capsys) -> None:
    assert cli.main([name, "a cat"]) == 2
    err = capsys.readouterr().err
    assert f"no command '{name}'" in err and said in err.split("try:")[1]


def test_a_missing_extra_is_one_line(capsys, monkeypatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "train", cli.Command("gone", "train", extra="train"))
    assert cli.main(["train"]) == 2
    needed = 'error: sdcore train needs sdcore.app.gone: pip install "sdcore[train]"\n'
    assert capsys.readouterr().err == needed


def test_interrupted_while_it_loads(monkeypatch) -> None:
    def stop(arguments: list[str], prog: str) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "sdcore.app.paint", SimpleNamespace(main=stop))
    assert cli.main(["paint"]) == 130


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--clip-skip", "99"], "error: --clip-skip 99 cannot be used."),
        (["--attention", "magic"], "why: There is no backend of this name."),
        (["--lora", "nothere"], "error: --lora nothere is missing."),
    ],
)
def test_messages_are_sentences_with_flags(flags, said, capsys, tmp_path) -> None:
    assert cli.main(["paint", "a fox", *flags, "--output", str(tmp_path)]) in (2, 3)
    assert said in capsys.readouterr().err


def test_debug_shows_the_traceback_of_a_subcommand() -> None:
    with pytest.raises(ValueError, match="--steps is 0"):
        cli.main(["paint", "a cat", "--steps", "0", "--debug"])
