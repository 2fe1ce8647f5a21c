from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from daedap.config import TrainOptions
from daedap.errors import SettingsError
from daedap.model.device import Machine
from daedap.model.loss import score_answers
from daedap.model.prompt import Example, build_prompt
from daedap.model.tokenizer import train_tokenizer
from daedap.model.trainable import with_lora
from daedap.training.checkpoint import checkpoints, trained_weights
from daedap.training.trainer import Trainer, TrainResult, WeightAverage

RECIPE = TrainOptions(
    num_train_epochs=5,
    per_device_train_batch_size=8,
    learning_rate=1e-2,
    early_stopping_patience=0,
    save_steps=3,
    save_total_limit=99,
    logging_steps=1,
    seed=1,
)
AVERAGED = replace(RECIPE, swa_epoch_start=2)
RESTLESS: dict[str, Any] = {"learning_rate": 3e-2, "lr_scheduler_type": "constant_with_warmup"}
"""Each epoch ends somewhere else around what would be best."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(toys.TEXTS, 1000)


@pytest.fixture(scope="module")
def examples(tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    prompt = build_prompt(tokenizer, 96)
    return [prompt.example(pair) for pair in toys.PAIRS]


def small(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config: dict[str, Any] = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 96}
    return LlamaForCausalLM(LlamaConfig(**config, tie_word_embeddings=True))


def fit(
    model: Any,
    train_options: TrainOptions,
    folder: Path,
    train: list[Example],
    dev: list[Example],
    seconds: float = math.inf,
) -> TrainResult:
    folder.mkdir(exist_ok=True)
    machine = Machine("cpu", "fp32", 1, "")
    return Trainer(toys.task(model, train, dev), train_options, machine, folder, seconds).run()


def losses(folder: Path, event: str) -> list[float]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if line["event"] == event]


def loss_of(model: PreTrainedModel, dev: list[Example]) -> float:
    bits, labels = score_answers(model, dev, "cpu").sum(axis=0)
    return float(-bits / labels * math.log(2))


def mean(folder: Path, first: int, last: int, steps: int) -> dict[str, torch.Tensor]:
    """Of the weights at the ends of epochs, from their checkpoints."""
    names = [f"step-{epoch * steps:06d}" for epoch in range(first, last + 1)]
    ends = [load_file(folder / "checkpoints" / name / "trained.safetensors") for name in names]
    return {name: torch.stack([end[name] for end in ends]).mean(0) for name in ends[0]}


def test_the_mean_of_what_is_trained() -> None:
    frozen, trained = nn.Linear(3, 2).requires_grad_(False), nn.Linear(2, 2)
    model, before = nn.Sequential(frozen, trained), frozen.weight.clone()
    average, seen = WeightAverage(model), []
    for _ in range(3):
        seen.append(trained.weight.detach().clone())
        average.add()
        with torch.no_grad():
            trained.weight += torch.randn(2, 2)
    own = trained.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(trained.weight, torch.stack(seen).mean(0))
    assert torch.equal(trained.weight, own)
    assert torch.equal(frozen.weight, before)
    other = WeightAverage(model)
    other.load_state_dict(average.state_dict())
    means = []
    for one in (average, other):
        one.add()
        with one.in_place():
            means.append(trained.weight.detach().clone())
    assert torch.equal(*means)


def test_the_average_is_judged_like_an_epoch(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    model, dev = small(tokenizer), examples[:16]
    plain = fit(small(tokenizer), replace(RECIPE, **RESTLESS), tmp_path / "plain", examples, dev)
    fitted = fit(model, replace(AVERAGED, **RESTLESS), tmp_path / "averaged", examples, dev)
    own, averages = (losses(tmp_path / "averaged", event) for event in ("dev", "average"))
    assert own == losses(tmp_path / "plain", "dev"), "the training itself is the same"
    assert len(averages) == 3, "from the end of the third epoch on there is something to average"
    assert fitted.averaged
    assert fitted.best_dev_loss == min(averages) < min(own) == plain.best_dev_loss
    assert fitted.best_epoch == 3 + averages.index(min(averages))
    assert loss_of(model, dev) == pytest.approx(fitted.best_dev_loss, rel=1e-5)
    for name, weight in mean(tmp_path / "averaged", 2, fitted.best_epoch, 8).items():
        torch.testing.assert_close(trained_weights(model)[name], weight)
    assert not plain.averaged


def test_an_average_that_is_worse_is_not_kept(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    """The first epochs of a slow training are far behind the last."""
    model, train_options = small(tokenizer), replace(AVERAGED, swa_epoch_start=1, learning_rate=1e-3, warmup_ratio=0.0)
    fitted = fit(
        model, replace(train_options, lr_scheduler_type="constant_with_warmup"), tmp_path, examples, examples[:8]
    )
    own = losses(tmp_path, "dev")
    assert not fitted.averaged
    assert (fitted.best_epoch, fitted.best_dev_loss) == (5, min(own))
    assert loss_of(model, examples[:8]) == pytest.approx(min(own), rel=1e-5)


@pytest.mark.parametrize("rows", [0, 8])
def test_nobody_judges_so_the_average_is_kept(
    rows: int, tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    model, train_options = small(tokenizer), replace(AVERAGED, load_best_model_at_end=False)
    fitted = fit(model, train_options, tmp_path, examples, examples[:rows])
    assert fitted.averaged
    for name, weight in mean(tmp_path, 2, 5, 8).items():
        torch.testing.assert_close(trained_weights(model)[name], weight)


def test_lora(tmp_path: Path) -> None:
    from daedap.model.base import load_base

    base = load_base(str(toys.kogpt2(tmp_path / "base")))
    examples = [base.prompt(96).example(pair) for pair in toys.PAIRS]
    model = with_lora(base.model, rank=2, alpha=4, dropout=0.1, layers=1)
    assert fit(model, AVERAGED, tmp_path / "run", examples, []).averaged
    ends = mean(tmp_path / "run", 2, 5, 8)
    assert ends.keys() == {name for name, _ in model.named_parameters() if "lora" in name}
    for name, weight in ends.items():
        torch.testing.assert_close(trained_weights(model)[name], weight)


@pytest.mark.parametrize("until", ["step-000010", "step-000015", "step-000018"], ids=["epoch 2", "epoch 3", "within 4"])
def test_going_on_is_as_if_never_stopped(
    until: str, tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    whole, parted = small(tokenizer), small(tokenizer)
    fit(whole, AVERAGED, tmp_path / "run", examples[:40], examples[40:])
    for later in checkpoints(tmp_path / "run" / "checkpoints"):
        if later.name > until:
            later.rename(tmp_path / later.name)
    fit(parted, AVERAGED, tmp_path / "run", examples[:40], examples[40:])
    ours, theirs = trained_weights(whole), trained_weights(parted)
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert len(losses(tmp_path / "run", "average")) == 3


def test_the_clock_ends_an_epoch_early(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    train_options = replace(RECIPE, num_train_epochs=1000, swa_epoch_start=1, save_steps=1000, save_total_limit=1)
    fitted = fit(small(tokenizer), train_options, tmp_path, examples, examples[:8], seconds=2.0)
    assert fitted.steps < 8000
    assert len(losses(tmp_path, "average")) == fitted.epochs - 1 > 0
    assert fitted.best_dev_loss == min(losses(tmp_path, "dev") + losses(tmp_path, "average"))


@pytest.mark.parametrize(
    ("start", "said"), [(-1, "must not be negative"), (5, "nothing to average"), (9, "nothing to")]
)
def test_epochs_that_are_no_use(start: int, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        TrainOptions(num_train_epochs=5, swa_epoch_start=start)
