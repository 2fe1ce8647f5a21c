"""Scores as tables of plain text; columns stay aligned although a Hangul syllable is two columns wide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len

from daedap.i18n import translate
from daedap.korean.text import nfc

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from daedap.evaluation.metrics import Score, Scores

Grid = list[list[str]]
"""A table: rows of cells, the heads first. It is shown in a terminal (`align_columns`), in Markdown and in HTML."""
_GAP = "  "
_FEW = 20
"""Test rows below which intervals are too wide to mean anything."""
_IN_SUMMARY = (
    *("hits_at_1", "backward_hits_at_1", "bpc"),
    *("source_known", "source_small_talk", "source_generated", "source_suggestions", "source_fallback"),
    "latency_p50_ms",
)


@dataclass(frozen=True, slots=True)
class MetricFormat:
    """How one metric is shown."""

    metric: str
    heading: str
    scale: float = 1
    """100 for a rate that is shown in percent."""
    digits: int = 1

    def number(self, value: float, sign: str = "") -> str:
        """A value as it is shown; "?" for NaN. `sign`: "+" for differences."""
        return f"{value * self.scale:{sign}.{self.digits}f}" if math.isfinite(value) else "?"


PERCENT = MetricFormat("", "", 100)
"""Of a rate whose heading stands elsewhere."""


def score_grids(scores: Scores, chance: Mapping[str, float], candidates: int) -> list[Grid]:
    """One table for each slice: metrics down, systems across, each value with its 95% interval.

    `chance`: metric → score of random guessing. The first head of each table is the slice's.
    """
    slices = dict.fromkeys(name for by_slice in scores.values() for name in by_slice)
    return [_score_grid(name, scores, chance, candidates) for name in slices]


def _score_grid(
    name: str,
    scores: Scores,
    chance: Mapping[str, float],
    candidates: int,
    metrics: Container[str] | None = None,
) -> Grid:
    systems = {system: by_slice.get(name, {}) for system, by_slice in scores.items()}
    heads = [slice_name(name, systems), *map(system_name, systems), translate("chance")]
    return [heads, *score_rows(systems, chance, candidates, metrics)]


def score_tables(scores: Scores, chance: Mapping[str, float], candidates: int) -> list[str]:
    """The tables of `score_grids` for a terminal."""
    note = translate(
        "Brackets: intervals of 95 %. Seen: a known pair has the same answer. Retrieval: the nearest known answer."
    )
    tables = map(align_columns, score_grids(scores, chance, candidates))
    return join_blocks([*tables, [note, *_row_counts(scores)]])


def summary_lines(scores: Scores, chance: Mapping[str, float], candidates: int) -> list[str]:
    """The few scores that a training ends with, for a terminal; below `_FEW` answered rows, what to do instead.

    Arguments as of `score_grids`.
    """
    shown = {name: by_slice for name, by_slice in scores.items() if name not in ("base", "parent")}
    if _most(shown, "polite") < _FEW:
        few = "Only {count:,} test row(s): too few for scores. Ask in words that the file does not have: daedap chat"
        measure = "To measure it: daedap evaluate --paraphrases FILE --out-of-scope FILE. All scores: daedap report"
        return [translate(few, count=_most(shown, "polite")), translate(measure)]
    table = align_columns(_score_grid("all", shown, chance, candidates, _IN_SUMMARY))
    note = translate("Brackets: intervals of 95 %. Retrieval: the nearest known answer. All scores: daedap report")
    return join_blocks([table, [note, *_row_counts(scores)]])


def score_rows(
    systems: Mapping[str, Mapping[str, Score]],
    chance: Mapping[str, float],
    candidates: int,
    metrics: Container[str] | None = None,
) -> list[list[str]]:
    """One row for each metric, of `metrics` if given, that any system has: heading, a cell for each system, chance."""
    rows = []
    for line in metric_formats(candidates):
        if (metrics is None or line.metric in metrics) and any(line.metric in scores for scores in systems.values()):
            guess = chance.get(line.metric)
            cells = [format_score(line, scores.get(line.metric)) for scores in systems.values()]
            rows.append([line.heading, *cells, "" if guess is None else line.number(guess)])
    return rows


def _row_counts(scores: Scores) -> list[str]:
    """A note on the number of rows behind the scores, if fewer rows were ranked than have likelihoods."""
    rows, ranked = _most(scores, "bpc"), _most(scores, "polite")
    template = "Ranked and answered: {ranked:,} rows. Bits per character and question gain: {rows:,} rows."
    return [translate(template, ranked=ranked, rows=rows)] if ranked < rows else []


def _most(scores: Scores, metric: str) -> int:
    """The largest number of rows that a system's metric was computed from."""
    of_all = (by_slice.get("all", {}) for by_slice in scores.values())
    return max((by_metric[metric].n for by_metric in of_all if metric in by_metric), default=0)


