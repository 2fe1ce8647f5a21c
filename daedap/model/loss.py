"""The loss of answers: the head runs only where a token is learned.

The shortlist: the only tokens that the softmax of training compares (the term is machine translation's).

How likely answers are; a question that many answers share is read once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel

from daedap.model.prompt import Example, Prompt, round_up
from daedap.model.trainable import unwrap_peft, trained_upper

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
    length = 1 + round_up(max(len(example.ids) for example in examples) - 1)
    ids = torch.tensor([example.ids + example.ids[:1] * (length - len(example.ids)) for example in examples])
    row, place = places(examples)
    parts = (ids[:, :-1], row, place, ids[row, place + 1])
    return Batch(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class TokenizedRows:
    """Examples whose batches hold ids."""

    examples: Sequence[Example]
    device: str

    def batch(self, rows: Sequence[int]) -> Batch:
        """The batch of these rows."""
        return collate([self.examples[row] for row in rows], self.device)


def places(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Row and place of every position that predicts a label, (labels,) each."""
    lengths = torch.tensor([len(example.ids) for example in examples])
    answers = torch.tensor([example.answer_start for example in examples])
    every = torch.arange(int(lengths.max()))
    row, place = ((every >= answers[:, None] - 1) & (every < lengths[:, None] - 1)).nonzero(as_tuple=True)
    return row, place


class AnswerLoss(nn.Module):
    """A model, adapted or not, or its upper blocks, as a function from a batch to −ln p of each label.

    With a shortlist, p is among its tokens: labels are looked up in it, and the others count as impossible.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, lowest: int = 0, shortlist: Tensor | None = None) -> None:
        super().__init__()
        self.model = trained_upper(unwrap_peft(model), lowest, shortlist)
        self.name = "inputs_embeds" if lowest else "input_ids"
        self.shortlist = shortlist

    def forward(self, batch: Batch) -> Tensor:
        """(labels,), in float32."""
        labels = len(batch.label)
        spare = (0, round_up(labels, _LABELS) - labels)
        at = (pad(batch.row, spare), pad(batch.place, spare))
        asked = {self.name: batch.inputs, "attention_mask": batch.mask, "position_ids": batch.positions}
        logits = self.model(**asked, use_cache=False, at=at).logits[0, :labels]
        label = batch.label if self.shortlist is None else torch.searchsorted(self.shortlist, batch.label)
        return cross_entropy(logits.float(), label, reduction="none")


def answer_losses(model: PreTrainedModel | PeftModel, batch: Batch) -> Tensor:
    """−ln p of each label, (labels,), in float32."""
    losses: Tensor = AnswerLoss(model)(batch)
    return losses


_SINGLE = re.compile("[가-힣ㄱ-ㅎㅏ-ㅣ!-~…]")
_WORTH_IT = 0.7
"""Share of the vocabulary above which a shortlist saves too little."""


def shortlist(prompt: Prompt, examples: Sequence[Example]) -> Tensor | None:
    """Tokens of the training answers and of single letters, digits and marks, (tokens,), sorted; None: not worth it.

    A probability in training is one among these tokens: it is too high by what the others would take, which is next to
    nothing for a base that knows the language. Scores and replies use the full vocabulary.
    """
    vocabulary = len(prompt.tokenizer)
    said = {token for example in examples for token in example.ids[example.answer_start :]}
    texts = prompt.tokenizer.backend_tokenizer.decode_batch([[token] for token in range(vocabulary)])
    single = {token for token, text in enumerate(texts) if _SINGLE.fullmatch(text.strip())}
    chosen = sorted((said | single) - (prompt.control_ids - {prompt.template.eos_id}))
    return torch.tensor(chosen) if len(chosen) < _WORTH_IT * vocabulary else None


FloatArray = NDArray[np.float64]
SharedPrompt = list[int]
"""Numbers of examples with the same question."""
_AT_ONCE = 64
_SHARING = frozenset({"gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "exaone4", "smollm3"})
"""Architectures that take an attention mask of any form, as long as all their layers look back over the whole text; the
others read the question with every answer."""


@torch.inference_mode()
def score_answers(
    model: PreTrainedModel | PeftModel, examples: Sequence[Example], device: torch.device | str
) -> FloatArray:
    """Per example: the sum of log2 p over its answer and end token, and their number. (examples, 2), float64.

    In evaluation mode and over the full vocabulary.
    """
    model.eval()
    losses, scores = AnswerLoss(model), np.zeros((len(examples), 2))
    for sheets in _batches(
        _shared_prompts(examples) if _shares(unwrap_peft(model)) else [[row] for row in range(len(examples))], examples
    ):
        rows = [row for sheet in sheets for row in sheet]
        if len(rows) == len(sheets):
            batch = collate([examples[row] for row in rows], device)
            owners = np.asarray(rows)[batch.row.cpu().numpy()]
        else:
            batch = _collate_packed([[examples[row] for row in sheet] for sheet in sheets], device)
            owners = np.repeat(rows, [len(examples[row].ids) - examples[row].answer_start for row in rows])
        nats = losses(batch).double().cpu().numpy()
        np.add.at(scores, (owners, 0), -nats / np.log(2))
        np.add.at(scores, (owners, 1), 1)
    return scores


def _shares(model: PreTrainedModel) -> bool:
    layers = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return model.config.model_type in _SHARING and layers == {"full_attention"}


def _shared_prompts(examples: Sequence[Example]) -> list[SharedPrompt]:
    """Examples by question, at most so many on a sheet as are scored at once."""
    by_question: dict[tuple[int, ...], SharedPrompt] = {}
    for row, example in enumerate(examples):
        by_question.setdefault(tuple(example.ids[: example.answer_start]), []).append(row)
    return [
        sheet[start : start + _AT_ONCE] for sheet in by_question.values() for start in range(0, len(sheet), _AT_ONCE)
    ]


def _batches(sheets: Sequence[SharedPrompt], examples: Sequence[Example]) -> Iterator[list[SharedPrompt]]:
    """Sheets of like length together, with at most so many examples as are scored at once."""
    batch, held = list[SharedPrompt](), 0
    for sheet in sorted(sheets, key=lambda sheet: sum(len(examples[row].ids) for row in sheet)):
        if held + len(sheet) > _AT_ONCE and batch:
            yield batch
            batch, held = [], 0
        batch.append(sheet)
        held += len(sheet)
    if batch:
        yield batch


def _collate_packed(sheets: Sequence[Sequence[Example]], device: torch.device | str) -> Batch:
    """A row for each sheet: the question, then one answer after the other, each as if it stood there alone.

    An answer sees the question and itself, and its positions go on from the question's.
    """
    laid = [_pack(sheet) for sheet in sheets]
    ids = _padded([sheet.ids for sheet in laid], 0)
    positions = _padded([sheet.positions for sheet in laid], 0)
    mask = _attention_mask(_padded([sheet.parts for sheet in laid], -1))
    row = torch.tensor([number for number, sheet in enumerate(laid) for _ in sheet.labels])
    place = torch.tensor([place for sheet in laid for place in sheet.places])
    label = torch.tensor([label for sheet in laid for label in sheet.labels])
    return Batch(*(part.to(device) for part in (ids, row, place, label, mask, positions)))


class _Packed(NamedTuple):
    """A sheet token by token; parts: 0 for the question, then the answer's number. places, labels: as in Batch."""

    ids: list[int]
    positions: list[int]
    parts: list[int]
    places: list[int]
    labels: list[int]


