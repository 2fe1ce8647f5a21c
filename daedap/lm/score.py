"""How likely answers are; a question that many answers share is read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from daedap.lm.halves import plain
from daedap.lm.loss import AnswerLoss, Batch, collate
from daedap.lm.prompt import Example, filled

if TYPE_CHECKING:
    from peft import PeftModel

FloatArray = NDArray[np.float64]
Sheet = list[int]
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
        _sheets(examples) if _shares(plain(model)) else [[row] for row in range(len(examples))], examples
    ):
        rows = [row for sheet in sheets for row in sheet]
        if len(rows) == len(sheets):
            batch = collate([examples[row] for row in rows], device)
            owners = np.asarray(rows)[batch.row.cpu().numpy()]
        else:
            batch = _collate_sheets([[examples[row] for row in sheet] for sheet in sheets], device)
            owners = np.repeat(rows, [len(examples[row].ids) - examples[row].answer for row in rows])
        nats = losses(batch).double().cpu().numpy()
        np.add.at(scores, (owners, 0), -nats / np.log(2))
        np.add.at(scores, (owners, 1), 1)
    return scores


def _shares(model: PreTrainedModel) -> bool:
    layers = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return model.config.model_type in _SHARING and layers == {"full_attention"}


def _sheets(examples: Sequence[Example]) -> list[Sheet]:
    """Examples by question, at most so many on a sheet as are scored at once."""
    by_question: dict[tuple[int, ...], Sheet] = {}
    for row, example in enumerate(examples):
        by_question.setdefault(tuple(example.ids[: example.answer]), []).append(row)
    return [
        sheet[start : start + _AT_ONCE] for sheet in by_question.values() for start in range(0, len(sheet), _AT_ONCE)
    ]


def _batches(sheets: Sequence[Sheet], examples: Sequence[Example]) -> Iterator[list[Sheet]]:
    """Sheets of like length together, with at most so many examples as are scored at once."""
    batch, held = list[Sheet](), 0
    for sheet in sorted(sheets, key=lambda sheet: sum(len(examples[row].ids) for row in sheet)):
        if held + len(sheet) > _AT_ONCE and batch:
            yield batch
            batch, held = [], 0
        batch.append(sheet)
        held += len(sheet)
    if batch:
        yield batch


def _collate_sheets(sheets: Sequence[Sequence[Example]], device: torch.device | str) -> Batch:
    """A row for each sheet: the question, then one answer after the other, each as if it stood there alone.

    An answer sees the question and itself, and its positions go on from the question's.
    """
    laid = [_lay_out(sheet) for sheet in sheets]
    ids = _padded([sheet.ids for sheet in laid], 0)
    positions = _padded([sheet.positions for sheet in laid], 0)
    mask = _sees(_padded([sheet.parts for sheet in laid], -1))
    row = torch.tensor([number for number, sheet in enumerate(laid) for _ in sheet.labels])
    place = torch.tensor([place for sheet in laid for place in sheet.places])
    label = torch.tensor([label for sheet in laid for label in sheet.labels])
    return Batch(*(part.to(device) for part in (ids, row, place, label, mask, positions)))


class _Laid(NamedTuple):
    """A sheet token by token; parts: 0 for the question, then the answer's number. places, labels: as in Batch."""

    ids: list[int]
    positions: list[int]
    parts: list[int]
    places: list[int]
    labels: list[int]


def _lay_out(sheet: Sequence[Example]) -> _Laid:
    begin = sheet[0].answer
    laid = _Laid(sheet[0].ids[:begin], list(range(begin)), [0] * begin, [], [])
    for part, example in enumerate(sheet, 1):
        labels = example.ids[begin:]  # the last one, the end token, is predicted but never read
        laid.places.extend((begin - 1, *range(len(laid.ids), len(laid.ids) + len(labels) - 1)))
        laid.labels.extend(labels)
        laid.ids.extend(labels[:-1])
        laid.positions.extend(range(begin, begin + len(labels) - 1))
        laid.parts.extend([part] * (len(labels) - 1))
    return laid


def _padded(rows: Sequence[list[int]], padding: int) -> Tensor:
    length = filled(max(map(len, rows)))
    return torch.tensor([row + [padding] * (length - len(row)) for row in rows])


def _sees(parts: Tensor) -> Tensor:
    """What each place must not see is lessened to nothing, (rows, 1, length, length); it sees its question and itself.

    Added to the attention's scores: plain attention would add a mask of truth values as ones and zeros, too.
    """
    mine, theirs = parts[:, :, None], parts[:, None, :]
    before = torch.ones(parts.shape[1], parts.shape[1], dtype=torch.bool).tril()
    seen = (before & ((theirs == 0) | (theirs == mine)))[:, None]
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