def format_duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever fits."""
    if seconds < 100:
        return translate("{seconds:.1f} s", seconds=seconds)
    if seconds < 6000:
        return translate("{minutes:.1f} min", minutes=seconds / 60)
    return translate("{hours:.1f} h", hours=seconds / 3600)


def display_width(text: str) -> int:
    """Columns of a text in a terminal."""
    return cell_len(nfc(text))  # rich counts the parts of a decomposed syllable one by one


def align_columns(grid: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells → lines, every cell padded to the width of its column."""
    widths = [max(display_width(row[column]) for row in grid) for column in range(len(grid[0]))]
    return [
        _GAP.join(cell + " " * (width - display_width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in grid
    ]


def join_blocks(blocks: Iterable[Sequence[str]]) -> list[str]:
    """The lines of all blocks that have any, with an empty line between two blocks."""
    return [line for block in blocks if block for line in ["", *block]][1:]


def format_score(line: MetricFormat, score: Score | None) -> str:
    """The value with its interval in brackets; "-" without a score, "?" for NaN."""
    if score is None:
        return "-"
    value, ends = line.number(score.value), [line.number(end) for end in (score.low, score.high) if end is not None]
    return f"{value} [{', '.join(ends)}]" if ends else value


def slice_name(name: str, systems: Mapping[str, Mapping[str, Score]]) -> str:
    """The heading of a slice, with its size; `systems` are the scores of each system in it."""
    # BPC and the human column are measured on different numbers of pairs; the larger one is the size of the slice.
    n = max((scores[key].n for scores in systems.values() for key in ("bpc", "polite") if key in scores), default=0)
    return f"{slice_title(name)} (n={n:,})"


def slice_title(name: str) -> str:
    """The name of a slice."""
    names = {"all": translate("all pairs"), "seen": translate("seen answers"), "unseen": translate("unseen answers")}
    kind, _, label = name.partition(":")
    return translate("label {label}", label=label) if kind == "label" else names.get(name, name)


def system_name(name: str) -> str:
    """The heading of a system's column."""
    names = {
        "model": translate("model"),
        "base": translate("base"),
        "retrieval": translate("retrieval"),
        "human": translate("human"),
        "parent": translate("parent"),
        "bot": translate("bot"),
        "parent_bot": translate("parent's bot"),
    }
    return names.get(name, name)


def metric_formats(candidates: int) -> list[MetricFormat]:
    """Every metric in the order of the table."""
    return [
        MetricFormat("bpc", translate("bits per character"), digits=3),
        MetricFormat("question_gain", translate("question gain"), digits=3),
        MetricFormat("hits_at_1", translate("right of {count}, first (%)", count=candidates), 100),
        MetricFormat("recall_at_5", translate("right of {count}, in the first 5 (%)", count=candidates), 100),
        MetricFormat("mrr", translate("mean reciprocal rank"), digits=3),
        MetricFormat("backward_hits_at_1", translate("true question found from the reply (%)"), 100),
        MetricFormat("bland", translate("bland replies (%)"), 100),
        MetricFormat("unique", translate("different replies (%)"), 100),
        MetricFormat("distinct_1", translate("different morphemes (%)"), 100),
        MetricFormat("distinct_2", translate("different pairs of morphemes (%)"), 100),
        MetricFormat("polite", translate("polite endings (%)"), 100),
        MetricFormat("ended", translate("ended by itself (%)"), 100),
        MetricFormat("chrf", translate("chrF")),
        MetricFormat("bleu_char", translate("BLEU on characters")),
        *(MetricFormat(f"source_{part}", name, 100) for part, name in part_names().items()),
        MetricFormat("latency_p50_ms", translate("ms per reply, median")),
        MetricFormat("latency_p95_ms", translate("ms per reply, 95th percentile")),
    ]


def part_names() -> dict[str, str]:
    """Headings of the parts that replies come from (`daedap.evaluation.metrics.Part`)."""
    return {
        "known": translate("known answers (%)"),
        "retrieved": translate("replies looked up (%)"),
        "small_talk": translate("built-in small talk (%)"),
        "lesson": translate("replies from lessons (%)"),
        "generated": translate("replies made by the model (%)"),
        "suggestions": translate("suggestions to choose from (%)"),
        "fallback": translate("replies that ask back (%)"),
    }
