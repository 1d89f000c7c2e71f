"""Flags of other tools, in the words of ours."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from docs import other_tools
from sdcore.app.cli import COMMANDS
from sdcore.app.other_flags import ALIASES, ANSWERS, in_our_words


def parsers() -> dict[str, Any]:
    modules = {name: import_module(f"sdcore.app.{each.module}") for name, each in COMMANDS.items()}
    return {n: m.make_parser() for n, m in modules.items() if hasattr(m, "make_parser")}


def flags_of(parser: Any) -> set[str]:
    return set(parser._option_string_actions)


EVERY = set().union(*(flags_of(parser) for parser in parsers().values()))


@pytest.mark.parametrize("ours", ALIASES)
def test_every_alias_stands_for_a_flag(ours: str) -> None:
    assert ours in EVERY
    for parser in parsers().values():
        if ours in flags_of(parser):
            assert not set(ALIASES[ours].split()) & flags_of(parser), "a flag itself"


def test_no_alias_stands_for_two() -> None:
    every = [alias for aliases in ALIASES.values() for alias in aliases.split()]
    assert len(every) == len(set(every)) and not set(every) & set(ANSWERS)


def test_a_command_line_of_another_tool() -> None:
    line = "-W 512 -H640 --cfg-scale=7 --sampler euler -s 20 -n 2 --ckpt x.safetensors --outdir out"
    options = parsers()["paint"].parse_args(["a fox", *line.split(), "--prompt", "a cat"][:-2])
    assert (options.width, options.height, options.guidance_scale) == (512, 640, 7.0)
    assert (options.scheduler, options.steps, options.images) == ("euler", 20, 2)
    assert (options.model, str(options.output)) == ("x.safetensors", "out")
    spelled = parsers()["paint"].parse_args(["--prompt", "a fox", "--guidance_scale", "3"])
    assert (spelled.prompts, spelled.guidance_scale) == (["a fox"], 3.0)


def test_what_is_no_flag_stays_as_it_is() -> None:
    given = ["a -W fox", "--seed", "-1", "--", "-W"]
    assert in_our_words(given, EVERY) == given


@pytest.mark.parametrize(("flag", "said"), [("--fp16", "--precision fp16"), ("--seeed", "--seed")])
def test_others_are_answered(flag: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsers()["paint"].parse_args(["a fox", flag, "3"])
    assert said in capsys.readouterr().err


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    assert other_tools.PAGE.read_text("utf-8") == other_tools.page()
