"""What this machine can do, and how much a recipe asks of it: peak speed of matrix products, memory, operations.

The usual recipes and daedap's own, measured one after the other in one process, on the same rows and base.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from daedap.config import ModelOptions, TrainOptions
from daedap.files import write_json, write_lines
from daedap.korean.text import nfc
from daedap.model.base import Base
from daedap.model.batching import sorted_batches
from daedap.model.device import has_fast_bf16, processor_name
from daedap.model.loss import score_answers
from daedap.model.prompt import Prompt
from daedap.model.trainable import unwrap_peft
from daedap.runs import Run
from daedap.training.baselines import LENGTH, Baseline, BaselineSettings, Step, train_baseline
from daedap.training.finetune import learn
from daedap.training.profiling import PeakMemory, matmul_peak, step_flops
from daedap.training.task import Task
from daedap.types import Pair

FloatType = Literal["fp32", "bf16"]
_TRIED_STEPS = 2


class Measurement(NamedTuple):
    """One recipe on this machine."""

    name: str
    precision: FloatType
    rows: int
    """Rows that went through the model, repetitions counted."""
    seconds: float
    """From the first row to the saved weights."""
    step_rates: tuple[float, ...]
    """Rows per second of each step but the first, which warms up."""
    peak_bytes: int
    """The most memory that the process held meanwhile."""
    flops_per_row: float
    """Forward and backward, padding included."""
    whole: bool = False
    """Whether all epochs were run, not only some steps."""
    bits_per_character: float | None = None
    """Of the dev rows' answers, after whole epochs only."""

    @property
    def rate(self) -> float:
        """Rows per second: the median of the steps."""
        return statistics.median(self.step_rates)

    @property
    def overall_rate(self) -> float:
        """Rows per second from the first row to the saved weights; where only steps were tried, that of the steps."""
        return self.rows / self.seconds if self.whole else self.rate

    def utilisation(self, peaks: Mapping[FloatType, float]) -> float:
        """Share of the machine's measured peak in this precision; `peaks` in GFLOP/s."""
        return self.flops_per_row * self.rate / (peaks[self.precision] * 1e9)


