"""A bi-encoder of two linear projections for questions and answers, trained contrastively."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from daedap.types import Float32Array

_WIDTH, _BATCH_SIZE, _LEARNING_RATE, _WEIGHT_DECAY = 256, 512, 4e-3, 1e-2
_TEMPERATURE, _DROPOUT, _WARMUP_STEPS = 0.1, 51, 30
"""Tuned: docs/EXPERIMENTS.md, "What goes together". The dropout probability is 51 / 256."""
_EPOCHS, _MIN_STEPS, _MAX_STEPS = 30, 200, 3000
"""Epochs, within these limits of steps: small files need more epochs, large ones fewer."""


@dataclass(frozen=True)
class Projections:
    """Matrices of (feature width, 256)."""

    question: Float32Array
    answer: Float32Array


def fit_biencoder(
    questions: Float32Array, answers: Float32Array, groups: NDArray[np.int64], seed: int, *, bf16: bool = False
) -> Projections:
    """Train on feature vectors of question–answer pairs, (pairs, width) each.

    `groups`: (pairs,), equal for pairs with the same answer. `bf16`: multiply in bf16. Positives of a question are its
    answer and another question of its group; all other groups of the batch are negatives (InfoNCE: van den Oord et al.,
    2018; in-batch negatives: Gillick et al., 2019).
    """
    torch.manual_seed(seed)
    same_answer, rng = _SameAnswerSampler(groups), np.random.default_rng(seed)
    towers = _Towers(questions.shape[1], np.random.default_rng(seed))
    optimizer = torch.optim.AdamW(towers.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    batches = _batches(len(groups), rng)
    for step, rows in enumerate(batches):
        factor = min(1.0, (step + 1) / _WARMUP_STEPS) * (1 - step / len(batches))
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * factor
        features = (questions[rows], questions[same_answer.sample(rows, rng)], answers[rows])
        question, paraphrase, answer = map(torch.from_numpy, features)
        batch_groups = torch.from_numpy(groups[rows])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = towers.loss(question, paraphrase, answer, batch_groups[:, None] == batch_groups[None])
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
        self.answer.load_state_dict(self.question.state_dict())  # pairs that share words are similar from the start

    def loss(self, questions: Tensor, paraphrases: Tensor, answers: Tensor, same: Tensor) -> Tensor:
        """InfoNCE of (rows, width) features; `same`, (rows, rows): pairs with equal answers, which are no negatives."""
        question, paraphrase = (normalize(self.question(self.dropout(part))) for part in (questions, paraphrases))
        answer = normalize(self.answer(self.dropout(answers)))
        masked = same & ~torch.eye(len(same), dtype=torch.bool)
        target = torch.arange(len(same))
        to_answers, to_questions = (
            (question @ other.T / _TEMPERATURE).masked_fill(masked, -torch.inf) for other in (answer, paraphrase)
        )
        both_ways = (cross_entropy(to_answers, target) + cross_entropy(to_answers.T, target)) / 2
        return both_ways + cross_entropy(to_questions, target)

    def dropout(self, part: Tensor) -> Tensor:
        """Dropout from one random byte per value: PyTorch's own took a third of a step."""
        random = torch.frombuffer(bytearray(self.rng.bytes(part.numel())), dtype=torch.uint8).view_as(part)
        return part * (random >= _DROPOUT) * (256 / (256 - _DROPOUT))


class _SameAnswerSampler:
    """Samples rows with the same answer."""

    def __init__(self, groups: NDArray[np.int64]) -> None:
        self._order = np.argsort(groups, kind="stable")
        values, start, count = np.unique(groups[self._order], return_index=True, return_counts=True)
        index = np.searchsorted(values, groups)
        self._start, self._count = start[index], count[index]

    def sample(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """A row of the same group for each row, possibly itself."""
        chosen: NDArray[np.int64] = self._order[self._start[rows] + rng.integers(self._count[rows])]
        return chosen


def _batches(rows: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    size = min(_BATCH_SIZE, rows)
    per_epoch = rows // size
    epochs = min(max(_EPOCHS, -(-_MIN_STEPS // per_epoch)), -(-_MAX_STEPS // per_epoch))
    shuffled = (rng.permutation(rows)[: per_epoch * size] for _ in range(epochs))
    return [batch for order in shuffled for batch in np.split(order, per_epoch)][:_MAX_STEPS]
