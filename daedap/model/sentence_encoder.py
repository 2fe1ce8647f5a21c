"""Sentence embeddings: texts of the same meaning are near each other. A small transformer, run by CTranslate2 in int8.

    daedap/encoder/model.bin config.json vocabulary.json    the transformer, weights in int8
                   tokenizer.json                           as the package tokenizers writes it
                   encoder.json                             {"prefix": "", "max_length": 128, …}: EncoderSettings
                   centre.npy                               only beside other encoders: a mean vector to be subtracted

bench/sentence_encoder made the built-in one, encoder/MODEL_CARD.md holds its data, licences and figures.
encoder_conversion.py writes other BERT-style encoders in the same layout.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from daedap.errors import EncoderError
from daedap.model.prompt import sorted_batches
from daedap.types import Float32Array

Pooling = Literal["mean", "cls"]
"""A text's vector: the mean over its tokens, or the first token's."""
ENCODER_FOLDER = Path(__file__).parent.parent / "encoder"
FILES = ("model.bin", "config.json", "vocabulary.json", "tokenizer.json", "encoder.json")
CENTRE = "centre.npy"
_AT_ONCE = 32
"""Texts of about the same length that go through the model together: more would fall out of the processor's cache."""


@dataclass(frozen=True)
class EncoderSettings:
    """What a text goes through before and after the transformer."""

    prefix: str
    """Put before each text, as some encoders were trained with one."""
    max_length: int
    """Longest text in tokens; the rest is cut off."""
    pooling: Pooling = "mean"
    name: str = ""
    """Folder or hub name that it was converted from; empty: the built-in encoder."""
    digest: str = ""
    """SHA-256 of the files that it was converted from; of the built-in encoder's model.bin."""

    def save(self, folder: Path) -> None:
        """Write `encoder.json`."""
        (folder / "encoder.json").write_text(json.dumps(asdict(self), ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class SentenceEncoder:
    """Texts → vectors of length 1. Questions and answers are encoded alike."""

    model: Any
    """ctranslate2.Encoder"""
    tokenizer: Tokenizer
    settings: EncoderSettings
    workers: int
    """Batches that are computed at once, each by one core."""
    centre: Float32Array | None = None
    """(width,): subtracted from all vectors. Those of some encoders lie in one corner, where all cosines are high."""

    @classmethod
    def open(cls, folder: Path | None = None, workers: int | None = None) -> SentenceEncoder:
        """Read the encoder of a folder, by default the built-in one; `workers`: cores that it may take, by default all.

        Raises EncoderError when a file is missing or damaged.
        """
        folder, workers = folder or ENCODER_FOLDER, workers or _cores()
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise _damaged(folder, f"{missing[0]} is missing")
        try:
            settings = EncoderSettings(**json.loads((folder / "encoder.json").read_text(encoding="utf-8")))
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.enable_truncation(settings.max_length)
            centre = np.load(folder / CENTRE, allow_pickle=False) if (folder / CENTRE).is_file() else None
            import ctranslate2  # not at the top: loaded before torch, its OpenMP runtime makes torch slow, and crash

            model = ctranslate2.Encoder(str(folder), inter_threads=workers, intra_threads=1)
            return cls(model, tokenizer, settings, workers, centre)
        except Exception as error:  # tokenizers raises Exception itself, CTranslate2 RuntimeError and ValueError
            raise _damaged(folder, f"{type(error).__name__}: {error}") from error

    def encode(self, texts: Sequence[str]) -> Float32Array:
        """(texts, width), rows of length 1, in the order of the texts; equal texts are computed once.

        The other texts of a batch change a vector by rounding alone, as sums in another order make a few activations
        round to another step. The worst cosine of 140 texts: 1 on an Intel processor with VNNI, 0.99998 on an AMD one,
        0.998 without VNNI.
        """
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = np.zeros((len(distinct), self.width), np.float32)
        parts, batches = self._batches([self.settings.prefix + text for text in distinct])
        for part, encoded in zip(parts, self._each(batches), strict=True):
            vectors[part] = encoded
        return vectors if len(distinct) == len(texts) else vectors[[distinct[text] for text in texts]]

    def encode_tokens(self, texts: Sequence[str]) -> list[Float32Array]:
        """(tokens, width) of each text: the states of its tokens, rows of length 1."""
        vectors: dict[int, Float32Array] = {}
        for part, batch in zip(*self._batches(texts), strict=True):
            states = np.array(self.model.forward_batch(batch).last_hidden_state)
            for row, tokens, text in zip(part, batch, states, strict=True):
                own = text[: len(tokens)]
                vectors[row] = own / np.linalg.norm(own, axis=1, keepdims=True)
        return [vectors[row] for row in range(len(texts))]

    def _batches(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Rows of texts of similar length, shortest first, and their token ids."""
        tokens = [one.ids or [0] for one in self.tokenizer.encode_batch_fast(list(texts))]  # some add nothing to ""
        parts = sorted_batches(list(map(len, tokens)), _AT_ONCE)
        return parts, [[tokens[row] for row in part] for part in parts]

    @property
    def built_in(self) -> bool:
        """Whether it is the package's, not one converted from a folder or the hub."""
        return not self.settings.name

    @cached_property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self._encoded([[0]]).shape[1])

    def _each(self, batches: Sequence[list[list[int]]]) -> list[Float32Array]:
        """All batches, the longest texts first, so that no core waits long for another."""
        if len(batches) < 2:
            return [self._encoded(batch) for batch in batches]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._encoded, reversed(batches)))[::-1]

    def _encoded(self, batch: list[list[int]]) -> Float32Array:
        """(texts, width), over each text's own tokens, as what CTranslate2 adds behind is not masked."""
        states = np.array(self.model.forward_batch(batch).last_hidden_state)  # (texts, longest, width)
        if self.settings.pooling == "cls":
            return self._centred(states[:, 0])
        lengths = np.array([len(text) for text in batch])
        own = np.arange(states.shape[1]) < lengths[:, None]
        return self._centred(np.matmul(own[:, None].astype(np.float32), states)[:, 0])  # a sum: its length is no matter

    def _centred(self, vectors: Float32Array) -> Float32Array:
        """Less the centre, of length 1. The centre is a mean of vectors of length 1."""
        unit: Float32Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        if self.centre is not None:
            unit = unit - self.centre
            unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        return unit


@cache
def built_in_encoder() -> SentenceEncoder:
    """The encoder of the package, read once in a process."""
    return SentenceEncoder.open()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _damaged(folder: Path, reason: str) -> EncoderError:
    return EncoderError(
        "{folder} holds no sentence encoder that can be read ({reason}).",
        "Install daedap again, or name another folder.",
        folder=folder,
        reason=reason,
    )
