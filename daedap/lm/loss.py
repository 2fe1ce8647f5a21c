"""Log-probabilities of answers: the head runs only where a token is learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from daedap.lm.batches import sorted_batches
from daedap.lm.prompt import Example

FloatArray = NDArray[np.float64]
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded examples.

    ids, mask: (rows, length); row, place: (labels,) the positions whose next token is learned; label: (labels,).
    """

    ids: Tensor
    mask: Tensor
    row: Tensor
    place: Tensor
    label: Tensor


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
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return cross_entropy(logits.float(), batch.label, reduction="none")


@torch.inference_mode()
def score_answers(model: nn.Module, examples: Sequence[Example], pad: int, device: torch.device | str) -> FloatArray:
    """Per example: the sum of log2 p over its answer and end token, and their number. (examples, 2), float64.

    In evaluation mode and over the full vocabulary.
    """
    model.eval()
    scores = np.zeros((len(examples), 2))
    for rows in sorted_batches([len(example.ids) for example in examples], _AT_ONCE):
        batch = collate([examples[row] for row in rows], pad, device)
        nats = answer_losses(model, batch).double().cpu().numpy()
        places = np.asarray(rows)[batch.row.cpu().numpy()]
        np.add.at(scores, (places, 0), -nats / np.log(2))
        np.add.at(scores, (places, 1), 1)
    return scores


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
