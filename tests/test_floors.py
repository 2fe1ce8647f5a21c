"""The house: a module imports only from floors below its own, and heavy libraries stay on their floor."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "daedap"
FLOORS = [
    {"language", "errors", "pair"},
    {"korean"},
    {"data", "runs"},
    {"lm"},
    {"answer"},
    {"judge"},
    {"commands"},
    {"serve"},
    {"cli", "__init__", "__main__"},
]
SIDEWAYS = {
    ("errors", "language"),
    ("__main__", "cli"),
    # data: file → rows → findings → pairs → sides
    ("data.check", "data.clean"),
    ("data.check", "data.findings"),
    ("data.check", "data.problem"),
    ("data.check", "data.read"),
    ("data.check", "data.tally"),
    ("data.findings", "data.source"),
    ("data.jsonl", "data.columns"),
    ("data.jsonl", "data.problem"),
    ("data.jsonl", "data.turns"),
    ("data.kakao", "data.problem"),
    ("data.kakao", "data.table"),
    ("data.kakao", "data.turns"),
    ("data.read", "data.columns"),
    ("data.read", "data.encoding"),
    ("data.read", "data.jsonl"),
    ("data.read", "data.kakao"),
    ("data.read", "data.problem"),
    ("data.read", "data.source"),
    ("data.read", "data.table"),
    ("data.source", "data.columns"),
    ("data.source", "data.encoding"),
    ("data.source", "data.jsonl"),
    ("data.source", "data.kakao"),
    ("data.source", "data.problem"),
    ("data.source", "data.table"),
    ("data.table", "data.columns"),
    ("data.tally", "data.findings"),
    # judge: candidates, baseline, numbers → evaluation → table
    ("judge.evaluate", "judge.metrics"),
    ("judge.evaluate", "judge.exam"),
    ("judge.evaluate", "judge.retrieval"),
    ("judge.evaluate", "judge.speaker"),
    ("judge.evaluate", "judge.evaluation"),
    ("judge.exam", "judge.candidates"),
    ("judge.exam", "judge.metrics"),
    ("judge.evaluation", "judge.metrics"),
    ("judge.evaluation", "judge.table"),
    ("judge.table", "judge.metrics"),
}
"""Imports between neighbours of one floor: (who, whom)."""
HEAVY = {"torch", "transformers", "peft", "accelerate", "ctranslate2", "tokenizers", "safetensors", "huggingface_hub"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def floor_of(module: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if module.split(".", maxsplit=1)[0] in names)


def imports_of(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) if node.module]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    me = name_of(path)
    for imported in imports_of(path):
        root, _, other = imported.partition(".")
        if root != "daedap":
            continue
        assert other, f"{me} imports through the package's __init__"
        assert (PACKAGE / Path(*other.split("."))).with_suffix(".py").exists(), f"{me} imports through {other}/__init__"
        below = floor_of(other) < floor_of(me)
        assert below or (me, other) in SIDEWAYS, (
            f"{me} (floor {floor_of(me)}) imports {other} (floor {floor_of(other)})"
        )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_lm_knows_torch(path: Path) -> None:
    if not name_of(path).startswith("lm."):
        roots = {imported.partition(".")[0] for imported in imports_of(path)}
        assert not roots & HEAVY


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is over 60 lines"


def test_every_sideways_import_is_used() -> None:
    used = {(name_of(path), other.partition(".")[2]) for path in MODULES for other in imports_of(path)}
    assert used >= SIDEWAYS, "delete what is no longer needed from SIDEWAYS"
