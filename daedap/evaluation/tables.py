"""Scores as lines of plain text, aligned although a Hangul letter is two columns wide."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daedap.i18n import translate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from daedap.evaluation.metrics import Score

GAP = "  "


@dataclass(frozen=True, slots=True)
class Line:
    """How one metric is shown."""

    metric: str
    heading: str
    scale: float = 1
    """100 for a rate that is shown in percent."""
    digits: int = 1


def draw(
    scores: Mapping[str, Mapping[str, Mapping[str, Score]]], chance: Mapping[str, float], candidates: int
) -> list[str]:
    """One block for each slice: metrics down, systems across, each value with its 95 % interval."""
    slices = list(dict.fromkeys(name for found in scores.values() for name in found))
    lines = metrics_shown(candidates)
    blocks = [
        _block(name, {who: found.get(name, {}) for who, found in scores.items()}, chance, lines) for name in slices
    ]
    note = translate(
        "Brackets: 95 % interval. Seen: the answer also occurs in training. Retrieval: the nearest known answer."
    )
    return [line for block in blocks for line in [*block, ""]] + [note, *_asked(scores)]


def _asked(scores: Mapping[str, Mapping[str, Mapping[str, Score]]]) -> list[str]:
    """On how many rows most scores were taken, and on how many the others, where these are more."""
    rows, asked = (
        max((found["all"][metric].n for found in scores.values() if metric in found.get("all", {})), default=0)
        for metric in ("bpc", "polite")
    )
    told = "Ranked and answered: {asked:,} rows. Bits per character and question gain: {rows:,} rows."
    return [translate(told, asked=asked, rows=rows)] if asked < rows else []


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 100:
        return translate("{seconds:.1f} s", seconds=seconds)
    if seconds < 6000:
        return translate("{minutes:.1f} min", minutes=seconds / 60)
    return translate("{hours:.1f} h", hours=seconds / 3600)


def width(text: str) -> int:
    """Columns that a text takes in a terminal."""
    return sum(_columns(char) for char in unicodedata.normalize("NFC", text))


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _block(
    name: str, systems: Mapping[str, Mapping[str, Score]], chance: Mapping[str, float], lines: Sequence[Line]
) -> list[str]:
    shown = [line for line in lines if any(line.metric in found for found in systems.values())]
    grid = [[slice_name(name, systems), *(system_name(who) for who in systems), translate("chance")]]
    for line in shown:
        cells = [cell(line, found.get(line.metric)) for found in systems.values()]
        guess = chance.get(line.metric)
        grid.append([line.heading, *cells, "" if guess is None else f"{guess * line.scale:.{line.digits}f}"])
    return align(grid)


def align(grid: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with straight columns."""
    widths = [max(width(row[column]) for row in grid) for column in range(len(grid[0]))]
    return [
        GAP.join(cell + " " * (wide - width(cell)) for cell, wide in zip(row, widths, strict=True)).rstrip()
        for row in grid
    ]


def cell(line: Line, score: Score | None) -> str:
    """A value with its interval."""
    if score is None:
        return "-"
    numbers = [value * line.scale for value in (score.value, score.low, score.high) if value is not None]
    told = [f"{number:.{line.digits}f}" if math.isfinite(number) else "?" for number in numbers]
    return told[0] if len(told) == 1 else f"{told[0]} [{told[1]}, {told[2]}]"


def slice_name(name: str, systems: Mapping[str, Mapping[str, Score]]) -> str:
    """What a slice is called, and its size; `systems` are the scores of each system in it."""
    # BPC and the human column are taken on different numbers of pairs; the largest is the size of the slice.
    n = max((found[key].n for found in systems.values() for key in ("bpc", "polite") if key in found), default=0)
    named = {"all": translate("all pairs"), "seen": translate("seen answers"), "unseen": translate("unseen answers")}
    kind, _, label = name.partition(":")
    title = translate("label {label}", label=label) if kind == "label" else named.get(name, name)
    return f"{title} (n={n:,})"


def system_name(name: str) -> str:
    """What a system under test is called."""
    names = {
        "model": translate("model"),
        "base": translate("base"),
        "retrieval": translate("retrieval"),
        "human": translate("human"),
    }
    names |= {"parent": translate("parent"), "bot": translate("bot"), "parent_bot": translate("parent's bot")}
    return names.get(name, name)


def metrics_shown(candidates: int) -> list[Line]:
    """Every metric in the order of the table."""
    return [
        Line("bpc", translate("bits per character"), digits=3),
        Line("question_gain", translate("question gain"), digits=3),
        Line("hits_at_1", translate("right of {count}, first (%)", count=candidates), 100),
        Line("recall_at_5", translate("right of {count}, in the first 5 (%)", count=candidates), 100),
        Line("mrr", translate("mean reciprocal rank"), digits=3),
        Line("backward_hits_at_1", translate("true question found from the reply (%)"), 100),
        Line("bland", translate("bland replies (%)"), 100),
        Line("unique", translate("different replies (%)"), 100),
        Line("distinct_1", translate("different morphemes (%)"), 100),
        Line("distinct_2", translate("different pairs of morphemes (%)"), 100),
        Line("polite", translate("polite endings (%)"), 100),
        Line("ended", translate("ended by itself (%)"), 100),
        Line("chrf", translate("chrF")),
        Line("bleu_char", translate("BLEU on characters")),
        Line("source_retrieved", translate("replies looked up (%)"), 100),
        Line("source_lesson", translate("replies from lessons (%)"), 100),
        Line("source_generated", translate("replies made by the model (%)"), 100),
        Line("source_fallback", translate("replies that ask back (%)"), 100),
        Line("latency_p50_ms", translate("ms per reply, median")),
        Line("latency_p95_ms", translate("ms per reply, 95th percentile")),
    ]
