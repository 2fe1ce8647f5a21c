"""The record of a finished run, read from its files: what the diagnosis and the report are made from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from daedap.data.split import SPLITS, read_rows
from daedap.errors import RunError
from daedap.evaluation.metrics import Score, Scores
from daedap.korean.text import HANGUL, comparison_form
from daedap.runs import Json, Run
from daedap.types import Pair

PARENT_SYSTEMS = {"parent": "model", "parent_bot": "bot"}
"""The parent's systems in a run's evaluation → their names in the parent's own evaluation."""


@dataclass(frozen=True, slots=True)
class LogWindow:
    """A "train" event of the log: the steps since the event before it."""

    step: int
    epoch: int
    """Counted from 1."""
    loss: float
    """Mean over tokens, nats."""
    learning_rate: float
    grad_norm: float
    """Gradient norm of the last step, before clipping."""
    samples_per_second: float


@dataclass(frozen=True, slots=True)
class DevEval:
    """Dev loss after an epoch, of that epoch's weights or of the average of several epochs' weights."""

    step: int
    epoch: int
    """Counted from 1."""
    loss: float
    """Mean over tokens, nats."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A run that this one was continued from, directly or through others."""

    name: str
    headline: Mapping[str, float] | None
    """Its scores on all its test rows; None: its folder is missing or damaged."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run."""

    folder: Path
    manifest: Json
    headline: Mapping[str, float]
    """Metric → score on all test rows; empty if the run was not evaluated."""
    config: Json
    """`config.json`."""
    state: Json
    """`state.json`."""
    doctor: Json
    """`data/findings.json`: the data doctor's report on the training file."""
    train: tuple[LogWindow, ...]
    dev: tuple[DevEval, ...]
    average: tuple[DevEval, ...]
    scores: Scores
    """Empty if the run was not evaluated. "parent" and "parent_bot" are the parent run's."""
    chance: Mapping[str, float]
    candidates: int
    rows: tuple[Json, ...] = field(repr=False)
    """`evaluation/rows.jsonl`; not part of `to_json`."""
    faq: Json | None = field(repr=False)
    """`evaluation/faq.json`: paraphrases and questions out of scope, as `FaqEvaluation.to_json` gives them."""
    pairs: tuple[Pair, ...] = field(repr=False)
    """All rows of the run's file that were split; not part of `to_json`."""
    labels: Mapping[str, int]
    """Training rows by label, the most frequent first."""
    common_answer: str
    """The most frequent training answer."""
    common_share: float
    """Its share of the training rows, 0 to 1."""
    ancestors: tuple[Ancestor, ...]
    """The parent first."""

    def score(self, system: str, metric: str, name: str = "all") -> Score | None:
        """A score; None if it was not measured or is not finite."""
        return self.scores.get(system, {}).get(name, {}).get(metric)

    @property
    def korean(self) -> bool:
        """Whether the run's file is Korean: most answers of its test rows are, or its most frequent answer."""
        answers = [row["answer"] for row in self.rows] or [self.common_answer]
        return 2 * sum(bool(HANGUL.search(answer)) for answer in answers) > len(answers)

    @property
    def plan(self) -> Json:
        """The plan made before the training (`daedap.training.planner.Plan`)."""
        plan = dict(self.state["plan"])
        return {"requested": plan.get("wished", 0.0), **plan}  # its name in runs of earlier versions

    @property
    def train_options(self) -> Json:
        """The training options (`daedap.config.TrainOptions`)."""
        return dict(self.config["train"])

    @property
    def data(self) -> Json:
        """The file and how its rows were split."""
        return dict(self.manifest["data"])

    @property
    def training(self) -> Json:
        """The result of the training: steps, epochs, best epoch, losses, seconds."""
        return dict(self.manifest["training"])

    @property
    def batch_size(self) -> int:
        """Rows per step, of all processes together."""
        return int(self.train_options["per_device_train_batch_size"] * self.manifest["machine"]["processes"])

    @property
    def stopped_early(self) -> bool:
        """Whether early stopping ended the training."""
        patience = self.train_options["early_stopping_patience"]
        return bool(self.dev and patience and self.training["epochs"] - self.training["best_epoch"] >= patience)

    @property
    def averaged(self) -> bool:
        """Whether the saved weights are the average of several epochs."""
        return bool(self.training.get("averaged"))  # missing in runs of earlier versions

    def to_json(self) -> Json:
        """Everything but `rows` and `pairs` as a JSON object."""
        document = asdict(replace(self, rows=(), pairs=()))
        del document["rows"], document["pairs"]
        return {**document, "folder": str(self.folder)}


