"""Which examples go into which batch: short ones with short ones, in an order that only the seed decides.

What every training shares, tuning and pretraining alike.

Weight averaging: the mean of what a training has learned at several moments (SWA: Izmailov et al., 2018).

Late epochs learn the training rows by heart, each in its own direction; their mean does so less.

Training: every step the same whether it was interrupted or not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn
from torch.optim.swa_utils import get_swa_multi_avg_fn
from tqdm import tqdm

from daedap.config import TrainOptions
from daedap.errors import SettingsError
from daedap.i18n import translate
from daedap.model.batching import epoch_batches, sorted_batches
from daedap.model.device import Machine
from daedap.model.distributed import all_reduce_sum, barrier, broadcast, is_main, shard, world_size
from daedap.runs import Json, Run
from daedap.training.checkpoint import cut_log, keep_only_trained, load_weights, resume, save_checkpoint, save_weights
from daedap.training.task import Rows, Task


@dataclass
class Progress:
    """How far a training is. accelerate keeps it in every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    """Of all sittings, as far as their checkpoints."""

    def state_dict(self) -> Json:
        """The state as plain values."""
        return asdict(self)

    def load_state_dict(self, state: Json) -> None:
        """Put a saved state back."""
        self.__dict__.update(state)


def new_accelerator(machine: Machine, progress: Progress, model: nn.Module, **options: Any) -> Accelerator:
    """An accelerator whose checkpoints hold the trained weights of the model, the random states and the progress."""
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of this process may have had other options
    accelerator = Accelerator(cpu=machine.device == "cpu", **options)
    keep_only_trained(accelerator, model)
    accelerator.register_for_checkpointing(progress)
    return accelerator


def refuse_no_number(step: int, *values: float) -> None:
    """Raise SettingsError when a loss or a gradient is no longer a number, before it gets into the weights."""
    if not all(map(math.isfinite, values)):
        raise SettingsError(
            "The loss is no longer a number at step {step}.",
            "Lower --learning-rate, or give --precision fp32.",
            step=step,
        )


class WeightAverage:
    """The mean of a model's trained weights, frozen ones left out. accelerate keeps it in every checkpoint."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._mean = [torch.zeros_like(weight, requires_grad=False) for weight in self._weights]
        self._update = get_swa_multi_avg_fn()

    def add(self) -> None:
        """Take in the weights as they are now."""
        self._update(self._mean, self._weights, self.count)
        self.count += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it, bit for bit."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Put the averaged weights into the model and keep its own in their place."""
        for weight, mean in zip(self._weights, self._mean, strict=True):
            own = weight.clone()
            weight.copy_(mean)
            mean.copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values and tensors."""
        return {"count": self.count, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        self.count = int(state["count"])
        for mean, saved in zip(self._mean, state["mean"], strict=True):
            mean.copy_(saved)


_WATCHED = 16
"""Dev rows at a time: their logits are those of the whole vocabulary."""
_SEVERAL = 2
"""Epochs from which on their average is something else than one of them."""


@dataclass
class TrainerState(Progress):
    """How far the fitting is."""

    epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    best_is_average: bool = False
    stale_epochs: int = 0
    done: bool = False


class TrainResult(NamedTuple):
    """What training came to. `seconds` counts all sittings, as far as their checkpoints."""

    epochs: int
    steps: int
    best_epoch: int
    best_dev_loss: float | None
    averaged: bool
    """The weights that are kept are the mean of several epochs', up to the best one."""
    seconds: float


