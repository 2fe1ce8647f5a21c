from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from queries import encoded

from daedap.model.sentence_encoder import built_in_encoder
from daedap.retrieval.lexical import LexicalIndex
from daedap.retrieval.matcher import SIGNALS, VIEWS, AnswerMatcher, MatchWeights, with_rival
from daedap.types import Pair

FAQ = [
    Pair("환불은 언제 되나요?", "검수가 끝나면 3영업일 안에 돌려 드려요."),
    Pair("해외 배송도 되나요?", "지금은 국내 주소로만 보내 드려요."),
    Pair("매장은 어디에 있나요?", "솔빛시 단풍로 12, 2층에 있어요."),
    Pair("비밀번호를 잊어버렸어요.", "로그인 화면의 비밀번호 찾기에서 새로 정하실 수 있어요."),
    Pair("돈은 며칠 뒤에 들어와요?", "검수가 끝나면 3영업일 안에 돌려 드려요."),
]


def matcher(pairs: list[Pair]) -> AnswerMatcher:
    return AnswerMatcher.build(LexicalIndex.build(pairs), built_in_encoder())


@pytest.mark.parametrize(
    ("query", "row"),
    [("외국에 사는데 받아 볼 수 있어요?", 1), ("암호가 기억이 안 나요", 3), ("가게 위치 좀 알려 주세요", 2)],
)
def test_a_paraphrase_matches_its_row(query: str, row: int) -> None:
    match = matcher(FAQ).match(encoded(query))[0]
    assert match.rows[0] == row
    assert 0 < match.probability < 1


def test_rows_with_the_same_answer_are_matched_once() -> None:
    match = matcher(FAQ).match(encoded("환불 받으려면 얼마나 걸려요?"), k=4)[0]
    answers = [FAQ[row].answer for row in match.rows]
    assert len(set(answers)) == len(answers) == 4


def test_what_nobody_answers_is_less_probable_than_a_paraphrase() -> None:
    asked, chat, nonsense = matcher(FAQ).match(encoded("암호를 까먹었어요", "오늘 점심 뭐 먹지", "asdfqwer"))
    assert asked.probability > 2 * max(chat.probability, nonsense.probability)


def test_a_known_question_is_certain_and_the_newest_of_its_rows_is_taken() -> None:
    match = matcher([Pair("해외배송도 되나요", "이제 일본에도 보내 드려요."), *FAQ]).match(
        encoded("해외 배송도 되나요?")
    )[0]
    assert (match.rows[0], match.probability, match.similarities[0]) == (0, 1.0, 1.0)


def test_a_query_alone_and_in_a_batch_are_the_same() -> None:
    queries = ["암호가 기억이 안 나요", "", "가게 위치", "돈 언제 들어와"]
    many, one = matcher(FAQ).match(encoded(*queries)), [matcher(FAQ).match(encoded(query))[0] for query in queries]
    assert [match.rows.tolist() for match in many] == [match.rows.tolist() for match in one]
    assert [match.probability for match in many] == pytest.approx([match.probability for match in one], abs=1e-2)


def test_extended_and_saved_vectors_are_those_of_the_whole_file(tmp_path: Path) -> None:
    whole, index = matcher(FAQ), LexicalIndex.build(FAQ)
    grown = matcher(FAQ[1:4]).extended(index, before=FAQ[:1], after=FAQ[4:])
    assert np.abs(grown.questions - whole.questions).max() < 1e-2
    assert np.abs(grown.answers - whole.answers).max() < 1e-2
    whole.save(tmp_path)
    again = AnswerMatcher.open(tmp_path, index, built_in_encoder())
    assert [match.rows.tolist() for match in again.match(encoded("암호"))] == [
        match.rows.tolist() for match in whole.match(encoded("암호"))
    ]


def test_answers_count_where_they_fit_their_questions() -> None:
    answers = [VIEWS.index("lexical_answer"), VIEWS.index("sentence_answer")]
    assert (matcher(FAQ).view_weights[answers] > 0).all()
    shuffled = [Pair(pair.question, other.answer) for pair, other in zip(FAQ, FAQ[1:4] + FAQ[:1], strict=False)]
    assert (matcher(shuffled).view_weights[answers] == 0).all()
    assert matcher(shuffled).view_weights.sum() == pytest.approx(matcher(FAQ).view_weights.sum())


def test_a_single_pair() -> None:
    match = matcher(FAQ[:1]).match(encoded("환불"))[0]
    assert match.rows.tolist() == [0]
    assert 0 <= match.probability <= 1


def signal(pairs: list[Pair], query: str, name: str, k: int = 4) -> float:
    return float(matcher(pairs).signals(encoded(query), k)[0].calibration[SIGNALS.index(name)])


def test_signals_do_not_depend_on_how_many_matches_are_asked_for() -> None:
    one, many = (matcher(FAQ).signals(encoded("암호를 까먹었어요"), k)[0] for k in (1, 4))
    assert (len(one.rows), len(many.rows)) == (1, 4)
    assert one.calibration == pytest.approx(many.calibration)


def test_small_talk_is_measured_against_the_best_question() -> None:
    assert signal(FAQ, "오늘 기분이 너무 우울해", "small_talk") > signal(FAQ, "가게 위치 좀 알려 주세요", "small_talk")
    talk = [Pair("기분이 우울해요", "무슨 일이 있었나요?"), Pair("심심해", "같이 놀아요.")]
    assert signal(talk, "오늘 기분이 너무 우울해", "small_talk") < signal(FAQ, "오늘 기분이 너무 우울해", "small_talk")


def test_a_row_that_holds_every_token_covers_the_query() -> None:
    assert signal(FAQ, FAQ[0].question, "tokens") > 0.9 > signal(FAQ, "모델 키가 몇이에요?", "tokens")


def test_rows_with_the_same_answer_are_no_rivals() -> None:
    copied = [*FAQ, Pair("암호를 잊었어요", FAQ[3].answer)]
    for name in ("margin", "question_margin", "token_margin"):
        assert signal(copied, "비밀번호를 잊어버렸는데요", name) > 0.1


def test_a_rival_lowers_margins() -> None:
    calibration = matcher(FAQ).signals(encoded("암호를 까먹었어요"))[0].calibration
    lowered = with_rival(calibration, 0.01)
    assert lowered[SIGNALS.index("margin")] == pytest.approx(0.01)
    assert lowered[SIGNALS.index("coverage")] == calibration[SIGNALS.index("coverage")]
    assert with_rival(calibration, 9.0) == pytest.approx(calibration)


def test_the_weights_of_the_package_are_complete() -> None:
    weights = MatchWeights.default()
    assert tuple(weights.views) == VIEWS
    assert tuple(weights.signals) == SIGNALS
    assert sum(weights.views.values()) == pytest.approx(1, abs=1e-3)
    assert len(weights.small_talk) == built_in_encoder().width
