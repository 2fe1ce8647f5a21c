"""What a diagnosis says of a run.

What is known of a finished run, read from its files: what the diagnosis and the report are made from.

Answers to show: those nearest to what a person wrote, and those farthest from it.

A run's facts → what went wrong in it, the most serious first, each with its evidence and what to try next.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from daedap.data.split import read_side
from daedap.errors import RunError
from daedap.evaluation.metrics import Score
from daedap.korean.text import comparison_form
from daedap.runs import Json, Run

Severity = Literal["serious", "warning", "hint"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""serious: the run, or its scores, can't be relied on. warning: a better run is to be had. hint: good to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule found in a run, in the user's language."""

    rule: str
    """Name of the rule."""
    severity: Severity
    told: str
    """What is wrong."""
    evidence: str
    """The numbers that say so."""
    advice: str
    """What to try next."""

    def line(self) -> str:
        """For a terminal."""
        return f"{self.told} {self.evidence} → {self.advice}"


Scores = Mapping[str, Mapping[str, Mapping[str, Score]]]
"""System → slice ("all", "seen", "unseen", "label:…") → metric → score."""


@dataclass(frozen=True, slots=True)
class LogWindow:
    """A line of the log: the steps since the line before it."""

    step: int
    epoch: int
    """Counted from 1."""
    loss: float
    """Mean over tokens, nats."""
    learning_rate: float
    grad_norm: float
    """Of its last step, before it was cut."""
    samples_per_second: float


@dataclass(frozen=True, slots=True)
class DevEval:
    """A look at the dev rows after an epoch, with its weights or with the average of several epochs'."""

    step: int
    epoch: int
    """Counted from 1."""
    loss: float
    """Mean over tokens, nats."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A run that this one goes back to."""

    name: str
    headline: Mapping[str, float] | None
    """Its scores on all its test rows; None: its folder is no longer there, or damaged."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, as its files tell it."""

    folder: Path
    manifest: Json
    settings: Json
    doctor: Json
    """`data/findings.json`: the state of the file it learned from."""
    train: tuple[LogWindow, ...]
    dev: tuple[DevEval, ...]
    average: tuple[DevEval, ...]
    scores: Scores
    """Empty when the run was not scored; "parent" and "parent_bot" are those of the run that it goes on from."""
    chance: Mapping[str, float]
    candidates: int
    rows: tuple[Json, ...] = field(repr=False)
    """`evaluation/rows.jsonl`; not part of `to_json`."""
    labels: Mapping[str, int]
    """Training rows by label, the most frequent first."""
    common_answer: str
    """The most frequent training answer."""
    common_share: float
    """Its share of the training rows, 0 to 1."""
    ancestors: tuple[Ancestor, ...]
    """The parent first."""

    def score(self, system: str, metric: str, name: str = "all") -> Score | None:
        """A score, if it was taken and is a number."""
        return self.scores.get(system, {}).get(name, {}).get(metric)

    @property
    def plan(self) -> Json:
        """What was expected of the training."""
        plan: Json = self.settings["plan"]
        return plan

    @property
    def train_options(self) -> Json:
        """The options of the training."""
        train_options: Json = self.settings["recipe"]
        return train_options

    @property
    def training(self) -> Json:
        """What the training came to."""
        training: Json = self.manifest["training"]
        return training

    @property
    def stopped_early(self) -> bool:
        """Whether the dev loss ended the training."""
        patience = self.train_options["early_stopping_patience"]
        return bool(self.dev and patience and self.training["epochs"] - self.training["best_epoch"] >= patience)

    @property
    def averaged(self) -> bool:
        """Whether the weights that were kept are the average of several epochs'."""
        return bool(self.training.get("averaged"))  # runs of earlier versions don't tell

    def to_json(self) -> Json:
        """A JSON object."""
        document = {name: value for name, value in asdict(self).items() if name != "rows"}
        return {**document, "folder": str(self.folder)}


