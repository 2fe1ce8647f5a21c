"""How time and memory grow with the rows: python bench/growth.py FILE [--rows 1000 10000 100000 1000000]

Rows beyond the file's are put together from halves of its questions and of its answers. Each size is one `daedap train`
(LoRA over a tiny random GPT-2's kept states, one epoch, no scores) in a process of its own, and then a bot in another
one that looks up 300 questions. The base is tiny so that a million rows take minutes: what is measured is how
everything grows, not how fast a real base learns.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

import daedap
from daedap.data.doctor import load
from daedap.retrieval.hybrid import HybridRetriever
from daedap.runs import Run
from daedap.training.profiling import PeakMemory
from daedap.types import Pair

SIZES = (1_000, 10_000, 100_000, 1_000_000)
ASKED, NEAR = 300, 20


@dataclass(frozen=True)
class Size:
    """What so many rows cost. Seconds, bytes, milliseconds."""

    rows: float
    prepare: float
    train: float
    build_index: float
    train_bytes: float
    disk_bytes: float
    open: float
    ask_bytes: float
    median_ms: float
    slow_ms: float


def main() -> None:
    """Measure every size, and print the table as it grows."""
    parser = ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    parser.add_argument("--step", choices=("train", "ask"), help="one part of one size, in a process of its own")
    parser.add_argument("--folder", type=Path, help="where that part finds its file and leaves its run")
    options = parser.parse_args()
    if options.step:
        print(json.dumps({"train": train, "ask": ask}[options.step](options.folder)))
        return
    print(f"| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|")
    known = load(options.file).pairs
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            print(line(measure(options.file, known, rows, Path(folder))), flush=True)


def measure(file: Path, known: list[Pair], rows: int, folder: Path) -> Size:
    """One size."""
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as made:
        csv.writer(made).writerows([("question", "answer"), *islice(pairs(known), rows)])
    save_tiny(folder / "base")
    parts = [_alone(file, step, folder) for step in ("train", "ask")]
    return Size(rows, **parts[0], **parts[1])


def _alone(file: Path, step: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, str(file), "--step", step, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def pairs(known: list[Pair]) -> Iterator[tuple[str, str]]:
    """The file's pairs, then ever new ones."""
    yield from ((pair.question, pair.answer) for pair in known)
    rng = np.random.default_rng(0)
    while True:
        first, second = (known[row] for row in rng.integers(len(known), size=2))
        yield _crossed(first.question, second.question), _crossed(first.answer, second.answer)


def _crossed(first: str, second: str) -> str:
    """The first words of one text and the last words of the other."""
    start, end = first.split(), second.split()
    return " ".join([*start[: -(-len(start) // 2)], *end[len(end) // 2 :]])


def save_tiny(folder: Path) -> None:
    """A random GPT-2 of two blocks with daedap-mini's tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    from daedap.model.base import MINI_FOLDER
    from daedap.model.tokenizer import load_tokenizer, save_tokenizer

    set_seed(42)
    tokenizer = load_tokenizer(MINI_FOLDER)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=64, n_layer=2, n_head=2, **ends)
    GPT2LMHeadModel(shape).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def train(folder: Path) -> dict[str, float]:
    """`daedap train`, all of it but the scores."""
    model_options = {"base": str(folder / "base"), "method": "lora", "layers": 1, "max_length": 64}
    train_options = {"num_train_epochs": 1, "per_device_train_batch_size": 128, "dev_size": 300, "test_size": 0}
    run = daedap.train(folder / "pairs.csv", **model_options, **train_options, evaluate=False, runs=folder / "runs")
    seconds, size = run.manifest["seconds"], sum(run.manifest["files"].values())
    times = {"prepare": seconds["prepare"], "train": seconds["train"], "remember": seconds["engine"] + seconds["index"]}
    return {**times, "train_bytes": run.manifest["peak_memory_bytes"], "disk_bytes": size}


def ask(folder: Path) -> dict[str, float]:
    """Questions that are not known as they stand, one after the other, after a few to warm up."""
    run = Run(folder / "runs" / "0001")
    rng = np.random.default_rng(1)
    with PeakMemory() as watch:
        started = time.perf_counter()
        retriever = HybridRetriever.open(run.folder / "index")
        opened = time.perf_counter() - started
        known, times = retriever.index.pairs, []
        for _ in range(ASKED + 10):
            first, second = (known[row].question for row in rng.integers(len(known), size=2))
            started = time.perf_counter()
            retriever.search([_crossed(first, second)], NEAR)
            times.append(1000 * (time.perf_counter() - started))
    median, slow = np.percentile(times[10:], [50, 95])
    return {"open": opened, "ask_bytes": watch.peak_bytes, "median_ms": float(median), "slow_ms": float(slow)}


HEADS = (
    "rows",
    "read, check, split (s)",
    "train (s)",
    "engine, index, encoder (s)",
    "memory (GB)",
    "run on disk (GB)",
    "opened (s)",
    "memory (GB)",
    "looked up, median (ms)",
    "95th percentile (ms)",
)


def line(size: Size) -> str:
    """Of the table."""
    told = asdict(size)
    cells = [f"{told.pop('rows'):,.0f}"]
    cells += [f"{value / 1e9:.2f}" if name.endswith("bytes") else f"{value:.1f}" for name, value in told.items()]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
