from __future__ import annotations

import numpy as np
import pytest

from daedap.evaluation import metrics
from daedap.evaluation.metrics import RatioTerms
from daedap.types import Evidence, Float64Array, Generation, Reply, Source


def array(*values: float) -> Float64Array:
    return np.array(values, dtype=np.float64)


def test_ranks_with_ties_and_broken_scores() -> None:
    scores = np.array([[3.0, 1, 2], [1.0, 1, 2], [2.0, 2, 2], [0.0, 1, 2], [np.nan, -1, -2], [0.0, np.nan, -1]])
    assert metrics.gold_ranks(scores).tolist() == [1, 2.5, 2, 3, 3, 1]


def test_hits_recall_and_reciprocal_rank() -> None:
    scores = metrics.ranking(array(1, 1.5, 5, 20, np.nan))
    one = np.zeros(5, dtype=np.int64)
    values = {name: metrics.ratio(tally, one) for name, tally in scores.items()}
    assert {name: (score.value, score.n) for name, score in values.items() if score} == {
        "hits_at_1": (1 / 4, 4),
        "recall_at_5": (3 / 4, 4),
        "mrr": (pytest.approx((1 + 2 / 3 + 1 / 5 + 1 / 20) / 4), 4),
    }


def test_chance() -> None:
    assert metrics.chance(20)["hits_at_1"] == 0.05
    assert metrics.chance(20)["recall_at_5"] == 0.25
    assert metrics.chance(3) == {"hits_at_1": 1 / 3, "recall_at_5": 1, "mrr": pytest.approx((1 + 1 / 2 + 1 / 3) / 3)}


def test_blind_guessing_scores_the_chance_level() -> None:
    scores = np.random.default_rng(0).random((20_000, 20))
    terms = metrics.ranking(metrics.gold_ranks(scores))
    for name, level in metrics.chance(20).items():
        assert terms[name].numerators.mean() == pytest.approx(level, rel=0.05)


def test_bits_per_character_counts_composed_characters() -> None:
    decomposed = "\u1112\u1161\u11ab"  # 한 in three code points
    tally = metrics.per_character(array(6, 4, 0), [decomposed, "글이요.", "안 잰 답"], np.array([True, True, False]))
    assert tally.numerators.sum() / tally.denominators.sum() == (6 + 4) / (1 + 4)


def test_question_gain_leaves_out_pairs_without_another_question() -> None:
    tally = metrics.per_character(array(-4 + 10, -9 + 1), ["둘이", "셋이요"], np.array([True, False]))
    assert tally.numerators.tolist() == [6, 0]
    assert tally.denominators.tolist() == [2, 0]


def test_ratio_of_sums_is_not_a_mean_of_ratios() -> None:
    score = metrics.ratio(RatioTerms(array(1, 9, 5), array(1, 3, 0)), np.array([0, 1, 2]))
    assert score is not None
    assert (score.value, score.n) == (10 / 4, 2)


def test_nothing_measured_has_no_score_and_one_component_no_interval() -> None:
    assert metrics.ratio(RatioTerms(array(0), array(0)), np.array([0])) is None
    assert metrics.ratio(RatioTerms(array(1, 0), array(1, 1)), np.array([7, 7])) == metrics.Score(0.5, n=2)


def test_interval_of_a_mean_agrees_with_theory() -> None:
    hits = np.random.default_rng(1).random(400) < 0.3
    interval = metrics.bootstrap(hits.astype(np.float64), np.ones(400), np.arange(400), resamples=2000)
    half = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 400)
    assert interval.low == pytest.approx(hits.mean() - half, abs=0.006)
    assert interval.high == pytest.approx(hits.mean() + half, abs=0.006)


def test_whole_components_are_drawn() -> None:
    # 10 components of 40 equal pairs: the interval must be that of 10 things, √40 times as wide as that of 400.
    component = np.repeat(np.arange(10), 40)
    hits = (component < 5).astype(np.float64)
    whole = metrics.bootstrap(hits, np.ones(400), component)
    single = metrics.bootstrap(hits, np.ones(400), np.arange(400))
    assert [whole.low, whole.high] == pytest.approx([0.2, 0.8], abs=0.05)
    assert (whole.high - whole.low) / (single.high - single.low) == pytest.approx(np.sqrt(40), rel=0.2)


