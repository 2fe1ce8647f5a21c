from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_runs import TEST, TRAIN, all_second, fake_run, row_terms

from daedap.data.split import read_rows
from daedap.errors import RunError
from daedap.evaluation.compare import CommonRows, common_rows, read_evaluated_run
from daedap.files import write_json
from daedap.runs import Run
from daedap.types import Message, Pair


def shared(first: Run, second: Run) -> CommonRows:
    return common_rows(read_evaluated_run(first), read_evaluated_run(second))


def test_saved_rows_are_read_back(trained: Run) -> None:
    evaluated = read_evaluated_run(trained)
    assert evaluated.questions == {pair.id: pair.question for pair in read_rows(trained.folder, "test")}
    assert evaluated.rows.keys() == evaluated.questions.keys()
    assert evaluated.candidates == 9
    lines = (trained.folder / "evaluation" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [row.to_json() for row in evaluated.rows.values()] == [json.loads(line) for line in lines]


def test_a_score_that_is_no_number(tmp_path: Path) -> None:
    run = fake_run(tmp_path, lambda row: row_terms(2, bits=math.nan))
    assert "NaN" not in (run.folder / "evaluation" / "rows.jsonl").read_text(encoding="utf-8")
    above, below = read_evaluated_run(run).rows[TEST[0].id].terms["model"]["bpc"]
    assert math.isnan(above)
    assert below == 10


def test_the_same_test(tmp_path: Path) -> None:
    common = shared(fake_run(tmp_path), fake_run(tmp_path, lambda row: row_terms(1)))
    assert [one.id for one, _ in common.rows] == sorted(pair.id for pair in TEST)
    assert all(one.id == other.id and one.terms != other.terms for one, other in common.rows)
    assert (common.leaked, common.alone, common.same_test, len(set(common.groups))) == (0, 0, True, 20)


def test_only_common_rows_count(tmp_path: Path) -> None:
    common = shared(fake_run(tmp_path, test=TEST[:15]), fake_run(tmp_path, test=TEST[5:]))
    assert {one.id for one, _ in common.rows} == {pair.id for pair in TEST[5:15]}
    assert (common.leaked, common.alone, common.same_test) == (0, 10, False)


def test_rows_known_to_one_run_are_left_out(tmp_path: Path) -> None:
    learned = [*TRAIN, TEST[0], Pair(f"{TEST[6].question}!!", "다른 답이에요.")]  # a test row and a near-duplicate
    duplicate = Pair(TEST[1].question.replace("우리 ", "우리 집 "), "그럴 때가 있지요.")
    second = fake_run(tmp_path, train=[*learned, duplicate], test=TEST[3:])
    common = shared(fake_run(tmp_path), second)
    assert {one.id for one, _ in common.rows} == {pair.id for pair in [*TEST[3:6], *TEST[7:]]}
    assert (common.leaked, common.alone) == (3, 1)


def test_rows_known_to_both_runs_stay(tmp_path: Path) -> None:
    duplicate = Pair(f"{TEST[6].question}?!", "다른 답이에요.")
    first, second = (fake_run(tmp_path, train=[*TRAIN[:many], duplicate]) for many in (1, 2))
    assert (shared(first, second).leaked, len(shared(first, second).rows)) == (0, 20)


def test_the_conversation_before_a_question_counts(tmp_path: Path) -> None:
    talks = [
        Pair("네", f"{noun} 두 개 드릴게요.", history=(Message("assistant", f"{noun} 필요하세요?"),))
        for noun in ("사과", "수박", "레몬")
    ]
    second = fake_run(tmp_path, train=[Pair("네", "좋아요."), *TRAIN], test=talks)
    common = shared(fake_run(tmp_path, test=talks), second)
    assert (common.leaked, len(common.rows)) == (0, 3)


@pytest.mark.parametrize(
    ("one", "others", "groups"),
    [
        ([0, 0, 2, 3], [0, 1, 2, 3], 3),
        ([0, 0, 2, 3], [0, 1, 1, 3], 2),
        ([0, 0, 2, 2], [0, 1, 1, 3], 1),
    ],
)
def test_components_are_joined(tmp_path: Path, one: Sequence[int], others: Sequence[int], groups: int) -> None:
    first, second = (fake_run(tmp_path, test=TEST[:4], components=names) for names in (one, others))
    assert len(set(shared(first, second).groups.tolist())) == groups


def test_nothing_in_common(tmp_path: Path) -> None:
    first, second = fake_run(tmp_path, test=TEST[:5]), fake_run(tmp_path, train=[*TRAIN, *TEST[:5]], test=TEST[5:])
    with pytest.raises(RunError, match=r"no test rows in common \(5 left out.*same file.*evaluate --run RUN --data"):
        shared(first, second)


def test_runs_without_scores_are_refused(tmp_path: Path) -> None:
    unscored, empty, base, broken = (fake_run(tmp_path, all_second, test=test) for test in (TEST, [], TEST, TEST))
    (unscored.folder / "evaluation").rename(tmp_path / "gone")
    with pytest.raises(RunError, match=r"--no-evaluate.*daedap evaluate --run .*0001"):
        read_evaluated_run(unscored)
    with pytest.raises(RunError, match=r"without test rows.*--test-size 0\.1"):
        read_evaluated_run(empty)
    write_json(base.folder / "config.json", {"command": "pretrain"})
    with pytest.raises(RunError, match=r"a base.*daedap train FILE --base .*model"):
        read_evaluated_run(base)
    for damage in ('{"id": "a"}\n', "{", '{"id": "a", "shares": 3}\n', '{"shares": {"model": {"bpc": [1]}}}\n', "[]\n"):
        (broken.folder / "evaluation" / "rows.jsonl").write_text(damage, encoding="utf-8")
        with pytest.raises(RunError, match=r"the scores can't be read"):
            read_evaluated_run(broken)
