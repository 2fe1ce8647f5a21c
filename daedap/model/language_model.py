"""What all models that answer have in common: what they read of a question, what they may say, and how it is told.

A model that can be asked, computed by PyTorch: every architecture, on every device.

Answers by the engine, scores by PyTorch, each once: for the candidates that a training and an evaluation compare.

PyTorch reads a question once for all its candidates, CTranslate2 once for each of them: on two AVX2 cores that takes
three times as long. Both were found to agree when the engine was made (verify.py). A single question is scored by the
engine, as for a user, so that the time of a reply is that of a user's reply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from daedap.model.batching import generation_batches
from daedap.model.loss import FloatArray, score_answers
from daedap.model.prompt import Prompt
from daedap.model.tokenizer import decode
from daedap.types import Generation, Pair


class LanguageModel(Protocol):
    """A model that can be asked, whatever computes it."""

    @property
    def prompt(self) -> Prompt:
        """How it reads a question."""
        ...

    def log2_probability(self, pairs: Sequence[Pair], /) -> FloatArray:
        """Per pair: the sum of log2 p over answer and end token, and their number. (pairs, 2), float64."""
        ...

    def reply(self, pairs: Sequence[Pair], /) -> list[Generation]:
        """Answer each question by greedy decoding; the pairs' own answers are not looked at."""
        ...

    def stream(self, pair: Pair, on_text: Callable[[str], None], /) -> Generation:
        """Answer one question, telling each word as soon as it is whole."""
        ...

    def sample(
        self, pairs: Sequence[Pair], count: int, /, *, seed: int, temperature: float = 1.0, top_k: int = 0
    ) -> list[list[Generation]]:
        """`count` random answers to each question, the likeliest first; the same one may come more than once.

        Each token is drawn among the `top_k` likeliest ones (0: all). Same questions, same seed: same answers.
        """
        ...


@dataclass(frozen=True)
class DecodingRules:
    """The rules of a reply."""

    prompt: Prompt
    max_new_tokens: int
    """Of the longest reply."""

    def question(self, pair: Pair) -> list[int]:
        """History gives way to the longest reply; a long question makes the reply shorter instead."""
        alone = self.prompt.question(replace(pair, history=()), max_ids=self.prompt.max_length - 1)
        return self.prompt.question(pair, max_ids=max(len(alone), self.prompt.max_length - self.max_new_tokens))

    def new_tokens_for(self, question: int) -> int:
        """The most tokens of a reply to a question of so many."""
        return min(self.max_new_tokens, self.prompt.max_length - question)

    @cached_property
    def suppressed_ids(self) -> list[int]:
        """What is never said: of all control tokens only the end token may be."""
        return sorted(self.prompt.control_ids - {self.prompt.template.eos_id})

    def spoken(self, ids: Sequence[int], nats: Sequence[float]) -> Generation:
        """What ids say up to the end token, and how likely they are; `nats` are ln p of each of them."""
        end = self.prompt.template.eos_id
        ended = end in ids
        said = ids[: ids.index(end)] if ended else ids
        counted = nats[: len(said) + ended]
        mean = sum(counted) / len(counted) / math.log(2)
        return Generation(decode(self.prompt.tokenizer, said), ended, len(counted), mean)


class TextStreamer:
    """Hears one token after the other and tells each word as soon as it is whole."""

    def __init__(self, prompt: Prompt, on_text: Callable[[str], None]) -> None:
        self._prompt, self._on_text = prompt, on_text
        self._said, self._told = list[int](), 0

    def put(self, ids: Sequence[int]) -> None:
        """The next tokens."""
        self._said += [number for number in ids if number != self._prompt.template.eos_id]
        self._emit_up_to(self._text.rfind(" ") + 1)

    def finish(self) -> None:
        """Nothing comes any more: tell the last word."""
        self._emit_up_to(len(self._text))

    @property
    def _text(self) -> str:
        return decode(self._prompt.tokenizer, self._said)

    def _emit_up_to(self, place: int) -> None:
        if place > self._told:
            self._on_text(self._text[self._told : place])
            self._told = place


