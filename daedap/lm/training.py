"""What every training shares, tuning and pretraining alike."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from daedap.errors import SettingsError
from daedap.lm.checkpoint import keep_only_trained
from daedap.lm.device import Machine
from daedap.runs import Json


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
