"""The language-model protocol, and the decoding rules that all implementations share. Needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from daedap.errors import RunError, first_line
from daedap.model.prompt import Prompt
from daedap.model.tokenizer import decode
from daedap.types import Float64Array, Generation, Pair

_BATCH_SIZE = 64
_MAX_EXTRA_TOKENS = 64
"""Prompt tokens that a batch may feed one at a time beyond its shortest prompt; more cost as much as a new batch."""


class LanguageModel(Protocol):
    """A trained causal language model that scores and generates answers."""

    @property
    def prompt(self) -> Prompt:
        """Renders questions for this model."""
        ...

    def log2_probability(self, pairs: Sequence[Pair], /) -> Float64Array:
        """Per pair: the sum of log2 p over answer and EOS given the question, and their number. (pairs, 2), float64."""
        ...

    def reply(self, pairs: Sequence[Pair], /) -> list[Generation]:
        """A greedily decoded reply to each question; the pairs' answers are ignored."""
        ...

    def sample(
        self,
        pairs: Sequence[Pair],
        count: int,
        /,
        *,
        seed: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[list[Generation]]:
        """`count` sampled replies to each question, by descending probability, repetitions included.

        `top_k`: sample from so many tokens (0: all); `top_p`: from the most probable ones that together have this
        probability. Same questions and seed give the same replies.
        """
        ...


@dataclass(frozen=True)
class DecodingRules:
    """Length limits and suppressed tokens of generation, equal for all implementations."""

    prompt: Prompt
    max_new_tokens: int
    """Of the longest reply, EOS included."""

    def question(self, pair: Pair) -> list[int]:
        """Prompt ids. History is dropped to leave `max_new_tokens`; a long question shortens the reply instead."""
        alone = self.prompt.question(replace(pair, history=()), self.prompt.max_length - 1)
        return self.prompt.question(pair, max(len(alone), self.prompt.max_length - self.max_new_tokens))

    def batches(self, pairs: Sequence[Pair], replies: int = 1) -> Iterator[tuple[list[int], list[list[int]], int]]:
        """Batches of questions: their rows in `pairs`, their prompts, and the new tokens that each may get.

        `replies`: wanted of each question, so that a batch holds fewer questions.
        """
        prompts = [self.question(pair) for pair in pairs]
        limits = [min(self.max_new_tokens, self.prompt.max_length - len(prompt)) for prompt in prompts]
        for rows in generation_batches(list(map(len, prompts)), limits, max(1, _BATCH_SIZE // replies)):
            yield rows, [prompts[row] for row in rows], limits[rows[0]]

    @cached_property
    def suppressed_ids(self) -> list[int]:
        """Ids that are never generated: all control tokens but EOS."""
        return sorted(self.prompt.control_ids - {self.prompt.template.eos_id})

    def to_generation(self, ids: Sequence[int], nats: Sequence[float]) -> Generation:
        """A reply from generated ids, cut at EOS, with its mean log2 p; `nats` holds ln p of each id."""
        eos = self.prompt.template.eos_id
        ended = eos in ids
        text_ids = ids[: ids.index(eos)] if ended else ids
        counted = nats[: len(text_ids) + ended]
        mean = sum(counted) / len(counted) / math.log(2)
        return Generation(decode(self.prompt.tokenizer, text_ids), ended, len(counted), mean)


def generation_batches(lengths: Sequence[int], max_new_tokens: Sequence[int], size: int) -> list[list[int]]:
    """Row indices by prompt length, in batches of equal `max_new_tokens` and similar length.

    CTranslate2 prefills only as many tokens as the shortest prompt of a batch has and feeds the rest one at a time.
    """
    batches: list[list[int]] = []
    extra = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        first = batches[-1][0] if batches else row
        extra += lengths[row] - lengths[first]
        full = not batches or len(batches[-1]) == size
        if full or extra > _MAX_EXTRA_TOKENS or max_new_tokens[row] != max_new_tokens[first]:
            batches.append([])
            extra = 0
        batches[-1].append(row)
    return batches


def unreadable_weights(folder: Path, error: Exception) -> RunError:
    """The error for a folder whose weights can't be read."""
    return RunError(
        "{folder}: the weights can't be read ({error}).",
        "Restore the folder from a backup or train again.",
        folder=folder,
        error=first_line(error),
    )
