"""The flags that benches share."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.command import make_parser, plain


def test_a_flag_has_its_default_in_help_and_the_type_of_it(capsys):
    parser = make_parser("doc", prompts=12, steps=None, guidance_scale=None, out="runs/x")
    arguments = parser.parse_args(["--guidance-scale", "3"])
    assert (arguments.prompts, arguments.steps, arguments.guidance_scale) == (12, None, 3.0)
    assert arguments.out == Path("runs/x") and plain(arguments)["out"] == "runs/x"
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "how many (default: 12)" in said and "denoising steps (default: the model's)" in said
    assert "--seed" not in said
