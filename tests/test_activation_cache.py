"""Cached activations: the same loss and gradients as the whole model, files that are reused and bounded in size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import toys
from torch import Tensor

from daedap.errors import StorageError
from daedap.model.base import Base, load_base
from daedap.model.device import Machine
from daedap.model.loss import AnswerLoss, TokenizedRows, collate
from daedap.model.trainable import frozen_lower, train_in_full, with_lora
from daedap.training.activation_cache import CachedRows, CacheFolder, FrozenBlocks, cached_rows, find_frozen
from daedap.training.trainer import Task, build_task

CPU = Machine("cpu", "fp32", 1, "")
GIGABYTE = 10**9


@pytest.fixture(params=list(toys.BASES))
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    return toys.loaded(request.param, tmp_path / "base")


def cache_folder(folder: Path, base: Base, limit: int = GIGABYTE) -> CacheFolder:
    return CacheFolder(folder, base.digest, base.model.config.hidden_size, torch.float32, limit)


def task_of(base: Base, folder: Path, *, layers: int | None, shortlisted: bool = False, limit: int = GIGABYTE) -> Task:
    """LoRA on the top layers with random, non-zero weights."""
    torch.manual_seed(1)
    model = with_lora(base.model, rank=2, alpha=4, dropout=0.0, layers=layers)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    frozen = find_frozen(model, base.digest, CPU, folder, limit)
    examples = toys.rendered(base)
    return build_task(model, base.prompt(100), [examples, examples[:3]], frozen, shortlisted=shortlisted)


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

    examples = toys.rendered(base, 30)
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
    examples, cache = toys.rendered(base), cache_folder(tmp_path, base)
    cached_rows(examples, frozen_lower(base.model, 1), cache, "cpu")
    other = {"rows": examples[:-1], "order": examples[::-1], "key": examples}[change]
    key = "another" if change == "key" else base.digest
    cached_rows(
        other, frozen_lower(base.model, 1), CacheFolder(tmp_path, key, cache.width, cache.dtype, GIGABYTE), "cpu"
    )
    assert len(list(tmp_path.glob("*.states"))) == 2


def test_the_least_recently_used_file_is_deleted_first(tmp_path: Path) -> None:
    base = load_base(str(toys.llama(tmp_path / "base")))
    sides = [toys.rendered(base, count) for count in (10, 11, 12)]
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
        cached_rows(toys.rendered(base), stopped, cache_folder(tmp_path / "cache", base), "cpu")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unwritable_folder_is_reported(tmp_path: Path) -> None:
    base = load_base(str(toys.llama(tmp_path / "base")))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="can't be written"):
        cached_rows(
            toys.rendered(base), frozen_lower(base.model, 1), cache_folder(tmp_path / "file" / "cache", base), "cpu"
        )


def test_the_cache_key_depends_on_base_and_precision(base: Base, tmp_path: Path) -> None:
    model = train_in_full(base.model, layers=1)
    bf16 = Machine("cpu", "bf16", 1, "")
    parts: list[FrozenBlocks] = [
        find_frozen(model, digest, machine, tmp_path, 1) for digest, machine in (("a", CPU), ("b", CPU), ("a", bf16))
    ]
    assert len({part.cache.key for part in parts}) == 3
    assert [part.cache.dtype for part in parts] == [torch.float32, torch.float32, torch.bfloat16]
