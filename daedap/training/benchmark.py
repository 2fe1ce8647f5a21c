"""Speed of common training scripts and of daedap's own training, in one process, on the same rows and base."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from daedap.config import ModelOptions, TrainOptions
from daedap.data.split import RunRows
from daedap.files import write_json, write_lines
from daedap.korean.text import nfc
from daedap.model.base import Base
from daedap.model.device import has_fast_bf16, processor_name
from daedap.model.loss import score_answers
from daedap.model.prompt import Prompt, sorted_batches
from daedap.model.trainable import unwrap_peft
from daedap.runs import Run, TrainConfig
from daedap.training.baselines import LENGTH, Baseline, BaselineSettings, FloatType, Step, train_baseline
from daedap.training.finetune import finetune
from daedap.training.profiling import PeakMemory, matmul_peak, step_flops
from daedap.training.trainer import Task
from daedap.types import Pair

_PROBE_STEPS = 2


class Measurement(NamedTuple):
    """The measurement of one recipe."""

    name: str
    precision: FloatType
    rows: int
    """Rows trained on, repetitions counted."""
    seconds: float
    """From the first row to the saved weights."""
    step_rates: tuple[float, ...]
    """Rows per second of each step but the first."""
    peak_bytes: int
    """Peak resident memory of the process."""
    flops_per_row: float
    """Floating-point operations of forward and backward pass per row, padding included."""
    whole: bool = False
    """Whether all epochs were run, not only a few steps."""
    bits_per_character: float | None = None
    """Bits per character of the dev rows' answers, after all epochs."""

    @property
    def rate(self) -> float:
        """Rows per second: the median of the steps."""
        return statistics.median(self.step_rates)

    @property
    def overall_rate(self) -> float:
        """Rows per second from the first row to the saved weights; without all epochs, the rate of the steps."""
        return self.rows / self.seconds if self.whole else self.rate

    def utilisation(self, peaks: Mapping[FloatType, float]) -> float:
        """Fraction of the measured peak in this precision; `peaks` in GFLOP/s."""
        return self.flops_per_row * self.rate / (peaks[self.precision] * 1e9)


@dataclass(frozen=True)
class Variant:
    """daedap's own training with some options."""

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
    """What all recipes share."""

    base: Callable[[], Base]
    """Creates the untrained base: every recipe changes its own."""
    train: Sequence[Pair]
    dev: Sequence[Pair]
    device: str
    scratch: Path
    """Scratch folder."""
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
    """GFLOP/s of matrix products in both precisions; 0 for bf16 without hardware support."""
    slow = device == "cpu" and not has_fast_bf16()
    return {"fp32": matmul_peak(torch.float32, device), "bf16": 0.0 if slow else matmul_peak(torch.bfloat16, device)}


def choose_baseline_precision(baseline: Baseline, context: BenchContext) -> FloatType:
    """fp32, or the faster precision by a few steps where the baseline may run in bf16."""
    if not baseline.any_precision or context.peaks["bf16"] <= context.peaks["fp32"]:
        return "fp32"
    fp32, bf16 = (measure_speed(baseline, context, floats, _PROBE_STEPS).rate for floats in ("fp32", "bf16"))
    return "bf16" if bf16 > fp32 else "fp32"


def measure_speed(baseline: Baseline, context: BenchContext, precision: FloatType, steps: int) -> Measurement:
    """Measure `steps` steps, at least 2."""
    return _measure(baseline, context, precision, max_steps=steps)


def measure_quality(baseline: Baseline, context: BenchContext, precision: FloatType, epochs: int) -> Measurement:
    """Measure whole epochs and the resulting bits per character."""
    return _measure(baseline, context, precision, epochs=epochs)


