"""Distillation: the student's vectors become the teacher's, from which their mean is taken.

    python bench/sentence_encoder/convert.py TEACHER FOLDER --prefix "query: " --max-length 64 --full-range
    python bench/sentence_encoder/distil.py STUDENT OUT --teacher FOLDER --vectors V.npy --corpus CORPUS --never …

Sentences of the corpora, the FAQs of the training trades and the built-in pairs. The loss is 1 - cosine to the
teacher's vector, and the squared difference of similarities within a batch. For disturbed sentences (typos, spacing,
speech level) the target is the vector of the sentence itself. The teacher's vectors are computed once, in eight bits,
and kept in V.npy (`--steps 0` does no more). `torchrun --nproc-per-node 2 distil.py …` takes two cores.
"""

from __future__ import annotations

import random
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from bert import Bert, rank, steps
from held_out import HeldOut
from numpy.typing import NDArray
from texts import Forbidden, dialogue_pairs, disturbed, read_starter, sentences, training_trades
from torch.nn.functional import mse_loss

from daedap.model.sentence_encoder import SentenceEncoder

AT_ONCE = 128
HELD_OUT = 1_000
"""Sentences that nothing learns from, for the curve."""


class Lessons(NamedTuple):
    """Texts whose vectors the teacher tells, and what the student reads: (text, row of the teacher's text)."""

    told: list[str]
    read: list[tuple[str, int]]


def lessons(options: Namespace) -> Lessons:
    """Each plain sentence once, FAQs and built-in pairs several times; disturbed ones beside them."""
    forbidden = Forbidden(options.never)
    faq = [text for trade in training_trades(options.faq, forbidden) for text in trade.texts]
    talk = [text for pair in dialogue_pairs(options.corpus, forbidden) for text in pair]
    starter = [text for side in read_starter() for text in forbidden.without(side)]
    plain = sentences(options.corpus, forbidden, options.reviews, options.seed)
    random.Random(options.seed).shuffle(plain)
    told = list(dict.fromkeys([*plain, *faq, *talk, *starter]))
    rows = {text: row for row, text in enumerate(told)}
    repeated = [*plain[HELD_OUT:], *faq * 4, *talk, *starter * 2]
    noise = disturbed([*plain[HELD_OUT : HELD_OUT + 15_000], *faq, *starter], options.seed)
    return Lessons(told, [(text, rows[text]) for text in repeated] + [(other, rows[text]) for other, text in noise])


def teacher_vectors(told: list[str], folder: Path, path: Path) -> NDArray[np.float32]:
    """(texts, width), centred, of length 1; read when they were computed before."""
    if not path.exists():
        encoder, parts, begun = SentenceEncoder.open(folder), [], time.monotonic()
        for start in range(0, len(told), 10_000):
            parts.append(encoder.encode(told[start : start + 10_000]).astype(np.float16))
            print(f"{start + len(parts[-1]):,} of {len(told):,} texts, {time.monotonic() - begun:.0f} s", flush=True)
        np.save(path, np.concatenate(parts))
    vectors = np.load(path).astype(np.float32)
    assert len(vectors) == len(told), f"{path} holds vectors of other texts"
    vectors -= vectors.mean(axis=0)
    centred: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return centred


def main(options: Namespace) -> None:
    """Learn, tell the curve, and write the student."""
    torch.manual_seed(options.seed)
    torch.set_flush_denormal(True)
    told, read = lessons(options)
    print(f"{len(told):,} texts told, {len(read):,} read", flush=True)
    vectors = torch.from_numpy(teacher_vectors(told, options.teacher, options.vectors))
    if not options.steps:
        return
    student = Bert.open(options.student)
    rng, order = random.Random(options.seed + rank()), list[int]()
    student.model.eval()  # no dropout: the targets are exact, and the texts many
    student.centre(told[:HELD_OUT])
    begun, mean = time.monotonic(), 0.0
    for step, _ in enumerate(steps(student.model, options.steps, options.rate, warmup=100)):
        if len(order) < AT_ONCE:
            order = rng.sample(range(len(read)), len(read))
        some = [read[order.pop()] for _ in range(AT_ONCE)]
        wanted = vectors[[row for _, row in some]]
        found = student.encode([text for text, _ in some])
        away = 1 - (found * wanted).sum(1).mean()
        loss = away + options.similarities * mse_loss(found @ found.T, wanted @ wanted.T)
        loss.backward()
        mean += (away.item() - mean) / min(step + 1, 100)
        if rank() == 0 and step % 100 == 0:
            print(f"step {step}, {time.monotonic() - begun:.0f} s: cosine {1 - mean:.4f}", flush=True)
        if rank() == 0 and step and step % 500 == 0:
            _report(student, told[:HELD_OUT], vectors[:HELD_OUT].numpy())
            student.save(options.out)
    if rank() == 0:
        student.save(options.out)
        _report(student, told[:HELD_OUT], vectors[:HELD_OUT].numpy())
        print(HeldOut(options.faq).told(student.vectors))


def _report(student: Bert, texts: list[str], wanted: NDArray[np.float32]) -> None:
    print(f"held-out sentences: cosine {(student.vectors(texts) * wanted).sum(axis=1).mean():.4f}", flush=True)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", help="folder made by student.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", type=Path, required=True, help="folder made by convert.py")
    parser.add_argument("--vectors", type=Path, required=True, help="where its vectors are kept (.npy)")
    parser.add_argument("--faq", type=Path, default=Path(__file__).parents[2] / "data" / "faq")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--never", type=Path, nargs="*", default=[], help="CSV files of evaluation")
    parser.add_argument("--reviews", type=int, default=40_000, help="film reviews, and translated comments, at most")
    parser.add_argument("--steps", type=int, default=3_000, help="0: compute the teacher's vectors alone")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--similarities", type=float, default=5.0, help="weight of the second loss")
    parser.add_argument("--seed", type=int, default=42)
    main(parser.parse_args(sys.argv[1:]))
