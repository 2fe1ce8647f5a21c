"""What runs were told and what came of it, where they differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from daedap.runs import Run

_NO_SETTING = frozenset({"command", "evaluate", "study", "launch", "prepare_seconds", "machine", "plan"})
_NO_FACT = frozenset({"number", "finished", "peak_memory_bytes", "seconds", "headline", "files", "rows"})
_OF_THE_DATA = frozenset({"sha256", "rows", "usable", "train", "dev", "test", "left_out", "unused"})


def differing(runs: Sequence[Run]) -> dict[str, list[object]]:
    """Name (`recipe.learning_rate`, `training.epochs`) → its value in each run, None where a run has none.

    Only what is not the same everywhere. Raises RunError.
    """
    told = [dict(_told(run)) for run in runs]
    names = dict.fromkeys(name for one in told for name in one)
    found = {name: [one.get(name) for one in told] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _told(run: Run) -> Iterator[tuple[str, object]]:
    settings, manifest = run.settings, run.manifest
    yield from _flat({name: value for name, value in settings.items() if name not in _NO_SETTING})
    facts = {name: value for name, value in manifest.items() if name not in _NO_FACT}
    data = {name: value for name, value in manifest["data"].items() if name in _OF_THE_DATA}
    yield from _flat({**facts, "data": data})


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
