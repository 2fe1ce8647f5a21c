from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from daedap.config import ModelOptions, TrainOptions
from daedap.data.split import SplitOptions, split, write_split
from daedap.errors import BaseError, DaedapError, RunError
from daedap.files import write_json
from daedap.model.base import load_base
from daedap.model.language_model import TorchModel
from daedap.model.saved import open_trained, open_untuned
from daedap.model.tokenizer import decode, encode
from daedap.runs import Run, create
from daedap.training.finetune import learn
from daedap.types import Pair

RECIPE = TrainOptions(
    num_train_epochs=40, per_device_train_batch_size=8, learning_rate=1e-2, save_steps=1000, early_stopping_patience=0
)
KINDS = ["kogpt2-lora", "kogpt2-full", "llama-lora", "qwen3-lora", "gemma3-lora", "gemma3-full"]
LEARNED = toys.PAIRS[:16]


@dataclass(frozen=True)
class Taught:
    """A finished training and the base it began with."""

    run: Run
    base: Path


def teach(place: Path, kind: str, train_options: TrainOptions = RECIPE) -> Taught:
    name, method = kind.split("-")
    base = toys.BASES[name](place / name)
    run = create(place / "runs")
    write_split(run.folder, split(LEARNED, SplitOptions(dev_size=0, test_size=0)))
    model_options = ModelOptions(
        base=str(base),
        method="lora" if method == "lora" else "full",
        layers=2,
        max_length=96,
        precision="fp32",
        device="cpu",
    )
    write_json(run.folder / "settings.json", {"learner": asdict(model_options), "recipe": asdict(train_options)})
    learn(run)
    return Taught(run, base)


