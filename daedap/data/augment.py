"""More training rows for nothing: the same answer to the question as other people would type it."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from cyclopts import Parameter, Token

from daedap.data.dedup import near_duplicates
from daedap.data.split import question_in_context
from daedap.errors import SettingsError
from daedap.korean.perturb import KINDS, Kind, perturb_each
from daedap.korean.text import comparison_form
from daedap.types import Pair

# Without `from __future__ import annotations`: cyclopts looks up the names in an inherited option's type where the heir
# is defined.


def _named(_: object, tokens: Sequence[Token]) -> list[str]:
    """`--augment typo,spacing`; which names there are is checked with those that Python gives."""
    return [name.strip() for token in tokens for name in token.value.split(",")]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Rows to learn besides those of the file."""

    augment: Annotated[Sequence[Kind], Parameter(converter=_named, n_tokens=1, negative=(), show_default=False)] = ()
    """Learn questions also as other people would type them; several kinds are joined by commas."""
    augment_share: float = 0.5
    """So many more rows of each of these kinds, in relation to the training rows."""
    null_question_share: float = 0.0
    """Share of the training rows to learn once more without their question: what an answer is worth by itself."""

    def __post_init__(self) -> None:
        for kind in self.augment:
            if kind not in KINDS:
                raise SettingsError(
                    "--augment {kind}: there is no such kind.", "There are: {kinds}", kind=kind, kinds=", ".join(KINDS)
                )
        if not 0 < self.augment_share <= 10:
            raise SettingsError(
                "--augment-share {value}: must be above 0 and at most 10.", "Try 0.5.", value=self.augment_share
            )
        if not 0 <= self.null_question_share <= 1:
            raise SettingsError(
                "--null-question-share {value}: must lie between 0 and 1.", "Try 0.1.", value=self.null_question_share
            )


def augment(
    pairs: Sequence[Pair], kinds: Sequence[Kind], share: float, seed: int, *, held_out: Sequence[Pair] = ()
) -> list[Pair]:
    """Copies of pairs with a disturbed question, `share` per pair and kind; the pairs themselves are not among them.

    A copy is left out when nothing changed, when the question is already there with another answer, or when it comes
    near a question that is held out. A pair's copies depend on it and on the seed, not on the other pairs' order.
    """
    copies = [copy for kind in kinds for copy in _far_from(held_out, [*_copies(pairs, kind, share, seed)])]
    answers = defaultdict(set)
    for pair in (*pairs, *copies):
        answers[_asked(pair)].add(pair.answer)
    there = {*map(_learned, pairs)}
    new = {_learned(copy): copy for copy in copies if len(answers[_asked(copy)]) == 1}
    return [copy for learned, copy in new.items() if learned not in there]


def without_question(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """Copies of about this share of the pairs, of which nothing is left but the answer."""
    chosen = (pair for pair in pairs if random.Random(f"{seed} null {pair.id}").random() < share)
    return [replace(pair, question="", history=()) for pair in chosen]


def _copies(pairs: Sequence[Pair], kind: Kind, share: float, seed: int) -> Iterator[Pair]:
    chosen: list[tuple[Pair, random.Random]] = []
    for pair in pairs:
        rng = random.Random(f"{seed} {kind} {pair.id}")
        count = int(share) + (rng.random() < share % 1)
        chosen += [(pair, rng)] * count
    questions, dices = [pair.question for pair, _ in chosen], [rng for _, rng in chosen]
    for (pair, _), question in zip(chosen, perturb_each(questions, kind, dices), strict=True):
        if question != pair.question:
            yield replace(pair, question=question)


def _far_from(held_out: Sequence[Pair], copies: list[Pair]) -> list[Pair]:
    """Those that are no near-duplicates of a held-out question: what a split has parted stays apart."""
    forms = list(dict.fromkeys(map(_asked, (*held_out, *copies))))
    held = len({*map(_asked, held_out)})
    near = {forms[row] for row, others in near_duplicates(forms) if row < held or any(other < held for other in others)}
    return [copy for copy in copies if _asked(copy) not in near]


def _asked(pair: Pair) -> str:
    return comparison_form(question_in_context(pair))


def _learned(pair: Pair) -> tuple[str, str]:
    return question_in_context(pair), pair.answer
