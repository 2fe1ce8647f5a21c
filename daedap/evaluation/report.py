"""The report: a run as one HTML page without scripts or network access, charts as inline SVG.

Python lays the curves out in pixels, the templates draw them. No plotting library: matplotlib would add 60 MB and fixed
colours, while inline SVG follows the page from light to dark, and its text stays text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from daedap.config import ModelOptions, ReadOptions, SplitOptions, TrainOptions
from daedap.data.findings import KINDS
from daedap.evaluation.diagnose import healthy
from daedap.evaluation.faq import Grid, faq_tables, part_shares, part_table
from daedap.evaluation.metrics import PARTS, Score
from daedap.evaluation.row_rules import Finding
from daedap.evaluation.run_record import RunRecord
from daedap.evaluation.tables import (
    format_duration,
    format_score,
    metric_formats,
    score_rows,
    slice_name,
    system_name,
)
from daedap.i18n import speaks_korean, translate
from daedap.runs import Json

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 12, 30
"""Size of a chart and its margins, in pixels."""
_MAX_POINTS = 300
"""Points of a curve: more can't be seen, and a long run would make a large page."""
_LOG_RATIO = 30
"""Largest ÷ smallest value from which a linear scale would show only the largest."""
REPORT_MARKER = "<!-- daedap report -->"
"""First line of every report; a file without it is never overwritten."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """A curve in data coordinates."""

    name: str
    points: Sequence[Point]
    dotted: bool = False
    """Draw a dot with its value at each point."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled position on an axis."""

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
    """x, y and the label of each dot."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves on one pair of axes, in pixels."""

    title: str
    curves: tuple[Curve, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


def make_chart(title: str, series: Sequence[Series], *, wide: bool = False) -> Chart | None:
    """Lay curves out on common axes; None without a finite point.

    `wide`: the y axis may be logarithmic, and is if the values are positive and span a factor of more than 30.
    """
    sampled = [(one, _downsample([point for point in one.points if math.isfinite(point[1])])) for one in series]
    steps, values = ([point[axis] for _, points in sampled for point in points] for axis in (0, 1))
    if not steps:
        return None
    logarithmic = wide and 0 < min(values) < max(values) / _LOG_RATIO
    ticks = _decades(min(values), max(values)) if logarithmic else _round_ticks(min(0.0, *values), max(values))
    x = _scale(0.0, max(steps), LEFT, WIDTH - RIGHT)
    y = _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP, logarithmic=logarithmic)
    return Chart(
        title,
        tuple(_curve(one, points, x, y) for one, points in sampled if points),
        tuple(Tick(x(step), f"{step:,.0f}") for step in _round_ticks(0.0, max(steps)) if step <= max(steps)),
        tuple(Tick(y(value), f"{value:g}") for value in ticks),
    )


def _curve(series: Series, points: Sequence[Point], x: Callable[[float], float], y: Callable[[float], float]) -> Curve:
    places = [(round(x(step), 1), round(y(value), 1)) for step, value in points]
    path = "M" + "L".join(f"{across:g} {up:g}" for across, up in places)
    labelled = zip(places, points, strict=True) if series.dotted else ()
    return Curve(series.name, path, tuple((*place, f"{value:.3f}") for place, (_, value) in labelled))


