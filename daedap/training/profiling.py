"""Measurements: what a training step costs here, its floating-point operations, and what this machine can do."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, cast

import psutil
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from daedap.model.device import Machine, best_of_n
from daedap.model.loss import AnswerLoss, Batch, collate, cross_entropy_in_chunks
from daedap.model.prompt import Example, round_up
from daedap.model.trainable import BLOCK, SPLITTABLE, frozen_lower, unwrap_peft
from daedap.training.planner import Costs

_TRIAL_ROWS, _TRIAL_BLOCKS = 32, 4
_SHAPES = ((1024, 1024, 4096), (1024, 4096, 1024), (2048, 2048, 2048), (4096, 768, 3072))
"""(m, k, n) of products that are large enough to be compute-bound."""
_POLL_SECONDS = 0.02


def measure_costs(
    model: PreTrainedModel | PeftModel,
    examples: Sequence[Example],
    machine: Machine,
    *,
    all_layers_trained: bool = False,
) -> Costs:
    """Time training steps on rows of average length, with several trained blocks and with one; no weight is changed.

    Several: all blocks in full fine-tuning, else at most four, to save memory. `all_layers_trained`: whatever is
    measured, so that one kind of step is enough.
    """
    batch = collate(_average_rows(examples), machine.device)
    times = 1 if len(examples) <= 2 * _TRIAL_ROWS else 5  # measuring must not take longer than a short training
    base, rows = unwrap_peft(model), len(batch.inputs)
    blocks = base.config.get_text_config().num_hidden_layers
    if all_layers_trained or blocks == 1 or base.config.model_type not in SPLITTABLE:
        each = best_of_n(_step(AnswerLoss(model), batch, machine), times) / rows / blocks
        return Costs(0.0, each, each / 3)  # the backward pass takes two thirds
    several = blocks if isinstance(model, PreTrainedModel) else min(blocks, _TRIAL_BLOCKS)
    lower, head = frozen_lower(base, blocks - 1), cast("nn.Linear", base.get_output_embeddings())
    states = torch.zeros(len(batch.label), head.in_features, device=machine.device)
    position = torch.arange(len(states), device=machine.device)
    frozen = best_of_n(_forward(lambda: lower(batch.inputs), machine)) / rows / (blocks - 1)
    softmax = best_of_n(_forward(lambda: cross_entropy_in_chunks(head, states, position, batch.label), machine)) / rows
    one, more = (best_of_n(_upper_step(model, batch, blocks - depth, machine)) / rows for depth in (1, several))
    trained = max(0.0, more - one) / (several - 1)
    return Costs(max(0.0, one - trained), trained, frozen, softmax)


def _upper_step(model: PreTrainedModel | PeftModel, batch: Batch, lowest: int, machine: Machine) -> Callable[[], None]:
    """A training step of the blocks from `lowest` on, given the hidden states below; of the whole model for block 0."""
    if not lowest:
        return _step(AnswerLoss(model), batch, machine)
    with torch.no_grad():
        states = frozen_lower(unwrap_peft(model), lowest)(batch.inputs)
    upper = Batch(states, batch.row, batch.position, batch.label)
    return _step(AnswerLoss(model, first_block=lowest), upper, machine)


def _average_rows(examples: Sequence[Example]) -> list[Example]:
    """Up to 32 rows of average padded length."""
    rows = sorted(examples, key=lambda example: len(example.ids))
    lengths = [round_up(len(row.ids)) for row in rows]
    middle = bisect_left(lengths, sum(lengths) / len(lengths))
    first = max(0, min(middle - _TRIAL_ROWS // 2, len(rows) - _TRIAL_ROWS))
    return rows[first : first + _TRIAL_ROWS]


def _step(loss: AnswerLoss, batch: Batch, machine: Machine) -> Callable[[], None]:
    """A function that runs a training step, optimizer included, with a learning rate of 0."""
    weights = [weight for weight in loss.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, fused=True)

    def work() -> None:
        with machine.autocast():
            loss(batch).mean().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return work


def _forward(compute: Callable[[], object], machine: Machine) -> Callable[[], None]:
    """The same computation in inference mode, in the machine's precision."""

    @torch.inference_mode()
    def work() -> None:
        with machine.autocast():
            compute()

    return work


def matmul_peak(dtype: torch.dtype, device: str = "cpu") -> float:
    """GFLOP/s of matrix products: the maximum over several shapes, each the median of five repetitions."""
    return max(_gflops(*shape, dtype, device) for shape in _SHAPES)


def _gflops(rows: int, inner: int, columns: int, dtype: torch.dtype, device: str) -> float:
    left, right = torch.randn(rows, inner).to(device, dtype), torch.randn(inner, columns).to(device, dtype)
    measured = []
    for _ in range(6):
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
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # musl has none
            trim(0)  # glibc would keep freed memory, and it would count for this block
        self._process, self._done = psutil.Process(), threading.Event()
        self.before_bytes = self.peak_bytes = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _poll(self) -> None:
        ended = False
        while not ended:
            ended = self._done.wait(_POLL_SECONDS)
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)


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
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4.0 * tokens * length * int(config.num_attention_heads) * int(head_width)
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
