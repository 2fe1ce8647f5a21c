from __future__ import annotations

import numpy as np
import pytest

from daedap.training.biencoder import _SameAnswerSampler, fit_biencoder


@pytest.mark.parametrize("bf16", [False, True])
def test_what_belongs_together_is_brought_together(bf16: bool) -> None:
    rng = np.random.default_rng(0)
    asked = rng.normal(size=(300, 40)).astype(np.float32)
    said = (asked @ np.linalg.qr(rng.normal(size=(40, 40)))[0]).astype(np.float32)  # nothing alike before
    groups = np.arange(300)
    learned = fit_biencoder(asked, said, groups, 1, bf16=bf16)
    one, other = asked @ learned.question, said @ learned.answer
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other)]
    assert ((unit[0] @ unit[1].T).argmax(axis=1) == groups).mean() > 0.9
    again = fit_biencoder(asked, said, groups, 1, bf16=bf16)
    assert np.array_equal(again.question, learned.question)


def test_twins_have_the_same_answer() -> None:
    groups = np.array([3, 1, 3, 2, 1, 3])
    twins, rows = _SameAnswerSampler(groups), np.arange(6)
    drawn = np.stack([twins.of(rows, np.random.default_rng(seed)) for seed in range(20)])
    assert (groups[drawn] == groups).all()
    assert set(drawn[:, 0]) == {0, 2, 5}
    assert set(drawn[:, 3]) == {3}


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_handful_of_pairs_is_no_error(rows: int) -> None:
    vectors = np.eye(rows, 8, dtype=np.float32)
    assert np.isfinite(fit_biencoder(vectors, vectors, np.arange(rows), 1).question).all()
