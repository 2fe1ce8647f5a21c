"""`daedap report`: a run as one HTML file, with a diagnosis in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import daedap.runs as run_store
from daedap.config import RUNS
from daedap.errors import SettingsError
from daedap.evaluation.diagnose import diagnose, healthy
from daedap.evaluation.report import REPORT_MARKER, report_page
from daedap.evaluation.row_rules import Finding
from daedap.evaluation.run_record import RunRecord, read_run_record
from daedap.files import write_text
from daedap.i18n import about_file, translate


@dataclass(frozen=True)
class Reported:
    """The report's file, and what is in it."""

    file: Path
    record: RunRecord
    findings: list[Finding]
    """The most serious first."""

    def to_json(self) -> dict[str, Any]:
        """File, findings and the run record as a JSON object."""
        return {
            "file": str(self.file),
            "findings": [asdict(finding) for finding in self.findings],
            "record": self.record.to_json(),
        }

    def lines(self) -> list[str]:
        """The file and the findings, for a terminal."""
        with about_file(korean=self.record.korean):
            names = {"serious": translate("serious"), "warning": translate("warning"), "hint": translate("hint")}
            lines = [f"{names[finding.severity]}: {finding.line()}" for finding in self.findings]
            return [str(self.file), *(lines or [healthy()])]


def report(run: str = "latest", *, out: Path | None = None, runs: Path = RUNS) -> Reported:
    """Write a run's report: curves, scores, samples, settings, and what went wrong.

    Raises RunError, SettingsError and StorageError.

    Parameters
    ----------
    run
        Number, folder, latest or best.
    out
        The HTML file to write. [default: report.html in the run's folder]
    runs
        Folder of the runs.
    """
    chosen = run_store.find(run, runs)
    file = out or chosen.folder / "report.html"
    _refuse_other_files(file)
    record = read_run_record(chosen)
    with about_file(korean=record.korean):
        findings = diagnose(record)
        page = report_page(record, findings)
    write_text(file, page)
    return Reported(file, record, findings)


def _refuse_other_files(file: Path) -> None:
    """A report may be replaced by the next one, as it can be made again; nothing else may."""
    if file.is_dir():
        raise SettingsError("--out {out}: this is a folder.", "Give the name of a file.", out=file)
    if file.exists() and REPORT_MARKER.encode() not in file.read_bytes()[:200]:
        raise SettingsError("--out {out}: this file is no report.", "Choose another name.", out=file)
