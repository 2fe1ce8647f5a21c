"""The commands as Python functions whose options are plain keywords, and their type stub.

`daedap.train("qa.csv", num_train_epochs=3, runs="runs")` is `daedap train qa.csv --num-train-epochs 3 --runs runs`.
Editors and type checkers read `daedap/__init__.pyi`, which is made from the same option classes:

    python -m daedap.api > daedap/__init__.pyi
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from daedap.errors import SettingsError

Result = TypeVar("Result")

_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_NAMED_BY_NUMBER = frozenset({"sheet"})
_RUN_OR_FOLDER = frozenset({"run", "from_", "resume", "base", "encoder"})

PUBLIC = {
    "Bot": "retrieval.bot",
    "DaedapError": "errors",
    "Evaluation": "evaluation.evaluate",
    "Message": "types",
    "Pair": "types",
    "Reply": "types",
    "Run": "runs",
}
"""Public classes and the modules they are in."""
FUNCTIONS = ("check", "compare", "evaluate", "pretrain", "report", "train", "tune")
"""Public functions; each is a command."""


def flat(command: Callable[..., Result]) -> Callable[..., Result]:
    """A command whose options are keywords themselves, instead of fields of option classes.

    A file, a folder or a time (`2h`) may be a string, a run a number. Raises TypeError for an unknown option, as any
    function does.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
    groups: dict[str, Any] = {name: type(default) for name, default in defaults.items() if is_dataclass(default)}

    @functools.wraps(command)
    def call(*positional: Any, **options: Any) -> Result:
        for name, group in groups.items():
            if name not in options:
                mine = {field.name for field in fields(group)} & options.keys()
                options[name] = group(**_converted_options(group, {key: options.pop(key) for key in mine}))
        named = dict(zip(defaults, positional, strict=False))
        extra = positional[len(named) :]  # for Python to complain about
        return command(*_converted_options(command, named).values(), *extra, **_converted_options(command, options))

    return call


def _converted_options(target: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options with the types that the target's hints name."""
    hints = get_type_hints(target)
    return {name: _converted(value, hints.get(name)) for name, value in options.items()}


def _converted(value: Any, hint: Any) -> Any:
    if get_origin(hint) is Sequence:
        several = value if isinstance(value, list | tuple) else [value]
        return [_converted(one, get_args(hint)[0]) for one in several]
    if isinstance(value, str) and timedelta in get_args(hint):
        return parse_duration(value)
    if isinstance(value, str) and Path in (hint, *get_args(hint)):
        return Path(value)
    if isinstance(value, int | Path) and not isinstance(value, bool) and str in (hint, *get_args(hint)):
        return str(value)
    return value


def parse_duration(text: str) -> timedelta:
    """`1h30m`, `90m`, `45s`. Raises SettingsError for anything else."""
    if not re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text):
        raise SettingsError("{value}: not a time.", "Write for instance 30m or 1h30m.", value=text)
    parts = (timedelta(**{_UNITS[unit]: float(amount)}) for amount, unit in re.findall(r"([\d.]+)([dhms])", text))
    return sum(parts, timedelta())


def stub() -> str:
    """The text of `daedap/__init__.pyi`."""
    commands = [getattr(import_module(f"daedap.commands.{name}"), name) for name in FUNCTIONS]
    functions = [_function(command) for command in commands]
    classes = [f"from daedap.{module} import {name} as {name}" for name, module in PUBLIC.items()]
    results = dict.fromkeys(_result_import(command) for command in commands)
    config = import_module("daedap.config")
    choices = sorted(name for name, value in vars(config).items() if get_origin(value) is Literal)
    used = [name for name in choices if any(re.search(rf"\b{name}\b", text) for text in functions)]
    lines = [
        '"""Made by `python -m daedap.api`; do not edit."""',
        "",
        "from collections.abc import Sequence",
        "from datetime import timedelta",
        "from pathlib import Path",
        "from typing import Literal",
        "",
        *sorted({*(f"from daedap.config import {name}" for name in used), *classes, *filter(None, results)}),
        "",
        "__version__: str",
        "",
        *functions,
    ]
    return "\n".join(lines).rstrip() + "\n"


def _function(command: Callable[..., Any]) -> str:
    """The stub of one function."""
    arguments: list[str] = []
    keywords: list[str] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(parameter.default):
            group: Any = type(parameter.default)
            keywords += [f"{one.name}: {_wide(one.name, one.type)} = {_literal(one.default)}" for one in fields(group)]
        else:
            default = "" if parameter.default is parameter.empty else f" = {_literal(parameter.default)}"
            kind = keywords if parameter.kind is parameter.KEYWORD_ONLY else arguments
            kind.append(f"{name}: {_wide(name, parameter.annotation)}{default}")
    everything = [*arguments, *(["*", *keywords] if keywords else [])]
    returned = inspect.signature(command).return_annotation
    summary = str(inspect.getdoc(command)).partition("\nParameters\n")[0].strip()
    options = [
        textwrap.fill(f"{name}: {' '.join(text.split())}", 116, initial_indent="    ", subsequent_indent="        ")
        for name, text in _help_texts(command).items()
    ]
    text = "\n".join([summary, "", "Args:", *options])
    body = textwrap.indent(f'"""{text}\n"""', "    ")
    return f"def {command.__name__}(\n    " + ",\n    ".join(everything) + f",\n) -> {returned}:\n{body}\n"


def _wide(name: str, annotation: Any) -> str:
    """The type that a caller may give: files, bases and times also as text, runs and columns also by number."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if text.startswith("Annotated["):
        text = str(ast.unparse(ast.parse(text).body[0].value.slice.elts[0]))  # type: ignore[attr-defined]
    wider = {"Path": "str | Path", "timedelta": "str | timedelta"}
    if name in _NAMED_BY_NUMBER or name.endswith("_column"):
        wider["str"] = "str | int"
    if name in _RUN_OR_FOLDER:
        wider["str"] = "str | int | Path"
    text = re.sub(r"\b(Path|timedelta|str)\b", lambda match: wider.get(match[0], match[0]), text)
    return f"{text[9:-1]} | {text}" if text.startswith("Sequence[") else text


def _literal(value: object) -> str:
    """A default as it is shown; "..." for what is no literal."""
    return repr(value) if value is None or isinstance(value, str | int | float | tuple) else "..."


def _result_import(command: Callable[..., Any]) -> str:
    """The import of the class that a command returns."""
    returned = get_type_hints(command)["return"]
    return "" if returned.__name__ in PUBLIC else f"from {returned.__module__} import {returned.__name__}"


def _help_texts(command: Callable[..., Any]) -> dict[str, str]:
    """Option → its docstring, as the command line's help has it; fields of option classes come last."""
    from cyclopts import App

    app = App()
    app.command(command, name="command")
    options = sorted(app["command"].assemble_argument_collection(parse_docstring=True), key=lambda one: bool(one.keys))
    return {one.field_info.name: one.parameter.help for one in options if one.parameter.help}


if __name__ == "__main__":
    sys.stdout.write(stub())
