from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace

import pytest
from test_similar import cosine, questions

from daedap.config import SplitMethod, SplitOptions
from daedap.data.dedup import THRESHOLD
from daedap.data.split import Leakage, Split, SplitName, extend_split, question_in_context, split
from daedap.errors import SettingsError
from daedap.korean.text import comparison_form
from daedap.types import Message, Pair

METHODS: tuple[SplitMethod, ...] = ("components", "random")
HALVES = SplitOptions(dev_size=0.2, test_size=0.3)


def pairs(number: int = 400, seed: int = 0) -> list[Pair]:
    return [Pair(text, f"대답 {row % 50}", line=row + 2) for row, text in enumerate(questions(number, seed))]


def counts(parts: Split) -> dict[SplitName, int]:
    return {side: parts.assignments.count(side) for side in ("train", "dev", "test", "left_out", "unused")}


def near(one: Pair, other: Pair) -> bool:
    forms = comparison_form(question_in_context(one)), comparison_form(question_in_context(other))
    return forms[0] == forms[1] or cosine(*forms) >= THRESHOLD


@pytest.mark.parametrize("seed", range(3))
def test_no_near_duplicate_on_another_side(seed: int) -> None:
    parts = split(pairs(seed=seed), HALVES)
    used = [(pair, side) for pair, side in zip(parts.pairs, parts.assignments, strict=True) if side != "left_out"]
    crossing = [
        (one.question, other.question)
        for place, (one, side) in enumerate(used)
        for other, its_side in used[:place]
        if side != its_side and near(one, other)
    ]
    assert not crossing
    assert all(counts(parts)[side] for side in ("train", "dev", "test"))
    assert parts.leak.questions == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_row_keeps_its_side_whatever_is_appended(seed: int) -> None:
    rows = pairs(300, seed) + pairs(300, seed + 100)
    whole = split(rows, HALVES)
    for length in (1, 50, 300, 599):
        assert split(rows[:length], HALVES).assignments == whole.assignments[:length]


def bridge() -> tuple[Pair, Pair, Pair]:
    """Two questions of different sides, and one that is a near-duplicate of both."""
    heads = ["김치찌개를", "떡볶이를", "삼겹살을", "비빔밥을", "칼국수를", "순대국을", "돈가스를", "갈비탕을"]
    tails = ["먹으러갈까", "만들어볼래", "시켜서먹자", "나눠먹어요", "포장해왔다", "못먹겠더라"]
    for head in heads:
        for tail in tails:
            one, other = Pair(head + "우리오늘저녁에", "가"), Pair("우리오늘저녁에" + tail, "나")
            both = Pair(head + "우리오늘저녁에" + tail, "다")
            sides = split([one, other], HALVES).assignments
            if {*sides} == {"train", "test"} and near(one, both) and near(other, both) and not near(one, other):
                return one, other, both
    raise AssertionError("no such questions")


def test_a_row_that_would_join_two_sides_is_left_out() -> None:
    one, other, both = bridge()
    parts = split([one, other, both], HALVES)
    assert parts.assignments[2] == "left_out"
    assert parts.rows("left_out") == [both]
    assert set(parts.assignments[:2]) == {"train", "test"}


def test_the_same_question_again_is_left_out_too() -> None:
    one, other, both = bridge()
    again = replace(both, question=both.question + "?!", answer="라")
    assert split([one, other, both, again], HALVES).assignments[2:] == ["left_out", "left_out"]


def test_a_row_that_comes_first_joins_the_two() -> None:
    one, other, both = bridge()
    parts = split([both, one, other], HALVES)
    assert len({*parts.assignments}) == 1
    assert list(parts.components) == [0, 0, 0]
    assert parts.components_of(parts.assignments[0]) == [both.id] * 3


def test_threads_are_never_cut() -> None:
    rows = [replace(pair, conversation_id=f"대화 {row // 4}") for row, pair in enumerate(pairs(400, 3))]
    parts = split(rows, HALVES)
    sides = defaultdict(set)
    for pair, side in zip(rows, parts.assignments, strict=True):
        if side != "left_out":
            sides[pair.conversation_id].add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert {side for found in sides.values() for side in found} == {"train", "dev", "test"}


def test_a_question_is_asked_within_its_conversation() -> None:
    talks = [(Message("user", text), Message("assistant", "그렇군요")) for text in questions(60, 5)]
    parts = split([Pair("네", "알겠어요", history=talk) for talk in talks], HALVES)
    assert len({*parts.components}) > 1


def test_sizes_as_shares_and_as_numbers() -> None:
    rng = random.Random(0)
    rows = [Pair("".join(rng.choices("가나다라마바사아자차카타파하거너더러머버", k=12)), "네") for _ in range(2000)]
    shares, numbers = SplitOptions(dev_size=0.1, test_size=0.2), SplitOptions(dev_size=200, test_size=400)
    found = counts(split(rows, shares))
    assert found["dev"] == pytest.approx(200, abs=40)
    assert found["test"] == pytest.approx(400, abs=60)
    assert sum(found.values()) == 2000
    assert split(rows, shares).assignments == split(rows, numbers).assignments
    exact = counts(split(rows, replace(numbers, split="random")))
    assert (exact["dev"], exact["test"]) == (200, 400)


