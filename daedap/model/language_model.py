"""The PyTorch implementation of `LanguageModel`.

`TorchModel` runs every architecture on every device; `engine.Engine` is the CTranslate2 one. `CachedScorer` and
`EngineWithScorer` wrap a model for evaluations, which score the same pairs many times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from daedap.model.batching import generation_batches
from daedap.model.decoding import DecodingRules, LanguageModel
from daedap.model.loss import score_answers
from daedap.model.prompt import Prompt
from daedap.types import Float64Array, Generation, Pair

_BATCH_SIZE = 64


@dataclass(frozen=True)
class TorchModel:
    """A transformers model with its prompt, on one device."""

    model: PreTrainedModel
    prompt: Prompt
    max_new_tokens: int
    """Of the longest reply: as many as the longest training answer has."""
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of scoring; generation always runs in fp32."""
    allowed: Tensor | None = None
    """Sorted ids, (tokens,), that it may generate; None: all but control tokens."""

    def log2_probability(self, pairs: Sequence[Pair]) -> Float64Array:
        """As `LanguageModel.log2_probability`."""
        examples = [self.prompt.example(pair) for pair in pairs]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            return score_answers(self.model, examples, self.device)

    def reply(self, pairs: Sequence[Pair]) -> list[Generation]:
        """As `LanguageModel.reply`."""
        return [reply for reply, _ in self.greedy(pairs)]

    def greedy(self, pairs: Sequence[Pair]) -> list[tuple[Generation, float]]:
        """Greedy replies, each with its margin: the smallest lead of a token over the second best, in nats."""
        return [reply for (reply,) in self._generate_all(pairs, 1, do_sample=False)]

    def sample(
        self,
        pairs: Sequence[Pair],
        count: int,
        *,
        seed: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[list[Generation]]:
        """As `LanguageModel.sample`."""
        with torch.random.fork_rng(devices=[self.model.device] if self.device == "cuda" else []):
            torch.manual_seed(seed)
            options = {"do_sample": True, "temperature": float(temperature), "top_k": top_k, "top_p": top_p}
            samples = self._generate_all(pairs, count, **options)
        replies = ([reply for reply, _ in of_question] for of_question in samples)
        return [sorted(each, key=lambda reply: reply.log2_probability, reverse=True) for each in replies]

    @cached_property
    def _rules(self) -> DecodingRules:
        return DecodingRules(self.prompt, self.max_new_tokens)

    def _generate_all(self, pairs: Sequence[Pair], count: int, **options: Any) -> list[list[tuple[Generation, float]]]:
        """`count` replies to each question with their margins, in batches of similar prompt length."""
        questions = [self._rules.question(pair) for pair in pairs]
        lengths = [len(ids) for ids in questions]
        limits = [self._rules.new_tokens_for(length) for length in lengths]
        replies: dict[int, list[tuple[Generation, float]]] = {}
        for rows in generation_batches(lengths, limits, max(1, _BATCH_SIZE // count)):
            prompts = [questions[row] for row in rows]
            config = self._generation_config(max(map(len, prompts)), num_return_sequences=count, **options)
            batch = self._generate(prompts, config)
            replies |= {row: batch[index * count : (index + 1) * count] for index, row in enumerate(rows)}
        return [replies[row] for row in range(len(pairs))]

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[list[int]], config: GenerationConfig) -> list[tuple[Generation, float]]:
        self.model.eval()
        length = max(map(len, prompts))
        ids = torch.tensor([[self.prompt.pad_id] * (length - len(ids)) + ids for ids in prompts], device=self.device)
        mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts], device=self.device)
        recorder = _TokenRecorder(self._suppressed_ids)
        sequences: Tensor = cast("Any", self.model).generate(
            ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([recorder])
        )
        new = sequences[:, length:]
        rows = zip(new.tolist(), *recorder.nats_and_margins(new), strict=True)
        replies = ((self._rules.to_generation(ids, nats), margin) for ids, nats, margin in rows)
        return [(reply, min(margin[: reply.tokens])) for reply, margin in replies]

    @cached_property
    def _suppressed_ids(self) -> list[int]:
        if self.allowed is None:
            return list(self._rules.suppressed_ids)
        kept = set(self.allowed.tolist())
        rows = self.model.get_output_embeddings().out_features
        return [token for token in range(rows) if token not in kept]

    def _generation_config(self, prompt_length: int, **options: Any) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=self._rules.new_tokens_for(prompt_length),
            eos_token_id=self.prompt.template.eos_id,
            pad_token_id=self.prompt.pad_id,
            **options,
        )


