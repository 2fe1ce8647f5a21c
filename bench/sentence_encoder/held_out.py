"""How well vectors find what is asked, on held-out trades and on paraphrases of the built-in pairs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from texts import DATA, KINDS, choosing_trades, read_starter

from daedap.types import Pair

Floats = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]


@dataclass(frozen=True)
class Scores:
    """Shares of 1."""

    question: float
    """Right row first, by the similarity to the questions of the trade."""
    answer: float
    both: float
    """By the sum of both."""
    kinds: tuple[float, ...]
    """By the sum, per kind of paraphrase."""
    scope: float
    """AUROC of the best row's sum: paraphrases against questions out of scope, within each trade."""
    starter: float
    """Right answer first for paraphrases of the built-in pairs, by the similarity to their questions."""

    @property
    def chosen_by(self) -> float:
        """One number of all: two thirds for trades, one for chit-chat."""
        return (self.both + self.scope + self.starter) / 3

    def __str__(self) -> str:
        kinds = " ".join(f"{kind} {100 * share:.1f}" for kind, share in zip(KINDS, self.kinds, strict=True))
        return (
            f"held-out trades: question {100 * self.question:.1f}, answer {100 * self.answer:.1f}, "
            f"both {100 * self.both:.1f} ({kinds}), AUROC {self.scope:.3f}; starter {100 * self.starter:.1f}"
        )


class HeldOut:
    """The held-out texts, read once."""

    def __init__(self, faq: Path) -> None:
        self.trades = choosing_trades(faq)
        self.known, self.said = read_starter()
        with (DATA / "starter_paraphrases.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.asked = [row["question"] for row in rows]
        numbers = np.array([Pair(*pair).id for pair in zip(self.known, self.said, strict=True)])
        by_id = dict(zip(numbers, self.said, strict=True))
        self.right = [{by_id[one] for one in row["answer_ids"].split("|") if one in by_id} for row in rows]

    def told(self, encode: Encode) -> str:
        """The scores in words."""
        return str(self.scores(encode))

    def scores(self, encode: Encode) -> Scores:
        """Score vectors of length 1."""
        texts = [text for trade in self.trades for text in trade.texts] + self.known + self.asked
        found = dict(zip(texts, encode(texts), strict=True))
        rights, scope = [], []
        for trade in self.trades:
            queries = _rows(found, [text for row in trade.asked for text in row])
            outside = _rows(found, trade.out_of_scope)
            questions, answers = _rows(found, trade.questions), _rows(found, trade.answers)
            target = np.repeat(np.arange(len(trade.questions)), len(KINDS))
            sides = (queries @ questions.T, queries @ answers.T, queries @ (questions + answers).T)
            rights.append(np.stack([scores.argmax(axis=1) == target for scores in sides]))
            best = [(one @ (questions + answers).T).max(axis=1) for one in (queries, outside)]
            scope.append(roc_auc_score(np.repeat([1, 0], [len(part) for part in best]), np.concatenate(best)))
        right = np.concatenate(rights, axis=1)
        nearest = (_rows(found, self.asked) @ _rows(found, self.known).T).argmax(axis=1)
        starter = np.mean([self.said[row] in answers for row, answers in zip(nearest, self.right, strict=True)])
        kinds = tuple(float(one) for one in right[2].reshape(-1, len(KINDS)).mean(axis=0))
        question, answer, both = (float(one) for one in right.mean(axis=1))
        return Scores(question, answer, both, kinds, float(np.mean(scope)), float(starter))


def _rows(found: dict[str, Floats], texts: Sequence[str]) -> Floats:
    return np.stack([found[text] for text in texts])
