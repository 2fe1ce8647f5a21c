"""Batches of similar length, for training, generation and scoring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BUCKET = 32
"""Batches per bucket: large enough that a batch holds nearly equal lengths, small enough to stay random."""

_MAX_EXTRA_TOKENS = 64
"""Prompt tokens that a batch may feed one at a time beyond its shortest prompt; more cost as much as a new batch."""


def epoch_batches(lengths: Sequence[int], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of each batch of one epoch, in random order; every row occurs once.

    Rows are shuffled, sorted by length within buckets of 32 batches, and the batches are shuffled again. Depends on
    seed and epoch only.
    """
    random = np.random.default_rng((seed, epoch))
    shuffled = random.permutation(len(lengths))
    buckets = [shuffled[start : start + size * _BUCKET] for start in range(0, len(lengths), size * _BUCKET)]
    ordered = [bucket[np.argsort(np.asarray(lengths)[bucket], kind="stable")] for bucket in buckets]
    batches = [bucket[start : start + size].tolist() for bucket in ordered for start in range(0, len(bucket), size)]
    return [batches[index] for index in random.permutation(len(batches))]


def generation_batches(lengths: Sequence[int], max_new_tokens: Sequence[int], size: int) -> list[list[int]]:
    """Row indices by prompt length, in batches of equal `max_new_tokens` and similar length.

    CTranslate2 prefills only as many tokens as the shortest prompt of a batch has and feeds the rest one at a time.
    """
    batches: list[list[int]] = []
    extra = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        first = batches[-1][0] if batches else row
        extra += lengths[row] - lengths[first]
        full = not batches or len(batches[-1]) == size
        if full or extra > _MAX_EXTRA_TOKENS or max_new_tokens[row] != max_new_tokens[first]:
            batches.append([])
            extra = 0
        batches[-1].append(row)
    return batches


def sorted_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row indices by length, shortest first, in batches of `size`: for scoring, where order does not matter."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]