@dataclass(frozen=True)
class Variant:
    """daedap's own training with some of its savings."""

    name: str
    model_options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ModelOptions`."""
    train_options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainOptions`."""


VARIANTS = (
    Variant("ours"),
    Variant("ours_fp32", {"precision": "fp32"}),
    Variant("ours_top_2", {"layers": 2}),
    Variant("ours_compiled", train_options={"torch_compile": True}),
)


@dataclass(frozen=True)
class BenchContext:
    """What all recipes are measured on."""

    base: Callable[[], Base]
    """Makes the same untrained base anew: a recipe changes the one it is given."""
    train: Sequence[Pair]
    dev: Sequence[Pair]
    device: str
    scratch: Path
    """A folder for what the libraries insist on writing."""
    peaks: Mapping[FloatType, float]
    """GFLOP/s of matrix products."""
    seed: int = 42


@dataclass(frozen=True)
class MachineInfo:
    """The machine."""

    device: str
    processor: str = field(default_factory=processor_name)
    threads: int = field(default_factory=torch.get_num_threads)


def measure_peaks(device: str) -> dict[FloatType, float]:
    """GFLOP/s of matrix products in both precisions; 0 for bf16 where it has no instructions."""
    slow = device == "cpu" and not has_fast_bf16()
    return {"fp32": matmul_peak(torch.float32, device), "bf16": 0.0 if slow else matmul_peak(torch.bfloat16, device)}


def choose_baseline_precision(stock: Baseline, ground: BenchContext) -> FloatType:
    """The precision that a recipe is run in: the faster one where it may choose, found by a few steps of itself."""
    if not stock.any_precision or ground.peaks["bf16"] <= ground.peaks["fp32"]:
        return "fp32"
    fp32, bf16 = (measure_speed(stock, ground, floats, _TRIED_STEPS).rate for floats in ("fp32", "bf16"))
    return "bf16" if bf16 > fp32 else "fp32"


def measure_speed(stock: Baseline, ground: BenchContext, precision: FloatType, steps: int) -> Measurement:
    """A recipe for so many steps (at least 2)."""
    return _measure(stock, ground, _setting(ground, precision, max_steps=steps))


def measure_quality(stock: Baseline, ground: BenchContext, precision: FloatType, epochs: int) -> Measurement:
    """A recipe for whole epochs, with the bits per character it comes to."""
    return _measure(stock, ground, _setting(ground, precision, epochs=epochs))


def measure_ours(level: Variant, ground: BenchContext, epochs: int) -> Measurement:
    """daedap's own training, whole: the time of the frozen layers, of compiling and of saving counts."""
    base, folder = ground.base(), ground.scratch / level.name.replace(" ", "-")
    run = _prepared(level, ground, folder / "0001", epochs)
    with PeakMemory() as memory:
        started = time.perf_counter()
        begun = learn(run, base)
        seconds = time.perf_counter() - started
    fitting = begun.fitting
    events = [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [event["samples_per_second"] for event in events if event["event"] == "train"]
    measured = Measurement(
        level.name,
        fitting.machine.precision,
        epochs * len(ground.train),
        seconds,
        tuple(rates[1:] or rates),
        memory.peak_bytes,
        _flops_per_row(fitting.task, fitting.train_options.per_device_train_batch_size),
        True,
        bits_per_character(unwrap_peft(fitting.task.model).float(), begun.prompt, ground.dev, ground.device)
        if ground.dev
        else None,
    )
    shutil.rmtree(folder)  # the next one must not find what the frozen layers said
    return measured


def _prepared(level: Variant, ground: BenchContext, folder: Path, epochs: int) -> Run:
    """A run's folder as `daedap train` leaves it before the training."""
    for side, pairs in (("train", ground.train), ("dev", ())):
        records = [{"id": pair.id, "component": "", **asdict(pair)} for pair in pairs]
        write_lines(folder / "data" / f"{side}.jsonl", records)
    train_options = TrainOptions(**{"num_train_epochs": epochs, "seed": ground.seed, **level.train_options})
    model_options = ModelOptions(**{"max_length": LENGTH, "device": ground.device, **level.model_options})
    write_json(
        folder / "settings.json",
        {"learner": asdict(model_options), "recipe": {**asdict(train_options), "budget": None}},
    )
    return Run(folder)


def _flops_per_row(task: Task, size: int) -> float:
    """Of what is really computed: the trained blocks, the shortlist."""
    examples = task.train.examples
    lengths = [len(example.ids) for example in examples]
    total = 0.0
    for rows in sorted_batches(lengths, size):
        places = sum(lengths[row] - examples[row].answer_start for row in rows)
        total += step_flops(
            task.loss.model, rows=len(rows), length=max(lengths[row] for row in rows) - 1, head_positions=places
        )
    return total / len(examples)


def _setting(
    ground: BenchContext, precision: FloatType, max_steps: int | None = None, epochs: int = 1
) -> BaselineSettings:
    return BaselineSettings(ground.scratch, ground.device, precision, max_steps, epochs, ground.seed)


def _measure(stock: Baseline, ground: BenchContext, setting: BaselineSettings) -> Measurement:
    base = ground.base()
    with PeakMemory() as memory:
        trained = train_baseline(stock, base, ground.train, setting)
    whole = setting.max_steps is None
    prompt = base.prompt(LENGTH)
    return Measurement(
        stock.name,
        setting.precision,
        sum(step.rows for step in trained.steps),
        trained.seconds,
        step_rates(trained.steps),
        memory.peak_bytes,
        flops_per_row(trained.model, trained.steps),
        whole,
        bits_per_character(trained.model, prompt, ground.dev, ground.device) if whole and ground.dev else None,
    )


def step_rates(steps: Sequence[Step]) -> tuple[float, ...]:
    """Rows per second of each step, without the first unless there is no other."""
    return tuple(step.rows / step.seconds for step in steps[1:] or steps)


def flops_per_row(model: nn.Module, steps: Sequence[Step]) -> float:
    """Mean over the same steps as the rates."""
    warm = steps[1:] or steps
    flops = (step_flops(model, rows=step.rows, length=step.length, head_positions=step.head_positions) for step in warm)
    return sum(flops) / sum(step.rows for step in warm)


def bits_per_character(model: PreTrainedModel | PeftModel, prompt: Prompt, dev: Sequence[Pair], device: str) -> float:
    """−log2 p of the answers' tokens and ends, by their characters; in fp32 whatever the model was trained in."""
    scores = score_answers(model, [prompt.example(pair) for pair in dev], device)
    return float(-scores[:, 0].sum() / sum(len(nfc(pair.answer)) for pair in dev))
