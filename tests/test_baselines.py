from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from daedap.model.base import Base, load_base
from daedap.training import baselines
from daedap.training.baselines import BASELINES, LENGTH, NAMES, BaselineSettings, Trained, rows_that_fit, train_baseline
from daedap.training.profiling import PeakMemory, matmul_peak, step_flops
from daedap.types import Message, Pair

ROWS = toys.PAIRS[:40]
SHAPES = {name: (BASELINES[name].batch_size, LENGTH) for name in ("lora_padded", "full_padded")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.kogpt2(tmp_path_factory.mktemp("base"))


@pytest.fixture
def base(folder: Path) -> Base:
    return load_base(str(folder))


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    yield
    assert logging.get_verbosity() == before


def trained(name: str, base: Base, scratch: Path, **options: Any) -> Trained:
    if name == "trl_best":
        pytest.importorskip("trl")
    return train_baseline(BASELINES[name], base, ROWS, BaselineSettings(scratch, **options))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_reported(name: str, base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = trained(name, base, tmp_path, max_steps=2)
    assert len(done.steps) == 2
    assert all(step.rows == BASELINES[name].batch_size and step.seconds > 0 for step in done.steps)
    assert sum(step.seconds for step in done.steps) < done.seconds
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", SHAPES)
def test_padded_rows_have_one_length(name: str, base: Base, tmp_path: Path) -> None:
    for step in trained(name, base, tmp_path, max_steps=2).steps:
        assert (step.rows, step.length) == SHAPES[name]
        assert step.head_positions == step.rows * step.length


def test_padding_has_no_label() -> None:
    row = baselines._padded_row([5, 6, 3], 3, 6)
    assert row["input_ids"] == [5, 6, 3, 3, 3, 3]
    assert row["attention_mask"] == [1, 1, 1, 0, 0, 0]
    assert row["labels"] == [5, 6, 3, -100, -100, -100]


@pytest.mark.parametrize("name", NAMES)
def test_an_epoch_trains_on_every_row(name: str, base: Base, tmp_path: Path) -> None:
    before = weights(base.model)
    done = trained(name, base, tmp_path, epochs=1)
    assert sum(step.rows for step in done.steps) == len(ROWS)
    assert len(done.steps) == math.ceil(len(ROWS) / BASELINES[name].batch_size)
    moved = [key for key, weight in done.model.named_parameters() if weight.requires_grad and weight.abs().sum() > 0]
    adapted = isinstance(done.model, PeftModel)
    assert adapted == (name != "full_padded")
    assert moved
    if not adapted:
        assert any(not torch.equal(before[key], weight) for key, weight in done.model.named_parameters())
    else:
        assert any("lora_B" in key for key in moved), "lora_B starts at zero"
        assert all("lora_" in key for key in moved)


def test_which_layers_are_adapted(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    adapted = {}
    for name in ("lora_padded", "trl_best"):
        model = trained(name, load_base(str(folder)), tmp_path, max_steps=1).model
        names = [key for key, weight in model.named_parameters() if weight.requires_grad and "lora_A" in key]
        adapted[name] = {key.split(".lora_A")[0].rpartition(".")[2] for key in names}
    assert adapted == {"lora_padded": {"c_attn"}, "trl_best": {"c_attn", "c_proj", "c_fc"}}


def test_lora_of_llama_adapts_queries_and_values(tmp_path: Path) -> None:
    base = load_base(str(toys.llama(tmp_path / "base")))
    model = trained("lora_padded", base, tmp_path / "scratch", max_steps=1).model
    adapted = {key.split(".lora_A")[0].rpartition(".")[2] for key, _ in model.named_parameters() if "lora_A" in key}
    assert adapted == {"q_proj", "v_proj"}


def test_bf16_uses_autocast(base: Base, tmp_path: Path) -> None:
    seen = set()
    block: torch.nn.Module = base.model.transformer.h[0]  # type: ignore[union-attr, index, assignment]
    block.register_forward_pre_hook(lambda *_: seen.add(torch.is_autocast_enabled("cpu")))
    model = trained("full_padded", base, tmp_path, max_steps=1, precision="bf16").model
    assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert seen == {True}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    model(input_ids=torch.tensor([[5]]))
    assert seen == {True, False}, "the saved model has no autocast"


def test_trl_trains_on_answers_only_and_groups_by_length(base: Base, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    prompt = base.prompt(LENGTH)
    examples = [prompt.example(row) for row in ROWS]
    options = baselines._options(BASELINES["trl_best"], BaselineSettings(tmp_path, epochs=1))
    trainer = baselines._trl_best(base, examples, options)
    data: Any = trainer.train_dataset
    assert data["input_ids"][:] == [example.ids for example in examples]
    assert data["labels"][:] == [[-100] * one.answer_start + one.ids[one.answer_start :] for one in examples]
    assert type(trainer._get_train_sampler()).__name__ == "LengthGroupedSampler"
    assert not trainer.args.gradient_checkpointing
    assert not trainer.args.bf16


def test_an_excerpt_is_representative_of_the_epoch(base: Base) -> None:
    prompt = base.prompt(LENGTH)
    examples = sorted((prompt.example(row) for row in toys.PAIRS * 20), key=lambda one: len(one.ids))
    options = {"per_device_train_batch_size": 4, "max_steps": 40, "seed": 1}
    chosen = baselines._excerpt(examples, options)
    assert len(chosen) == 160
    batches = [[len(one.ids) for one in chosen[start : start + 4]] for start in range(0, 160, 4)]
    spread = sum(max(batch) - min(batch) for batch in batches) / len(batches)
    assert spread < 1, "rows of a batch have similar lengths"
    everywhere = sum(len(one.ids) for one in examples) / len(examples)
    assert sum(map(sum, batches)) / 160 == pytest.approx(everywhere, rel=0.05)


def test_rows_that_do_not_fit_are_left_out(base: Base) -> None:
    turns = (Message("user", "안녕하세요 " * 200), Message("assistant", "네"))
    assert rows_that_fit(base, [*ROWS, Pair("네?", "네.", history=turns)]) == ROWS


def torch_flops(model: Any, rows: int, length: int) -> float:
    ids = torch.randint(5, 100, (rows, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("target", [None, ["c_attn"], ["c_fc"], "all-linear"])
def test_flops_agree_with_torch(folder: Path, target: Any) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    if target:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=target, fan_in_fan_out=True))
    estimate = step_flops(model, rows=3, length=20, head_positions=60)
    assert estimate == pytest.approx(torch_flops(model, 3, 20), rel=0.01)


def test_flops_below_the_lowest_trained_layer(base: Base) -> None:
    everything = step_flops(base.model, rows=1, length=16, head_positions=16)
    model = get_peft_model(base.model, LoraConfig(r=4, target_modules=["h.1.mlp.c_proj"], fan_in_fan_out=True))
    assert step_flops(model, rows=1, length=16, head_positions=16) < 0.55 * everything
    fewer = step_flops(model, rows=1, length=16, head_positions=4)
    head = base.model.get_output_embeddings().weight.numel()
    assert step_flops(model, rows=1, length=16, head_positions=16) - fewer == 12 * 4 * head


def test_peak_memory_of_a_block() -> None:
    with PeakMemory() as memory:
        block = bytearray(200_000_000)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(0.1)
        del block
    assert 180e6 < memory.peak_bytes - memory.before_bytes < 400e6
    with PeakMemory() as later:
        time.sleep(0.05)
    assert later.peak_bytes < memory.peak_bytes - 150e6


def test_peak_of_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daedap.training.profiling._SHAPES", ((8, 8, 8), (256, 256, 256)))
    fast = matmul_peak(torch.float32)
    monkeypatch.setattr("daedap.training.profiling._SHAPES", ((8, 8, 8),))
    assert 0 < matmul_peak(torch.float32) < fast
