from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import PAIRS
from queries import encoded

from daedap.errors import RunError
from daedap.retrieval.encoder import BI_ENCODER_FILES, BiEncoder
from daedap.retrieval.hybrid import HybridRetriever, fit_retriever
from daedap.retrieval.rerank import Reranker, RerankWeights, beats_look_up, differences, fit_linear, fit_weights
from daedap.types import Float64Array, Generation, Pair

pytestmark = pytest.mark.slow

ASKED = [pair.question for pair in PAIRS]


class UniformModel:
    """A model that finds every answer equally likely and says nothing."""

    def log2_probability(self, pairs: list[Pair]) -> Float64Array:
        return np.array([[-10.0, 5.0] for _ in pairs])

    def reply(self, pairs: list[Pair]) -> list[Generation]:
        return [Generation("", True, 1, -1.0) for _ in pairs]

    def stream(self, pair: Pair, tell: object) -> Generation:
        return self.reply([pair])[0]

    def sample(self, pairs: list[Pair], count: int, **_: object) -> list[list[Generation]]:
        return [self.reply([pair] * count) for pair in pairs]


@pytest.fixture(scope="module")
def encoder() -> BiEncoder:
    return BiEncoder.fit(PAIRS, 1)


@pytest.fixture(scope="module")
def retriever(encoder: BiEncoder) -> HybridRetriever:
    return HybridRetriever.build(PAIRS, bi_encoder=encoder)


@pytest.fixture(scope="module")
def plain() -> HybridRetriever:
    """Without a bi-encoder, as for small files."""
    return HybridRetriever.build(PAIRS)


def test_questions_are_near_their_answers(encoder: BiEncoder) -> None:
    asked, said = encoder.questions(ASKED), encoder.answers([pair.answer for pair in PAIRS])
    assert np.linalg.norm(asked, axis=1) == pytest.approx(1, abs=1e-4)
    cosines = asked @ said.T
    assert (cosines.argmax(axis=1) == np.arange(len(PAIRS))).mean() > 0.9


def test_the_same_seed_learns_the_same(encoder: BiEncoder) -> None:
    again = BiEncoder.fit(PAIRS, 1)
    assert np.array_equal(again.questions(ASKED), encoder.questions(ASKED))


