from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from daedap.errors import RunError
from daedap.evaluation.evaluate import Evaluation, Systems, evaluate
from daedap.evaluation.tables import display_width
from daedap.evaluation.testset import EvalSettings, ScorableBot, ScorableModel, make_eval_set
from daedap.retrieval.lexical import LexicalIndex
from daedap.types import Generation, Pair, Reply

NOUNS = tuple("밥물술옷집차책꽃별달해눈비강산길말글꿈손발귀코입목")
TRAIN = [Pair(f"{noun} 좋아해?", f"{noun}이라면 정말 좋지요.", str(i % 2)) for i, noun in enumerate(NOUNS)]
# The answers to the first 15 are known word for word, the other 10 are new.
TEST = [
    Pair(f"너는 {noun} 좋아하니", f"{noun}이라면 정말 좋지요." if i < 15 else f"{noun}? 난 싫어", str(i % 2))
    for i, noun in enumerate(NOUNS)
]
COMPONENTS = list(range(25))


def generation(text: str, *, ended: bool = True, tokens: int = 5) -> Generation:
    return Generation(text=text, ended=ended, tokens=tokens, log2_probability=-1.0)


@dataclass
class OracleModel:
    """1 bit for each character of the right answer, 3 of any other, 0 for the end."""

    truth: dict[str, str]

    def log2_probability(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        bits = [1 if self.truth[pair.question] == pair.answer else 3 for pair in pairs]
        return np.array([[-b * len(pair.answer), len(pair.answer) + 1] for b, pair in zip(bits, pairs, strict=True)])

    def reply(self, pairs: Sequence[Pair]) -> list[Generation]:
        return [generation(self.truth[pair.question]) for pair in pairs]


class QuestionBlindModel:
    """2 bits for each character and the end, whatever the question."""

    def log2_probability(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        return np.array([[-2.0 * (len(pair.answer) + 1), len(pair.answer) + 1] for pair in pairs])

    def reply(self, pairs: Sequence[Pair]) -> list[Generation]:
        return [generation("밥이라면 정말 좋지요", tokens=32 + i % 2) for i, _ in enumerate(pairs)]


class NanModel:
    """Its weights are NaN."""

    def log2_probability(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        return np.array([[np.nan, len(pair.answer) + 1] for pair in pairs])

    def reply(self, pairs: Sequence[Pair]) -> list[Generation]:
        return [generation("", ended=False) for _ in pairs]


class EchoBot:
    """Repeats the question, or falls back for a few of them; prefers the longest answer."""

    def reply_to_pairs(self, pairs: Sequence[Pair]) -> list[Reply]:
        unknown = set("밥물술옷")
        return [
            Reply(text, "뭐라고요?", "fallback", 0.0) if unknown & {*text} else Reply(text, text, "generated", -1.0)
            for text in (pair.question for pair in pairs)
        ]

    def score_candidates(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        assert len(pairs) == len(candidates)
        return np.array([[float(len(text)) for text in texts] for texts in candidates])


def evaluated(test: Sequence[Pair] = TEST, options: EvalSettings | None = None, **models: ScorableModel) -> Evaluation:
    components, bots = COMPONENTS[: len(test)], dict[str, ScorableBot](bot=EchoBot())
    index = LexicalIndex.build(TRAIN)
    return evaluate(test, components=components, systems=Systems(models, bots), index=index, options=options)


@pytest.fixture(scope="module")
def both() -> Evaluation:
    return evaluated(model=OracleModel({pair.question: pair.answer for pair in TEST}), base=QuestionBlindModel())


def test_a_perfect_model(both: Evaluation) -> None:
    scores = both.scores["model"]["all"]
    assert scores["bpc"].value == 1
    assert scores["question_gain"].value == 2
    assert (scores["question_gain"].low, scores["question_gain"].high) == (2, 2)
    assert [scores[name].value for name in ("hits_at_1", "recall_at_5", "mrr", "unique", "ended")] == [1, 1, 1, 1, 1]
    assert scores["chrf"].value == pytest.approx(100)
    assert 0 <= scores["latency_p50_ms"].value <= scores["latency_p95_ms"].value
    assert "latency_p50_ms" not in both.scores["model"]["seen"]
    assert scores["polite"].value == 15 / 25


def test_a_model_that_ignores_the_question_gains_exactly_nothing(both: Evaluation) -> None:
    scores = both.scores["base"]["all"]
    assert (scores["question_gain"].value, scores["question_gain"].low, scores["question_gain"].high) == (0, 0, 0)
    # 2 bits for each character and the end: known answers have 12 characters, new ones 7.
    characters = sum(len(pair.answer) for pair in TEST)
    assert scores["bpc"].value == 2 * (characters + 25) / characters
    # Mean log p is the same for every candidate: all tie, at rank 10.5.
    assert [scores["hits_at_1"].value, scores["mrr"].value] == pytest.approx([0, 1 / 10.5])
    assert scores["bland"].value == 1
    assert scores["unique"].value == 1 / 25
    assert scores["ended"].value == 13 / 25  # every other reply is one token too long


def test_a_broken_model_can_not_win() -> None:
    evaluation = evaluated(model=NanModel())
    assert evaluation.scores["model"]["all"]["hits_at_1"].value == 0
    document = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert document["scores"]["model"]["all"]["bpc"] == {"value": None, "low": None, "high": None, "n": 25}
    assert any("?" in line for line in evaluation.lines())


def test_slices(both: Evaluation) -> None:
    assert list(both.scores["model"]) == ["all", "seen", "unseen", "label:0", "label:1"]
    sizes = {name: scores["bpc"].n for name, scores in both.scores["model"].items()}
    assert sizes == {"all": 25, "seen": 15, "unseen": 10, "label:0": 13, "label:1": 12}
    assert both.scores["model"]["unseen"]["polite"].value == 0
    assert both.scores["base"]["seen"]["bpc"].value == 2 * 13 / 12


def test_an_answer_that_is_known_for_retrieval_alone_counts_as_seen() -> None:
    too_long = Pair("긴 질문", TEST[20].answer)
    for known, seen in ((TRAIN, 15), ([*TRAIN, too_long], 16)):
        eval_set = make_eval_set(TEST, COMPONENTS, known, EvalSettings())
        assert eval_set.slices["seen"].sum() == seen


def test_retrieval_finds_known_answers(both: Evaluation) -> None:
    scores = both.scores["retrieval"]
    assert scores["seen"]["hits_at_1"].value == 1
    assert scores["seen"]["chrf"].value == pytest.approx(100)
    assert scores["unseen"]["chrf"].value < 30
    assert "bpc" not in scores["all"]
    assert both.samples[0].replies["retrieval"] == both.samples[0].evidence.answer


def test_human_answers_as_a_reference(both: Evaluation) -> None:
    scores = both.scores["human"]["all"]
    assert (scores["unique"].value, scores["polite"].value, scores["bland"].value) == (1, 15 / 25, 15 / 25)
    assert set(scores) == {"bland", "polite", "unique", "distinct_1", "distinct_2", "backward_hits_at_1"}


def test_a_bot_comes_first_with_the_sources_of_its_replies(both: Evaluation) -> None:
    assert list(both.scores) == ["bot", "model", "base", "retrieval", "human"]
    scores = both.scores["bot"]["all"]
    sources = {name: score.value for name, score in scores.items() if name.startswith("source_")}
    nothing = {"source_known": 0, "source_small_talk": 0, "source_suggestions": 0}
    assert sources == {**nothing, "source_generated": 21 / 25, "source_fallback": 4 / 25}
    assert scores["source_generated"].low is not None
    assert scores["latency_p50_ms"].value >= 0
    # The known answers have 12 characters and the new ones 7: of the 15 longest it has no favourite.
    assert both.scores["bot"]["unseen"]["recall_at_5"].value == 0
    assert both.scores["bot"]["seen"]["hits_at_1"].value == 0
    assert both.samples[0].replies["bot"] in (both.samples[0].question, "뭐라고요?")
    assert not {"bpc", "question_gain", "ended"} & scores.keys()


def test_the_question_is_found_from_a_reply_that_fits(both: Evaluation) -> None:
    hits = {system: slices["all"]["backward_hits_at_1"] for system, slices in both.scores.items()}
    assert hits["model"].value == hits["human"].value > 0.4  # its replies are the written answers
    assert hits["bot"].value > 0.75
    assert hits["base"].value <= 2 / 25  # one reply to all
    assert hits["retrieval"].n == 25
    assert hits["human"].low is not None


def test_chance_and_samples(both: Evaluation) -> None:
    assert both.candidates == 20
    assert both.chance["hits_at_1"] == 0.05
    assert len(both.samples) == 20
    assert both.chance["backward_hits_at_1"] == 0.05
    assert all(set(sample.replies) == {"bot", "model", "base", "retrieval"} for sample in both.samples)


def test_only_so_many_rows_are_ranked_and_replied_to() -> None:
    evaluation = evaluated(options=EvalSettings(rows=7, samples=3, resamples=10), model=QuestionBlindModel())
    scores = evaluation.scores["model"]["all"]
    assert (scores["bpc"].n, scores["question_gain"].n, scores["hits_at_1"].n, scores["unique"].n) == (25, 25, 7, 7)
    assert sum("hits_at_1" in row.terms["model"] for row in evaluation.rows) == 7
    assert sum(bool(row.replies) for row in evaluation.rows) == 7


def test_only_so_many_rows_count_for_likelihoods() -> None:
    evaluation = evaluated(options=EvalSettings(rows=3, likelihood_rows=7, resamples=10), model=QuestionBlindModel())
    scores = evaluation.scores["model"]["all"]
    assert (scores["bpc"].n, scores["hits_at_1"].n) == (7, 3)
    ranked = [row for row in evaluation.rows if "hits_at_1" in row.terms["model"]]
    assert all("bpc" in row.terms["model"] for row in ranked), "what is ranked is scored, too"


def test_a_recorded_system_counts_on_the_rows_measured_now(both: Evaluation) -> None:
    systems = Systems({"model": QuestionBlindModel()}, recorded={"base": {row.id: row for row in both.rows}})
    options = EvalSettings(rows=3, likelihood_rows=7, resamples=10)
    again = evaluate(TEST, components=COMPONENTS, systems=systems, index=LexicalIndex.build(TRAIN), options=options)
    now = {metric: score.n for metric, score in again.scores["model"]["all"].items()}
    recorded = {metric: score.n for metric, score in again.scores["base"]["all"].items()}
    assert recorded.items() <= now.items()
    assert (recorded["bpc"], recorded["hits_at_1"], recorded["bland"]) == (7, 3, 3)


def test_recorded_systems_keep_their_scores(both: Evaluation) -> None:
    components, index = COMPONENTS[: len(TEST)], LexicalIndex.build(TRAIN)
    rows = {row.id: row for row in both.rows}
    systems = Systems({"model": QuestionBlindModel()}, recorded={"base": rows})
    again = evaluate(TEST, components=components, systems=systems, index=index)
    timed = {"latency_p50_ms", "latency_p95_ms"}
    for name, scores in both.scores["base"].items():
        expected = {metric: score for metric, score in scores.items() if metric not in timed}
        assert again.scores["base"][name] == expected


def test_rows_add_up_to_the_scores(both: Evaluation) -> None:
    terms = [row.terms["model"]["bpc"] for row in both.rows]
    assert sum(n for n, _ in terms) / sum(d for _, d in terms) == both.scores["model"]["all"]["bpc"].value
    assert [row.id for row in both.rows] == [pair.id for pair in TEST]
    assert json.loads(json.dumps(both.rows[3].to_json()))["shares"]["base"]["question_gain"] == [0, len(TEST[3].answer)]


def test_the_same_again(both: Evaluation) -> None:
    untimed = EvalSettings(timed_questions=0)
    truth = {pair.question: pair.answer for pair in TEST}
    first, again = (evaluated(options=untimed, model=OracleModel(truth), base=QuestionBlindModel()) for _ in range(2))
    assert first == again
    assert first.rows == both.rows


def test_one_pair_is_enough() -> None:
    evaluation = evaluated(TEST[:1], model=QuestionBlindModel())
    assert evaluation.chance == {"hits_at_1": 1, "recall_at_5": 1, "mrr": 1, "backward_hits_at_1": 1}
    assert "question_gain" not in evaluation.scores["model"]["all"]
    assert evaluation.scores["model"]["all"]["bpc"].low is None


def test_no_pairs_are_refused() -> None:
    with pytest.raises(RunError, match="--data"):
        evaluated([])


def test_history_stays_when_the_question_is_swapped() -> None:
    scored: list[Pair] = []

    class RecordingModel(QuestionBlindModel):
        def log2_probability(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
            scored.extend(pairs)
            return super().log2_probability(pairs)

    talk = [replace(pair, history=pair.messages) for pair in TEST]
    evaluated(talk, EvalSettings(rows=1), model=RecordingModel())
    swapped = scored[25:50]
    assert all(a.history == b.history and a.answer == b.answer for a, b in zip(swapped, talk, strict=True))
    assert all(a.question != b.question for a, b in zip(swapped, talk, strict=True))


def test_the_table_is_aligned(both: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")
    lines = both.lines()
    assert lines[0].split() == ["all", "pairs", "(n=25)", "bot", "model", "base", "retrieval", "human", "chance"]
    assert lines[1].startswith("bits per character ")
    assert "  1.000 [1.000, 1.000]  " in lines[1]
    column = lines[0].index("model")
    assert any(line.startswith("true question found from the reply (%) ") for line in lines)
    assert all(line[column - 1] == " " and line[column] != " " for line in lines[1 : lines.index("")])


def test_hangul_is_two_columns_wide() -> None:
    assert (display_width("BPC"), display_width("글자당 비트"), display_width("\u1112\u1161\u11ab")) == (3, 11, 2)
