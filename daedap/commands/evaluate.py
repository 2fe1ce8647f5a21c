"""`daedap evaluate`: a run's scores, with the untuned base and the nearest known answer beside them."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import daedap.runs as store
from daedap.answer.bot import Bot
from daedap.answer.manners import built_in
from daedap.data.check import load
from daedap.data.disturb import KINDS, Kind, disturb
from daedap.data.source import Layout
from daedap.data.split import Splitting, split
from daedap.data.store import SIDES, read_components, read_side
from daedap.errors import SettingsError
from daedap.files import new_folder, write_json, write_lines, write_text
from daedap.judge.disturbed import Effect, disturbed
from daedap.judge.evaluate import evaluate as judge
from daedap.judge.evaluation import Evaluation
from daedap.judge.exam import Options, set_exam
from daedap.judge.growth import Growth, answered_as_told, beside_parent
from daedap.judge.paraphrases import Paraphrase, answer_paraphrases, read_paraphrases
from daedap.language import say
from daedap.pair import Pair
from daedap.runs import FOLDER, Json, Run

_log = logging.getLogger("daedap")
_AT_FIRST = 50
"""Rows that are ranked and answered at the end of a training, so that it does not last; `daedap evaluate` takes 500."""


@dataclass(frozen=True, kw_only=True)
class Suites:
    """What the bot is asked beside the test rows."""

    paraphrases: Path | None = None
    """A CSV with the columns question and answers (| between several): known questions in other words."""
    disturbed: bool = False
    """Ask the test questions as other people type them, too: slips, spaces, particles, speech level, laughter."""


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
    suites: Annotated[Suites, Parameter(name="*")] = Suites(),
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
    asked = _paraphrases(suites.paraphrases, found) if suites.paraphrases else []
    exam = _own_exam(found) if data is None else _foreign_exam(data, layout, found)
    bots = _bots(found)
    result = _judge(found, exam, rows, bots)
    if suites.disturbed:
        result = replace(result, disturbed=_disturbed(bots["bot"], exam, rows))
    if asked:
        result = replace(result, paraphrases=answer_paraphrases(Bot.of(found, held_out=True), asked))
    if data is None and not (found.folder / "evaluation").exists():
        keep(found, result)
    return result


def judge_run(run: Run) -> Json:
    """Score a run that is being finished; write `evaluation/` and return the headline. Without test rows, nothing.

    The headline holds what the bot scores, and the model's scores where a bot has none.
    """
    exam = _own_exam(run)
    if not exam.pairs:
        _log.warning(say("No test rows, so no scores. Give --test-size, or a file: daedap evaluate --data FILE"))
        return {}
    bots = _bots(run)
    result = _judge(run, exam, _AT_FIRST, bots)
    keep(run, result)
    if parent := _parent(run):
        write_json(run.folder / "evaluation" / "growth.json", _growth(run, parent, result, bots).to_json())
    headline = {**result.scores["model"]["all"], **result.scores["bot"]["all"]}
    return {metric: score.value for metric, score in headline.items()}


def keep(run: Run, result: Evaluation) -> None:
    """Write `evaluation/`."""
    with new_folder(run.folder / "evaluation") as folder:
        write_json(folder / "scores.json", result.to_json())
        write_lines(folder / "rows.jsonl", [row.to_json() for row in result.rows])
        write_text(folder / "table.txt", "\n".join(result.lines()) + "\n")


def _parent(run: Run) -> Run | None:
    """The run that it goes on from, unless that is gone."""
    return run.parent if run.parent and run.parent.complete else None


def _bots(run: Run) -> dict[str, Bot]:
    """The run's bot and its parent's, neither of which knows the answers of the test rows."""
    bots = {"bot": Bot.of(run, held_out=False)}
    if parent := _parent(run):
        bots["parent_bot"] = Bot.of(parent, held_out=False)
    return bots


def _growth(run: Run, parent: Run, result: Evaluation, bots: Mapping[str, Bot]) -> Growth:
    """What was forgotten and what was gained, said at once."""
    known = {pair.id for pair in read_side(parent.folder, "test")}
    new = read_side(run.folder, "train")[: run.new_rows]
    before, after = (answered_as_told(bots[name], new) for name in ("parent_bot", "bot"))
    kept, gained = beside_parent(result.rows, known)
    growth = Growth(run.folder.name, parent.folder.name, result.candidates, kept, gained, before, after)
    _log.info("\n".join(growth.lines()))
    return growth


def _judge(run: Run, exam: _Exam, rows: int, bots: Mapping[str, Bot]) -> Evaluation:
    from daedap.lm.learned import open_learned, open_untuned  # torch takes seconds to import

    speakers = {"model": open_learned(run)}
    if parent := _parent(run):
        speakers["parent"] = open_learned(parent)
    _log.info(say("scoring {rows:,} test rows", rows=len(exam.pairs)))
    return judge(
        exam.pairs,
        components=exam.components,
        speakers={**speakers, "base": open_untuned(run)},
        bots=bots,
        index=bots["bot"].memory.index,
        options=Options(rows=rows, timed=min(20, max(5, rows // 5))),
    )


def _disturbed(bot: Bot, exam: _Exam, rows: int) -> tuple[Effect, ...]:
    asked = set_exam(exam.pairs, exam.components, bot.memory.index.pairs, Options(rows=rows))
    return tuple(disturbed(bot, asked, {kind: _disturbing(kind) for kind in KINDS}))


def _disturbing(kind: Kind) -> Callable[[str, random.Random], str]:
    return lambda question, dice: disturb(question, kind, dice)


def _paraphrases(file: Path, run: Run) -> list[Paraphrase]:
    """Ids may name the built-in pairs, and the rows of the run."""
    mine = [pair for side in SIDES for pair in read_side(run.folder, side)]
    return read_paraphrases(file, [*built_in(), *mine])


def _own_exam(run: Run) -> _Exam:
    return _Exam(read_side(run.folder, "test"), read_components(run.folder, "test"))


def _foreign_exam(file: Path, layout: Layout, run: Run) -> _Exam:
    from daedap.lm.learned import saved_prompt  # as above

    loaded = load(file, layout, fits=saved_prompt(run).fits)
    _log.info("\n".join(loaded.report.lines()))
    everything = split(loaded.pairs, Splitting(dev_size=0, test_size=0))
    return _Exam(everything.rows("train"), everything.components_of("train"))
