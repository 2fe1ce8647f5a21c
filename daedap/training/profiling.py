"""What this machine can do, and how much a recipe asks of it: peak speed of matrix products, memory, operations."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from itertools import groupby
from types import TracebackType
from typing import NamedTuple

import psutil
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from daedap.model.trainable import BLOCK

_SHAPES = ((1024, 1024, 4096), (1024, 4096, 1024), (2048, 2048, 2048), (4096, 768, 3072))
"""(m, k, n): products of matrices large enough that nothing but arithmetic counts."""
_EVERY = 0.02


def matmul_peak(dtype: torch.dtype, device: str = "cpu", times: int = 5) -> float:
    """GFLOP/s of matrix products in a data type: the best of several shapes, each the median of `times`."""
    return max(_speed(shape, dtype, device, times) for shape in _SHAPES)


def _speed(shape: tuple[int, int, int], dtype: torch.dtype, device: str, times: int) -> float:
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner).to(device, dtype), torch.randn(inner, columns).to(device, dtype)
    measured = []
    for _ in range(times + 1):
        start = time.perf_counter()
        left @ right
        synchronize(device)
        measured.append(time.perf_counter() - start)
    return 2 * rows * inner * columns / statistics.median(measured[1:]) / 1e9  # the first call picks kernels


def synchronize(device: str) -> None:
    """Until an accelerator has done what it was given; a processor always has."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


class PeakMemory:
    """The most memory that this process holds during a block, looked at every 20 ms.

    What earlier blocks have left behind is given back to the system first, as far as it can be. An accelerator's own
    memory isn't counted.
    """

    peak_bytes: int = 0
    """Resident memory, everything that was there before the block included."""
    before_bytes: int = 0
    """Resident memory as the block begins."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        _trim()
        self._process, self._done = psutil.Process(), threading.Event()
        self.before_bytes = self.peak_bytes = self._held()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._look()
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_EVERY):
            self._look()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self._held())

    def _held(self) -> int:
        return int(self._process.memory_info().rss)


def _trim() -> None:
    """Give freed memory back: glibc keeps it else, and it would count for the next block."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim:
            trim(0)


class _Product(NamedTuple):
    """A weight that inputs are multiplied with, in the order of the forward pass."""

    block: int
    """Number of its block; -1 where it stands in none."""
    attends: bool
    """Whether it belongs to the block's attention."""
    size: int
    trained: bool


def step_flops(model: nn.Module, *, rows: int, length: int, head_positions: int) -> float:
    """Floating-point operations of one step on (rows, length) ids, padding included: forward and backward.

    The head runs at `head_places` of the rows * length places. An estimate of what the mathematics asks for: 2 for
    each weight and place in the forward pass; in the backward pass 2 more where the weight is trained and 2 more where
    a gradient flows on to trained weights below it, so nothing below the lowest of them. Attention's two products take
    4 * length * width for each place, every place looking at every other, and twice that in the backward pass.
    Look-ups, norms, activation functions, the optimizer, and what a recipe computes a second time to save memory don't
    count.
    """
    places, total = rows * length, 0.0
    attention = 4.0 * places * length * _attention_width(model)
    flows = _embedding_is_trained(model)
    for block, group in groupby(_products(model), key=lambda product: product.block):
        products = list(group)
        if block >= 0:
            total += attention * (1 + 2 * (flows or any(one.trained for one in products if one.attends)))
        for product in products:
            total += 2.0 * places * product.size * (1 + flows + product.trained)
            flows = flows or product.trained
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    size, trained = _weight(head)
    return total + 2.0 * head_positions * size * (1 + flows + trained)


def _products(model: nn.Module) -> Iterator[_Product]:
    """Every linear layer but the head; modules are listed as the forward pass meets them, block by block."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear | Conv1D) and part is not head:
            block = BLOCK.search(f".{name}.")
            yield _Product(int(block[1]) if block else -1, "attn" in name, *_weight(part))


def _weight(part: nn.Module) -> tuple[int, bool]:
    weight = part.weight
    assert isinstance(weight, torch.Tensor)
    return weight.numel(), weight.requires_grad


def _embedding_is_trained(model: nn.Module) -> bool:
    tables = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    return any(table.weight.requires_grad for table in tables)


def _attention_width(model: nn.Module) -> int:
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    heads = int(config.num_attention_heads)
    return heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
