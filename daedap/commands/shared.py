"""What the commands that make a run have in common."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from daedap.errors import SettingsError


def refuse_with_resume(*given: Any) -> None:
    """Raise SettingsError when a file or an option stands beside `--resume`: it would be ignored.

    `given`: files, and groups of options (dataclasses).
    """
    for one in filter(None, given):
        for name in _changed(one) if is_dataclass(one) else [str(one)]:
            raise SettingsError(
                "--resume continues with the run's own file and settings, not with {given}.",
                "Leave {given} out, or leave --resume out to start the next run.",
                given=name,
            )


def _changed(options: Any) -> list[str]:
    """Those that have not their default."""
    changed = (option.name for option in fields(options) if getattr(options, option.name) != option.default)
    return [f"--{name.replace('_', '-')}" for name in changed]
