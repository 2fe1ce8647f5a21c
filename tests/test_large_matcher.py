from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import PAIRS
from numpy.typing import NDArray
from queries import encoded

from daedap.errors import RunError
from daedap.model.sentence_encoder import built_in_encoder
from daedap.retrieval.hybrid import HybridRetriever
from daedap.retrieval.large_matcher import LargeMatcher, VectorGraph
from daedap.retrieval.lexical import LexicalIndex
from daedap.retrieval.matcher import AnswerMatcher
from daedap.retrieval.rerank import RerankWeights
from daedap.types import Pair

QUERIES = ["강아지가 왜 화를 내는 걸까", "동생이 밤새 울었다네요", "약속을 또 까먹었대", "오늘 점심 뭐 먹지", ""]


@pytest.fixture(scope="module")
def index() -> LexicalIndex:
    return LexicalIndex.build(PAIRS)


@pytest.fixture(scope="module")
def large(index: LexicalIndex) -> LargeMatcher:
    return LargeMatcher.build(index, built_in_encoder())


def unit_rows(rows: int, seed: int) -> NDArray[np.float16]:
    """Vectors in clusters, as texts are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(60, 48))
    vectors = centres[rng.integers(60, size=rows)] + 0.7 * rng.normal(size=(rows, 48))
    unit: NDArray[np.float16] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    return unit


def test_a_graph_finds_the_nearest_vectors() -> None:
    vectors, queries = unit_rows(3000, 1), unit_rows(100, 2).astype(np.float32)
    graph = VectorGraph.build(vectors)
    exact = np.argsort(-(queries @ vectors.astype(np.float32).T), axis=1)[:, :3]
    hits = [len({*found} & {*graph.nearest(query, 16)}) for found, query in zip(exact, queries, strict=True)]
    assert np.sum(hits) / 300 >= 0.99


def test_the_same_vectors_give_the_same_graph(tmp_path: Path) -> None:
    for name in ("a", "b"):
        VectorGraph.build(unit_rows(500, 1)).index.save(str(tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_matches_are_those_of_all_pairs(index: LexicalIndex, large: LargeMatcher) -> None:
    exact = AnswerMatcher.build(index, built_in_encoder())
    queries = encoded(*QUERIES, *PAIRS[::7])
    for one, other in zip(large.match(queries), exact.match(queries), strict=True):
        assert one.rows[0] == other.rows[0]
        assert one.exact == other.exact
        assert one.similarities[0] == pytest.approx(other.similarities[0], abs=2e-2)
        assert one.probability == pytest.approx(other.probability, abs=5e-2)


def test_of_rows_with_one_question_the_newest_is_taken(large: LargeMatcher) -> None:
    new = [Pair(PAIRS[5].question, "새 답이에요.")]
    grown = large.extended(LexicalIndex.build([*new, *PAIRS]), before=new)
    match = grown.match(encoded(PAIRS[5].question))[0]
    assert (match.rows[0], match.exact) == (0, True)
    assert grown.match(encoded(PAIRS[6].question))[0].rows[0] == 7


def test_extended_finds_what_a_new_one_finds(large: LargeMatcher) -> None:
    first, last = [Pair("주차할 데가 있나요?", "뒤뜰에 두 대요.")], [Pair("몇 시에 닫아요?", "여덟 시에 닫아요.")]
    index = LexicalIndex.build([*first, *PAIRS, *last])
    grown, new = large.extended(index, before=first, after=last), LargeMatcher.build(index, built_in_encoder())
    for query in ["차는 어디 세워요?", "문 닫는 시간이 언제예요?", *QUERIES]:
        assert grown.match(encoded(query))[0].rows[0] == new.match(encoded(query))[0].rows[0]
    assert len(large.graphs[0].index) == len(PAIRS), "the graph that was extended is another one"


def test_saved_and_opened_with_and_without_held_out_pairs(tmp_path: Path) -> None:
    known, held_out = PAIRS[:70], PAIRS[70:]
    index = LexicalIndex.build(known)
    retriever = HybridRetriever(index, LargeMatcher.build(index, built_in_encoder()), RerankWeights())
    retriever.save(tmp_path, held_out)
    whole, own = HybridRetriever.open(tmp_path, held_out), HybridRetriever.open(tmp_path)
    assert isinstance(own.matcher, LargeMatcher)
    asked = encoded(*held_out)
    assert [match.rows[0] for match in whole.matcher.match(asked)] == list(range(70, 80))
    assert all((match.rows < 70).all() for match in own.matcher.match(asked))
    assert all((hits.rows < 70).all() for hits in own.search(asked, 5))


def test_as_many_known_pairs_are_found_beside_any_number_of_held_out_ones(tmp_path: Path) -> None:
    index = LexicalIndex.build(PAIRS[:10])
    LargeMatcher.build(index, built_in_encoder()).extended(LexicalIndex.build(PAIRS), after=PAIRS[10:]).save(tmp_path)
    own = LargeMatcher.open(tmp_path, index, built_in_encoder())
    hits = own.search(own.vectors_of(encoded(*PAIRS[::9])), 8)
    assert hits.rows.shape == (9, 8)
    assert (hits.rows < 10).all()


def test_vectors_are_searched_in_the_graph(index: LexicalIndex, large: LargeMatcher) -> None:
    exact = AnswerMatcher.build(index, built_in_encoder())
    vectors = large.vectors_of(encoded(*QUERIES))
    one, other = large.search(vectors, 5), exact.search(vectors, 5)
    assert one.rows[:, 0].tolist() == other.rows[:, 0].tolist()
    assert one.similarities == pytest.approx(other.similarities, abs=1e-2)


@pytest.mark.parametrize("name", ["questions.usearch", "answers.npy", "keys.npy"])
def test_a_damaged_file_is_told(name: str, index: LexicalIndex, large: LargeMatcher, tmp_path: Path) -> None:
    HybridRetriever(index, large, RerankWeights()).save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:99])
    with pytest.raises(RunError, match="damaged"):
        HybridRetriever.open(tmp_path)
