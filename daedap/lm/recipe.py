"""What a user may decide about training, named as in Hugging Face's TrainingArguments and PEFT's LoraConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from daedap.errors import SettingsError

Method = Literal["lora", "full"]
Precision = Literal["auto", "fp32", "bf16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Tracker = Literal["none", "tensorboard", "wandb", "mlflow", "comet_ml", "trackio"]


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What is trained, and on what."""

    base: str | None = None
    """Base model: a folder, or a name on the hub such as skt/kogpt2-base-v2. Without it, a small fresh model."""
    method: Method | None = None
    """Train small LoRA matrices or all weights. [default: lora for a base, full for a fresh model]"""
    layers: int | None = None
    """Train only the top so many layers."""
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
        _at_least_one(self, "lora_r", "lora_alpha", "max_length")
        _share(self, "dropout")
        if self.method == "lora" and not self.base:
            raise SettingsError(
                "--method lora needs a base to adapt; a fresh model has nothing to keep.",
                "Name one with --base, or leave --method out.",
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How it is trained."""

    num_train_epochs: int = 5
    """How often every row is learned."""
    per_device_train_batch_size: int = 32
    """Rows per step."""
    learning_rate: float | None = None
    """Peak learning rate. [default: 1e-3 for a fresh model, 5e-4 for LoRA, 5e-5 for full tuning]"""
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
    save_steps: int = 200
    """A checkpoint every so many steps, besides one after each epoch."""
    save_total_limit: int = 2
    """Checkpoints to keep."""
    logging_steps: int = 10
    """A line in the log every so many steps."""
    seed: int = 42
    """Decides the order of rows, dropout, and the weights of a fresh model."""
    report_to: Tracker = "none"
    """Send the curves to a tracker too."""

    def __post_init__(self) -> None:
        _at_least_one(self, "num_train_epochs", "per_device_train_batch_size")
        _at_least_one(self, "save_steps", "save_total_limit", "logging_steps")
        _share(self, "warmup_ratio")
        if not 0 <= self.seed < 2**32:
            raise SettingsError("--seed {value}: must lie between 0 and 4294967295.", "Try 42.", value=self.seed)
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise SettingsError(
                "--learning-rate {value}: must lie between 0 and 1.", "Try 5e-4.", value=self.learning_rate
            )


def _at_least_one(options: object, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise SettingsError(
                "--{name} {value}: must be at least 1.", name=name.replace("_", "-"), value=getattr(options, name)
            )


def _share(options: object, name: str) -> None:
    value = getattr(options, name)
    if not 0 <= value < 1:
        raise SettingsError(
            "--{name} {value}: must be at least 0 and below 1.", name=name.replace("_", "-"), value=value
        )