def _pack(sheet: Sequence[Example]) -> _Packed:
    begin = sheet[0].answer_start
    laid = _Packed(sheet[0].ids[:begin], list(range(begin)), [0] * begin, [], [])
    for part, example in enumerate(sheet, 1):
        labels = example.ids[begin:]  # the last one, the end token, is predicted but never read
        laid.places.extend((begin - 1, *range(len(laid.ids), len(laid.ids) + len(labels) - 1)))
        laid.labels.extend(labels)
        laid.ids.extend(labels[:-1])
        laid.positions.extend(range(begin, begin + len(labels) - 1))
        laid.parts.extend([part] * (len(labels) - 1))
    return laid


def _padded(rows: Sequence[list[int]], padding: int) -> Tensor:
    length = round_up(max(map(len, rows)))
    return torch.tensor([row + [padding] * (length - len(row)) for row in rows])


def _attention_mask(parts: Tensor) -> Tensor:
    """What each place must not see is lessened to nothing, (rows, 1, length, length); it sees its question and itself.

    Added to the attention's scores: plain attention would add a mask of truth values as ones and zeros, too.
    """
    mine, theirs = parts[:, :, None], parts[:, None, :]
    before = torch.ones(parts.shape[1], parts.shape[1], dtype=torch.bool).tril()
    seen = (before & ((theirs == 0) | (theirs == mine)))[:, None]
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
