"""The command line: names → commands, each imported only when asked for, so that `daedap --help` is instant."""

from __future__ import annotations

import difflib
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, get_origin

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    UnknownCommandError,
    UnknownOptionError,
)
from cyclopts.exceptions import RepeatArgumentError, UnusedCliTokensError
from cyclopts.help import DefaultFormatter, HelpPanel

from daedap.errors import ColumnsError, DaedapError
from daedap.files import storage_errors
from daedap.i18n import translate

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

COMMANDS = {
    "check": "Examine a file of questions and answers.",
    "train": "Make the next run from a file of questions and answers.",
    "answer": "Answer one question, or a file of them.",
    "chat": "Talk with a run in the terminal.",
    "teach": "Teach the right answer to a question.",
    "lessons": "List what was taught; export, import or undo it.",
    "serve": "Serve a run: chat page, admin page, OpenAI's API.",
    "evaluate": "Score a run, with baselines beside the scores.",
    "compare": "Compare runs: scores, settings, answers side by side.",
    "runs": "List all runs.",
    "report": "Write a run's report with curves, scores, samples and a diagnosis.",
    "export": "Export a run, compared with it answer for answer: the whole bot, or its language model alone.",
    "pretrain": "Make a base of your own from plain texts.",
    "tune": "Search for better settings within a time budget.",
    "bench": "Measure how fast this machine trains, with the usual recipes and with daedap's.",
}


_LIST_OPTIONS = frozenset(
    {"--allowed-hosts", "--allowed-origins", "--augment", "--embed-origins", "--kakao-callback-hosts", "--recipes"}
)


class Result(Protocol):
    """What a command gives back."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        ...

    def lines(self) -> Sequence[str]:
        """For people."""
        ...


def main() -> None:
    """The `daedap` program."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command. Returns 0 done, 1 a user's mistake or bad input, 2 wrong usage, 130 stopped by Ctrl-C."""
    _set_up_streams()
    words = _completed([word for word in arguments if word != "--json"])
    try:
        with storage_errors(Path.cwd()):
            result: Result | None = _app()(words, print_error=False)
            _write(result, as_json="--json" in arguments)
    except BrokenPipeError:  # whoever reads, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it ends
        return 0
    except CycloptsError as error:
        sys.stderr.write(f"daedap: {_usage_message(error, words)}\n")
        return 2
    except ColumnsError as error:
        sys.stderr.write(f"daedap: {error.with_command(_repeated(words))}\n")
        return 1
    except DaedapError as error:
        sys.stderr.write(f"daedap: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\n" + _stopped(words) + "\n")
        return 130
    return getattr(result, "exit_code", 0)


def _stopped(words: Sequence[str]) -> str:
    if words and words[0] in ("train", "pretrain"):
        return translate("Stopped. To continue: daedap {command} --resume", command=words[0])
    if words and words[0] == "tune":
        return translate("Stopped. Run the same command again to continue the study.")
    return translate("Stopped.")


def _app() -> App:
    app = App(
        name="daedap",
        help=translate("From a file of Korean questions and answers to a chatbot that answers to the point."),
        help_epilogue=translate("Every command takes --json: one JSON document on stdout and nothing else."),
        help_format="plaintext",
        version=version("daedap"),
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
        help_formatter=_HelpPage(),
        default_parameter=Parameter(negative_iterable=(), show_default=_shown_default),
    )
    for name, purpose in COMMANDS.items():
        app.command(f"daedap.commands.{name}:{name}", name=name, help=translate(purpose))
    return app


def _shown_default(value: Any) -> Any:
    """Show no default for options that are off or empty."""
    return "" if value in ((), "") else value


class _HelpPage(DefaultFormatter):
    """Translates the docstrings that the help page is made of like any other message."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        entries = [entry.copy(description=_translated(entry.description)) for entry in panel.entries]
        translated = panel.copy(
            title=_translated(panel.title), description=_translated(panel.description), entries=entries
        )
        super().__call__(console, options, translated)


def _translated(text: Any) -> Any:
    plain = str(getattr(text, "primary_renderable", text) or "")
    return translate(" ".join(plain.split())) if plain.strip() else text


def _completed(words: list[str]) -> list[str]:
    """Words as cyclopts reads them.

    `--resume` may stand alone: it then means the latest interrupted run. The values of a list option may be joined by
    commas: `--augment typo,spacing` is `--augment typo --augment spacing`. A question needs no quotes.
    """
    words = list(_separated(words))
    for place, word in enumerate(words):
        alone = place + 1 == len(words) or words[place + 1].startswith("--")
        if word == "--resume" and alone:
            return [*words[: place + 1], "latest", *words[place + 1 :]]
    return _with_question(words) if words[:1] == ["answer"] else words


def _separated(words: Sequence[str]) -> Iterator[str]:
    """The words, with a list option once for each of its values."""
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        values = (value if equals else next(rest, None)) if name in _LIST_OPTIONS else None
        if values is None:
            yield word
        else:
            yield from (each for one in values.split(",") for each in (name, one.strip()))


def _with_question(words: list[str]) -> list[str]:
    """The words of `daedap answer` with its question as one word at the end, after `--`.

    A question may be several words, begin with a hyphen, and be followed by options even where `--` stands before it.
    """
    if {"--help", "-h"} & {*words}:
        return words
    options, question = words[:1], list[str]()
    rest = iter(words[1:])
    for word in rest:
        if re.fullmatch(r"--[a-z][a-z-]*(=.*)?", word, re.DOTALL):
            options += [word] if "=" in word else [word, *islice(rest, 1)]
        elif word != "--":
            question.append(word)
    return [*options, "--", " ".join(question)] if question else options


def _repeated(words: Sequence[str]) -> str:
    """The command line as it was given, without its choice of columns."""
    kept = list[str]()
    rest = iter(words)
    for word in rest:
        if word.partition("=")[0] in ("--question-column", "--answer-column"):
            next(rest if "=" not in word else iter(()), None)
        else:
            kept.append(word)
    quote = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return f"daedap {quote(kept)}"


def _set_up_streams() -> None:
    """Progress to stderr; what can't be shown on a terminal, or decoded from a pipe, is no reason to stop."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("daedap").setLevel(logging.INFO)


def _write(result: Result | None, *, as_json: bool) -> None:
    if result is None:
        return
    if as_json:
        sys.stdout.write(json.dumps(result.to_json(), ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in result.lines())
    sys.stdout.flush()


def _usage_message(error: CycloptsError, words: Sequence[str]) -> str:
    """What is wrong with a command line and what to do, on one line."""
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
