"""What makes answers relevant: python bench/quality.py FILE [--seeds 42 1 2] [--options "…"]

Trains a run for each seed and takes the bot apart: Hits@1/20 of its ranking with and without each view, each fitted
anew on the dev rows, and backward Hits@1/20 of what it says, by a judge that takes no part in answering. Differences
are paired, with 95 % intervals over components.
"""

from __future__ import annotations

import shlex
import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daedap.answer.bot import Bot, Manner
from daedap.answer.rank import Weights, differences, weigh
from daedap.cli import run as daedap
from daedap.data.store import read_components, read_side
from daedap.judge.backward import BackwardJudge
from daedap.judge.exam import Exam, Options, set_exam
from daedap.judge.metrics import bootstrap, gold_ranks
from daedap.pair import Pair
from daedap.runs import Run

Right = NDArray[np.float64]
"""(asked,): 1 where the right one came first."""
VIEWS = tuple(asdict(Weights()))[:4]


def main() -> None:
    """Train, take apart, print a table."""
    parser = ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--options", default="", help="more options of daedap train")
    parser.add_argument("--rows", type=int, default=500, help="so many test rows are ranked and answered")
    options = parser.parse_args()
    outcomes, exams = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            words = ["train", str(options.file), "--seed", str(seed), "--no-evaluate", "--runs", f"{folder}/{seed}"]
            assert daedap([*words, *shlex.split(options.options)]) == 0, "the training failed"
            run = Run(Path(folder) / str(seed) / "0001")
            exams.append(_exam(run, options.rows))
            outcomes.append(_ranking(run, exams[-1]) | _saying(run, exams[-1]))
    print("\n".join(_table(outcomes, exams)))


def _exam(run: Run, rows: int) -> Exam:
    test, components = read_side(run.folder, "test"), read_components(run.folder, "test")
    return set_exam(test, components, read_side(run.folder, "train"), Options(rows=rows))


def _ranking(run: Run, exam: Exam) -> dict[str, Right]:
    bot = Bot.of(run, held_out=False)
    ranker = bot.memory.ranker(bot.talker)
    apart = differences(ranker, read_side(run.folder, "dev"), [pair.answer for pair in bot.memory.index.pairs])
    views = np.stack(ranker.views([replace(pair, answer="") for pair in exam.questions], exam.candidates))
    kept: dict[str, Sequence[int]] = {"all views": range(4)}
    kept |= {f"without {name}": [n for n in range(4) if n != number] for number, name in enumerate(VIEWS)}
    kept |= {f"{name} alone": [number] for number, name in enumerate(VIEWS)}
    return {
        f"Hits@1/20: {name}": _first(views[:, :, list(cut)] @ weigh(apart[:, list(cut)])) for name, cut in kept.items()
    }


def _saying(run: Run, exam: Exam) -> dict[str, Right]:
    judge = BackwardJudge.fit(read_side(run.folder, "train"))
    bot = Bot.of(run, held_out=False)
    asked = [pair.question for pair in exam.questions]
    silent = Bot.of(run, manner=Manner(samples=0), held_out=False)
    replies = {
        "people": [pair.answer for pair in exam.questions],
        "nearest question by letters": [near[0].answer for near in bot.memory.index.nearest(asked)],
        "model alone, greedy": [said.text for said in bot.talker.reply([Pair(text, "") for text in asked])],
        "bot without proposals of the model": [reply.text for reply in silent.reply_many(asked)],
        "bot": [reply.text for reply in bot.reply_many(asked)],
    }
    return {f"backward: {name}": _first(judge.scores(said, exam.candidate_questions)) for name, said in replies.items()}


def _first(scores: Right) -> Right:
    return (gold_ranks(scores) <= 1).astype(np.float64)


def _table(outcomes: Sequence[Mapping[str, Right]], exams: Sequence[Exam]) -> list[str]:
    """Means over the seeds; differences to the kind's baseline of all seeds together."""
    lines = ["| | % (mean of seeds) | each seed | against the baseline, points [95 %] |", "|---|---|---|---|"]
    baselines = {"Hits@1/20": "Hits@1/20: known alone", "backward": "backward: nearest question by letters"}
    for name in outcomes[0]:
        each = [100 * float(outcome[name].mean()) for outcome in outcomes]
        cells = [f"{np.mean(each):.1f}", " ".join(f"{value:.1f}" for value in each)]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {_against(outcomes, exams, name, baselines[name.split(':')[0]])} |"
        )
    return lines


def _against(outcomes: Sequence[Mapping[str, Right]], exams: Sequence[Exam], name: str, baseline: str) -> str:
    if name == baseline:
        return "–"
    gained = np.concatenate([outcome[name] - outcome[baseline] for outcome in outcomes])
    groups = [exam.groups[list(exam.asked)] + 10**6 * number for number, exam in enumerate(exams)]
    interval = bootstrap(gained, np.ones(len(gained)), np.concatenate(groups))
    return f"{100 * gained.mean():+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


if __name__ == "__main__":
    main()
