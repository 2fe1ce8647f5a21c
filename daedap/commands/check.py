"""`daedap check`: what the data doctor finds in a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from daedap.config import MINI, ModelOptions, ReadOptions
from daedap.data.dedup import near_duplicates
from daedap.data.doctor import check as examine
from daedap.data.findings import Report
from daedap.data.reader import read_pairs
from daedap.evaluation.row_rules import Finding, diagnose_rows
from daedap.training.split_rows import length_limit
from daedap.types import Pair

COMPARED = 100_000
"""Rows whose questions are compared with each other; the other findings are counted over the whole file."""


@dataclass(frozen=True, kw_only=True)
class CheckReport(Report):
    """The data doctor's report, and which rows the bot would confuse."""

    diagnosis: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return {**super().to_json(), "diagnosis": [asdict(finding) for finding in self.diagnosis]}

    def lines(self) -> list[str]:
        """The report as text in the user's language."""
        return [*super().lines(), *(finding.line() for finding in self.diagnosis)]


def check(
    file: Path,
    *,
    read_options: Annotated[ReadOptions, Parameter(name="*")] = ReadOptions(),
    base: str = MINI,
    max_length: int = ModelOptions.max_length,
) -> CheckReport:
    """Examine a file of questions and answers; the file itself is never changed.

    Raises DataError, and BaseError for a base that can't be loaded.

    Parameters
    ----------
    file
        CSV, TSV, JSONL, .xlsx or a KakaoTalk export.
    base
        The base that is to learn the rows: it decides how long they may be.
    max_length
        Longest conversation in tokens, end token included; longer rows are only looked up.
    """
    options = ModelOptions(base=base, max_length=max_length)  # refuses what can't be
    limit = length_limit(options.base, options.max_length)
    report = examine(file, read_options, fits=limit.fits)
    pairs = list(islice((row for row in read_pairs(report.source) if isinstance(row, Pair)), COMPARED))
    one_group = np.zeros(len(pairs), dtype=np.int64)
    near = sum(bool(earlier) for _, earlier in near_duplicates([pair.question for pair in pairs], one_group))
    usable = [pair for pair in pairs if pair.question.strip() and pair.answer.strip()]
    compared = replace(report, limit=(limit.base, limit.tokens), near_duplicates=near, compared=len(pairs))
    return CheckReport(**vars(compared), diagnosis=tuple(diagnose_rows(usable)))
