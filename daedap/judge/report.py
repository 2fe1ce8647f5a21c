"""A run as one page of HTML that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import daedap.judge.sections as part
from daedap.judge.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from daedap.judge.diagnose import healthy
from daedap.judge.facts import Facts
from daedap.judge.finding import Finding
from daedap.judge.samples import choose
from daedap.judge.table import duration
from daedap.language import say, speaks_korean

TEMPLATE = "report.html.jinja"
MARK = "<!-- daedap report -->"
"""Stands in every report, so that no other file is ever replaced by one."""


def page(facts: Facts, findings: Sequence[Finding]) -> str:
    """The report, in the user's language. Questions and answers are anybody's text: everything is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(say=say, duration=duration)
    return environment.get_template(TEMPLATE).render(
        language="ko" if speaks_korean() else "en",
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
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
