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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from daedap.config import PERTURBATIONS, Perturbation, ReadOptions, SplitOptions
from daedap.data.doctor import load
from daedap.data.split import read_components, read_rows, sample_rows, split
from daedap.errors import RunError, StorageError
from daedap.evaluation.compare import CommonRows, Difference, differences, read_saved_rows
from daedap.evaluation.comparison_report import difference_table
from daedap.evaluation.evaluate import Evaluation, Row, Systems, evaluate, measure_robustness
from daedap.evaluation.faq import FaqEvaluation, evaluate_faq, right_answer_rate
from daedap.evaluation.metrics import Score, as_json
from daedap.evaluation.question_files import EvalQuestion
from daedap.evaluation.run_record import PARENT_SYSTEMS
from daedap.evaluation.tables import PERCENT, format_score, join_blocks, metric_formats
from daedap.evaluation.testset import EvalSettings, make_eval_set
from daedap.files import new_folder, storage_errors, write_json, write_lines, write_text
from daedap.i18n import translate
from daedap.korean.perturb import perturb
from daedap.korean.text import comparison_form
from daedap.retrieval.bot import Bot

if TYPE_CHECKING:
    from pathlib import Path

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


def evaluate_run(run: Run, rows: EvalRows, count: int, *, perturbed: bool, save: bool) -> Evaluation:
    """Evaluate a run, its parent and the untuned base; at most `count` rows are ranked and answered.

    `perturbed`: ask the bot the same questions as other people type them, too. `save`: keep the scores in the run's
    folder. Raises RunError without rows.
    """
    models, bots = _open(run)
    evaluation = _evaluate(rows, EvalSettings(rows=count, timed_questions=_timed_questions(count)), models, bots)
    if perturbed:
        bot = bots["bot"]
        eval_set = make_eval_set(rows.pairs, rows.components, bot.retriever.index.pairs, EvalSettings(rows=count))
        effects = measure_robustness(bot, eval_set, {kind: _perturbation(kind) for kind in PERTURBATIONS})
        evaluation = replace(evaluation, perturbed=tuple(effects))
    if save:
        with _warn_if_unsaved():
            save_evaluation(run, evaluation, bots)
    return evaluation


def evaluate_questions(
    run: Run, paraphrases: Sequence[EvalQuestion], out_of_scope: Sequence[EvalQuestion]
) -> FaqEvaluation:
    """Ask a run's bot paraphrases and questions out of scope, and write `evaluation/faq.json`."""
    bot = Bot.from_run(run, held_out=True)
    faq = evaluate_faq(bot, bot.retriever.index.pairs, paraphrases, out_of_scope)
    with _warn_if_unsaved(), FileLock(run.folder / ".evaluation.lock"):
        write_json(run.folder / "evaluation" / FAQ, faq.to_json())
    return faq


@contextmanager
def _warn_if_unsaved() -> Iterator[None]:
    """Log a StorageError instead of raising it: the scores are shown all the same."""
    try:
        yield
    except StorageError as error:
        _log.warning(str(error))


def _open(run: Run, model: LanguageModel | None = None) -> tuple[dict[str, LanguageModel], dict[str, Bot]]:
    """The run's model (or `model`, if it is open), its parent's and the untuned base; the run's bot and its parent's.

    The bots' indexes hold no answers of the test rows.
    """
    from daedap.model.language_model import (
        CachedScorer,  # torch takes seconds to import
        open_trained,
        open_untuned,
    )

    models = {"model": model or CachedScorer(open_trained(run))}
    bots = {"bot": _open_bot(run, models["model"])}
    if parent := _complete_parent(run):
        models["parent"] = CachedScorer(open_trained(parent))
        bots["parent_bot"] = _open_bot(parent, models["parent"])
    return {**models, "base": open_untuned(run)}, bots


def _evaluate(
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


def _perturbation(kind: Perturbation) -> Callable[[str, random.Random], str]:
    return lambda question, rng: perturb(question, kind, rng)


def _timed_questions(rows: int) -> int:
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
        timed_questions=_timed_questions(_ROWS_AFTER_TRAINING),
        time_models=False,
    )
    parent = _complete_parent(run)
    if recorded := _recorded_by_parent(parent, rows, options) if parent else {}:
        models: dict[str, LanguageModel] = {"model": model}
        bots = {"bot": _open_bot(run, model)}
    else:
        models, bots = _open(run, model)
    save_evaluation(run, _evaluate(rows, options, models, bots, recorded), bots)
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
    with storage_errors(folder), FileLock(run.folder / ".evaluation.lock"), new_folder(folder) as new:
        write_json(new / "scores.json", evaluation.to_json())
        write_lines(new / "rows.jsonl", [row.to_json() for row in evaluation.rows])
        write_text(new / "table.txt", "\n".join(evaluation.lines()) + "\n")
        write_text(new / "summary.txt", "\n".join(evaluation.summary()) + "\n")
        if forgetting:
            write_json(new / "growth.json", forgetting.to_json())
        if (faq := folder / FAQ).is_file():
            shutil.copyfile(faq, new / FAQ)


def _size(rows: Sequence[Row]) -> tuple[int, int]:
    """Number of rows with replies, and of rows with likelihoods of the model."""
    return sum(bool(row.replies) for row in rows), sum("bpc" in row.terms.get("model", {}) for row in rows)


