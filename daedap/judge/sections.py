"""The parts of a report, as plain values for its template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from daedap.data.findings import KINDS
from daedap.data.source import Layout
from daedap.data.split import Splitting
from daedap.judge.chart import Chart, Series, draw
from daedap.judge.facts import Facts
from daedap.judge.metrics import Score
from daedap.judge.table import cell, duration, metrics_shown, slice_name, system_name
from daedap.language import say
from daedap.lm.recipe import Learner, Recipe
from daedap.runs import Json

_DEFAULTS: dict[str, Json] = {
    "learner": asdict(Learner()),
    "recipe": asdict(Recipe()),
    "splitting": asdict(Splitting()),
    "layout": asdict(Layout()),
}


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline number."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run and what it took."""

    name: str
    seconds: float
    rate: float | None
    """Rows a second; None when nothing was done."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A score on a line from 0 to 100 %."""

    name: str
    told: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Block:
    """The scores of one slice."""

    title: str
    systems: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Heading, a cell for each system, chance."""


@dataclass(frozen=True, slots=True)
class Option:
    """A setting."""

    name: str
    value: str
    changed: bool
    """Whether it is not the default."""


def tiles(facts: Facts) -> list[Tile]:
    """What one looks at first."""
    lines = {line.metric: line for line in metrics_shown(facts.candidates)}
    shown = []
    for metric in ("hits_at_1", "question_gain", "bpc"):
        for system in ("bot", "model"):  # what answers comes first; only the model has probabilities
            if score := facts.score(system, metric):
                value, _, interval = cell(lines[metric], score).partition(" ")
                shown.append(Tile(lines[metric].heading, value, f"{interval} {system_name(system)}".strip()))
                break
    total = sum(facts.manifest["seconds"].values())
    return [*shown, Tile(say("time"), duration(total), say("{rows:,} rows", rows=facts.manifest["rows"]["train"]))]


def outcome(facts: Facts) -> list[tuple[str, str, str]]:
    """What, as planned, as it was."""
    plan, manifest, training = facts.plan, facts.manifest, facts.training
    seconds, weights = manifest["seconds"], manifest["parameters"]
    best = training["best_epoch"] if facts.dev else training["epochs"]
    kept = "{epochs} (kept: the average up to {best})" if facts.averaged else "{epochs} (best: {best})"
    happened = say(kept, epochs=training["epochs"], best=best)
    depth = say("top {layers} of {blocks}", layers=plan["layers"], blocks=plan["blocks"])
    trained = say("{trained:,} of {total:,} weights", trained=weights["trained"], total=weights["total"])
    everything = duration(plan["seconds"] + plan["scoring"])
    if plan["budget"]:
        everything = say("{time} (budget: {budget})", time=everything, budget=duration(plan["budget"]))
    return [
        (say("rows"), f"{round(plan['fraction'] * plan['rows']):,}", f"{manifest['rows']['train']:,}"),
        (say("epochs"), str(plan["epochs"]), happened),
        (say("layers"), depth, trained),
        (say("learning"), duration(plan["seconds"]), duration(seconds["train"])),
        (
            say("scores"),
            duration(plan["scoring"]),
            duration(sum(seconds[part] for part in ("engine", "index", "evaluate"))),
        ),
        (say("in all"), everything, duration(sum(seconds.values()))),
    ]


def phases(facts: Facts) -> list[Phase]:
    """Preparation (the base's loading included), training, evaluation."""
    data, training, seconds = facts.manifest["data"], facts.training, facts.manifest["seconds"]
    batch = facts.recipe["per_device_train_batch_size"] * facts.manifest["machine"]["processes"]
    learned = min(facts.manifest["rows"]["train"] * training["epochs"], training["steps"] * batch)
    scored = data["test"] if facts.scores else 0
    done = [(say("preparation"), "prepare", data["rows"]), (say("training"), "train", learned)]
    done.append((say("evaluation"), "evaluate", scored))
    return [Phase(name, seconds[key], _rate(rows, seconds[key])) for name, key, rows in done]


def _rate(rows: int, seconds: float) -> float | None:
    return rows / seconds if rows and seconds else None


def charts(facts: Facts) -> list[Chart]:
    """The curves of the log."""
    train = facts.train
    loss = [
        Series(say("training"), [(window.step, window.loss) for window in train]),
        Series("dev", [(watch.step, watch.loss) for watch in facts.dev], dotted=True),
        Series(say("average"), [(watch.step, watch.loss) for watch in facts.average], dotted=True),
    ]
    rate = [Series(say("learning rate"), [(window.step, window.learning_rate) for window in train])]
    norm = [Series(say("gradient norm"), [(window.step, window.grad_norm) for window in train])]
    speed = [Series(say("rows a second"), [(window.step, window.samples_per_second) for window in train])]
    drawn = [
        draw(say("Loss (nats per token)"), loss),
        draw(say("Learning rate"), rate),
        draw(say("Gradient norm"), norm, wide=True),
        draw(say("Rows a second"), speed),
    ]
    return [chart for chart in drawn if chart]


def bars(facts: Facts) -> list[Bar]:
    """The right answer in first place: every system on one line."""
    line = next(line for line in metrics_shown(facts.candidates) if line.metric == "hits_at_1")
    found = {system: facts.score(system, "hits_at_1") for system in _systems(facts)}
    return [_bar(system_name(system), cell(line, score), score) for system, score in found.items() if score]


def _bar(name: str, told: str, score: Score) -> Bar:
    low, high = (score.value if end is None else end for end in (score.low, score.high))
    return Bar(name, told, 100 * score.value, 100 * low, 100 * high)


def blocks(facts: Facts) -> list[Block]:
    """All scores: one block for each slice."""
    slices = dict.fromkeys(name for system in _systems(facts) for name in facts.scores[system])
    return [_block(facts, name) for name in slices]


def _block(facts: Facts, name: str) -> Block:
    systems = {system: facts.scores[system].get(name, {}) for system in _systems(facts)}
    rows = []
    for line in metrics_shown(facts.candidates):
        if any(line.metric in found for found in systems.values()):
            guess = facts.chance.get(line.metric)
            told = "" if guess is None else f"{guess * line.scale:.{line.digits}f}"
            rows.append((line.heading, *(cell(line, found.get(line.metric)) for found in systems.values()), told))
    return Block(slice_name(name, systems), tuple(map(system_name, systems)), tuple(rows))


def _systems(facts: Facts) -> list[str]:
    """What answers first, each next to the parent's."""
    order = ("bot", "parent_bot", "model", "parent", "base", "retrieval", "human")
    return [system for system in order if system in facts.scores]


def doctor(facts: Facts) -> list[dict[str, Any]]:
    """The data doctor's findings, told in the reader's language."""
    actions = {"dropped": say("dropped"), "repaired": say("repaired"), "kept": say("kept")}
    return [
        {**finding, "told": say(KINDS[finding["kind"]].told), "action": actions[finding["action"]]}
        for finding in facts.doctor["findings"]
    ]


def options(facts: Facts) -> dict[str, list[Option]]:
    """The settings by group, those that were changed first."""
    names = {"recipe": say("training"), "learner": say("model"), "splitting": say("split"), "layout": say("file")}
    return {told: _group(facts.settings[group], _DEFAULTS[group]) for group, told in names.items()}


def _group(told: Mapping[str, object], defaults: Mapping[str, object]) -> list[Option]:
    found = [
        Option("--" + name.replace("_", "-"), _value(name, value), value != defaults.get(name))
        for name, value in told.items()
    ]
    return sorted(found, key=lambda option: not option.changed)


def _value(name: str, value: object) -> str:
    if isinstance(value, float):
        return duration(value) if name == "budget" else f"{value:g}"
    return "–" if value is None else str(value)
