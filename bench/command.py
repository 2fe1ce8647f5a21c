"""The whole `daedap train`, scores included, beside the common recipe: `python bench/command.py FILE KOGPT2_FOLDER`.

KOGPT2_FOLDER holds skt/kogpt2-base-v2's config.json and tokenizer.json; the weights are random ones of its shape. The
common recipe is transformers' Trainer with LoRA r 8 on c_attn, everything padded to 128, batches of 8; its rate is the
mean of some steps before the command and as many after it. Its gradients have their denormal numbers flushed, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from daedap.config import ReadOptions
from daedap.data.doctor import load
from daedap.model.base import Base, load_base
from daedap.model.device import processor_features, processor_name
from daedap.runs import Run
from daedap.training.baselines import BASELINES
from daedap.training.benchmark import BenchContext, measure_speed


def random_base(source: Path, folder: Path) -> Path:
    """A base of the source's shape with random weights, in the hub's layout."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(source / name, folder / name)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)).save_pretrained(folder)
    shutil.copy(source / "config.json", folder / "config.json")
    return folder


def common_rate(base: Path, file: Path, scratch: Path, steps: int) -> float:
    """Rows per second of the common recipe."""

    def make() -> Base:
        return load_base(str(base))

    pairs = load(file, ReadOptions()).pairs
    ground = BenchContext(make, pairs, [], "cpu", scratch, {"fp32": 1.0, "bf16": 0.0})
    return measure_speed(BASELINES["lora_padded"], ground, "fp32", steps).rate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("kogpt2", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        base = random_base(told.kogpt2, scratch / "base")
        rates = [common_rate(base, told.file, scratch, told.steps)]
        words = [
            str(told.file),
            "--base",
            str(base),
            "--num-train-epochs",
            str(told.epochs),
            "--runs",
            str(scratch / "runs"),
        ]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "daedap", "train", *words, "--early-stopping-patience", "0"], check=True)
        seconds = time.perf_counter() - started
        rates.append(common_rate(base, told.file, scratch, told.steps))
        manifest = Run(scratch / "runs" / "0001").manifest
        rows, common = manifest["rows"]["train"] * told.epochs, statistics.mean(rates)
        plan = Run(scratch / "runs" / "0001").state["plan"]
    print(f"{processor_name()} ({', '.join(processor_features())})")
    print(f"common recipe: {', '.join(f'{rate:.2f}' for rate in rates)} rows/s")
    rate = rows / seconds
    print(f"daedap train: {seconds:.0f} s for {rows} rows, {rate:.1f} rows/s: {rate / common:.1f} times")
    print(f"planned: {plan['seconds']:.0f} + {plan['scoring']:.0f} s; took {json.dumps(manifest['seconds'])}")


if __name__ == "__main__":
    main()
