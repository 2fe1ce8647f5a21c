"""`daedap check`: what the data doctor finds in a file."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from daedap.config import ReadOptions
from daedap.data.dedup import near_duplicates
from daedap.data.doctor import check as examine
from daedap.data.findings import Report
from daedap.data.reader import rows
from daedap.types import Pair

COMPARED = 100_000
"""Rows whose questions are compared with each other; the other findings are counted over the whole file."""


def check(file: Path, *, read_options: Annotated[ReadOptions, Parameter(name="*")] = ReadOptions()) -> Report:
    """Examine a file of questions and answers; the file itself is never changed.

    Raises DataError.

    Parameters
    ----------
    file
        CSV, TSV, JSONL, .xlsx or a KakaoTalk export.
    """
    report = examine(file, read_options)
    pairs = (row for row in rows(report.source) if isinstance(row, Pair))
    questions = [pair.question for pair in islice(pairs, COMPARED)]
    near = sum(bool(earlier) for _, earlier in near_duplicates(questions))
    return replace(report, near_duplicates=near, compared=len(questions))