def _downsample(points: Sequence[Point]) -> list[Point]:
    """At most 300 points: means of neighbours."""
    size = math.ceil(len(points) / _MAX_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def _scale(low: float, high: float, start: float, end: float, *, logarithmic: bool = False) -> Callable[[float], float]:
    first, last = (math.log(low), math.log(high)) if logarithmic else (low, high)

    def place(value: float) -> float:
        share = ((math.log(value) if logarithmic else value) - first) / ((last - first) or 1.0)
        return start + share * (end - start)

    return place


def _round_ticks(low: float, high: float) -> list[float]:
    """About five ticks at 1, 2 or 5 times a power of ten, from below `low` to above `high`."""
    spacing = ((high - low) or abs(high) or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(spacing))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= spacing * 0.999)
    return [round(n * step, 12) for n in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


_DEFAULTS: dict[str, Json] = {
    "model": asdict(ModelOptions()),
    "train": asdict(TrainOptions()),
    "split": asdict(SplitOptions()),
    "read": asdict(ReadOptions()),
}


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline number."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stage of the run and its duration."""

    name: str
    seconds: float
    rate: float | None
    """Rows per second; None if nothing was done."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A score on a scale from 0 to 100 %."""

    name: str
    text: str
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
    """Whether it differs from the default."""


def tiles(record: RunRecord) -> list[Tile]:
    """The headline metrics, of the bot if it has them, and the total time."""
    formats = {line.metric: line for line in metric_formats(record.candidates)}
    shown = []
    for metric in ("hits_at_1", "question_gain", "bpc"):
        for system in ("bot", "model"):  # only the model has probabilities
            if score := record.score(system, metric):
                value, _, interval = format_score(formats[metric], score).partition(" ")
                shown.append(Tile(formats[metric].heading, value, f"{interval} {system_name(system)}".strip()))
                break
    total, rows = sum(record.manifest["seconds"].values()), record.manifest["rows"]["train"]
    return [*shown, Tile(translate("time"), format_duration(total), translate("{rows:,} rows", rows=rows))]


def outcome(record: RunRecord) -> list[tuple[str, str, str]]:
    """Rows of a table: name, plan, result."""
    plan, manifest, training = record.plan, record.manifest, record.training
    seconds, weights = manifest["seconds"], manifest["parameters"]
    best = training["best_epoch"] if record.dev else training["epochs"]
    template = "{epochs} (kept: the average up to {best})" if record.averaged else "{epochs} (best: {best})"
    epochs = translate(template, epochs=training["epochs"], best=best)
    depth = translate("top {layers} of {blocks}", layers=plan["layers"], blocks=plan["blocks"])
    trained = translate("{trained:,} of {total:,} weights", trained=weights["trained"], total=weights["total"])
    total = format_duration(plan["seconds"] + plan["scoring"])
    if plan["budget"]:
        total = translate("{time} (budget: {budget})", time=total, budget=format_duration(plan["budget"]))
    return [
        (translate("rows"), f"{round(plan['fraction'] * plan['rows']):,}", f"{manifest['rows']['train']:,}"),
        (translate("epochs"), str(plan["epochs"]), epochs),
        (translate("layers"), depth, trained),
        (translate("training"), format_duration(plan["seconds"]), format_duration(seconds["train"])),
        (
            translate("scores"),
            format_duration(plan["scoring"]),
            format_duration(sum(seconds[part] for part in ("engine", "index", "evaluate"))),
        ),
        (translate("total"), total, format_duration(sum(seconds.values()))),
    ]


def phases(record: RunRecord) -> list[Phase]:
    """Preparation (loading the base included), training, evaluation."""
    data, training, seconds = record.manifest["data"], record.training, record.manifest["seconds"]
    batch = record.train_options["per_device_train_batch_size"] * record.manifest["machine"]["processes"]
    trained = min(record.manifest["rows"]["train"] * training["epochs"], training["steps"] * batch)
    evaluated = data["test"] if record.scores else 0
    stages = [(translate("preparation"), "prepare", data["rows"]), (translate("training"), "train", trained)]
    stages.append((translate("evaluation"), "evaluate", evaluated))
    return [Phase(name, seconds[key], _rate(rows, seconds[key])) for name, key, rows in stages]


def _rate(rows: int, seconds: float) -> float | None:
    return rows / seconds if rows and seconds else None


def charts(record: RunRecord) -> list[Chart]:
    """Loss, learning rate, gradient norm and speed over the steps."""
    train = record.train
    loss = [
        Series(translate("training"), [(window.step, window.loss) for window in train]),
        Series("dev", [(dev.step, dev.loss) for dev in record.dev], dotted=True),
        Series(translate("average"), [(dev.step, dev.loss) for dev in record.average], dotted=True),
    ]
    rate = [Series(translate("learning rate"), [(window.step, window.learning_rate) for window in train])]
    norm = [Series(translate("gradient norm"), [(window.step, window.grad_norm) for window in train])]
    speed = [Series(translate("rows per second"), [(window.step, window.samples_per_second) for window in train])]
    made = [
        make_chart(translate("Loss (nats per token)"), loss),
        make_chart(translate("Learning rate"), rate),
        make_chart(translate("Gradient norm"), norm, wide=True),
        make_chart(translate("Rows per second"), speed),
    ]
    return [chart for chart in made if chart]


def bars(record: RunRecord) -> list[Bar]:
    """Hits@1 of every system."""
    line = next(line for line in metric_formats(record.candidates) if line.metric == "hits_at_1")
    scores = {system: record.score(system, "hits_at_1") for system in _systems(record)}
    return [
        Bar(system_name(system), format_score(line, score), 100 * score.value, 100 * score.lower, 100 * score.upper)
        for system, score in scores.items()
        if score
    ]


def blocks(record: RunRecord) -> list[Block]:
    """All scores: one block for each slice."""
    slices = dict.fromkeys(name for system in _systems(record) for name in record.scores[system])
    return [_block(record, name) for name in slices]


def _block(record: RunRecord, name: str) -> Block:
    systems = {system: record.scores[system].get(name, {}) for system in _systems(record)}
    rows = score_rows(systems, record.chance, record.candidates)
    return Block(slice_name(name, systems), tuple(map(system_name, systems)), tuple(map(tuple, rows)))


def _systems(record: RunRecord) -> list[str]:
    """The bot first, each system next to the parent's."""
    order = ("bot", "parent_bot", "model", "parent", "base", "retrieval", "human")
    return [system for system in order if system in record.scores]


def parts(record: RunRecord) -> Grid:
    """How often each part of the bot answered, on test rows and on what else it was evaluated on; [] if on nothing."""
    own: dict[str, Score] = {part: score for part in PARTS if (score := record.score("bot", f"source_{part}"))}
    shares = {translate("test rows"): own} if own else {}
    return part_table({**shares, **(part_shares(record.faq) if record.faq else {})})


def risk_chart(record: RunRecord) -> Chart | None:
    """The risk-coverage curve: wrong answers among the answered, in percent, over the share that is answered."""
    if not record.faq:
        return None
    points = [(100 * point["coverage"], 100 * point["risk"]) for point in record.faq["curve"]]
    return make_chart(translate("Wrong among the answered (%)"), [Series(translate("bot"), points)])


def doctor(record: RunRecord) -> list[dict[str, Any]]:
    """The data doctor's findings in the user's language."""
    actions = {"dropped": translate("dropped"), "repaired": translate("repaired"), "kept": translate("kept")}
    return [
        {**finding, "description": translate(KINDS[finding["kind"]].description), "action": actions[finding["action"]]}
        for finding in record.doctor["findings"]
    ]


def options(record: RunRecord) -> dict[str, list[Option]]:
    """The settings by group, those that were changed first."""
    names = {
        "train": translate("training"),
        "model": translate("model"),
        "split": translate("split"),
        "read": translate("file"),
    }
    return {name: _group(record.config[group], _DEFAULTS[group]) for group, name in names.items()}


def _group(settings: Mapping[str, object], defaults: Mapping[str, object]) -> list[Option]:
    options = [
        Option("--" + name.replace("_", "-"), _format_value(name, value), value != _as_saved(defaults.get(name)))
        for name, value in settings.items()
    ]
    return sorted(options, key=lambda option: not option.changed)


def _as_saved(default: object) -> object:
    """A default as a run's configuration has it: JSON knows lists, but no tuples."""
    return list(default) if isinstance(default, tuple) else default


def _format_value(name: str, value: object) -> str:
    if isinstance(value, float):
        return format_duration(value) if name == "budget" else f"{value:g}"
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or None
    return "–" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One test row of the report."""

    row: Json
    """A line of `evaluation/rows.jsonl`."""
    likeness: float
    """chrF of the reply and the gold answer, 0 to 100."""
    place: float | None
    """Rank of the gold answer among the candidates, from 1; ties at mean rank."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Test rows of the report."""

    good: tuple[SampleRow, ...]
    """The most similar to the gold answer first."""
    bad: tuple[SampleRow, ...]
    """The least similar first."""


def choose_samples(rows: Sequence[Json], count: int = 8) -> Samples:
    """The `count` rows with the best and the worst replies by chrF, then by rank; no row is in both."""
    ordered = sorted(map(_sample_row, filter(_reply_system, rows)), key=_quality, reverse=True)
    count = min(count, len(ordered) // 2) if len(ordered) > 1 else len(ordered)
    return Samples(tuple(ordered[:count]), tuple(reversed(ordered[count:][-count:])))


def _reply_system(row: Json) -> str | None:
    """The bot, or the model if it was evaluated alone."""
    return next((name for name in ("bot", "model") if name in row["replies"]), None)


def _sample_row(row: Json) -> SampleRow:
    import sacrebleu  # a second to import

    system = _reply_system(row) or ""
    likeness = sacrebleu.sentence_chrf(row["replies"][system], [row["answer"]]).score
    reciprocal = row["shares"][system].get("mrr", [0, 1])[0]
    return SampleRow(row, float(likeness), 1 / reciprocal if reciprocal else None)


def _quality(sample: SampleRow) -> tuple[float, float]:
    return sample.likeness, -(sample.place or 0.0)


_HERE = Path(__file__).parent
_STYLESHEET = _HERE.parent / "serve" / "static" / "daedap.css"
"""The style sheet of the chat page; a report holds a copy."""
_FRAME = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}


def render(template: Path, **values: Any) -> str:
    """Render a template that extends `page.html.jinja`, in the user's language; all values are escaped."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        translate=translate,
        format_duration=format_duration,
        language="ko" if speaks_korean() else "en",
        frame=_FRAME,
        stylesheet=_STYLESHEET.read_text(encoding="utf-8"),
        **values,
    )
    return environment.get_template(template.name).render()


def report_page(record: RunRecord, findings: Sequence[Finding]) -> str:
    """The report as HTML, in the user's language."""
    return render(
        Path(__file__).with_name("report.html.jinja"),
        marker=REPORT_MARKER,
        record=record,
        findings=findings,
        healthy=healthy(),
        tiles=tiles(record),
        outcome=outcome(record),
        phases=phases(record),
        charts=charts(record),
        bars=bars(record),
        blocks=blocks(record),
        parts=parts(record),
        faq=faq_tables(record.faq) if record.faq else [],
        risk_chart=risk_chart(record),
        samples=choose_samples(record.rows),
        doctor=doctor(record),
        options=options(record),
    )
