"""A study as one page of HTML."""

from __future__ import annotations

import math
from pathlib import Path

from daedap.judge.chart import Chart, Series, draw
from daedap.judge.page import render
from daedap.language import say
from daedap.search.result import Against, Found
from daedap.search.space import option, options


def page(found: Found, whole: Against | None, run: int | None) -> str:
    """The page, in the user's language. `run`: the number of the run; `whole`: it against one with the defaults."""
    return render(
        Path(__file__).with_name("tune.html.jinja"),
        option=option,
        options=options,
        found=found,
        whole=whole,
        run=run,
        chart=_history(found),
        states=_states(),
    )


def _states() -> dict[str, str]:
    return {
        "complete": say("run to its end"),
        "pruned": say("stopped early"),
        "fail": say("failed or killed"),
        "running": say("running"),
        "waiting": say("waiting"),
    }


def _history(found: Found) -> Chart | None:
    """How far every trial that ran to its end is from the defaults, and the best one so far."""
    usual = found.default.score or 0.0
    ended = ((one.number, one.score) for one in found.trials if one.state == "complete")
    apart = [(float(number), score - usual) for number, score in ended if score is not None]
    best, so_far = math.inf, []
    for number, value in apart:
        best = min(best, value)
        so_far.append((number, best))
    told = [Series(say("best so far"), so_far), Series(say("trial"), apart, dotted=True)]
    return draw(say("Score less that of the defaults (below 0 is better)"), told)
