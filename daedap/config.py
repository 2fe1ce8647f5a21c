"""What a user may decide about training, named as in Hugging Face's TrainingArguments and PEFT's LoraConfig."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from daedap.data.augment import Augmentation
from daedap.errors import SettingsError

Method = Literal["lora", "full"]
Precision = Literal["auto", "fp32", "bf16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Tracker = Literal["none", "tensorboard", "wandb", "mlflow", "comet_ml", "trackio"]

MINI = "daedap-mini"
"""Name of the built-in base."""
FRESH = "fresh"
"""Name of a small model with random weights, and a tokenizer fitted on the training rows."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained, and on what."""

    base: str = MINI
    """Base model: daedap-mini is built in, fresh knows nothing; or a folder, a GGUF file, or a hub name."""
    method: Method | None = None
    """Train small LoRA matrices or all weights. [default: full below 50 million weights, else lora]"""
    layers: int | None = None
    """Train only the top so many layers; those below are run only once. [default: all; with LoRA, a third]"""
    shortlist: bool | None = None
    """Compare only tokens that answers have, and single characters, while training. [default: with LoRA]"""
    cache_gb: float = 4.0
    """Gigabytes that the outputs of frozen layers may take on disk, of all runs; 0: compute them at every step."""
    lora_r: int = 16
    """Rank of the LoRA matrices."""
    lora_alpha: int = 32
    """Scale of the LoRA matrices, in relation to the rank."""
    dropout: float = 0.0
    """Share of activations dropped in training: in LoRA's branch, or wherever a fully trained model has dropout."""
    max_length: int = 256
    """Longest conversation in tokens, end token included; pairs that do not fit are left out, never cut."""
    precision: Precision = "auto"
    """Number format of the matrix products; auto tries both and takes the faster."""
    device: DeviceName = "auto"
    """Where to compute; auto takes the best there is."""

    def __post_init__(self) -> None:
        at_least_one(self, "lora_r", "lora_alpha", "max_length")
        _share(self, "dropout")
        _not_negative(self, "cache_gb")
        if self.method == "lora" and self.base == FRESH:
            raise SettingsError(
                "--method lora needs a base to adapt; a fresh model has nothing to keep.",
                "Name one with --base, or leave --method out.",
            )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Augmentation):
    """How it is trained."""

    num_train_epochs: int | None = None
    """How often every row is learned. [default: 5; 1 for the built-in pairs]"""
    budget: timedelta | None = None
    """Time for everything, scores included, for instance 30m: what is learned is chosen to fit into it."""
    per_device_train_batch_size: int = 32
    """Rows per step."""
    learning_rate: float | None = None
    """Peak learning rate. [default: 1e-3 below 50 million weights, else 5e-4 for LoRA, 5e-5 in full]"""
    weight_decay: float = 0.01
    """AdamW's weight decay, on matrices only."""
    warmup_ratio: float = 0.05
    """Share of the steps in which the learning rate rises."""
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """What the learning rate does after the warmup."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it."""
    early_stopping_patience: int = 2
    """Stop after so many epochs without a better dev loss; 0 never stops."""
    load_best_model_at_end: bool = True
    """Keep the weights of the epoch with the best dev loss, not the last."""
    swa_epoch_start: int = 0
    """Weight averaging: try the mean of the weights at the ends of this epoch and all later ones, too; 0: don't."""
    save_steps: int = 200
    """A checkpoint every so many steps, besides one after each epoch."""
    save_total_limit: int = 2
    """Checkpoints to keep."""
    logging_steps: int = 10
    """A line in the log every so many steps."""
    torch_compile: bool | None = None
    """Compile the steps first. [default: when this training is long enough to win the time back]"""
    replay: float | None = None
    """With --from: share of its rows to learn again. [default: ten for each new row, a tenth at most]"""
    seed: int = 42
    """Decides the order of rows, dropout, and the weights of a fresh model."""
    report_to: Tracker = "none"
    """Send the curves to a tracker too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "num_train_epochs", "per_device_train_batch_size")
        at_least_one(self, "save_steps", "save_total_limit", "logging_steps")
        _share(self, "warmup_ratio")
        _not_negative(self, "weight_decay", "swa_epoch_start")
        _seed(self.seed)
        _budget(self.budget)
        if self.replay is not None and not 0 <= self.replay <= 1:
            raise SettingsError("--replay {value}: must lie between 0 and 1.", "Try 0.1.", value=self.replay)
        if self.learning_rate is not None:
            _rate(self.learning_rate)
        if 1 < self.swa_epoch_start >= self.epochs and not self.budget:  # which may take epochs away
            raise SettingsError(
                "--swa-epoch-start {start}: of {epochs} epoch(s) there is nothing to average then.",
                "Give an earlier epoch, or a larger --num-train-epochs.",
                start=self.swa_epoch_start,
                epochs=self.epochs,
            )

    @property
    def epochs(self) -> int:
        """As told, or the default."""
        return 5 if self.num_train_epochs is None else self.num_train_epochs

    def rate(self, step: int, steps: int, share: float) -> float:
        """The learning rate of a step out of so many, when `share` of the training is done."""
        peak, warmup = self.learning_rate or 0.0, int(self.warmup_ratio * steps)
        by_clock = share / self.warmup_ratio if self.warmup_ratio else 1.0
        if (rising := max((step + 1) / (warmup + 1), by_clock)) < 1:
            return peak * rising
        left = (1 - share) / (1 - self.warmup_ratio)
        falling = {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant_with_warmup": 1.0}
        return peak * min(1.0, falling[self.lr_scheduler_type])


def read_train_options(told: Mapping[str, Any]) -> TrainOptions:
    """A recipe from a run's settings, where the budget is in seconds."""
    return TrainOptions(**{**told, "budget": told["budget"] and timedelta(seconds=told["budget"])})


