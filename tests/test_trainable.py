"""Views of a model, cached activations and shortlists compute what the whole model computes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import toys
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from daedap.errors import SettingsError, StorageError
from daedap.model.base import Base, load_base
from daedap.model.device import Machine
from daedap.model.loss import AnswerLoss, TokenizedRows, collate, shortlist
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
from daedap.training.activation_cache import CachedRows, CacheFolder, FrozenBlocks, cached_rows, find_frozen
from daedap.training.checkpoint import trained_weights
from daedap.training.trainer import Task, build_task

CPU = Machine("cpu", "fp32", 1, "")
GIGABYTE = 10**9
LLAMA_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
LINEAR = {
    "kogpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "llama": LLAMA_LINEAR,
    "qwen3": LLAMA_LINEAR,
    "gemma3": LLAMA_LINEAR,
}


@pytest.fixture(params=list(toys.BASES))
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    loaded = load_base(str(toys.BASES[request.param](tmp_path / "base")))
    loaded.model.eval()
    return loaded


def rendered(base: Base, count: int = 12) -> list[Example]:
    prompt = base.prompt(100)
    return [prompt.example(pair) for pair in toys.PAIRS[:count]]


def cache_folder(folder: Path, base: Base, limit: int = GIGABYTE) -> CacheFolder:
    return CacheFolder(folder, base.digest, base.model.config.hidden_size, torch.float32, limit)


def task_of(base: Base, folder: Path, *, layers: int | None, shortlisted: bool = False, limit: int = GIGABYTE) -> Task:
    """A LoRA of the top layers that has already learned something."""
    torch.manual_seed(1)
    model = with_lora(base.model, rank=2, alpha=4, dropout=0.0, layers=layers)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    frozen = find_frozen(model, base.digest, CPU, folder, limit)
    examples = rendered(base)
    return build_task(model, base.prompt(100), [examples, examples[:3]], frozen, shortlisted=shortlisted)


def test_lower_and_upper_blocks_compute_the_whole_model(base: Base) -> None:
    batch = collate(rendered(base), "cpu")
    with torch.no_grad():
        whole = AnswerLoss(base.model)(batch)
        states = frozen_lower(base.model, 1)(batch.inputs)
        parted = AnswerLoss(base.model, first_block=1)(type(batch)(states, batch.row, batch.position, batch.label))
    torch.testing.assert_close(parted, whole)
    assert base.model.config.model_type in SPLITTABLE
    assert base.model(input_ids=batch.inputs).logits.shape[:2] == batch.inputs.shape, "the model itself stays whole"


def test_a_shortlist_is_the_softmax_among_its_tokens(base: Base) -> None:
    batch = collate(rendered(base), "cpu")
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
    batch = collate(rendered(base), "cpu")
    tokens = torch.unique(batch.label)
    weights = [weight for weight in base.model.parameters() if weight.requires_grad]
    ours = torch.autograd.grad(AnswerLoss(base.model, shortlist=tokens)(batch).mean(), weights)
    logits = base.model(input_ids=batch.inputs).logits[batch.row, batch.position][:, tokens]
    plain = torch.autograd.grad(cross_entropy(logits, torch.searchsorted(tokens, batch.label)), weights)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_shortlist_contains_answer_tokens_and_characters(tmp_path: Path) -> None:
    base = load_base(str(toys.kogpt2(tmp_path / "base")))
    prompt, examples = base.prompt(100), rendered(base, 2)
    tokens = shortlist(prompt, examples)
    assert tokens is not None
    chosen = set(tokens.tolist())
    assert {token for example in examples for token in example.ids[example.answer_start :]} <= chosen
    assert prompt.template.eos_id in chosen
    assert not chosen & (prompt.control_ids - {prompt.template.eos_id})
    texts = {str(prompt.tokenizer.decode([token])).strip() for token in chosen}
    assert {"오", "?", "7"} <= texts
    assert tokens.tolist() == sorted(chosen)
    assert shortlist(prompt, rendered(base, len(toys.PAIRS))) is None, "answers that use nearly all tokens need none"


@pytest.mark.parametrize("shortlisted", [True, False])
def test_cached_activations_give_the_same_loss_and_gradients(base: Base, tmp_path: Path, shortlisted: bool) -> None:
    task = task_of(base, tmp_path, layers=1, shortlisted=shortlisted)
    assert isinstance(task.train, CachedRows)
    rows, weights = [5, 0, 7], [weight for weight in task.model.parameters() if weight.requires_grad]
    ours = task.loss(task.train.batch(rows))
    whole = AnswerLoss(task.model, shortlist=task.loss.shortlist)(TokenizedRows(task.train.examples, "cpu").batch(rows))
    torch.testing.assert_close(ours, whole)
    for mine, theirs in zip(*(torch.autograd.grad(loss.mean(), weights) for loss in (ours, whole)), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(
        task.dev_loss(task.dev.batch([2])), AnswerLoss(task.model)(collate(task.dev.examples[2:], "cpu"))
    )


def test_without_frozen_layers_there_is_no_cache(base: Base, tmp_path: Path) -> None:
    assert isinstance(task_of(base, tmp_path, layers=None).train, TokenizedRows)
    assert not list(tmp_path.glob("*.states"))


def test_a_cache_over_the_limit_is_not_written(base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    task = task_of(base, tmp_path / "cache", layers=1, limit=1000)
    assert isinstance(task.train, TokenizedRows)
    assert "more than --cache-gb allows" in caplog.text
    assert not (tmp_path / "cache").exists()
    torch.testing.assert_close(task.loss(task.train.batch([1])), AnswerLoss(task.model)(task.train.batch([1])))


def test_unknown_architectures_run_whole(base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    base.model.config.model_type = "unknown"  # type: ignore[misc]
    assert isinstance(task_of(base, tmp_path, layers=1).train, TokenizedRows)
    assert "can't be run apart" in caplog.text


def test_the_cache_is_filled_once(base: Base, tmp_path: Path) -> None:
    calls = list[int]()

    def lower(ids: Tensor) -> Tensor:
        calls.append(len(ids))
        with torch.no_grad():
            states: Tensor = frozen_lower(base.model, 1)(ids)
        return states

    examples = rendered(base, 30)
    first, again = (cached_rows(examples, lower, cache_folder(tmp_path, base), "cpu") for _ in range(2))
    assert sum(calls) == 30
    for row in (0, 29, 13):
        states, length = first.batch([row]).inputs, len(examples[row].ids) - 1
        expected = frozen_lower(base.model, 1)(collate([examples[row]], "cpu").inputs)
        assert states.shape == expected.shape
        torch.testing.assert_close(states[:, :length], expected[:, :length])
        assert torch.equal(first.batch([row]).inputs, again.batch([row]).inputs)


@pytest.mark.parametrize("change", ["rows", "order", "key"])
def test_another_base_or_other_rows_use_another_file(base: Base, tmp_path: Path, change: str) -> None:
    examples, cache = rendered(base), cache_folder(tmp_path, base)
    cached_rows(examples, frozen_lower(base.model, 1), cache, "cpu")
    other = {"rows": examples[:-1], "order": examples[::-1], "key": examples}[change]
    key = "another" if change == "key" else base.digest
    cached_rows(
        other, frozen_lower(base.model, 1), CacheFolder(tmp_path, key, cache.width, cache.dtype, GIGABYTE), "cpu"
    )
    assert len(list(tmp_path.glob("*.states"))) == 2


def test_the_least_recently_used_file_is_deleted_first(tmp_path: Path) -> None:
    base = load_base(str(toys.llama(tmp_path / "base")))
    sides = [rendered(base, count) for count in (10, 11, 12)]
    room = cache_folder(tmp_path, base).size(sides[0]) + cache_folder(tmp_path, base).size(sides[2])
    cache, lower = cache_folder(tmp_path, base, limit=room), frozen_lower(base.model, 1)
    for number, side in enumerate((sides[0], sides[1], sides[0])):
        cached_rows(side, lower, cache, "cpu")
        _age(tmp_path, by=100 - number)
    cached_rows(sides[2], lower, cache, "cpu")
    assert {path.name for path in tmp_path.glob("*.states")} == {cache.file(sides[0]).name, cache.file(sides[2]).name}


def _age(folder: Path, by: int) -> None:
    for path in folder.glob("*.states"):
        when = path.stat().st_mtime - by
        os.utime(path, (when, when))


def test_an_interrupted_cache_leaves_no_file(base: Base, tmp_path: Path) -> None:
    def stopped(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_rows(rendered(base), stopped, cache_folder(tmp_path / "cache", base), "cpu")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unwritable_folder_is_reported(tmp_path: Path) -> None:
    base = load_base(str(toys.llama(tmp_path / "base")))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="can't be written"):
        cached_rows(rendered(base), frozen_lower(base.model, 1), cache_folder(tmp_path / "file" / "cache", base), "cpu")


def test_the_lowest_trained_block(base: Base) -> None:
    assert lowest_trained_block(base.model) == 0
    assert lowest_trained_block(train_in_full(base.model, layers=1)) == 1
    base.model.requires_grad_(requires_grad=True)
    cast_to_bf16(base.model)
    adapted = with_lora(base.model, rank=2, alpha=4, dropout=0.0, layers=1)
    assert lowest_trained_block(adapted) == 1
    assert {weight.dtype for weight in adapted.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in adapted.parameters() if not weight.requires_grad} == {torch.bfloat16}


def test_the_cache_key_depends_on_base_and_precision(base: Base, tmp_path: Path) -> None:
    model = train_in_full(base.model, layers=1)
    bf16 = Machine("cpu", "bf16", 1, "")
    parts: list[FrozenBlocks] = [
        find_frozen(model, digest, machine, tmp_path, 1) for digest, machine in (("a", CPU), ("b", CPU), ("a", bf16))
    ]
    assert len({part.cache.key for part in parts}) == 3
    assert [part.cache.dtype for part in parts] == [torch.float32, torch.float32, torch.bfloat16]


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


def test_lora_on_one_layer_updates_the_top_block_only(model: PreTrainedModel, name: str) -> None:
    peft = lora(model, 1)
    assert len(adapted(peft)) == len(LINEAR[name])
    assert all(".1." in part for part in adapted(peft))
    moved = changed(peft)
    assert moved, "nothing is learned"
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
