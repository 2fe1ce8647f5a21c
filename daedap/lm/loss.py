"""The loss of answers: the head runs only where a token is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from daedap.lm.halves import plain, reader
from daedap.lm.prompt import Example, filled

if TYPE_CHECKING:
    from peft import PeftModel


_LABELS = 32
"""Numbers of labels are filled up to multiples of this, for the same reason as lengths (prompt.py)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded examples, without their last token, which is predicted but never read.

    inputs: ids, (rows, length), or what enters a block, (rows, length, width); row, place: (labels,) the positions
    whose next token is learned; label: (labels,). mask: who sees whom, (rows, 1, length, length), None where everybody
    sees all that came before; positions: (rows, length), None where they count from the left.
    """

    inputs: Tensor
    row: Tensor
    place: Tensor
    label: Tensor
    mask: Tensor | None = None
    positions: Tensor | None = None


def collate(examples: Sequence[Example], device: torch.device | str) -> Batch:
    """Fill examples up to the longest of them, and a little more, and point at the positions that predict a label.

    What fills stands at the right, where no earlier position sees it: it may be any token, and needs no mask.
    """
    length = 1 + filled(max(len(example.ids) for example in examples) - 1)
    ids = torch.tensor([example.ids + example.ids[:1] * (length - len(example.ids)) for example in examples])
    row, place = places(examples)
    parts = (ids[:, :-1], row, place, ids[row, place + 1])
    return Batch(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class Rendered:
    """Examples whose batches hold ids."""

    examples: Sequence[Example]
    device: str

    def batch(self, rows: Sequence[int]) -> Batch:
        """The batch of these rows."""
        return collate([self.examples[row] for row in rows], self.device)


def places(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Row and place of every position that predicts a label, (labels,) each."""
    lengths = torch.tensor([len(example.ids) for example in examples])
    answers = torch.tensor([example.answer for example in examples])
    every = torch.arange(int(lengths.max()))
    row, place = ((every >= answers[:, None] - 1) & (every < lengths[:, None] - 1)).nonzero(as_tuple=True)
    return row, place


class AnswerLoss(nn.Module):
    """A model, adapted or not, or its upper blocks, as a function from a batch to −ln p of each label.

    With a shortlist, p is among its tokens: labels are looked up in it, and the others count as impossible.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, lowest: int = 0, shortlist: Tensor | None = None) -> None:
        super().__init__()
        self.model = reader(plain(model), lowest, shortlist)
        self.name = "inputs_embeds" if lowest else "input_ids"
        self.shortlist = shortlist

    def forward(self, batch: Batch) -> Tensor:
        """(labels,), in float32."""
        labels = len(batch.label)
        spare = (0, filled(labels, _LABELS) - labels)
        at = (pad(batch.row, spare), pad(batch.place, spare))
        asked = {self.name: batch.inputs, "attention_mask": batch.mask, "position_ids": batch.positions}
        logits = self.model(**asked, use_cache=False, at=at).logits[0, :labels]
        label = batch.label if self.shortlist is None else torch.searchsorted(self.shortlist, batch.label)
        return cross_entropy(logits.float(), label, reduction="none")


def answer_losses(model: PreTrainedModel | PeftModel, batch: Batch) -> Tensor:
    """−ln p of each label, (labels,), in float32."""
    losses: Tensor = AnswerLoss(model)(batch)
    return losses