_AT_ONCE = 64


@dataclass(frozen=True)
class TorchModel:
    """A model with its prompt, on one device."""

    model: PreTrainedModel
    prompt: Prompt
    max_new_tokens: int
    """Of the longest reply: what the longest answer it learned takes."""
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of scoring; replies are always made in fp32."""

    def log2_probability(self, pairs: Sequence[Pair]) -> FloatArray:
        """Per pair: the sum of log2 p over answer and end token, and their number. (pairs, 2), float64."""
        examples = [self.prompt.example(pair) for pair in pairs]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            return score_answers(self.model, examples, self.device)

    def reply(self, pairs: Sequence[Pair]) -> list[Generation]:
        """Answer each question by greedy decoding; the pairs' own answers are not looked at."""
        return [said for said, _ in self.greedy(pairs)]

    def greedy(self, pairs: Sequence[Pair]) -> list[tuple[Generation, float]]:
        """Greedy replies, each with the least lead of one of its tokens over the next best, in nats."""
        return [said for (said,) in self._answer(pairs, 1, do_sample=False)]

    def stream(self, pair: Pair, on_text: Callable[[str], None]) -> Generation:
        """Answer one question, telling each word as soon as it is whole."""
        question, streamer = self._speech.question(pair), _Streamer(TextStreamer(self.prompt, on_text))
        return self._generate([question], self._settings(len(question), do_sample=False), streamer)[0][0]

    def sample(
        self, pairs: Sequence[Pair], count: int, *, seed: int, temperature: float = 1.0, top_k: int = 0
    ) -> list[list[Generation]]:
        """`count` random answers to each question, the likeliest first; the same one may come more than once.

        Each token is drawn among the `top_k` likeliest ones (0: all). Same questions, same seed: same answers.
        """
        with torch.random.fork_rng(devices=[self.model.device] if self.device == "cuda" else []):
            torch.manual_seed(seed)
            drawn = self._answer(pairs, count, do_sample=True, temperature=float(temperature), top_k=top_k, top_p=1.0)
        spoken = ([one for one, _ in said] for said in drawn)
        return [sorted(said, key=lambda one: one.log2_probability, reverse=True) for said in spoken]

    @cached_property
    def _speech(self) -> DecodingRules:
        return DecodingRules(self.prompt, self.max_new_tokens)

    def _answer(self, pairs: Sequence[Pair], count: int, **choice: Any) -> list[list[tuple[Generation, float]]]:
        """`count` replies to each question, short questions with short ones; `choice`: how a token is chosen."""
        questions = [self._speech.question(pair) for pair in pairs]
        spoken: dict[int, list[tuple[Generation, float]]] = {}
        lengths = [len(ids) for ids in questions]
        rooms = [self._speech.new_tokens_for(length) for length in lengths]
        for rows in generation_batches(lengths, rooms, max(1, _AT_ONCE // count)):
            together = [questions[row] for row in rows]
            settings = self._settings(max(map(len, together)), num_return_sequences=count, **choice)
            said = self._generate(together, settings)
            spoken |= {row: said[place * count : (place + 1) * count] for place, row in enumerate(rows)}
        return [spoken[row] for row in range(len(pairs))]

    @torch.inference_mode()
    def _generate(
        self, questions: Sequence[list[int]], settings: GenerationConfig, streamer: BaseStreamer | None = None
    ) -> list[tuple[Generation, float]]:
        self.model.eval()
        length = max(map(len, questions))
        ids = torch.tensor([[self.prompt.pad_id] * (length - len(ids)) + ids for ids in questions], device=self.device)
        mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in questions], device=self.device)
        output = cast("Any", self.model).generate(
            ids, attention_mask=mask, generation_config=settings, streamer=streamer
        )
        scores: Tensor = cast("Any", self.model).compute_transition_scores(
            output.sequences, output.logits, normalize_logits=True
        )
        is_main = torch.stack([_leads(step) for step in output.scores], dim=1).double().tolist()
        rows = zip(output.sequences[:, length:].tolist(), scores.double().tolist(), is_main, strict=True)
        spoken = ((self._speech.spoken(ids, nats), lead) for ids, nats, lead in rows)
        return [(said, min(lead[: said.tokens])) for said, lead in spoken]

    def _settings(self, length: int, **choice: Any) -> GenerationConfig:
        """For questions of up to so many tokens."""
        return GenerationConfig(
            max_new_tokens=self._speech.new_tokens_for(length),
            eos_token_id=self.prompt.template.eos_id,
            pad_token_id=self.prompt.pad_id,
            suppress_tokens=self._speech.suppressed_ids or None,
            output_scores=True,  # after muting and cutting down to the likeliest ones
            output_logits=True,  # before muting, so that a reply is as likely here as when it is scored
            return_dict_in_generate=True,
            **choice,
        )


