"""The CTranslate2 implementation of `LanguageModel`: int8 weights on a CPU, many times as fast as PyTorch."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import ctranslate2
import numpy as np

from daedap.model.decoding import DecodingRules, unreadable_weights
from daedap.model.prompt import Example, Prompt, sorted_batches
from daedap.types import Float64Array, Generation, Pair

ENGINE = "engine"
"""A run's folder with its model in CTranslate2's layout, written by convert.py."""
REPLIES = "replies"
"""A folder in it: the same model for generation only, its head reduced to a shortlist."""
HEAD = "head"
"""In that model's config.json: the size of the head, whose tokens come first in its vocabulary."""
_BATCH_SIZE = 64
_LARGE = 300_000_000
"""Model size in bytes from which one question is worth all cores; a smaller model is as fast on one core."""


@dataclass(frozen=True)
class Engine:
    """A run's model in CTranslate2.

    With a shortlist, `Generation.log2_probability` is relative to the shortlist; `log2_probability()` always uses the
    full vocabulary.
    """

    folder: Path
    prompt: Prompt
    max_new_tokens: int
    """Of the longest reply: as many as the longest training answer has."""
    compute_type: str = "default"
    """CTranslate2's: int8, float32 (weights are dequantized when loaded) or default (as stored)."""

    def log2_probability(self, pairs: Sequence[Pair]) -> Float64Array:
        """As `LanguageModel.log2_probability`. Raises RunError when the files are damaged."""
        examples = [self.prompt.example(pair) for pair in pairs]
        scores = np.zeros((len(examples), 2))
        for rows in sorted_batches([len(example.ids) for example in examples], _BATCH_SIZE):
            scores[rows] = self._score([examples[row] for row in rows])
        return scores

    def reply(self, pairs: Sequence[Pair]) -> list[Generation]:
        """As `LanguageModel.reply`."""
        if len(pairs) == 1:
            return self._generate(self._generators.current, pairs)[0]
        return [reply for (reply,) in self._generate(self._batch_generator, pairs, _threads())]

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
        options: dict[str, Any] = {
            "num_hypotheses": count,
            "sampling_topk": top_k if top_k < self._head_size else 0,
            "sampling_topp": top_p,
            "sampling_temperature": temperature,
        }
        with self._generators.seeded(seed) as generator:
            return self._generate(generator, pairs, **options)

    @classmethod
    def open(cls, folder: Path, prompt: Prompt, max_new_tokens: int, compute_type: str = "default") -> Engine:
        """Load what generation needs; scoring loads the rest when first used. Raises RunError for damaged files."""
        engine = cls(folder, prompt, max_new_tokens, compute_type)
        assert engine._generators.current and engine._tokens and engine._head_size, "an engine has a vocabulary"
        return engine

    @cached_property
    def _rules(self) -> DecodingRules:
        return DecodingRules(self.prompt, self.max_new_tokens)

    @cached_property
    def _generators(self) -> _SeededGenerators:
        return _SeededGenerators(self._generation_folder, self.compute_type)

    @cached_property
    def _batch_generator(self) -> Any:
        """For many questions: one worker per core."""
        return _open(self._generation_folder, self.compute_type, workers=_threads())

    @cached_property
    def _full_scorer(self) -> Any:
        return _open(self.folder, self.compute_type, workers=_threads())

    @property
    def _has_shortlist(self) -> bool:
        return (self.folder / REPLIES).is_dir()

    @property
    def _generation_folder(self) -> Path:
        return self.folder / REPLIES if self._has_shortlist else self.folder

    @cached_property
    def _tokens(self) -> list[str]:
        """The token of each id."""
        return list(_read_json(self.folder / "vocabulary.json"))

    @cached_property
    def _head_size(self) -> int:
        """The number of tokens that generation chooses from."""
        return int(_read_json(self._generation_folder / "config.json").get(HEAD, len(self._tokens)))

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The id of each token. The shortlist model numbers tokens differently, so tokens are exchanged, not ids."""
        return {token: id for id, token in enumerate(self._tokens)}

    def _to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._tokens[id] for id in ids]

    def _score(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        tokens = [self._to_tokens(example.ids) for example in examples]
        scorer = self._full_scorer if self._has_shortlist else self._batch_generator
        # max_input_length=0: the default would truncate at 1,024 tokens.
        results = scorer.score_batch(tokens, max_input_length=0, max_batch_size=math.ceil(len(tokens) / _threads()))
        # log_probs[n - 1] belongs to token n: the first token is not predicted.
        nats = [result.log_probs[each.answer_start - 1 :] for each, result in zip(examples, results, strict=True)]
        return [(math.fsum(of_answer) / math.log(2), len(of_answer)) for of_answer in nats]

    def _generate(
        self, generator: Any, pairs: Sequence[Pair], workers: int = 1, **options: Any
    ) -> list[list[Generation]]:
        """One or more replies to each question; `options` are those of sampling."""
        suppressed = [] if self._has_shortlist else self._rules.suppressed_ids  # a shortlist contains none of them
        replies: dict[int, list[Generation]] = {}
        for rows, prompts, limit in self._rules.batches(pairs, options.get("num_hypotheses", 1)):
            results = generator.generate_batch(
                [self._to_tokens(ids) for ids in prompts],
                include_prompt_in_result=False,
                return_end_token=True,
                return_scores=True,
                max_batch_size=math.ceil(len(rows) / workers),
                max_length=limit,
                end_token=[self._tokens[self.prompt.template.eos_id]],
                suppress_sequences=[[self._tokens[id]] for id in suppressed],
                **options,
            )
            replies |= zip(rows, map(self._to_generations, results), strict=True)
        return [replies[row] for row in range(len(pairs))]

    def _to_generations(self, result: Any) -> list[Generation]:
        """CTranslate2's scores are mean ln p over all tokens, EOS included."""
        sequences = [[self._ids[token] for token in tokens] for tokens in result.sequences]
        scored = zip(sequences, result.scores, strict=True)
        return [self._rules.to_generation(ids, [mean] * len(ids)) for ids, mean in scored]