def _measure(baseline: Baseline, context: BenchContext, precision: FloatType, **length: int) -> Measurement:
    settings = BaselineSettings(context.scratch, context.device, precision, seed=context.seed, **length)
    base, whole = context.base(), settings.max_steps is None
    with PeakMemory() as memory:
        model, steps, seconds = train_baseline(baseline, base, context.train, settings)
    return Measurement(
        baseline.name,
        precision,
        sum(step.rows for step in steps),
        seconds,
        step_rates(steps),
        memory.peak_bytes,
        flops_per_row(model, steps),
        whole,
        _dev_bits(model, base.prompt(LENGTH), context) if whole else None,
    )


def measure_ours(variant: Variant, context: BenchContext, epochs: int) -> Measurement:
    """Measure daedap's own training; filling the activation cache, compiling and saving count."""
    base, folder = context.base(), context.scratch / variant.name.replace(" ", "-")
    run = _prepare_run(variant, context, folder / "0001", epochs)
    with PeakMemory() as memory:
        started = time.perf_counter()
        setup = finetune(run, RunRows(run.folder), base)
        seconds = time.perf_counter() - started
    trainer, task = setup.trainer, setup.trainer.task
    events = [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [event["samples_per_second"] for event in events if event["event"] == "train"]
    measured = Measurement(
        variant.name,
        trainer.machine.precision,
        epochs * len(context.train),
        seconds,
        tuple(rates[1:] or rates),
        memory.peak_bytes,
        _flops_per_row(task, trainer.train_options.per_device_train_batch_size),
        True,
        _dev_bits(unwrap_peft(task.model).float(), setup.prompt, context) if context.dev else None,
    )
    shutil.rmtree(folder)  # the next variant must not find this activation cache
    return measured


def _prepare_run(variant: Variant, context: BenchContext, folder: Path, epochs: int) -> Run:
    """A run folder as `daedap train` leaves it before training."""
    for side, pairs in (("train", context.train), ("dev", ()), ("test", ())):
        records = [{"id": pair.id, "component": "", **asdict(pair)} for pair in pairs]
        write_lines(folder / "data" / f"{side}.jsonl", records)
    train_options = TrainOptions(**{"num_train_epochs": epochs, "seed": context.seed, **variant.train_options})
    model_options = ModelOptions(**{"max_length": LENGTH, "device": context.device, **variant.model_options})
    config = TrainConfig(file="", model=model_options, train=train_options, evaluate=False)
    write_json(folder / "config.json", config.to_json())
    return Run(folder)


def _flops_per_row(task: Task, size: int) -> float:
    """Floating-point operations of what is computed: the trained blocks and the shortlist."""
    examples = task.train.examples
    total = 0.0
    for rows in sorted_batches([len(example.ids) for example in examples], size):
        labels, longest = sum(examples[row].n_labels for row in rows), len(examples[rows[-1]].ids) - 1
        total += step_flops(task.loss.model, rows=len(rows), length=longest, head_positions=labels)
    return total / len(examples)


def step_rates(steps: Sequence[Step]) -> tuple[float, ...]:
    """Rows per second of each step but the first, which warms up, unless it is the only one."""
    return tuple(step.rows / step.seconds for step in steps[1:] or steps)


def flops_per_row(model: nn.Module, steps: Sequence[Step]) -> float:
    """Mean over the same steps as `step_rates`."""
    warm = steps[1:] or steps
    flops = (step_flops(model, rows=step.rows, length=step.length, head_positions=step.head_positions) for step in warm)
    return sum(flops) / sum(step.rows for step in warm)


def _dev_bits(model: PreTrainedModel | PeftModel, prompt: Prompt, context: BenchContext) -> float | None:
    return bits_per_character(model, prompt, context.dev, context.device) if context.dev else None


def bits_per_character(model: PreTrainedModel | PeftModel, prompt: Prompt, dev: Sequence[Pair], device: str) -> float:
    """−log2 p of all answers and their EOS divided by the answers' characters (NFC), computed in fp32."""
    scores = score_answers(model, [prompt.example(pair) for pair in dev], device)
    return float(-scores[:, 0].sum() / sum(len(nfc(pair.answer)) for pair in dev))