def _leads(scores: Tensor) -> Tensor:
    """(rows,): by how much the best token's score is above the next best's."""
    best = scores.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


class _Streamer(BaseStreamer):
    """Gets the question first, then one token at a time."""

    def __init__(self, streamer: TextStreamer) -> None:
        self._teller, self._asked = streamer, False

    def put(self, value: Tensor) -> None:
        if self._asked:
            self._teller.put(value.tolist())
        self._asked = True

    def end(self) -> None:
        self._teller.finish()


_FEW = 8
"""Candidates of one question that a bot asks the model about."""


@dataclass(frozen=True)
class _Delegating:
    """A language model whose likelihoods come from elsewhere; all else is the model's own."""

    model: LanguageModel

    @property
    def prompt(self) -> Prompt:
        """How it reads a question."""
        return self.model.prompt

    def reply(self, pairs: Sequence[Pair]) -> list[Generation]:
        """As `LanguageModel.reply`."""
        return self.model.reply(pairs)

    def stream(self, pair: Pair, on_text: Callable[[str], None]) -> Generation:
        """As `LanguageModel.stream`."""
        return self.model.stream(pair, on_text)

    def sample(
        self, pairs: Sequence[Pair], count: int, *, seed: int, temperature: float = 1.0, top_k: int = 0
    ) -> list[list[Generation]]:
        """As `LanguageModel.sample`."""
        return self.model.sample(pairs, count, seed=seed, temperature=temperature, top_k=top_k)


@dataclass(frozen=True)
class CachedScorer(_Delegating):
    """A language model that computes the likelihood of a pair once, however often it is asked for it.

    Fitting the ranker, ranking candidates by the model and ranking them by the bot ask for many of the same.
    """

    known: dict[Pair, tuple[float, float]] = field(default_factory=dict, repr=False)

    def log2_probability(self, pairs: Sequence[Pair]) -> FloatArray:
        """As `LanguageModel.log2_probability`."""
        keys = [Pair(pair.question, pair.answer, history=pair.history) for pair in pairs]
        new = [key for key in dict.fromkeys(keys) if key not in self.known]
        if new:
            self.known.update(zip(new, map(tuple, self.model.log2_probability(new).tolist()), strict=True))
        return np.array([self.known[key] for key in keys], np.float64).reshape(len(pairs), 2)


@dataclass(frozen=True)
class EngineWithScorer(_Delegating):
    """An engine that answers, and the same model by PyTorch, which scores many pairs in less time."""

    scorer: LanguageModel

    def log2_probability(self, pairs: Sequence[Pair]) -> FloatArray:
        """As `LanguageModel.log2_probability`: few pairs by the engine, many by the scorer."""
        return (self.model if len(pairs) <= _FEW else self.scorer).log2_probability(pairs)
