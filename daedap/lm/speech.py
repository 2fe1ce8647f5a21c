"""What all models that answer have in common: what they read of a question, what they may say, and how it is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from daedap.lm.prompt import Prompt
from daedap.lm.score import FloatArray
from daedap.lm.tokenizer import decode
from daedap.pair import Pair, Spoken


class Talker(Protocol):
    """A model that can be asked, whatever computes it."""

    @property
    def prompt(self) -> Prompt:
        """How it reads a question."""
        ...

    def log2_probability(self, pairs: Sequence[Pair], /) -> FloatArray:
        """Per pair: the sum of log2 p over answer and end token, and their number. (pairs, 2), float64."""
        ...

    def reply(self, pairs: Sequence[Pair], /) -> list[Spoken]:
        """Answer each question by greedy decoding; the pairs' own answers are not looked at."""
        ...

    def stream(self, pair: Pair, tell: Callable[[str], None], /) -> Spoken:
        """Answer one question, telling each word as soon as it is whole."""
        ...

    def sample(
        self, pairs: Sequence[Pair], count: int, /, *, seed: int, temperature: float = 1.0, top_k: int = 0
    ) -> list[list[Spoken]]:
        """`count` random answers to each question, the likeliest first; the same one may come more than once.

        Each token is drawn among the `top_k` likeliest ones (0: all). Same questions, same seed: same answers.
        """
        ...


@dataclass(frozen=True)
class Speech:
    """The rules of a reply."""

    prompt: Prompt
    max_new_tokens: int
    """Of the longest reply."""

    def question(self, pair: Pair) -> list[int]:
        """History gives way to the longest reply; a long question makes the reply shorter instead."""
        alone = self.prompt.question(replace(pair, history=()), room=self.prompt.max_length - 1)
        return self.prompt.question(pair, room=max(len(alone), self.prompt.max_length - self.max_new_tokens))

    def room(self, question: int) -> int:
        """The most tokens of a reply to a question of so many."""
        return min(self.max_new_tokens, self.prompt.max_length - question)

    @cached_property
    def mute(self) -> list[int]:
        """What is never said: of all control tokens only the end token may be."""
        return sorted(self.prompt.controls - {self.prompt.template.end})

    def spoken(self, ids: Sequence[int], nats: Sequence[float]) -> Spoken:
        """What ids say up to the end token, and how likely they are; `nats` are ln p of each of them."""
        end = self.prompt.template.end
        ended = end in ids
        said = ids[: ids.index(end)] if ended else ids
        counted = nats[: len(said) + ended]
        mean = sum(counted) / len(counted) / math.log(2)
        return Spoken(decode(self.prompt.tokenizer, said), ended, len(counted), mean)


class Teller:
    """Hears one token after the other and tells each word as soon as it is whole."""

    def __init__(self, prompt: Prompt, tell: Callable[[str], None]) -> None:
        self._prompt, self._tell = prompt, tell
        self._said, self._told = list[int](), 0

    def hear(self, ids: Sequence[int]) -> None:
        """The next tokens."""
        self._said += [number for number in ids if number != self._prompt.template.end]
        self._tell_up_to(self._text.rfind(" ") + 1)

    def finish(self) -> None:
        """Nothing comes any more: tell the last word."""
        self._tell_up_to(len(self._text))

    @property
    def _text(self) -> str:
        return decode(self._prompt.tokenizer, self._said)

    def _tell_up_to(self, place: int) -> None:
        if place > self._told:
            self._tell(self._text[self._told : place])
            self._told = place
