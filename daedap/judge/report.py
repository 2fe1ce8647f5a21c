"""A run as one page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import daedap.judge.sections as part
from daedap.judge.diagnose import healthy
from daedap.judge.facts import Facts
from daedap.judge.finding import Finding
from daedap.judge.page import render
from daedap.judge.samples import choose

MARK = "<!-- daedap report -->"
"""Stands in every report, so that no other file is ever replaced by one."""


def page(facts: Facts, findings: Sequence[Finding]) -> str:
    """The report, in the user's language."""
    return render(
        Path(__file__).with_name("report.html.jinja"),
        mark=MARK,
        facts=facts,
        findings=findings,
        healthy=healthy(),
        tiles=part.tiles(facts),
        outcome=part.outcome(facts),
        phases=part.phases(facts),
        charts=part.charts(facts),
        bars=part.bars(facts),
        blocks=part.blocks(facts),
        samples=choose(facts.rows),
        doctor=part.doctor(facts),
        options=part.options(facts),
    )
