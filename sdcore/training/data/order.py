"""Order: which pictures each micro-batch of a run holds, as a function of (seed, number) alone.

In an epoch each picture comes exactly `repeats` times. Pictures of one bucket make batches, the
last of which may be smaller; the batches of all buckets are mixed. How many processes share the
work, and where a run was stopped, does not matter: they take batches by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from sdcore.size import Size
from sdcore.training.data.scanned import Scanned
from sdcore.training.state import generator


@dataclass(frozen=True)
class Sample:
    """One sight of a picture.

    index: of the picture in the scan.
    epoch: from 0.
    repeat: from 0, of the picture in its epoch.
    number: of the sample in its epoch, which tells the draws for it from others.
    """

    index: int
    epoch: int
    repeat: int
    number: int


@dataclass(frozen=True)
class Batch:
    """The samples of a micro-batch, all of one size."""

    samples: tuple[Sample, ...]
    bucket: Size


class Order:
    """The micro-batches of a run.

    Pictures of the class (`Item.prior`) come as often as all others together: of each bucket a
    share by the number of its pictures, at least one, taken in turn over the epochs.

    Args:
        pictures: those of a scan.
        batch_size: of a micro-batch, at most.

    Attributes:
        per_epoch: micro-batches in each epoch.
        samples_per_epoch: samples in each epoch, those of the class included.
    """

    def __init__(self, pictures: Sequence[Scanned], batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed
        self._samples: dict[Size, list[tuple[int, int, int]]] = {}  # (index, repeat, number)
        self._prior: dict[Size, list[int]] = {}
        number = 0
        for index, picture in enumerate(pictures):
            bucket = picture.fit.bucket
            if picture.item.prior:
                self._prior.setdefault(bucket, []).append(index)
                continue
            rows = self._samples.setdefault(bucket, [])
            for repeat in range(picture.item.repeats):
                rows.append((index, repeat, number))
                number += 1
        self._own = number
        self._quotas = _shares({b: len(rows) for b, rows in self._prior.items()}, number)
        self._buckets = sorted({*self._samples, *self._prior}, key=lambda b: b.width_height)
        counts = [len(self._samples.get(b, ())) + self._quotas.get(b, 0) for b in self._buckets]
        self.per_epoch = sum(-(-count // batch_size) for count in counts)
        self.samples_per_epoch = sum(counts)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, number: int) -> Batch:
        """The micro-batch of this number, from 0."""
        epoch, place = divmod(number, self.per_epoch)
        return self._epoch(epoch)[place]

    def _make_epoch(self, epoch: int) -> tuple[Batch, ...]:
        batches: list[Batch] = []
        first = self._own
        for place, bucket in enumerate(self._buckets):
            samples = [Sample(i, epoch, r, n) for i, r, n in self._samples.get(bucket, ())]
            prior = self._prior_samples(bucket, epoch, place, first)
            first += len(prior)
            samples += prior
            order = self._permutation("order", epoch, place + 1, len(samples))
            for start in range(0, len(samples), self.batch_size):
                some = tuple(samples[i] for i in order[start : start + self.batch_size])
                batches.append(Batch(some, bucket))
        return tuple(batches[i] for i in self._permutation("order", epoch, 0, len(batches)))

    def _prior_samples(self, bucket: Size, epoch: int, place: int, first: int) -> list[Sample]:
        """The class pictures whose turn it is: the rows of an endless series of permutations."""
        quota, indices = self._quotas.get(bucket, 0), self._prior.get(bucket, [])
        samples: list[Sample] = []
        seen: dict[int, int] = {}
        turn, order = -1, list[int]()
        for row in range(epoch * quota, (epoch + 1) * quota):
            cycle, position = divmod(row, len(indices))
            if cycle != turn:
                turn = cycle
                order = self._permutation("prior", cycle, place, len(indices))
            index = indices[order[position]]
            seen[index] = repeat = seen.get(index, -1) + 1
            samples.append(Sample(index, epoch, repeat, first + len(samples)))
        return samples

    def _permutation(self, purpose: str, epoch: int, part: int, count: int) -> list[int]:
        draw = generator(self.seed, purpose, epoch, part)
        return torch.randperm(count, generator=draw).tolist()  # pyright: ignore


def _shares(counts: dict[Size, int], total: int) -> dict[Size, int]:
    """`total` divided by counts, at least one each where it suffices; the largest remainders win.

    The same in each epoch, so that all epochs have one number of batches.
    """
    if not counts:
        return {}
    buckets = sorted(counts, key=lambda b: (-counts[b], b.width_height))
    if total <= len(buckets):
        return {bucket: int(place < total) for place, bucket in enumerate(buckets)}
    everything = sum(counts.values())
    free = total - len(buckets)  # one each is given first
    shares = {bucket: 1 + free * counts[bucket] // everything for bucket in buckets}
    rest = total - sum(shares.values())
    by_remainder = sorted(buckets, key=lambda b: (-(free * counts[b] % everything), b.width_height))
    for bucket in by_remainder[:rest]:
        shares[bucket] += 1
    return shares
