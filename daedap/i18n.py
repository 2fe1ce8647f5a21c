"""The user's language: messages are written in English, and translated with gettext where the user reads Korean.

`locale/ko/LC_MESSAGES/daedap.po` holds the translations, `make messages` compiles them to `daedap.mo`, which is read
here; `tests/test_language.py` checks that none is missing.
"""

from __future__ import annotations

import gettext
import locale
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

_log = logging.getLogger("daedap")
_LOCALES = Path(__file__).with_name("locale")
_korean_file: ContextVar[bool] = ContextVar("korean_file", default=False)


def translate(template: str, /, **fields: object) -> str:
    """The message in the user's language, with its `{fields}` filled in."""
    return translate_to(speaks_korean(), template).format(**fields)


def translate_to(korean: bool, template: str) -> str:
    """The message in Korean or in English, whatever the user's language; without fields."""
    return _korean().gettext(template) if korean and template else template  # "" would give the header


def speaks_korean() -> bool:
    """Whether messages are Korean: `DAEDAP_LANG`, then `about_file`, the POSIX variables, the system's own setting."""
    if not os.environ.get("DAEDAP_LANG") and _korean_file.get():
        return True
    for name in ("DAEDAP_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return value.lower().startswith("ko")
    return (locale.getlocale()[0] or "").lower().startswith("ko")


@contextmanager
def about_file(*, korean: bool) -> Iterator[None]:
    """Within: messages about a Korean file are Korean in any locale, unless `DAEDAP_LANG` asks for another language."""
    token = _korean_file.set(korean)
    try:
        yield
    finally:
        _korean_file.reset(token)


@cache
def _korean() -> gettext.NullTranslations:
    return gettext.translation("daedap", _LOCALES, ["ko"])


def tell(lines: Sequence[str]) -> None:
    """Say what is being done, on stderr."""
    for line in lines:
        _log.info(line)
