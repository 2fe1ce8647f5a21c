"""What a search varies: a few options around their defaults. Whatever the user told stays as told."""

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
Found = Mapping[str, Value]
"""Name of an option → its value."""
AUGMENTED = ("none", "typo", "polite", "typo,spacing")
_FIRST = 1e-3


@dataclass(frozen=True)
class Axis:
    """An option and the values it may take: one of the choices, or anything from low to high."""

    name: str
    default: Value
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    def ask(self, trial: Trial) -> Value:
        """The value that a trial takes."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.default, int):
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class SearchSpace:
    """All axes, and the options that the search starts from."""

    axes: tuple[Axis, ...]
    model_options: ModelOptions
    train_options: TrainOptions

    @property
    def defaults(self) -> dict[str, Value]:
        """Where the search starts."""
        return {axis.name: axis.default for axis in self.axes}

    def ask(self, trial: Trial) -> dict[str, Value]:
        """The values that a trial takes."""
        return {axis.name: axis.ask(trial) for axis in self.axes}

    def settings(self, found: Found) -> tuple[ModelOptions, TrainOptions]:
        """The options with these values in their places; LoRA's scale keeps its relation to the rank."""
        told: dict[str, Any] = dict(found)
        if "augment" in told:
            told["augment"] = () if told["augment"] == "none" else tuple(told["augment"].split(","))
        if "lora_r" in told:
            told["lora_alpha"] = max(
                1, round(told["lora_r"] * self.model_options.lora_alpha / self.model_options.lora_r)
            )
        mine = {name: told.pop(name) for name in asdict(self.model_options) if name in told}
        return replace(self.model_options, **mine), replace(self.train_options, **told)

    def to_json(self) -> list[dict[str, Any]]:
        """For the study, which must go on with the same space."""
        return [{**asdict(axis), "choices": list(axis.choices)} for axis in self.axes]


def space_around(
    model_options: ModelOptions, train_options: TrainOptions, plan: Plan, method: str, rate: float, *, epochs: bool
) -> SearchSpace:
    """The space around what was told; `epochs`: whether they are searched, too."""
    untold = [
        Axis("learning_rate", rate, rate / 4, min(4 * rate, 0.5), log=True)
        if train_options.learning_rate is None
        else None,
        _axis(train_options, "weight_decay", _FIRST, 0.3, log=True),
        _axis(model_options, "dropout", 0.0, 0.3, step=0.05),
        _epochs(train_options) if epochs else None,
        _layers(plan, method) if model_options.layers is None and plan.blocks > 1 else None,
        _axis(model_options, "lora_r", 4, 64, log=True) if method == "lora" else None,
        None if train_options.augment else Axis("augment", AUGMENTED[0], choices=AUGMENTED),
    ]
    return SearchSpace(tuple(axis for axis in untold if axis), model_options, train_options)


def option(name: str, value: Value) -> str:
    """As it is typed."""
    told = f"{value:.3g}" if isinstance(value, float) else str(value)
    return f"--{name.replace('_', '-')} {told}"


def options(found: Found) -> str:
    """All of them, as they are typed."""
    return " ".join(option(name, value) for name, value in found.items() if (name, value) != ("augment", "none"))


def _axis(
    told: ModelOptions | TrainOptions,
    name: str,
    low: float,
    high: float,
    *,
    step: float | None = None,
    log: bool = False,
) -> Axis | None:
    """None where the user gave another value than the default."""
    value = getattr(told, name)
    return Axis(name, value, low, high, step, log) if value == getattr(type(told)(), name) else None


def _epochs(train_options: TrainOptions) -> Axis:
    return Axis("num_train_epochs", train_options.epochs, 1, max(3, math.ceil(1.6 * train_options.epochs)))


def _layers(plan: Plan, method: str) -> Axis:
    """With LoRA up to half of them: what lies below is run only once, which is where its speed comes from."""
    low, high = (1, math.ceil(plan.blocks / 2)) if method == "lora" else (math.ceil(plan.blocks / 3), plan.blocks)
    return Axis("layers", plan.layers, low, max(high, plan.layers))
