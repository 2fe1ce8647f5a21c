"""The commands as Python functions: the same names and options, given as plain keywords."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

Result = TypeVar("Result")


def flat(command: Callable[..., Result]) -> Callable[..., Result]:
    """Let the fields of a command's option classes be given directly: `train("qa.csv", seed=7, runs="runs")`.

    A file or folder may be a string. Raises TypeError for an unknown option, as any function does.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
    groups: dict[str, Any] = {name: type(default) for name, default in defaults.items() if is_dataclass(default)}

    @functools.wraps(command)
    def call(*positional: Any, **options: Any) -> Result:
        for name, group in groups.items():
            if name not in options:
                mine = {field.name for field in fields(group)} & options.keys()
                options[name] = group(**_as_paths(group, {key: options.pop(key) for key in mine}))
        return command(*(Path(value) if isinstance(value, str) else value for value in positional), **options)

    return call


def _as_paths(group: type, options: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(group)
    return {name: Path(value) if hints[name] is Path else value for name, value in options.items()}
