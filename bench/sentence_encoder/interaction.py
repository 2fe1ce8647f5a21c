"""Train the model that reads a query and a known pair together (daedap/retrieval/interaction.py).

    python bench/sentence_encoder/interaction.py OUT.npz --never FILE.csv …

Learns from the same trades of data/faq as the sentence encoder. Each paraphrase is compared with its own row and four
others, most of them the nearest by sentence vectors; the loss is a cross entropy over these and "no row", whose logit
is 0 and which is the target of questions out of scope. A part of the queries sees the rows without their answers, as in
small talk. Scored on the held-out trades.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from texts import Forbidden, Trade, disturbed, is_held_out, read_trades, training_trades
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from daedap.model.sentence_encoder import SentenceEncoder
from daedap.retrieval.interaction import InteractionModel, TokenPair

CANDIDATES, SCORED = 5, 6
"""Rows that a query is compared with in training, and in scoring."""
BATCH = 32
NOISY, WITHOUT_ANSWERS = 0.2, 0.2
"""Shares of the queries that are asked in disturbed form, and that see no answers."""


class Query(NamedTuple):
    """A question to a trade."""

    text: str
    row: int
    """That answers it; -1: none."""
    nearest: list[int]
    """All rows, by the sum of both similarities."""
    trade: Trade
    similarities: NDArray[np.float32]
    """(rows, 2): to question and answer."""


class Interaction(nn.Module):
    """As daedap/retrieval/interaction.py computes it for one query; here for padded batches of pairs."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner, bias=False)
        nn.init.orthogonal_(self.key.weight)
        self.side = nn.Parameter(torch.zeros(2, inner))
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.compare = nn.Linear(4 * inner + 1, inner)
        self.query_gate, self.pair_gate = nn.Linear(width, 1), nn.Linear(width, 1)
        self.hidden, self.output = nn.Linear(4 * inner + 4, inner), nn.Linear(inner, 1)
        self.dropout, self.activation = nn.Dropout(dropout), nn.functional.relu

    def forward(
        self, query: Tensor, asked: Tensor, known: Tensor, there: Tensor, sides: Tensor, more: Tensor
    ) -> Tensor:
        """(pairs,). query, known: (pairs, tokens, width); asked, there: their masks; more: (pairs, 4) similarities."""
        least = torch.finfo(query.dtype).min
        projected, values = self.project(query), self.project(known) + self.side[sides]
        keys, others = normalize(self.key(query), dim=-1), normalize(self.key(known), dim=-1)
        cosines = query @ known.transpose(1, 2)
        attention = self.scale * (keys @ others.transpose(1, 2) + cosines)
        outside, inside = ~there[:, None, :], ~asked[:, :, None]
        to_known = attention.masked_fill(outside, least).softmax(2) @ values
        to_query = attention.masked_fill(inside, least).softmax(1).transpose(1, 2) @ projected
        met = cosines.masked_fill(outside, -1).amax(2), cosines.masked_fill(inside, -1).amax(1)
        one, other = self._compared(projected, to_known, met[0]), self._compared(values, to_query, met[1])
        pooled = [
            self._gated(self.query_gate(query), asked, one),
            one.masked_fill(~asked[..., None], least).amax(1),
            self._gated(self.pair_gate(known), there, other),
            other.masked_fill(~there[..., None], least).amax(1),
        ]
        hidden = self.activation(self.hidden(self.dropout(torch.cat([*pooled, more], 1))))
        return self.output(self.dropout(hidden))[:, 0]

    def _compared(self, own: Tensor, attended: Tensor, met: Tensor) -> Tensor:
        both = torch.cat([own, attended, own * attended, (own - attended).abs(), met[..., None]], -1)
        return self.activation(self.compare(self.dropout(both)))

    def _gated(self, gates: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        shares = gates[..., 0].masked_fill(~mask, torch.finfo(gates.dtype).min).softmax(1)
        return (shares[:, None] @ tokens)[:, 0]


class Texts:
    """Vectors and token vectors of all texts, computed once."""

    def __init__(self, encoder: SentenceEncoder, texts: Iterable[str]) -> None:
        distinct = list(dict.fromkeys(texts))
        self.vectors = dict(zip(distinct, encoder.encode(distinct), strict=True))
        self.tokens: dict[str, Tensor] = {}
        for start in range(0, len(distinct), 512):
            part = distinct[start : start + 512]
            for text, states in zip(part, encoder.encode_tokens(part), strict=True):
                self.tokens[text] = torch.from_numpy(states.astype(np.float16))

    def queries(self, trades: Iterable[Trade]) -> list[Query]:
        """All paraphrases, and the questions out of scope."""
        return [query for trade in trades for query in self._of(trade)]

    def _of(self, trade: Trade) -> list[Query]:
        texts = [(text, row) for row, asked in enumerate(trade.asked) for text in asked]
        texts += [(text, -1) for text in trade.out_of_scope]
        sides = [np.array([self.vectors[text] for text in side]) for side in (trade.questions, trade.answers)]
        found = []
        for text, row in texts:
            similarities = np.stack([side @ self.vectors[text] for side in sides], axis=1)
            nearest = np.argsort(-similarities.sum(axis=1), kind="stable").tolist()
            found.append(Query(text, row, nearest, trade, similarities))
        return found

    def batch(self, queries: Sequence[Query], rows: Sequence[Sequence[int]], blind: Sequence[bool]) -> list[Tensor]:
        """Inputs of `Interaction`: each query with each of its rows; `blind`: without the answers."""
        asked, known, sides, more = [], [], [], []
        for query, chosen, without in zip(queries, rows, blind, strict=True):
            for row in chosen:
                asked.append(self.tokens[query.text])
                parts = [self.tokens[query.trade.questions[row]], self.tokens[query.trade.answers[row]]]
                parts = parts[:1] if without else parts
                known.append(torch.cat(parts))
                sides.append(torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(list(map(len, parts)))))
                more.append(_similarities(query.similarities, row, without))
        padded, mask = _padded(asked)
        pairs, there = _padded(known)
        side = nn.utils.rnn.pad_sequence(sides, batch_first=True)
        return [padded, mask, pairs, there, side, torch.tensor(np.array(more, np.float32))]


