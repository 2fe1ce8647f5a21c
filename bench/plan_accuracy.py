"""Told against taken: what a plan expects of a training, and what each stage takes.

python bench/plan_accuracy.py ChatbotData.csv     on a quiet machine; the last file is trained on a tenth of its rows
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from itertools import islice
from pathlib import Path

from daedap.runs import Run

FAQ = Path(__file__).parent.parent / "data" / "faq"
STAGES = ("prepare", "plan", "train", "engine", "index", "evaluate")


def main() -> None:
    """Train the first bot, a bot of 40 rows, a tenth of the file and three more rows, and print a table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="such as ChatbotData.csv")
    parser.add_argument("options", nargs="*", help="further options of daedap train, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faq, more = Path(folder) / "faq.jsonl", Path(folder) / "more.csv"
        lines = (line for path in sorted(FAQ.glob("*.jsonl")) for line in path.open(encoding="utf-8"))
        faq.write_text("".join(islice(lines, 40)), encoding="utf-8")
        more.write_text(
            "Q,A\n몇 층이에요?,삼 층이에요.\n누가 만들었어?,동네 사람들이요.\n비밀이 뭐야?,말하면 비밀이 아니죠.\n",
            "utf-8",
        )
        trainings = {
            "first bot": [],
            "40 rows": [str(faq)],
            "a tenth": [str(arguments.file), "--fraction", "0.1"],
            "three more rows": [str(more), "--from", "latest"],
        }
        print(f"{'':16}{'train':>14}{'rest':>14}  {'all':>6}  " + "".join(f"{stage:>9}" for stage in STAGES))
        for name, words in trainings.items():
            print(f"{name:16}{measure(words + arguments.options, Path(folder) / 'runs')}", flush=True)


def measure(words: list[str], runs: Path) -> str:
    """Told > taken seconds of training and of the rest, their ratio for both, and seconds of each stage."""
    command = [sys.executable, "-m", "daedap", "train", *words, "--runs", str(runs)]
    subprocess.run(command, check=True, capture_output=True)
    run = Run(max(path.parent for path in runs.glob("*/manifest.json")))
    plan, seconds = run.state["plan"], run.manifest["seconds"]
    rest = sum(seconds[stage] for stage in STAGES[3:] if stage in seconds)
    train = seconds["train"]
    told = [
        f"{expected:6.0f} > {taken:5.0f}" for expected, taken in ((plan["seconds"], train), (plan["scoring"], rest))
    ]
    ratio = (train + rest) / (plan["seconds"] + plan["scoring"])
    return "".join(told) + f"  {ratio:6.2f}  " + "".join(f"{seconds.get(stage, 0.0):9.1f}" for stage in STAGES)


if __name__ == "__main__":
    main()
