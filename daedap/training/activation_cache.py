"""The activation cache: what the frozen lower blocks say, computed once, kept in a memory-mapped file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from daedap.i18n import translate
from daedap.model.batching import sorted_batches
from daedap.model.distributed import broadcast, is_main, new_shared_file, shard
from daedap.model.loss import Batch, collate
from daedap.model.prompt import Example

_AT_ONCE = 64
Lower = Callable[[Tensor], Tensor]
"""Ids, (rows, length), to the states that enter the lowest trained block, (rows, length, width)."""


@dataclass(frozen=True)
class CacheFile:
    """Where states are kept, what they depend on besides the examples, and how many bytes all of them may take."""

    folder: Path
    key: str
    """Names the base, the number of blocks and the precision: other states have another key."""
    width: int
    dtype: torch.dtype
    limit: int

    def file(self, examples: Sequence[Example]) -> Path:
        """The file of these examples."""
        sha = hashlib.sha256(f"{self.key}\n{self.width}\n{self.dtype}\n".encode())
        for example in examples:
            sha.update(np.array([len(example.ids), *example.ids], dtype=np.uint32).tobytes())
        return self.folder / f"{sha.hexdigest()[:32]}.states"

    def size(self, examples: Sequence[Example]) -> int:
        """Bytes that their states take."""
        return sum(len(example.ids) - 1 for example in examples) * self.width * self.dtype.itemsize

    def make_room(self, size: int) -> None:
        """Delete files, least recently used first, until `size` more bytes are within the limit or none is left."""
        files = sorted(self.folder.glob("*.states"), key=lambda path: path.stat().st_mtime)
        held = sum(path.stat().st_size for path in files)
        while files and held + size > self.limit:
            held -= files[0].stat().st_size
            with suppress(PermissionError):  # Windows keeps what another process has open
                files.pop(0).unlink(missing_ok=True)


@dataclass(frozen=True)
class Cached:
    """Examples whose batches hold states in the place of ids."""

    examples: Sequence[Example]
    states: Tensor
    """(positions of all examples, width), row after row from the shortest to the longest."""
    starts: list[int]
    """Where the states of each example begin."""
    device: str

    def batch(self, rows: Sequence[int]) -> Batch:
        """The batch of these rows."""
        chosen = [self.examples[row] for row in rows]
        batch = collate(chosen, self.device)
        states = torch.zeros(*batch.inputs.shape, self.states.shape[1], dtype=self.states.dtype)
        for cache_file, row in enumerate(rows):
            length = len(self.examples[row].ids) - 1
            states[cache_file, :length] = self.states[self.starts[row] :][:length]
        return replace(batch, inputs=states.to(self.device))


def cached(examples: Sequence[Example], lower: Lower, cache_file: CacheFile, device: str) -> Cached:
    """The examples with their states, from an earlier run's file where there is one. Raises StorageError."""
    path, starts = cache_file.file(examples), _starts(examples)
    if not broadcast(partial(_there, path, cache_file, cache_file.size(examples))):
        _fill(path, examples, starts, lower, cache_file, device)
    positions = sum(len(example.ids) - 1 for example in examples)
    flat = torch.from_file(str(path), size=positions * cache_file.width, dtype=cache_file.dtype)
    return Cached(examples, flat.view(positions, cache_file.width), starts, device)


def _there(path: Path, cache_file: CacheFile, size: int) -> bool:
    """Whether the file is there already; if not, there is room for it now."""
    if path.exists():
        path.touch()  # the least recently used ones go first
        return True
    cache_file.make_room(size)
    return False


def _fill(
    path: Path, examples: Sequence[Example], starts: Sequence[int], lower: Lower, cache_file: CacheFile, device: str
) -> None:
    """Rows from the shortest to the longest, every process its share of them."""
    batches = shard(sorted_batches(_lengths(examples), _AT_ONCE))
    rows_in_all, told = sum(map(len, batches)), translate("frozen layers")
    with new_shared_file(path) as file, tqdm(total=rows_in_all, unit="row", desc=told, disable=not is_main()) as bar:
        for rows in batches:
            states = lower(collate([examples[row] for row in rows], device).inputs).to("cpu", cache_file.dtype)
            file.seek(starts[rows[0]] * cache_file.width * cache_file.dtype.itemsize)
            for row, state in zip(rows, states, strict=True):
                read = state[: len(examples[row].ids) - 1]
                file.write(read.contiguous().view(torch.uint8).numpy().tobytes())
            bar.update(len(rows))


def _starts(examples: Sequence[Example]) -> list[int]:
    starts = [0] * len(examples)
    order = [row for rows in sorted_batches(_lengths(examples), _AT_ONCE) for row in rows]
    ends = accumulate(len(examples[row].ids) - 1 for row in order)
    for row, end in zip(order, ends, strict=True):
        starts[row] = end - (len(examples[row].ids) - 1)
    return starts


def _lengths(examples: Sequence[Example]) -> list[int]:
    return [len(example.ids) for example in examples]