@dataclass
class Trainer:
    """One training, from its first step or from its newest checkpoint to its end."""

    task: Task
    train_options: TrainOptions
    machine: Machine
    folder: Path
    seconds: float = math.inf
    """End after so long at the latest, the learning rate falling accordingly."""
    progress: TrainerState = field(default_factory=TrainerState)
    share: float = 0.0
    """How much of the training is done."""
    resumable: bool = True
    """Keep checkpoints to go on from."""
    watch: Callable[[int], None] | None = None
    """Told each epoch as it ends; whatever it raises ends the training."""
    clock: Callable[[], float] = time.perf_counter
    """Seconds since some moment, by which the training ends in time."""

    def __post_init__(self) -> None:
        self.accelerator = new_accelerator(
            self.machine,
            self.progress,
            self.task.model,
            mixed_precision="bf16" if self.machine.precision == "bf16" else "no",
            log_with=None if self.train_options.report_to == "none" else self.train_options.report_to,
            project_dir=self.folder,
        )
        self.average = WeightAverage(self.task.model) if self.train_options.swa_epoch_start else None
        if self.average:
            self.accelerator.register_for_checkpointing(self.average)

    def run(self) -> TrainResult:
        """Train to the end. The model is left with the weights to keep; checkpoints and log lie in the run's folder."""
        set_seed(self.train_options.seed)
        self._prepare(len(self._batches(0)) * self.train_options.epochs)
        resume(self.accelerator, self.folder)
        if is_main():
            cut_log(self.folder, self.progress.step)
        self._since = self.clock()
        with _bar(self.progress.step, self.total_steps) as bar:
            while not self.progress.done:
                self._epoch(bar)
                self._after_epoch()
        barrier()  # until the weights to keep are there
        averaged = self._keep()
        self.accelerator.end_training()
        progress = self.progress
        best = progress.best_loss if self.task.dev.examples else None
        return TrainResult(
            progress.epoch, progress.step, progress.best_epoch, best, averaged, round(progress.seconds, 1)
        )

    def _keep(self) -> bool:
        """Leave the model with the weights to keep; whether they are an average."""
        if self.task.dev.examples and self.train_options.load_best_model_at_end:
            load_weights(self.task.model, self.folder / "checkpoints" / "best")
            return self.progress.best_is_average
        if not self.average or self.average.count < _SEVERAL:
            return False
        self.average.swap()
        return True

    def _prepare(self, total_steps: int) -> None:
        self.total_steps = total_steps
        optimizer = torch.optim.AdamW(
            _groups(self.task.model, self.train_options.weight_decay),
            lr=self.train_options.learning_rate or 0.0,
            fused=True,
        )
        if self.machine.compiled:
            self.task.loss.compile(dynamic=True)
        self.loss, self.optimizer = self.accelerator.prepare(self.task.loss, optimizer)
        if self.train_options.report_to != "none":
            told = {name: value for name, value in asdict(self.train_options).items() if value is not None}
            plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in told.items()}  # as trackers want
            self.accelerator.init_trackers("daedap", plain)

    def _update_fraction(self) -> bool:
        """Find `share`: how much is done, by steps or by the clock, whichever is further. False when all is."""
        self.share = self.progress.step / self.total_steps
        if math.isfinite(self.seconds):
            by_clock = broadcast(self._elapsed) / self.seconds
            self.share = min(1.0, max(self.share, by_clock))
        return self.share < 1

    def _elapsed(self) -> float:
        return self.progress.seconds + self.clock() - self._since

    def _rate(self) -> float:
        return self.train_options.rate(self.progress.step, self.total_steps, self.share)

    def _batches(self, epoch: int) -> list[list[int]]:
        lengths = [len(example.ids) for example in self.task.train.examples]
        size = self.train_options.per_device_train_batch_size * self.machine.processes
        return epoch_batches(lengths, size, seed=self.train_options.seed, epoch=epoch)

    def _epoch(self, bar: tqdm[NoReturn]) -> None:
        """The rest of the current epoch."""
        batches = self._batches(self.progress.epoch)
        first = self.progress.step - self.progress.epoch * len(batches)
        self.loss.train()
        window = _Window()
        for rows in batches[first:]:
            if not self._update_fraction():
                break
            window.add(*self._step(rows), rows=len(rows))
            self.progress.step += 1
            bar.update()
            if self.progress.step % self.train_options.logging_steps == 0 or self.progress.step == self.total_steps:
                bar.set_postfix(loss=f"{window.loss:.3f}", refresh=False)
                self._log("train", **window.summary(), learning_rate=self.optimizer.param_groups[0]["lr"])
                window = _Window()
            if self.progress.step % self.train_options.save_steps == 0 and rows is not batches[-1]:
                self._save()

    def _step(self, rows: list[int]) -> tuple[float, int, float]:
        """One update. Returns the summed loss, the number of labels and the gradient's length before it was cut."""
        mine = shard(rows)
        labels = sum(self.task.train.examples[row].n_labels for row in rows)
        loss = self.loss(self.task.train.batch(mine or rows[:1])).sum() * bool(mine)
        self.accelerator.backward(loss * world_size() / labels)  # of several processes, the mean gradient is taken
        norm = self.accelerator.clip_grad_norm_(self.loss.parameters(), self.train_options.max_grad_norm)
        summed = all_reduce_sum(float(loss.detach()))
        refuse_no_number(self.progress.step + 1, summed, float(norm))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return summed, labels, float(norm)

    def _after_epoch(self) -> None:
        progress, train_options = self.progress, self.train_options
        progress.epoch += 1
        if self.average and progress.epoch >= train_options.swa_epoch_start:
            self.average.add()
        if self.task.dev.examples:
            self._judge()
        if self.watch:
            self.watch(progress.epoch)
        patience = train_options.early_stopping_patience
        stopped = bool(patience) and progress.stale_epochs >= patience
        progress.done = stopped or progress.epoch >= train_options.epochs or not self._update_fraction()
        self._save()

    @torch.inference_mode()
    def _dev_loss(self, dev: Rows) -> float:
        """Mean −ln p of all labels, in nats."""
        self.task.dev_loss.eval()
        batches = shard(sorted_batches([len(example.ids) for example in dev.examples], _WATCHED))
        with self.accelerator.autocast():
            sums = [float(self.task.dev_loss(dev.batch(rows)).sum()) for rows in batches]
        return all_reduce_sum(sum(sums)) / sum(example.n_labels for example in dev.examples)

    def _judge(self) -> None:
        """Keep the best weights so far: an epoch's own, or the average up to it."""
        better = self._keep_if_best("dev")
        if self.average and self.average.count >= _SEVERAL:
            with self.average.in_place():
                better = self._keep_if_best("average") or better
        self.progress.stale_epochs = 0 if better else self.progress.stale_epochs + 1

    def _keep_if_best(self, event: Literal["dev", "average"]) -> bool:
        progress, loss = self.progress, self._dev_loss(self.task.dev)
        self._log(event, loss=loss)
        if not loss < progress.best_loss:
            return False
        progress.best_loss, progress.best_epoch, progress.best_is_average = loss, progress.epoch, event == "average"
        if is_main():
            save_weights(self.task.model, self.folder / "checkpoints" / "best")
        return True

    def _save(self) -> None:
        now = self.clock()
        self.progress.seconds += now - self._since
        self._since = now
        if is_main() and self.resumable:
            save_checkpoint(
                self.accelerator, self.folder / "checkpoints", self.progress.step, self.train_options.save_total_limit
            )

    def _log(self, event: str, **fields: float) -> None:
        if is_main():
            Run(self.folder).note(event, step=self.progress.step, epoch=self.progress.epoch, **fields)
        self.accelerator.log({f"{event}/{name}": value for name, value in fields.items()}, step=self.progress.step)


def _bar(done: int, total: int) -> tqdm[NoReturn]:
    return tqdm(total=total, initial=done, unit="step", desc=translate("training"), disable=not is_main())


@dataclass
class _Window:
    """The steps since the last line of the log."""

    total: float = 0.0
    labels: int = 0
    rows: int = 0
    norm: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def add(self, total: float, labels: int, norm: float, *, rows: int) -> None:
        self.total, self.labels, self.rows, self.norm = self.total + total, self.labels + labels, self.rows + rows, norm

    @property
    def loss(self) -> float:
        """Mean over labels, nats."""
        return self.total / self.labels

    def summary(self) -> dict[str, float]:
        rate = self.rows / (time.perf_counter() - self.since)
        return {"loss": self.loss, "grad_norm": self.norm, "samples_per_second": round(rate, 2)}


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay pulls on matrices, not on norms and biases (as in Trainer)."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
