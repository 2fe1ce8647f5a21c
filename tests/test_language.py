from __future__ import annotations

import ast
import gettext
import io
import locale
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest
from babel.messages.pofile import read_po
from jinja2 import Environment
from jinja2.ext import extract_from_ast

from daedap import errors
from daedap.cli import COMMANDS, _app
from daedap.data.findings import KINDS
from daedap.errors import DaedapError, SettingsError
from daedap.i18n import speaks_korean, translate

PACKAGE = Path(errors.__file__).parent
PO = PACKAGE / "locale" / "ko" / "LC_MESSAGES" / "daedap.po"
CATALOG = {str(one.id): str(one.string) for one in read_po(io.BytesIO(PO.read_bytes()), locale="ko") if one.id}
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DaedapError)}
HANGUL = re.compile("[가-힣]")
VARIABLES = ("DAEDAP_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
QUESTION = "I didn't quite understand. Could you say it another way?"


@pytest.mark.parametrize(
    ("variables", "korean"),
    [
        ({"DAEDAP_LANG": "ko"}, True),
        ({"DAEDAP_LANG": "KO_KR"}, True),
        ({"DAEDAP_LANG": "en", "LC_ALL": "ko_KR.UTF-8"}, False),
        ({"LC_ALL": "ko_KR.UTF-8", "LANG": "en_US.UTF-8"}, True),
        ({"LC_MESSAGES": "en_US.UTF-8", "LANG": "ko_KR.UTF-8"}, False),
        ({"LC_ALL": "", "LANG": "ko_KR.UTF-8"}, True),
        ({"LANG": "C.UTF-8"}, False),
    ],
)
def test_which_language(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], korean: bool) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, variables.get(name, ""))
    assert speaks_korean() is korean


def test_without_variables_the_system_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert speaks_korean() is (locale.getlocale()[0] or "").lower().startswith("ko")


def test_translate_fills_in_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        translate("{count:,} replies written to {out}", count=1234, out="a.jsonl") == "1,234 replies written to a.jsonl"
    )
    assert translate("never translated {x}", x="{not a field}") == "never translated {not a field}"
    monkeypatch.setenv("DAEDAP_LANG", "ko")
    assert translate("never translated {x}", x=1) == "never translated 1"


def test_translate_speaks_korean(monkeypatch: pytest.MonkeyPatch) -> None:
    assert translate(QUESTION) == QUESTION
    monkeypatch.setenv("DAEDAP_LANG", "ko")
    assert HANGUL.search(translate(QUESTION))


def test_errors_tell_what_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"name": "dev-size", "value": -1}
    error = SettingsError("--{name} {value}: must not be negative.", "Try 0.1.", **fields)
    assert str(error) == "--dev-size -1: must not be negative. Try 0.1."
    assert isinstance(error, DaedapError)
    monkeypatch.setenv("DAEDAP_LANG", "ko")
    message = str(SettingsError("--{name} {value}: must not be negative.", "Try 0.1.", **fields))
    assert "--dev-size -1" in message
    assert HANGUL.search(message)


# ---- daedap.po against the source: every message has its Korean, and nothing else stands there ----


def texts(node: ast.expr) -> Iterator[str]:
    """The literal texts an expression may come to."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*texts(node.body), *texts(node.orelse))


def named(tree: ast.AST, name: str) -> Iterator[str]:
    """Texts that a variable, or the key of a dict, is given anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from given(target, node.value, name)
        elif isinstance(node, ast.AnnAssign) and node.value:
            yield from given(node.target, node.value, name)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                yield from texts(value) if isinstance(key, ast.Constant) and key.value == name else ()


def given(target: ast.expr, value: ast.expr, name: str) -> Iterator[str]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for variable, its_value in zip(target.elts, value.elts, strict=True):
            yield from given(variable, its_value, name)
    elif isinstance(target, ast.Name) and target.id == name:
        for element in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            yield from texts(element)


def called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def spoken(node: ast.Call) -> list[ast.expr]:
    """The arguments of a call that are templates."""
    name = called(node)
    places = {"translate": slice(1), "translate_to": slice(1, None), "finding": slice(1, 4)}
    return node.args[slice(2) if name in ERRORS else places.get(name, slice(0))]


def templates() -> dict[str, str]:
    """Each template in the source, and the file it stands in."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            for argument in spoken(node):
                literal = [*texts(argument)]
                if not literal and isinstance(argument, ast.Name):
                    literal = [*named(tree, argument.id)]
                found.update(dict.fromkeys(literal, path.name))
    for path in sorted(PACKAGE.rglob("*.html.jinja")):
        page = Environment().parse(path.read_text(encoding="utf-8"))
        message = (
            "".join(filter(None, several or ()))
            for _, _, several in extract_from_ast(page, ["translate"], babel_style=False)
        )
        found.update(dict.fromkeys(message, path.name))
    return {template: file for template, file in found.items() if template}


def help_texts() -> dict[str, str]:
    """What the help pages say, beyond the templates."""
    cyclopts = ("Commands", "Parameters", "Display this message and exit.", "Display application version.")
    app, found = _app(), dict.fromkeys(cyclopts, "cyclopts")
    for name in COMMANDS:
        command = app[name]
        arguments = command.assemble_argument_collection(parse_docstring=True)
        helps = [argument.parameter.help or "" for argument in arguments]
        found |= {" ".join(text.split()): f"help of {name}" for text in helps if text}
    return found


def tables() -> dict[str, str]:
    """Headings and states of the list of runs, which stand apart from where they are printed."""
    tree = ast.parse((PACKAGE / "commands" / "runs.py").read_text(encoding="utf-8"))
    return dict.fromkeys([*named(tree, "heads"), *named(tree, "state")], "runs.py")


def all_messages() -> dict[str, str]:
    kinds = dict.fromkeys((kind.description for kind in KINDS.values()), "findings.py")
    commands = dict.fromkeys(COMMANDS.values(), "cli.py")
    return {**templates(), **kinds, **commands, **tables(), **help_texts()}


def fields_of(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def test_the_scan_finds_the_messages() -> None:
    message = all_messages()
    for known in (QUESTION, "{file} is empty.", "Did you mean {near}?", "Rows per step.", KINDS["json"].description):
        assert known in message


def test_no_message_lacks_its_korean() -> None:
    missing = {template: file for template, file in all_messages().items() if template not in CATALOG}
    assert missing == {}


def test_no_korean_is_superfluous() -> None:
    assert sorted(CATALOG.keys() - all_messages().keys()) == []


def test_the_compiled_catalog_is_up_to_date() -> None:
    compiled = gettext.translation("daedap", PACKAGE / "locale", ["ko"])
    assert {template: compiled.gettext(template) for template in CATALOG} == CATALOG, "make messages"


@pytest.mark.parametrize("template", CATALOG)
def test_the_same_fields_in_both_languages(template: str) -> None:
    message = CATALOG[template]
    assert fields_of(message) == fields_of(template)
    assert message.strip()
