from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toys
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from daedap.errors import SettingsError
from daedap.model.base import load_base
from daedap.model.loss import AnswerLoss, collate
from daedap.model.prompt import Example
from daedap.model.trainable import set_dropout, train_in_full, with_lora
from daedap.training.checkpoint import trained_weights

LLAMA_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
LINEAR = {
    "kogpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "llama": LLAMA_LINEAR,
    "qwen3": LLAMA_LINEAR,
    "gemma3": LLAMA_LINEAR,
}


@pytest.fixture(params=list(toys.BASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str, tmp_path: Path) -> PreTrainedModel:
    return load_base(str(toys.BASES[name](tmp_path / name))).model


def lora(model: PreTrainedModel, layers: int | None) -> PeftModel:
    return with_lora(model, rank=2, alpha=4, dropout=0.0, layers=layers)


def adapted(model: nn.Module) -> list[str]:
    return [part for part, module in model.named_modules() if hasattr(module, "lora_A")]


def changed(model: PreTrainedModel | PeftModel, tokens: int = 20) -> set[str]:
    """Names of the weights that one training step would move."""
    example = Example(list(range(10, 10 + tokens)), answer_start=5)
    AnswerLoss(model)(collate([example], "cpu")).mean().backward()
    return {part for part, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}


def test_lora_is_on_every_linear_layer_of_the_blocks(model: PreTrainedModel, name: str) -> None:
    parts = adapted(lora(model, None))
    assert len(parts) == 2 * len(LINEAR[name])
    for linear in LINEAR[name]:
        assert sum(part.endswith(linear) for part in parts) == 2, linear


def test_lora_is_not_on_the_head(model: PreTrainedModel) -> None:
    peft = lora(model, None)
    assert not any("lm_head" in part or "wte" in part or "embed" in part for part in adapted(peft))
    assert all("lora_" in weight for weight in trained_weights(peft))


def test_lora_on_one_layer_moves_the_top_block_alone(model: PreTrainedModel, name: str) -> None:
    peft = lora(model, 1)
    assert len(adapted(peft)) == len(LINEAR[name])
    assert all(".1." in part for part in adapted(peft))
    moved = changed(peft)
    assert moved, "nothing is learned"
    assert all(".1." in weight and "lora_B" in weight for weight in moved)


def test_gpt2_keeps_its_weights_the_other_way_round(model: PreTrainedModel, name: str) -> None:
    peft = lora(model, None)
    config = peft.peft_config["default"]
    assert vars(config)["fan_in_fan_out"] is (name == "kogpt2")
    assert name != "kogpt2" or any(isinstance(module, Conv1D) for module in model.modules())


def test_merging_changes_no_answer(model: PreTrainedModel) -> None:
    peft = lora(model, None)
    torch.manual_seed(0)
    for part, weight in peft.named_parameters():
        if "lora_B" in part:
            nn.init.normal_(weight, std=0.1)
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        apart = peft.eval()(input_ids=ids).logits
        merged = peft.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(merged, apart, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layers", [0, 3, -1])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_more_layers_than_there_are_cannot_be_trained(model: PreTrainedModel, layers: int, method: str) -> None:
    with pytest.raises(SettingsError, match=f"--layers {layers}: the base has 2 layers.*from 1 to 2"):
        lora(model, layers) if method == "lora" else train_in_full(model, layers=layers)


def test_full_training_moves_everything(model: PreTrainedModel) -> None:
    assert train_in_full(model, layers=None) is model
    assert set(trained_weights(model)) == {part for part, _ in model.named_parameters()}
    moved = changed(model)
    assert any(".0." in weight for weight in moved)
    assert any("embed_tokens" in weight or "wte" in weight for weight in moved)


def test_full_training_of_one_layer_moves_the_top_block_and_what_follows(model: PreTrainedModel, name: str) -> None:
    moved = changed(train_in_full(model, layers=1))
    assert any(".1." in weight for weight in moved)
    last = "transformer.ln_f.weight" if name == "kogpt2" else "model.norm.weight"
    assert last in moved
    assert not any(".0." in weight or "embed" in weight or "wte" in weight or "wpe" in weight for weight in moved)


def test_dropout_is_set_wherever_there_is_any(name: str, model: PreTrainedModel) -> None:
    ids = torch.arange(10, 30)[None]
    model.train()
    for probability, same in ((0.5, False), (0.0, True)):
        set_dropout(model, probability)
        with torch.no_grad():
            torch.manual_seed(1)
            first = model(input_ids=ids).logits
            torch.manual_seed(2)
            second = model(input_ids=ids).logits
        assert torch.equal(first, second) is same, name
