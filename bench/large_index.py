"""Matching among many pairs: python bench/large_index.py FILE [--pairs 1000000] [--asked 300]

Pairs beyond the file's are put together from halves of its questions and answers, as in growth.py. A text's vector is
the mean of the built-in encoder's vectors of its two halves, which spares encoding two million texts: graphs and search
do not know the difference. Measured are the graphs' recall@3 against all vectors, and a whole match, the nearest by
characters included, one question after the other.
"""

from __future__ import annotations

import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from growth import pairs
from numpy.typing import NDArray

from daedap.data.doctor import load
from daedap.model.sentence_encoder import built_in_encoder
from daedap.retrieval.large_matcher import LargeMatcher
from daedap.retrieval.lexical import LexicalIndex
from daedap.retrieval.query import encode_queries, vectors_of
from daedap.training.profiling import PeakMemory
from daedap.types import Pair

FloatArray = NDArray[np.float32]


class HalvesEncoder:
    """The mean of a text's two halves' vectors; the halves, of which there are few, are encoded once."""

    def __init__(self) -> None:
        self.encoder = built_in_encoder()
        self.known: dict[str, FloatArray] = {}

    @property
    def built_in(self) -> bool:
        """Its vectors are the built-in encoder's."""
        return True

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(texts, width), rows of length 1."""
        halves = [_halves(text) for text in texts]
        if new := list({half for both in halves for half in both} - self.known.keys()):
            self.known.update(zip(new, self.encoder.encode(new), strict=True))
        both = np.array([[self.known[half] for half in each] for each in halves]).mean(axis=1)
        vectors: FloatArray = (both / np.linalg.norm(both, axis=1, keepdims=True)).astype(np.float32)
        return vectors

    def encode_tokens(self, texts: Sequence[str]) -> list[FloatArray]:
        """(tokens, width) of each text."""
        return self.encoder.encode_tokens(texts)


def _halves(text: str) -> tuple[str, str]:
    words = text.split()
    middle = -(-len(words) // 2)
    return " ".join(words[:middle]), " ".join(words[middle:])


def main() -> None:
    """Build, open, ask."""
    parser = ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--asked", type=int, default=300)
    options = parser.parse_args()
    made = pairs(load(options.file).pairs)
    known = [Pair(*pair) for pair in islice(made, options.pairs)]
    asked = [question for question, _ in islice(made, options.asked + 10)]
    encoder = HalvesEncoder()
    with tempfile.TemporaryDirectory() as folder:
        times = [time.perf_counter()]
        index = LexicalIndex.build(known)
        times.append(time.perf_counter())
        encoder.encode([text for pair in known for text in (pair.question, pair.answer)][: 2 * 20_000])
        times.append(time.perf_counter())
        LargeMatcher.build(index, encoder).save(Path(folder))
        times.append(time.perf_counter())
        index.save(Path(folder))
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        lexical, _, graphs = np.diff(times)
        print(f"{options.pairs:,} pairs: index {lexical:.0f} s, vectors and graphs {graphs:.0f} s, {size / 1e9:.2f} GB")
        del index, known
        ask(Path(folder), encoder, asked)


def ask(folder: Path, encoder: HalvesEncoder, asked: Sequence[str]) -> None:
    """Recall of the graphs, and how long a match takes."""
    with PeakMemory() as watch:
        started = time.perf_counter()
        matcher = LargeMatcher.open(folder, LexicalIndex.open(folder), encoder)
        matcher.match(encode_queries(asked[:10], encoder))
        print(f"opened and warm in {time.perf_counter() - started:.1f} s, {watch.peak_bytes / 1e9:.2f} GB at most")
        queries, times = encode_queries(asked[10:], encoder), []
        vectors = vectors_of(queries)
        for query in queries:
            started = time.perf_counter()
            matcher.match([query])
            times.append(1000 * (time.perf_counter() - started))
    median, slow = np.percentile(times, [50, 95])
    print(f"a match without encoding: median {median:.1f} ms, 95th percentile {slow:.1f} ms")
    for side, name in enumerate(("questions", "answers")):
        known, found, times = (matcher.questions, matcher.answers)[side], [], []
        for vector in vectors:
            started = time.perf_counter()
            rows = matcher.nearest(side, vector, 32)
            times.append(1000 * (time.perf_counter() - started))
            near = rows[np.argsort(-(known[rows].astype(np.float32) @ vector), kind="stable")[:3]]
            found.append(known[near].astype(np.float32) @ vector)
        best = _best(known, vectors, 3)
        recall = np.mean([np.mean(one >= least - 1e-6) for one, least in zip(found, best[:, -1], strict=True)])
        median, slow = np.percentile(times, [50, 95])
        print(f"{name}: recall@3 {recall:.4f}, median {median:.2f} ms, 95th percentile {slow:.2f} ms")


def _best(known: NDArray[np.float16], vectors: FloatArray, k: int) -> FloatArray:
    """(queries, k): the highest similarities to all vectors, highest first."""
    best = np.full((len(vectors), k), -1, np.float32)
    for start in range(0, len(known), 50_000):
        part = vectors @ known[start : start + 50_000].astype(np.float32).T
        best = -np.sort(-np.concatenate([best, part], axis=1), axis=1)[:, :k]
    return best


if __name__ == "__main__":
    main()