@pytest.mark.parametrize("kind", ["retriever", "plain"])
def test_what_is_saved_is_read_again(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    retriever: HybridRetriever = request.getfixturevalue(kind)
    retriever.save(tmp_path)
    files = {"encoder.json", "idf.npy", "matrix.npz", "pairs.jsonl", "sentences.npz", "weights.json"}
    assert {path.name for path in tmp_path.iterdir()} == files.union(BI_ENCODER_FILES if kind == "retriever" else ())
    again = HybridRetriever.open(tmp_path)
    assert (again.bi_encoded is None) == (retriever.bi_encoded is None) == (kind == "plain")
    for one, other in zip(*(each.search(encoded(*ASKED[:9]), 3) for each in (retriever, again)), strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        assert one.similarities == pytest.approx(other.similarities, abs=5e-3)
    assert again.weights == retriever.weights


def test_vectors_of_another_version_of_the_encoder_are_computed_again(
    plain: HybridRetriever, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain.save(tmp_path)
    other = np.full((len(plain.index.pairs), 384), 0.05, np.float16)
    np.savez(tmp_path / "sentences.npz", questions=other, answers=other)
    assert HybridRetriever.open(tmp_path).matcher.questions[0, 0] == np.float16(0.05), "as they were saved"
    (tmp_path / "encoder.json").write_text('{"name": "", "digest": "of another version"}', encoding="utf-8")
    np.testing.assert_allclose(HybridRetriever.open(tmp_path).matcher.questions, plain.matcher.questions, atol=2e-3)
    assert "make a new run of its file: daedap train FILE" in caplog.text


def test_another_model_of_kiwis_is_refused(retriever: HybridRetriever, tmp_path: Path) -> None:
    retriever.save(tmp_path)
    file = tmp_path / "features.json"
    file.write_text(file.read_text("utf-8").replace('"kiwi": "', '"kiwi": "9'), "utf-8")
    with pytest.raises(RunError, match=r"pip install kiwipiepy-model==9.*train again"):
        HybridRetriever.open(tmp_path)


def test_a_text_that_nothing_is_known_of(encoder: BiEncoder) -> None:
    assert np.isfinite(encoder.questions(["", "zzzz", "😀"])).all()


@pytest.mark.parametrize("kind", ["retriever", "plain"])
def test_the_question_itself_is_nearest(kind: str, request: pytest.FixtureRequest) -> None:
    retriever: HybridRetriever = request.getfixturevalue(kind)
    for row, near in enumerate(retriever.search(encoded(*ASKED), 5)):
        assert near.rows[0] == row
        assert near.similarities[0] == pytest.approx(1, abs=1e-3)
        assert (np.diff(near.similarities) <= 0).all()


def test_of_one_question_the_earliest_row_comes_first(encoder: BiEncoder) -> None:
    pairs = [Pair(ASKED[0] + "?", "새 답이에요."), *PAIRS]
    retriever = HybridRetriever.build(pairs, bi_encoder=encoder)
    assert retriever.bi_encoded
    retriever.bi_encoded.questions[0] *= np.float32(0.999)  # as another rounding would
    assert retriever.search(encoded(ASKED[0]), 3)[0].rows[:2].tolist() == [0, 1]


def test_a_word_of_the_same_meaning_is_near(retriever: HybridRetriever) -> None:
    near = retriever.search(encoded("내 멍멍이가 식사를 안 해"), 3)[0]
    asked = [retriever.index.pairs[row].question for row in near.rows]
    assert any("밥을 안 먹" in question for question in asked)


@pytest.mark.parametrize("kind", ["retriever", "plain"])
def test_the_right_answer_ranks_first(kind: str, request: pytest.FixtureRequest) -> None:
    retriever: HybridRetriever = request.getfixturevalue(kind)
    ranker = retriever.reranker(UniformModel())  # type: ignore[arg-type]
    wrong = [pair.answer for pair in PAIRS[::7]]
    offered = [[pair.answer, *(text for text in wrong if text != pair.answer)] for pair in PAIRS[:20]]
    queries = encoded(*PAIRS[:20])
    scores = ranker.scores(queries, offered)
    assert [int(found.argmax()) for found in scores] == [0] * 20
    assert ranker.best(queries, offered) == [0] * 20
    assert [len(found) for found in scores] == [len(texts) for texts in offered]


def test_weights_are_fitted_on_dev_rows(retriever: HybridRetriever) -> None:
    ranker: Reranker = retriever.reranker(UniformModel())  # type: ignore[arg-type]
    answers = [pair.answer for pair in PAIRS]
    many = [Pair(f"{pair.question}{mark}", pair.answer) for pair in PAIRS for mark in ("", "요?")]
    fitted = fit_weights(ranker, many, answers)
    assert fitted != RerankWeights()
    assert fitted.bi_encoder > 0
    assert fitted.lexical_knn > 0
    assert fitted.pmi == 0, "a model without information counts for nothing"


class Unasked(UniformModel):
    """A model that must not be asked."""

    def log2_probability(self, pairs: list[Pair]) -> Float64Array:
        raise AssertionError("asked")


def test_the_out_of_scope_threshold_is_fitted_on_dev_rows() -> None:
    known = HybridRetriever.build(PAIRS[:40])
    assert fit_retriever(known, PAIRS[:40], PAIRS[70:], Unasked()) is known  # type: ignore[arg-type]
    dev = [Pair(f"{pair.question}{mark}", pair.answer) for pair in PAIRS[40:] for mark in ("", "?", "ㅠㅠ")]
    fitted = fit_retriever(known, PAIRS[:40], dev, UniformModel())  # type: ignore[arg-type]
    nearest = [hits.similarities[0] for hits in fitted.search(encoded(*dev), 1)]
    assert min(nearest) <= fitted.weights.out_of_scope_threshold <= np.median(nearest)


def test_of_two_that_fit_alike_the_rarer_answer_is_chosen(encoder: BiEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [*PAIRS, *(Pair(f"{pair.question} {word}", "그렇군요.") for pair in PAIRS[:20] for word in ("응", "네"))]
    retriever = HybridRetriever.build(pairs, bi_encoder=encoder)
    ranker = retriever.reranker(UniformModel())  # type: ignore[arg-type]
    assert ranker.lexical_knn.answer_counts(["그렇군요!", PAIRS[0].answer, "처음 듣는 말"]).tolist() == [40, 1, 1]
    offered = ["그렇군요.", "그렇구나."]
    monkeypatch.setattr(Reranker, "_retrieval_features", lambda *_: [np.array([[0.5, 0.5, 0.5]] * 2)])
    assert ranker.best(encoded("처음 묻는 말"), [offered]) == [1]


@pytest.mark.parametrize(
    "name",
    ["vectors.npz", "maps.npz", "features.npz", "features.json", "weights.json", "sentences.npz", "encoder.json"],
)
def test_a_damaged_file_is_told(retriever: HybridRetriever, tmp_path: Path, name: str) -> None:
    retriever.save(tmp_path)
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(RunError, match="damaged"):
        HybridRetriever.open(tmp_path)


def test_answers_that_are_all_alike_have_no_weights_to_learn(retriever: HybridRetriever) -> None:
    same = [replace(pair, answer="네.") for pair in PAIRS for _ in range(2)]
    assert fit_weights(retriever.reranker(UniformModel()), same, ["네."] * 9) == RerankWeights()  # type: ignore[arg-type]


def made_up_features(seed: int, rows: int, *, informed: bool) -> list[Float64Array]:
    """(10, 4) for each row: look-up is right about half the time; the others are noise but for one if `informed`."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 10, 4))
    features[:, 0, 0] += 1.6
    features[:, 0, 3] += 1.6 * informed
    return list(features)


def test_reranking_must_beat_look_up_on_rows_it_was_not_fitted_on() -> None:
    def fitted_and_counted_on_the_same(features: list[Float64Array]) -> bool:
        weights = fit_linear(differences(features))
        first, reranked = ([int((rows @ vector).argmax()) for rows in features] for vector in (np.eye(4)[0], weights))
        return reranked.count(0) > first.count(0)

    noise = [made_up_features(seed, 30, informed=False) for seed in range(30)]
    flattered, validated = sum(map(fitted_and_counted_on_the_same, noise)), sum(map(beats_look_up, noise))
    assert validated <= flattered / 2, "noise is no help"
    assert all(beats_look_up(made_up_features(seed, 30, informed=True)) for seed in range(5))


def test_rows_with_one_answer_are_paraphrases_of_each_other() -> None:
    """Each of them finds the answer, and none counts as a rival of another."""
    pairs = [
        Pair("환불은 언제 되나요?", "검수가 끝나면 3영업일 안에 돌려 드려요."),
        Pair("돈은 며칠 뒤에 들어와요?", "검수가 끝나면 3영업일 안에 돌려 드려요."),
        Pair("해외 배송도 되나요?", "지금은 국내 주소로만 보내 드려요."),
        Pair("매장은 어디에 있나요?", "솔빛시 단풍로 12, 2층에 있어요."),
    ]
    together, apart = HybridRetriever.build(pairs).matcher, HybridRetriever.build(pairs[:1] + pairs[2:]).matcher
    refund, money = together.match(encoded("환불 언제 돼요", "돈 며칠 있다 들어와요"))
    assert (refund.rows[0], money.rows[0]) == (0, 1)
    assert {pairs[row].answer for row in refund.rows} == {pair.answer for pair in pairs}
    assert len(refund.rows) == 3
    assert money.probability > apart.match(encoded("돈 며칠 있다 들어와요"))[0].probability
