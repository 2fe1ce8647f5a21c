"""The commands as Python functions: the same names and options, given as plain keywords."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from cyclopts import convert

Result = TypeVar("Result")


def flat(command: Callable[..., Result]) -> Callable[..., Result]:
    """Let the fields of a command's option classes be given directly: `train("qa.csv", seed=7, runs="runs")`.

    A file, a folder or a time (`2h`) may be a string. Raises TypeError for an unknown option, as any function does.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
    groups: dict[str, Any] = {name: type(default) for name, default in defaults.items() if is_dataclass(default)}

    @functools.wraps(command)
    def call(*positional: Any, **options: Any) -> Result:
        for name, group in groups.items():
            if name not in options:
                mine = {field.name for field in fields(group)} & options.keys()
                options[name] = group(**_as_told(group, {key: options.pop(key) for key in mine}))
        named = dict(zip(defaults, positional, strict=False))
        extra = positional[len(named) :]  # for Python to complain about
        return command(*_as_told(command, named).values(), *extra, **_as_told(command, options))

    return call


def _as_told(command: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Strings as files and folders, and a run's number or folder as a string, where the type hints say so."""
    hints = get_type_hints(command)
    return {name: _converted(value, hints.get(name)) for name, value in options.items()}


def _converted(value: Any, hint: Any) -> Any:
    if get_origin(hint) is Sequence:
        several = value if isinstance(value, list | tuple) else [value]
        return [_converted(one, get_args(hint)[0]) for one in several]
    if isinstance(value, str) and timedelta in get_args(hint):
        return convert(timedelta, [value])
    if isinstance(value, str) and Path in (hint, *get_args(hint)):
        return Path(value)
    if isinstance(value, int | Path) and not isinstance(value, bool) and str in (hint, *get_args(hint)):
        return str(value)
    return value
