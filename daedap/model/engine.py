"""A model that can be asked, computed by CTranslate2: eight-bit weights, on a CPU, many times as fast as PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import ctranslate2
import numpy as np
import torch

from daedap.model.batching import generation_batches, sorted_batches
from daedap.model.language_model import DecodingRules, TextStreamer
from daedap.model.loss import FloatArray
from daedap.model.prompt import Example, Prompt
from daedap.model.saved import unreadable_weights
from daedap.types import Generation, Pair

ENGINE = "engine"
"""The folder of a run that holds its model in CTranslate2's layout, made by convert.py."""
REPLIES = "replies"
"""Within it: the same model for replies alone, its head cut down to a shortlist."""
HEAD = "head"
"""In the configuration of that one: for how many tokens, the first of its vocabulary, it has a head."""
_AT_ONCE = 64
_LARGE = 300_000_000
"""Bytes of a model from which all cores answer one question together: of smaller ones each core does as well alone."""


@dataclass(frozen=True)
class Engine:
    """A run's model as CTranslate2 has it.

    The likelihood of what it says itself is one among the tokens that it may say; `log2_probability` takes all of them.
    """

    folder: Path
    prompt: Prompt
    max_new_tokens: int
    """Of the longest reply: what the longest answer it learned takes."""
    compute_type: str = "default"
    """CTranslate2's: int8 multiplies in eight bits, float32 turns the weights back first; default: as they are."""

    def log2_probability(self, pairs: Sequence[Pair]) -> FloatArray:
        """Per pair: the sum of log2 p over answer and end token, and their number. (pairs, 2), float64.

        Over the full vocabulary. Raises RunError when the files are damaged.
        """
        examples = [self.prompt.example(pair) for pair in pairs]
        scores = np.zeros((len(examples), 2))
        for rows in sorted_batches([len(example.ids) for example in examples], _AT_ONCE):
            scores[rows] = self._score([examples[row] for row in rows])
        return scores

    def reply(self, pairs: Sequence[Pair]) -> list[Generation]:
        """Answer each question by greedy decoding; the pairs' own answers are not looked at."""
        if len(pairs) == 1:
            return self._answer(self._voices.now, pairs)[0]
        return [said for (said,) in self._answer(self._readers, pairs, torch.get_num_threads())]

    def stream(self, pair: Pair, on_text: Callable[[str], None]) -> Generation:
        """Answer one question, telling each word as soon as it is whole."""
        question, streamer = self._speech.question(pair), TextStreamer(self.prompt, on_text)
        ids, nats = list[int](), list[float]()
        steps = self._voices.now.generate_tokens(
            self._named(question), return_log_prob=True, **self._settings(len(question))
        )
        with closing(steps):  # what interrupts the telling ends the answer, too
            for step in steps:
                ids.append(self._number[step.token])
                nats.append(step.log_prob)
                streamer.put(ids[-1:])
        streamer.finish()
        return self._speech.spoken(ids, nats)

    def sample(
        self, pairs: Sequence[Pair], count: int, *, seed: int, temperature: float = 1.0, top_k: int = 0
    ) -> list[list[Generation]]:
        """`count` random answers to each question, the likeliest first; the same one may come more than once.

        Each token is drawn among the `top_k` likeliest ones (0: all). Same questions, same seed: same answers.
        """
        among = top_k if top_k < self._sayable else 0
        with self._voices.seeded(seed) as voice:
            return self._answer(
                voice, pairs, num_hypotheses=count, sampling_topk=among, sampling_temperature=temperature
            )

    @classmethod
    def open(cls, folder: Path, prompt: Prompt, max_new_tokens: int, compute_type: str = "default") -> Engine:
        """Read what a reply takes; the rest once something is scored. Raises RunError when the files are damaged."""
        engine = cls(folder, prompt, max_new_tokens, compute_type)
        assert engine._voices.now and engine._names and engine._sayable, "an engine says something"
        return engine

    @cached_property
    def _speech(self) -> DecodingRules:
        return DecodingRules(self.prompt, self.max_new_tokens)

    @cached_property
    def _voices(self) -> _Voices:
        return _Voices(self._voice_folder, self.compute_type)

    @cached_property
    def _readers(self) -> Any:
        """For many questions: a worker on each core."""
        return _open(self._voice_folder, self.compute_type, workers=torch.get_num_threads())

    @cached_property
    def _scorer_apart(self) -> Any:
        return _open(self.folder, self.compute_type, workers=torch.get_num_threads())

    @property
    def _scorer(self) -> Any:
        return self._scorer_apart if self._shortlisted else self._readers

    @property
    def _shortlisted(self) -> bool:
        return (self.folder / REPLIES).is_dir()

    @property
    def _voice_folder(self) -> Path:
        return self.folder / REPLIES if self._shortlisted else self.folder

    @cached_property
    def _names(self) -> list[str]:
        """The token of each id."""
        return list(_json(self.folder / "vocabulary.json"))

    @cached_property
    def _sayable(self) -> int:
        """How many tokens a reply chooses from."""
        return int(_json(self._voice_folder / "config.json").get(HEAD, len(self._names)))

    @cached_property
    def _number(self) -> dict[str, int]:
        """The id of each token; the shortlist's model has numbers of its own."""
        return {name: number for number, name in enumerate(self._names)}

    def _named(self, ids: Sequence[int]) -> list[str]:
        return [self._names[number] for number in ids]

    def _score(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        tokens = [self._named(example.ids) for example in examples]
        shared = _shared(len(tokens), torch.get_num_threads())
        # With the default for max_input_length it would cut them at 1,024.
        results = self._scorer.score_batch(tokens, max_input_length=0, max_batch_size=shared)
        # The first token is no prediction: log p of token n is number n - 1.
        told = [result.log_probs[example.answer_start - 1 :] for example, result in zip(examples, results, strict=True)]
        return [(math.fsum(nats) / math.log(2), len(nats)) for nats in told]

    def _answer(self, voice: Any, pairs: Sequence[Pair], workers: int = 1, **choice: Any) -> list[list[Generation]]:
        """One or more replies to each question; `choice`: how many, and how a token is chosen."""
        questions = [self._speech.question(pair) for pair in pairs]
        spoken: dict[int, list[Generation]] = {}
        lengths = [len(ids) for ids in questions]
        rooms = [self._speech.new_tokens_for(length) for length in lengths]
        for rows in generation_batches(lengths, rooms, max(1, _AT_ONCE // choice.get("num_hypotheses", 1))):
            settings = self._settings(max(len(questions[row]) for row in rows))
            results = voice.generate_batch(
                [self._named(questions[row]) for row in rows],
                include_prompt_in_result=False,
                return_end_token=True,
                return_scores=True,
                max_batch_size=_shared(len(rows), workers),
                **settings,
                **choice,
            )
            spoken |= zip(rows, map(self._spoken, results), strict=True)
        return [spoken[row] for row in range(len(pairs))]

    def _settings(self, length: int) -> dict[str, Any]:
        """For questions of up to so many tokens. A shortlist holds nothing that would have to be muted."""
        suppressed_ids = [] if self._shortlisted else [[self._names[number]] for number in self._speech.suppressed_ids]
        end = [self._names[self.prompt.template.eos_id]]
        return {
            "max_length": self._speech.new_tokens_for(length),
            "end_token": end,
            "suppress_sequences": suppressed_ids,
        }

    def _spoken(self, result: Any) -> list[Generation]:
        """Its scores are means over the tokens, the end token included."""
        said = [[self._number[name] for name in tokens] for tokens in result.sequences]
        return [self._speech.spoken(ids, [mean] * len(ids)) for ids, mean in zip(said, result.scores, strict=True)]


class _Voices:
    """One generator after the other: a new one for each seed.

    A generator takes the seed with the first number it draws and never again (CTranslate2's issue 1757). The next one
    is opened while the last one's answer is read.
    """

    _turn = Lock()
    """The seed is the whole process's."""

    def __init__(self, folder: Path, compute_type: str) -> None:
        self._files, self._opener = (folder, compute_type), ThreadPoolExecutor(1)
        self._next = self._opener.submit(_open, *self._files)

    @property
    def now(self) -> Any:
        """One that may be asked for all that is not drawn at random. Raises RunError when its files are damaged."""
        return self._next.result()

    @contextmanager
    def seeded(self, seed: int) -> Iterator[Any]:
        """One that draws from this seed on."""
        with self._turn:
            ctranslate2.set_random_seed(seed)
            try:
                yield self.now
            finally:
                self._next = self._opener.submit(_open, *self._files)


def _open(folder: Path, compute_type: str, workers: int = 1) -> Any:
    """A generator with so many workers. One alone draws the same numbers again from the same seed."""
    cores = torch.get_num_threads()
    try:
        large = (folder / "model.bin").stat().st_size > _LARGE
        threads = max(1, cores // workers) if large else 1
        threads_of = {"inter_threads": workers, "intra_threads": threads}
        return ctranslate2.Generator(str(folder), "cpu", compute_type=compute_type, **threads_of)
    except Exception as error:  # RuntimeError, ValueError or MemoryError, by what is wrong with the file
        raise unreadable_weights(folder, error) from error
    finally:
        torch.set_num_threads(cores)  # CTranslate2 sets OpenMP's number, which is PyTorch's, too


def _shared(rows: int, workers: int) -> int:
    """Rows for each worker, so that none stands idle."""
    return -(-rows // workers)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable_weights(path.parent, error) from error
