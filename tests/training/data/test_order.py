"""The order of a run: a function of (seed, number); each picture exactly as often as is said."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcore.size import Size
from sdcore.training.data.buckets import Fit
from sdcore.training.data.items import FileBlob, Item
from sdcore.training.data.order import Order
from sdcore.training.data.scanned import Scanned

BUCKETS = (Size(64, 64), Size(96, 48), Size(48, 96))
Row = tuple[int, int, bool]  # bucket, repeats, prior


def pictures(rows: list[Row]) -> list[Scanned]:
    found: list[Scanned] = []
    for number, (bucket, repeats, prior) in enumerate(rows):
        size = BUCKETS[bucket]
        item = Item(f"{number}", FileBlob(Path(f"{number}.png")), repeats=repeats, prior=prior)
        found.append(Scanned(item, size, f"{number}", f"{number}", Fit(size, size, (0, 0))))
    return found


rows = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.booleans()), max_size=25).map(
    lambda some: [(0, 1, False), *some]
)


@settings(deadline=None, max_examples=60)
@given(rows, st.integers(1, 7), st.integers(0, 2**40), st.integers(0, 50))
def test_each_epoch_has_each_picture_as_often_as_it_is_repeated(
    rows: list[Row], batch_size: int, seed: int, epoch: int
) -> None:
    order = Order(pictures(rows), batch_size, seed)
    first = epoch * order.per_epoch
    batches = [order.batch(n) for n in range(first, first + order.per_epoch)]
    samples = [sample for batch in batches for sample in batch.samples]
    counts = Counter(sample.index for sample in samples if not rows[sample.index][2])
    assert counts == {i: r for i, (_, r, prior) in enumerate(rows) if not prior}
    prior = sum(rows[sample.index][2] for sample in samples)
    assert prior == (sum(counts.values()) if any(row[2] for row in rows) else 0)
    assert len({sample.number for sample in samples}) == len(samples) == order.samples_per_epoch
    for batch in batches:
        assert 1 <= len(batch.samples) <= batch_size
        assert all(BUCKETS[rows[s.index][0]] == batch.bucket for s in batch.samples)
        assert all(sample.epoch == epoch for sample in batch.samples)


@settings(deadline=None, max_examples=20)
@given(rows, st.integers(0, 2**40), st.permutations(range(40)), st.integers(1, 4))
def test_the_same_batches_whoever_asks_and_when(
    rows: list[Row], seed: int, numbers: list[int], ranks: int
) -> None:
    straight = Order(pictures(rows), 3, seed)
    expected = [straight.batch(number) for number in range(40)]
    jumping = Order(pictures(rows), 3, seed)
    assert {n: jumping.batch(n) for n in numbers} == dict(enumerate(expected))
    each = [Order(pictures(rows), 3, seed) for _ in range(ranks)]
    assert [each[n % ranks].batch(n) for n in range(40)] == expected


def test_class_pictures_take_turns() -> None:
    rows = [(0, 1, False)] * 4 + [(0, 1, True)] * 10 + [(1, 1, True)] * 10
    order = Order(pictures(rows), 2, 0)
    counts = Counter(
        sample.index
        for number in range(order.per_epoch * 10)
        for sample in order.batch(number).samples
        if rows[sample.index][2]
    )
    assert sum(counts.values()) == 40
    assert set(counts.values()) == {2} and len(counts) == 20


def test_epochs_and_seeds_differ() -> None:
    rows = [(n % 3, 1, False) for n in range(30)]
    one, other = Order(pictures(rows), 4, 0), Order(pictures(rows), 4, 1)
    indices = [[s.index for s in one.batch(n).samples] for n in range(2 * one.per_epoch)]
    assert indices[: one.per_epoch] != indices[one.per_epoch :]
    assert [[s.index for s in other.batch(n).samples] for n in range(one.per_epoch)] != (
        indices[: one.per_epoch]
    )


@pytest.mark.parametrize("number", [0, 10**6, 10**9])
def test_far_batches_cost_no_more(number: int) -> None:
    rows = [(n % 3, 1, n > 20) for n in range(30)]
    assert (
        Order(pictures(rows), 4, 0).batch(number).samples[0].epoch
        == number // Order(pictures(rows), 4, 0).per_epoch
    )
