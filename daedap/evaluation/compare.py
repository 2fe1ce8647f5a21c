"""What a run keeps of its test, and the rows on which two runs can be compared fairly.

What runs were told and what came of it, where they differ.

Two runs on the same test rows: what is clearly better, what worse, and where their answers differ most.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from daedap.data.dedup import near_duplicates
from daedap.data.split import context, read_side
from daedap.errors import RunError
from daedap.evaluation.metrics import FloatArray, RatioTerms, bootstrap, unique
from daedap.evaluation.result import Row
from daedap.korean.text import comparison_form

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from daedap.evaluation.result import Row
    from daedap.runs import Run


@dataclass(frozen=True)
class EvaluatedRun:
    """A run that has been scored on its test rows."""

    run: Run
    rows: Mapping[str, Row]
    """By id."""
    asked: Mapping[str, str]
    """Id → the test question after its conversation."""
    learned: frozenset[str]
    """Comparison forms of the questions it was trained on, each after its conversation."""
    candidates: int
    """How many answers each ranking chose from."""


@dataclass(frozen=True)
class CommonRows:
    """Test rows of two runs."""

    rows: Sequence[tuple[Row, Row]]
    """Those that both were tested on, in the order of their ids, as each run kept them."""
    groups: NDArray[np.int64]
    """(rows,): numbers of components, joined where either run joins them."""
    leaked: int
    """Rows left out because one of the runs has learned the question, or nearly the same one, and the other has not."""
    alone: int
    """Rows left out because one of the runs alone was tested on them."""
    same_test: bool
    """Both were tested on the very same rows, so that each chose among the same wrong answers."""


def read_judged(run: Run) -> EvaluatedRun:
    """Read what a run keeps. Raises RunError when it was never scored, or its rows can't be read."""
    if run.command != "train":
        raise RunError(
            "{run}: a base; only what daedap train has made is compared.",
            "Use it: daedap train FILE --base {folder}",
            run=run.folder,
            folder=run.folder / "model",
        )
    test = read_side(run.folder, "test")
    if not test:
        raise RunError(
            "{run}: trained without test rows, so that there is nothing to compare.",
            "Train again with --test-size 0.1.",
            run=run.folder,
        )
    rows, candidates = kept_rows(run)
    learned = frozenset(comparison_form(context(pair)) for pair in read_side(run.folder, "train"))
    return EvaluatedRun(
        run, {row.id: row for row in rows}, {pair.id: context(pair) for pair in test}, learned, candidates
    )


def kept_rows(run: Run) -> tuple[list[Row], int]:
    """The rows of a run's evaluation, and how many answers each ranking chose from. Raises RunError."""
    folder = run.folder / "evaluation"
    if not folder.is_dir():
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


def common(first: EvaluatedRun, second: EvaluatedRun) -> CommonRows:
    """The rows to compare two runs on. Raises RunError when there are none."""
    leaked = _leaked(first, second)
    both = sorted(first.rows.keys() & second.rows.keys() - leaked)
    if not both:
        raise RunError(
            "{first} and {second} have no test rows in common ({leaked:,} left out because one run has learned them).",
            "Train both from the same file, or look at both on a third one: daedap evaluate --run RUN --data FILE",
            first=first.run.folder,
            second=second.run.folder,
            leaked=len(leaked),
        )
    rows = [(first.rows[name], second.rows[name]) for name in both]
    everything = first.rows.keys() | second.rows.keys()
    return CommonRows(
        rows=rows,
        groups=_joined([mine.component for mine, _ in rows], [other.component for _, other in rows]),
        leaked=len(leaked),
        alone=len(everything) - len(both) - len(leaked),
        same_test=first.rows.keys() == second.rows.keys(),
    )


def _leaked(first: EvaluatedRun, second: EvaluatedRun) -> set[str]:
    """Ids of the test rows whose question, or a near-duplicate of it, one run has learned and the other has not."""
    if first.learned == second.learned:
        return set()
    forms = {name: comparison_form(text) for name, text in {**first.asked, **second.asked}.items()}
    near = _near(first.learned | second.learned, forms.values())
    known = {form: {bool(found & run.learned) for run in (first, second)} for form, found in near.items()}
    return {name for name, form in forms.items() if len(known[form]) > 1}


def _near(learned: Iterable[str], tested: Iterable[str]) -> dict[str, set[str]]:
    """Each tested comparison form → the learned ones that it equals or nearly equals."""
    known = list(learned)
    texts = [*known, *dict.fromkeys(tested)]
    found = ((row, near) for row, near in near_duplicates(texts) if row >= len(known))
    return {texts[row]: {known[other] for other in near if other < len(known)} for row, near in found}


