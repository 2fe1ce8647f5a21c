"""The report: a run as one HTML page without scripts or network access, charts as inline SVG.

Python lays the curves out in pixels, the templates draw them. No plotting library: matplotlib would add 60 MB and fixed
colours, while inline SVG follows the page from light to dark, and its text stays text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from daedap.data.findings import KINDS
from daedap.evaluation.diagnose import healthy
from daedap.evaluation.faq import faq_tables, part_shares, part_table
from daedap.evaluation.metrics import PARTS, Score
from daedap.evaluation.row_rules import Finding
from daedap.evaluation.run_record import RunRecord
from daedap.evaluation.tables import (
    Grid,
    format_duration,
    format_score,
    metric_formats,
    score_grids,
    system_name,
)
from daedap.i18n import speaks_korean, translate
from daedap.runs import Json, TrainConfig

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


class Series(NamedTuple):
    """A curve in data coordinates."""

    name: str
    points: Sequence[Point]
    dotted: bool = False
    """Draw a dot with its value at each point."""


class Tick(NamedTuple):
    """A labelled position on an axis."""

    at: float
    """Pixels."""
    text: str


class Curve(NamedTuple):
    """A series in pixels."""

    name: str
    path: str
    """The `d` of an SVG path."""
    dots: tuple[tuple[float, float, str], ...]
    """x, y and the label of each dot."""


class Chart(NamedTuple):
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
    if logarithmic:
        powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
        ticks = [10.0**power for power in powers]
    else:
        ticks = _round_ticks(min(0.0, *values), max(values))
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


_DEFAULTS: dict[str, Json] = json.loads(json.dumps(TrainConfig(file="").to_json()))
"""A run's configuration without any option set."""


def tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """Name, value and a note: of the headline metrics, of the bot if it has them, and of the total time."""
    formats = {line.metric: line for line in metric_formats(record.candidates)}
    shown = []
    for metric in ("hits_at_1", "question_gain", "bpc"):
        for system in ("bot", "model"):  # only the model has probabilities
            if score := record.score(system, metric):
                value, _, interval = format_score(formats[metric], score).partition(" ")
                shown.append((formats[metric].heading, value, f"{interval} {system_name(system)}".strip()))
                break
    total, rows = sum(record.manifest["seconds"].values()), record.manifest["rows"]["train"]
    return [*shown, (translate("time"), format_duration(total), translate("{rows:,} rows", rows=rows))]


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


def phases(record: RunRecord) -> list[tuple[str, float, float | None]]:
    """Name, seconds and rows per second of preparation (loading the base included), training and evaluation.

    No rate where nothing was done.
    """
    training, seconds = record.training, record.manifest["seconds"]
    trained = min(record.manifest["rows"]["train"] * training["epochs"], training["steps"] * record.batch_size)
    stages = (
        (translate("preparation"), "prepare", record.data["rows"]),
        (translate("training"), "train", trained),
        (translate("evaluation"), "evaluate", record.data["test"] if record.scores else 0),
    )
    return [(name, took := seconds[key], rows / took if rows and took else None) for name, key, rows in stages]


def charts(record: RunRecord) -> list[Chart]:
    """Loss, learning rate, gradient norm and speed over the steps."""

    def over_steps(field: str) -> list[Point]:
        return [(window.step, getattr(window, field)) for window in record.train]

    def one_curve(title: str, name: str, field: str, *, wide: bool = False) -> Chart | None:
        return make_chart(title, [Series(name, over_steps(field))], wide=wide)

    loss = [
        Series(translate("training"), over_steps("loss")),
        Series("dev", [(dev.step, dev.loss) for dev in record.dev], dotted=True),
        Series(translate("average"), [(dev.step, dev.loss) for dev in record.average], dotted=True),
    ]
    made = [
        make_chart(translate("Loss (nats per token)"), loss),
        one_curve(translate("Learning rate"), translate("learning rate"), "learning_rate"),
        one_curve(translate("Gradient norm"), translate("gradient norm"), "grad_norm", wide=True),
        one_curve(translate("Rows per second"), translate("rows per second"), "samples_per_second"),
    ]
    return [chart for chart in made if chart]


def bars(record: RunRecord) -> list[tuple[str, str, Score]]:
    """Hits@1 of every system: its name, the score as text, and the score."""
    line = next(line for line in metric_formats(record.candidates) if line.metric == "hits_at_1")
    scores = {system: record.score(system, "hits_at_1") for system in _systems(record)}
    return [(system_name(system), format_score(line, score), score) for system, score in scores.items() if score]


def blocks(record: RunRecord) -> list[Grid]:
    """All scores: a table for each slice."""
    scores = {system: record.scores[system] for system in _systems(record)}
    return score_grids(scores, record.chance, record.candidates)


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


def options(record: RunRecord) -> dict[str, list[tuple[str, str, bool]]]:
    """Name, value and whether it was changed of each setting, by group; those that were changed first."""
    names = {
        "train": translate("training"),
        "model": translate("model"),
        "split": translate("split"),
        "read": translate("file"),
    }
    return {name: _group(record.config[group], _DEFAULTS[group]) for group, name in names.items()}


def _group(settings: Mapping[str, object], defaults: Mapping[str, object]) -> list[tuple[str, str, bool]]:
    options = [
        ("--" + name.replace("_", "-"), _format_value(name, value), value != defaults.get(name))
        for name, value in settings.items()
    ]
    return sorted(options, key=lambda option: not option[2])


def _format_value(name: str, value: object) -> str:
    if isinstance(value, float):
        return format_duration(value) if name == "budget" else f"{value:g}"
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or None
    return "–" if value is None else str(value)


class SampleRow(NamedTuple):
    """One test row of the report."""

    row: Json
    """A line of `evaluation/rows.jsonl`."""
    likeness: float
    """chrF of the reply and the gold answer, 0 to 100."""
    place: float | None
    """Rank of the gold answer among the candidates, from 1; ties at mean rank."""


def choose_samples(rows: Sequence[Json], count: int = 8) -> tuple[list[SampleRow], list[SampleRow]]:
    """The `count` rows with the best replies by chrF, then by rank, and those with the worst, the worst first.

    No row is in both.
    """
    ordered = [_sample_row(row, system) for row in rows if (system := _reply_system(row))]
    ordered.sort(key=lambda sample: (sample.likeness, -(sample.place or 0.0)), reverse=True)
    count = min(count, len(ordered) // 2) if len(ordered) > 1 else len(ordered)
    return ordered[:count], ordered[count:][-count:][::-1]


def _reply_system(row: Json) -> str | None:
    """The bot, or the model if it was evaluated alone."""
    return next((name for name in ("bot", "model") if name in row["replies"]), None)


def _sample_row(row: Json, system: str) -> SampleRow:
    import sacrebleu  # a second to import

    likeness = sacrebleu.sentence_chrf(row["replies"][system], [row["answer"]]).score
    reciprocal = row["shares"][system].get("mrr", [0, 1])[0]
    return SampleRow(row, float(likeness), 1 / reciprocal if reciprocal else None)


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
    good, bad = choose_samples(record.rows)
    return render(
        _HERE / "report.html.jinja",
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
        good=good,
        bad=bad,
        doctor=doctor(record),
        options=options(record),
    )
