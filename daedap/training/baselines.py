"""Common training scripts for comparison, as people write them: Hugging Face's Trainer, PEFT and TRL.

All train on ids rendered by daedap's prompt, so that they differ in speed and not in data. `kogpt2_shape` is a model of
KoGPT2's shape with random weights, as fast as the real one and available without a download.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Generator, Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.pytorch_utils import Conv1D
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import logging

from daedap.files import digest
from daedap.model.base import MINI_FOLDER, Base, self_test
from daedap.model.prompt import Example, build_prompt
from daedap.model.tokenizer import load_tokenizer
from daedap.model.trainable import unwrap_peft
from daedap.training.profiling import synchronize
from daedap.types import Pair

KOGPT2_SHAPE = "kogpt2-shape"
"""Name of a base with the shape of skt/kogpt2-base-v2 and random weights."""
_SEED = 42


def kogpt2_shape(tokenizer_folder: Path | None = None) -> Base:
    """A base of skt/kogpt2-base-v2's shape: 125 million random weights from a fixed seed.

    With the tokenizer of a folder (a `tokenizer.json` is enough), else daedap-mini's. Raises BaseError when the
    tokenizer can't be read, garbles Korean, or has more than 51,200 ids.
    """
    folder = tokenizer_folder or MINI_FOLDER
    tokenizer = load_tokenizer(folder)
    build_prompt(tokenizer, 64)  # sets its chat template
    shape: dict[str, Any] = {"vocab_size": 51_200, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
    specials = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = GPT2LMHeadModel(GPT2Config(**shape, **specials))
    self_test(KOGPT2_SHAPE, model, tokenizer)
    return Base(KOGPT2_SHAPE, model, tokenizer, "random weights", digest(*sorted(folder.glob("tokenizer*.json"))))


BaselineName = Literal["lora_padded", "full_padded", "trl_best"]
NAMES: tuple[BaselineName, ...] = get_args(BaselineName)
LENGTH = 128
"""Padded length of a row in ids; longer conversations are left out of the measurement."""
_IGNORE_INDEX = -100
FloatType = Literal["fp32", "bf16"]


class BaselineSettings(NamedTuple):
    """Settings of a measurement."""

    folder: Path
    """Scratch folder, for the libraries and the trained weights."""
    device: str = "cpu"
    precision: FloatType = "fp32"
    max_steps: int | None = None
    """Stop after this many steps; None: train for `epochs`."""
    epochs: int = 3
    seed: int = 42


class Step(NamedTuple):
    """The batch of one training step and its duration."""

    rows: int
    length: int
    """Ids per row, padding included."""
    head_positions: int
    """Tokens for which the head runs."""
    seconds: float
    """Since the end of the previous step."""


class Trained(NamedTuple):
    """The result of a baseline."""

    model: PreTrainedModel | PeftModel
    steps: list[Step]
    seconds: float
    """From the first row to the saved weights, without loading the base."""


@dataclass(frozen=True)
class Baseline:
    """A common training script. `trainer` builds its trainer from base, examples and options; it changes the base."""

    name: BaselineName
    batch_size: int
    learning_rate: float
    trainer: Callable[[Base, Sequence[Example], dict[str, Any]], Trainer]
    any_precision: bool = False
    """Whether it may run in bf16; else fp32."""

    @property
    def available(self) -> bool:
        """Whether its library is installed."""
        return self.name != "trl_best" or find_spec("trl") is not None


def rows_that_fit(base: Base, rows: Sequence[Pair]) -> list[Pair]:
    """Rows that need no truncation, history included."""
    prompt, limit = build_prompt(base.tokenizer, sys.maxsize), min(LENGTH, base.max_positions)
    return [row for row in rows if len(prompt.example(row).ids) <= limit]


def train_baseline(baseline: Baseline, base: Base, rows: Sequence[Pair], settings: BaselineSettings) -> Trained:
    """Train a base, which is changed, and save the weights to the scratch folder."""
    start = time.perf_counter()
    set_seed(settings.seed)
    prompt = base.prompt(LENGTH)
    with _quiet():
        trainer = baseline.trainer(base, [prompt.example(row) for row in rows], _options(baseline, settings))
        # TRL skips the head for unlabelled tokens on CUDA only
        recorder = _StepRecorder(settings.device, full_head=baseline.name != "trl_best" or settings.device != "cuda")
        trainer.data_collator = recorder.wrap(trainer.data_collator)
        trainer.remove_callback(PrinterCallback)  # stdout is for the result
        trainer.add_callback(recorder)
        trainer.train()
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        model.save_pretrained(settings.folder / baseline.name)
    vars(unwrap_peft(model)).pop("forward", None)  # TRL's patched one would run the original in a copy
    return Trained(model, recorder.steps, time.perf_counter() - start)


def _options(baseline: Baseline, settings: BaselineSettings) -> dict[str, Any]:
    """TrainingArguments of all baselines."""
    return {
        "output_dir": str(settings.folder),
        "per_device_train_batch_size": baseline.batch_size,
        "learning_rate": baseline.learning_rate,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "bf16": settings.precision == "bf16",
        "use_cpu": settings.device == "cpu",
        "seed": settings.seed,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }


def _lora_padded(base: Base, examples: Sequence[Example], options: dict[str, Any]) -> Trainer:
    names = {name.rpartition(".")[2] for name, _ in base.model.named_modules()}
    target = ["c_attn"] if "c_attn" in names else ["q_proj", "v_proj"]
    model = get_peft_model(base.model, _lora(base, target, rank=8, dropout=0.05))
    return _full_padded(base, examples, options, model)


def _full_padded(base: Base, examples: Sequence[Example], options: dict[str, Any], model: Any = None) -> Trainer:
    """Every row padded to `LENGTH`; questions are labels as well as answers, padding is not."""
    prompt = base.prompt(LENGTH)
    rows = [_padded_row(example.ids, prompt.pad_id, prompt.max_length) for example in examples]
    return Trainer(model=model or base.model, args=TrainingArguments(**options), train_dataset=rows)


def _padded_row(ids: list[int], pad: int, length: int) -> dict[str, list[int]]:
    empty = length - len(ids)
    return {
        "input_ids": ids + [pad] * empty,
        "attention_mask": [1] * len(ids) + [0] * empty,
        "labels": ids + [_IGNORE_INDEX] * empty,
    }


def _trl_best(base: Base, examples: Sequence[Example], options: dict[str, Any]) -> Trainer:
    """TRL with its fastest settings, on rows in the form into which it converts prompt-completion data."""
    from datasets import Dataset, disable_progress_bars  # comes with trl, which is optional
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    all_rows = options["max_steps"] < 0
    config = SFTConfig(
        **options,
        completion_only_loss=True,
        train_sampling_strategy="group_by_length" if all_rows else "sequential",
        gradient_checkpointing=False,
        packing=False,
        max_length=LENGTH,
    )
    chosen = examples if all_rows else _excerpt(examples, options)
    rows = [{"input_ids": one.ids, "completion_mask": [0] * one.answer_start + [1] * one.n_labels} for one in chosen]
    trainer: Trainer = SFTTrainer(
        model=base.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=base.tokenizer,
        peft_config=_lora(base, "all-linear", rank=16, dropout=0.0),
    )
    return trainer


def _excerpt(examples: Sequence[Example], options: dict[str, Any]) -> list[Example]:
    """Batches evenly spread over an epoch grouped by length, whose first batches have the longest rows."""
    size, lengths = options["per_device_train_batch_size"], [len(example.ids) for example in examples]
    order = list(LengthGroupedSampler(size, lengths=lengths, generator=Generator().manual_seed(options["seed"])))
    batches = [order[start : start + size] for start in range(0, len(order) - size + 1, size)] or [order]
    steps = min(options["max_steps"], len(batches))
    chosen = [batches[int((step + 0.5) * len(batches) / steps)] for step in range(steps)]
    return [examples[row] for batch in chosen for row in batch]


def _lora(base: Base, target: str | list[str], *, rank: int, dropout: float) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout,
        target_modules=target,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.model.modules()),  # as in trainable.py
    )


_ALL = (
    Baseline("lora_padded", 8, 3e-4, _lora_padded),
    Baseline("full_padded", 4, 5e-5, _full_padded),
    Baseline("trl_best", 32, 2e-4, _trl_best, any_precision=True),
)
BASELINES: dict[str, Baseline] = {baseline.name: baseline for baseline in _ALL}


@dataclass
class _StepRecorder(TrainerCallback):
    """Records shape and duration of every step."""

    device: str
    full_head: bool
    batches: list[tuple[int, int, int]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def wrap(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A collator that records its batches; they come in the order of the steps, sometimes one ahead."""

        def recording(rows: Any) -> Any:
            batch = collate(rows)
            labels: Tensor = batch["labels"]
            positions = labels.numel() if self.full_head else int((labels != _IGNORE_INDEX).sum())
            self.batches.append((*batch["input_ids"].shape, positions))
            return batch

        return recording

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Start the clock."""
        self.since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """Record a step."""
        synchronize(self.device)
        now = time.perf_counter()
        self.steps.append(Step(*self.batches[len(self.steps)], now - self.since))
        self.since = now


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress transformers' warnings."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
