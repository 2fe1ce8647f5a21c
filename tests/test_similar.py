from __future__ import annotations

import math
import random
import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from daedap.data.dedup import THRESHOLD, _bigrams, _chunk_end, _rare_part, near_duplicates
from daedap.korean.text import comparison_form

WHO = ["나", "우리", "엄마", "친구", "동생", "남자친구", "여자친구", "선생님", "부장님", "강아지"]
WHAT = ["밥", "커피", "시험", "운동", "여행", "게임", "이별", "결혼", "취업", "감기", "월급", "다이어트"]
DONE = [
    "때문에 너무 힘들어",
    "하고 싶은데 어떡하지",
    "생각만 하면 눈물이 나",
    "얘기 좀 들어 줘",
    "은 언제쯤 괜찮아질까",
]
ENDS = ["", "?", "ㅠㅠ", "ㅋㅋㅋ", "요", "~!", " 진짜"]


def questions(number: int, seed: int) -> list[str]:
    """Questions as people type them: about a third are variations of an earlier one."""
    rng = random.Random(seed)
    made: list[str] = []
    for _ in range(number):
        text = f"{rng.choice(WHO)} {rng.choice(WHAT)} {rng.choice(DONE)}{rng.choice(ENDS)}"
        if made and rng.random() < 0.3:
            letters = list(rng.choice(made))
            del letters[rng.randrange(len(letters))]
            text = "".join(letters) + rng.choice(ENDS)
        made.append(text)
    return made


def cosine(one: str, other: str) -> float:
    a, b = (Counter(text[i : i + 2] for i in range(len(text) - 1)) for text in (one, other))
    product = sum(count * b[gram] for gram, count in a.items())
    length = math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
    return product / length if length else 0.0


def by_hand(texts: list[str]) -> list[tuple[int, list[int]]]:
    """Every question against every earlier one."""
    forms = [comparison_form(text) for text in texts]
    found = []
    for row, form in enumerate(forms):
        first = forms.index(form)
        earlier = [other for other in range(row) if forms.index(forms[other]) == other]
        near = [other for other in earlier if cosine(form, forms[other]) >= THRESHOLD - 1e-9]
        found.append((row, [first] if first < row else near))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_exactly_what_comparing_all_with_all_finds(seed: int) -> None:
    texts = questions(300, seed)
    found = [(row, sorted(near)) for row, near in near_duplicates(texts)]
    assert found == by_hand(texts)
    assert sum(bool(near) for _, near in found) > 100


@pytest.mark.parametrize("seed", range(2))
def test_of_a_group_one_near_row_is_enough(seed: int) -> None:
    numbered = [f"{number}번 상품은 언제 배송되나요?" for number in range(1200)]
    texts = questions(600, seed) + numbered + questions(300, seed + 5)
    random.Random(seed).shuffle(texts)
    full = {row: set(near) for row, near in near_duplicates(texts)}
    groups = np.arange(len(texts), dtype=np.int64)
    for row, near in near_duplicates(texts, groups):
        found = {int(groups[other]) for other in near}
        assert found == {int(groups[other]) for other in full[row]}
        assert len(near) < 1200 // 2, "of large groups one"
        if found:  # as the split joins them
            groups[np.isin(groups, [*found])] = min(found)
            groups[row] = min(found)
    alone = near_duplicates(texts, np.zeros(len(texts), dtype=np.int64))
    assert [bool(near) for _, near in alone] == [bool(full[row]) for row in range(len(texts))]


def test_very_short_and_empty_questions() -> None:
    texts = ["", "아", "네", "아!", " ", "?", "아아", "아아아", "네네"]
    assert [(row, sorted(near)) for row, near in near_duplicates(texts)] == by_hand(texts)
    assert list(near_duplicates(["아", "네"])) == [(0, []), (1, [])]
    assert list(near_duplicates(["", " "])) == [(0, []), (1, [0])]
    assert list(near_duplicates([])) == []
    assert list(near_duplicates(["혼자"])) == [(0, [])]


def test_equal_forms_name_the_first_row_alone() -> None:
    texts = ["배고파 죽겠어", "배고파 죽겠어요", "배고파죽겠어!!", "배고파 죽겠어~"]
    assert list(near_duplicates(texts)) == [(0, []), (1, [0]), (2, [0]), (3, [0])]


def test_whether_two_are_near_depends_on_no_third() -> None:
    texts = questions(200, 9)
    together = dict(near_duplicates(texts))
    some = texts[50:100]
    for row, near in near_duplicates(some):
        others = {texts[50 + other] for other in near}
        assert others <= {texts[other] for other in together[50 + row]} | {texts[50 + row]} | {
            text for text in texts if comparison_form(text) in {comparison_form(other) for other in others}
        }


def test_chunks_cover_every_row_once_and_respect_the_limit() -> None:
    forms = list(dict.fromkeys(comparison_form(text) for text in questions(6000, 1)))
    rare = _rare_part(_bigrams(forms))
    ends = [0]
    while ends[-1] < len(forms):
        ends.append(_chunk_end(rare, ends[-1], len(forms), np.arange(ends[-1])))
    assert len(ends) > 2, "too few rows to be cut"
    for start, stop in pairwise(ends):
        counts = Counter(rare[:stop].indices.tolist())
        candidates = sum(counts[gram] for gram in rare[start:stop].indices.tolist())
        assert start < stop and (candidates <= 4_000_000 or stop == start + 1)


def test_rows_without_bigrams_are_chunked_too() -> None:
    assert _chunk_end(csr_matrix((3, 8)), 0, 3, np.arange(0)) == 3


def test_twenty_thousand_questions_take_little_memory() -> None:
    syllables = [chr(code) for code in range(ord("가"), ord("가") + 11_000, 7)]
    rng = random.Random(0)
    texts = ["".join(rng.choices(syllables, k=12)) for _ in range(19_900)]
    texts += [text + "?!" for text in texts[:50]] + [text + "요" for text in texts[50:100]]
    list(near_duplicates(texts[:100]))  # what is imported is not counted
    tracemalloc.start()
    found = sum(bool(near) for _, near in near_duplicates(texts))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == 100
    assert peak < 200e6, "a matrix of all pairs of rows would take 3.2 GB"