def read_run_record(run: Run) -> RunRecord:
    """Read a complete run. Raises RunError if it is a base or one of its files is damaged."""
    if run.command != "train":
        raise RunError(
            "{folder} is a base: it has no questions and answers to report on.",
            "Name a run: daedap runs",
            folder=run.folder,
        )
    events = list(_lines(run.folder / "log.jsonl"))
    scores, rows = _document(run, "scores.json"), run.folder / "evaluation" / "rows.jsonl"
    train, *held_out = (read_rows(run.folder, split) for split in SPLITS)
    answer, count = Counter(comparison_form(pair.answer) for pair in train).most_common(1)[0]
    ancestors = list(_ancestors(run))
    return RunRecord(
        folder=run.folder,
        manifest=run.manifest,
        headline=run.headline,
        config=run.document("config.json"),
        state=run.state,
        doctor=run.document("data/findings.json"),
        train=tuple(_window(event) for event in events if event["event"] == "train"),
        dev=tuple(_dev_evals(events, "dev")),
        average=tuple(_dev_evals(events, "average")),
        scores=(_scores_of_parent(ancestors[0]) if ancestors and scores else {}) | _scores(scores),
        chance=scores.get("chance", {}),
        candidates=scores.get("candidates", 0),
        rows=tuple(_lines(rows)) if rows.exists() else (),
        faq=_document(run, "faq.json") or None,
        pairs=tuple(pair for pairs in (train, *held_out) for pair in pairs),
        labels=dict(Counter(pair.label for pair in train if pair.label).most_common()),
        common_answer=next(pair.answer for pair in train if comparison_form(pair.answer) == answer),
        common_share=count / len(train),
        ancestors=tuple(map(_ancestor, ancestors)),
    )


def _dev_evals(events: Sequence[Json], name: str) -> Iterator[DevEval]:
    return (DevEval(event["step"], event["epoch"], event["loss"]) for event in events if event["event"] == name)


def _window(event: Json) -> LogWindow:
    # The event is written within its epoch, and counts epochs from 0.
    numbers = (event["loss"], event["learning_rate"], event["grad_norm"], event["samples_per_second"])
    return LogWindow(event["step"], event["epoch"] + 1, *numbers)


def _lines(path: Path) -> Iterator[Json]:
    """The objects of a JSONL file without a truncated last line. Raises RunError."""
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


def _document(run: Run, name: str) -> Json:
    """A document of `evaluation/`; {} where there is none."""
    return run.document(f"evaluation/{name}") if (run.folder / "evaluation" / name).exists() else {}


def _scores(document: Json) -> dict[str, dict[str, dict[str, Score]]]:
    """The finite scores of `scores.json`."""
    return {
        system: {
            name: {metric: Score(**score) for metric, score in by_metric.items() if score["value"] is not None}
            for name, by_metric in slices.items()
        }
        for system, slices in document.get("scores", {}).items()
    }


def _ancestors(run: Run) -> Iterator[Run]:
    """Parent, grandparent and so on, up to the first run whose folder is missing (which is included)."""
    visited = {run.folder.resolve()}
    while run.complete and run.parent:
        run = run.parent
        if run.folder.resolve() in visited:
            return
        visited.add(run.folder.resolve())
        yield run


def _ancestor(run: Run) -> Ancestor:
    try:
        return Ancestor(run.folder.name, run.headline)
    except RunError:
        return Ancestor(run.folder.name, None)


def _scores_of_parent(parent: Run) -> dict[str, dict[str, dict[str, Score]]]:
    """The parent's own evaluation, on its own test rows."""
    scores = _scores(_document(parent, "scores.json"))
    return {name: scores[own] for name, own in PARENT_SYSTEMS.items() if own in scores}
