from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PAIRS as CONVERSATION
from sklearn.feature_extraction.text import HashingVectorizer

from daedap.errors import RunError
from daedap.korean.perturb import add_typo
from daedap.korean.text import strip_emoticons
from daedap.retrieval.lexical import FEATURES, CharTfidf, LexicalIndex, _counts
from daedap.types import Message, Pair

PAIRS = [
    Pair("오늘 날씨 어때?", "맑고 따뜻해요.", "0", line=2),
    Pair("배고파 죽겠어", "얼른 뭐라도 드세요.", "0", line=3),
    Pair(
        "헤어진 사람이 생각나", "시간이 약이에요.", "1", (Message("user", "안녕"), Message("assistant", "네")), 4, "가"
    ),
    Pair("배고파 죽겠어!", "라면 어때요?", "0", line=5),
]


def test_ngrams_are_hashed_as_by_scikit_learn() -> None:
    """Indices of older runs were."""
    shape: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 2), "n_features": FEATURES, "lowercase": False}
    hashing = HashingVectorizer(**shape, norm=None, alternate_sign=False, dtype=np.float32)
    texts = [*(text for pair in CONVERSATION for text in (pair.question, pair.answer)), "😊 漢字 abc 12", ""]
    forms = map(strip_emoticons, texts)
    expected = hashing.transform([f"\x02{form}\x03" if form else "" for form in forms]).toarray()
    np.testing.assert_array_equal(_counts(texts).toarray(), expected)


def test_the_same_question_is_nearest_whatever_its_spacing() -> None:
    [near] = LexicalIndex.build(PAIRS).nearest(["오늘날씨 어때"])
    assert [(found.question, found.answer) for found in near] == [("오늘 날씨 어때?", "맑고 따뜻해요.")]
    assert near[0].similarity == pytest.approx(1)


def test_best_first_and_equals_in_file_order() -> None:
    [near] = LexicalIndex.build(PAIRS).nearest(["배고파 죽겠어"], k=3)
    assert [found.answer for found in near][:2] == ["얼른 뭐라도 드세요.", "라면 어때요?"]
    assert near[0].similarity == near[1].similarity > near[2].similarity


def test_equals_at_the_last_place_go_to_the_first_row() -> None:
    same = [Pair("뭐해", f"답 {i}") for i in range(50)]
    assert LexicalIndex.build(same).search(["뭐해", "뭐하니"], 3).rows.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_k_is_at_most_the_number_of_pairs() -> None:
    index = LexicalIndex.build(PAIRS)
    assert [len(near) for near in index.nearest(["날씨", "사람"], k=9)] == [4, 4]
    assert index.nearest([], k=2) == []


def test_nothing_in_common_is_similarity_zero() -> None:
    [[far], [empty]] = LexicalIndex.build(PAIRS).nearest(["쿨쿨", ""])
    # Only the marks of beginning and end are shared.
    assert 0 < far.similarity < 0.1
    assert empty.similarity == 0


def test_weights_by_hand() -> None:
    ngrams = CharTfidf.fit(["가", "가나"])
    # Two texts hold 가 and both marks: ln(3/3) + 1. One holds 나: ln(3/2) + 1. Nobody holds 다: ln(3/1) + 1.
    assert ngrams.vectors(["가"]).nnz == 5  # \x02 가 \x03, \x02가 가\x03
    rare, common = np.log(3 / 2) + 1, 1.0
    # 가: four n-grams in both texts, 가\x03 only in one. 가나: the shared \x02 가 \x03 \x02가 and 나 가나 나\x03.
    expected = 4 * common**2 / np.sqrt(4 * common**2 + rare**2) / np.sqrt(4 * common**2 + 3 * rare**2)
    first, second = ngrams.vectors(["가", "가나"]).toarray()
    assert first @ second == pytest.approx(expected, rel=1e-5)
    assert first @ first == pytest.approx(1)


def test_parts_do_not_change_the_result() -> None:
    questions = ["날씨가 어때", "배고프다", "헤어진 사람", "생각"]
    index = LexicalIndex.build(PAIRS)
    whole, single = index.search(questions, 2), index.search(questions, 2, cells=1)
    assert (whole.rows == single.rows).all()
    assert (whole.similarities == single.similarities).all()


def test_what_is_common_counts_as_everything_does() -> None:
    pairs = [Pair(f"{word} {number}번 알려줘", "네") for word in ("버스", "학번", "전화") for number in range(9)]
    index = LexicalIndex.build(pairs)
    asked = ["버스 3번 알려줘", "날씨", "알려줘"]
    vectors = index.ngrams.vectors([pair.question for pair in pairs])
    exact = (index.ngrams.vectors(asked) @ vectors.T).toarray()
    assert index.similarities(asked) == pytest.approx(exact, abs=1e-6)


def test_saved_and_opened_again(tmp_path: Path) -> None:
    index = LexicalIndex.build(PAIRS)
    index.save(tmp_path / "a")
    LexicalIndex.build(PAIRS).save(tmp_path / "b")
    opened = LexicalIndex.open(tmp_path / "a")
    assert opened.pairs == tuple(PAIRS)
    assert opened.nearest(["배고파", "날씨"], 4) == index.nearest(["배고파", "날씨"], 4)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["idf.npy", "matrix.npz", "pairs.jsonl"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


@pytest.mark.parametrize("name", ["idf.npy", "matrix.npz", "pairs.jsonl"])
def test_missing_and_broken_files_are_named(tmp_path: Path, name: str) -> None:
    LexicalIndex.build(PAIRS).save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=name):
        LexicalIndex.open(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RunError, match=name):
        LexicalIndex.open(tmp_path)


def test_a_question_with_typos_is_nearest_to_itself() -> None:
    """Two typos change two syllables, of which a question has many: letters within syllables would gain nothing."""
    index = LexicalIndex.build(CONVERSATION)
    rng = random.Random(1)
    asked = [add_typo(add_typo(pair.question, rng), rng) for pair in CONVERSATION]
    found = index.search(asked).rows[:, 0]
    assert sum(typed != pair.question for typed, pair in zip(asked, CONVERSATION, strict=True)) > 60
    assert (found == np.arange(len(CONVERSATION))).mean() > 0.9


def test_files_of_two_indexes_do_not_mix(tmp_path: Path) -> None:
    LexicalIndex.build(PAIRS).save(tmp_path)
    lines = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert json.loads(lines[0])["question"] == "오늘 날씨 어때?"
    (tmp_path / "pairs.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(RunError, match=r"matrix\.npz"):
        LexicalIndex.open(tmp_path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    LexicalIndex.build(PAIRS).save(tmp_path)
    np.save(tmp_path / "idf.npy", np.array([{}] * FEATURES, dtype=object), allow_pickle=True)
    with pytest.raises(RunError, match=r"idf\.npy"):
        LexicalIndex.open(tmp_path)
