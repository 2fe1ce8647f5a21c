"""`daedap evaluate`: a run's scores, with the untuned base and the nearest known answer beside them."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

import daedap.runs as store
from daedap.data.doctor import load
from daedap.data.reader import ReadOptions
from daedap.data.split import SIDES, SplitOptions, read_components, read_side, split
from daedap.errors import SettingsError
from daedap.evaluation.compare import kept_rows
from daedap.evaluation.comparison import ForgettingReport, answered_as_told, beside_parent
from daedap.evaluation.evaluate import Systems
from daedap.evaluation.evaluate import evaluate as judge
from daedap.evaluation.result import Evaluation, Row
from daedap.evaluation.robustness import Effect, Paraphrase, answer_paraphrases, disturbed, read_paraphrases
from daedap.evaluation.testset import EvalSettings, make_eval_set
from daedap.files import new_folder, write_json, write_lines, write_text
from daedap.i18n import translate
from daedap.korean.perturb import KINDS, Kind, perturb
from daedap.retrieval.bot import Bot
from daedap.retrieval.small_talk import built_in
from daedap.runs import FOLDER, Json, Run
from daedap.types import Pair

if TYPE_CHECKING:
    from daedap.model.language_model import LanguageModel  # torch takes seconds to import

_log = logging.getLogger("daedap")
_AT_FIRST, _LIKELIHOODS_AT_FIRST = 50, 150
"""Rows that are ranked and answered at the end of a training, and rows that count for bits per character, so that it
does not last; `daedap evaluate` takes 500 of the ones and all of the others."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
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
    read_options: Annotated[ReadOptions, Parameter(name="*")] = ReadOptions(),
    eval_options: Annotated[EvalOptions, Parameter(name="*")] = EvalOptions(),
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
    asked = _paraphrases(eval_options.paraphrases, found) if eval_options.paraphrases else []
    eval_set = _own_exam(found) if data is None else _foreign_exam(data, read_options, found)
    speakers = _speakers(found)
    bots = _bots(found, speakers)
    result = _judge(eval_set, EvalSettings(rows=rows, timed=_timed(rows)), speakers, bots)
    if eval_options.disturbed:
        result = replace(result, disturbed=_disturbed(bots["bot"], eval_set, rows))
    if asked:
        result = replace(result, paraphrases=answer_paraphrases(Bot.of(found, held_out=True), asked))
    if data is None and not (found.folder / "evaluation").exists():
        keep(found, result)
    return result


def judge_run(run: Run, speaker: LanguageModel) -> Json:
    """Score a run that is being finished; write `evaluation/` and return the headline. Without test rows, nothing.

    `speaker` is the run's model. The headline holds what the bot scores, and the model's scores where a bot has none.
    """
    eval_set = _own_exam(run)
    if not eval_set.pairs:
        _log.warning(translate("No test rows, so no scores. Give --test-size, or a file: daedap evaluate --data FILE"))
        return {}
    options = EvalSettings(
        rows=_AT_FIRST, likelihoods=_LIKELIHOODS_AT_FIRST, timed=_timed(_AT_FIRST), timed_models=False
    )
    parent = _parent(run)
    if earlier := _parents_scores(parent, eval_set, options) if parent else {}:
        speakers = {"model": speaker}
        bots = {"bot": _bot(run, speaker)}
    else:
        speakers = _speakers(run, speaker)
        bots = _bots(run, speakers)
    result = _judge(eval_set, options, speakers, bots, earlier)
    keep(run, result)
    if parent:
        told = bots.get("parent_bot") or Bot.of(parent, held_out=False)
        growth = _growth(run, parent, result, {"bot": bots["bot"], "parent_bot": told})
        write_json(run.folder / "evaluation" / "growth.json", growth.to_json())
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


def _speakers(run: Run, model: LanguageModel | None = None) -> dict[str, LanguageModel]:
    """The run's model, its parent's, and the base that it started from; each is loaded once."""
    from daedap.model.language_model import CachedScorer  # torch takes seconds to import
    from daedap.model.saved import open_learned, open_untuned

    speakers = {"model": model or CachedScorer(open_learned(run))}
    if parent := _parent(run):
        speakers["parent"] = CachedScorer(open_learned(parent))
    return {**speakers, "base": open_untuned(run)}


