"""Pretraining: blocks of text in, a base out, within a time budget and resumable at every checkpoint."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel

from daedap.errors import SettingsError
from daedap.language import say
from daedap.lm.checkpoint import cut_log, resume, save_checkpoint
from daedap.lm.corpus import PADDING, Corpus, Ids
from daedap.lm.device import Machine
from daedap.lm.recipe import Schedule
from daedap.lm.training import Progress, new_accelerator, refuse_no_number
from daedap.runs import Run

_BAR = "{desc} {percentage:3.0f}% |{bar}| {elapsed} {postfix}"
Loss = Callable[[Tensor], Tensor]


@dataclass
class Reading(Progress):
    """How far the reading of the texts is."""

    tokens: int = 0
    bits_per_character: float | None = None
    """On the held-out texts, when last measured."""
    best_bits: float | None = None
    best_step: int = 0


@dataclass
class Pretraining:
    """One pretraining, from its first step or from its newest checkpoint to the end of its budget."""

    model: PreTrainedModel
    schedule: Schedule
    machine: Machine
    folder: Path
    progress: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        self.accelerator = new_accelerator(
            self.machine, self.progress, self.model, mixed_precision="no"
        )  # see next_token_loss

    def run(self, train: Corpus, dev: Corpus | None) -> Reading:
        """Train until the budget is spent; the model is left with its last weights, rounded to half precision."""
        set_seed(self.schedule.seed)
        self.model = self.accelerator.prepare(self.model)
        self.optimizers = [self.accelerator.prepare(each) for each in optimizers(self.model, self.schedule)]
        self.loss = next_token_loss(self.model, self.machine, compiled=self.schedule.torch_compile)
        self.steps_per_pass = steps_per_pass(train, self.schedule)
        resume(self.accelerator, self.folder)
        cut_log(self.folder, self.progress.step)
        self._since = time.perf_counter() - self.progress.seconds
        self._read(train, dev)
        self.model.half().float()
        self._measure(dev)
        return self.progress

    def _read(self, train: Corpus, dev: Corpus | None) -> None:
        batches = self._batches(train)
        with tqdm(total=100, desc=say("pretraining"), bar_format=_BAR) as bar:
            while self.share < 1:
                loss, norm = self._step(next(batches))
                bar.n = round(100 * self.share)
                bar.set_postfix_str(say("{tokens:,} tokens, loss {loss:.2f}", tokens=self.progress.tokens, loss=loss))
                self._look_around(loss, norm, dev)
        self._save()

    @property
    def share(self) -> float:
        """How much is done, by time, steps or passes, whichever is furthest; at most 1."""
        schedule, step = self.schedule, self.progress.step
        steps = min(schedule.max_steps or math.inf, schedule.num_train_epochs * self.steps_per_pass)
        return min(1.0, max(step / steps, (time.perf_counter() - self._since) / schedule.seconds))

    def _batches(self, train: Corpus) -> Iterator[Tensor]:
        """Blocks of each step from the current one on, without end; each pass joins and cuts the texts anew."""
        rows, length = self.schedule.per_device_train_batch_size, self.schedule.block_size
        while True:
            passes, first = divmod(self.progress.step, self.steps_per_pass)
            for blocks in train.batches(length, rows, (self.schedule.seed, passes), first):
                yield _tensor(blocks, self.accelerator.device)

    def _step(self, batch: Tensor) -> tuple[float, float]:
        """One update; returns the mean loss in nats per token and the gradient's length before it was cut."""
        self.model.train()
        loss = self.loss(batch)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.schedule.max_grad_norm)
        nats, length = loss.item(), float(norm)
        refuse_no_number(self.progress.step + 1, nats, length)
        rate = self.schedule.rate(self.progress.step, self.share)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.progress.step += 1
        self.progress.tokens += batch[:, 1:].numel()
        return nats, length

    def _look_around(self, loss: float, norm: float, dev: Corpus | None) -> None:
        step, schedule = self.progress.step, self.schedule
        if step % schedule.logging_steps == 0:
            self._log("train", loss=loss, grad_norm=norm, learning_rate=schedule.rate(step, self.share))
        if step % schedule.eval_steps == 0:
            self._measure(dev)
        if step % schedule.save_steps == 0:
            self._save()

    def _measure(self, dev: Corpus | None) -> None:
        if dev is None:
            return
        rows, length = self.schedule.per_device_train_batch_size, self.schedule.block_size
        bits = total_bits(self.model, self.loss, dev, rows, length) / dev.characters
        progress = self.progress
        progress.bits_per_character = bits
        if progress.best_bits is None or bits < progress.best_bits:
            progress.best_bits, progress.best_step = bits, progress.step
        self._log("dev", bits_per_character=bits)

    def _save(self) -> None:
        self.progress.seconds = time.perf_counter() - self._since
        folder = self.folder / "checkpoints"
        save_checkpoint(self.accelerator, folder, self.progress.step, self.schedule.save_total_limit)

    def _log(self, event: str, **fields: float) -> None:
        seconds = round(time.perf_counter() - self._since, 1)
        progress = {"step": self.progress.step, "tokens": self.progress.tokens, "seconds": seconds}
        Run(self.folder).note(event, **progress, **fields)


