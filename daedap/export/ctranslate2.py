"""The language model for CTranslate2: the run's engine with its full vocabulary, the tokenizer and its settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daedap.errors import ExportError
from daedap.export.card import write_card
from daedap.export.huggingface import render
from daedap.export.verify import ModelAnswer, Verification, compare, pick_questions
from daedap.files import write_json
from daedap.runs import Run
from daedap.types import Pair

if TYPE_CHECKING:
    from daedap.model.decoding import DecodingRules

FILES = ("model.bin", "config.json", "vocabulary.json")
SETTINGS = "generation.json"
USAGE = """\
```python
import json
import ctranslate2
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
generator = ctranslate2.Generator("FOLDER")
settings = json.load(open("FOLDER/generation.json"))
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "오늘 너무 피곤해"}], tokenize=False, add_generation_prompt=True
)
tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt, add_special_tokens=False)["input_ids"])
answer = generator.generate_batch([tokens], **settings)[0].sequences_ids[0]
print(tokenizer.decode(answer, skip_special_tokens=True))
```"""


def export_engine(run: Run, folder: Path, count: int) -> Verification:
    """Write a run's engine, and compare the answers to `count` questions. Raises ExportError without one."""
    from daedap.model.decoding import DecodingRules
    from daedap.model.language_model import load_prompt

    rules = DecodingRules(load_prompt(run), run.trained["limits"]["max_new_tokens"])
    compute_type = write(run, rules, folder)
    write_card(run, "ctranslate2", USAGE, folder)
    questions = pick_questions(run, rules, count)
    expected = run_answers(run, rules, compute_type, questions)
    return compare(questions, expected, exported_answers(folder, compute_type, questions))


def write(run: Run, rules: DecodingRules, folder: Path) -> str:
    """Copy the engine and write tokenizer and settings. Returns the compute type that agrees with PyTorch here.

    Raises ExportError when the run has no engine, or one that does not agree with PyTorch on this processor.
    """
    from daedap.model.engine import ENGINE
    from daedap.model.tokenizer import save_tokenizer
    from daedap.model.verify import open_verified_engine

    source = run.folder / ENGINE
    engine = open_verified_engine(source, rules.prompt, rules.max_new_tokens) if source.is_dir() else None
    if engine is None:
        raise ExportError(
            "{folder}: PyTorch computes this run's answers, as CTranslate2 can't or gives others.",
            "Export it with --to hf.",
            folder=run.folder,
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, folder / name)
    save_tokenizer(rules.prompt.tokenizer, folder)
    names = _names(folder)
    settings = {
        "max_length": rules.max_new_tokens,
        "include_prompt_in_result": False,
        "end_token": [names[rules.prompt.template.eos_id]],
        "suppress_sequences": [[names[id]] for id in rules.suppressed_ids],
    }
    write_json(folder / SETTINGS, settings)
    return engine.compute_type


def run_answers(run: Run, rules: DecodingRules, compute_type: str, questions: Sequence[str]) -> list[ModelAnswer]:
    """Answers of the run's engine, its prompts rendered by daedap."""
    from daedap.model.engine import ENGINE
    from daedap.model.tokenizer import decode

    prompt, folder = rules.prompt, run.folder / ENGINE
    names = _names(folder)
    options = {
        "max_length": rules.max_new_tokens,
        "include_prompt_in_result": False,
        "end_token": [names[prompt.template.eos_id]],
        "suppress_sequences": [[names[id]] for id in rules.suppressed_ids],
    }
    prompts = [rules.question(Pair(question, "")) for question in questions]
    written = _generate(folder, compute_type, [[names[id] for id in ids] for ids in prompts], options)
    texts = [decode(prompt.tokenizer, ids) for ids in written]
    return [ModelAnswer(tuple(read), tuple(ids), text) for read, ids, text in zip(prompts, written, texts, strict=True)]


def exported_answers(folder: Path, compute_type: str, questions: Sequence[str]) -> list[ModelAnswer]:
    """Answers of the exported folder, computed as its README shows."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    prompts = [render(tokenizer, question) for question in questions]
    written = _generate(folder, compute_type, [tokenizer.convert_ids_to_tokens(ids) for ids in prompts], settings)
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]
    return [ModelAnswer(tuple(read), tuple(ids), text) for read, ids, text in zip(prompts, written, texts, strict=True)]


def _generate(
    folder: Path, compute_type: str, prompts: Sequence[Sequence[str]], options: dict[str, Any]
) -> list[list[int]]:
    import ctranslate2

    generator = ctranslate2.Generator(str(folder), compute_type=compute_type, intra_threads=1)
    return [list(generator.generate_batch([prompt], **options)[0].sequences_ids[0]) for prompt in prompts]


def _names(folder: Path) -> list[str]:
    """The token of each id, by the engine's own names."""
    names: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return names
