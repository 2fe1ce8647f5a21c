"""Imports go down: a module imports only from modules listed before it; heavy libraries stay in model/ and training/"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "daedap"
HOUSE = """
i18n errors files types config runs
korean: text speech_level perturb
data: clean dedup split inputs headers columns conversation tables excel kakaotalk plain_text
data: objects json_layouts reader questions corpus findings doctor
database: schema connection lessons conversations server_state
database.migrations: env
database.migrations.versions: first events
model: device tokenizer prompt gguf base decoding trainable loss language_model engine verify convert
model: sentence_encoder encoder_conversion
training: split_rows planner profiling activation_cache biencoder checkpoint trainer finetune trial pretrain
training: baselines benchmark
retrieval: lexical interaction query matcher large_matcher encoder
retrieval: courtesies rerank hybrid lessons distress bot build
evaluation: metrics reply_retrieval run_record tables testset question_files faq
evaluation: row_rules diagnose report
evaluation: evaluate compare comparison_report evaluate_run
pipeline
tuning: objective study result search
serve: options errors observability security batcher bots service review page admin
serve.channels: common kakao naver
serve: openai app server
export: common language_model gguf bundle web
commands: answer bench chat check compare evaluate export lessons report runs serve teach train pretrain tune
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


def imports_of(path: Path, *, at_top: bool = False) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(tree.body if at_top else ast.walk(tree))
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
def test_only_model_and_train_import_torch(path: Path) -> None:
    name = name_of(path)
    if not name.startswith(("model.", "training.")):
        at_top = name.startswith("export.")  # writes these libraries' formats, and imports them inside functions
        roots = {imported.partition(".")[0] for imported in imports_of(path, at_top=at_top)}
        assert not roots & HEAVY


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 66, f"{node.name} is over 66 lines"
