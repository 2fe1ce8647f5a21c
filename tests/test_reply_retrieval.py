from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from daedap.config import SplitOptions
from daedap.data.doctor import load
from daedap.data.split import split
from daedap.evaluation.metrics import gold_ranks
from daedap.evaluation.reply_retrieval import (
    OVERLAP_WEIGHT,
    RIDGE,
    ReplyToQuestionScorer,
    split_morphemes,
    tfidf_vectors,
)
from daedap.evaluation.testset import candidate_questions
from daedap.types import Pair

pytestmark = pytest.mark.slow

CHATBOT = Path(__file__).parents[2] / "shared" / "data" / "chatbot" / "ChatbotData.csv"
FEELS = {
    "피곤": "쉬엄쉬엄 하세요",
    "배고프": "맛있는 걸 드세요",
    "심심하": "친구를 만나 보세요",
    "아프": "병원에 가 보세요",
}
WHO = ("동생이", "엄마가", "부장님이", "친구가", "강아지가", "선생님이", "애인이", "손님이", "의사가", "아이가")
TRAIN = [
    Pair(f"{who} {feels}대", f"{who[:-1]}한테 {answer}, 꼭요 {number}", "0")
    for number, who in enumerate(WHO)
    for feels, answer in FEELS.items()
]
QUESTIONS = ["조카가 피곤하대", "조카가 배고프대", "조카가 심심하대", "조카가 아프대"]


@pytest.fixture(scope="module")
def scorer() -> ReplyToQuestionScorer:
    return ReplyToQuestionScorer.fit(TRAIN)


def test_a_fitting_reply_finds_its_question(scorer: ReplyToQuestionScorer) -> None:
    replies = ["좀 쉬엄쉬엄 하시라고 해요", "맛있는 밥이 최고죠", "친구가 있으면 좋을 텐데요", "얼른 병원에 가야죠"]
    scores = scorer.scores(replies, [QUESTIONS] * 4)
    assert scores.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert scores.dtype == np.float64


def test_candidates_stand_in_any_order(scorer: ReplyToQuestionScorer) -> None:
    straight = scorer.scores(["얼른 병원에 가야죠"], [QUESTIONS])
    turned = scorer.scores(["얼른 병원에 가야죠"], [QUESTIONS[::-1]])
    assert turned[0, ::-1] == pytest.approx(straight[0], abs=1e-5)


def test_batches_give_the_same_scores(scorer: ReplyToQuestionScorer) -> None:
    replies = [f"{who} 병원에 갔어요" for who in WHO] * 60  # more than are taken at once
    scores = scorer.scores(replies, [QUESTIONS] * 600)
    assert scores[-10:] == pytest.approx(scores[:10], abs=1e-5)
    assert scores[3] == pytest.approx(scorer.scores(replies[3:4], [QUESTIONS])[0], abs=1e-5)


def test_a_constant_reply_is_at_chance(scorer: ReplyToQuestionScorer) -> None:
    questions = [pair.question for pair in TRAIN]
    offered = [[question, *(other for other in questions if other != question)] for question in questions]
    ranks = gold_ranks(scorer.scores(["힘내세요"] * len(questions), offered))
    assert ranks.mean() == pytest.approx((len(questions) + 1) / 2, abs=0.1)


@pytest.mark.parametrize("reply", ["", "zzz", "😀", "\x00"])
def test_an_empty_reply_is_no_error(scorer: ReplyToQuestionScorer, reply: str) -> None:
    assert np.isfinite(scorer.scores([reply], [["", *QUESTIONS]])).all()


def test_a_training_answer_is_scored_without_its_own_rows() -> None:
    """Nothing but these pairs says that the password goes with the magic word."""
    secret = Pair("비밀번호가 뭐야", "열려라 참깨", "0")
    scorer = ReplyToQuestionScorer.fit([*TRAIN, secret, Pair("비밀번호가 뭐니", "열려라 참깨", "0")])
    offered = [[secret.question, *QUESTIONS]]
    alike, repeated = scorer.scores(["참깨 열려라", "열려라, 참깨"], offered * 2)
    assert alike.argmax() == 0
    assert alike[0] > 0.5
    assert repeated.argmax() != 0
    assert repeated[0] < 0.1


def test_leave_one_out_equals_a_regression_without_the_rows() -> None:
    """Against the regression itself, made again without the answer's pairs, whitening and word weights unchanged."""
    repeated = [*TRAIN, Pair("삼촌이 아프대", TRAIN[7].answer), Pair("삼촌이 지쳤대", TRAIN[7].answer)]
    reply = TRAIN[7].answer
    scorer = ReplyToQuestionScorer.fit(repeated)
    others = [pair for pair in repeated if pair.answer != reply]
    answers = tfidf_vectors(scorer.answer_words, split_morphemes([pair.answer for pair in others]))
    questions = tfidf_vectors(scorer.question_words, split_morphemes([pair.question for pair in others]))
    candidates = split_morphemes(QUESTIONS)
    ridge = (answers.T @ answers).toarray() + RIDGE * np.eye(answers.shape[1])
    weights = np.linalg.solve(ridge, (answers.T @ questions).toarray())
    predicted = tfidf_vectors(scorer.answer_words, split_morphemes([reply])) @ weights
    vectors = np.vstack([predicted, tfidf_vectors(scorer.question_words, candidates).toarray()])
    white = np.linalg.solve(scorer.question_factor, vectors.T).T
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    overlap = tfidf_vectors(scorer.all_words, split_morphemes([reply])) @ tfidf_vectors(scorer.all_words, candidates).T
    expected = white[0] @ white[1:].T + OVERLAP_WEIGHT * overlap.toarray()[0]
    assert scorer.scores([reply], [QUESTIONS])[0] == pytest.approx(expected, abs=1e-4)


def test_order_and_repetition_change_nothing(scorer: ReplyToQuestionScorer) -> None:
    turned = ReplyToQuestionScorer.fit(TRAIN[::-1])
    replies = ["얼른 병원에 가야죠", TRAIN[3].answer]
    assert turned.scores(replies, [QUESTIONS] * 2) == pytest.approx(scorer.scores(replies, [QUESTIONS] * 2), abs=1e-5)


def test_one_pair_is_enough() -> None:
    scorer = ReplyToQuestionScorer.fit(TRAIN[:1])
    assert np.isfinite(scorer.scores([TRAIN[0].answer, "글쎄요"], [QUESTIONS] * 2)).all()


@pytest.mark.skipif(not CHATBOT.exists(), reason=f"needs {CHATBOT}")
def test_on_written_answers() -> None:
    parts = split(load(CHATBOT).pairs, SplitOptions())
    dev = parts.rows("dev")
    scorer = ReplyToQuestionScorer.fit(parts.rows("train"))
    offered = candidate_questions(dev)
    hits, shuffled = (
        float((gold_ranks(scorer.scores(replies, offered)) <= 1).mean())
        for replies in ([pair.answer for pair in dev], [pair.answer for pair in dev[200:] + dev[:200]])
    )
    assert hits > 0.33  # 36.5 % were measured
    assert shuffled < 0.09
