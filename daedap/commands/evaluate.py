"""`daedap evaluate`: a run's scores, with the untuned base and the nearest known answer beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import daedap.runs as store
from daedap.answer.index import Index
from daedap.data.check import load
from daedap.data.source import Layout
from daedap.data.split import Splitting, split
from daedap.data.store import read_components, read_side
from daedap.errors import SettingsError
from daedap.files import new_folder, write_json, write_lines, write_text
from daedap.judge.evaluate import evaluate as judge
from daedap.judge.evaluation import Evaluation
from daedap.judge.exam import Options
from daedap.language import say
from daedap.pair import Pair
from daedap.runs import FOLDER, Json, Run

_log = logging.getLogger("daedap")
_AT_FIRST = 100
"""Rows that are ranked and answered at the end of a training, so that it does not last; `daedap evaluate` takes 500."""


@dataclass(frozen=True)
class _Exam:
    """Test pairs and the component of each."""

    pairs: Sequence[Pair]
    components: Sequence[str]


def evaluate(
    *,
    run: str = "latest",
    data: Path | None = None,
    layout: Annotated[Layout, Parameter(name="*")] = Layout(),
    rows: int = 500,
    runs: Path = FOLDER,
) -> Evaluation:
    """Score a run on its own test rows, or on a file.

    A run that keeps no scores of its own test rows yet, keeps these. Raises RunError, DataError and SettingsError.

    Parameters
    ----------
    run
        Number, folder, latest or best.
    data
        Questions and answers to score on, instead of the run's test rows.
    rows
        At most so many rows are ranked and answered; bits per character take all.
    runs
        Folder of the runs.
    """
    if rows < 1:
        raise SettingsError("--rows {rows}: must be at least 1.", "Try 500.", rows=rows)
    found = store.find(run, runs)
    result = _judge(found, _own_exam(found) if data is None else _foreign_exam(data, layout), rows)
    if data is None and not (found.folder / "evaluation").exists():
        _keep(found, result)
    return result


def judge_run(run: Run) -> Json:
    """Score a run that is being finished; write `evaluation/` and return the headline. Without test rows, nothing."""
    exam = _own_exam(run)
    if not exam.pairs:
        _log.warning(say("No test rows, so no scores. Give --test-size, or a file: daedap evaluate --data FILE"))
        return {}
    result = _judge(run, exam, _AT_FIRST)
    _keep(run, result)
    return {metric: score.value for metric, score in result.scores["model"]["all"].items()}


def _keep(run: Run, result: Evaluation) -> None:
    with new_folder(run.folder / "evaluation") as folder:
        write_json(folder / "scores.json", result.to_json())
        write_lines(folder / "rows.jsonl", [row.to_json() for row in result.rows])
        write_text(folder / "table.txt", "\n".join(result.lines()) + "\n")


def _judge(run: Run, exam: _Exam, rows: int) -> Evaluation:
    from daedap.lm.learned import open_learned, open_untuned  # torch takes seconds to import

    index = Index.open(run.folder / "index")
    _log.info(say("scoring {rows:,} test rows", rows=len(exam.pairs)))
    return judge(
        exam.pairs,
        components=exam.components,
        train=index.pairs,
        speakers={"model": open_learned(run), "base": open_untuned(run)},
        index=index,
        options=Options(rows=rows),
    )


def _own_exam(run: Run) -> _Exam:
    return _Exam(read_side(run.folder, "test"), read_components(run.folder, "test"))


def _foreign_exam(file: Path, layout: Layout) -> _Exam:
    pairs = load(file, layout).pairs
    everything = split(pairs, Splitting(dev_size=0, test_size=0))
    return _Exam(everything.rows("train"), everything.components_of("train"))