def steps_per_pass(train: Corpus, schedule: Schedule) -> int:
    """How many steps it takes to read all of it. Raises SettingsError when it is too short for one."""
    rows, length = schedule.per_device_train_batch_size, schedule.block_size
    if steps := train.steps(length, rows):
        return steps
    raise SettingsError(
        "The texts have {tokens:,} tokens, and one step takes {needed:,}.",
        "Give more texts, or a smaller --per-device-train-batch-size or --block-size.",
        tokens=len(train.ids),
        needed=rows * length + 1,
    )


def optimizers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices between embedding and head and AdamW for the rest.

    Muon (Jordan et al., 2024) makes every update of a matrix orthogonal; its rate is brought to AdamW's scale as Liu
    et al. (2025, arXiv:2502.16982) do, so that one rate and one weight decay serve both.
    """
    hidden = [weight for name, weight in model.named_parameters() if _hidden(name, weight)]
    rest = [weight for name, weight in model.named_parameters() if not _hidden(name, weight)]
    rate, decay = schedule.learning_rate, schedule.weight_decay
    adamw = torch.optim.AdamW([{"params": rest, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.95))
    if schedule.optim == "adamw_torch":
        adamw.add_param_group({"params": hidden, "weight_decay": decay})
        return [adamw]
    return [adamw, torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")]


def _hidden(name: str, weight: Tensor) -> bool:
    return weight.ndim == 2 and not re.search(r"embed|lm_head", name)


def next_token_loss(model: nn.Module, machine: Machine, *, compiled: bool) -> Loss:
    """A function from blocks, (rows, length + 1), to the mean −ln p of what follows each id; padding is left out."""

    def loss(blocks: Tensor) -> Tensor:
        with torch.autocast(machine.device, torch.bfloat16, enabled=machine.precision == "bf16"):
            logits = model(input_ids=blocks[:, :-1].clamp(min=0), use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1).float(), blocks[:, 1:].flatten(), ignore_index=PADDING)

    return torch.compile(loss) if compiled else loss


@torch.no_grad()
def total_bits(model: nn.Module, loss: Loss, corpus: Corpus, rows: int, length: int) -> float:
    """−log2 p of every id of a corpus but the first, each read with what its block holds before it."""
    model.eval()
    device = next(model.parameters()).device
    batches = (_tensor(blocks, device) for blocks in corpus.in_order(length, rows))
    nats = sum(loss(batch).item() * int(torch.count_nonzero(batch[:, 1:] != PADDING)) for batch in batches)
    return nats / math.log(2)


def _tensor(blocks: Ids, device: torch.device) -> Tensor:
    return torch.from_numpy(blocks.astype(np.int64)).to(device)
