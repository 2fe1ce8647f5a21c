from __future__ import annotations

import numpy as np
import pytest

from daedap.model.sentence_encoder import built_in_encoder
from daedap.retrieval.interaction import InteractionModel, TokenPair
from daedap.types import Float32Array, Pair

FAQ = [
    Pair("안경테 가격은 얼마인가요?", "뿔테는 3만 원부터, 티타늄은 8만 원부터예요."),
    Pair("시력 검사는 무료인가요?", "안경을 맞추시면 무료이고, 검사만 하시면 5,000원이에요."),
    Pair("부러진 안경을 고칠 수 있나요?", "나사와 코 받침은 무료로 갈아 드리고, 용접은 1만 원이에요."),
]


def log_odds(query: str, pairs: list[Pair]) -> list[float]:
    encoder = built_in_encoder()
    vector = encoder.encode([query])[0]
    sides = [encoder.encode([getattr(pair, side) for pair in pairs]) @ vector for side in ("question", "answer")]
    behind = [np.array([np.delete(side, row).max(initial=0) for row in range(len(pairs))]) for side in sides]
    tokens = [TokenPair(*encoder.encode_tokens([pair.question, pair.answer])) for pair in pairs]
    similarities = np.stack([*sides, sides[0] - behind[0], sides[1] - behind[1]], axis=1)
    query_tokens = encoder.encode_tokens([query])[0]
    return [float(odds) for odds in InteractionModel.default().log_odds(query_tokens, tokens, similarities)]


@pytest.mark.parametrize(
    ("query", "row"),
    [("테만 고르면 얼마쯤 하나요?", 0), ("시력만 재 봐도 되나요?", 1), ("다리가 부러졌는데 수리 되나요?", 2)],
)
def test_the_pair_that_answers_has_the_highest_odds(query: str, row: int) -> None:
    assert int(np.argmax(log_odds(query, FAQ))) == row


@pytest.mark.parametrize(
    "query", ["안경테는 어느 나라에서 만들어요?", "오늘 저녁 뭐 먹지", "안경 쓰면 더 똑똑해 보이나?"]
)
def test_what_no_pair_answers_has_lower_odds(query: str) -> None:
    assert max(log_odds(query, FAQ)) < log_odds("테만 고르면 얼마쯤 하나요?", FAQ)[0]


def test_pairs_are_read_apart_from_each_other() -> None:
    model, random = InteractionModel.default(), np.random.default_rng(0)
    width = model.weights["project.weight"].shape[1]

    def tokens(count: int) -> Float32Array:
        rows: Float32Array = random.standard_normal((count, width)).astype(np.float32)
        rows /= np.sqrt(width)
        return rows

    query, pairs = (
        tokens(5),
        [TokenPair(tokens(3), tokens(7)), TokenPair(tokens(4), tokens(0)[:0]), TokenPair(tokens(9), tokens(2))],
    )
    similarities = random.random((3, 4)).astype(np.float32)
    together = model.log_odds(query, pairs, similarities)
    apart = [model.log_odds(query, [pair], similarities[n : n + 1])[0] for n, pair in enumerate(pairs)]
    assert together == pytest.approx(apart, abs=1e-3)
