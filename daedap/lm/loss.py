"""The loss of answers: the head runs only where a token is learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from daedap.lm.prompt import Example


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded examples.

    ids, mask: (rows, length); row, place: (labels,) the positions whose next token is learned; label: (labels,);
    positions: (rows, length), None where they count from the left.
    """

    ids: Tensor
    mask: Tensor
    row: Tensor
    place: Tensor
    label: Tensor
    positions: Tensor | None = None


def collate(examples: Sequence[Example], pad: int, device: torch.device | str) -> Batch:
    """Pad examples to the longest of them and point at the positions that predict a label."""
    length = max(len(example.ids) for example in examples)
    ids = torch.tensor([example.ids + [pad] * (length - len(example.ids)) for example in examples])
    lengths = torch.tensor([len(example.ids) for example in examples])
    answers = torch.tensor([example.answer for example in examples])
    places = torch.arange(length)
    row, place = ((places >= answers[:, None] - 1) & (places < lengths[:, None] - 1)).nonzero(as_tuple=True)
    mask = (places < lengths[:, None]).long()
    parts = (ids, mask, row, place, ids[row, place + 1])
    return Batch(*(part.to(device) for part in parts))


def answer_losses(model: nn.Module, batch: Batch) -> Tensor:
    """−ln p of each label, (labels,), in float32."""
    with _head_only_at(model, batch.row, batch.place):
        positions = {} if batch.positions is None else {"position_ids": batch.positions}
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **positions).logits
    return cross_entropy(logits.float(), batch.label, reduction="none")


@contextmanager
def _head_only_at(model: nn.Module, row: Tensor, place: Tensor) -> Iterator[None]:
    """Hand the head its inputs at these positions only: (labels, width) instead of (rows, length, width).

    A hook, so that whatever an architecture does around its head (scaling, soft caps) still happens.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][row, place],))
    try:
        yield
    finally:
        handle.remove()
