"""Which examples go into which batch: short ones with short ones, in an order that only the seed decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BUCKET = 32
"""Batches per bucket: large enough that a batch holds nearly equal lengths, small enough to stay random."""

_WAITED_FOR = 64
"""Tokens of longer questions that a batch may read one by one, which takes as long as a new batch does."""


def epoch_batches(lengths: Sequence[int], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Rows of each batch of one epoch. Every row comes once; rows of a batch have nearly the same length."""
    random = np.random.default_rng((seed, epoch))
    shuffled = random.permutation(len(lengths))
    buckets = [shuffled[start : start + size * _BUCKET] for start in range(0, len(lengths), size * _BUCKET)]
    ordered = [bucket[np.argsort(np.asarray(lengths)[bucket], kind="stable")] for bucket in buckets]
    batches = [bucket[start : start + size].tolist() for bucket in ordered for start in range(0, len(bucket), size)]
    return [batches[place] for place in random.permutation(len(batches))]


def generation_batches(lengths: Sequence[int], rooms: Sequence[int], size: int) -> list[list[int]]:
    """Rows from the shortest to the longest, in batches of the same room for a reply and nearly the same length.

    CTranslate2 reads at once only as many tokens of each question as the shortest in the batch has.
    """
    batches: list[list[int]] = []
    waited = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        first = batches[-1][0] if batches else row
        waited += lengths[row] - lengths[first]
        if not batches or len(batches[-1]) == size or waited > _WAITED_FOR or rooms[row] != rooms[first]:
            batches.append([])
            waited = 0
        batches[-1].append(row)
    return batches


def sorted_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows from the shortest to the longest, in batches: for scoring, where the order does not matter."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]
