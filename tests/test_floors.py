"""The house: a module imports only from floors below its own, and heavy libraries stay on their floor."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "daedap"
HOUSE = """
language errors pair
korean senses files
runs
data: problem encoding columns table turns jsonl kakao source read clean findings tally check texts similar split store
data: slips speech disturb augment
lm: processor kernels
lm: recipe tokenizer prompt gguf_reader gguf_file base fresh ranks device batches halves loss score adapter cache
lm: shortlist task checkpoint
lm: average training plan fit speech speaker learned inherit learn engine verify combined converter_gaps convert pairing
lm: corpus pretraining make_base
lm: gauge shapes stock bench trial
answer: index nearest features encoder space rank memory manners bot
judge: metrics candidates backward exam systems table disturbed paraphrases evaluation evaluate
judge: judged compare verdicts settings duel growth
judge: facts finding teaching learning answering diagnose samples chart sections page report
search: score space scale storage study result page task
commands: check shared evaluate compare grow prepare remember train answer chat runs report pretrain bench tune
api __init__ cli __main__
"""
"""Every module, from the ground floor up: each imports only what stands before it. Also the order to read them in."""
HEAVY = {"torch", "transformers", "peft", "accelerate", "ctranslate2", "tokenizers", "safetensors", "huggingface_hub"}
HEAVY |= {"datasets", "gguf", "trl"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def listed() -> list[str]:
    modules = []
    for floor in HOUSE.strip().splitlines():
        package, _, names = floor.rpartition(":")
        modules += [f"{package}.{name}" if package else name for name in names.split()]
    return modules


def imports_of(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) if node.module]


def test_every_module_is_listed() -> None:
    there = {name_of(path) for path in MODULES if path.read_text(encoding="utf-8")}
    assert there == set(listed())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    me = name_of(path)
    for imported in imports_of(path):
        root, _, other = imported.partition(".")
        if root == "daedap":
            assert other in listed(), f"{me} imports through an __init__: {imported}"
            assert listed().index(other) < listed().index(me), f"{me} imports {other}, which stands above it"


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
