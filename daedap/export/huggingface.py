"""The language model for transformers: base and adapter merged, or the adapter alone.

Plain `AutoModelForCausalLM` and `AutoTokenizer` load it; chat template, end token, length of an answer and the control
tokens that are never generated are in the files, so that `generate` answers as the run does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from daedap.errors import ExportError
from daedap.export.card import write_card
from daedap.export.verify import (
    ModelAnswer,
    Verification,
    compare,
    generate,
    pick_questions,
    trained_answers,
)
from daedap.files import write_json
from daedap.runs import Run

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

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
    return compare(
        questions, trained_answers(open_trained(run), rules, questions), adapter_answers(run, folder, questions)
    )


def write_merged(model: TorchModel, rules: DecodingRules, folder: Path) -> None:
    """Write weights, configuration, tokenizer with its chat template, and generation config."""
    from daedap.model.tokenizer import save_tokenizer

    model.model.generation_config = _generation_config(rules)
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
    _generation_config(rules).save_pretrained(folder)


def merged_answers(folder: Path, questions: Sequence[str]) -> list[ModelAnswer]:
    """Answers of the exported model, by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return _plain_answers(model, tokenizer, questions)


def adapter_answers(run: Run, folder: Path, questions: Sequence[str]) -> list[ModelAnswer]:
    """Answers of the run's base with the exported adapter, by transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoTokenizer, GenerationConfig

    from daedap.model.base import load_recorded_base

    base = load_recorded_base(run, run.trained["base"]).model
    model = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    model.generation_config = GenerationConfig.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return _plain_answers(model, tokenizer, questions)


def render(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    """The ids of a question by the tokenizer's chat template, as any user of transformers gets them."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(cast("Any", tokenizer)(text, add_special_tokens=False)["input_ids"])


def _plain_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, questions: Sequence[str]
) -> list[ModelAnswer]:
    prompts = [render(tokenizer, question) for question in questions]
    return generate(model, prompts, lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)))


def _generation_config(rules: DecodingRules) -> GenerationConfig:
    from transformers import GenerationConfig

    prompt = rules.prompt
    return GenerationConfig(
        max_new_tokens=rules.max_new_tokens,
        do_sample=False,
        bos_token_id=prompt.tokenizer.bos_token_id,
        eos_token_id=prompt.template.eos_id,
        pad_token_id=prompt.pad_id,
        suppress_tokens=rules.suppressed_ids or None,
    )


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
