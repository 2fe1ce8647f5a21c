"""Curves as numbers: what a template needs to draw one as SVG.

Our own, as no dependency draws: matplotlib would bring 60 MB and colours of its own, while lines that are styled by the
page follow it from light to dark, and their text is text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

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
