"""The PyTorch implementation of `LanguageModel`, and a run's trained weights, from which it is opened.

`TorchModel` runs every architecture on every device; `engine.Engine` is the CTranslate2 one. `CachedScorer` and
`EngineWithScorer` wrap a model for evaluations, which score the same pairs many times. Weights are written in standard
layouts: a PEFT adapter, or a full model of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from daedap.config import FRESH
from daedap.files import new_folder
from daedap.model.base import load_recorded_base, random_init_model
from daedap.model.decoding import DecodingRules, LanguageModel, unreadable_weights
from daedap.model.device import fuse_activations
from daedap.model.loss import score_answers
from daedap.model.prompt import Prompt, build_prompt
from daedap.model.tokenizer import load_tokenizer, save_tokenizer
from daedap.runs import Run
from daedap.types import Float64Array, Generation, Pair


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
        tokens = {"eos_token_id": self.prompt.template.eos_id, "pad_token_id": self.prompt.pad_id}
        replies: dict[int, list[tuple[Generation, float]]] = {}
        for rows, prompts, limit in self._rules.batches(pairs, count):
            config = GenerationConfig(max_new_tokens=limit, num_return_sequences=count, **tokens, **options)
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


def save_trained(model: PreTrainedModel | PeftModel, prompt: Prompt, run_folder: Path) -> None:
    """Write `adapter/` (LoRA) or `model/` (all weights), each with the tokenizer and its chat template."""
    name = "model" if isinstance(model, PreTrainedModel) else "adapter"
    if isinstance(model, PreTrainedModel) and model.generation_config:
        model.generation_config.eos_token_id = prompt.template.eos_id
    with new_folder(run_folder / name) as temporary:
        cast("PreTrainedModel", model).save_pretrained(temporary)
        save_tokenizer(prompt.tokenizer, temporary)


def open_trained(run: Run, device: str = "cpu") -> TorchModel:
    """The trained model of a complete run, an adapter merged into its base: as fast as the base.

    Raises RunError when its files or its base have changed.
    """
    folder = weights_folder(run)
    if folder.name == "model":
        return _torch_model(run, load_full_model(folder), load_tokenizer(folder), device)
    base = load_recorded_base(run, run.trained["base"])
    try:
        merged: PreTrainedModel = PeftModel.from_pretrained(base.model, str(folder)).merge_and_unload()
    except Exception as error:  # a damaged file fails in safetensors, torch or peft
        raise unreadable_weights(folder, error) from error
    return _torch_model(run, merged, load_tokenizer(folder), device)


def open_untuned(run: Run, device: str = "cpu") -> TorchModel:
    """The base of a run without its training, as `open_trained`."""
    recorded = run.trained["base"]
    if recorded["name"] == FRESH:
        tokenizer = load_tokenizer(run.folder / "model")
        return _torch_model(run, random_init_model(tokenizer, recorded["seed"]), tokenizer, device)
    base = load_recorded_base(run, recorded)
    return _torch_model(run, base.model, base.tokenizer, device)


def load_prompt(run: Run) -> Prompt:
    """The prompt of a run's model, without loading the model. Raises BaseError when its tokenizer can't be read."""
    return build_prompt(load_tokenizer(weights_folder(run)), run.trained["limits"]["max_length"])


def weights_folder(run: Run) -> Path:
    """The folder of a run's weights: `adapter/`, else `model/`."""
    adapter = run.folder / "adapter"
    return adapter if adapter.is_dir() else run.folder / "model"


def _torch_model(run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, device: str) -> TorchModel:
    fuse_activations(model)
    model.to(device)  # type: ignore[arg-type]
    limits, machine = run.trained["limits"], run.trained["machine"]
    prompt = build_prompt(tokenizer, limits["max_length"])
    return TorchModel(model, prompt, limits["max_new_tokens"], device, machine["precision"])


def load_full_model(folder: Path) -> PreTrainedModel:
    """A full model from a folder, in float32. Raises RunError when its weights can't be read."""
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype="float32", weights_only=True, trust_remote_code=False
        )
    except Exception as error:  # a damaged file fails in safetensors, torch or transformers
        raise unreadable_weights(folder, error) from error
    return model


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

    def sample(self, pairs: Sequence[Pair], count: int, **options: Any) -> list[list[Generation]]:
        """As `LanguageModel.sample`."""
        return self.model.sample(pairs, count, **options)


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
