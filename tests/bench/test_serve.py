"""The bench of the server, small: nothing wrong, and figures for all that it says."""

from __future__ import annotations

import pytest

from bench import serve


@pytest.mark.slow
def test_a_small_run_has_no_picture_wrong(capsys) -> None:
    serve.main(["--clients", "3", "--requests", "3", "--rounds", "1"])
    said = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert said["requests"] == "9" and said["wrong"] == "0"
    assert {"draft of a changed word", "overhead", "requests a second", "MiB after"} <= set(said)
