"""The activation cache: hidden states of the frozen lower blocks, computed once and kept in a memory-mapped file.

The frozen blocks give the same output in every epoch and, for the same base and rows, in every run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from daedap.i18n import translate
from daedap.model.device import Machine, broadcast, is_main, new_shared_file, shard
from daedap.model.loss import Batch, TokenizedRows, collate
from daedap.model.prompt import Example, sorted_batches
from daedap.model.trainable import SPLITTABLE, frozen_lower, lowest_trained_block, unwrap_peft

_log = logging.getLogger("daedap")
_BATCH_SIZE = 64
Lower = Callable[[Tensor], Tensor]
"""Ids, (rows, length), to the states that enter the lowest trained block, (rows, length, width)."""


@dataclass(frozen=True)
class CacheFolder:
    """A folder of cached states, a file for each sequence of examples."""

    folder: Path
    key: str
    """Identifies base, number of blocks and precision, on which the states depend besides the examples."""
    width: int
    dtype: torch.dtype
    limit: int
    """Bytes that all files of the folder may take."""

    def file(self, examples: Sequence[Example]) -> Path:
        """The file for these examples, named by a hash of them and the key."""
        sha = hashlib.sha256(f"{self.key}\n{self.width}\n{self.dtype}\n".encode())
        for example in examples:
            sha.update(np.array([len(example.ids), *example.ids], dtype=np.uint32).tobytes())
        return self.folder / f"{sha.hexdigest()[:32]}.states"

    def size(self, examples: Sequence[Example]) -> int:
        """Bytes that the states of these examples take."""
        return sum(len(example.ids) - 1 for example in examples) * self.width * self.dtype.itemsize

    def has(self, path: Path, size: int) -> bool:
        """Whether a file exists; if not, the least recently used ones give way to its `size` bytes."""
        if path.exists():
            path.touch()  # most recently used
            return True
        files = sorted(self.folder.glob("*.states"), key=lambda path: path.stat().st_mtime)
        held = sum(path.stat().st_size for path in files)
        while files and held + size > self.limit:
            held -= files[0].stat().st_size
            with suppress(PermissionError):  # on Windows, another process may have it open
                files.pop(0).unlink(missing_ok=True)
        return False


@dataclass(frozen=True)
class CachedRows:
    """Examples whose batches hold hidden states instead of ids."""

    examples: Sequence[Example]
    states: Tensor
    """(positions of all examples, width), the examples by length."""
    starts: list[int]
    """Per example, its first row in `states`."""
    device: str

    def batch(self, rows: Sequence[int]) -> Batch:
        """The batch of these rows."""
        batch = collate([self.examples[row] for row in rows], self.device)
        states = torch.zeros(*batch.inputs.shape, self.states.shape[1], dtype=self.states.dtype)
        for index, row in enumerate(rows):
            length = len(self.examples[row].ids) - 1
            states[index, :length] = self.states[self.starts[row] :][:length]
        return replace(batch, inputs=states.to(self.device))


@dataclass(frozen=True)
class FrozenBlocks:
    """The blocks below the lowest trained one, and the cache of their output."""

    model: PreTrainedModel
    blocks: int
    cache: CacheFolder
    machine: Machine

    def lower(self) -> Lower:
        """The frozen blocks as a function, in inference mode and the machine's precision."""
        lower, machine = frozen_lower(self.model, self.blocks).eval(), self.machine

        @torch.inference_mode()
        def run(ids: Tensor) -> Tensor:
            with machine.autocast():
                states: Tensor = lower(ids)
            return states

        return run

    def rows(self, splits: Sequence[Sequence[Example]]) -> list[CachedRows] | list[TokenizedRows]:
        """Every split with cached states, or every split with ids where caching is impossible or too large."""
        device, cache = self.machine.device, self.cache
        tokenized = [TokenizedRows(split, device) for split in splits]
        if not self.blocks or not cache.limit:
            return tokenized
        if self.model.config.model_type not in SPLITTABLE:
            _log.info(translate("The frozen layers of this architecture can't be run apart: they run at every step."))
            return tokenized
        if (size := sum(map(cache.size, splits))) > cache.limit:
            message = (
                "The activation cache would take {size:.1f} GB, more than --cache-gb allows: "
                "the frozen layers run at every step."
            )
            _log.info(translate(message, size=size / 1e9))
            return tokenized
        lower = self.lower()
        return [cached_rows(split, lower, cache, device) for split in splits]


def find_frozen(
    model: PreTrainedModel | PeftModel, digest: str, machine: Machine, folder: Path, limit: int
) -> FrozenBlocks:
    """The frozen blocks of a model whose base has this digest; the cache `folder` may hold `limit` bytes."""
    blocks, base = lowest_trained_block(model), unwrap_peft(model)
    key = f"{digest} {blocks} {machine.precision} {next(base.parameters()).dtype}"
    dtype = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    cache = CacheFolder(folder, key, base.config.get_text_config().hidden_size, dtype, limit)
    return FrozenBlocks(base, blocks, cache, machine)


def cached_rows(examples: Sequence[Example], lower: Lower, cache: CacheFolder, device: str) -> CachedRows:
    """The examples with their states, computed unless the file exists. Raises StorageError."""
    path, size, starts = cache.file(examples), cache.size(examples), _starts(examples)
    if not broadcast(partial(cache.has, path, size)):
        _fill(path, examples, starts, lower, cache, device)
    flat = torch.from_file(str(path), size=size // cache.dtype.itemsize, dtype=cache.dtype)
    return CachedRows(examples, flat.view(-1, cache.width), starts, device)


def _fill(
    path: Path, examples: Sequence[Example], starts: Sequence[int], lower: Lower, cache: CacheFolder, device: str
) -> None:
    """Compute and write all states, every process its shard of the batches."""
    batches = shard(sorted_batches([len(example.ids) for example in examples], _BATCH_SIZE))
    total, label = sum(map(len, batches)), translate("frozen layers")
    with new_shared_file(path) as file, tqdm(total=total, unit="row", desc=label, disable=not is_main()) as bar:
        for rows in batches:
            states = lower(collate([examples[row] for row in rows], device).inputs).to("cpu", cache.dtype)
            file.seek(starts[rows[0]] * cache.width * cache.dtype.itemsize)
            for row, state in zip(rows, states, strict=True):
                unpadded = state[: len(examples[row].ids) - 1]
                file.write(unpadded.contiguous().view(torch.uint8).numpy().tobytes())
            bar.update(len(rows))


def _starts(examples: Sequence[Example]) -> list[int]:
    """Each example's first row in the file, which holds them in the order of `sorted_batches`."""
    positions = np.array([len(example.ids) - 1 for example in examples], np.int64)
    order = np.argsort(positions, kind="stable")
    starts = np.empty_like(positions)
    starts[order] = np.cumsum(positions[order]) - positions[order]
    return list(map(int, starts))
