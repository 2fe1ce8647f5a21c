"""From how many rows on the parts of an index are fitted on a run's own rows: the index stage and plans agree on it."""

from __future__ import annotations

ENOUGH_DEV_ROWS = 100
"""Dev rows from which on a run fits rerank weights of its own, and may let its language model propose answers. As many
are used for both: more change nothing (docs/EXPERIMENTS.md)."""
_BI_ENCODER_ROWS = 5_000
"""Training rows from which on a bi-encoder is fitted; for fewer, sentence vectors rank as well without any training."""
_MAX_GROWTH = 1.1
"""Rows per row that bi-encoder and weights were fitted on, up to which a parent's index is extended."""


def needs_bi_encoder(*, train: int, dev: int) -> bool:
    """Whether one is worth its time: only answers that the language model proposes or that are ranked depend on it."""
    return train >= _BI_ENCODER_ROWS and dev >= ENOUGH_DEV_ROWS


def extends_index(*, train: int, fitted: int) -> bool:
    """Whether so few of `train` rows are new that the parent's index, fitted on `fitted` rows, need not be refitted."""
    return train <= _MAX_GROWTH * fitted
