"""A training that goes on after an interruption as if there had been none: progress, clock, checkpoints and log.

A checkpoint holds trained weights, optimizers, random states and progress, in accelerate's layout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from daedap.errors import RunError, SettingsError, first_line
from daedap.files import new_folder, new_path, remove_folder, write_text
from daedap.model.device import Machine, is_main
from daedap.runs import Json

_WEIGHTS = "trained.safetensors"


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Trained weights by name, on the CPU and contiguous as safetensors requires."""
    trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    return {name: weight.detach().cpu().contiguous() for name, weight in trained}


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write the trained weights into a folder, replacing earlier ones atomically."""
    with new_path(folder / _WEIGHTS) as temporary:
        save_file(trained_weights(model), temporary)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load saved weights into the model. Raises RunError when the file is truncated or damaged."""
    try:
        keys = model.load_state_dict(load_file(folder / _WEIGHTS), strict=False)
    except Exception as error:  # safetensors and torch have their own errors
        raise _unreadable(folder, error) from error
    assert not keys.unexpected_keys, f"{folder} holds weights of another model"


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


@dataclass
class Progress:
    """The position of a training, saved in every checkpoint by accelerate."""

    step: int = 0
    seconds: float = 0.0
    """Time of training until the last checkpoint, interrupted processes included."""

    def state_dict(self) -> Json:
        """The state as plain values."""
        return asdict(self)

    def load_state_dict(self, state: Json) -> None:
        """Restore a saved state."""
        self.__dict__.update(state)


class TrainingLoop:
    """Clock, checkpoints, log and weight updates of a training that can be resumed from any checkpoint."""

    machine: Machine
    folder: Path
    """The run's folder: `log.jsonl` and `checkpoints/` are written there."""
    progress: Progress
    accelerator: Accelerator
    clock: Callable[[], float]
    """Seconds since some moment."""
    _clock_at_checkpoint: float
    """The clock at the last checkpoint, or at the start; `progress.seconds` is the time before."""
    resumable: bool = True
    """Write checkpoints."""

    def _new_accelerator(self, model: nn.Module, **options: Any) -> Accelerator:
        """An accelerator whose checkpoints hold the model's trained weights, random states and the progress."""
        AcceleratorState._reset_state(reset_partial_state=True)  # a process may train twice with other options
        accelerator = Accelerator(cpu=self.machine.device == "cpu", **options)
        _keep_only_trained(accelerator, model)
        accelerator.register_for_checkpointing(self.progress)
        self._clock_at_checkpoint = self.clock()
        return accelerator

    def _resume(self) -> None:
        """Load the newest checkpoint, if any, and start the clock. Raises RunError when it can't be read."""
        for newest in checkpoints(self.folder / "checkpoints")[-1:]:
            try:
                self.accelerator.load_state(str(newest))
            except RunError:
                raise
            except Exception as error:  # pickles, random states and JSON have their own errors
                raise _unreadable(newest, error) from error
        if is_main():
            self._cut_log()
        self._clock_at_checkpoint = self.clock()

    def _cut_log(self) -> None:
        """Remove the log lines of later steps, and a last line that a full disk or a kill left incomplete."""
        log = self.folder / "log.jsonl"
        if log.exists():
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            complete = (line for line in lines if line.endswith("\n"))
            write_text(log, "".join(line for line in complete if json.loads(line).get("step", 0) <= self.progress.step))

    def _elapsed(self) -> float:
        """Seconds of training, those before an interruption included as far as its last checkpoint."""
        return self.progress.seconds + self.clock() - self._clock_at_checkpoint

    def _backward(self, loss: Tensor, parameters: Iterable[Tensor], max_norm: float) -> float:
        """Compute and clip the gradients. Returns their norm before clipping."""
        self.accelerator.backward(loss)
        return float(self.accelerator.clip_grad_norm_(parameters, max_norm))

    def _apply_gradients(self, optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.progress.step += 1

    def _save_checkpoint(self, keep: int) -> None:
        """Write `step-000200/` atomically, then delete all but the newest `keep` checkpoints."""
        now = self.clock()
        self.progress.seconds += now - self._clock_at_checkpoint
        self._clock_at_checkpoint = now
        if not (is_main() and self.resumable):
            return
        folder = self.folder / "checkpoints"
        path = folder / f"step-{self.progress.step:06d}"
        if not path.exists():  # the same step is the same state
            with new_folder(path) as temporary:
                self.accelerator.save_state(str(temporary))
        for old in checkpoints(folder)[:-keep]:
            remove_folder(old)


def _keep_only_trained(accelerator: Accelerator, model: nn.Module) -> None:
    """Make accelerate's `save_state` and `load_state` handle trained weights only: megabytes with LoRA, not gigabytes.

    Names are those of `model`: accelerate may have been given a part or a wrapper of it.
    """

    def save(_: list[nn.Module], weights: list[dict[str, Any]], folder: str) -> None:
        save_file(trained_weights(model), Path(folder) / _WEIGHTS)
        weights.clear()  # accelerate writes what is left in this list

    def load(models: list[nn.Module], folder: str) -> None:
        load_weights(model, Path(folder))
        models.clear()  # likewise

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def check_finite(step: int, *values: float) -> None:
    """Raise SettingsError when a loss or gradient norm is NaN or infinite."""
    if not all(map(math.isfinite, values)):
        raise SettingsError(
            "Loss or gradient norm became NaN or infinite at step {step}.",
            "Lower --learning-rate, or give --precision fp32.",
            step=step,
        )


def _unreadable(folder: Path, error: Exception) -> RunError:
    return RunError(
        "{folder}: the checkpoint can't be read ({error}).",
        "Delete this folder and resume again: the checkpoint before it is used.",
        folder=folder,
        error=first_line(error),
    )
