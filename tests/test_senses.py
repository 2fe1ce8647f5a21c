from __future__ import annotations

import numpy as np
import pytest

from daedap.korean.text import analyse, kiwi
from daedap.korean.word_vectors import WIDTH, KiwiWordVectors

WORDS = ["사랑", "애정", "행복", "컴퓨터", "밥"]


@pytest.fixture(scope="module")
def senses() -> KiwiWordVectors:
    return KiwiWordVectors.recover()


def numbers(words: list[str]) -> list[int]:
    return [found[0].morpheme_id for found in analyse(words)]


def test_the_vectors_give_kiwis_own_cosines_back(senses: KiwiWordVectors) -> None:
    asked = numbers(WORDS)
    vectors = senses.vectors(asked)
    for one in asked:
        assert vectors[one].shape == (WIDTH,)
        assert np.linalg.norm(vectors[one]) == pytest.approx(1, abs=1e-2)
        for other in asked:
            cosine = kiwi().morpheme_similarity(one, other)
            assert float(vectors[one] @ vectors[other]) == pytest.approx(cosine, abs=5e-3)


def test_what_means_alike_is_near(senses: KiwiWordVectors) -> None:
    love, affection, _, computer, _ = numbers(WORDS)
    found = senses.vectors([love, affection, computer])
    assert found[love] @ found[affection] > found[love] @ found[computer] + 0.2


def test_words_without_a_vector_are_left_out(senses: KiwiWordVectors) -> None:
    assert senses.vectors([-1, 10**6]) == {}
    assert senses.vectors([]) == {}
