"""`daedap runs`: every run with its lineage and headline scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daedap.runs as run_store
from daedap.config import RUNS
from daedap.errors import RunError
from daedap.evaluation.tables import align_columns, join_blocks
from daedap.i18n import translate
from daedap.runs import Json, Run


@dataclass(frozen=True)
class RunList:
    """The runs of one folder, and the bases made there."""

    runs: list[Run]
    bases: list[Run]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"runs": [_entry(run) for run in self.runs], "bases": [_entry(base) for base in self.bases]}

    def lines(self) -> list[str]:
        """A table of each."""
        heads = ["run", "state", "parent", "rows", "base", "method", "BPC", "question gain", "Hits@1/20", "finished"]
        tables = [[[translate(head) for head in heads], *(_cells(_entry(run)) for run in self.runs)]]
        if self.bases:
            heads = ["base", "state", "tokens", "bits per character", "finished"]
            tables.append([[translate(head) for head in heads], *(_base_cells(_entry(base)) for base in self.bases)])
        return join_blocks(map(align_columns, tables))


def runs(*, runs: Path = RUNS) -> RunList:
    """List all runs.

    Parameters
    ----------
    runs
        Folder of the runs.
    """
    return RunList(run_store.list_runs(runs), run_store.list_runs(runs / "bases"))


def _base_cells(entry: Json) -> list[str]:
    if entry["state"] != "complete":
        return [entry["folder"], translate(entry["state"]), "", "", ""]
    bits, model = entry["bits_per_character"], str(Path(entry["folder"]) / "model")
    scores = [f"{entry['tokens']:,}", "" if bits is None else f"{bits:.3f}"]
    return [model, translate("complete"), *scores, _minute(entry["finished"])]


def _minute(finished: str) -> str:
    """An ISO time to the minute."""
    return finished[:16].replace("T", " ")


def _entry(run: Run) -> Json:
    if not run.complete:
        state = "in training" if run.busy else "interrupted"
        return {"number": run.number, "folder": str(run.folder), "state": state}
    try:
        headline = {} if run.command == "pretrain" else {"headline": run.headline}
        return {"folder": str(run.folder), "state": "complete", **run.manifest, **headline}
    except RunError as error:
        return {"number": run.number, "folder": str(run.folder), "state": "damaged", "error": str(error)}


def _cells(entry: Json) -> list[str]:
    if entry["state"] != "complete":
        return [str(entry["number"]), translate(entry["state"]), *[""] * 8]
    scores = [entry["headline"].get(name) for name in ("bpc", "question_gain", "hits_at_1")]
    return [
        str(entry["number"]),
        translate("complete"),
        str(entry["parent"] or ""),
        f"{entry['data']['train']:,}",
        entry["base"]["name"],
        entry["method"],
        *("" if score is None else f"{score:.3f}" for score in scores),
        _minute(entry["finished"]),
    ]
