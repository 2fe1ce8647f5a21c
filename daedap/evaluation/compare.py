"""Two evaluated runs: the test rows on which they can be compared fairly, paired differences, and human preferences.

A row is left out if only one of the two runs was trained on its question or a near-duplicate of it, or if only one run
was tested on it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from daedap.data.dedup import near_duplicates
from daedap.data.split import question_in_context, read_rows
from daedap.errors import RunError
from daedap.evaluation.evaluate import Row
from daedap.evaluation.metrics import PARTS, Interval, PreferenceCounts, bootstrap, sign_test, unique
from daedap.files import add_line, storage_errors
from daedap.korean.text import comparison_form

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from daedap.runs import Run

Direction = Literal["better", "worse", "more", "less", "none"]
RowPair = tuple[Row, Row]
"""One test row as saved by the first and by the second run."""
SYSTEMS = ("bot", "model")
"""The systems of a run that are compared: the first of these that both runs have."""
MIN_COMPONENTS = 10
"""With fewer components a bootstrap interval is far too narrow to call a difference clear."""
_SOURCES = frozenset({f"source_{name}" for name in (*PARTS, "retrieved")})  # retrieved: saved by earlier versions
_LOWER_IS_BETTER = frozenset({"bpc", "bland"})
_NEUTRAL = frozenset({"polite"}) | _SOURCES
"""Metrics of which neither more nor less is better: they depend on the training file."""
_INDEPENDENT = frozenset({"bpc", "bland", "polite", "ended"}) | _SOURCES
"""Metrics of a row that do not depend on the other test rows, as rankings among candidates do."""


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with the saved rows of its evaluation."""

    run: Run
    rows: Mapping[str, Row]
    """By id."""
    questions: Mapping[str, str]
    """Id → the test question with its conversation before it."""
    train_forms: frozenset[str]
    """Comparison forms of the training questions, each with its conversation."""
    candidates: int
    """Length of the candidate lists."""


@dataclass(frozen=True)
class CommonRows:
    """The test rows on which two runs are compared."""

    rows: Sequence[RowPair]
    """In the order of their ids."""
    groups: NDArray[np.int64]
    """(rows,): component numbers; components of the two runs that share a row are joined."""
    leaked: int
    """Rows left out because one run was trained on the question, or nearly the same one, and the other was not."""
    alone: int
    """Rows left out because only one run was tested on them."""
    same_test: bool
    """Both runs were tested on the same rows, so their candidate lists are the same too."""

    @property
    def components(self) -> int:
        """Number of components."""
        return len(set(self.groups.tolist()))


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of two runs on the same rows."""

    system: str
    """bot or model."""
    first: float
    second: float
    difference: float
    """Second minus first."""
    low: float | None
    """95% interval of the difference by bootstrap over components; None if there are too few, or a value is NaN."""
    high: float | None
    n: int
    """Rows."""
    verdict: Direction | None
    """Verdict on the second run, if the interval excludes 0; "none": no clear difference; None: no interval."""


@dataclass(frozen=True, slots=True)
class ReplyPair:
    """One test question with the replies of both runs."""

    id: str
    question: str
    right: str
    """The gold answer."""
    replies: tuple[str, str]
    places: tuple[float, float] | None
    """Ranks of the gold answer, if both runs had the same candidates."""
    bits: tuple[float, float] | None
    """Bits per character of the gold answer."""

    def by_run(self, keys: tuple[str, str]) -> dict[str, str]:
        """The replies by the runs' names in the file of preferences."""
        return dict(zip(keys, self.replies, strict=True))

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        fields = {"id": self.id, "question": self.question, "right": self.right, "replies": list(self.replies)}
        return {**fields, "places": self.places, "bits_per_character": self.bits}


