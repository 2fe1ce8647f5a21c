"""`daedap evaluate`: a run's scores, with the untuned base and the nearest known answer beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import daedap.runs as run_store
from daedap.config import RUNS, EvalOptions, ReadOptions
from daedap.data.split import SPLITS, read_rows
from daedap.errors import SettingsError, StorageError
from daedap.evaluation.evaluate import Evaluation
from daedap.evaluation.evaluate_run import (
    evaluate_robustness,
    evaluate_rows,
    open_bots,
    open_models,
    own_test_rows,
    rows_of_file,
    save_evaluation,
    save_faq,
    timed_questions,
)
from daedap.evaluation.faq import evaluate_faq
from daedap.evaluation.question_files import EvalQuestion, read_out_of_scope, read_paraphrases
from daedap.evaluation.testset import EvalSettings
from daedap.retrieval.bot import Bot
from daedap.retrieval.small_talk import built_in_pairs
from daedap.runs import Run

_log = logging.getLogger("daedap")


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
        models = open_models(chosen)
        bots = open_bots(chosen, models)
        settings = EvalSettings(rows=rows, timed_questions=timed_questions(rows))
        evaluation = evaluate_rows(eval_rows, settings, models, bots)
        if eval_options.disturbed:
            evaluation = replace(evaluation, perturbed=evaluate_robustness(bots["bot"], eval_rows, rows))
        if data is None:
            _save(lambda: save_evaluation(chosen, evaluation, bots))
    else:  # a run that was trained on all rows
        evaluation = Evaluation(0, 0, 0, chance={}, scores={}, samples=(), rows=())
    if paraphrases or out_of_scope:
        bot = Bot.of(chosen, held_out=True)
        faq = evaluate_faq(bot, bot.retriever.index.pairs, paraphrases, out_of_scope)
        evaluation = replace(evaluation, faq=faq)
        _save(lambda: save_faq(chosen, faq))
    return evaluation


def _read_questions(options: EvalOptions, run: Run) -> tuple[list[EvalQuestion], list[EvalQuestion]]:
    """Paraphrases and questions out of scope. Ids of answers may be those of the built-in pairs and of the run's."""
    own = [pair for name in SPLITS for pair in read_rows(run.folder, name)]
    paraphrases = read_paraphrases(options.paraphrases, [*built_in_pairs(), *own]) if options.paraphrases else []
    return paraphrases, read_out_of_scope(options.out_of_scope) if options.out_of_scope else []


def _save(write: Callable[[], None]) -> None:
    """Scores that can't be kept are shown all the same."""
    try:
        write()
    except StorageError as error:
        _log.warning(str(error))