@pytest.fixture(scope="module", params=KINDS)
def taught(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Taught:
    return teach(tmp_path_factory.mktemp("taught"), request.param)


@pytest.fixture
def lora(tmp_path: Path) -> Taught:
    return teach(tmp_path, "kogpt2-lora", TrainOptions(num_train_epochs=1, learning_rate=1e-3))


@pytest.fixture
def full(tmp_path: Path) -> Taught:
    return teach(tmp_path, "llama-full", TrainOptions(num_train_epochs=1, learning_rate=1e-3))


def plainly(taught: Taught) -> tuple[Any, Any]:
    """Model and tokenizer as somebody without daedap loads them."""
    adapter = taught.run.folder / "adapter"
    if not adapter.is_dir():
        folder = taught.run.folder / "model"
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(taught.base)
    return PeftModel.from_pretrained(base, str(adapter)), AutoTokenizer.from_pretrained(adapter)


def said_plainly(model: Any, tokenizer: Any, speaker: TorchModel, pair: Pair) -> list[int]:
    """Greedy decoding by hand, from the ids that the saved chat template itself gives."""
    turns = [{"role": "user", "content": pair.question}, {"role": "assistant", "content": "MARK"}]
    asked = str(tokenizer.apply_chat_template(turns, tokenize=False)).partition("MARK")[0]
    ids = torch.tensor([tokenizer(asked, add_special_tokens=False)["input_ids"]])
    said: list[int] = []
    with torch.no_grad():
        while len(said) < speaker.max_new_tokens and speaker.prompt.template.eos_id not in said:
            said.append(int(model.eval()(input_ids=ids).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([said[-1:]])], dim=1)
    return said


def test_other_programs_load_it_and_say_the_same(taught: Taught) -> None:
    speaker = open_trained(taught.run)
    model, tokenizer = plainly(taught)
    learned = 0
    for pair, said in zip(LEARNED, speaker.reply(LEARNED), strict=True):
        ids = said_plainly(model, tokenizer, speaker, pair)
        assert len(ids) == said.tokens
        assert decode(tokenizer, ids[: len(ids) - said.ended]) == said.text
        learned += said.text == pair.answer
    assert learned >= 12, "too little was learned for the comparison to say much"


def test_other_programs_encode_as_it_was_trained(taught: Taught) -> None:
    speaker = open_trained(taught.run)
    _, tokenizer = plainly(taught)
    for text in [text for text in toys.TEXTS if "ㅠㅠ" not in text]:  # for KoGPT2 that is a control token
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == encode(speaker.prompt.tokenizer, text)


def test_the_end_token_is_written_where_generate_looks_for_it(tmp_path: Path) -> None:
    gemma = teach(tmp_path, "gemma3-full", TrainOptions(num_train_epochs=1)).run
    written = json.loads((gemma.folder / "model" / "generation_config.json").read_text(encoding="utf-8"))
    prompt = open_trained(gemma).prompt
    assert written["eos_token_id"] == prompt.template.eos_id != prompt.tokenizer.eos_token_id


def test_the_untuned_base_is_what_training_began_with(taught: Taught) -> None:
    untuned, base = open_untuned(taught.run), load_base(str(taught.base))
    began = TorchModel(base.model, untuned.prompt, untuned.max_new_tokens)
    np.testing.assert_allclose(untuned.log2_probability(LEARNED), began.log2_probability(LEARNED), rtol=1e-5)
    gained = open_trained(taught.run).log2_probability(LEARNED)[:, 0] - untuned.log2_probability(LEARNED)[:, 0]
    assert (gained > 10).all()


def test_what_it_came_to_is_written(taught: Taught) -> None:
    written = taught.run.learned
    kind = "lora" if (taught.run.folder / "adapter").is_dir() else "full"
    base = load_base(str(taught.base))
    assert written["method"] == kind
    assert written["base"] == {"name": str(taught.base), "digest": base.digest, "licence": base.licence, "seed": 42}
    assert written["rows"] == {"train": 16, "augmented": 0, "dev": 0, "too_long": 0}
    assert (written["parameters"]["trained"] < written["parameters"]["total"]) is (kind == "lora")
    assert written["training"]["steps"] == 80
    longest = max(len(encode(base.tokenizer, pair.answer)) for pair in LEARNED)
    assert written["limits"] == {"max_length": 96, "max_new_tokens": longest + 1}


def test_a_fresh_model_is_opened_again(tmp_path: Path) -> None:
    run = create(tmp_path)
    write_split(run.folder, split(LEARNED, SplitOptions(dev_size=0, test_size=0)))
    model_options = asdict(ModelOptions(base="fresh", precision="fp32", device="cpu"))
    write_json(
        run.folder / "settings.json", {"learner": model_options, "recipe": asdict(TrainOptions(num_train_epochs=4))}
    )
    learn(run)
    stored = load_file(run.folder / "model" / "model.safetensors")
    state = open_trained(run).model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in stored.items())
    untuned = open_untuned(run).model.state_dict()
    assert not any(torch.equal(untuned[name], weight) for name, weight in stored.items() if weight.ndim > 1)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_truncated_weights_are_told(full: Taught, kept: float) -> None:
    path = full.run.folder / "model" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(RunError, match=r"model.*weights can't be read.*train again"):
        open_trained(full.run)


def test_a_truncated_adapter_is_told(lora: Taught) -> None:
    path = lora.run.folder / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"adapter.*weights can't be read"):
        open_trained(lora.run)


def test_a_changed_base_is_told(lora: Taught) -> None:
    path = lora.base / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    weights["transformer.h.0.mlp.c_fc.bias"] += 0.1
    torch.save(weights, path)
    for again in (open_trained, open_untuned):
        with pytest.raises(RunError, match=r"base.*has changed"):
            again(lora.run)


def test_a_base_that_is_gone_is_told(lora: Taught) -> None:
    lora.base.rename(lora.base.with_name("moved"))
    with pytest.raises(BaseError, match=f"{lora.base.name}.*--base"):
        open_trained(lora.run)


def test_a_run_without_its_model_is_told(full: Taught) -> None:
    (full.run.folder / "model").rename(full.run.folder / "elsewhere")
    with pytest.raises(DaedapError, match="model"):
        open_trained(full.run)