def read_evaluated_run(run: Run) -> EvaluatedRun:
    """Read the evaluation saved in a run. Raises RunError if the run was not evaluated or its rows can't be read."""
    if run.command != "train":
        raise RunError(
            "{run}: a base; only what daedap train has made is compared.",
            "Use it: daedap train FILE --base {folder}",
            run=run.folder,
            folder=run.folder / "model",
        )
    test = read_rows(run.folder, "test")
    if not test:
        raise RunError(
            "{run}: trained without test rows, so that there is nothing to compare.",
            "Train again with --test-size 0.1.",
            run=run.folder,
        )
    rows, candidates = read_saved_rows(run)
    return EvaluatedRun(
        run=run,
        rows={row.id: row for row in rows},
        questions={pair.id: question_in_context(pair) for pair in test},
        train_forms=frozenset(comparison_form(question_in_context(pair)) for pair in read_rows(run.folder, "train")),
        candidates=candidates,
    )


def read_saved_rows(run: Run) -> tuple[list[Row], int]:
    """The rows of a run's saved evaluation, and the length of its candidate lists. Raises RunError."""
    folder = run.folder / "evaluation"
    if not (folder / "scores.json").is_file():
        raise RunError(
            "{run}: not scored yet; it was trained with --no-evaluate.",
            "Score it: daedap evaluate --run {run}",
            run=run.folder,
        )
    try:
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        with (folder / "rows.jsonl").open(encoding="utf-8") as lines:
            return [Row.from_json(json.loads(line)) for line in lines], int(scores["candidates"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            "{folder}: the scores can't be read ({error}).",
            "Restore the folder from a backup or train again.",
            folder=folder,
            error=error,
        ) from error


def common_rows(first: EvaluatedRun, second: EvaluatedRun) -> CommonRows:
    """The rows on which two runs are compared. Raises RunError if there are none."""
    leaked = _leaked(first, second)
    shared = sorted(first.rows.keys() & second.rows.keys() - leaked)
    if not shared:
        raise RunError(
            "{first} and {second} have no test rows in common "
            "({leaked:,} left out because one run was trained on them).",
            "Train both from the same file, or evaluate both on a third one: daedap evaluate --run RUN --data FILE",
            first=first.run.folder,
            second=second.run.folder,
            leaked=len(leaked),
        )
    rows = [(first.rows[name], second.rows[name]) for name in shared]
    everything = first.rows.keys() | second.rows.keys()
    return CommonRows(
        rows=rows,
        groups=_join_components([one.component for one, _ in rows], [other.component for _, other in rows]),
        leaked=len(leaked),
        alone=len(everything) - len(shared) - len(leaked),
        same_test=first.rows.keys() == second.rows.keys(),
    )


def _leaked(first: EvaluatedRun, second: EvaluatedRun) -> set[str]:
    """Ids of test rows whose question, or a near-duplicate of it, exactly one of the runs was trained on."""
    if first.train_forms == second.train_forms:
        return set()
    forms = {name: comparison_form(text) for name, text in {**first.questions, **second.questions}.items()}
    known = sorted(first.train_forms | second.train_forms)
    texts = [*known, *dict.fromkeys(forms.values())]
    # Of the near-duplicates that the same runs were trained on, one tells enough.
    groups = np.array([(form in first.train_forms) + 2 * (form in second.train_forms) for form in texts])
    groups[len(known) :] = 0
    hits = ((row, near) for row, near in near_duplicates(texts, groups) if row >= len(known))
    neighbours = {texts[row]: {known[other] for other in near if other < len(known)} for row, near in hits}
    known_by = {form: [bool(near & run.train_forms) for run in (first, second)] for form, near in neighbours.items()}
    return {name for name, form in forms.items() if any(known_by[form]) != all(known_by[form])}


def _join_components(names: Sequence[int | str], others: Sequence[int | str]) -> NDArray[np.int64]:
    """(rows,): rows connected through components of either naming, directly or through other rows, get one number."""
    _, first = np.unique([str(name) for name in names], return_inverse=True)
    _, second = np.unique([str(name) for name in others], return_inverse=True)
    size = int(first.max() + second.max() + 2)
    links = coo_array((np.ones(len(first)), (first, second + first.max() + 1)), shape=(size, size))
    _, numbers = connected_components(links, directed=False)
    groups: NDArray[np.int64] = numbers[first].astype(np.int64)
    return groups


def differences(common: CommonRows) -> dict[str, dict[str, Difference]]:
    """Slice → metric → difference. Slices are "all", and "seen" and "unseen": the answer is so in both runs."""
    seen = np.array([(first.seen, second.seen) for first, second in common.rows])
    slices: dict[str, NDArray[np.bool_]] = {"all": np.ones(len(seen), dtype=np.bool_)}
    slices |= {"seen": np.asarray(seen.all(axis=1)), "unseen": np.asarray(~seen.any(axis=1))}
    return {name: dict(_metrics(common, inside)) for name, inside in slices.items() if inside.any()}


def _metrics(common: CommonRows, inside: NDArray[np.bool_]) -> Iterator[tuple[str, Difference]]:
    rows = [pair for pair, chosen in zip(common.rows, inside, strict=True) if chosen]
    groups = common.groups[inside]
    for metric in _comparable_metrics(rows, common.same_test):
        system = next(name for name in SYSTEMS if any(_both_measured(pair, name, metric) for pair in rows))
        yield metric, _difference(metric, system, rows, groups)
    if replied := _replied(rows):
        system = _reply_system(rows)
        first, second = (unique([pair[run].replies[system] for pair in replied]).value for run in (0, 1))
        yield "unique", Difference(system, first, second, second - first, None, None, len(replied), None)


def _comparable_metrics(rows: Sequence[RowPair], same_test: bool) -> list[str]:
    """Metrics that a system has in both runs; without the same test rows, only those independent of other rows."""
    measured = dict.fromkeys(
        metric
        for pair in rows
        for system in SYSTEMS
        for metric in pair[0].terms.get(system, {})
        if _both_measured(pair, system, metric)
    )
    return [metric for metric in measured if same_test or metric in _INDEPENDENT]


def _both_measured(pair: RowPair, system: str, metric: str) -> bool:
    """Whether both runs have this metric on this row, with the same denominator."""
    first, second = (row.terms.get(system, {}).get(metric) for row in pair)
    return first is not None and second is not None and first[1] == second[1] > 0


def _difference(metric: str, system: str, rows: Sequence[RowPair], groups: NDArray[np.int64]) -> Difference:
    measured = [place for place, pair in enumerate(rows) if _both_measured(pair, system, metric)]
    terms = np.array([[row.terms[system][metric] for row in rows[place]] for place in measured])
    first, second, denominators = terms[:, 0, 0], terms[:, 1, 0], terms[:, 0, 1]
    before, after = (float(numerators.sum() / denominators.sum()) for numerators in (first, second))
    found = Difference(system, before, after, after - before, None, None, len(measured), None)
    if len(np.unique(groups[measured])) < MIN_COMPONENTS or not np.isfinite(second - first).all():
        return found
    interval = bootstrap(second - first, denominators, groups[measured])
    return replace(found, low=interval.low, high=interval.high, verdict=_direction(metric, interval))


def _direction(metric: str, interval: Interval) -> Direction:
    if interval.low <= 0 <= interval.high:
        return "none"
    more = interval.low > 0
    if metric in _NEUTRAL:
        return "more" if more else "less"
    return "better" if more != (metric in _LOWER_IS_BETTER) else "worse"


def differing_replies(common: CommonRows, questions: Mapping[str, str]) -> list[ReplyPair]:
    """The questions that the runs answer differently, those with the largest difference of reciprocal rank first.

    Ties are ordered by the difference of bits per character. `questions`: id → question with its conversation.
    """
    rows, system = _replied(common.rows), _reply_system(common.rows)
    different = [pair for pair in rows if len({comparison_form(row.replies[system]) for row in pair}) > 1]
    pairs = [_reply_pair(pair, system, questions, common.same_test) for pair in different]
    return sorted(pairs, key=_contrast, reverse=True)


def count_replied(common: CommonRows) -> int:
    """Number of rows that both runs replied to."""
    return len(_replied(common.rows))


def _reply_system(rows: Sequence[RowPair]) -> str:
    """The system whose replies are shown: the bot if both runs have its replies, else the model."""
    return next((name for name in SYSTEMS if any(_both_replied(pair, name) for pair in rows)), SYSTEMS[-1])


def _replied(rows: Sequence[RowPair]) -> list[RowPair]:
    system = _reply_system(rows)
    return [pair for pair in rows if _both_replied(pair, system)]


def _both_replied(pair: RowPair, system: str) -> bool:
    return all(system in row.replies for row in pair)


def _reply_pair(pair: RowPair, system: str, questions: Mapping[str, str], same_test: bool) -> ReplyPair:
    first, second = pair
    reciprocal = _row_ratios(pair, "mrr") if same_test else None
    return ReplyPair(
        id=first.id,
        question=questions.get(first.id, first.question),
        right=first.answer,
        replies=(first.replies[system], second.replies[system]),
        places=reciprocal and (1 / reciprocal[0], 1 / reciprocal[1]),
        bits=_row_ratios(pair, "bpc"),
    )


def _row_ratios(pair: RowPair, metric: str) -> tuple[float, float] | None:
    """The metric on this row alone, in each run; None if it was not measured or is not finite."""
    for system in SYSTEMS:
        if _both_measured(pair, system, metric):
            first, second = (
                numerator / denominator for numerator, denominator in (row.terms[system][metric] for row in pair)
            )
            return (first, second) if math.isfinite(first) and math.isfinite(second) else None
    return None


def _contrast(pair: ReplyPair) -> tuple[float, float, str]:
    rank = abs(1 / pair.places[0] - 1 / pair.places[1]) if pair.places else 0.0
    bits = abs(pair.bits[0] - pair.bits[1]) if pair.bits else 0.0
    return rank, bits, pair.id


# Blind preferences between the replies of two runs

PREFERENCES = "verdicts.jsonl"
"""The file of preferences, in the folder of the runs. A line is on the disk before the next question is shown; a last
line without a newline was cut short by a crash: it is ignored, and removed when the next line is appended."""


@dataclass(frozen=True, slots=True)
class Preference:
    """One person's choice between two answers to one question."""

    time: str
    """UTC, ISO 8601."""
    id: str
    """The id of the test row."""
    question: str
    answers: dict[str, str]
    """Run → its answer."""
    order: tuple[str, str]
    """The runs in the order in which their answers were shown."""
    winner: str | None
    """The run with the better answer; None: a tie."""


def preference_keys(runs: Path, first: Run, second: Run) -> tuple[str, str]:
    """The runs' names in the file of preferences: relative paths, so that the folder of the runs can be moved."""
    root, folders = runs.resolve(), [run.folder.resolve() for run in (first, second)]
    one, other = (str(path.relative_to(root) if path.is_relative_to(root) else path) for path in folders)
    return one, other


def read_preferences(path: Path) -> list[Preference]:
    """All preferences, oldest first; none if the file does not exist. Raises RunError for a damaged line."""
    if not path.exists():
        return []
    with storage_errors(path):
        *lines, _unterminated = path.read_bytes().split(b"\n")
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def _parse(path: Path, number: int, line: bytes) -> Preference:
    try:
        record: dict[str, Any] = json.loads(line)
        first, second = record["order"]
        return Preference(**{**record, "order": (first, second), "answers": dict(record["answers"])})
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            "{file}, line {line}: not a preference ({error}).",
            "Take the line out, or restore the file from a backup.",
            file=path,
            line=number,
            error=error,
        ) from error


def append_preference(path: Path, preference: Preference) -> None:
    """Append to the file; it is on the disk when this returns. Several processes may append at once."""
    add_line(path, asdict(preference), lasting=True)


def on_answers(preferences: Iterable[Preference], answers: dict[str, str], row: str) -> list[Preference]:
    """The preferences between exactly these answers to this test row.

    A new run under an old number may answer differently; preferences on the old answers do not apply to it.
    """
    return [preference for preference in preferences if preference.id == row and preference.answers == answers]


def count_preferences(preferences: Iterable[Preference], first: str, second: str) -> PreferenceCounts:
    """Wins, ties and the sign test of two runs."""
    winners = [preference.winner for preference in preferences]
    wins = [winners.count(first), winners.count(second)]
    return sign_test(wins[0], wins[1], len(winners) - sum(wins))
