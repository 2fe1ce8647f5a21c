"""What a training computes and nothing else: the trained blocks over what the frozen ones said, on a shortlist."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from daedap.i18n import translate
from daedap.model.device import Machine
from daedap.model.loss import AnswerLoss, Batch, TokenizedRows, shortlist
from daedap.model.prompt import Example, Prompt
from daedap.model.trainable import SPLITTABLE, frozen_lower, lowest_trained_block, unwrap_peft
from daedap.training.activation_cache import Cached, CacheFile, Lower, cached

if TYPE_CHECKING:
    from peft import PeftModel


_log = logging.getLogger("daedap")


class Rows(Protocol):
    """Examples that can be taken in batches."""

    @property
    def examples(self) -> Sequence[Example]:
        """All of them."""

    def batch(self, rows: Sequence[int]) -> Batch:
        """The batch of these rows."""


@dataclass(frozen=True)
class Task:
    """What is learned, and from what."""

    model: PreTrainedModel | PeftModel
    """Whose trained weights are kept."""
    loss: AnswerLoss
    """Of training, perhaps among the tokens of a shortlist only."""
    dev_loss: AnswerLoss
    """Of the dev rows, over all tokens."""
    train: Rows
    dev: Rows


@dataclass(frozen=True)
class FrozenBlocks:
    """The lower blocks, which say the same in every epoch, and where that is kept."""

    model: PreTrainedModel
    blocks: int
    cache_file: CacheFile
    machine: Machine

    def lower(self) -> Lower:
        """A function from ids to their output."""
        lower, machine = frozen_lower(self.model, self.blocks).eval(), self.machine

        @torch.inference_mode()
        def run(ids: Tensor) -> Tensor:
            with torch.autocast(machine.device, torch.bfloat16, enabled=machine.precision == "bf16"):
                states: Tensor = lower(ids)
            return states

        return run


def find_frozen(
    model: PreTrainedModel | PeftModel, digest: str, machine: Machine, folder: Path, limit: int
) -> FrozenBlocks:
    """What lies below everything that learns, of a base with this digest; `folder` may hold `limit` bytes of it."""
    blocks, base = lowest_trained_block(model), unwrap_peft(model)
    weights = next(base.parameters())
    key = f"{digest} {blocks} {machine.precision} {weights.dtype}"
    kept = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    return FrozenBlocks(
        base, blocks, CacheFile(folder, key, base.config.get_text_config().hidden_size, kept, limit), machine
    )


def build_task(
    model: PreTrainedModel | PeftModel,
    prompt: Prompt,
    sides: Sequence[Sequence[Example]],
    frozen: FrozenBlocks,
    *,
    shortlisted: bool,
) -> Task:
    """The least that must be computed to train on the first side and to watch it on the second."""
    tokens = shortlist(prompt, sides[0]) if shortlisted else None
    train, dev = _held(frozen, sides)
    lowest = frozen.blocks if isinstance(train, Cached) else 0
    loss = AnswerLoss(model, first_block=lowest, shortlist=tokens)
    return Task(model, loss, AnswerLoss(model, first_block=lowest), train, dev)


def _held(frozen: FrozenBlocks, sides: Sequence[Sequence[Example]]) -> list[Rows]:
    """All sides with the frozen blocks' output, or all with ids where that can't be had."""
    ids: list[Rows] = [TokenizedRows(side, frozen.machine.device) for side in sides]
    if not frozen.blocks or not frozen.cache_file.limit:
        return ids
    if frozen.model.config.model_type not in SPLITTABLE:
        _log.info(translate("The frozen layers of this architecture can't be run apart: they run at every step."))
        return ids
    if (size := sum(map(frozen.cache_file.size, sides))) > frozen.cache_file.limit:
        told = "What the frozen layers say takes {size:.1f} GB, more than --cache-gb allows: they run at every step."
        _log.info(translate(told, size=size / 1e9))
        return ids
    lower = frozen.lower()
    return [cached(side, lower, frozen.cache_file, frozen.machine.device) for side in sides]
