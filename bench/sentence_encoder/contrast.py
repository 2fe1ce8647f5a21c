"""Contrastive learning for teacher and student: what is asked in other words comes near, all else goes away.

    python bench/sentence_encoder/contrast.py TEACHER OUT --prefix "query: " --centre --corpus CORPUS --never FILE.csv …
    python bench/sentence_encoder/contrast.py STUDENT OUT --reference FOLDER --embeddings … (FOLDER: see convert.py)

Each step takes two trades of data/faq. One paraphrase of each row, drawn at random, is compared with all questions and
all answers of the two trades; the loss is a cross entropy over questions, over answers and over their sum, at a
temperature of 0.03. One more column says that no row is right: a learned threshold. It is the target of questions out
of scope. Beside them go pairs of another kind, drawn from one source a step: built-in questions with the same answer,
built-in questions and answers, questions and replies of dialogues, sentences and their disturbed forms.

The second loss keeps what the model knew: similarities of the pairs' texts (of a student all texts) stay those of the
reference, which is the model itself before learning, or the teacher of a student. Its vectors are centred first.

Whole trades and all paraphrases of the built-in pairs are left out, and scored on the way.
"""

from __future__ import annotations

import random
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from bert import Bert, rank, steps
from held_out import Encode, HeldOut
from numpy.typing import NDArray
from texts import Forbidden, Pairs, Trade, dialogue_pairs, disturbed, sentences, starter_pairs, training_trades
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from daedap.model.sentence_encoder import SentenceEncoder

TEMPERATURE = 0.03
PAIRS = 32
"""Of another kind, a step."""
OUT_OF_SCOPE = 16


class Batch(NamedTuple):
    """Texts of one step; the rows of both trades are counted through."""

    asked: list[str]
    questions: list[str]
    answers: list[str]
    out_of_scope: list[str]
    pairs: Pairs


class Reference:
    """Similarities that are to be kept: of vectors from which their mean is taken."""

    def __init__(self, encode: Encode, texts: Sequence[str]) -> None:
        self.rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = encode(list(self.rows))
        vectors = vectors - vectors.mean(axis=0)
        self.vectors: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def similarities(self, texts: Sequence[str]) -> Tensor:
        """(texts, texts)"""
        vectors = torch.from_numpy(self.vectors[[self.rows[text] for text in texts]])
        return vectors @ vectors.T


class Loss(nn.Module):
    """Both losses; the three thresholds are learned, in cosine."""

    def __init__(self, reference: Reference, keep_all: bool, keep: float) -> None:
        super().__init__()
        self.reference, self.keep_all, self.keep = reference, keep_all, keep
        self.thresholds = nn.Parameter(torch.tensor([0.4, 0.3, 0.7]))

    def forward(self, model: Bert, batch: Batch) -> tuple[Tensor, Tensor]:
        """The contrastive one, and that of the similarities."""
        parts = [*batch[:4], [pair[0] for pair in batch.pairs], [pair[1] for pair in batch.pairs]]
        texts = [text for part in parts for text in part]
        vectors = model.encode(texts)
        asked, questions, answers, outside, left, right = vectors.split([len(part) for part in parts])
        queries = torch.cat([asked, outside])
        target = torch.arange(len(asked))
        target = torch.cat([target, torch.full((len(outside),), len(questions))])
        contrast = self._rows(queries @ questions.T, queries @ answers.T, target) + _pairs(left @ right.T)
        kept = slice(0 if self.keep_all else sum(map(len, parts[:4])), None)
        wanted, found = self.reference.similarities(texts[kept]), vectors[kept] @ vectors[kept].T
        return contrast, self.keep * mse_loss(found, wanted)

    def _rows(self, questions: Tensor, answers: Tensor, target: Tensor) -> Tensor:
        losses = []
        for scores, threshold in zip((questions, answers, questions + answers), self.thresholds, strict=True):
            all_scores = torch.cat([scores, threshold.expand(len(scores), 1)], dim=1)
            losses.append(cross_entropy(all_scores / TEMPERATURE, target))
        return torch.stack(losses).mean()


def _pairs(scores: Tensor) -> Tensor:
    """Each left text against all right ones, and the other way."""
    target = torch.arange(len(scores))
    return (cross_entropy(scores / TEMPERATURE, target) + cross_entropy(scores.T / TEMPERATURE, target)) / 4


