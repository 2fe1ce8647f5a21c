"""Bits per character of a base and of 5-gram models on held-out texts:

    python bench/ngrams.py runs/bases/0001 [--documents 13]

The n-gram models are trained on exactly what the base was trained on, over its tokens and over characters; all are
judged on the same held-out texts, the end of each text included.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daedap.model.base import Base, load_base
from daedap.model.device import choose_machine
from daedap.training.pretrain import Corpus, next_token_loss, total_bits

Ids = NDArray[np.int64]
Reals = NDArray[np.float64]


class KneserNey:
    """Interpolated modified Kneser-Ney (Chen and Goodman, 1999) over a stream of ids; the end of a text is an id.

    Each level holds the n-grams of one order: their sorted keys (context number, last id), their discounted
    probabilities, and what each context leaves to the order below.
    """

    def __init__(self, ids: Ids, vocabulary: int, order: int) -> None:
        self.vocabulary = vocabulary
        keys, suffixes = [], []
        grams = np.zeros(len(ids), dtype=np.int64)
        for length in range(1, order + 1):
            contexts = _shifted(grams, length)
            there = contexts >= 0
            known, first, numbers = np.unique(
                contexts[there] * vocabulary + ids[there], return_index=True, return_inverse=True
            )
            keys.append(known)
            suffixes.append(grams[there][first])
            grams = np.full(len(ids), -1)
            grams[there] = numbers
        counts = np.bincount(numbers).astype(np.float64)
        self.levels = list[tuple[Ids, Reals, Reals]]()
        for length in reversed(range(order)):
            known = keys[length]
            self.levels.insert(0, (known, *_smoothed(known // vocabulary, counts, len(keys[length - 1]))))
            counts = np.bincount(suffixes[length], minlength=len(keys[length - 1])).astype(np.float64)

    def bits(self, ids: Ids) -> float:
        """−log2 p of all ids but the first."""
        probabilities = np.full(len(ids), 1 / self.vocabulary)
        grams = np.zeros(len(ids), dtype=np.int64)
        for length, (known, kept, left) in enumerate(self.levels, 1):
            contexts = _shifted(grams, length)
            keys = contexts * self.vocabulary + ids
            places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            seen = (contexts >= 0) & (known[places] == keys)
            probabilities *= np.where(contexts >= 0, left[np.maximum(contexts, 0)], 1.0)
            probabilities += np.where(seen, kept[places], 0.0)
            grams = np.where(seen, places, -1)
        return float(-np.log2(probabilities[1:]).sum())


def _shifted(grams: Ids, length: int) -> Ids:
    """The number of the (length - 1)-gram before each place, -1 where there is none."""
    return grams if length == 1 else np.append(-1, grams[:-1])


def _smoothed(contexts: Ids, counts: Reals, number_of_contexts: int) -> tuple[Reals, Reals]:
    discounts = _discounts(counts)
    taken = discounts[np.minimum(counts, 3).astype(np.int64)]
    total = np.bincount(contexts, counts, minlength=number_of_contexts)
    left = np.bincount(contexts, taken, minlength=number_of_contexts)
    left = np.divide(left, total, out=np.ones_like(total), where=total > 0)
    return np.divide(counts - taken, total[contexts], out=np.zeros_like(counts), where=total[contexts] > 0), left


def _discounts(counts: Reals) -> Reals:
    """What is taken off counts of 0, 1, 2 and 3 or more; KenLM's fallback where the counts of counts do not fall."""
    n1, n2, n3, n4 = (np.count_nonzero(counts == k) for k in (1, 2, 3, 4))
    if n1 > n2 > n3 > n4 > 0:
        share = n1 / (n1 + 2 * n2)
        return np.array([0, 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3])
    return np.array([0, 0.5, 1.0, 1.5])


def texts(corpus: Corpus, base: Base) -> list[str]:
    """What a corpus says, control tokens aside."""
    controls = base.prompt(1).control_ids
    ends = np.flatnonzero(np.isin(corpus.ids, sorted(controls)))
    parts = np.split(corpus.ids, ends)
    said = [[number for number in part.tolist() if number not in controls] for part in parts]
    return [text.strip() for text in base.tokenizer.batch_decode([ids for ids in said if ids])]


def letters(texts: list[str]) -> Ids:
    """Code points, a line feed at the end of every text."""
    text = "".join(f"{text}\n" for text in texts)
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.int64)


def main() -> None:
    """Print the table."""
    parser = ArgumentParser()
    parser.add_argument("folder", type=Path, help="what daedap pretrain made, runs/bases/0001 for instance")
    parser.add_argument("--documents", type=int, help="judge on so many held-out documents only, from the first on")
    options = parser.parse_args()
    base = load_base(str(options.folder / "model"))
    learned, held_out = (Corpus.load(options.folder / "data" / f"{side}.npz") for side in ("train", "dev"))
    stop = held_out.starts[options.documents] if options.documents else len(held_out.ids)
    held_out = Corpus(held_out.ids[:stop], held_out.starts[: options.documents], 0)
    said = texts(held_out, base)
    characters = sum(map(len, said))
    loss = next_token_loss(base.model, choose_machine("cpu", "fp32", 0), compiled=False)
    bits = {"the base": total_bits(base.model, loss, held_out, 16, 256)}
    tokens = KneserNey(learned.ids.astype(np.int64), len(base.tokenizer), 5)
    bits["5-gram Kneser-Ney over the same tokens"] = tokens.bits(held_out.ids.astype(np.int64))
    spelled, judged = letters(texts(learned, base)), letters(said)
    alphabet = np.unique(np.append(spelled, judged))
    for order in (5, 8):
        model = KneserNey(np.searchsorted(alphabet, spelled), len(alphabet), order)
        bits[f"{order}-gram Kneser-Ney over characters"] = model.bits(np.searchsorted(alphabet, judged))
    print(
        f"{len(learned.ids):,} tokens learned; {characters:,} characters in {len(held_out.starts)} documents held out"
    )
    for name, total in bits.items():
        print(f"{name}: {total / characters:.3f} bits per character")


if __name__ == "__main__":
    main()