def test_nothing_is_held_out_unless_asked() -> None:
    assert {*split(pairs(), SplitOptions(dev_size=0, test_size=0)).assignments} == {"train"}


def test_random_split_depends_on_the_seed() -> None:
    rows, split_options = pairs(100), SplitOptions(split="random")
    assert split(rows, split_options, seed=1).assignments == split(rows, split_options, seed=1).assignments
    assert split(rows, split_options, seed=1).assignments != split(rows, split_options, seed=2).assignments


def test_random_split_says_what_leaks() -> None:
    """Counted by hand over many seeds: equal questions in any order, a near one, answers."""
    rows = [
        Pair("배고파 죽겠어", "라면 드세요."),
        Pair("배고파죽겠어!", "밥 드세요."),
        Pair("배고파 죽겠어~", "빵 드세요."),
        Pair("배고파 죽겠어요", "라면 드세요"),
        Pair("강아지가 아파", "병원에 가요."),
        Pair("시험 망쳤어", "다음이 있죠."),
    ]
    seen = set()
    for seed in range(40):
        parts = split(rows, SplitOptions(split="random", dev_size=1, test_size=3), seed=seed)
        train, test = parts.rows("train"), parts.rows("test")
        questions_known = sum(any(near(pair, other) for other in train) for pair in test)
        answers_known = sum(
            any(comparison_form(pair.answer) == comparison_form(other.answer) for other in train) for pair in test
        )
        assert parts.leak == Leakage(questions_known / 3, answers_known / 3)
        seen.add(parts.leak)
    assert len(seen) > 4


@pytest.mark.parametrize("method", METHODS)
def test_a_smaller_fraction_is_part_of_a_larger_one(method: SplitMethod) -> None:
    rows = pairs(500, 2)
    taken = {}
    for fraction in (0.1, 0.3, 0.7, 1.0):
        parts = split(rows, SplitOptions(split=method, fraction=fraction), seed=3)
        taken[fraction] = {pair.line for pair in parts.rows("train")}
        assert parts.rows("test") == split(rows, SplitOptions(split=method), seed=3).rows("test")
        whole = len(taken[fraction]) + counts(parts)["unused"]
        assert len(taken[fraction]) == pytest.approx(fraction * whole, abs=5)
    assert taken[0.1] < taken[0.3] < taken[0.7] < taken[1.0]


def test_what_leaks_is_counted_after_thinning() -> None:
    rows = [Pair(text, f"대답 {row // 2}") for row, text in enumerate(questions(300, 4))]
    for method in METHODS:
        parts = split(rows, SplitOptions(split=method, test_size=0.3, fraction=0.1))
        known = {pair.answer for pair in parts.rows("train")}
        test = parts.rows("test")
        assert parts.leak.answers == pytest.approx(sum(pair.answer in known for pair in test) / len(test))


@pytest.mark.parametrize(
    "options",
    [{"fraction": 0.0}, {"fraction": 1.5}, {"test_size": -0.1}, {"dev_size": -1}, {"test_size": float("nan")}],
)
def test_sizes_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="--"):
        SplitOptions(**options)  # type: ignore[arg-type]


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(SettingsError, match="all 10 rows"):
        split(pairs(10), SplitOptions(dev_size=5, test_size=5))
    with pytest.raises(SettingsError, match="Lower one"):
        split(pairs(10), SplitOptions(dev_size=0.5, test_size=0.5))


def test_tiny_inputs() -> None:
    empty = split([], SplitOptions())
    assert (empty.rows("train"), list(empty.components), empty.leak) == ([], [], Leakage(0.0, 0.0))
    for method in METHODS:
        split_options = SplitOptions(split=method)
        assert len(split(pairs(1), split_options).assignments) == 1
        assert len(split(pairs(2), split_options, seed=5).assignments) == 2
        assert split([], split_options).assignments == []


@pytest.mark.parametrize("seed", range(3))
def test_a_split_that_grows_is_the_split_of_everything(seed: int) -> None:
    rows = pairs(300, seed) + pairs(300, seed + 100)
    continue_split = extend_split(split(rows[:200], HALVES), rows[200:], HALVES)
    whole = split(rows, HALVES)
    assert (list(continue_split.pairs), list(continue_split.assignments), list(continue_split.components)) == (
        rows,
        whole.assignments,
        whole.components,
    )
    assert continue_split.leak == whole.leak


@pytest.mark.parametrize("method", METHODS)
def test_what_was_learned_is_learned_whatever_the_fraction(method: SplitMethod) -> None:
    rows = pairs(300)
    small = replace(HALVES, split=method, fraction=0.3)
    before = split(rows, small)
    for fraction in (0.1, 0.6, 1.0):
        after = extend_split(before, [], replace(small, fraction=fraction))
        assert set(before.rows("train")) <= set(after.rows("train"))
        assert after.rows("test") == before.rows("test")
    assert not extend_split(before, [], replace(small, fraction=1.0)).rows("unused")


def test_at_random_new_rows_are_parted_by_themselves() -> None:
    split_options = replace(HALVES, split="random")
    before = split(pairs(200), split_options, seed=3)
    after = extend_split(before, pairs(100, seed=9), split_options, seed=3)
    assert list(after.assignments[:200]) == list(before.assignments)
    assert [after.assignments[200:].count(side) for side in ("train", "dev", "test")] == [50, 20, 30]
    assert after.leak.questions > 0
