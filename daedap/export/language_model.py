"""The language model alone, for other programs: merged or as an adapter for transformers, or for CTranslate2.

Plain `AutoModelForCausalLM` and `AutoTokenizer` load it; chat template, end token, length of an answer and the control
tokens that are never generated are in the files, so that `generate` answers as the run does. For CTranslate2 it is the
run's engine with its full vocabulary.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from daedap.errors import ExportError
from daedap.export.common import (
    ModelAnswer,
    Verification,
    compare,
    generate,
    generation_config,
    pick_questions,
    trained_answers,
    write_card,
)
from daedap.files import write_json
from daedap.runs import Run
from daedap.types import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from daedap.model.decoding import DecodingRules
    from daedap.model.language_model import TorchModel

MERGED_USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "오늘 너무 피곤해"}], tokenize=False, add_generation_prompt=True
)
ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
print(tokenizer.decode(model.generate(ids)[0, ids.shape[1] :], skip_special_tokens=True))
```"""
ADAPTER_USAGE = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
base = AutoModelForCausalLM.from_pretrained("BASE")
model = PeftModel.from_pretrained(base, "FOLDER").merge_and_unload()
```"""
ENGINE_USAGE = """\
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
_ENGINE_FILES = ("model.bin", "config.json", "vocabulary.json")
_SETTINGS = "generation.json"


# ---- transformers ----


def export_merged(run: Run, folder: Path, count: int) -> Verification:
    """Write a run's model, and compare the answers to `count` questions."""
    from daedap.model.decoding import DecodingRules
    from daedap.model.language_model import open_trained

    model = open_trained(run)
    rules = DecodingRules(model.prompt, model.max_new_tokens)
    questions = pick_questions(run, rules, count)
    expected = trained_answers(model, rules, questions)
    write_merged(model, rules, folder)
    write_card(run, "hf", MERGED_USAGE, folder)
    return compare(questions, expected, merged_answers(folder, questions))


def export_adapter(run: Run, folder: Path, count: int) -> Verification:
    """Write a run's adapter, and compare the answers to `count` questions. Raises ExportError without an adapter."""
    from daedap.model.decoding import DecodingRules
    from daedap.model.language_model import load_prompt, open_trained

    rules = DecodingRules(load_prompt(run), run.trained["limits"]["max_new_tokens"])
    write_adapter(run, rules, folder)
    write_card(run, "hf", ADAPTER_USAGE.replace("BASE", str(run.trained["base"]["name"])), folder)
    questions = pick_questions(run, rules, count)
    expected = trained_answers(open_trained(run), rules, questions)
    return compare(questions, expected, adapter_answers(run, folder, questions))


def write_merged(model: TorchModel, rules: DecodingRules, folder: Path) -> None:
    """Write weights, configuration, tokenizer with its chat template, and generation config."""
    from daedap.model.tokenizer import save_tokenizer

    model.model.generation_config = generation_config(rules)
    model.model.save_pretrained(folder)
    save_tokenizer(rules.prompt.tokenizer, folder)
    _add_older_names(folder / "config.json")


def write_adapter(run: Run, rules: DecodingRules, folder: Path) -> None:
    """Copy the run's adapter with its tokenizer. Raises ExportError when all weights were trained."""
    source = run.folder / "adapter"
    if not source.is_dir():
        raise ExportError(
            "{folder}: all weights of this run were trained, so it has no adapter.",
            "Leave --adapter out.",
            folder=run.folder,
        )
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    generation_config(rules).save_pretrained(folder)


def merged_answers(folder: Path, questions: Sequence[str]) -> list[ModelAnswer]:
    """Answers of the exported model, by transformers alone."""
    from transformers import AutoModelForCausalLM

    return _plain_answers(AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), folder, questions)


def adapter_answers(run: Run, folder: Path, questions: Sequence[str]) -> list[ModelAnswer]:
    """Answers of the run's base with the exported adapter, by transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import GenerationConfig

    from daedap.model.base import load_recorded_base

    base = load_recorded_base(run, run.trained["base"]).model
    model = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return _plain_answers(model, folder, questions)


def render(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    """The ids of a question by the tokenizer's chat template, as any user of transformers gets them."""
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return list(cast("Any", tokenizer)(text, add_special_tokens=False)["input_ids"])


def _plain_answers(model: PreTrainedModel, folder: Path, questions: Sequence[str]) -> list[ModelAnswer]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompts = [render(tokenizer, question) for question in questions]
    return generate(model, prompts, lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)))


def _add_older_names(path: Path) -> None:
    """Add what transformers 4 reads instead of `rope_parameters` and `dtype`: it would take its defaults silently."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:  # not the nested ones of Gemma 3, whose two values are transformers 4's defaults
        config.setdefault("rope_theta", rope["rope_theta"])
        if rope.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", {name: rope[name] for name in rope if name != "rope_theta"})
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    write_json(path, config)


# ---- CTranslate2 ----


def export_engine(run: Run, folder: Path, count: int) -> Verification:
    """Write a run's engine, and compare the answers to `count` questions. Raises ExportError without one."""
    from daedap.model.decoding import DecodingRules
    from daedap.model.language_model import load_prompt

    rules = DecodingRules(load_prompt(run), run.trained["limits"]["max_new_tokens"])
    compute_type = write_engine(run, rules, folder)
    write_card(run, "ctranslate2", ENGINE_USAGE, folder)
    questions = pick_questions(run, rules, count)
    expected = engine_answers(run, rules, compute_type, questions)
    return compare(questions, expected, exported_engine_answers(folder, compute_type, questions))


def write_engine(run: Run, rules: DecodingRules, folder: Path) -> str:
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
    for name in _ENGINE_FILES:
        shutil.copyfile(source / name, folder / name)
    save_tokenizer(rules.prompt.tokenizer, folder)
    write_json(folder / _SETTINGS, _settings(rules, _names(folder)))
    return engine.compute_type


def engine_answers(run: Run, rules: DecodingRules, compute_type: str, questions: Sequence[str]) -> list[ModelAnswer]:
    """Answers of the run's engine, its prompts rendered by daedap."""
    from daedap.model.engine import ENGINE
    from daedap.model.tokenizer import decode

    prompt, folder = rules.prompt, run.folder / ENGINE
    names = _names(folder)
    prompts = [rules.question(Pair(question, "")) for question in questions]
    written = _generate(folder, compute_type, [[names[id] for id in ids] for ids in prompts], _settings(rules, names))
    return _answers(prompts, written, [decode(prompt.tokenizer, ids) for ids in written])


def exported_engine_answers(folder: Path, compute_type: str, questions: Sequence[str]) -> list[ModelAnswer]:
    """Answers of the exported folder, computed as its README shows."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    prompts = [render(tokenizer, question) for question in questions]
    written = _generate(folder, compute_type, [tokenizer.convert_ids_to_tokens(ids) for ids in prompts], settings)
    return _answers(prompts, written, [tokenizer.decode(ids, skip_special_tokens=True) for ids in written])


def _generate(
    folder: Path, compute_type: str, prompts: Sequence[Sequence[str]], options: dict[str, Any]
) -> list[list[int]]:
    import ctranslate2

    generator = ctranslate2.Generator(str(folder), compute_type=compute_type, intra_threads=1)
    return [list(generator.generate_batch([prompt], **options)[0].sequences_ids[0]) for prompt in prompts]


def _answers(prompts: Sequence[Sequence[int]], written: Sequence[list[int]], texts: list[str]) -> list[ModelAnswer]:
    return [ModelAnswer(tuple(read), tuple(ids), text) for read, ids, text in zip(prompts, written, texts, strict=True)]


def _settings(rules: DecodingRules, names: Sequence[str]) -> dict[str, Any]:
    """What CTranslate2's generate_batch is to be called with, by the names of the tokens."""
    return {
        "max_length": rules.max_new_tokens,
        "include_prompt_in_result": False,
        "end_token": [names[rules.prompt.template.eos_id]],
        "suppress_sequences": [[names[id]] for id in rules.suppressed_ids],
    }


def _names(folder: Path) -> list[str]:
    """The token of each id, by the engine's own names."""
    names: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return names
