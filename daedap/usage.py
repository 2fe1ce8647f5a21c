"""Wrong usage of the command line, explained in the user's language."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal, get_args, get_origin

from cyclopts import CoercionError, CycloptsError, MissingArgumentError, UnknownCommandError, UnknownOptionError
from cyclopts.exceptions import RepeatArgumentError, UnusedCliTokensError

from daedap.i18n import translate


def usage_message(error: CycloptsError, words: Sequence[str]) -> str:
    """What is wrong with a command line and what to do, on one line.

    Args:
        error: What cyclopts raised.
        words: The command line.
    """
    command = words[0] if words else ""
    if isinstance(error, UnknownCommandError):
        return _unknown_command(error)
    if isinstance(error, UnknownOptionError):
        options = [name for argument in error.argument_collection if argument.parse for name in argument.names]
        return _unknown_option(error.token.keyword or error.token.value, options, command)
    if isinstance(error, MissingArgumentError):
        return _missing(error, command)
    if isinstance(error, CoercionError) and error.token and error.argument:
        return _wrong_value(error.token.keyword or error.argument.name, error.token.value, error.target_type)
    return _superfluous(error, command)


def _unknown_command(error: UnknownCommandError) -> str:
    typed = (error.unused_tokens or [""])[0]
    commands = [name for name in error.app or () if not name.startswith("-")]
    if near := difflib.get_close_matches(typed, commands, 1):
        return translate("{value}: unknown command. Did you mean {near}?", value=typed, near=near[0])
    return translate("{value}: unknown command. There are {commands}.", value=typed, commands=", ".join(commands))


def _unknown_option(typed: str, options: Sequence[str], command: str) -> str:
    if near := difflib.get_close_matches(typed, options, 1):
        return translate("{option}: unknown option. Did you mean {near}?", option=typed, near=near[0])
    return translate("{option}: unknown option. See daedap {command} --help", option=typed, command=command)


def _missing(error: MissingArgumentError, command: str) -> str:
    name = error.keyword or (error.argument.name if error.argument else "")
    if error.keyword or (error.argument and error.argument.tokens):
        return translate("{option} needs a value. See daedap {command} --help", option=name, command=command)
    name = name.lstrip("-").upper()
    return translate("{name} is missing: daedap {command} {name}", name=name, command=command)


def _superfluous(error: CycloptsError, command: str) -> str:
    if isinstance(error, RepeatArgumentError):
        return translate("{option} is given twice.", option=error.token.keyword)
    if not isinstance(error, UnusedCliTokensError):
        return str(error)
    values = " ".join(error.unused_tokens or ())
    message = "{values}: too many words. Put a text or name of several words in quotes. See daedap {command} --help"
    return translate(message, values=values, command=command)


def _wrong_value(option: str, value: str, kind: Any) -> str:
    option = option if option.startswith("--") else option.upper()
    kinds = [one for one in get_args(kind) if one is not type(None)] if get_origin(kind) is not Literal else [kind]
    kind = kinds[0] if len(kinds) == 1 else kind
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        return translate("{option} {value}: choose {choices}.", option=option, value=value, choices=", ".join(choices))
    if kind is int:
        return translate("{option} {value}: this is no whole number.", option=option, value=value)
    if kind is float:
        return translate("{option} {value}: this is no number.", option=option, value=value)
    if kind is timedelta:
        return translate("{option} {value}: this is no time. Write 30m or 2h.", option=option, value=value)
    return translate("{option} {value}: this value can't be used here.", option=option, value=value)
