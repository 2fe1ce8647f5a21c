"""LoRA and full fine-tuning of some blocks; views of a model and shortlists that compute what the whole model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toys
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from daedap.errors import SettingsError
from daedap.model.base import Base, load_base
from daedap.model.loss import AnswerLoss, collate, shortlist
from daedap.model.prompt import Example
from daedap.model.trainable import (
    SPLITTABLE,
    cast_to_bf16,
    frozen_lower,
    lowest_trained_block,
    set_dropout,
    train_in_full,
    with_lora,
)
from daedap.training.checkpoint import trained_weights

LLAMA_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
LINEAR = {
    "kogpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "llama": LLAMA_LINEAR,
    "qwen3": LLAMA_LINEAR,
    "gemma3": LLAMA_LINEAR,
}


@pytest.fixture(params=list(toys.BASES))
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    return toys.loaded(request.param, tmp_path / "base")


def test_lower_and_upper_blocks_compute_the_whole_model(base: Base) -> None:
    batch = collate(toys.rendered(base), "cpu")
    with torch.no_grad():
        whole = AnswerLoss(base.model)(batch)
        states = frozen_lower(base.model, 1)(batch.inputs)
        parted = AnswerLoss(base.model, first_block=1)(type(batch)(states, batch.row, batch.position, batch.label))
    torch.testing.assert_close(parted, whole)
    assert base.model.config.model_type in SPLITTABLE
    assert base.model(input_ids=batch.inputs).logits.shape[:2] == batch.inputs.shape, "the model itself is unchanged"


@pytest.mark.parametrize("layers", [None, 1])
def test_the_last_feed_forward_layer_runs_at_labels_only(base: Base, layers: int | None) -> None:
    """Losses and gradients are those of the whole model, in full fine-tuning and with LoRA."""
    batch = collate(toys.rendered(base), "cpu")
    torch.manual_seed(0)
    adapted = with_lora(base.model, rank=2, alpha=4, dropout=0.0, layers=layers)
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    for weight in weights:
        torch.nn.init.normal_(weight, std=0.1)  # LoRA's second matrix starts at zero
    if layers is None:
        base.model.requires_grad_(requires_grad=True)
        weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    seen: list[int] = []
    last = next(
        part for name, part in reversed([*base.model.named_modules()]) if name.endswith((".mlp", "feed_forward"))
    )
    with last.register_forward_hook(lambda _layer, inputs, _: seen.append(inputs[0].shape[:-1].numel())):
        loss = AnswerLoss(adapted)(batch)
    ours = torch.autograd.grad(loss.mean(), weights)
    logits = base.model(input_ids=batch.inputs).logits[batch.row, batch.position].float()
    whole = cross_entropy(logits, batch.label, reduction="none")
    torch.testing.assert_close(loss, whole)
    for mine, theirs in zip(ours, torch.autograd.grad(whole.mean(), weights), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    (computed,) = seen
    assert len(batch.label) <= computed < len(batch.label) + 32 < batch.inputs.numel()


def test_a_shortlist_is_the_softmax_among_its_tokens(base: Base) -> None:
    batch = collate(toys.rendered(base), "cpu")
    tokens = torch.unique(torch.cat([batch.label, torch.arange(20, 40)]))
    with torch.no_grad():
        ours = AnswerLoss(base.model, shortlist=tokens)(batch)
        logits = base.model(input_ids=batch.inputs).logits[batch.row, batch.position][:, tokens]
    expected = cross_entropy(logits.float(), torch.searchsorted(tokens, batch.label), reduction="none")
    torch.testing.assert_close(ours, expected)
    assert (ours < AnswerLoss(base.model)(batch)).all()


@pytest.mark.parametrize("trained", [True, False])
def test_a_shortlist_has_the_gradients_of_its_tokens(tmp_path: Path, trained: bool) -> None:
    base = load_base(str(toys.llama(tmp_path / "base")))
    base.model.get_input_embeddings().weight.requires_grad = trained
    batch = collate(toys.rendered(base), "cpu")
    tokens = torch.unique(batch.label)
    weights = [weight for weight in base.model.parameters() if weight.requires_grad]
    ours = torch.autograd.grad(AnswerLoss(base.model, shortlist=tokens)(batch).mean(), weights)
    logits = base.model(input_ids=batch.inputs).logits[batch.row, batch.position][:, tokens]
    plain = torch.autograd.grad(cross_entropy(logits, torch.searchsorted(tokens, batch.label)), weights)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_shortlist_contains_answer_tokens_and_characters(tmp_path: Path) -> None:
    base = load_base(str(toys.kogpt2(tmp_path / "base")))
    prompt, examples = base.prompt(100), toys.rendered(base, 2)
    tokens = shortlist(prompt, examples)
    assert tokens is not None
    chosen = set(tokens.tolist())
    assert {token for example in examples for token in example.ids[example.answer_start :]} <= chosen
    assert prompt.template.eos_id in chosen
    assert not chosen & (prompt.control_ids - {prompt.template.eos_id})
    texts = {str(prompt.tokenizer.decode([token])).strip() for token in chosen}
    assert {"오", "?", "7"} <= texts
    assert tokens.tolist() == sorted(chosen)
    assert shortlist(prompt, toys.rendered(base, len(toys.PAIRS))) is None, "answers use nearly the whole vocabulary"


def test_the_lowest_trained_block(base: Base) -> None:
    assert lowest_trained_block(base.model) == 0
    assert lowest_trained_block(train_in_full(base.model, layers=1)) == 1
    base.model.requires_grad_(requires_grad=True)
    cast_to_bf16(base.model)
    adapted = with_lora(base.model, rank=2, alpha=4, dropout=0.0, layers=1)
    assert lowest_trained_block(adapted) == 1
    assert {weight.dtype for weight in adapted.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in adapted.parameters() if not weight.requires_grad} == {torch.bfloat16}


# ---- LoRA and full fine-tuning -------------------------------------------------------------------------------------


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
    """Names of the weights with a non-zero gradient."""
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


def test_lora_on_one_layer_updates_the_top_block_only(model: PreTrainedModel, name: str) -> None:
    peft = lora(model, 1)
    assert len(adapted(peft)) == len(LINEAR[name])
    assert all(".1." in part for part in adapted(peft))
    moved = changed(peft)
    assert moved, "no weight has a gradient"
    assert all(".1." in weight and "lora_B" in weight for weight in moved)


def test_lora_knows_that_gpt2_weights_are_transposed(model: PreTrainedModel, name: str) -> None:
    peft = lora(model, None)
    config = peft.peft_config["default"]
    assert vars(config)["fan_in_fan_out"] is (name == "kogpt2")
    assert name != "kogpt2" or any(isinstance(module, Conv1D) for module in model.modules())


def test_merging_does_not_change_logits(model: PreTrainedModel) -> None:
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
def test_an_invalid_number_of_layers_is_refused(model: PreTrainedModel, layers: int, method: str) -> None:
    with pytest.raises(SettingsError, match=f"--layers {layers}: the base has 2 layers.*from 1 to 2"):
        lora(model, layers) if method == "lora" else train_in_full(model, layers=layers)


def test_full_training_updates_all_weights(model: PreTrainedModel) -> None:
    assert train_in_full(model, layers=None) is model
    assert set(trained_weights(model)) == {part for part, _ in model.named_parameters()}
    moved = changed(model)
    assert any(".0." in weight for weight in moved)
    assert any("embed_tokens" in weight or "wte" in weight for weight in moved)


def test_full_training_of_one_layer_updates_top_block_and_final_norm(model: PreTrainedModel, name: str) -> None:
    moved = changed(train_in_full(model, layers=1))
    assert any(".1." in weight for weight in moved)
    last = "transformer.ln_f.weight" if name == "kogpt2" else "model.norm.weight"
    assert last in moved
    assert not any(".0." in weight or "embed" in weight or "wte" in weight or "wpe" in weight for weight in moved)


def test_dropout_is_set_everywhere(name: str, model: PreTrainedModel) -> None:
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