def _joined(mine: Sequence[int | str], others: Sequence[int | str]) -> NDArray[np.int64]:
    """(rows,): rows that share a component in either naming, directly or through others, get one number."""
    _, first = np.unique([str(name) for name in mine], return_inverse=True)
    _, second = np.unique([str(name) for name in others], return_inverse=True)
    size = int(first.max() + second.max() + 2)
    links = coo_array((np.ones(len(first)), (first, second + first.max() + 1)), shape=(size, size))
    _, numbers = connected_components(links, directed=False)
    groups: NDArray[np.int64] = numbers[first].astype(np.int64)
    return groups


_NO_SETTING = frozenset({"command", "evaluate", "study", "launch", "prepare_seconds", "machine", "plan"})
_NO_FACT = frozenset({"number", "finished", "peak_memory_bytes", "seconds", "headline", "files", "rows"})
_OF_THE_DATA = frozenset({"sha256", "rows", "usable", "train", "dev", "test", "left_out", "unused"})


def differing(runs: Sequence[Run]) -> dict[str, list[object]]:
    """Name (`recipe.learning_rate`, `training.epochs`) → its value in each run, None where a run has none.

    Only what is not the same everywhere. Raises RunError.
    """
    told = [dict(_told(run)) for run in runs]
    names = dict.fromkeys(name for one in told for name in one)
    found = {name: [one.get(name) for one in told] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _told(run: Run) -> Iterator[tuple[str, object]]:
    settings, manifest = run.settings, run.manifest
    yield from _flat({name: value for name, value in settings.items() if name not in _NO_SETTING})
    record = {name: value for name, value in manifest.items() if name not in _NO_FACT}
    data = {name: value for name, value in manifest["data"].items() if name in _OF_THE_DATA}
    yield from _flat({**record, "data": data})


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


Verdict = Literal["better", "worse", "more", "less", "none"]
Both = tuple["Row", "Row"]
SYSTEMS = ("bot", "model")
"""Which of a run's systems is compared: the first of these that both runs have."""
FEW = 10
"""With fewer components an interval by resampling is far too narrow to call a difference clear."""
_SMALLER = frozenset({"bpc", "bland"})
"""Metrics of which less is better."""
_SOURCES = frozenset({"source_retrieved", "source_lesson", "source_generated", "source_fallback"})
_NEITHER = frozenset({"polite"}) | _SOURCES
"""Metrics of which neither more nor less is better: a bot is to speak as its owner does, from wherever."""
_BY_ITSELF = frozenset({"bpc", "bland", "polite", "ended"}) | _SOURCES
"""Metrics of a row that don't hang on which other rows are tested."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of two runs on the same rows."""

    system: str
    """Whose scores they are: bot or model."""
    first: float
    second: float
    difference: float
    """Second less first."""
    low: float | None
    """95 % interval of the difference, by bootstrap over components; None where there is none to be had."""
    high: float | None
    n: int
    """Rows."""
    verdict: Verdict | None
    """Of the second run, where the interval leaves out 0: none is "no clear difference"; None without an interval."""


@dataclass(frozen=True, slots=True)
class Answers:
    """One test question and what the two runs answered."""

    id: str
    question: str
    right: str
    """The written answer."""
    replies: tuple[str, str]
    places: tuple[float, float] | None
    """Of the written answer among the candidates, where both chose among the same."""
    bits: tuple[float, float] | None
    """Bits per character of the written answer."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        fields = {"id": self.id, "question": self.question, "right": self.right, "replies": list(self.replies)}
        return {**fields, "places": self.places, "bits_per_character": self.bits}


def differences(found: CommonRows) -> dict[str, dict[str, Difference]]:
    """Slice ("all", and "seen" and "unseen" answers: so in both runs) → metric → difference."""
    seen = np.array([(mine.seen, other.seen) for mine, other in found.rows])
    slices: dict[str, NDArray[np.bool_]] = {"all": np.ones(len(seen), dtype=np.bool_)}
    slices |= {"seen": np.asarray(seen.all(axis=1)), "unseen": np.asarray(~seen.any(axis=1))}
    return {name: dict(_metrics(found, inside)) for name, inside in slices.items() if inside.any()}


def _metrics(found: CommonRows, inside: NDArray[np.bool_]) -> Iterator[tuple[str, Difference]]:
    rows = [both for both, chosen in zip(found.rows, inside, strict=True) if chosen]
    groups = found.groups[inside]
    for metric in _shared(rows, found.same_test):
        system = next(name for name in SYSTEMS if any(_both_have(both, name, metric) for both in rows))
        yield metric, _difference(metric, system, _tallies(rows, system, metric), groups)
    if answered := _answered(rows):
        system = _system(rows)
        first, second = (unique([both[run].replies[system] for both in answered]).value for run in (0, 1))
        yield "unique", Difference(system, first, second, second - first, None, None, len(answered), None)


def _shared(rows: Sequence[Both], same_test: bool) -> list[str]:
    """Metrics that both runs have, of the first system that has each, and that can be compared."""
    measured = dict.fromkeys(
        metric
        for both in rows
        for system in SYSTEMS
        for metric in both[0].shares.get(system, {})
        if _both_have(both, system, metric)
    )
    return [metric for metric in measured if same_test or metric in _BY_ITSELF]


def _both_have(both: Both, system: str, metric: str) -> bool:
    """Whether it was measured on this row, in the same way, in both runs."""
    first, second = (row.shares.get(system, {}).get(metric) for row in both)
    return first is not None and second is not None and first[1] == second[1]


def _tallies(rows: Sequence[Both], system: str, metric: str) -> tuple[RatioTerms, RatioTerms]:
    """(rows,) each: of the first run and of the second; unmeasured in both where it is in one."""
    nothing = ((0.0, 0.0), (0.0, 0.0))
    shares = np.array(
        [[row.shares[system][metric] for row in both] if _both_have(both, system, metric) else nothing for both in rows]
    )
    return RatioTerms(shares[:, 0, 0], shares[:, 0, 1]), RatioTerms(shares[:, 1, 0], shares[:, 1, 1])


def _difference(
    metric: str, system: str, tallies: tuple[RatioTerms, RatioTerms], groups: NDArray[np.int64]
) -> Difference:
    measured = tallies[0].denominators > 0
    first, second = (tally.numerators[measured] for tally in tallies)
    below, groups = tallies[0].denominators[measured], groups[measured]
    values = [float(above.sum() / below.sum()) for above in (first, second)]
    low, high = _interval(second - first, below, groups)
    verdict = None if low is None or high is None else _verdict(metric, low, high)
    return Difference(system, values[0], values[1], values[1] - values[0], low, high, len(below), verdict)


def _interval(above: FloatArray, below: FloatArray, groups: NDArray[np.int64]) -> tuple[float | None, float | None]:
    if len(np.unique(groups)) < FEW or not np.isfinite(above).all():
        return None, None
    found = bootstrap(above, below, groups)
    return found.low, found.high


def _verdict(metric: str, low: float, high: float) -> Verdict:
    if low <= 0 <= high:
        return "none"
    if metric in _NEITHER:
        return "more" if low > 0 else "less"
    return "better" if (low > 0) != (metric in _SMALLER) else "worse"


def answers(found: CommonRows, asked: Mapping[str, str]) -> list[Answers]:
    """The questions that the runs answer differently: first those where the written answer's place differs most.

    Among equals, where its bits per character do. `asked` names each question by id, its conversation before it.
    """
    rows = _answered(found.rows)
    system = _system(rows) if rows else ""
    different = [both for both in rows if len({comparison_form(row.replies[system]) for row in both}) > 1]
    listed = [_side_by_side(both, system, asked, found.same_test) for both in different]
    return sorted(listed, key=_telling, reverse=True)


def answered(found: CommonRows) -> int:
    """So many questions were answered by both runs."""
    return len(_answered(found.rows))


def _system(rows: Sequence[Both]) -> str:
    """Whose replies are shown: the bot's where both runs have them, else the model's."""
    return next((name for name in SYSTEMS if any(_both_replied(both, name) for both in rows)), SYSTEMS[-1])


def _answered(rows: Sequence[Both]) -> list[Both]:
    system = _system(rows)
    return [both for both in rows if _both_replied(both, system)]


def _both_replied(both: Both, system: str) -> bool:
    return all(system in row.replies for row in both)


def _side_by_side(both: Both, system: str, asked: Mapping[str, str], same_test: bool) -> Answers:
    mine, other = both
    reciprocal = _shares(both, "mrr") if same_test else None
    places = reciprocal and (1 / reciprocal[0], 1 / reciprocal[1])
    question = asked.get(mine.id, mine.question)
    replies = (mine.replies[system], other.replies[system])
    return Answers(mine.id, question, mine.answer, replies, places, _shares(both, "bpc"))


def _shares(both: Both, metric: str) -> tuple[float, float] | None:
    """The row's own ratio in each run; None where it was not measured, or is no number."""
    for system in SYSTEMS:
        if _both_have(both, system, metric):
            first, second = (above / below for above, below in (row.shares[system][metric] for row in both))
            return (first, second) if math.isfinite(first) and math.isfinite(second) else None
    return None


def _telling(answers: Answers) -> tuple[float, float, str]:
    place = abs(1 / answers.places[0] - 1 / answers.places[1]) if answers.places else 0.0
    bits = abs(answers.bits[0] - answers.bits[1]) if answers.bits else 0.0
    return place, bits, answers.id
