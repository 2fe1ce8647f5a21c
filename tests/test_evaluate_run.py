"""The evaluation that a run keeps: the largest one on its own test rows."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import PAIRS, write_csv

import daedap
from daedap.evaluation.compare import read_evaluated_run
from daedap.evaluation.evaluate import Evaluation, Row
from daedap.evaluation.evaluate_run import save_evaluation
from daedap.evaluation.metrics import Score
from daedap.evaluation.run_record import read_run_record
from daedap.files import write_json
from daedap.runs import FORMAT, Run, TrainConfig, find, sizes

pytestmark = pytest.mark.slow


def evaluation(hits: Sequence[float], ranked: int) -> Evaluation:
    """The first `ranked` rows are ranked and replied to; all have likelihoods."""
    rows = tuple(
        Row(
            id=pair.id,
            component=pair.id,
            label="",
            seen=True,
            question=pair.question,
            answer=pair.answer,
            replies={"model": "네"} if row < ranked else {},
            terms={"model": {"bpc": (20.0, 10.0), **({"hits_at_1": (hits[row], 1.0)} if row < ranked else {})}},
        )
        for row, pair in enumerate(PAIRS[: len(hits)])
    )
    scores = {"bpc": Score(2.0, n=len(rows)), "hits_at_1": Score(sum(hits[:ranked]) / ranked, n=ranked)}
    return Evaluation(len(rows), len(rows), 20, {}, {"model": {"all": scores}}, (), rows)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that was evaluated on 5 of its 10 test rows at the end of its training."""
    run = Run(tmp_path / "0001")
    write_json(run.folder / "config.json", TrainConfig(file="qa.csv").to_json())
    save_evaluation(run, evaluation([1.0] * 10, 5), {})
    write_json(
        run.folder / "manifest.json",
        {"format": FORMAT, "number": 1, "headline": run.headline, "files": sizes(run.folder)},
    )
    return run


def saved(run: Run) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.folder / "evaluation").iterdir()}


def test_a_larger_evaluation_replaces_the_smaller_one(run: Run) -> None:
    assert run.headline == {"bpc": 2.0, "hits_at_1": 1.0}
    (run.folder / "evaluation" / "growth.json").write_text("{}", encoding="utf-8")
    save_evaluation(run, evaluation([1.0] * 5 + [0.0] * 5, 10), {})
    assert run.headline == {"bpc": 2.0, "hits_at_1": 0.5}
    assert saved(run).keys() == {"scores.json", "rows.jsonl", "table.txt", "summary.txt"}, (
        "the folder is replaced as a whole"
    )
    assert find("best", run.folder.parent) == run, "the run is not damaged"
    assert not list(run.folder.glob(".evaluation*.tmp"))


@pytest.mark.parametrize("ranked", [3, 5])
def test_no_other_evaluation_does(run: Run, ranked: int) -> None:
    before = saved(run)
    save_evaluation(run, evaluation([0.0] * 10, ranked), {})
    assert saved(run) == before


def test_a_damaged_evaluation_is_replaced(run: Run) -> None:
    (run.folder / "evaluation" / "rows.jsonl").write_text("{", encoding="utf-8")
    save_evaluation(run, evaluation([0.0] * 10, 3), {})
    assert run.headline["hits_at_1"] == 0


def test_evaluate_replaces_the_scores_of_the_end_of_the_training(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "base": "fresh",
        "precision": "fp32",
        "num_train_epochs": 1,
        "test_size": 0.75,
        "dev_size": 0.1,
    }
    run = daedap.train(write_csv(tmp_path / "qa.csv"), runs=tmp_path / "runs", **options)
    at_training_end = run.headline
    assert at_training_end == run.manifest["headline"]
    tests = run.manifest["data"]["test"]
    assert sum(bool(row.replies) for row in read_evaluated_run(run).rows.values()) == 32 < tests
    larger = daedap.evaluate(run=run.folder)
    assert sum(bool(row.replies) for row in read_evaluated_run(run).rows.values()) == tests
    assert run.headline["hits_at_1"] == larger.scores["bot"]["all"]["hits_at_1"].value
    assert read_run_record(run).headline == run.headline
    run.check_files()
    shutil.copytree(run.folder, tmp_path / "runs" / "0002")
    daedap.evaluate(run=2, data=write_csv(tmp_path / "other.csv", PAIRS[:20]), runs=tmp_path / "runs")
    assert Run(tmp_path / "runs" / "0002").headline == run.headline, "scores on another file are not kept"
