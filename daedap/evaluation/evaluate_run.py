"""Evaluation of a run on its own test rows or on a file, and the run's `evaluation/` folder.

evaluation/scores.json   all scores and samples
           rows.jsonl    one test row a line, for paired comparisons
           table.txt     the scores as a table
           summary.txt   the most important of them
           growth.json   a run with a parent: forgetting on the parent's test rows, gain on the new ones
           faq.json      paraphrases and questions out of scope, where daedap evaluate was given any
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from filelock import FileLock

from daedap.config import PERTURBATIONS, Perturbation, ReadOptions, SplitOptions
from daedap.data.doctor import load
from daedap.data.split import read_components, read_rows, split
from daedap.errors import RunError
from daedap.evaluation.compare import read_saved_rows
from daedap.evaluation.comparison_report import ForgettingReport, differences_from_parent, exact_answer_rate
from daedap.evaluation.evaluate import Evaluation, Row, Systems, evaluate
from daedap.evaluation.robustness import PerturbationEffect, measure_robustness
from daedap.evaluation.testset import EvalSettings, make_eval_set
from daedap.files import new_folder, storage, write_json, write_lines, write_text
from daedap.i18n import translate
from daedap.korean.perturb import perturb
from daedap.retrieval.bot import Bot

if TYPE_CHECKING:
    from pathlib import Path

    from daedap.evaluation.faq import FaqEvaluation
    from daedap.model.decoding import LanguageModel
    from daedap.runs import Json, Run
    from daedap.types import Pair

_log = logging.getLogger("daedap")
FAQ = "faq.json"
_ROWS_AFTER_TRAINING, _LIKELIHOOD_ROWS_AFTER_TRAINING = 32, 96
"""Rows that are ranked and answered, and rows with likelihoods, at the end of a training, where the user waits for the
bot. `daedap evaluate` takes 500 and all."""


@dataclass(frozen=True)
class EvalRows:
    """The pairs to evaluate on, and the component of each."""

    pairs: Sequence[Pair]
    components: Sequence[str]


def own_test_rows(run: Run) -> EvalRows:
    """The test rows of the run's own file."""
    return EvalRows(read_rows(run.folder, "test"), read_components(run.folder, "test"))


def rows_of_file(file: Path, read_options: ReadOptions, run: Run) -> EvalRows:
    """All pairs of another file that fit into the run's maximum length."""
    from daedap.model.language_model import load_prompt  # torch takes seconds to import

    loaded = load(file, read_options, fits=load_prompt(run).fits)
    _log.info("\n".join(loaded.report.lines()))
    everything = split(loaded.pairs, SplitOptions(dev_size=0, test_size=0))
    return EvalRows(everything.rows("train"), everything.components_of("train"))


def open_models(run: Run, model: LanguageModel | None = None) -> dict[str, LanguageModel]:
    """The run's model (or `model`, if it is open), its parent's and the untuned base; each is loaded once."""
    from daedap.model.language_model import (
        CachedScorer,  # torch takes seconds to import
        open_trained,
        open_untuned,
    )

    models = {"model": model or CachedScorer(open_trained(run))}
    if parent := _complete_parent(run):
        models["parent"] = CachedScorer(open_trained(parent))
    return {**models, "base": open_untuned(run)}


def open_bots(run: Run, models: Mapping[str, LanguageModel]) -> dict[str, Bot]:
    """The run's bot and its parent's, without the answers of the test rows in their indexes."""
    bots = {"bot": _open_bot(run, models["model"])}
    if parent := _complete_parent(run):
        bots["parent_bot"] = _open_bot(parent, models["parent"])
    return bots


def evaluate_rows(
    rows: EvalRows,
    options: EvalSettings,
    models: Mapping[str, LanguageModel],
    bots: Mapping[str, Bot],
    recorded: Mapping[str, Mapping[str, Row]] | None = None,
) -> Evaluation:
    """Evaluate open models and bots; `bots` has the run's own bot as "bot". Raises RunError without rows."""
    _log.info(translate("scoring {rows:,} test rows", rows=len(rows.pairs)))
    return evaluate(
        rows.pairs,
        components=rows.components,
        systems=Systems(models, bots, recorded or {}),
        index=bots["bot"].retriever.index,
        options=options,
    )


def evaluate_robustness(bot: Bot, rows: EvalRows, count: int) -> tuple[PerturbationEffect, ...]:
    """The bot on at most `count` of the rows with every kind of perturbation."""
    options = EvalSettings(rows=count)
    eval_set = make_eval_set(rows.pairs, rows.components, bot.retriever.index.pairs, options)
    return tuple(measure_robustness(bot, eval_set, {kind: _perturbation(kind) for kind in PERTURBATIONS}))


