"""Two maps that bring a question and its answers to the same place (a bi-encoder, trained contrastively)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

FloatArray = NDArray[np.float32]
_WIDTH, _BATCH, _PEAK, _DECAY = 256, 512, 4e-3, 1e-2
_TEMPERATURE, _DROPPED, _WARMUP = 0.1, 51, 30
"""Measured choices: docs/EXPERIMENTS.md, "What goes together". Of 256 numbers 51 are dropped."""
_EPOCHS, _FEWEST, _MOST = 30, 200, 3000
"""As often as that, within so many steps: a small file needs more repetition, a large one none."""


@dataclass(frozen=True)
class Projections:
    """(width of the features, 256) each."""

    question: FloatArray
    answer: FloatArray


def fit_biencoder(
    questions: FloatArray, answers: FloatArray, groups: NDArray[np.int64], seed: int, *, bf16: bool = False
) -> Projections:
    """Learn from pairs; both (pairs, width), `groups` (pairs,) tells which pairs have the same answer.

    `bf16` multiplies in that precision, where the processor is the faster for it.

    In each batch a question is drawn to its own answer and to another question that has that answer, and pushed from
    all others (InfoNCE: van den Oord et al. 2018; Gillick et al. 2019 for pairs in a batch as each other's negatives).
    """
    torch.manual_seed(seed)
    twins, rng = _SameAnswerSampler(groups), np.random.default_rng(seed)
    towers = _Towers(questions.shape[1], np.random.default_rng(seed))
    optimizer = torch.optim.AdamW(towers.parameters(), lr=_PEAK, weight_decay=_DECAY)
    batches = _batches(len(groups), rng)
    for step, rows in enumerate(batches):
        share = min(1.0, (step + 1) / _WARMUP) * (1 - step / len(batches))
        for group in optimizer.param_groups:
            group["lr"] = _PEAK * share
        asked, other, said = (
            torch.from_numpy(part) for part in (questions[rows], questions[twins.of(rows, rng)], answers[rows])
        )
        same = torch.from_numpy(groups[rows])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = towers.loss(asked, other, said, same[:, None] == same[None])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Projections(towers.question.weight.detach().numpy().T.copy(), towers.answer.weight.detach().numpy().T.copy())


class _Towers(nn.Module):
    def __init__(self, width: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.rng = rng
        self.question, self.answer = (nn.Linear(width, _WIDTH, bias=False) for _ in range(2))
        nn.init.orthogonal_(self.question.weight)
        self.answer.load_state_dict(self.question.state_dict())  # what shares words is near from the start

    def loss(self, asked: Tensor, other: Tensor, said: Tensor, same: Tensor) -> Tensor:
        """`same`, (rows, rows): who has the same answer, and is no wrong one."""
        question, twin = (normalize(self.question(self.thinned(part))) for part in (asked, other))
        answer = normalize(self.answer(self.thinned(said)))
        hidden = same & ~torch.eye(len(same), dtype=torch.bool)
        right = torch.arange(len(same))
        told = [
            (one @ two.T / _TEMPERATURE).masked_fill(hidden, -torch.inf)
            for one, two in ((question, answer), (question, twin))
        ]
        return (cross_entropy(told[0], right) + cross_entropy(told[0].T, right)) / 2 + cross_entropy(told[1], right)

    def thinned(self, part: Tensor) -> Tensor:
        """Dropout, by a byte for each number: PyTorch's own draws took a third of a step."""
        thrown = torch.frombuffer(bytearray(self.rng.bytes(part.numel())), dtype=torch.uint8).view_as(part)
        return part * (thrown >= _DROPPED) * (256 / (256 - _DROPPED))


class _SameAnswerSampler:
    """Rows that have the same answer as a given one."""

    def __init__(self, groups: NDArray[np.int64]) -> None:
        self._order = np.argsort(groups, kind="stable")
        found, begin, count = np.unique(groups[self._order], return_index=True, return_counts=True)
        place = np.searchsorted(found, groups)
        self._begin, self._count = begin[place], count[place]

    def of(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """One for each row, perhaps the row itself."""
        chosen: NDArray[np.int64] = self._order[self._begin[rows] + rng.integers(self._count[rows])]
        return chosen


def _batches(rows: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    size = min(_BATCH, rows)
    each = rows // size
    epochs = min(max(_EPOCHS, -(-_FEWEST // each)), -(-_MOST // each))
    return [part for _ in range(epochs) for part in np.split(rng.permutation(rows)[: each * size], each)][:_MOST]
