"""The bench of batches, small: figures for each batch size, of both ways."""

from __future__ import annotations

import pytest

from bench import batch


@pytest.mark.slow
def test_both_ways_are_timed_for_each_size(capsys) -> None:
    batch.main(["--pictures", "3", "--steps", "1", "--rounds", "1", "--sizes", "1", "2"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [int(row[0]) for row in rows] == [1, 2]
    assert all(float(cell) > 0 for row in rows for cell in row[1:])
