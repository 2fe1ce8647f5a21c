"""Measurements for benchmarks: peak speed of matrix products, peak memory, floating-point operations of a step."""

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
"""(m, k, n) of products that are large enough to be compute-bound."""
_POLL_SECONDS = 0.02


def matmul_peak(dtype: torch.dtype, device: str = "cpu", times: int = 5) -> float:
    """GFLOP/s of matrix products: the maximum over several shapes, each the median of `times` repetitions."""
    return max(_gflops(shape, dtype, device, times) for shape in _SHAPES)


def _gflops(shape: tuple[int, int, int], dtype: torch.dtype, device: str, times: int) -> float:
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner).to(device, dtype), torch.randn(inner, columns).to(device, dtype)
    measured = []
    for _ in range(times + 1):
        start = time.perf_counter()
        left @ right
        synchronize(device)
        measured.append(time.perf_counter() - start)
    return 2 * rows * inner * columns / statistics.median(measured[1:]) / 1e9  # the first call selects kernels


def synchronize(device: str) -> None:
    """Wait until the device has finished its queued work; a CPU has no queue."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


class PeakMemory:
    """A context manager that samples the resident memory of this process every 20 ms.

    Freed memory is returned to the system first, as far as possible. GPU memory isn't counted.
    """

    peak_bytes: int = 0
    """Maximum within the block."""
    before_bytes: int = 0
    """At the beginning of the block."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        _trim()
        self._process, self._done = psutil.Process(), threading.Event()
        self.before_bytes = self.peak_bytes = self._resident()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._sample()
        self._done.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self._sample()

    def _sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self._resident())

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)


def _trim() -> None:
    """Return freed memory to the system; glibc would keep it, and it would count for the next block."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim:
            trim(0)


class _Product(NamedTuple):
    """A linear layer's weight."""

    block: int
    """Number of its block; -1 outside the blocks."""
    in_attention: bool
    size: int
    trained: bool


def step_flops(model: nn.Module, *, rows: int, length: int, head_positions: int) -> float:
    """Estimated floating-point operations of one training step on (rows, length) ids, padding included.

    Per weight and token: 2 in the forward pass; in the backward pass 2 more if the weight is trained, and 2 more if a
    gradient flows to trained weights below it. Attention: 4 * length * width per token, without a causal saving, and
    twice that in the backward pass. The head runs at `head_positions` tokens. Look-ups, norms, activation functions,
    the optimizer and recomputation (gradient checkpointing) don't count.
    """
    tokens, total = rows * length, 0.0
    attention = 4.0 * tokens * length * _attention_width(model)
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    gradient_below = any(table.weight.requires_grad for table in embeddings)
    for block, group in groupby(_products(model), key=lambda product: product.block):
        products = list(group)
        if block >= 0:
            total += attention * (1 + 2 * (gradient_below or any(one.trained for one in products if one.in_attention)))
        for product in products:
            total += 2.0 * tokens * product.size * (1 + gradient_below + product.trained)
            gradient_below = gradient_below or product.trained
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    size, trained = _weight(head)
    return total + 2.0 * head_positions * size * (1 + gradient_below + trained)


def _products(model: nn.Module) -> Iterator[_Product]:
    """All linear layers but the head, in the order of the forward pass."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            block = BLOCK.search(f".{name}.")
            yield _Product(int(block[1]) if block else -1, "attn" in name, *_weight(module))


def _weight(module: nn.Module) -> tuple[int, bool]:
    """Size, and whether it is trained."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.numel(), weight.requires_grad


def _attention_width(model: nn.Module) -> int:
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    heads = int(config.num_attention_heads)
    return heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