def _bots(run: Run, speakers: Mapping[str, LanguageModel]) -> dict[str, Bot]:
    """The run's bot and its parent's, neither of which knows the answers of the test rows."""
    bots = {"bot": _bot(run, speakers["model"])}
    if parent := _parent(run):
        bots["parent_bot"] = _bot(parent, speakers["parent"])
    return bots


def _bot(run: Run, speaker: LanguageModel) -> Bot:
    """The bot of a run whose model is open; it doesn't know the answers of the test rows."""
    from daedap.model.language_model import EngineWithScorer  # torch takes seconds to import
    from daedap.model.verify import open_engine

    return Bot.of(run, held_out=False, model=EngineWithScorer(open_engine(run), speaker))


def _parents_scores(parent: Run, eval_set: _Exam, options: EvalSettings) -> dict[str, dict[str, Row]]:
    """What the parent and the base scored on the same test rows when the parent was made; nothing if on others."""
    if not (parent.folder / "evaluation").is_dir():
        return {}
    rows = {row.id: row for row in kept_rows(parent)[0]}
    asked = sorted(pair.id for pair in eval_set.pairs)[: options.rows]
    names = {"base": "base", "parent": "model", "parent_bot": "bot"}
    if rows.keys() != {pair.id for pair in eval_set.pairs} or not all(
        rows[id_].replies.keys() >= {*names.values()} for id_ in asked
    ):
        return {}
    return {name: {id_: _renamed(row, was, name) for id_, row in rows.items()} for name, was in names.items()}


def _renamed(row: Row, was: str, name: str) -> Row:
    """One system's share of a row, under another name."""
    said = {name: row.replies[was]} if was in row.replies else {}
    return replace(row, replies=said, shares={name: row.shares[was]})


def _growth(run: Run, parent: Run, result: Evaluation, bots: Mapping[str, Bot]) -> ForgettingReport:
    """What was forgotten and what was gained, said at once."""
    known = {pair.id for pair in read_side(parent.folder, "test")}
    new = read_side(run.folder, "train")[: run.new_rows]
    before, after = (answered_as_told(bots[name], new) for name in ("parent_bot", "bot"))
    kept, gained = beside_parent(result.rows, known)
    growth = ForgettingReport(run.folder.name, parent.folder.name, result.candidates, kept, gained, before, after)
    _log.info("\n".join(growth.lines()))
    return growth


def _judge(
    eval_set: _Exam,
    options: EvalSettings,
    speakers: Mapping[str, LanguageModel],
    bots: Mapping[str, Bot],
    earlier: Mapping[str, Mapping[str, Row]] | None = None,
) -> Evaluation:
    _log.info(translate("scoring {rows:,} test rows", rows=len(eval_set.pairs)))
    return judge(
        eval_set.pairs,
        components=eval_set.components,
        systems=Systems(speakers, bots, earlier or {}),
        index=bots["bot"].memory.index,
        options=options,
    )


def _timed(rows: int) -> int:
    """Questions asked one by one, for the latency, of so many that are answered."""
    return min(20, max(5, rows // 5))


def _disturbed(bot: Bot, eval_set: _Exam, rows: int) -> tuple[Effect, ...]:
    asked = make_eval_set(eval_set.pairs, eval_set.components, bot.memory.index.pairs, EvalSettings(rows=rows))
    return tuple(disturbed(bot, asked, {kind: _disturbing(kind) for kind in KINDS}))


def _disturbing(kind: Kind) -> Callable[[str, random.Random], str]:
    return lambda question, rng: perturb(question, kind, rng)


def _paraphrases(file: Path, run: Run) -> list[Paraphrase]:
    """Ids may name the built-in pairs, and the rows of the run."""
    mine = [pair for side in SIDES for pair in read_side(run.folder, side)]
    return read_paraphrases(file, [*built_in(), *mine])


def _own_exam(run: Run) -> _Exam:
    return _Exam(read_side(run.folder, "test"), read_components(run.folder, "test"))


def _foreign_exam(file: Path, read_options: ReadOptions, run: Run) -> _Exam:
    from daedap.model.saved import saved_prompt  # as above

    loaded = load(file, read_options, fits=saved_prompt(run).fits)
    _log.info("\n".join(loaded.report.lines()))
    everything = split(loaded.pairs, SplitOptions(dev_size=0, test_size=0))
    return _Exam(everything.rows("train"), everything.components_of("train"))