def _complete_parent(run: Run) -> Run | None:
    return run.parent if run.parent and run.parent.complete else None


def _open_bot(run: Run, model: LanguageModel) -> Bot:
    from daedap.model.language_model import EngineWithScorer  # torch takes seconds to import
    from daedap.model.verify import open_engine

    return Bot.from_run(run, held_out=False, model=EngineWithScorer(open_engine(run), model))


def _recorded_by_parent(parent: Run, rows: EvalRows, options: EvalSettings) -> dict[str, dict[str, Row]]:
    """System → pair id → the row in the parent's saved evaluation; {} if that was on other test rows, or fewer."""
    if not (parent.folder / "evaluation" / "scores.json").is_file():
        return {}
    saved = {row.id: row for row in read_saved_rows(parent)[0]}
    ids = {pair.id for pair in rows.pairs}
    names = {"base": "base", **PARENT_SYSTEMS}
    if saved.keys() != ids or not all(
        saved[name].replies.keys() >= {*names.values()} for name in sorted(ids)[: options.rows]
    ):
        return {}
    return {name: {id_: _renamed(row, {own: name}) for id_, row in saved.items()} for name, own in names.items()}


def _renamed(row: Row, names: Mapping[str, str]) -> Row:
    """The row with the terms and replies of these systems only, under other names."""
    terms = {new: row.terms[old] for old, new in names.items() if old in row.terms}
    replies = {new: row.replies[old] for old, new in names.items() if old in row.replies}
    return replace(row, terms=terms, replies=replies)


# Forgetting: a run beside its parent

_FORGETTING_METRICS = ("hits_at_1", "bpc", "question_gain")
_MAX_QUESTIONS = 200
"""New training questions that are asked at most."""


@dataclass(frozen=True)
class ForgettingReport:
    """A run compared with its parent in one evaluation: the same rows, the same candidates."""

    run: str
    parent: str
    candidates: int
    forgetting: Mapping[str, Difference]
    """Metric → difference on the parent's test rows; forgetting makes it worse."""
    gain: Mapping[str, Difference]
    """Metric → difference on the new test rows; empty if there are none."""
    before: Score
    """Share of the new training questions that the parent answers as the file does."""
    after: Score
    """Share of the new training questions that this run answers as the file does."""

    def to_json(self) -> Json:
        """`evaluation/growth.json`."""
        answered = as_json({"before": self.before, "after": self.after})
        parts = {"kept": as_json(self.forgetting), "gained": as_json(self.gain)}
        return {"parent": self.parent, **parts, "answered": answered}

    def lines(self) -> list[str]:
        """Two tables and the share of new questions, for a terminal."""
        formats, runs = metric_formats(self.candidates), (self.parent, self.run)
        template = "New questions answered as the file does (%): {before} → {after} (n={count:,})"
        before, after = format_score(PERCENT, self.before), format_score(PERCENT, self.after)
        return join_blocks(
            [
                difference_table(translate("known test rows"), runs, self.forgetting, formats),
                difference_table(translate("new test rows"), runs, self.gain, formats),
                [translate(template, before=before, after=after, count=self.after.n)],
            ]
        )


def _forgetting(run: Run, parent: Run, evaluation: Evaluation, bots: Mapping[str, Bot]) -> ForgettingReport:
    """Compare with the parent, and log the result."""
    known = {pair.id for pair in read_rows(parent.folder, "test")}
    new = read_rows(run.folder, "train")[: run.new_rows]
    report = ForgettingReport(
        run=run.folder.name,
        parent=parent.folder.name,
        candidates=evaluation.candidates,
        forgetting=_parent_difference([row for row in evaluation.rows if row.id in known]),
        gain=_parent_difference([row for row in evaluation.rows if row.id not in known]),
        before=_exact_answer_rate(bots.get("parent_bot") or Bot.from_run(parent, held_out=False), new),
        after=_exact_answer_rate(bots["bot"], new),
    )
    _log.info("\n".join(report.lines()))
    return report


def _parent_difference(rows: Sequence[Row]) -> dict[str, Difference]:
    """Metric → difference from the parent on these rows; {} without rows."""
    if not rows:
        return {}
    _, groups = np.unique([str(row.component) for row in rows], return_inverse=True)
    pairs = [(_renamed(row, PARENT_SYSTEMS), row) for row in rows]  # as the parent's own evaluation would have saved it
    by_metric = differences(CommonRows(pairs, groups.astype(np.int64), leaked=0, alone=0, same_test=True))["all"]
    return {metric: by_metric[metric] for metric in _FORGETTING_METRICS if metric in by_metric}


def _exact_answer_rate(bot: Bot, pairs: Sequence[Pair]) -> Score:
    """Share of the distinct questions of at least one pair that a bot answers with one of the file's answers."""
    answers: dict[str, list[str]] = {}
    questions: dict[str, str] = {}
    for pair in pairs:
        form = comparison_form(pair.question)
        questions.setdefault(form, pair.question)
        answers.setdefault(form, []).append(pair.answer)
    known = [EvalQuestion(questions[form], tuple(texts)) for form, texts in answers.items()]
    return right_answer_rate(bot, sample_rows(sorted(known, key=lambda one: one.question), _MAX_QUESTIONS, 0))
