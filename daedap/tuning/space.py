"""The search space: a few options around their defaults, without those that the user set to another value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from daedap.config import ModelOptions, TrainOptions

if TYPE_CHECKING:
    from optuna.trial import Trial

    from daedap.training.planner import Plan

Value = int | float | str
Values = Mapping[str, Value]
"""Name of an option → its value."""
AUGMENTATIONS = ("none", "typo", "polite", "typo,spacing")
_MIN_WEIGHT_DECAY = 1e-3


@dataclass(frozen=True)
class Axis:
    """An option and its range: `choices`, or numbers from `low` to `high`."""

    name: str
    default: Value
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    def suggest(self, trial: Trial) -> Value:
        """The value that the sampler proposes for a trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.default, int):
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class SearchSpace:
    """The axes, and the options for everything else."""

    axes: tuple[Axis, ...]
    model_options: ModelOptions
    train_options: TrainOptions

    @property
    def defaults(self) -> dict[str, Value]:
        """The default of every axis: the first trial."""
        return {axis.name: axis.default for axis in self.axes}

    def suggest(self, trial: Trial) -> dict[str, Value]:
        """The values that the sampler proposes for a trial."""
        return {axis.name: axis.suggest(trial) for axis in self.axes}

    def to_options(self, values: Values) -> tuple[ModelOptions, TrainOptions]:
        """The options with these values; `lora_alpha` keeps its ratio to `lora_r`."""
        changed: dict[str, Any] = dict(values)
        if "augment" in changed:
            changed["augment"] = () if changed["augment"] == "none" else tuple(changed["augment"].split(","))
        if "lora_r" in changed:
            ratio = self.model_options.lora_alpha / self.model_options.lora_r
            changed["lora_alpha"] = max(1, round(changed["lora_r"] * ratio))
        of_model = {name: changed.pop(name) for name in asdict(self.model_options) if name in changed}
        return replace(self.model_options, **of_model), replace(self.train_options, **changed)


def space_around(
    model_options: ModelOptions, train_options: TrainOptions, plan: Plan, method: str, rate: float, *, epochs: bool
) -> SearchSpace:
    """The space around the given options; `rate` is the default learning rate, `epochs`: search their number too."""
    axes = [
        Axis("learning_rate", rate, rate / 4, min(4 * rate, 0.5), log=True)
        if train_options.learning_rate is None
        else None,
        _axis(train_options, "weight_decay", _MIN_WEIGHT_DECAY, 0.3, log=True),
        _axis(model_options, "dropout", 0.0, 0.3, step=0.05),
        Axis("num_train_epochs", train_options.epochs, 1, max(3, math.ceil(1.6 * train_options.epochs)))
        if epochs
        else None,
        _layers(plan, method) if model_options.layers is None and plan.blocks > 1 else None,
        _axis(model_options, "lora_r", 4, 64, log=True) if method == "lora" else None,
        None if train_options.augment else Axis("augment", AUGMENTATIONS[0], choices=AUGMENTATIONS),
    ]
    return SearchSpace(tuple(axis for axis in axes if axis), model_options, train_options)


def as_flag(name: str, value: Value) -> str:
    """An option as it is typed on the command line."""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return f"--{name.replace('_', '-')} {text}"


def as_flags(values: Values) -> str:
    """All options as they are typed, without `--augment none`."""
    return " ".join(as_flag(name, value) for name, value in values.items() if (name, value) != ("augment", "none"))


def _axis(
    options: ModelOptions | TrainOptions,
    name: str,
    low: float,
    high: float,
    *,
    step: float | None = None,
    log: bool = False,
) -> Axis | None:
    """None if the option does not have its default."""
    value = getattr(options, name)
    return Axis(name, value, low, high, step, log) if value == getattr(type(options)(), name) else None


def _layers(plan: Plan, method: str) -> Axis:
    """With LoRA at most half of the layers: the frozen ones below run only once, which is what makes it fast."""
    low, high = (1, math.ceil(plan.blocks / 2)) if method == "lora" else (math.ceil(plan.blocks / 3), plan.blocks)
    return Axis("layers", plan.layers, low, max(high, plan.layers))