def batches(trades: Sequence[Trade], sources: Sequence[Pairs], count: int, seed: int) -> Iterator[Batch]:
    """All trades before one comes again; the same for the sources."""
    rng = random.Random(seed)
    noise = {text: other for other, text in disturbed([one for trade in trades for one in _asked(trade)], seed)}
    order: list[Trade] = []
    for step in range(count):
        if len(order) < 2:
            order = rng.sample(list(trades), len(trades))
        two = [order.pop(), order.pop()]
        asked = [rng.choice(row) for trade in two for row in trade.asked]
        asked = [noise.get(text, text) if rng.random() < 0.25 else text for text in asked]
        outside = [text for trade in two for text in trade.out_of_scope]
        yield Batch(
            asked,
            [text for trade in two for text in trade.questions],
            [text for trade in two for text in trade.answers],
            rng.sample(outside, min(OUT_OF_SCOPE, len(outside))),
            rng.sample(sources[step % len(sources)], PAIRS),
        )


def _asked(trade: Trade) -> list[str]:
    return [text for row in trade.asked for text in row]


def main(options: Namespace) -> None:
    """Learn, and write the model that did best on what is held out."""
    torch.manual_seed(options.seed)
    torch.set_flush_denormal(True)
    forbidden = Forbidden(options.never)
    trades = training_trades(options.faq, forbidden)
    alike, replies = starter_pairs(forbidden)
    plain = random.Random(options.seed).sample(sentences(options.corpus, forbidden, 5_000, options.seed), 3_000)
    sources = [alike, dialogue_pairs(options.corpus, forbidden), alike, replies, disturbed(plain, options.seed)]
    print(f"{len(trades)} trades, pairs: {[len(source) for source in sources]}")

    model = Bert.open(options.model, options.prefix)
    model.model.eval()
    if options.centre:
        model.centre(plain[:1_000])
    plan = list(batches(trades, sources, options.steps, options.seed + rank()))
    texts = [text for batch in plan for pair in batch.pairs for text in pair]
    if options.reference:
        texts += [text for batch in plan for part in batch[:4] for text in part]
    encode = SentenceEncoder.open(options.reference).encode if options.reference else model.vectors
    loss = Loss(Reference(encode, texts), keep_all=bool(options.reference), keep=options.keep)
    held_out = HeldOut(options.faq)
    if rank() == 0:
        print(f"before: {held_out.told(model.vectors)}", flush=True)

    model.model.embeddings.requires_grad_(options.embeddings)
    model.model.train()
    learned = nn.ModuleList([model.model, loss])
    best, begun = 0.0, time.monotonic()
    for step, (batch, _) in enumerate(zip(plan, steps(learned, options.steps, options.rate), strict=True)):
        if rank() == 0 and step and step % options.every == 0:
            best = _keep_best(model, held_out, best, options.out)
        contrast, kept = loss(model, batch)
        (contrast + kept).backward()
        if rank() == 0 and step % 10 == 0:
            told = f"{contrast:.3f} + {kept:.3f}, thresholds {[round(one, 2) for one in loss.thresholds.tolist()]}"
            print(f"step {step}, {time.monotonic() - begun:.0f} s: {told}", flush=True)
    if rank() == 0:
        _keep_best(model, held_out, best, options.out)


def _keep_best(model: Bert, held_out: HeldOut, best: float, out: Path) -> float:
    scores = held_out.scores(model.vectors)
    better = scores.chosen_by > best
    print(f"{scores}{' *' if better else ''}", flush=True)
    if better:
        model.save(out)
    return max(best, scores.chosen_by)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or hub name of the encoder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prefix", default="", help="put before each text")
    parser.add_argument("--reference", type=Path, help="whose similarities are kept; the model itself when left out")
    parser.add_argument("--faq", type=Path, default=Path(__file__).parents[2] / "data" / "faq")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--never", type=Path, nargs="*", default=[], help="CSV files of evaluation")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--every", type=int, default=40, help="steps between two scores")
    parser.add_argument("--rate", type=float, default=3e-5)
    parser.add_argument("--keep", type=float, default=10.0, help="weight of the second loss")
    parser.add_argument("--centre", action="store_true", help="first move the origin to the mean of the vectors")
    parser.add_argument("--embeddings", action="store_true", help="learn the embeddings, too")
    parser.add_argument("--seed", type=int, default=42)
    main(parser.parse_args(sys.argv[1:]))
