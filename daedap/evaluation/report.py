"""Curves as numbers: what a template needs to draw one as SVG.

Our own, as no dependency draws: matplotlib would bring 60 MB and colours of its own, while lines that are styled by the
page follow it from light to dark, and their text is text.

The parts of a report, as plain values for its template.

Pages of HTML that need nothing else: no network, no script.

A run as one page of HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from daedap.config import ModelOptions, TrainOptions
from daedap.data.findings import KINDS
from daedap.data.reader import ReadOptions
from daedap.data.split import SplitOptions
from daedap.evaluation.diagnose import healthy
from daedap.evaluation.metrics import Score
from daedap.evaluation.run_record import Finding, RunRecord, choose
from daedap.evaluation.tables import cell, duration, metrics_shown, slice_name, system_name
from daedap.i18n import speaks_korean, translate
from daedap.runs import Json

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 12, 30
_POINTS = 300
"""Of a line at most: more can't be seen, and a long run would make a heavy page."""
_LOG = 30
"""Times the smallest value: from there on, a linear scale would show nothing but the largest."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """A curve to draw."""

    name: str
    points: Sequence[Point]
    dotted: bool = False
    """Show each point."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    """Pixels."""
    text: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A series in pixels."""

    name: str
    path: str
    """The `d` of an SVG path."""
    dots: tuple[tuple[float, float, str], ...]
    """Place and what stands there."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves on one pair of axes, in pixels."""

    title: str
    curves: tuple[Curve, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


def draw(title: str, series: Sequence[Series], *, wide: bool = False) -> Chart | None:
    """Lay curves out on common axes; None when there are no points, or none is a number.

    `wide`: the scale may be logarithmic, where values are positive and lie far apart.
    """
    thinned = [(one, _thinned([point for point in one.points if math.isfinite(point[1])])) for one in series]
    points = [point for _, several in thinned for point in several]
    if not points:
        return None
    steps, values = [x for x, _ in points], [y for _, y in points]
    logarithmic = wide and 0 < min(values) < max(values) / _LOG
    marks = _decades(min(values), max(values)) if logarithmic else _round_marks(min(0.0, *values), max(values))
    x = _scale(0.0, max(steps), LEFT, WIDTH - RIGHT)
    y = _scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP, logarithmic=logarithmic)
    return Chart(
        title,
        tuple(_curve(one, several, x, y) for one, several in thinned if several),
        tuple(Tick(x(step), f"{step:,.0f}") for step in _round_marks(0.0, max(steps)) if step <= max(steps)),
        tuple(Tick(y(mark), f"{mark:g}") for mark in marks),
    )


