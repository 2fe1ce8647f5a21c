"""What the sentence encoder learns from and is chosen by: trades, pairs of texts, plain sentences.

Texts of evaluation files are given by `Forbidden`, and nothing that equals one of them is ever returned.
"""

from __future__ import annotations

import csv
import json
import lzma
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from daedap.config import Perturbation
from daedap.korean.perturb import perturb_each
from daedap.korean.text import comparison_form

DATA = Path(__file__).parents[2] / "daedap" / "data"
_CHOOSING = frozenset({5, 11, 17, 23, 29, 35, 41, 43, 47, 53})
"""Trades by which states of the encoder were chosen."""
_FIRST_OF_RANKER, _FIRST_OF_LATER = 57, 65
"""Trades that were written for bench/ranker.py, and later ones, of which every fourth is held out."""
KINDS = ("words", "casual", "messy", "long")
"""Paraphrases of a row: other words; short and informal; typos; with a situation."""
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Trade:
    """An FAQ of one trade: rows in the same order in all three lists."""

    name: str
    questions: list[str]
    answers: list[str]
    asked: list[list[str]]
    """Each row's paraphrases, in the order of KINDS."""
    out_of_scope: list[str]
    """Questions that no row answers."""

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return [*self.questions, *self.answers, *(text for row in self.asked for text in row), *self.out_of_scope]


class Forbidden:
    """Texts of evaluation files (all their cells), compared without spacing, punctuation and case."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.forms: set[str] = set()
        for path in files:
            with path.open(encoding="utf-8-sig", newline="") as file:
                cells = (part for row in csv.reader(file) for cell in row for part in (cell, *cell.split("|")))
                self.forms.update(comparison_form(cell) for cell in cells)

    def without(self, texts: Iterable[str]) -> list[str]:
        """The texts that no evaluation file has."""
        return [text for text in texts if text not in self]

    def __contains__(self, text: str) -> bool:
        return comparison_form(text) in self.forms


def read_trades(folder: Path, keep: Callable[[int], bool] = lambda number: True) -> list[Trade]:
    """The trades whose number is to be kept, in ascending order."""
    numbered = {trade_number(path): path for path in folder.glob("*.jsonl")}
    return [_trade(numbered[number]) for number in sorted(numbered) if keep(number)]


def trade_number(path: Path) -> int:
    """By which a file's trade is assigned to what learns from it."""
    return int(path.name.split("_")[0])


def is_held_out(number: int) -> bool:
    """Whether no model learns from a trade: figures and the matcher's weights come from these."""
    return (
        number in _CHOOSING
        or _FIRST_OF_RANKER <= number < _FIRST_OF_LATER
        or (number >= _FIRST_OF_LATER and number % 4 == 0)
    )


def teaches(number: int) -> bool:
    """Whether sentence encoder and interaction model learn from a trade."""
    return not is_held_out(number)


def training_trades(folder: Path, forbidden: Forbidden) -> list[Trade]:
    """The trades that teach, without rows and paraphrases of evaluation files."""
    return [_allowed(trade, forbidden) for trade in read_trades(folder, teaches)]


def choosing_trades(folder: Path) -> list[Trade]:
    """The held-out trades by which states of the encoder are chosen."""
    return read_trades(folder, _CHOOSING.__contains__)


def _trade(path: Path) -> Trade:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [line for line in lines if "question" in line]
    return Trade(
        path.stem,
        [row["question"] for row in rows],
        [row["answer"] for row in rows],
        [[row[kind] for kind in KINDS] for row in rows],
        [line["out_of_scope"] for line in lines if "out_of_scope" in line],
    )


def _allowed(trade: Trade, forbidden: Forbidden) -> Trade:
    rows = [
        (question, answer, kept)
        for question, answer, asked in zip(trade.questions, trade.answers, trade.asked, strict=True)
        if question not in forbidden and answer not in forbidden and (kept := forbidden.without(asked))
    ]
    questions, answers, asked = map(list, zip(*rows, strict=True))
    return Trade(trade.name, questions, answers, asked, forbidden.without(trade.out_of_scope))


def read_starter() -> tuple[list[str], list[str]]:
    """Questions and answers of the built-in pairs."""
    with (DATA / "starter.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["question"] for row in rows], [row["answer"] for row in rows]


def starter_pairs(forbidden: Forbidden) -> tuple[Pairs, Pairs]:
    """From the built-in pairs: two questions with the same answer; a question and its answer."""
    groups: dict[str, list[str]] = defaultdict(list)
    for question, answer in zip(*read_starter(), strict=True):
        if question not in forbidden and answer not in forbidden:
            groups[answer].append(question)
    alike = [(one, other) for group in groups.values() for one, other in pairwise(group)]
    return alike, [(question, answer) for answer, group in groups.items() for question in group]


def read_dialogues(corpus: Path) -> Iterator[tuple[str, list[str]]]:
    """Source and texts of each dialogue."""
    with lzma.open(corpus / "dialogues.jsonl.xz", "rt", encoding="utf-8") as file:
        for line in file:
            talk = json.loads(line)
            yield talk["source"], [message["content"] for message in talk["messages"]]


def dialogue_pairs(corpus: Path, forbidden: Forbidden) -> Pairs:
    """Question and reply of the dialogues in which a reply answers its question: manuals and general knowledge."""
    talks = [talk for source, talk in read_dialogues(corpus) if source in ("hg-tods-manual", "chatterbot-corpus")]
    pairs = {pair for talk in talks for pair in zip(talk[::2], talk[1::2], strict=False)}
    return sorted(pair for pair in pairs if pair[0] not in forbidden and pair[1] not in forbidden)


def sentences(corpus: Path, forbidden: Forbidden, reviews: int, seed: int) -> list[str]:
    """Plain sentences of the corpora, 4 to 60 characters, no two alike.

    So many film reviews and, as they are stiff, at most as many of the translated comments; all else.
    """
    found: dict[str, str] = {}
    for name, most in (("kote", None), ("goemotions_ko", reviews), ("nsmc", reviews)):
        with lzma.open(corpus / f"{name}.txt.xz", "rt", encoding="utf-8") as file:
            lines = [line.strip() for line in file if 4 <= len(line.strip()) <= 60]
        if most is not None and most < len(lines):
            lines = random.Random(seed).sample(lines, most)
        found.update((comparison_form(line), line) for line in lines)
    for _, talk in read_dialogues(corpus):
        found.update((comparison_form(text), text) for text in talk if 4 <= len(text) <= 60)
    return [text for form, text in found.items() if form not in forbidden.forms]


def disturbed(texts: Sequence[str], seed: int, kinds: Sequence[Perturbation] = ("typo", "spacing", "casual")) -> Pairs:
    """Each text beside itself as somebody else might type it, by one of the kinds; those that change."""
    rng = random.Random(seed)
    chosen = [rng.choice(kinds) for _ in texts]
    pairs: Pairs = []
    for kind in kinds:
        some = [text for text, one in zip(texts, chosen, strict=True) if one == kind]
        pairs += zip(perturb_each(some, kind, [random.Random(rng.random()) for _ in some]), some, strict=True)
    return [pair for pair in pairs if pair[0] != pair[1]]
