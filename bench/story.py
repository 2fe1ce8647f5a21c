"""What helps, and what only seemed to: python bench/story.py FILE [--parts story recipe rows] [--rows 2000]

Somebody fine-tunes with a stock trainer, 3 epochs in batches of 4, and changes one thing after the other: 5 epochs,
batches of 8, weight decay, LoRA, ever more rows. Nothing tells whether any of it helped. Here each change is a run of
its own beside the run that it changes, on the same test rows: differences are paired, with 95 % intervals over
components, and clear ones are named.

The runs are ordinary ones, numbered, in --runs: look into them with `daedap report` and `daedap compare`. What is there
already is neither trained nor scored again, so that the command can be stopped, and goes on when it is given again.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import daedap
import daedap.runs as run_store
from daedap.config import FRESH, ModelOptions, ReadOptions, SplitOptions, TrainOptions
from daedap.data.doctor import load
from daedap.data.split import read_components, read_rows, split
from daedap.evaluation.compare import Difference, common_rows, differences, read_evaluated_run
from daedap.evaluation.evaluate import Row, Systems, evaluate
from daedap.evaluation.evaluate_run import save_evaluation
from daedap.evaluation.testset import EvalSettings
from daedap.model.language_model import open_trained
from daedap.retrieval.bot import Bot
from daedap.retrieval.lexical import LexicalIndex
from daedap.runs import Run

BASELINES = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "warmup_ratio": 0.0,
    "early_stopping_patience": 0,
    "load_best_model_at_end": False,
}
"""A stock trainer's defaults, with the batch that fitted into the memory."""
METRICS = {
    ("model", "bpc"): "bits per character",
    ("model", "question_gain"): "question gain",
    ("model", "hits_at_1"): "Hits@1/20, model",
    ("bot", "hits_at_1"): "Hits@1/20, bot",
    ("bot", "backward_hits_at_1"): "reply fits its question, bot",
}


@dataclass(frozen=True)
class Change:
    """A line of the table."""

    part: str
    name: str
    against: str
    """The name of the line that it changes; empty: none."""
    options: Mapping[str, Any]
    """Of `daedap.train`, beside the rows."""
    rows: int | None = None
    """Rows to learn; None: as many as --rows says."""


STOCK_NAME, OWN_NAME = "stock recipe", "daedap's recipe"
CHANGES = (
    Change("story", STOCK_NAME, "", BASELINES),
    Change("story", "5 epochs instead of 3", STOCK_NAME, {**BASELINES, "num_train_epochs": 5}),
    Change("story", "batches of 8 instead of 4", STOCK_NAME, {**BASELINES, "per_device_train_batch_size": 8}),
    Change("story", "weight decay 0.01 instead of 0", STOCK_NAME, {**BASELINES, "weight_decay": 0.01}),
    Change(
        "story",
        "all three",
        STOCK_NAME,
        {**BASELINES, "num_train_epochs": 5, "per_device_train_batch_size": 8, "weight_decay": 0.01},
    ),
    Change("story", "LoRA at ten times the rate", STOCK_NAME, {**BASELINES, "method": "lora", "learning_rate": 5e-4}),
    Change("story", "learning rate 1e-3 instead of 5e-5", STOCK_NAME, {**BASELINES, "learning_rate": 1e-3}),
    Change("recipe", OWN_NAME, STOCK_NAME, {}),
    Change("recipe", "dropout 0.1", OWN_NAME, {"dropout": 0.1}),
    Change("recipe", "weight averaging", OWN_NAME, {"swa_epoch_start": 1}),
    Change("recipe", "10 epochs, stopped early", OWN_NAME, {"num_train_epochs": 10}),
    Change(
        "recipe",
        "10 epochs, not stopped, the last weights",
        "10 epochs, stopped early",
        {"num_train_epochs": 10, "early_stopping_patience": 0, "load_best_model_at_end": False},
    ),
    Change("recipe", "questions with slips and other spaces too", OWN_NAME, {"augment": ("typo", "spacing")}),
    Change("recipe", "LoRA", OWN_NAME, {"method": "lora"}),
    Change("recipe", "a fresh model", OWN_NAME, {"base": FRESH}),
    Change("rows", "200 rows", OWN_NAME, {}, rows=200),
    Change("rows", "all rows", OWN_NAME, {}, rows=sys.maxsize),
)
PARTS = tuple(dict.fromkeys(change.part for change in CHANGES))


def main() -> None:
    """Make what is missing, then print the table."""
    options = arguments()
    rows = learnable(options.file)
    runs = {}
    for change in chosen(options):
        wanted = {"base": options.base, **change.options, "fraction": min(1.0, (change.rows or options.rows) / rows)}
        started = time.perf_counter()
        runs[change.name] = scored(made(options.file, options.runs, wanted), options.asked)
        tell(f"{change.name}: run {runs[change.name].number}, {time.perf_counter() - started:.0f} s")
    print("\n".join(table(chosen(options), runs)))


