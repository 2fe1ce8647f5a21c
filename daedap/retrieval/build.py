"""The index stage: a run's rows → `index/`, what its bot retrieves from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from daedap.data.augment import augment
from daedap.data.split import HELD_OUT, read_rows, sample_rows
from daedap.files import new_folder
from daedap.i18n import tell, translate
from daedap.retrieval.encoder import MOST, BiEncoder
from daedap.retrieval.hybrid import HybridRetriever, fit_retriever
from daedap.retrieval.small_talk import built_in_pairs
from daedap.runs import Run
from daedap.types import Pair

if TYPE_CHECKING:
    from daedap.model.language_model import LanguageModel  # torch takes seconds to import

_TYPO_SHARE = 0.5
"""Questions with a typo that the bi-encoder is trained on, per row: 2 points of Hits@1/20 on questions with typos."""
_REFIT_FROM = 1.1
"""Rows per row that the bi-encoder was fitted on from which on it is fitted again."""


def build_index(run: Run, model: LanguageModel) -> int:
    """Write `index/`; returns the number of rows that the bi-encoder was fitted on.

    `model`: the run's language model, for fitting the rerank weights. Held-out rows are only encoded, never fitted on.
    """
    held_out = [pair for name in HELD_OUT for pair in read_rows(run.folder, name)]
    starter = _starter_pairs_beside(held_out)
    retriever, rows = (_extended(run) if starter else None) or _fitted(run, model, held_out, starter)
    with new_folder(run.folder / "index") as folder:
        retriever.save(folder, held_out)
    return rows


def _extended(run: Run) -> tuple[HybridRetriever, int] | None:
    """The parent's retriever with the new rows; None when there is no parent, or too much is new."""
    if run.parent is None:
        return None
    train, rows = read_rows(run.folder, "train"), run.parent.manifest["memory"]["encoder_rows"]
    if len(train) > _REFIT_FROM * rows:
        return None
    known = {pair.id for pair in read_rows(run.parent.folder, "lookup")}
    lookup = [pair for pair in read_rows(run.folder, "lookup") if pair.id not in known]
    return HybridRetriever.open(run.parent.folder / "index").with_new([*train[: run.new_rows], *lookup]), rows


def _fitted(
    run: Run, model: LanguageModel, held_out: Sequence[Pair], starter: Sequence[Pair]
) -> tuple[HybridRetriever, int]:
    tell([translate("learning which answers go with which questions")])
    train, dev, seed = read_rows(run.folder, "train"), read_rows(run.folder, "dev"), run.settings["recipe"]["seed"]
    rows = sample_rows(train, MOST, seed)
    typos = augment(rows, ("typo",), _TYPO_SHARE, seed, held_out=held_out)
    known = {pair.id for pair in train}
    new = [pair for pair in starter if pair.id not in known][: len(train)]  # at most as many as the file has
    machine = run.learned["machine"]
    encoder = BiEncoder.fit(
        [*rows, *new, *typos], seed, bf16=machine["device"] == "cpu" and machine["precision"] == "bf16"
    )
    return fit_retriever(train, dev, encoder, model, read_rows(run.folder, "lookup")), len(train)


def _starter_pairs_beside(held_out: Sequence[Pair]) -> list[Pair]:
    """The built-in pairs, by id, as additional training data; none when some of them are held out.

    In that case a parent's bi-encoder, which may have been fitted on them, must not be used either.
    """
    pairs = {pair.id: pair for pair in built_in_pairs()}
    return [] if any(pair.id in pairs for pair in held_out) else [pairs[id_] for id_ in sorted(pairs)]