@dataclass(frozen=True, kw_only=True)
class ArchitectureOptions:
    """A new base, named as in Hugging Face's LlamaConfig. The defaults make 14 million weights, 28 MB."""

    vocab_size: int = 8192
    """The most tokens the tokenizer may learn."""
    hidden_size: int = 384
    """Width of the model."""
    intermediate_size: int = 1024
    """Width inside its feed-forward layers."""
    num_hidden_layers: int = 6
    """Its depth."""
    num_attention_heads: int = 6
    """Attention heads; they share the width evenly."""

    def __post_init__(self) -> None:
        at_least_one(self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        if self.vocab_size < 1024:
            raise SettingsError("--vocab-size {value}: must be at least 1024.", value=self.vocab_size)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise SettingsError(
                "--hidden-size {width} can't be shared evenly by {heads} attention heads.",
                "Make it a multiple of {both}.",
                width=self.hidden_size,
                heads=self.num_attention_heads,
                both=2 * self.num_attention_heads,
            )


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """How a base is pretrained, and for how long."""

    budget: timedelta | None = None
    """Time to train, for instance 90m or 2h; the learning rate falls to nothing as it ends. [default: 2h]"""
    num_train_epochs: int = 10
    """End after so many passes over the texts, should that come first: more would learn them by heart."""
    max_steps: int | None = None
    """Train for so many steps instead: as the clock decides nothing then, the same seed gives the same bytes."""
    block_size: int = 256
    """Tokens read at a time; also the longest conversation the base is used to."""
    per_device_train_batch_size: int = 16
    """Blocks per step."""
    optim: Literal["muon", "adamw_torch"] = "muon"
    """Optimizer of the matrices between embedding and head; AdamW does the rest."""
    learning_rate: float = 8e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Weight decay, on those matrices only."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises."""
    decay_ratio: float = 0.6
    """Share of the budget in which it falls, at the end."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it."""
    save_steps: int = 200
    """A checkpoint every so many steps."""
    eval_steps: int = 500
    """A look at the held-out texts every so many steps."""
    save_total_limit: int = 2
    """Checkpoints to keep."""
    logging_steps: int = 20
    """A line in the log every so many steps."""
    precision: Precision = "auto"
    """Number format of the matrix products; auto tries both and takes the faster."""
    device: DeviceName = "auto"
    """Where to compute; auto takes the best there is."""
    torch_compile: bool = False
    """Compile the model first: half a minute, then about 1.4 times as fast; needs a C++ compiler."""
    seed: int = 42
    """Decides the first weights, the held-out texts and the order of the others."""

    def __post_init__(self) -> None:
        at_least_one(self, "block_size", "per_device_train_batch_size", "num_train_epochs", "max_steps")
        at_least_one(self, "save_steps", "eval_steps", "save_total_limit", "logging_steps")
        _not_negative(self, "warmup_steps", "weight_decay")
        _share(self, "decay_ratio")
        _seed(self.seed)
        _rate(self.learning_rate)
        _budget(self.budget)
        if self.budget and self.max_steps:
            raise SettingsError("--budget and --max-steps both say how long to train.", "Give one of them.")

    @property
    def seconds(self) -> float:
        """The time budget; endless when steps are counted instead."""
        return math.inf if self.max_steps else (self.budget or timedelta(hours=2)).total_seconds()

    def rate(self, step: int, share: float) -> float:
        """The learning rate of a step, when `share` of the budget is spent: it rises, stays, and falls to nothing."""
        rising = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        falling = min(1.0, (1 - share) / self.decay_ratio) if self.decay_ratio else 1.0
        return self.learning_rate * rising * falling


def _not_negative(options: object, *names: str) -> None:
    for name in names:
        if not getattr(options, name) >= 0:  # nor NaN
            raise SettingsError(
                "--{name} {value}: must not be negative.",
                "Try 0.1.",
                name=name.replace("_", "-"),
                value=getattr(options, name),
            )


def _budget(value: timedelta | None) -> None:
    if value is not None and value.total_seconds() <= 0:
        raise SettingsError("--budget {value}: must be longer than nothing.", "Try 2h.", value=value)


def _seed(value: int) -> None:
    if not 0 <= value < 2**32:
        raise SettingsError("--seed {value}: must lie between 0 and 4294967295.", "Try 42.", value=value)


def _rate(value: float) -> None:
    if not 0 < value < 1:
        raise SettingsError("--learning-rate {value}: must lie between 0 and 1.", "Try 5e-4.", value=value)


def at_least_one(options: object, *names: str) -> None:
    """Raise SettingsError when one of these options is less; None stands for the default and is fine."""
    for name in names:
        if (value := getattr(options, name)) is not None and value < 1:
            raise SettingsError("--{name} {value}: must be at least 1.", name=name.replace("_", "-"), value=value)


def _share(options: object, name: str) -> None:
    value = getattr(options, name)
    if not 0 <= value < 1:
        raise SettingsError(
            "--{name} {value}: must be at least 0 and below 1.", name=name.replace("_", "-"), value=value
        )