def arguments() -> Namespace:
    """What the user asks for."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORDS", help="only changes whose name has these")
    parser.add_argument("--rows", type=int, default=2000, help="rows that a change is tried on")
    parser.add_argument("--asked", type=int, default=100, help="so many test rows are ranked and answered")
    parser.add_argument("--base", default=ModelOptions().base, help="base of all runs but the fresh one")
    parser.add_argument("--runs", type=Path, default=Path("runs/story"), help="folder of the runs")
    return parser.parse_args()


def tell(text: str) -> None:
    """To stderr: stdout holds the table alone."""
    print(text, file=sys.stderr, flush=True)


def chosen(options: Namespace) -> list[Change]:
    """The changes asked for, and what they are set against."""
    inside = [change for change in CHANGES if change.part in options.parts]
    asked = [change for change in inside if any(word in change.name for word in options.only)]
    names = {name for change in asked for name in (change.name, change.against)}
    return [change for change in CHANGES if change.name in names]


def learnable(file: Path) -> int:
    """How many rows of the file a training may learn."""
    return split(load(file, ReadOptions()).pairs, SplitOptions()).assignments.count("train")


def made(file: Path, runs: Path, options: Mapping[str, Any]) -> Run:
    """The run with these options: the one that is there, gone on with where it was interrupted, or a new one."""
    told = {"file": str(file), **settings(options)}
    for run in run_store.list_runs(runs):
        if (run.folder / "config.json").exists() and told.items() <= run.document("config.json").items():
            return run if run.complete else daedap.train(resume=run.folder, runs=runs)
    return daedap.train(file, **options, evaluate=False, runs=runs)


def settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as a run keeps them."""
    kinds: dict[str, Any] = {"split": SplitOptions, "model": ModelOptions, "train": TrainOptions}
    mine = {name: {field.name for field in fields(kind)} & options.keys() for name, kind in kinds.items()}
    groups = {name: asdict(kind(**{key: options[key] for key in mine[name]})) for name, kind in kinds.items()}
    told: dict[str, Any] = json.loads(json.dumps(groups))
    return told


def scored(run: Run, asked: int) -> Run:
    """The run with its scores: of its model and of its bot, without the base beside them and without a stop-watch."""
    if (run.folder / "evaluation").exists():
        return run
    found = evaluate(
        read_rows(run.folder, "test"),
        components=read_components(run.folder, "test"),
        systems=Systems({"model": open_trained(run)}, {"bot": Bot.from_run(run, held_out=False)}),
        index=LexicalIndex.open(run.folder / "index"),
        options=EvalSettings(rows=asked, timed_questions=0),
    )
    save_evaluation(run, found, {})
    return run


def table(changes: Sequence[Change], runs: Mapping[str, Run]) -> list[str]:
    """A line for each change, in Markdown."""
    heads = ["change", "run", "rows", "epochs", "seconds", *METRICS.values(), "against", ""]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for change in changes:
        run = runs[change.name]
        training, rows = run.trained["training"], run.trained["rows"]["train"]
        cells = [change.name, str(run.number), f"{rows:,}", str(training["epochs"]), f"{training['seconds']:.0f}"]
        if change.against in runs:
            found = beside(runs[change.against], run)
            cells += [cell(found[of]) for of in METRICS] + [change.against, verdict(found)]
        else:
            cells += [f"{value:.3f}" for value in values(run)] + ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    told = "Brackets: 95 % interval of the paired difference; bold where it leaves out 0, which 1 in 20 does by chance."
    return [*lines, "", told]


def values(run: Run) -> Iterator[float]:
    """A run's own scores on all test rows."""
    scores = run.document("evaluation/scores.json")["scores"]
    return (scores[system]["all"][metric]["value"] for system, metric in METRICS)


def beside(first: Run, second: Run) -> dict[tuple[str, str], Difference]:
    """System and metric → what the second run has more than the first, on the test rows of both."""
    shared = common_rows(read_evaluated_run(first), read_evaluated_run(second))
    found: dict[tuple[str, str], Difference] = {}
    for system in dict.fromkeys(system for system, _ in METRICS):
        rows = [(of(system, mine), of(system, other)) for mine, other in shared.rows]
        found |= {(system, metric): one for metric, one in differences(replace(shared, rows=rows))["all"].items()}
    return found


def of(system: str, row: Row) -> Row:
    """One system's share of a row."""
    return replace(row, replies={}, terms={system: row.terms[system]})


def cell(found: Difference) -> str:
    """The value, and what it is more than the other one's."""
    told = f"{found.difference:+.3f}"
    if found.low is not None and found.high is not None:
        told += f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.second:.3f} ({f'**{told}**' if found.verdict in ('better', 'worse') else told})"


def verdict(found: Mapping[tuple[str, str], Difference]) -> str:
    """Helped, hurt, both, or neither."""
    words = {"better": "helped", "worse": "hurt"}
    told = [
        f"{word} ({', '.join(name for of, name in METRICS.items() if found[of].verdict == kind)})"
        for kind, word in words.items()
        if any(found[of].verdict == kind for of in METRICS)
    ]
    return ", ".join(told) or "no clear difference"


if __name__ == "__main__":
    main()
