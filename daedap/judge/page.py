"""Pages of HTML that need nothing else: no network, no script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from daedap.judge.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from daedap.judge.table import duration
from daedap.language import say, speaks_korean

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
        say=say, duration=duration, language="ko" if speaks_korean() else "en", frame=_FRAME, **shown
    )
    return environment.get_template(template.name).render()
