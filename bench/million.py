"""`daedap check` on a million rows as CSV, JSON lines and one JSON list: seconds and memory.

.venv/bin/python bench/million.py
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ENDINGS = ("어떻게 하나요?", "되나요?", "얼마예요?", "알려 주세요")


def pairs(count: int) -> Iterator[tuple[str, str]]:
    """Different questions and answers of about the length of an FAQ's, in made-up words."""
    rng = random.Random(0)
    words = ["".join(chr(0xAC00 + rng.randrange(11172)) for _ in range(rng.choice([2, 3]))) for _ in range(50_000)]
    for number in range(count):
        yield (
            f"{' '.join(rng.sample(words, 3))} {ENDINGS[number % 4]}",
            f"{' '.join(rng.sample(words, 6))} 안내해 드립니다.",
        )


def write(path: Path, count: int) -> None:
    """The rows in the form that the file's ending says."""
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("질문,답변\n")
            file.writelines(f"{question},{answer}\n" for question, answer in pairs(count))
            return
        rows = (json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in pairs(count))
        if path.suffix == ".jsonl":
            file.writelines(f"{row}\n" for row in rows)
        else:
            file.write("[" + next(rows))
            file.writelines(f", {row}" for row in rows)  # one line, as json.dump() writes it
            file.write("]\n")


def measure(path: Path) -> tuple[float, float, dict[str, int]]:
    """Seconds, the most gigabytes held, and the counts of `daedap check`."""
    command = [sys.executable, "-m", "daedap", "check", str(path), "--json"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        report = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - started, usage.ru_maxrss / 1e6, {key: report[key] for key in ("rows", "usable")}


def main() -> None:
    """Measure each form and print a row of a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.csv", "a.jsonl", "a.json"):
            path = Path(folder) / name
            write(path, options.rows)
            seconds, memory, counts = measure(path)
            size = path.stat().st_size / 1e6
            print(
                f"| {path.suffix} | {size:.0f} MB | {counts['usable']:,} | {seconds:.0f} s | {memory:.2f} GB |",
                flush=True,
            )
            path.unlink()


if __name__ == "__main__":
    main()