def read_run_record(run: Run) -> RunRecord:
    """Read a complete run. Raises RunError when it is a base, or a file of it is broken."""
    if run.command != "train":
        raise RunError(
            "{folder} is a base: it has no questions and answers to report on.",
            "Name a run: daedap runs",
            folder=run.folder,
        )
    events = list(_lines(run.folder / "log.jsonl"))
    scores = run.document("evaluation/scores.json") if (run.folder / "evaluation").exists() else {}
    rows = run.folder / "evaluation" / "rows.jsonl"
    train = read_side(run.folder, "train")
    answer, count = Counter(comparison_form(pair.answer) for pair in train).most_common(1)[0]
    ancestors = list(_ancestors(run))
    return RunRecord(
        folder=run.folder,
        manifest=run.manifest,
        settings=run.settings,
        doctor=run.document("data/findings.json"),
        train=tuple(_window(event) for event in events if event["event"] == "train"),
        dev=tuple(_watches(events, "dev")),
        average=tuple(_watches(events, "average")),
        scores=(_scores_of_parent(ancestors[0]) if ancestors and scores else {}) | _scores(scores),
        chance=scores.get("chance", {}),
        candidates=scores.get("candidates", 0),
        rows=tuple(_lines(rows)) if rows.exists() else (),
        labels=dict(Counter(pair.label for pair in train if pair.label).most_common()),
        common_answer=next(pair.answer for pair in train if comparison_form(pair.answer) == answer),
        common_share=count / len(train),
        ancestors=tuple(_ancestor(ancestor) for ancestor in ancestors),
    )


def _watches(events: Sequence[Json], name: str) -> Iterator[DevEval]:
    return (DevEval(event["step"], event["epoch"], event["loss"]) for event in events if event["event"] == name)


def _window(event: Json) -> LogWindow:
    # A line is written in the middle of its epoch, which counts from 0 there.
    numbers = (event["loss"], event["learning_rate"], event["grad_norm"], event["samples_per_second"])
    return LogWindow(event["step"], event["epoch"] + 1, *numbers)


def _lines(path: Path) -> Iterator[Json]:
    """The objects of a file of JSON lines, but for a last one that a kill cut short. Raises RunError."""
    try:
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.endswith("\n"))
    except (OSError, ValueError) as error:
        raise RunError(
            "{folder}: {name} can't be read ({error}).",
            "Restore the folder from a backup or train again.",
            folder=path.parent,
            name=path.name,
            error=error,
        ) from error


def _scores(document: Json) -> dict[str, dict[str, dict[str, Score]]]:
    """Scores that are numbers."""
    return {
        system: {
            name: {metric: Score(**score) for metric, score in found.items() if score["value"] is not None}
            for name, found in slices.items()
        }
        for system, slices in document.get("scores", {}).items()
    }


def _ancestors(run: Run) -> Iterator[Run]:
    """The runs that a run goes back to, as far as they are there; the last one may be gone."""
    met = {run.folder.resolve()}
    while run.complete and run.parent:
        run = run.parent
        if run.folder.resolve() in met:
            return
        met.add(run.folder.resolve())
        yield run


def _ancestor(run: Run) -> Ancestor:
    try:
        return Ancestor(run.folder.name, run.manifest["headline"])
    except RunError:
        return Ancestor(run.folder.name, None)


def _scores_of_parent(parent: Run) -> dict[str, dict[str, dict[str, Score]]]:
    """As the parent was scored itself, on its own test rows."""
    if not (parent.folder / "evaluation" / "scores.json").exists():
        return {}
    scores = _scores(parent.document("evaluation/scores.json"))
    names = {"parent": "model", "parent_bot": "bot"}
    return {name: scores[own] for name, own in names.items() if own in scores}


@dataclass(frozen=True, slots=True)
class Shown:
    """One test row to look at."""

    row: Json
    """A line of `evaluation/rows.jsonl`."""
    likeness: float
    """chrF of the bot's reply and the written answer, 0 to 100."""
    place: float | None
    """Place of the written answer among the candidates, counted from 1; ties at mean rank."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows to look at."""

    good: tuple[Shown, ...]
    """The likest first."""
    bad: tuple[Shown, ...]
    """The unlikest first."""


def choose(rows: Sequence[Json], count: int = 8) -> Samples:
    """At most `count` of each kind, no row twice; of equal likeness, the higher its right answer ranks the better."""
    shown = sorted(map(_shown, (row for row in rows if _speaker(row))), key=_goodness, reverse=True)
    count = min(count, len(shown) // 2) if len(shown) > 1 else len(shown)
    return Samples(tuple(shown[:count]), tuple(reversed(shown[count:][-count:])))


def _speaker(row: Json) -> str | None:
    """Who answers: the bot, or the model where it was scored alone."""
    return next((name for name in ("bot", "model") if name in row["replies"]), None)


def _shown(row: Json) -> Shown:
    import sacrebleu  # a second to import

    speaker = _speaker(row) or ""
    likeness = sacrebleu.sentence_chrf(row["replies"][speaker], [row["answer"]]).score
    reciprocal = row["shares"][speaker].get("mrr", [0, 1])[0]
    return Shown(row, float(likeness), 1 / reciprocal if reciprocal else None)


def _goodness(shown: Shown) -> tuple[float, float]:
    return shown.likeness, -(shown.place or 0.0)
