"""The training loop of fine-tuning.

A step is the same whether training was interrupted before it or not: batches depend on seed and epoch, and a checkpoint
holds the rest (checkpoint.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import torch
from accelerate.utils import set_seed
from peft import PeftModel
from torch import nn
from torch.optim.swa_utils import get_swa_multi_avg_fn
from tqdm import tqdm
from transformers import PreTrainedModel

from daedap.config import TrainOptions
from daedap.i18n import translate
from daedap.model.device import Machine, all_reduce_sum, barrier, broadcast, is_main, shard, world_size
from daedap.model.loss import AnswerLoss, TokenizedRows, shortlist
from daedap.model.prompt import Example, Prompt, sorted_batches
from daedap.runs import Run
from daedap.training.activation_cache import CachedRows, FrozenBlocks
from daedap.training.checkpoint import Progress, TrainingLoop, check_finite, load_weights, save_weights


class WeightAverage:
    """Running mean of the trained weights over epochs (SWA: Izmailov et al., 2018, arXiv:1803.05407).

    Late epochs overfit, each differently; their mean does so less. Saved in every checkpoint by accelerate.
    """

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._mean = [torch.zeros_like(weight, requires_grad=False) for weight in self._weights]
        self._update = get_swa_multi_avg_fn()

    def add(self) -> None:
        """Add the current weights to the mean."""
        self._update(self._mean, self._weights, self.count)
        self.count += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the mean; a second time restores both exactly."""
        for weight, mean in zip(self._weights, self._mean, strict=True):
            own = weight.clone()
            weight.copy_(mean)
            mean.copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values and tensors."""
        return {"count": self.count, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.count = int(state["count"])
        for mean, saved in zip(self._mean, state["mean"], strict=True):
            mean.copy_(saved)


Rows = TokenizedRows | CachedRows


@dataclass(frozen=True)
class Task:
    """A model, its losses and its data."""

    model: PreTrainedModel | PeftModel
    loss: AnswerLoss
    """The training loss; with a shortlist, over part of the vocabulary."""
    dev_loss: AnswerLoss
    """The loss of dev rows, over the full vocabulary."""
    train: Rows
    dev: Rows


def build_task(
    model: PreTrainedModel | PeftModel,
    prompt: Prompt,
    splits: Sequence[Sequence[Example]],
    frozen: FrozenBlocks,
    *,
    shortlisted: bool,
) -> Task:
    """Training on the first of two splits, evaluated on the second, with cached activations where possible."""
    tokens = shortlist(prompt, splits[0]) if shortlisted else None
    train, dev = frozen.rows(splits)
    first_block = frozen.blocks if isinstance(train, CachedRows) else 0
    loss = AnswerLoss(model, first_block=first_block, shortlist=tokens)
    return Task(model, loss, AnswerLoss(model, first_block=first_block), train, dev)


_BUCKET = 32
"""Batches per bucket: large enough that a batch holds nearly equal lengths, small enough to stay random."""
_DEV_BATCH_SIZE = 16
"""Small, because dev logits cover the whole vocabulary."""
_MIN_AVERAGED = 2
"""Epochs from which on an average differs from a single epoch."""


@dataclass
class TrainerState(Progress):
    """The position of a fine-tuning."""

    epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    best_is_average: bool = False
    stale_epochs: int = 0
    done: bool = False


class TrainResult(NamedTuple):
    """The outcome of a training."""

    epochs: int
    steps: int
    best_epoch: int
    best_dev_loss: float | None
    averaged: bool
    """Whether the kept weights are the mean of several epochs, up to the best one."""
    seconds: float
    """Time of training, interrupted processes included as far as their last checkpoints."""


@dataclass
class Trainer(TrainingLoop):
    """Fine-tuning from its first step or its newest checkpoint."""

    task: Task
    train_options: TrainOptions
    machine: Machine
    folder: Path
    time_limit: float = math.inf
    """Seconds in which training ends; the learning-rate schedule is fitted to it."""
    progress: TrainerState = field(default_factory=TrainerState)
    fraction_done: float = 0.0
    """By steps or by time, whichever is further; at most 1."""
    resumable: bool = True
    on_epoch_end: Callable[[int], None] | None = None
    """Called with the number of each finished epoch; an exception ends the training."""
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self.accelerator = self._new_accelerator(
            self.task.model,
            mixed_precision="bf16" if self.machine.precision == "bf16" else "no",
            log_with=None if self.train_options.report_to == "none" else self.train_options.report_to,
            project_dir=self.folder,
        )
        self.average = WeightAverage(self.task.model) if self.train_options.swa_epoch_start else None
        if self.average:
            self.accelerator.register_for_checkpointing(self.average)

    def run(self) -> TrainResult:
        """Train to the end and leave the model with the weights to keep."""
        set_seed(self.train_options.seed)
        self._prepare(len(self._batches(0)) * self.train_options.epochs)
        self._resume()
        label, first = translate("training"), self.progress.step
        with tqdm(total=self.total_steps, initial=first, unit="step", desc=label, disable=not is_main()) as bar:
            while not self.progress.done:
                self._train_epoch(bar)
                self._end_epoch()
        barrier()  # process 0 may still be writing the best weights
        averaged = self._load_kept_weights()
        self.accelerator.end_training()
        end, best = self.progress, self.progress.best_loss if self.task.dev.examples else None
        return TrainResult(end.epoch, end.step, end.best_epoch, best, averaged, round(end.seconds, 1))

    def _load_kept_weights(self) -> bool:
        """Load the best weights, else the average, else keep the last ones. Returns whether they are an average."""
        if self.task.dev.examples and self.train_options.load_best_model_at_end:
            load_weights(self.task.model, self.folder / "checkpoints" / "best")
            return self.progress.best_is_average
        if not self.average or self.average.count < _MIN_AVERAGED:
            return False
        self.average.swap()
        return True

    def _prepare(self, total_steps: int) -> None:
        self.total_steps = total_steps
        weights = [weight for weight in self.task.model.parameters() if weight.requires_grad]
        matrices = [weight for weight in weights if weight.ndim > 1]
        vectors = [weight for weight in weights if weight.ndim <= 1]  # norms and biases, as in transformers' Trainer
        groups = [
            {"params": matrices, "weight_decay": self.train_options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.train_options.learning_rate or 0.0, fused=True)
        if self.machine.compiled:
            self.task.loss.compile(dynamic=True)
        self.loss, self.optimizer = self.accelerator.prepare(self.task.loss, optimizer)
        if self.train_options.report_to != "none":
            options = {name: value for name, value in asdict(self.train_options).items() if value is not None}
            scalars = {k: v if isinstance(v, int | float | str) else str(v) for k, v in options.items()}
            self.accelerator.init_trackers("daedap", scalars)  # trackers take scalars only

    def _update_fraction_done(self) -> bool:
        """Update `fraction_done`. Returns whether anything is left to do."""
        self.fraction_done = self.progress.step / self.total_steps
        if math.isfinite(self.time_limit):
            by_clock = broadcast(self._elapsed) / self.time_limit
            self.fraction_done = min(1.0, max(self.fraction_done, by_clock))
        return self.fraction_done < 1

    def _batches(self, epoch: int) -> list[list[int]]:
        lengths = [len(example.ids) for example in self.task.train.examples]
        size = self.train_options.per_device_train_batch_size * self.machine.processes
        return epoch_batches(lengths, size, seed=self.train_options.seed, epoch=epoch)

    def _train_epoch(self, bar: tqdm[NoReturn]) -> None:
        """The rest of the current epoch."""
        batches = self._batches(self.progress.epoch)
        first = self.progress.step - self.progress.epoch * len(batches)
        self.loss.train()
        since, nats, labels, trained = self.clock(), 0.0, 0, 0  # sums over the steps since the last line of the log
        for rows in batches[first:]:
            if not self._update_fraction_done():
                break
            step_nats, step_labels, norm = self._step(rows)
            nats, labels, trained = nats + step_nats, labels + step_labels, trained + len(rows)
            bar.update()
            if self.progress.step % self.train_options.logging_steps == 0 or self.progress.step == self.total_steps:
                bar.set_postfix(loss=f"{nats / labels:.3f}", refresh=False)
                now, rate = self.clock(), self.optimizer.param_groups[0]["lr"]
                speed = round(trained / (now - since), 2)
                self._log("train", loss=nats / labels, grad_norm=norm, samples_per_second=speed, learning_rate=rate)
                since, nats, labels, trained = now, 0.0, 0, 0
            if self.progress.step % self.train_options.save_steps == 0 and rows is not batches[-1]:
                self._save_checkpoint(self.train_options.save_total_limit)

    def _step(self, rows: list[int]) -> tuple[float, int, float]:
        """One update. Returns the summed loss in nats, the number of labels and the gradient norm before clipping."""
        mine = shard(rows)
        labels = sum(self.task.train.examples[row].n_labels for row in rows)
        loss = self.loss(self.task.train.batch(mine or rows[:1])).sum() * bool(mine)
        mean = loss * world_size() / labels  # gradients are averaged over processes
        norm = self._backward(mean, self.loss.parameters(), self.train_options.max_grad_norm)
        nats = all_reduce_sum(float(loss.detach()))
        check_finite(self.progress.step + 1, nats, norm)
        rate = self.train_options.rate(self.progress.step, self.total_steps, self.fraction_done)
        self._apply_gradients([self.optimizer], rate)
        return nats, labels, norm

    def _end_epoch(self) -> None:
        progress, train_options = self.progress, self.train_options
        progress.epoch += 1
        if self.average and progress.epoch >= train_options.swa_epoch_start:
            self.average.add()
        if self.task.dev.examples:
            self._evaluate_dev()
        if self.on_epoch_end:
            self.on_epoch_end(progress.epoch)
        patience = train_options.early_stopping_patience
        stopped = bool(patience) and progress.stale_epochs >= patience
        progress.done = stopped or progress.epoch >= train_options.epochs or not self._update_fraction_done()
        self._save_checkpoint(train_options.save_total_limit)

    @torch.inference_mode()
    def _dev_loss(self, dev: Rows) -> float:
        """Mean −ln p of all labels, in nats."""
        self.task.dev_loss.eval()
        batches = shard(sorted_batches([len(example.ids) for example in dev.examples], _DEV_BATCH_SIZE))
        with self.accelerator.autocast():
            sums = [float(self.task.dev_loss(dev.batch(rows)).sum()) for rows in batches]
        return all_reduce_sum(sum(sums)) / sum(example.n_labels for example in dev.examples)

    def _evaluate_dev(self) -> None:
        """Save the weights if they, or their average so far, have the lowest dev loss."""
        better = self._keep_if_best("dev")
        if self.average and self.average.count >= _MIN_AVERAGED:
            self.average.swap()
            try:
                better = self._keep_if_best("average") or better
            finally:
                self.average.swap()
        self.progress.stale_epochs = 0 if better else self.progress.stale_epochs + 1

    def _keep_if_best(self, event: Literal["dev", "average"]) -> bool:
        progress, loss = self.progress, self._dev_loss(self.task.dev)
        check_finite(progress.step, loss)
        self._log(event, loss=loss)
        if not loss < progress.best_loss:
            return False
        progress.best_loss, progress.best_epoch, progress.best_is_average = loss, progress.epoch, event == "average"
        if is_main():
            save_weights(self.task.model, self.folder / "checkpoints" / "best")
        return True

    def _log(self, event: str, **fields: float) -> None:
        if is_main():
            Run(self.folder).note(event, step=self.progress.step, epoch=self.progress.epoch, **fields)
        self.accelerator.log({f"{event}/{name}": value for name, value in fields.items()}, step=self.progress.step)


def epoch_batches(lengths: Sequence[int], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of each batch of one epoch, in random order; every row occurs once.

    Rows are shuffled, sorted by length within buckets of 32 batches, and the batches are shuffled again. Depends on
    seed and epoch only.
    """
    random = np.random.default_rng((seed, epoch))
    shuffled = random.permutation(len(lengths))
    buckets = [shuffled[start : start + size * _BUCKET] for start in range(0, len(lengths), size * _BUCKET)]
    ordered = [bucket[np.argsort(np.asarray(lengths)[bucket], kind="stable")] for bucket in buckets]
    batches = [bucket[start : start + size].tolist() for bucket in ordered for start in range(0, len(bucket), size)]
    return [batches[index] for index in random.permutation(len(batches))]