class _TokenRecorder(LogitsProcessor):
    """Suppresses tokens, and records ln p of every generated token with its lead over the second best.

    ln p is taken before suppression, so that a reply has the same probability as when it is scored. transformers'
    `output_logits` and `output_scores` would keep two times the vocabulary per token: 5 GB for 64 replies of 40 tokens
    by Gemma.
    """

    def __init__(self, suppressed: Sequence[int]) -> None:
        self._suppressed = torch.tensor(suppressed, dtype=torch.long)
        self._step: Tensor | None = None
        """ln p of all tokens at the step whose token is not known yet."""
        self._nats: list[Tensor] = []
        self._margins: list[Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores, (rows, tokens), of the next token after `input_ids`, -inf for suppressed ones."""
        self._record(input_ids[:, -1])
        self._step = scores.log_softmax(dim=-1)
        allowed = scores.index_fill(1, self._suppressed.to(scores.device), -math.inf)
        best = allowed.topk(2, dim=1).values
        self._margins.append(best[:, 0] - best[:, 1])
        return cast("torch.FloatTensor", allowed)

    def nats_and_margins(self, new: Tensor) -> tuple[list[list[float]], list[list[float]]]:
        """ln p and margin of each generated token, (rows, new tokens)."""
        steps = new.shape[1]
        if steps > len(self._nats):
            self._record(new[:, -1])
        nats, margins = (torch.stack(values[:steps], dim=1).double() for values in (self._nats, self._margins))
        return nats.tolist(), margins.tolist()

    def _record(self, chosen: Tensor) -> None:
        if self._step is not None:
            self._nats.append(self._step.gather(1, chosen[:, None])[:, 0])


_FEW_PAIRS = 8
"""Candidates of one question that a bot scores at a time."""


@dataclass(frozen=True)
class _Delegating:
    """A language model whose `log2_probability` is replaced."""

    model: LanguageModel

    @property
    def prompt(self) -> Prompt:
        """As `LanguageModel.prompt`."""
        return self.model.prompt

    def reply(self, pairs: Sequence[Pair]) -> list[Generation]:
        """As `LanguageModel.reply`."""
        return self.model.reply(pairs)

    def sample(
        self,
        pairs: Sequence[Pair],
        count: int,
        *,
        seed: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[list[Generation]]:
        """As `LanguageModel.sample`."""
        return self.model.sample(pairs, count, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)


@dataclass(frozen=True)
class CachedScorer(_Delegating):
    """A language model that scores every pair once.

    Fitting the reranker, ranking candidates by the model and ranking them by the bot score many of the same pairs.
    """

    known: dict[Pair, tuple[float, float]] = field(default_factory=dict, repr=False)

    def log2_probability(self, pairs: Sequence[Pair]) -> Float64Array:
        """As `LanguageModel.log2_probability`."""
        keys = [Pair(pair.question, pair.answer, history=pair.history) for pair in pairs]
        new = [key for key in dict.fromkeys(keys) if key not in self.known]
        if new:
            self.known.update(zip(new, map(tuple, self.model.log2_probability(new).tolist()), strict=True))
        return np.array([self.known[key] for key in keys], np.float64).reshape(len(pairs), 2)


@dataclass(frozen=True)
class EngineWithScorer(_Delegating):
    """An engine for generation, with the same model in PyTorch for scoring many pairs.

    PyTorch encodes a question once for all its candidates, CTranslate2 once for each: three times slower on two AVX2
    cores. Both are known to agree (verify.py). Few pairs are scored by the engine, so that the measured time of a
    reply is that of a user's reply.
    """

    scorer: LanguageModel

    def log2_probability(self, pairs: Sequence[Pair]) -> Float64Array:
        """As `LanguageModel.log2_probability`."""
        return (self.model if len(pairs) <= _FEW_PAIRS else self.scorer).log2_probability(pairs)
