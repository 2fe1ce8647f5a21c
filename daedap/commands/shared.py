"""What the commands that make a run have in common."""

from __future__ import annotations

import logging
import platform
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from daedap.errors import SettingsError
from daedap.runs import Json, Run

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "scikit-learn", "numpy", "kiwipiepy")
_log = logging.getLogger("daedap")


def refuse_with_resume(*given: Any) -> None:
    """Raise SettingsError when a file or an option stands beside `--resume`: it would be ignored.

    `given`: files, and groups of options (dataclasses).
    """
    for one in filter(None, given):
        for name in _told(one) if is_dataclass(one) else [str(one)]:
            raise SettingsError(
                "--resume goes on with the run's own file and settings, not with {given}.",
                "Leave {given} out, or leave --resume out to start the next run.",
                given=name,
            )


def _told(options: Any) -> list[str]:
    """Those that have not their default."""
    changed = (option.name for option in fields(options) if getattr(options, option.name) != option.default)
    return [f"--{name.replace('_', '-')}" for name in changed]


def head(run: Run) -> Json:
    """Number, time, versions and the most memory held."""
    from daedap.model.device import peak_memory  # torch takes seconds to import

    return {
        "number": run.number,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "daedap": version("daedap"),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "peak_memory_bytes": peak_memory(),
    }
