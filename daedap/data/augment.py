"""Data augmentation: copies of training rows with a perturbed question and the same answer."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from daedap.config import Perturbation
from daedap.data.dedup import near_duplicates
from daedap.data.split import question_in_context
from daedap.korean.perturb import perturb_each
from daedap.korean.text import comparison_form
from daedap.types import Pair


def augment(
    pairs: Sequence[Pair], kinds: Sequence[Perturbation], share: float, seed: int, *, held_out: Sequence[Pair] = ()
) -> list[Pair]:
    """Copies of pairs with perturbed questions, `share` per pair and kind, without the pairs themselves.

    A copy is left out when nothing changed, when its question exists with another answer, or when it is a
    near-duplicate of a held-out question. The copies of a pair depend on the pair and the seed, not on row order.
    """
    copies = [copy for kind in kinds for copy in _without_leakage(held_out, [*_copies(pairs, kind, share, seed)])]
    answers = defaultdict(set)
    for pair in (*pairs, *copies):
        answers[_form(pair)].add(pair.answer)
    known = {*map(_key, pairs)}
    unambiguous = {_key(copy): copy for copy in copies if len(answers[_form(copy)]) == 1}
    return [copy for key, copy in unambiguous.items() if key not in known]


def without_question(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """Copies of about `share` of the pairs with an empty question and no history (for P(answer) alone)."""
    sampled = (pair for pair in pairs if random.Random(f"{seed} null {pair.id}").random() < share)
    return [replace(pair, question="", history=()) for pair in sampled]


def _copies(pairs: Sequence[Pair], kind: Perturbation, share: float, seed: int) -> Iterator[Pair]:
    sampled: list[tuple[Pair, random.Random]] = []
    for pair in pairs:
        rng = random.Random(f"{seed} {kind} {pair.id}")
        sampled += [(pair, rng)] * (int(share) + (rng.random() < share % 1))
    questions = perturb_each([pair.question for pair, _ in sampled], kind, [rng for _, rng in sampled])
    for (pair, _), question in zip(sampled, questions, strict=True):
        if question != pair.question:
            yield replace(pair, question=question)


def _without_leakage(held_out: Sequence[Pair], copies: list[Pair]) -> list[Pair]:
    """The copies that are no near-duplicates of a held-out question."""
    forms = list(dict.fromkeys(map(_form, (*held_out, *copies))))
    held = len({*map(_form, held_out)})
    groups = (np.arange(len(forms)) >= held).astype(np.int64)
    hits = near_duplicates(forms, groups)
    near = {forms[row] for row, others in hits if row < held or any(other < held for other in others)}
    return [copy for copy in copies if _form(copy) not in near]


def _form(pair: Pair) -> str:
    return comparison_form(question_in_context(pair))


def _key(pair: Pair) -> tuple[str, str]:
    return question_in_context(pair), pair.answer
