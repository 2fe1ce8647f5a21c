"""The road of issue 2 in figures: learned by heart, and a whole file from first row to scored run.

python bench/road.py ChatbotData.csv [--epochs 5]     appends to bench/RESULTS.md
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import daedap
from daedap.data.doctor import load
from daedap.korean.text import comparison_form
from daedap.model.language_model import open_trained
from daedap.types import Pair

RESULTS = Path(__file__).parent / "RESULTS.md"
PAIRS = 64


@dataclass(frozen=True)
class Road:
    """What was measured."""

    help_seconds: float
    exact: float
    ended: float
    run: daedap.Run
    dev: list[float]


def main() -> None:
    """Measure, print, and append to the results."""
    parser = ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        road = measure(options.file, options.epochs, Path(folder))
        text = "\n".join(report(road, options.file, options.epochs))
    with RESULTS.open("a", encoding="utf-8") as results:
        results.write(text)
    print(text)


def measure(file: Path, epochs: int, folder: Path) -> Road:
    """Both trainings, one after the other."""
    exact, ended = by_heart(load(file).pairs, folder)
    run = daedap.train(file, num_train_epochs=epochs, runs=folder / "whole")
    events = [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return Road(help_seconds(), exact, ended, run, [event["loss"] for event in events if event["event"] == "dev"])


def by_heart(pairs: list[Pair], folder: Path) -> tuple[float, float]:
    """Train a fresh model on 64 different questions; shares of them answered exactly, and ended, by greedy decoding."""
    chosen = list({comparison_form(pair.question): pair for pair in reversed(pairs)}.values())[::-1][:PAIRS]
    file = folder / "pairs.jsonl"
    rows = ({"question": pair.question, "answer": pair.answer} for pair in chosen)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    whole = {"dev_size": 0, "test_size": 0, "runs": folder / "heart"}
    run = daedap.train(file, base="fresh", num_train_epochs=60, per_device_train_batch_size=8, **whole)
    spoken = open_trained(run).reply(chosen)
    exact = [said.text == pair.answer for said, pair in zip(spoken, chosen, strict=True)]
    return statistics.mean(exact), statistics.mean(said.ended for said in spoken)


def help_seconds(times: int = 7) -> float:
    """Median of `daedap --help`."""
    measured = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "daedap", "--help"], check=True, capture_output=True)
        measured.append(time.perf_counter() - start)
    return statistics.median(measured)


def report(road: Road, file: Path, epochs: int) -> list[str]:
    """A section of RESULTS.md."""
    manifest = road.run.manifest
    seconds = manifest["seconds"]
    return [
        f"## The whole road ({date.today()}, daedap {manifest['daedap']}, {manifest['machine']['threads']} threads)",
        "",
        f"`python bench/road.py {file.name} --epochs {epochs}`",
        "",
        "| what | measured |",
        "|---|---|",
        f"| `daedap --help`, median of 7 | {road.help_seconds:.2f} s |",
        f"| {PAIRS} pairs, fresh model, 60 epochs: exact answers by greedy decoding | {road.exact:.1%} |",
        f"| … every one ended | {road.ended:.1%} |",
        f"| {manifest['rows']['train']:,} rows × {manifest['training']['epochs']} epochs: prepare + train + evaluate"
        f" | {seconds['prepare']:.0f} + {seconds['train']:.0f} + {seconds['evaluate']:.0f} s |",
        f"| precision that the probe chose | {manifest['machine']['precision']} |",
        f"| peak memory | {manifest['peak_memory_bytes'] / 1e9:.2f} GB |",
        f"| dev loss after each epoch | {', '.join(f'{loss:.3f}' for loss in road.dev)} |",
        "",
        *(f"    {line}" for line in road.run.lines()),
        "",
    ]


if __name__ == "__main__":
    main()
