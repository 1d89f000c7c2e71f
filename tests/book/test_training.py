"""What is kept of trainings is what the code learns."""

from __future__ import annotations

import pytest

from docs.book import training


def test_what_is_kept_was_learned_by_this_code(monkeypatch: pytest.MonkeyPatch) -> None:
    found = training.trained()
    assert len(found["recall"]) == len(found["lstm"]) == len(found["transformer"]) == 3
    monkeypatch.setattr(training, "RATE", 2 * training.RATE)
    training.trained.cache_clear()
    with pytest.raises(ValueError, match="of other code"):
        training.trained()
    monkeypatch.undo()
    training.trained.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("name", training.TASKS)
@pytest.mark.parametrize("number,seed", [*enumerate(training.SEEDS)])
def test_training_again_gives_what_is_kept(name: str, number: int, seed: int) -> None:
    (again,) = training.learned(name, seed, training.BUDGETS[:1])
    kept = training.trained()[name][number][0]
    assert again["right"] == pytest.approx(kept["right"], abs=0.02)
