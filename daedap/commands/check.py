"""`daedap check`: what the data doctor finds in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from daedap.data import check as doctor
from daedap.data.findings import Report
from daedap.data.source import Layout


def check(file: Path, *, layout: Annotated[Layout, Parameter(name="*")] = Layout()) -> Report:
    """Examine a file of questions and answers; the file itself is never changed.

    Raises DataError.

    Parameters
    ----------
    file
        CSV, TSV, JSONL, .xlsx or a KakaoTalk export.
    """
    return doctor.check(file, layout)