class _SeededGenerators:
    """A new generator for each seed, the next one opened in the background.

    A generator reads the seed with its first random number and never again
    (https://github.com/OpenNMT/CTranslate2/issues/1757).
    """

    _lock = Lock()
    """The seed is global to the process."""

    def __init__(self, folder: Path, compute_type: str) -> None:
        self._files, self._opener = (folder, compute_type), ThreadPoolExecutor(1)
        self._next = self._opener.submit(_open, *self._files)

    @property
    def current(self) -> Any:
        """A generator for anything but sampling. Raises RunError when its files are damaged."""
        return self._next.result()

    @contextmanager
    def seeded(self, seed: int) -> Iterator[Any]:
        """A generator that samples from this seed on."""
        with self._lock:
            ctranslate2.set_random_seed(seed)
            try:
                yield self.current
            finally:
                self._next = self._opener.submit(_open, *self._files)


def _open(folder: Path, compute_type: str, workers: int = 1) -> Any:
    """A generator with so many workers. With one worker, sampling from the same seed is reproducible."""
    cores = _threads()
    try:
        large = (folder / "model.bin").stat().st_size > _LARGE
        threads = max(1, cores // workers) if large else 1
        options = {"inter_threads": workers, "intra_threads": threads, "compute_type": compute_type}
        return ctranslate2.Generator(str(folder), "cpu", **options)
    except Exception as error:  # RuntimeError, ValueError or MemoryError, depending on the damage
        raise unreadable_weights(folder, error) from error
    finally:
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(cores)  # CTranslate2 sets OpenMP's thread count, which PyTorch shares


def _threads() -> int:
    """Threads that may compute: PyTorch's setting where it is loaded, else the cores of this process."""
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable_weights(path.parent, error) from error
