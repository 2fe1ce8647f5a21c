"""Sentence embeddings: texts of the same meaning are near each other. A small transformer, run by CTranslate2 in int8.

    daedap/encoder/model.bin config.json vocabulary.json    the transformer, weights in eight bits
                   tokenizer.json                           as the package tokenizers writes it
                   encoder.json                             {"prefix": "", "max_length": 128}

bench/sentence_encoder made it, and converts other BERT-style encoders to the same layout. encoder/MODEL_CARD.md holds
data, licences and figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from daedap.errors import EngineError

FloatArray = NDArray[np.float32]
BUILT_IN = Path(__file__).parent.parent / "encoder"
FILES = ("model.bin", "config.json", "vocabulary.json", "tokenizer.json", "encoder.json")
_AT_ONCE = 32
"""Texts of about the same length that go through the model together: more would fall out of the processor's cache."""


@dataclass(frozen=True)
class SentenceEncoder:
    """Texts → vectors of length 1: the mean over a text's tokens. Questions and answers are encoded alike."""

    model: Any
    """ctranslate2.Encoder"""
    tokenizer: Tokenizer
    prefix: str
    """Put before each text, as some encoders were taught with one."""
    workers: int
    """Batches that are computed at once, each by one core."""

    @classmethod
    def open(cls, folder: Path | None = None, workers: int | None = None) -> SentenceEncoder:
        """Read the encoder of a folder, by default the built-in one; `workers`: cores that it may take, by default all.

        Raises EngineError when a file is missing or damaged.
        """
        folder, workers = folder or BUILT_IN, workers or _cores()
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise _damaged(folder, f"{missing[0]} is missing")
        try:
            settings = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.enable_truncation(settings["max_length"])
            import ctranslate2  # not at the top: loaded before torch, its OpenMP runtime makes torch slow, and crash

            model = ctranslate2.Encoder(str(folder), inter_threads=workers, intra_threads=1)
            return cls(model, tokenizer, settings["prefix"], workers)
        except Exception as error:  # tokenizers raises Exception itself, CTranslate2 RuntimeError and ValueError
            raise _damaged(folder, f"{type(error).__name__}: {error}") from error

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(texts, width), rows of length 1, in the order of the texts; whatever is longer than max_length is cut off.

        The other texts of a batch change a vector by rounding alone: not at all with VNNI, else to a cosine of 0.998 in
        the worst of 140 texts, as sums in another order make a few activations round to another step.
        """
        tokens = [one.ids for one in self.tokenizer.encode_batch_fast([self.prefix + text for text in texts])]
        order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        parts = [order[start : start + _AT_ONCE] for start in range(0, len(order), _AT_ONCE)]
        batches = [[tokens[row] for row in part] for part in parts]
        vectors = np.zeros((len(texts), self.width), np.float32)
        for part, found in zip(parts, self._each(batches), strict=True):
            vectors[part] = found
        return vectors

    @cached_property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self._encoded([[0]]).shape[1])

    def _each(self, batches: Sequence[list[list[int]]]) -> list[FloatArray]:
        """All batches, the longest texts first, so that no core waits long for another."""
        if len(batches) < 2:
            return [self._encoded(batch) for batch in batches]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._encoded, reversed(batches)))[::-1]

    def _encoded(self, batch: list[list[int]]) -> FloatArray:
        """(texts, width): the mean over each text's own tokens, as what CTranslate2 adds behind is not masked."""
        states = np.array(self.model.forward_batch(batch).last_hidden_state)  # (texts, longest, width)
        lengths = np.array([len(text) for text in batch])
        own = np.arange(states.shape[1]) < lengths[:, None]
        sums = np.matmul(own[:, None].astype(np.float32), states)[:, 0]  # no mean: the length is divided away below
        vectors: FloatArray = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return vectors


@cache
def built_in_encoder() -> SentenceEncoder:
    """The encoder of the package, read once in a process."""
    return SentenceEncoder.open()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _damaged(folder: Path, reason: str) -> EngineError:
    return EngineError(
        "{folder} holds no sentence encoder that can be read ({reason}).",
        "Install daedap again, or name another folder.",
        folder=folder,
        reason=reason,
    )