def _curve(series: Series, points: Sequence[Point], x: Callable[[float], float], y: Callable[[float], float]) -> Curve:
    places = [(round(x(step), 1), round(y(value), 1)) for step, value in points]
    path = "M" + "L".join(f"{across:g} {up:g}" for across, up in places)
    labelled = zip(places, points, strict=True) if series.dotted else ()
    return Curve(series.name, path, tuple((*place, f"{value:.3f}") for place, (_, value) in labelled))


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Neighbours put together at their mean."""
    size = math.ceil(len(points) / _POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def _scale(low: float, high: float, start: float, end: float, *, logarithmic: bool = False) -> Callable[[float], float]:
    first, last = (math.log(low), math.log(high)) if logarithmic else (low, high)

    def place(value: float) -> float:
        share = ((math.log(value) if logarithmic else value) - first) / ((last - first) or 1.0)
        return start + share * (end - start)

    return place


def _round_marks(low: float, high: float) -> list[float]:
    """About five marks at 1, 2 or 5 times a power of ten, from below `low` to above `high`."""
    rough = ((high - low) or abs(high) or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [round(n * step, 12) for n in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


_DEFAULTS: dict[str, Json] = {
    "learner": asdict(ModelOptions()),
    "recipe": asdict(TrainOptions()),
    "splitting": asdict(SplitOptions()),
    "layout": asdict(ReadOptions()),
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


def tiles(record: RunRecord) -> list[Tile]:
    """What one looks at first."""
    lines = {line.metric: line for line in metrics_shown(record.candidates)}
    shown = []
    for metric in ("hits_at_1", "question_gain", "bpc"):
        for system in ("bot", "model"):  # what answers comes first; only the model has probabilities
            if score := record.score(system, metric):
                value, _, interval = cell(lines[metric], score).partition(" ")
                shown.append(Tile(lines[metric].heading, value, f"{interval} {system_name(system)}".strip()))
                break
    total = sum(record.manifest["seconds"].values())
    return [
        *shown,
        Tile(translate("time"), duration(total), translate("{rows:,} rows", rows=record.manifest["rows"]["train"])),
    ]


def outcome(record: RunRecord) -> list[tuple[str, str, str]]:
    """What, as planned, as it was."""
    plan, manifest, training = record.plan, record.manifest, record.training
    seconds, weights = manifest["seconds"], manifest["parameters"]
    best = training["best_epoch"] if record.dev else training["epochs"]
    kept = "{epochs} (kept: the average up to {best})" if record.averaged else "{epochs} (best: {best})"
    happened = translate(kept, epochs=training["epochs"], best=best)
    depth = translate("top {layers} of {blocks}", layers=plan["layers"], blocks=plan["blocks"])
    trained = translate("{trained:,} of {total:,} weights", trained=weights["trained"], total=weights["total"])
    everything = duration(plan["seconds"] + plan["scoring"])
    if plan["budget"]:
        everything = translate("{time} (budget: {budget})", time=everything, budget=duration(plan["budget"]))
    return [
        (translate("rows"), f"{round(plan['fraction'] * plan['rows']):,}", f"{manifest['rows']['train']:,}"),
        (translate("epochs"), str(plan["epochs"]), happened),
        (translate("layers"), depth, trained),
        (translate("learning"), duration(plan["seconds"]), duration(seconds["train"])),
        (
            translate("scores"),
            duration(plan["scoring"]),
            duration(sum(seconds[part] for part in ("engine", "index", "evaluate"))),
        ),
        (translate("in all"), everything, duration(sum(seconds.values()))),
    ]


def phases(record: RunRecord) -> list[Phase]:
    """Preparation (the base's loading included), training, evaluation."""
    data, training, seconds = record.manifest["data"], record.training, record.manifest["seconds"]
    batch = record.train_options["per_device_train_batch_size"] * record.manifest["machine"]["processes"]
    learned = min(record.manifest["rows"]["train"] * training["epochs"], training["steps"] * batch)
    scored = data["test"] if record.scores else 0
    done = [(translate("preparation"), "prepare", data["rows"]), (translate("training"), "train", learned)]
    done.append((translate("evaluation"), "evaluate", scored))
    return [Phase(name, seconds[key], _rate(rows, seconds[key])) for name, key, rows in done]


def _rate(rows: int, seconds: float) -> float | None:
    return rows / seconds if rows and seconds else None


def charts(record: RunRecord) -> list[Chart]:
    """The curves of the log."""
    train = record.train
    loss = [
        Series(translate("training"), [(window.step, window.loss) for window in train]),
        Series("dev", [(watch.step, watch.loss) for watch in record.dev], dotted=True),
        Series(translate("average"), [(watch.step, watch.loss) for watch in record.average], dotted=True),
    ]
    rate = [Series(translate("learning rate"), [(window.step, window.learning_rate) for window in train])]
    norm = [Series(translate("gradient norm"), [(window.step, window.grad_norm) for window in train])]
    speed = [Series(translate("rows a second"), [(window.step, window.samples_per_second) for window in train])]
    drawn = [
        draw(translate("Loss (nats per token)"), loss),
        draw(translate("Learning rate"), rate),
        draw(translate("Gradient norm"), norm, wide=True),
        draw(translate("Rows a second"), speed),
    ]
    return [chart for chart in drawn if chart]


def bars(record: RunRecord) -> list[Bar]:
    """The right answer in first place: every system on one line."""
    line = next(line for line in metrics_shown(record.candidates) if line.metric == "hits_at_1")
    found = {system: record.score(system, "hits_at_1") for system in _systems(record)}
    return [_bar(system_name(system), cell(line, score), score) for system, score in found.items() if score]


def _bar(name: str, told: str, score: Score) -> Bar:
    low, high = (score.value if end is None else end for end in (score.low, score.high))
    return Bar(name, told, 100 * score.value, 100 * low, 100 * high)


def blocks(record: RunRecord) -> list[Block]:
    """All scores: one block for each slice."""
    slices = dict.fromkeys(name for system in _systems(record) for name in record.scores[system])
    return [_block(record, name) for name in slices]


def _block(record: RunRecord, name: str) -> Block:
    systems = {system: record.scores[system].get(name, {}) for system in _systems(record)}
    rows = []
    for line in metrics_shown(record.candidates):
        if any(line.metric in found for found in systems.values()):
            guess = record.chance.get(line.metric)
            told = "" if guess is None else f"{guess * line.scale:.{line.digits}f}"
            rows.append((line.heading, *(cell(line, found.get(line.metric)) for found in systems.values()), told))
    return Block(slice_name(name, systems), tuple(map(system_name, systems)), tuple(rows))


def _systems(record: RunRecord) -> list[str]:
    """What answers first, each next to the parent's."""
    order = ("bot", "parent_bot", "model", "parent", "base", "retrieval", "human")
    return [system for system in order if system in record.scores]


def doctor(record: RunRecord) -> list[dict[str, Any]]:
    """The data doctor's findings, told in the reader's language."""
    actions = {"dropped": translate("dropped"), "repaired": translate("repaired"), "kept": translate("kept")}
    return [
        {**finding, "told": translate(KINDS[finding["kind"]].told), "action": actions[finding["action"]]}
        for finding in record.doctor["findings"]
    ]


def options(record: RunRecord) -> dict[str, list[Option]]:
    """The settings by group, those that were changed first."""
    names = {
        "recipe": translate("training"),
        "learner": translate("model"),
        "splitting": translate("split"),
        "layout": translate("file"),
    }
    return {told: _group(record.settings[group], _DEFAULTS[group]) for group, told in names.items()}


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


_HERE = Path(__file__).parent
_FRAME = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}


def render(template: Path, **shown: Any) -> str:
    """A template that extends `page.html.jinja`, in the user's language. Anybody's text may be shown: it is escaped."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        translate=translate, duration=duration, language="ko" if speaks_korean() else "en", frame=_FRAME, **shown
    )
    return environment.get_template(template.name).render()


MARK = "<!-- daedap report -->"
"""Stands in every report, so that no other file is ever replaced by one."""


def page(record: RunRecord, findings: Sequence[Finding]) -> str:
    """The report, in the user's language."""
    return render(
        Path(__file__).with_name("report.html.jinja"),
        mark=MARK,
        record=record,
        findings=findings,
        healthy=healthy(),
        tiles=tiles(record),
        outcome=outcome(record),
        phases=phases(record),
        charts=charts(record),
        bars=bars(record),
        blocks=blocks(record),
        samples=choose(record.rows),
        doctor=doctor(record),
        options=options(record),
    )
