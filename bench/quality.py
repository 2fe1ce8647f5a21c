"""What makes answers relevant: python bench/quality.py FILE --runs FOLDER [--seeds 42 1 2] [--epochs 5]

Trains a run for each seed, as daedap does by itself and with one thing changed at a time, and takes the bots apart:
Hits@1/20 of their ranking with and without each view, each fitted anew on the dev rows, and backward Hits@1/20 of what
they say, by a judge that takes no part in answering. Differences are paired, with 95 % intervals over components.

Runs are kept in FOLDER, and what is already there is not trained again.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import daedap
from daedap.config import AnswerOptions
from daedap.data.split import read_components, read_rows
from daedap.evaluation.metrics import bootstrap, gold_ranks
from daedap.evaluation.reply_retrieval import ReplyToQuestionScorer
from daedap.evaluation.testset import EvalSet, EvalSettings, make_eval_set
from daedap.retrieval.bot import Bot
from daedap.retrieval.rerank import RerankWeights, dev_features, differences, fit_linear
from daedap.runs import Run
from daedap.types import Pair

Right = NDArray[np.float64]
"""(asked,): 1 where the right one came first."""
VIEWS = tuple(asdict(RerankWeights()))[:4]
USUAL = "as it is"
CHANGES: dict[str, dict[str, Any]] = {
    USUAL: {},
    "the model learns slips and spaces, too": {"augment": ("typo", "spacing")},
    "a tenth of the answers without their question, too": {"null_question_share": 0.1},
    "the upper half of the layers alone": {"layers": 3},
}


def main() -> None:
    """Train, take apart, print tables."""
    parser = ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=500, help="so many test rows are ranked and answered")
    options = parser.parse_args()
    exams, usual, changed = zip(*(_with_seed(options, seed) for seed in options.seeds), strict=True)
    tables = (_table(usual, exams, BASELINES), _table(changed, exams, {kind: f"{kind}: {USUAL}" for kind in KINDS}))
    print("\n\n".join("\n".join(table) for table in tables))


def _with_seed(options: Namespace, seed: int) -> tuple[EvalSet, dict[str, Right], dict[str, Right]]:
    """What is asked; the usual bot taken apart; and every changed one, all in all."""
    runs = {name: _trained(options.file, options.runs, name, seed, options.epochs) for name in CHANGES}
    eval_set = _exam(runs[USUAL], options.rows)
    ranked = {name: _ranking(run, eval_set) for name, run in runs.items()}
    usual = ranked[USUAL] | _saying(runs[USUAL], eval_set)
    said = {name: usual["backward: bot"] if name == USUAL else _replying(run, eval_set) for name, run in runs.items()}
    return eval_set, usual, {key: right for name in runs for key, right in _whole(name, ranked[name], said[name])}


def _trained(file: Path, folder: Path, name: str, seed: int, epochs: int) -> Run:
    """The run of a change and a seed, from an earlier call where it is there."""
    place = folder / f"{list(CHANGES).index(name)}-{seed}-{epochs}"
    found = Run(place / "0001")
    if found.complete:
        return found
    if found.folder.exists():
        return daedap.train(resume=found.folder, runs=place)
    return daedap.train(file, runs=place, seed=seed, num_train_epochs=epochs, evaluate=False, **CHANGES[name])


KINDS = ("ranking of the bot", "ranking of its model alone", "replies, backward")


def _whole(name: str, ranking: Mapping[str, Right], said: Right) -> list[tuple[str, Right]]:
    """What a changed run comes to, all in all."""
    values = (ranking["Hits@1/20: all views"], ranking["Hits@1/20: told alone"], said)
    return [(f"{kind}: {name}", right) for kind, right in zip(KINDS, values, strict=True)]


def _exam(run: Run, rows: int) -> EvalSet:
    test, components = read_rows(run.folder, "test"), read_components(run.folder, "test")
    return make_eval_set(test, components, read_rows(run.folder, "train"), EvalSettings(rows=rows))


def _ranking(run: Run, eval_set: EvalSet) -> dict[str, Right]:
    bot = Bot.from_run(run, held_out=False)
    ranker = bot.retriever.reranker(bot.language_model)
    apart = differences(
        dev_features(ranker, read_rows(run.folder, "dev"), [pair.answer for pair in bot.retriever.index.pairs])
    )
    views = np.stack(ranker.features([replace(pair, answer="") for pair in eval_set.ranked_pairs], eval_set.candidates))
    kept: dict[str, Sequence[int]] = {"all views": range(4)}
    kept |= {f"without {name}": [n for n in range(4) if n != number] for number, name in enumerate(VIEWS)}
    kept |= {f"{name} alone": [number] for number, name in enumerate(VIEWS)}
    return {
        f"Hits@1/20: {name}": _first(views[:, :, list(cut)] @ fit_linear(apart[:, list(cut)]))
        for name, cut in kept.items()
    }


def _saying(run: Run, eval_set: EvalSet) -> dict[str, Right]:
    bot = Bot.from_run(run, held_out=False)
    asked = _questions(eval_set)
    silent = Bot.from_run(run, answer_options=AnswerOptions(samples=0), held_out=False)
    replies = {
        "people": [pair.answer for pair in eval_set.ranked_pairs],
        "nearest question by letters": [near[0].answer for near in bot.retriever.index.nearest(asked)],
        "model alone, greedy": [said.text for said in bot.language_model.reply([Pair(text, "") for text in asked])],
        "bot without proposals of the model": [reply.text for reply in silent.reply_many(asked)],
        "bot": [reply.text for reply in bot.reply_many(asked)],
    }
    return {f"backward: {name}": _backward(run, eval_set, said) for name, said in replies.items()}


def _replying(run: Run, eval_set: EvalSet) -> Right:
    bot = Bot.from_run(run, held_out=False)
    return _backward(run, eval_set, [reply.text for reply in bot.reply_many(_questions(eval_set))])


def _questions(eval_set: EvalSet) -> list[str]:
    return [pair.question for pair in eval_set.ranked_pairs]


def _backward(run: Run, eval_set: EvalSet, said: Sequence[str]) -> Right:
    return _first(_judge(run).scores(said, eval_set.candidate_questions))


@cache
def _judge(run: Run) -> ReplyToQuestionScorer:
    return ReplyToQuestionScorer.fit(read_rows(run.folder, "train"))


def _first(scores: Right) -> Right:
    return (gold_ranks(scores) <= 1).astype(np.float64)


BASELINES = {"Hits@1/20": "Hits@1/20: known alone", "backward": "backward: nearest question by letters"}


def _table(
    outcomes: Sequence[Mapping[str, Right]], exams: Sequence[EvalSet], baselines: Mapping[str, str]
) -> list[str]:
    """Means over the seeds; differences to the kind's baseline of all seeds together."""
    lines = ["| | % (mean of seeds) | each seed | against the baseline, points [95 %] |", "|---|---|---|---|"]
    for name in outcomes[0]:
        each = [100 * float(outcome[name].mean()) for outcome in outcomes]
        cells = [f"{np.mean(each):.1f}", " ".join(f"{value:.1f}" for value in each)]
        against = _against(outcomes, exams, name, baselines[name.split(":")[0]])
        lines.append(f"| {name} | {' | '.join(cells)} | {against} |")
    return lines


def _against(outcomes: Sequence[Mapping[str, Right]], exams: Sequence[EvalSet], name: str, baseline: str) -> str:
    if name == baseline:
        return "–"
    gained = np.concatenate([outcome[name] - outcome[baseline] for outcome in outcomes])
    groups = [eval_set.groups[list(eval_set.ranked_rows)] + 10**6 * number for number, eval_set in enumerate(exams)]
    interval = bootstrap(gained, np.ones(len(gained)), np.concatenate(groups))
    return f"{100 * gained.mean():+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


if __name__ == "__main__":
    main()
