"""`daedap evaluate`: a run's scores, with the untuned base and the nearest known answer beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import daedap.runs as run_store
from daedap.config import RUNS, EvalOptions, ReadOptions
from daedap.data.reader import built_in_pairs
from daedap.data.split import SPLITS, read_rows
from daedap.errors import SettingsError
from daedap.evaluation.evaluate import Evaluation
from daedap.evaluation.evaluate_run import evaluate_questions, evaluate_run, own_test_rows, rows_of_file
from daedap.evaluation.question_files import EvalQuestion, read_out_of_scope, read_paraphrases
from daedap.runs import Run


def evaluate(
    *,
    run: str = "latest",
    data: Path | None = None,
    read_options: Annotated[ReadOptions, Parameter(name="*")] = ReadOptions(),
    eval_options: Annotated[EvalOptions, Parameter(name="*")] = EvalOptions(),
    rows: int = 500,
    runs: Path = RUNS,
) -> Evaluation:
    """Score a run on its own test rows, or on a file.

    Scores on more of the run's own test rows than it keeps replace those that it keeps, and so do scores on paraphrases
    and on questions out of scope. Raises RunError, DataError and SettingsError.

    Parameters
    ----------
    run
        Number, folder, latest or best.
    data
        Questions and answers to score on, instead of the run's test rows.
    rows
        Rank and answer at most this many rows; bits per character use all.
    runs
        Folder of the runs.
    """
    if rows < 1:
        raise SettingsError("--rows {rows}: must be at least 1.", "Try 500.", rows=rows)
    chosen = run_store.find(run, runs)
    paraphrases, out_of_scope = _read_questions(eval_options, chosen)
    eval_rows = own_test_rows(chosen) if data is None else rows_of_file(data, read_options, chosen)
    if eval_rows.pairs or not (paraphrases or out_of_scope):
        save = data is None
        evaluation = evaluate_run(chosen, eval_rows, rows, perturbed=eval_options.disturbed, save=save)
    else:  # a run that was trained on all rows
        evaluation = Evaluation(0, 0, 0, chance={}, scores={}, samples=(), rows=())
    if paraphrases or out_of_scope:
        evaluation = replace(evaluation, faq=evaluate_questions(chosen, paraphrases, out_of_scope))
    return evaluation


def _read_questions(options: EvalOptions, run: Run) -> tuple[list[EvalQuestion], list[EvalQuestion]]:
    """Paraphrases and questions out of scope. Ids of answers may be those of the built-in pairs and of the run's."""
    own = [pair for name in SPLITS for pair in read_rows(run.folder, name)]
    paraphrases = read_paraphrases(options.paraphrases, [*built_in_pairs(), *own]) if options.paraphrases else []
    return paraphrases, read_out_of_scope(options.out_of_scope) if options.out_of_scope else []
