from __future__ import annotations

import numpy as np
import pytest

from daedap.model.decoding import generation_batches
from daedap.model.prompt import sorted_batches
from daedap.training.trainer import epoch_batches

LENGTHS = np.random.default_rng(0).integers(5, 60, size=1003).tolist()


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 1003])
@pytest.mark.parametrize("size", [1, 8, 32])
def test_every_row_occurs_once(rows: int, size: int) -> None:
    for batches in (epoch_batches(LENGTHS[:rows], size, seed=1, epoch=0), sorted_batches(LENGTHS[:rows], size)):
        assert sorted(row for batch in batches for row in batch) == list(range(rows))
        assert max(map(len, batches)) <= size
        assert len(batches) == -(-rows // size)


def test_lengths_in_a_batch_are_nearly_equal() -> None:
    batches = epoch_batches(LENGTHS, 16, seed=1, epoch=0)
    padded = sum(max(LENGTHS[row] for row in batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(LENGTHS), "more than a tenth is padding"
    shuffled = sum(max(LENGTHS[start : start + 16]) * 16 for start in range(0, 992, 16))
    assert shuffled > 1.5 * sum(LENGTHS[:992]), "the lengths vary too little for this test"


def test_batches_are_shuffled() -> None:
    means = [np.mean([LENGTHS[row] for row in batch]) for batch in epoch_batches(LENGTHS, 16, seed=1, epoch=0)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5


def test_batches_depend_on_seed_and_epoch_only() -> None:
    first = epoch_batches(LENGTHS, 16, seed=1, epoch=0)
    np.random.default_rng().random(10)
    assert epoch_batches(LENGTHS, 16, seed=1, epoch=0) == first
    assert epoch_batches(LENGTHS, 16, seed=2, epoch=0) != first
    assert epoch_batches(LENGTHS, 16, seed=1, epoch=1) != first


def test_every_epoch_has_other_batches() -> None:
    first, second = ({frozenset(batch) for batch in epoch_batches(LENGTHS, 16, seed=1, epoch=e)} for e in (0, 1))
    assert not first & second


def test_equal_lengths_are_shuffled() -> None:
    batches = epoch_batches([10] * 64, 8, seed=1, epoch=0)
    assert batches != sorted_batches([10] * 64, 8)
    assert sorted_batches([10] * 64, 8)[0] == list(range(8))


def test_scoring_batches_are_sorted_by_length() -> None:
    order = [LENGTHS[row] for batch in sorted_batches(LENGTHS, 64) for row in batch]
    assert order == sorted(LENGTHS)
    assert sorted_batches([], 64) == []


def test_generation_batches_have_one_reply_limit() -> None:
    lengths = [9, 250, 10, 240, 11, 10]
    limits = [min(20, 256 - length) for length in lengths]
    batches = generation_batches(lengths, limits, 64)
    assert batches == [[0, 2, 5, 4], [3], [1]]
    assert generation_batches([5] * 5, [9] * 5, 2) == [[0, 1], [2, 3], [4]]
