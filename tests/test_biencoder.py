from __future__ import annotations

import numpy as np
import pytest

from daedap.training.biencoder import _SameAnswerSampler, fit_biencoder

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bf16", [False, True])
def test_questions_are_nearest_to_their_answers(bf16: bool) -> None:
    rng = np.random.default_rng(0)
    questions = rng.normal(size=(300, 40)).astype(np.float32)
    answers = (questions @ np.linalg.qr(rng.normal(size=(40, 40)))[0]).astype(np.float32)  # nothing alike before
    groups = np.arange(300)
    projections = fit_biencoder(questions, answers, groups, 1, bf16=bf16)
    one, other = questions @ projections.question, answers @ projections.answer
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other)]
    assert ((unit[0] @ unit[1].T).argmax(axis=1) == groups).mean() > 0.9
    again = fit_biencoder(questions, answers, groups, 1, bf16=bf16)
    assert np.array_equal(again.question, projections.question)


def test_sampled_rows_have_the_same_answer() -> None:
    groups = np.array([3, 1, 3, 2, 1, 3])
    sampler, rows = _SameAnswerSampler(groups), np.arange(6)
    sampled = np.stack([sampler.sample(rows, np.random.default_rng(seed)) for seed in range(20)])
    assert (groups[sampled] == groups).all()
    assert set(sampled[:, 0]) == {0, 2, 5}
    assert set(sampled[:, 3]) == {3}


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_handful_of_pairs_is_no_error(rows: int) -> None:
    vectors = np.eye(rows, 8, dtype=np.float32)
    assert np.isfinite(fit_biencoder(vectors, vectors, np.arange(rows), 1).question).all()
