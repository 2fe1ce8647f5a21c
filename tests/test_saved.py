from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from daedap.config import ModelOptions, SplitOptions, TrainOptions
from daedap.data.split import RunRows, split, write_split
from daedap.errors import BaseError, DaedapError, RunError
from daedap.files import write_json
from daedap.model.base import load_base
from daedap.model.language_model import TorchModel, open_trained, open_untuned
from daedap.model.tokenizer import decode, encode
from daedap.runs import Run, TrainConfig, create
from daedap.training.finetune import finetune
from daedap.types import Pair

pytestmark = pytest.mark.slow

RECIPE = TrainOptions(
    num_train_epochs=40, per_device_train_batch_size=8, learning_rate=1e-2, save_steps=1000, early_stopping_patience=0
)
KINDS = ["kogpt2-lora", "kogpt2-full", "llama-lora", "qwen3-lora", "gemma3-lora", "gemma3-full"]
LEARNED = toys.PAIRS[:16]


@dataclass(frozen=True)
class TrainedRun:
    """A finished run and the folder of its base."""

    run: Run
    base: Path


def train_run(folder: Path, kind: str, train_options: TrainOptions = RECIPE) -> TrainedRun:
    name, method = kind.split("-")
    base = toys.BASES[name](folder / name)
    run = create(folder / "runs")
    write_split(run.folder, split(LEARNED, SplitOptions(dev_size=0, test_size=0)))
    model_options = ModelOptions(
        base=str(base),
        method="lora" if method == "lora" else "full",
        layers=2,
        max_length=96,
        precision="fp32",
        device="cpu",
    )
    write_json(run.folder / "config.json", TrainConfig(file="", model=model_options, train=train_options).to_json())
    finetune(run, RunRows(run.folder))
    return TrainedRun(run, base)


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return train_run(tmp_path_factory.mktemp("trained"), request.param)


@pytest.fixture
def lora(tmp_path: Path) -> TrainedRun:
    return train_run(tmp_path, "kogpt2-lora", TrainOptions(num_train_epochs=1, learning_rate=1e-3))


@pytest.fixture
def full(tmp_path: Path) -> TrainedRun:
    return train_run(tmp_path, "llama-full", TrainOptions(num_train_epochs=1, learning_rate=1e-3))


def load_with_peft(trained: TrainedRun) -> tuple[Any, Any]:
    """Model and tokenizer loaded without daedap."""
    adapter = trained.run.folder / "adapter"
    if not adapter.is_dir():
        folder = trained.run.folder / "model"
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(trained.base)
    return PeftModel.from_pretrained(base, str(adapter)), AutoTokenizer.from_pretrained(adapter)


def generate_greedily(loaded: Any, tokenizer: Any, model: TorchModel, pair: Pair) -> list[int]:
    """Greedy decoding without daedap, from the ids that the saved chat template gives."""
    turns = [{"role": "user", "content": pair.question}, {"role": "assistant", "content": "MARK"}]
    prompt_text = str(tokenizer.apply_chat_template(turns, tokenize=False)).partition("MARK")[0]
    ids = torch.tensor([tokenizer(prompt_text, add_special_tokens=False)["input_ids"]])
    reply: list[int] = []
    with torch.no_grad():
        while len(reply) < model.max_new_tokens and model.prompt.template.eos_id not in reply:
            reply.append(int(loaded.eval()(input_ids=ids).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([reply[-1:]])], dim=1)
    return reply


def test_transformers_and_peft_load_it_and_generate_the_same(trained: TrainedRun) -> None:
    model = open_trained(trained.run)
    loaded, tokenizer = load_with_peft(trained)
    learned = 0
    for pair, reply in zip(LEARNED, model.reply(LEARNED), strict=True):
        ids = generate_greedily(loaded, tokenizer, model, pair)
        assert len(ids) == reply.tokens
        assert decode(tokenizer, ids[: len(ids) - reply.ended]) == reply.text
        learned += reply.text == pair.answer
    assert learned >= 12, "too few answers were memorised for a meaningful comparison"


