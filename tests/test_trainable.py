"""The parts of a model say together what the whole says; so do a cache and a shortlist, each in its own way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toys
from torch import Tensor
from torch.nn.functional import cross_entropy

from daedap.errors import StorageError
from daedap.model.base import Base, load_base
from daedap.model.device import Machine
from daedap.model.loss import AnswerLoss, TokenizedRows, collate, shortlist
from daedap.model.prompt import Example
from daedap.model.trainable import (
    SPLITTABLE,
    cast_to_bf16,
    frozen_lower,
    lowest_trained_block,
    train_in_full,
    with_lora,
)
from daedap.training.activation_cache import Cached, CacheFile, cached
from daedap.training.task import FrozenBlocks, Task, build_task, find_frozen

CPU = Machine("cpu", "fp32", 1, "")
GIGABYTE = 10**9


@pytest.fixture(params=list(toys.BASES))
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    loaded = load_base(str(toys.BASES[request.param](tmp_path / "base")))
    loaded.model.eval()
    return loaded


def rendered(base: Base, count: int = 12) -> list[Example]:
    prompt = base.prompt(100)
    return [prompt.example(pair) for pair in toys.PAIRS[:count]]


def place(folder: Path, base: Base, limit: int = GIGABYTE) -> CacheFile:
    return CacheFile(folder, base.digest, base.model.config.hidden_size, torch.float32, limit)


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


def test_upper_and_lower_half_are_the_whole(base: Base) -> None:
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


def test_the_shortlist_holds_what_answers_need(tmp_path: Path) -> None:
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
def test_a_cached_task_learns_what_the_whole_would(base: Base, tmp_path: Path, shortlisted: bool) -> None:
    task = task_of(base, tmp_path, layers=1, shortlisted=shortlisted)
    assert isinstance(task.train, Cached)
    rows, weights = [5, 0, 7], [weight for weight in task.model.parameters() if weight.requires_grad]
    ours = task.loss(task.train.batch(rows))
    whole = AnswerLoss(task.model, shortlist=task.loss.shortlist)(TokenizedRows(task.train.examples, "cpu").batch(rows))
    torch.testing.assert_close(ours, whole)
    for mine, theirs in zip(*(torch.autograd.grad(loss.mean(), weights) for loss in (ours, whole)), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(
        task.dev_loss(task.dev.batch([2])), AnswerLoss(task.model)(collate(task.dev.examples[2:], "cpu"))
    )


def test_layers_that_all_learn_need_no_cache(base: Base, tmp_path: Path) -> None:
    assert isinstance(task_of(base, tmp_path, layers=None).train, TokenizedRows)
    assert not list(tmp_path.glob("*.states"))


def test_what_does_not_fit_is_computed_at_every_step(
    base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    task = task_of(base, tmp_path / "cache", layers=1, limit=1000)
    assert isinstance(task.train, TokenizedRows)
    assert "more than --cache-gb allows" in caplog.text
    assert not (tmp_path / "cache").exists()
    torch.testing.assert_close(task.loss(task.train.batch([1])), AnswerLoss(task.model)(task.train.batch([1])))


def test_unknown_layouts_run_whole(
    base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("daedap.training.finetune.PARTED", frozenset())
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
    first, again = (cached(examples, lower, place(tmp_path, base), "cpu") for _ in range(2))
    assert sum(calls) == 30
    for row in (0, 29, 13):
        states, length = first.batch([row]).inputs, len(examples[row].ids) - 1
        expected = frozen_lower(base.model, 1)(collate([examples[row]], "cpu").inputs)
        assert states.shape == expected.shape
        torch.testing.assert_close(states[:, :length], expected[:, :length])
        assert torch.equal(first.batch([row]).inputs, again.batch([row]).inputs)


@pytest.mark.parametrize("change", ["rows", "order", "key"])
def test_another_base_or_other_rows_fill_another_file(base: Base, tmp_path: Path, change: str) -> None:
    examples, there = rendered(base), place(tmp_path, base)
    cached(examples, frozen_lower(base.model, 1), there, "cpu")
    other = {"rows": examples[:-1], "order": examples[::-1], "key": examples}[change]
    key = "another" if change == "key" else base.digest
    cached(other, frozen_lower(base.model, 1), CacheFile(tmp_path, key, there.width, there.dtype, GIGABYTE), "cpu")
    assert len(list(tmp_path.glob("*.states"))) == 2


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    base = load_base(str(toys.llama(tmp_path / "base")))
    sides = [rendered(base, count) for count in (10, 11, 12)]
    room = place(tmp_path, base).size(sides[0]) + place(tmp_path, base).size(sides[2])
    there, lower = place(tmp_path, base, limit=room), frozen_lower(base.model, 1)
    for number, side in enumerate((sides[0], sides[1], sides[0])):
        cached(side, lower, there, "cpu")
        _age(tmp_path, by=100 - number)
    cached(sides[2], lower, there, "cpu")
    assert {path.name for path in tmp_path.glob("*.states")} == {there.file(sides[0]).name, there.file(sides[2]).name}


def _age(folder: Path, by: int) -> None:
    import os

    for path in folder.glob("*.states"):
        when = path.stat().st_mtime - by
        os.utime(path, (when, when))


def test_killed_while_it_is_filled_it_leaves_nothing(base: Base, tmp_path: Path) -> None:
    def stopped(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(rendered(base), stopped, place(tmp_path / "cache", base), "cpu")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    base = load_base(str(toys.llama(tmp_path / "base")))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="can't be written"):
        cached(rendered(base), frozen_lower(base.model, 1), place(tmp_path / "file" / "cache", base), "cpu")


def test_the_lowest_block_that_learns(base: Base) -> None:
    assert lowest_trained_block(base.model) == 0
    assert lowest_trained_block(train_in_full(base.model, layers=1)) == 1
    base.model.requires_grad_(requires_grad=True)
    cast_to_bf16(base.model)
    adapted = with_lora(base.model, rank=2, alpha=4, dropout=0.0, layers=1)
    assert lowest_trained_block(adapted) == 1
    assert {weight.dtype for weight in adapted.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in adapted.parameters() if not weight.requires_grad} == {torch.bfloat16}


def test_a_frozen_part_names_what_it_depends_on(base: Base, tmp_path: Path) -> None:
    model = train_in_full(base.model, layers=1)
    bf16 = Machine("cpu", "bf16", 1, "")
    parts: list[FrozenBlocks] = [
        find_frozen(model, digest, machine, tmp_path, 1) for digest, machine in (("a", CPU), ("b", CPU), ("a", bf16))
    ]
    assert len({part.cache_file.key for part in parts}) == 3
    assert [part.cache_file.dtype for part in parts] == [torch.float32, torch.float32, torch.bfloat16]