def test_many_components_are_drawn_in_parts() -> None:
    values = np.arange(50_000.0) / 50_000  # 80 resamples fit into memory at once, so three parts
    interval = metrics.bootstrap(values, np.ones(50_000), np.arange(50_000), resamples=200)
    half = 1.96 * np.sqrt(1 / 12 / 50_000)
    assert [interval.low, interval.high] == pytest.approx([0.5 - half, 0.5 + half], abs=6e-4)


def test_the_seed_decides_the_resamples() -> None:
    values, groups = np.arange(30.0), np.arange(30) // 2
    first, again, other = (metrics.bootstrap(values, np.ones(30), groups, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_bland_replies_are_the_frequent_answers() -> None:
    frequent = metrics.frequent_answers(["네.", "네", "그래요.", "그래요!", "음", "아"], 3)
    assert frequent == {"네", "그래요", "아"}
    assert metrics.bland(["네!!", "음", "그래 요"], frequent).tolist() == [1, 0, 1]


def test_polite_endings() -> None:
    assert metrics.polite(["좋아요!", "좋아", "좋습니다.", ""]).tolist() == [1, 0, 1, 0]


def test_ended_within_32_tokens() -> None:
    replies = [
        Generation("네", ended, tokens, -1.0) for ended, tokens in [(True, 2), (True, 32), (True, 33), (False, 9)]
    ]
    assert metrics.ended(replies).tolist() == [1, 1, 0, 0]


def test_which_part_answers() -> None:
    def reply(source: Source, *suggestions: str) -> Reply:
        return Reply("뭐 해?", "네", source, 0.0, Evidence("뭐 하니", "네", 0.9), suggestions)

    def rates(*replies: Reply) -> dict[str, list[float]]:
        scores = metrics.parts(replies, known={("뭐 하니", "네")})
        return {name: values.tolist() for name, values in scores.items() if values.any()}

    assert rates(reply("retrieved"), reply("fallback")) == {"known": [1, 0], "fallback": [0, 1]}
    assert rates(reply("generated"), reply("lesson")) == {"generated": [1, 0], "lesson": [0, 1]}
    assert rates(reply("fallback", "뭐 하니"), reply("fallback")) == {"suggestions": [1, 0], "fallback": [0, 1]}
    courtesy = Reply("안녕", "반가워요.", "retrieved", 1.0, Evidence("안녕하세요", "반가워요.", 1.0))
    assert rates(courtesy) == {"small_talk": [1]}


def test_unique_replies_by_comparison_form() -> None:
    assert metrics.unique(["네.", "네", "아니요", "글쎄"]) == metrics.Score(3 / 4, n=4)


def test_distinct_at_a_fixed_number_of_ngrams() -> None:
    replies = [["a", "b", "a"], ["a", "b"], ["c"]]
    assert metrics.distinct(replies, 1) == metrics.Score(3 / 6, n=6)
    assert metrics.distinct(replies, 1, limit=4) == metrics.Score(2 / 4, n=4)
    assert metrics.distinct(replies, 2) == metrics.Score(2 / 3, n=3)  # ab ba | ab
    assert metrics.distinct([["a"]], 2) is None


def test_overlap_is_full_only_for_the_same_text() -> None:
    answers = ["맑고 따뜻해요.", "시간이 약이에요."]
    same, other = metrics.overlap(answers, answers), metrics.overlap(["글쎄", "몰라"], answers)
    assert [round(score.value) for score in same.values()] == [100, 100]
    assert all(score.value < 15 and score.low is None for score in other.values())


def test_latency_in_milliseconds() -> None:
    scores = metrics.latency([0.01 * i for i in range(101)])
    assert scores["latency_p50_ms"].value == pytest.approx(500)
    assert scores["latency_p95_ms"].value == pytest.approx(950)