def _similarities(similarities: NDArray[np.float32], row: int, blind: bool) -> list[float]:
    """Of question and answer, and each less the highest of another row."""
    behind = np.delete(similarities, row, axis=0).max(axis=0)
    question, answer = similarities[row]
    if blind:
        return [question, 0.0, question - behind[0], 0.0]
    return [question, answer, question - behind[0], answer - behind[1]]


def _padded(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(texts, tokens, width) and a mask, (texts, tokens)."""
    lengths = torch.tensor([len(text) for text in texts])
    padded = nn.utils.rnn.pad_sequence(list(texts), batch_first=True).float()
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def candidates(query: Query, rng: random.Random) -> tuple[list[int], int]:
    """Rows to compare a query with, and which of them is right: CANDIDATES where none is."""
    if query.row < 0:
        return [*query.nearest[:4], rng.choice(query.nearest[4:10])], CANDIDATES
    wrong = [row for row in query.nearest[:8] if row != query.row]
    return [query.row, *wrong[:3], rng.choice(wrong[3:])], 0


def epoch(
    model: Interaction, texts: Texts, queries: Sequence[Query], noise: dict[str, str], rng: random.Random
) -> Tensor:
    """Yield the loss of each batch."""
    order = rng.sample(range(len(queries)), len(queries))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        part = [queries[n] for n in order[start : start + BATCH]]
        part = [
            query._replace(text=noise[query.text]) if query.text in noise and rng.random() < NOISY else query
            for query in part
        ]
        rows, right = zip(*(candidates(query, rng) for query in part), strict=True)
        blind = [rng.random() < WITHOUT_ANSWERS for _ in part]
        logits = model(*texts.batch(part, rows, blind)).reshape(len(part), CANDIDATES)
        yield cross_entropy(torch.cat([logits, torch.zeros(len(part), 1)], 1), torch.tensor(right))


@torch.inference_mode()
def scores(model: Interaction, texts: Texts, queries: Sequence[Query]) -> str:
    """Figures of the held-out trades, by the model alone and beside the sentence vectors."""
    model.eval()
    logits = []
    for start in range(0, len(queries), 64):
        part = queries[start : start + 64]
        rows = [query.nearest[:SCORED] for query in part]
        logits.append(model(*texts.batch(part, rows, [False] * len(part))).reshape(len(part), SCORED).numpy())
    model.train()
    found = np.concatenate(logits)
    inside = np.array([query.row >= 0 for query in queries])
    first = np.array([query.nearest[best] for query, best in zip(queries, found.argmax(axis=1), strict=True)])
    right = first == [query.row for query in queries]
    before = np.array([query.nearest[0] == query.row for query in queries])
    best = found.max(axis=1)
    limits = {share: np.quantile(best[~inside], 1 - share) for share in (0.1, 0.2)}
    answered = " ".join(f"{100 * (right & (best > limit))[inside].mean():.1f}" for limit in limits.values())
    return (
        f"first row right {100 * right[inside].mean():.1f} (vectors {100 * before[inside].mean():.1f}), "
        f"AUROC in or out of scope {roc_auc_score(inside, best):.3f}, "
        f"right where 10 and 20 % of what is out of scope are answered {answered}"
    )


def main() -> None:
    """Train, score after each epoch, and write the last weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", type=Path, help="by default the built-in one")
    parser.add_argument("--faq", type=Path, default=Path(__file__).parents[2] / "data" / "faq")
    parser.add_argument("--never", type=Path, nargs="*", default=[], help="CSV files of evaluation")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--inner", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    trades = training_trades(options.faq, Forbidden(options.never))
    held_out = read_trades(options.faq, is_held_out)
    noise = {text: other for other, text in disturbed([text for one in trades for row in one.asked for text in row], 0)}
    texts = Texts(
        SentenceEncoder.open(options.encoder),
        [*(text for one in (*trades, *held_out) for text in one.texts), *noise.values()],
    )
    queries, asked = texts.queries(trades), texts.queries(held_out)
    model = Interaction(len(next(iter(texts.vectors.values()))), options.inner, options.dropout)
    print(f"{len(trades)} trades, {len(queries)} queries; held out: {len(held_out)}, {len(asked)}", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=options.decay)
    steps, step, begun = options.epochs * (len(queries) // BATCH), 0, time.monotonic()
    for number in range(options.epochs):
        losses = []
        for loss in epoch(model, texts, queries, noise, rng):
            for group in optimizer.param_groups:
                group["lr"] = options.rate * min((step + 1) / 50, (steps - step) / max(1, steps - 50))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            losses.append(loss.item())
        told = f"epoch {number + 1}, {time.monotonic() - begun:.0f} s, loss {np.mean(losses):.3f}"
        print(f"{told}: {scores(model, texts, asked)}", flush=True)
    weights = {name: value.numpy().astype(np.float16) for name, value in model.state_dict().items()}
    np.savez(options.out, **weights)
    print(f"largest difference to what answers: {difference(model, weights, texts, asked[:50]):.3f}")


@torch.inference_mode()
def difference(
    model: Interaction, weights: dict[str, NDArray[np.float16]], texts: Texts, queries: Sequence[Query]
) -> float:
    """Between this model and what answers with its weights, in log odds."""
    model.eval()
    answering = InteractionModel({name: value.astype(np.float32) for name, value in weights.items()})
    largest = 0.0
    for query in queries:
        rows = query.nearest[:SCORED]
        here = model(*texts.batch([query], [rows], [False])).numpy()
        pairs = [
            TokenPair(
                *(texts.tokens[side[row]].float().numpy() for side in (query.trade.questions, query.trade.answers))
            )
            for row in rows
        ]
        more = np.array([_similarities(query.similarities, row, False) for row in rows], np.float32)
        there = answering.log_odds(texts.tokens[query.text].float().numpy(), pairs, more)
        largest = max(largest, float(np.abs(here - there).max()))
    return largest


if __name__ == "__main__":
    main()