def timed_questions(rows: int) -> int:
    """Number of questions to time one by one if this many are answered: 5 to 20."""
    return min(20, max(5, rows // 5))


def evaluate_after_training(run: Run, model: LanguageModel) -> Json:
    """Evaluate a run on a part of its test rows, save that, and return the headline; {} without test rows.

    `model` is the run's open model. The scores of base and parent are taken from the parent's evaluation if the test
    rows are the same.
    """
    rows = own_test_rows(run)
    if not rows.pairs:
        _log.warning(translate("No test rows, so no scores. Give --test-size, or a file: daedap evaluate --data FILE"))
        return {}
    options = EvalSettings(
        rows=_ROWS_AFTER_TRAINING,
        likelihood_rows=_LIKELIHOOD_ROWS_AFTER_TRAINING,
        timed_questions=timed_questions(_ROWS_AFTER_TRAINING),
        time_models=False,
    )
    parent = _complete_parent(run)
    if recorded := _recorded_by_parent(parent, rows, options) if parent else {}:
        models: dict[str, LanguageModel] = {"model": model}
        bots = {"bot": _open_bot(run, model)}
    else:
        models = open_models(run, model)
        bots = open_bots(run, models)
    save_evaluation(run, evaluate_rows(rows, options, models, bots, recorded), bots)
    return run.headline


def save_evaluation(run: Run, evaluation: Evaluation, bots: Mapping[str, Bot]) -> None:
    """Write `evaluation/`, unless the run has an evaluation on at least as many of its test rows.

    The folder is written under another name and renamed, so that an old evaluation is replaced as a whole. Raises
    StorageError.
    """
    folder = run.folder / "evaluation"
    try:
        saved = read_saved_rows(run)[0]
    except RunError:  # there is none, or it is damaged
        saved = []
    if _size(evaluation.rows) <= _size(saved):
        return
    parent = _complete_parent(run)
    forgetting = _forgetting(run, parent, evaluation, bots) if parent else None
    with storage(folder), FileLock(run.folder / ".evaluation.lock"), new_folder(folder) as new:
        write_json(new / "scores.json", evaluation.to_json())
        write_lines(new / "rows.jsonl", [row.to_json() for row in evaluation.rows])
        write_text(new / "table.txt", "\n".join(evaluation.lines()) + "\n")
        write_text(new / "summary.txt", "\n".join(evaluation.summary()) + "\n")
        if forgetting:
            write_json(new / "growth.json", forgetting.to_json())
        if (faq := folder / FAQ).is_file():
            shutil.copyfile(faq, new / FAQ)


def save_faq(run: Run, faq: FaqEvaluation) -> None:
    """Write `evaluation/faq.json` in place of an earlier one. Raises StorageError."""
    with FileLock(run.folder / ".evaluation.lock"):
        write_json(run.folder / "evaluation" / FAQ, faq.to_json())


def _size(rows: Sequence[Row]) -> tuple[int, int]:
    """Number of rows with replies, and of rows with likelihoods of the model."""
    return sum(bool(row.replies) for row in rows), sum("bpc" in row.terms.get("model", {}) for row in rows)


def _complete_parent(run: Run) -> Run | None:
    return run.parent if run.parent and run.parent.complete else None


def _open_bot(run: Run, model: LanguageModel) -> Bot:
    from daedap.model.language_model import EngineWithScorer  # torch takes seconds to import
    from daedap.model.verify import open_engine

    return Bot.of(run, held_out=False, model=EngineWithScorer(open_engine(run), model))


def _recorded_by_parent(parent: Run, rows: EvalRows, options: EvalSettings) -> dict[str, dict[str, Row]]:
    """System → pair id → the row in the parent's saved evaluation; {} if that was on other test rows, or fewer."""
    if not (parent.folder / "evaluation" / "scores.json").is_file():
        return {}
    saved = {row.id: row for row in read_saved_rows(parent)[0]}
    ids = {pair.id for pair in rows.pairs}
    names = {"base": "base", "parent": "model", "parent_bot": "bot"}
    if saved.keys() != ids or not all(
        saved[name].replies.keys() >= {*names.values()} for name in sorted(ids)[: options.rows]
    ):
        return {}
    return {name: {id_: _renamed(row, own, name) for id_, row in saved.items()} for name, own in names.items()}


def _renamed(row: Row, system: str, name: str) -> Row:
    """The row with the terms and the reply of one system only, under another name."""
    replies = {name: row.replies[system]} if system in row.replies else {}
    return replace(row, replies=replies, terms={name: row.terms[system]})


def _forgetting(run: Run, parent: Run, evaluation: Evaluation, bots: Mapping[str, Bot]) -> ForgettingReport:
    """Compare with the parent, and log the result."""
    known = {pair.id for pair in read_rows(parent.folder, "test")}
    new = read_rows(run.folder, "train")[: run.new_rows]
    forgetting, gain = differences_from_parent(evaluation.rows, known)
    report = ForgettingReport(
        run=run.folder.name,
        parent=parent.folder.name,
        candidates=evaluation.candidates,
        forgetting=forgetting,
        gain=gain,
        before=exact_answer_rate(bots.get("parent_bot") or Bot.of(parent, held_out=False), new),
        after=exact_answer_rate(bots["bot"], new),
    )
    _log.info("\n".join(report.lines()))
    return report


def _perturbation(kind: Perturbation) -> Callable[[str, random.Random], str]:
    return lambda question, rng: perturb(question, kind, rng)
