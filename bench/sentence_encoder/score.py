"""How well the encoder finds the right row, with and without n-grams; nothing is ever refused here.

    python bench/sentence_encoder/score.py [--encoder FOLDER] [--faq-test FOLDER] [--chat PAIRS.csv PARAPHRASES.csv]

On the held-out trades of data/faq, each by itself; on a folder with faq.csv (질문,답변), paraphrases.csv
(question,answers,kind) and out_of_scope.csv (question,kind); on pairs (question, answer, …) with paraphrases
(question, answers with | between several). The rows' scores come from similarities of what is asked to their question
(q), to their answer (a), and from character 1-4-grams over both (n). Weights are tried on the held-out trades alone.
AUROC: whether the best row's score tells paraphrases from questions out of scope.
"""

from __future__ import annotations

import csv
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score
from texts import KINDS, choosing_trades

from daedap.model.sentence_encoder import SentenceEncoder

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Exam:
    """Known rows, and what is asked about them."""

    questions: list[str]
    answers: list[str]
    asked: list[str]
    right: list[set[str]]
    """The right answers of each."""
    kinds: list[str]
    outside: list[str]


class Weights(NamedTuple):
    """What q, a and n count."""

    question: float
    answer: float
    ngrams: float

    def __str__(self) -> str:
        return " + ".join(f"{weight:g} {name}" for name, weight in zip("qan", self, strict=True) if weight)


class Sides(NamedTuple):
    """(asked, rows) each."""

    question: Floats
    answer: Floats
    ngrams: Floats

    def scores(self, weights: Weights) -> Floats:
        """(asked, rows)"""
        total: Floats = sum(weight * side for weight, side in zip(weights, self, strict=True) if weight)
        return total


NAMED = [Weights(1, 0, 0), Weights(0, 1, 0), Weights(1, 1, 0), Weights(0, 0, 1), Weights(0.5, 0.5, 1)]
GRID = [Weights(1, *others) for others in product((0, 0.25, 0.5, 0.75, 1, 1.25), (0, 0.25, 0.5, 0.75, 1, 1.5, 2))]


class Scored:
    """An exam with its similarities."""

    def __init__(self, exam: Exam, encoder: SentenceEncoder) -> None:
        self.exam = exam
        self.asked = _sides(exam, exam.asked, encoder)
        self.outside = _sides(exam, exam.outside, encoder) if exam.outside else None

    def hits(self, weights: Weights, nearest: int = 1) -> NDArray[np.bool_]:
        """(asked,): whether a right answer is among the first so many rows."""
        first = np.argsort(-self.asked.scores(weights), axis=1, kind="stable")[:, :nearest]
        answers = self.exam.answers
        return np.array(
            [any(answers[row] in right for row in rows) for rows, right in zip(first, self.exam.right, strict=True)]
        )

    def scope(self, weights: Weights) -> float:
        """AUROC of the best score, in scope against out of it; nan without questions out of scope."""
        if self.outside is None:
            return float("nan")
        inside, outside = (side.scores(weights).max(axis=1) for side in (self.asked, self.outside))
        labels = np.repeat([1, 0], [len(inside), len(outside)])
        return float(roc_auc_score(labels, np.concatenate([inside, outside])))


def _sides(exam: Exam, texts: Sequence[str], encoder: SentenceEncoder) -> Sides:
    asked = encoder.encode(texts)
    rows = [f"{question} {answer}" for question, answer in zip(exam.questions, exam.answers, strict=True)]
    ngrams = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, dtype=np.float32).fit(rows)
    lexical = (ngrams.transform(texts) @ ngrams.transform(rows).T).toarray()
    return Sides(asked @ encoder.encode(exam.questions).T, asked @ encoder.encode(exam.answers).T, lexical)


def trade_exams(folder: Path) -> Iterator[Exam]:
    """The held-out trades."""
    for trade in choosing_trades(folder):
        asked = [text for row in trade.asked for text in row]
        right = [{answer} for answer in trade.answers for _ in KINDS]
        yield Exam(trade.questions, trade.answers, asked, right, [*KINDS] * len(trade.answers), trade.out_of_scope)


def folder_exam(folder: Path) -> Exam:
    """An FAQ with its paraphrases and questions out of scope."""
    known, asked, outside = (_rows(folder / f"{name}.csv") for name in ("faq", "paraphrases", "out_of_scope"))
    right = [set(row["answers"].split("|")) for row in asked]
    outside_texts = [row["question"] for row in outside]
    kinds = [row["kind"] for row in asked]
    texts = [row["question"] for row in asked]
    return Exam([row["질문"] for row in known], [row["답변"] for row in known], texts, right, kinds, outside_texts)


def chat_exam(pairs: Path, paraphrases: Path) -> Exam:
    """Pairs of small talk with paraphrases of their questions."""
    known, asked = ([list(row.values()) for row in _rows(path)] for path in (pairs, paraphrases))
    right = [set(row[1].split("|")) for row in asked]
    return Exam(
        [row[0] for row in known], [row[1] for row in known], [row[0] for row in asked], right, ["all"] * len(asked), []
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def tell(name: str, exams: Sequence[Scored], best: Weights) -> None:
    """A table: each way to score, over all exams; AUROC is the mean of theirs."""
    kinds = np.array([kind for one in exams for kind in one.exam.kinds])
    names = [kind for kind in KINDS if kind in kinds]
    print(f"\n{name}: {len(kinds)} asked\n\n| score | first | first three | {' / '.join(names)} | AUROC |")
    print("|---|---:|---:|---|---:|")
    for weights in [*NAMED, best]:
        first, three = (np.concatenate([one.hits(weights, nearest) for one in exams]) for nearest in (1, 3))
        shares = " / ".join(f"{100 * first[kinds == kind].mean():.1f}" for kind in names)
        scope = np.mean([one.scope(weights) for one in exams])
        print(
            f"| {weights} | {100 * first.mean():.1f} | {100 * three.mean():.1f} | {shares} | {scope:.3f} |", flush=True
        )


def chosen(exams: Sequence[Scored]) -> Weights:
    """The weights with most right rows; among equals, those that tell scope best."""
    return max(
        GRID,
        key=lambda weights: (
            np.concatenate([one.hits(weights) for one in exams]).mean(),
            np.mean([one.scope(weights) for one in exams]),
        ),
    )


def main(options: Namespace) -> None:
    """Print the tables."""
    encoder = SentenceEncoder.open(options.encoder)
    trades = [Scored(exam, encoder) for exam in trade_exams(options.faq)]
    best = chosen(trades)
    tell(f"{len(trades)} held-out trades", trades, best)
    if options.faq_test:
        tell(options.faq_test.name, [Scored(folder_exam(options.faq_test), encoder)], best)
    if options.chat:
        tell(options.chat[1].name, [Scored(chat_exam(*options.chat), encoder)], best)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", type=Path, help="by default the built-in one")
    parser.add_argument("--faq", type=Path, default=Path(__file__).parents[2] / "data" / "faq")
    parser.add_argument("--faq-test", type=Path)
    parser.add_argument("--chat", type=Path, nargs=2, metavar=("PAIRS", "PARAPHRASES"))
    main(parser.parse_args(sys.argv[1:]))
