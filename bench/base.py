"""What a base brings: the same file, settings and split, once from daedap-mini and once from nothing.

python bench/base.py ChatbotData.csv [--epochs 5] [--rows 300]     appends to bench/RESULTS.md

The fresh model is smaller and faster, so it is trained again for about as long as daedap-mini took.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

import daedap
from daedap.config import FRESH, MINI
from daedap.data.split import read_components, read_rows
from daedap.evaluation.metrics import Score, gold_ranks, ranking, ratio
from daedap.evaluation.testset import candidates
from daedap.model.language_model import open_trained
from daedap.runs import Run

RESULTS = Path(__file__).parent / "RESULTS.md"
METRICS = {"bpc": "bits per character", "question_gain": "question gain", "hits_at_1": "Hits@1/20"}


def main() -> None:
    """Train three times, print, and append to the results."""
    parser = ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=300, help="so many test rows are ranked")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mini, fresh = (trained(options.file, options.epochs, base, Path(folder)) for base in (MINI, FRESH))
        epochs = max(1, round(options.epochs * seconds(mini) / seconds(fresh)))
        longer = trained(options.file, epochs, FRESH, Path(folder))
        lines = report([mini, fresh, longer], options.rows)
    command = "python " + " ".join([*sys.argv[:1], options.file.name, *sys.argv[2:]])
    text = "\n".join(["", f"## What the base brings ({date.today()})", "", f"`{command}`", "", *lines, ""])
    with RESULTS.open("a", encoding="utf-8") as results:
        results.write(text)
    print(text)


def trained(file: Path, epochs: int, base: str, folder: Path) -> Run:
    """A run without scores: they are taken later, alike for all."""
    return daedap.train(file, base=base, num_train_epochs=epochs, evaluate=False, runs=folder)


def seconds(run: Run) -> float:
    """Of training alone."""
    return float(run.trained["training"]["seconds"])


def report(runs: list[Run], rows: int) -> list[str]:
    """A table with a row for each run."""
    lines = ["| base | weights | epochs (best) | training | " + " | ".join(METRICS.values()) + " | … by PMI |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for run in runs:
        learned = run.trained
        training, weights = learned["training"], learned["parameters"]["total"]
        scores = daedap.evaluate(run=run.folder, rows=rows).scores["model"]["all"]
        cells = [learned["base"]["name"], f"{weights / 1e6:.1f} M", f"{training['epochs']} ({training['best_epoch']})"]
        cells += [
            f"{training['seconds']:.0f} s",
            *(formatted(scores[metric]) for metric in METRICS),
            formatted(by_pmi(run, rows)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def formatted(score: Score) -> str:
    """Value and interval."""
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def by_pmi(run: Run, rows: int) -> Score:
    """Hits@1/20 when candidates are ranked by log p(answer | question) − log p(answer | no question), per token."""
    test, speaker = read_rows(run.folder, "test"), open_trained(run)
    asked = sorted(range(len(test)), key=lambda row: test[row].id)[:rows]
    choices = candidates(test)
    offered = [replace(test[row], answer=answer) for row in asked for answer in choices[row]]
    given = speaker.log2_probability(offered)
    alone = speaker.log2_probability([replace(pair, question="", history=()) for pair in offered])
    scores = ((given[:, 0] - alone[:, 0]) / given[:, 1]).reshape(len(asked), -1)
    groups = np.unique(np.array(read_components(run.folder, "test"))[asked], return_inverse=True)[1]
    score = ratio(ranking(gold_ranks(scores))["hits_at_1"], groups)
    assert score
    return score


if __name__ == "__main__":
    main()
