"""Options, each declared once: the command line and the Python API are made from these classes.

Those of the server and of the export are in serve/options.py and export/common.py.

Names are those of Hugging Face's TrainingArguments, PEFT's LoraConfig and LlamaConfig, and scikit-learn. An option that
is out of range raises SettingsError, from the command line and from Python alike.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from daedap.errors import SettingsError

Method = Literal["lora", "full"]
Precision = Literal["auto", "fp32", "bf16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Tracker = Literal["none", "tensorboard", "wandb", "mlflow", "comet_ml", "trackio"]

SplitMethod = Literal["components", "random"]
Perturbation = Literal["typo", "spacing", "particles", "polite", "casual", "laughter"]
PERTURBATIONS: tuple[Perturbation, ...] = get_args(Perturbation)
"""Ways in which other people would type a question."""
RecipeName = Literal["lora_padded", "full_padded", "trl_best", "ours", "ours_fp32", "ours_top_2", "ours_compiled"]

RUNS = Path(os.environ.get("DAEDAP_RUNS") or "runs")
"""Folder of the runs unless the user names another one."""
MINI = "daedap-mini"
"""Name of the built-in base."""
FRESH = "fresh"
"""Name of a small model with random weights, and a tokenizer fitted on the training rows."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Where questions and answers are, as far as the user says."""

    question_column: str | None = None
    """Name of the questions' column or key, or its number counted from 1; None: told by its name or position."""
    answer_column: str | None = None
    """The same for the answers."""
    label_column: str | None = None
    """The same for the labels, which are optional."""
    speaker: str | None = None
    """In a KakaoTalk chat: whose messages are the answers."""
    sheet: str | None = None
    """In a workbook: the sheet to read, by its name or its number counted from 1; None: all that hold pairs."""
    mask_personal: bool = False
    """Replace mobile, card, account and resident numbers and e-mail addresses by asterisks."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How rows are assigned to splits. Sizes are fractions (0.1) or numbers of rows (1000), as in scikit-learn."""

    split: SplitMethod = "components"
    """components keeps near-duplicates together; random is the usual practice, and the run says how much leaks."""
    dev_size: float = 0.05
    """Rows that decide when to stop: a share, or an approximate number of rows."""
    test_size: float = 0.1
    """Rows for the scores, never trained on: a share, or an approximate number of rows."""
    fraction: float = 1.0
    """Train on only this share of the training rows; a smaller share is part of a larger one."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise SettingsError("--fraction {value}: must be above 0 and at most 1.", "Try 0.2.", value=self.fraction)
        _not_negative(self, "dev_size", "test_size")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained, and on what."""

    base: str = MINI
    """Base model: daedap-mini is built in, fresh knows nothing; or a folder, a GGUF file, or a hub name."""
    encoder: str | None = None
    """Sentence encoder that finds known questions: a folder or a hub name. [default: the built-in one]"""
    method: Method | None = None
    """Train small LoRA matrices or all weights. [default: full below 50 million weights, else lora]"""
    layers: int | None = None
    """Number of layers to train, from the top; those below are run only once. [default: all; with LoRA, a third]"""
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
    """Longest conversation in tokens, end token included; longer pairs are used for retrieval, not for training."""
    precision: Precision = "auto"
    """Number format of the matrix products; auto tries both and takes the faster."""
    device: DeviceName = "auto"
    """Where to compute; auto takes the best there is."""

    def __post_init__(self) -> None:
        at_least_one(self, "lora_r", "lora_alpha", "max_length")
        _fraction(self, "dropout")
        _not_negative(self, "cache_gb")
        if self.method == "lora" and self.base == FRESH:
            raise SettingsError(
                "--method lora needs a base to adapt; a fresh model has nothing to keep.",
                "Name one with --base, or leave --method out.",
            )


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """Training rows that are generated in addition to those of the file."""

    augment: Sequence[Perturbation] = ()
    """Train also on questions as other people would type them; several kinds are joined by commas."""
    augment_share: float = 0.5
    """Augmented rows of each of these kinds, as a share of the training rows."""
    null_question_share: float = 0.0
    """Share of the training rows to train on once more without their question: how likely an answer is by itself."""

    def __post_init__(self) -> None:
        for kind in self.augment:
            if kind not in PERTURBATIONS:
                raise SettingsError(
                    "--augment {kind}: there is no such kind.",
                    "There are: {kinds}",
                    kind=kind,
                    kinds=", ".join(PERTURBATIONS),
                )
        if not 0 < self.augment_share <= 10:
            raise SettingsError(
                "--augment-share {value}: must be above 0 and at most 10.", "Try 0.5.", value=self.augment_share
            )
        if not 0 <= self.null_question_share <= 1:
            raise SettingsError(
                "--null-question-share {value}: must lie between 0 and 1.", "Try 0.1.", value=self.null_question_share
            )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(AugmentOptions):
    """How it is trained."""

    num_train_epochs: int | None = None
    """Passes over the training rows. [default: 5; 1 for the built-in pairs and up to 500 rows]"""
    budget: timedelta | None = None
    """Time for everything, scores included, for instance 30m: rows, epochs and layers are chosen to fit into it.
    [default: no limit; 75 s for the built-in pairs unless --num-train-epochs is given]"""
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
    """Stop after this many epochs without a better dev loss; 0 never stops."""
    load_best_model_at_end: bool = True
    """Keep the weights of the epoch with the best dev loss, not the last."""
    swa_epoch_start: int = 0
    """Weight averaging: try the mean of the weights at the ends of this epoch and all later ones, too; 0: don't."""
    save_steps: int = 200
    """Steps between checkpoints, besides one after each epoch."""
    save_total_limit: int = 2
    """Checkpoints to keep."""
    logging_steps: int = 10
    """Steps between lines of the log."""
    torch_compile: bool | None = None
    """Compile the steps first. [default: when this training is long enough to repay it]"""
    replay: float | None = None
    """With --from: share of the known rows to replay. [default: ten per new row but at least 32, at most a tenth of
    them, and never fewer than are new]"""
    seed: int = 42
    """Decides the order of rows, dropout, and the weights of a fresh model."""
    report_to: Tracker = "none"
    """Send the curves to a tracker too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "num_train_epochs", "per_device_train_batch_size")
        at_least_one(self, "save_steps", "save_total_limit", "logging_steps")
        _fraction(self, "warmup_ratio")
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
        """As given, or the default."""
        return 5 if self.num_train_epochs is None else self.num_train_epochs

    def rate(self, step: int, steps: int, share: float) -> float:
        """The learning rate of step number `step` of `steps`, when `share` of the training is done."""
        peak, warmup = self.learning_rate or 0.0, int(self.warmup_ratio * steps)
        by_clock = share / self.warmup_ratio if self.warmup_ratio else 1.0
        if (rising := max((step + 1) / (warmup + 1), by_clock)) < 1:
            return peak * rising
        left = (1 - share) / (1 - self.warmup_ratio)
        falling = {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant_with_warmup": 1.0}
        return peak * min(1.0, falling[self.lr_scheduler_type])


def read_train_options(recorded: Mapping[str, Any]) -> TrainOptions:
    """The options that a run was started with, recorded as JSON with the budget in seconds."""
    budget, augment = recorded["budget"], tuple(recorded["augment"])
    return TrainOptions(**{**recorded, "augment": augment, "budget": budget and timedelta(seconds=budget)})


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Which run to start from or to resume, and what to do with the finished one."""

    runs: Path = RUNS
    """Folder of the runs."""
    from_: str | None = None
    """Continue a finished run with the rows that it has not learned: its number, folder, latest or best."""
    resume: str | None = None
    """Resume an interrupted run: its number or folder; without a value, the latest one."""
    evaluate: bool = True
    """Score the finished run on its test rows."""
    lessons: bool = False
    """Learn what was taught, too (daedap teach, the admin page); afterwards each lesson is checked."""


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
    """End after this many passes over the texts, should that come first: more would overfit."""
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
    """Steps between checkpoints."""
    eval_steps: int = 500
    """Steps between evaluations on the held-out texts."""
    save_total_limit: int = 2
    """Checkpoints to keep."""
    logging_steps: int = 20
    """Steps between lines of the log."""
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
        _fraction(self, "decay_ratio")
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


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """Where bases are kept, which one to go on from, and what is kept apart to measure them."""

    base: str = FRESH
    """Go on from this base's weights, with its tokenizer and shape: daedap-mini, a folder, or a name on the hub."""
    runs: Path = RUNS
    """Folder of the runs; bases stand in its folder bases."""
    resume: str | None = None
    """Go on with an interrupted base: its number or folder; without a value, the latest one."""
    dev_size: float = 0.01
    """Share of each file that is held out, in whole documents, to measure on; 0: none."""

    @property
    def bases(self) -> Path:
        """Folder of the bases."""
        return self.runs / "bases"

    def __post_init__(self) -> None:
        if not 0 <= self.dev_size <= 0.5:
            raise SettingsError("--dev-size {value}: must lie between 0 and 0.5.", "Try 0.01.", value=self.dev_size)


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How a bot answers."""

    samples: int | None = None
    """Answers that the language model proposes to a question that is not known. [default: 8 where that was measured to
    help when the run was made, else 0: then a question that is not understood gets suggestions]"""
    fallback: str | None = None
    """What to say when a question is not understood: a text, which then also replaces the suggestions, or off, which
    always gives the best known answer. [default: suggestions, or a friendly request]"""
    direct_answer_threshold: float = 0.4
    """Probability of being right from which the best known answer is given at once."""
    suggestion_threshold: float = 0.15
    """Probability from which the nearest known questions are suggested instead of the fallback."""
    seed: int = 42
    """Of the answers that the model proposes: the same questions get the same answers."""

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 0:
            raise SettingsError("--samples {value}: must not be negative.", "Try 8.", value=self.samples)
        if self.fallback is not None and not self.fallback.strip():
            raise SettingsError("--fallback is empty.", "Give a sentence, or off to always answer.")
        for name in ("direct_answer_threshold", "suggestion_threshold"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                what = "--{name} {value}: must lie between 0 and 1."
                raise SettingsError(what, "It is a probability: try 0.5.", name=_flag(name), value=value)


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Further tests of the bot."""

    paraphrases: Path | None = None
    """A table of known questions in other words: columns question and answers (| between several), and kind if any."""
    out_of_scope: Path | None = None
    """A table of questions that nothing known answers: a column question, and kind if there is one."""
    disturbed: bool = False
    """Ask the test questions as other people type them, too: typos, spaces, particles, speech level, laughter."""


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """How a search is carried on, and where it is kept."""

    trials: int | None = None
    """End after this many trials of the study. [default: as many as there is time for]"""
    study: str | None = None
    """Name of the study; an existing one is continued. [default: from the file, the base and the options]"""
    storage: str | None = None
    """Database of studies that many machines share, like postgresql://user@host/name. [default: a file in runs]"""
    finish: bool = True
    """Train a run with the best settings in the end; for machines that only help: --no-finish."""
    runs: Path = RUNS
    """Folder of the runs; studies are kept in its subfolder studies."""

    def __post_init__(self) -> None:
        at_least_one(self, "trials")
        if self.study and not re.fullmatch(r"[\w.-]*\w", self.study):
            raise SettingsError(
                "--study {name}: a name has letters, digits, dots and dashes only.", "Try my-study.", name=self.study
            )


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured, and for how long."""

    base: str | None = None
    """Base model: a folder, a hub name or daedap-mini. [default: random weights in the shape of skt/kogpt2-base-v2]"""
    tokenizer: Path | None = None
    """Folder with the tokenizer.json for that shape. [default: daedap-mini's]"""
    recipes: Sequence[RecipeName] | None = None
    """The recipes to measure, joined by commas; the others are compared with the first. [default: all]"""
    steps: int = 6
    """Steps of each usual recipe; the first one warms up and isn't counted."""
    rows: int | None = None
    """Learn from so many rows, drawn at random. [default: all]"""
    quality: bool = False
    """Train for whole epochs too, and score the dev rows: minutes to hours."""
    epochs: int = 3
    """How often every row is learned for that, and by daedap's own training, which is always measured whole."""
    device: DeviceName = "auto"
    """Where to compute; auto takes the best there is."""
    runs: Path = RUNS
    """Folder of the runs; scratch files are kept there meanwhile."""

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise SettingsError("--steps {value}: the first one isn't counted.", "Give at least 2.", value=self.steps)
        at_least_one(self, "rows", "epochs")
        if self.base and self.tokenizer:
            raise SettingsError(
                "--base {base} has its own shape and tokenizer.", "Leave --tokenizer out.", base=self.base
            )


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _not_negative(options: object, *names: str) -> None:
    for name in names:
        if not (value := getattr(options, name)) >= 0:  # nor NaN
            raise SettingsError("--{name} {value}: must not be negative.", "Try 0.1.", name=_flag(name), value=value)


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
            raise SettingsError("--{name} {value}: must be at least 1.", name=_flag(name), value=value)


def _fraction(options: object, name: str) -> None:
    value = getattr(options, name)
    if not 0 <= value < 1:
        raise SettingsError("--{name} {value}: must be at least 0 and below 1.", name=_flag(name), value=value)
