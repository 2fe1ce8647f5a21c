"""The user's language: every message is written once in English and told in Korean where the user reads Korean.

`ko.json` maps the English template to the Korean one; `tests/test_language.py` checks that none is missing.
"""

from __future__ import annotations

import json
import locale
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_log = logging.getLogger("daedap")
_CATALOG = Path(__file__).with_name("ko.json")


def translate(template: str, /, **fields: object) -> str:
    """The message in the user's language, with its `{fields}` filled in."""
    return translate_to(speaks_korean(), template).format(**fields)


def translate_to(korean: bool, template: str) -> str:
    """The message in Korean or in English, whatever the user's language; without fields."""
    return _korean().get(template, template) if korean else template


def speaks_korean() -> bool:
    """Whether the user reads Korean: `DAEDAP_LANG`, then the POSIX variables, then the system's own setting."""
    for name in ("DAEDAP_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return value.lower().startswith("ko")
    return (locale.getlocale()[0] or "").lower().startswith("ko")


@cache
def _korean() -> dict[str, str]:
    catalog: dict[str, str] = json.loads(_CATALOG.read_text(encoding="utf-8"))
    return catalog


def tell(lines: Sequence[str]) -> None:
    """Say what is being done, on stderr."""
    for line in lines:
        _log.info(line)
