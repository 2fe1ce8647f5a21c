"""FAQ accuracy: right, suggested, wrong and refused; out of scope; the risk-coverage curve; look-ups beside the bot."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from daedap.evaluation.faq import FaqEvaluation, evaluate_faq, faq_tables, right_answer_rate
from daedap.evaluation.question_files import EvalQuestion
from daedap.types import Evidence, Pair, Reply

REFUND = Pair("환불은 언제 되나요?", "3영업일 안에 돌려 드려요.")
ABROAD = Pair("해외 배송도 되나요?", "국내로만 보내 드려요.")
PASSWORD = Pair("비밀번호를 잊어버렸어요.", "로그인 화면에서 새로 정하실 수 있어요.")
KNOWN = [REFUND, ABROAD, PASSWORD]
HELLO = Evidence("안녕", "안녕하세요, 반가워요.", 0.9)


def answer(question: str, pair: Pair, probability: float) -> Reply:
    return Reply(question, pair.answer, "retrieved", probability, Evidence(pair.question, pair.answer, 0.5))


def ask_back(question: str, pair: Pair, probability: float, *suggestions: Pair) -> Reply:
    nearest = Evidence(pair.question, pair.answer, 0.4)
    return Reply(question, "다시요?", "fallback", probability, nearest, tuple(one.question for one in suggestions))


REPLIES = [
    answer("돈은 언제 돌려줘요?", REFUND, 0.9),
    answer("암호를 까먹음", REFUND, 0.6),
    ask_back("외국으로도 보내요?", ABROAD, 0.4, REFUND, ABROAD),
    ask_back("비번 몰라요", REFUND, 0.2, REFUND),
    answer("국내에서만 입나요?", ABROAD, 0.7),
    Reply("하이", HELLO.answer, "retrieved", 0.9, HELLO),
    ask_back("주식 살까?", ABROAD, 0.05),
]
PARAPHRASES = [
    EvalQuestion("돈은 언제 돌려줘요?", ("3영업일 안에 돌려 드려요",), "words"),
    EvalQuestion("암호를 까먹음", (PASSWORD.answer,), "casual"),
    EvalQuestion("외국으로도 보내요?", (ABROAD.answer, "안 보내요."), "words"),
    EvalQuestion("비번 몰라요", (PASSWORD.answer,), "casual"),
]
OUTSIDE = [
    EvalQuestion(reply.question, (), kind) for reply, kind in zip(REPLIES[4:], ("near", "chat", "far"), strict=True)
]


class Scripted:
    """Gives these replies."""

    def reply_to_pairs(self, pairs: Sequence[Pair]) -> list[Reply]:
        by_question = {reply.question: reply for reply in REPLIES}
        return [by_question[pair.question] for pair in pairs]

    def score_candidates(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        return np.zeros((len(pairs), len(candidates[0])))


@pytest.fixture(scope="module")
def result() -> FaqEvaluation:
    return evaluate_faq(Scripted(), KNOWN, PARAPHRASES, OUTSIDE)


def test_outcomes_by_kind(result: FaqEvaluation) -> None:
    values = {
        kind: {metric: score.value for metric, score in scores.items()} for kind, scores in result.paraphrases.items()
    }
    assert values == {
        "all": {"right": 0.25, "right_or_suggested": 0.5, "wrong": 0.25, "refused": 0.5},
        "words": {"right": 0.5, "right_or_suggested": 1, "wrong": 0, "refused": 0.5},
        "casual": {"right": 0, "right_or_suggested": 0, "wrong": 0.5, "refused": 0.5},
    }
    outcomes = [json.loads(json.dumps(reply.to_json()))["outcome"] for reply in result.replies]
    assert outcomes == ["right", "known", "suggested", "refused", "known", "refused", "refused"]


def test_paraphrases_of_one_answer_are_drawn_together(result: FaqEvaluation) -> None:
    assert result.paraphrases["casual"]["wrong"].low is None, "two questions, but one answer"
    assert (result.paraphrases["all"]["right"].low, result.paraphrases["all"]["right"].high) == (0, 1)


def test_out_of_scope_and_parts(result: FaqEvaluation) -> None:
    answered = {kind: scores["answered"].value for kind, scores in result.out_of_scope.items()}
    assert answered == {"all": pytest.approx(1 / 3), "near": 1, "chat": 0, "far": 0}, "small talk is no known answer"
    parts = {side: {part: score.value for part, score in shares.items()} for side, shares in result.parts.items()}
    nothing = {"small_talk": 0, "generated": 0}
    assert parts["paraphrases"] == {**nothing, "known": 0.5, "suggestions": 0.5, "fallback": 0}
    third = pytest.approx(1 / 3)
    assert parts["out_of_scope"] == {
        "generated": 0,
        "suggestions": 0,
        "known": third,
        "small_talk": third,
        "fallback": third,
    }


def test_scores_if_nothing_were_refused(result: FaqEvaluation) -> None:
    bot = result.systems["bot"]
    assert {kind: score.value for kind, score in bot.right.items()} == {"all": 0.5, "words": 1, "casual": 0}
    # Scores 0.9 and 0.4 are right, 0.6, 0.2, 0.7, 0 (small talk) and 0.05 are not: 8 of 10 pairs in order.
    assert bot.auroc_right == pytest.approx(8 / 10)
    # Paraphrases 0.9, 0.6, 0.4, 0.2; out of scope 0.7, 0, 0.05.
    assert bot.auroc_scope == pytest.approx(9 / 12)
    assert set(result.systems) == {"bot", "ngrams", "encoder_questions", "encoder"}


def test_look_ups_beside_the_bot() -> None:
    same = [EvalQuestion(pair.question, (pair.answer,)) for pair in KNOWN]

    class Silent(Scripted):
        def reply_to_pairs(self, pairs: Sequence[Pair]) -> list[Reply]:
            return [Reply(pair.question, "글쎄요", "fallback", 0.0) for pair in pairs]

    systems = evaluate_faq(Silent(), KNOWN, same, []).systems
    right = {name: scores.right["all"].value for name, scores in systems.items()}
    assert right == {"bot": 0, "ngrams": 1, "encoder_questions": 1, "encoder": 1}
    assert [scores.auroc_scope for scores in systems.values()] == [None] * 4


def test_the_risk_coverage_curve(result: FaqEvaluation) -> None:
    curve = {point.threshold: point for point in result.curve}
    assert list(curve) == [0.9, 0.7, 0.6, 0.4, 0.2, 0.05, 0]
    assert (curve[0.9].coverage, curve[0.9].risk, curve[0.9].right, curve[0.9].out_of_scope) == (1 / 7, 0, 0.25, 0)
    half = curve[0.4]
    assert (half.coverage, half.risk, half.right) == (4 / 7, 0.5, 0.5)
    assert half.out_of_scope == pytest.approx(1 / 3)
    assert (curve[0].coverage, curve[0].out_of_scope) == (1, 1)


def test_json_and_tables(result: FaqEvaluation) -> None:
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    kinds, outside, systems, curve = faq_tables(document)
    assert [row[0] for row in kinds[1:]] == ["all", "words", "casual"]
    assert kinds[2][1:] == ["2", "50.0 [0.0, 100.0]", "100.0 [100.0, 100.0]", "0.0 [0.0, 0.0]", "50.0 [0.0, 100.0]"]
    assert [row[0] for row in outside[1:]] == ["all", "near", "chat", "far"]
    assert systems[0][1:4] == ["right (%)", "words", "casual"]
    assert curve[-1][:2] == ["100", "0.000"]
    lines = result.lines()
    assert lines[0].startswith("paraphrases (%)")
    assert any(line.startswith("suggestions to choose from (%)") for line in lines)


def test_only_one_of_the_two_files() -> None:
    paraphrases = evaluate_faq(Scripted(), KNOWN, PARAPHRASES, [])
    outside = evaluate_faq(Scripted(), KNOWN, [], OUTSIDE)
    assert (paraphrases.out_of_scope, outside.paraphrases) == ({}, {})
    assert (paraphrases.curve[-1].out_of_scope, outside.curve[-1].right) == (None, None)
    assert paraphrases.systems["bot"].auroc_scope is None
    assert all(evaluation.lines() for evaluation in (paraphrases, outside))


def test_replies_are_right_by_comparison_form() -> None:
    assert right_answer_rate(Scripted(), PARAPHRASES[:2]).value == 0.5