def test_the_saved_tokenizer_encodes_the_same(trained: TrainedRun) -> None:
    model = open_trained(trained.run)
    _, tokenizer = load_with_peft(trained)
    for text in [text for text in toys.TEXTS if "ㅠㅠ" not in text]:  # for KoGPT2 that is a control token
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == encode(model.prompt.tokenizer, text)


def test_the_eos_token_is_written_to_the_generation_config(tmp_path: Path) -> None:
    gemma = train_run(tmp_path, "gemma3-full", TrainOptions(num_train_epochs=1)).run
    written = json.loads((gemma.folder / "model" / "generation_config.json").read_text(encoding="utf-8"))
    prompt = open_trained(gemma).prompt
    assert written["eos_token_id"] == prompt.template.eos_id != prompt.tokenizer.eos_token_id


def test_the_untuned_base_is_the_base(trained: TrainedRun) -> None:
    untuned, base = open_untuned(trained.run), load_base(str(trained.base))
    began = TorchModel(base.model, untuned.prompt, untuned.max_new_tokens)
    np.testing.assert_allclose(untuned.log2_probability(LEARNED), began.log2_probability(LEARNED), rtol=1e-5)
    gained = open_trained(trained.run).log2_probability(LEARNED)[:, 0] - untuned.log2_probability(LEARNED)[:, 0]
    assert (gained > 10).all()


def test_the_record_of_a_training(trained: TrainedRun) -> None:
    written = trained.run.trained
    kind = "lora" if (trained.run.folder / "adapter").is_dir() else "full"
    base = load_base(str(trained.base))
    assert written["method"] == kind
    assert written["base"] == {"name": str(trained.base), "digest": base.digest, "licence": base.licence, "seed": 42}
    assert written["rows"] == {"train": 16, "augmented": 0, "dev": 0, "too_long": 0}
    assert (written["parameters"]["trained"] < written["parameters"]["total"]) is (kind == "lora")
    assert written["training"]["steps"] == 80
    longest = max(len(encode(base.tokenizer, pair.answer)) for pair in LEARNED)
    assert written["limits"] == {"max_length": 96, "max_new_tokens": longest + 1}


def test_a_fresh_model_is_opened_again(tmp_path: Path) -> None:
    run = create(tmp_path)
    write_split(run.folder, split(LEARNED, SplitOptions(dev_size=0, test_size=0)))
    model_options = ModelOptions(base="fresh", precision="fp32", device="cpu")
    config = TrainConfig(file="", model=model_options, train=TrainOptions(num_train_epochs=4))
    write_json(run.folder / "config.json", config.to_json())
    finetune(run, RunRows(run.folder))
    stored = load_file(run.folder / "model" / "model.safetensors")
    state = open_trained(run).model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in stored.items())
    untuned = open_untuned(run).model.state_dict()
    assert not any(torch.equal(untuned[name], weight) for name, weight in stored.items() if weight.ndim > 1)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_truncated_weights_are_reported(full: TrainedRun, kept: float) -> None:
    path = full.run.folder / "model" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(RunError, match=r"model.*weights can't be read.*train again"):
        open_trained(full.run)


def test_a_truncated_adapter_is_reported(lora: TrainedRun) -> None:
    path = lora.run.folder / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"adapter.*weights can't be read"):
        open_trained(lora.run)


def test_a_changed_base_is_reported(lora: TrainedRun) -> None:
    path = lora.base / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    weights["transformer.h.0.mlp.c_fc.bias"] += 0.1
    torch.save(weights, path)
    for again in (open_trained, open_untuned):
        with pytest.raises(RunError, match=r"base.*has changed"):
            again(lora.run)


def test_a_missing_base_is_reported(lora: TrainedRun) -> None:
    lora.base.rename(lora.base.with_name("moved"))
    with pytest.raises(BaseError, match=f"{lora.base.name}.*--base"):
        open_trained(lora.run)


def test_a_missing_model_is_reported(full: TrainedRun) -> None:
    (full.run.folder / "model").rename(full.run.folder / "elsewhere")
    with pytest.raises(DaedapError, match="model"):
        open_trained(full.run)
