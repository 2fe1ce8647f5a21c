"""The index stage: a run's rows → `index/`, what its bot retrieves from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from daedap.data.reader import built_in_pairs
from daedap.data.split import RunRows, augment, read_rows, sample_rows
from daedap.files import new_folder
from daedap.i18n import tell, translate
from daedap.model.sentence_encoder import SentenceEncoder, built_in_encoder
from daedap.retrieval.encoder import MAX_PAIRS, BiEncoder
from daedap.retrieval.hybrid import HybridRetriever, fit_retriever
from daedap.runs import Run
from daedap.training.planner import extends_index, needs_bi_encoder
from daedap.types import Pair

if TYPE_CHECKING:
    from daedap.model.decoding import LanguageModel

_TYPO_SHARE = 0.5
"""Questions with a typo that the bi-encoder is trained on, per row: 2 points of Hits@1/20 on questions with typos."""


def build_index(run: Run, rows: RunRows, model: LanguageModel) -> None:
    """Write `index/`, and record in the run's state how many rows bi-encoder and weights were fitted on.

    `model`: the run's language model, for fitting the rerank weights. Held-out rows are only encoded, never fitted on.
    """
    starter = _starter_pairs_beside(rows.held_out)
    retriever, encoder_rows = (_extended(run, rows) if starter else None) or _fitted(run, rows, model, starter)
    with new_folder(run.folder / "index") as folder:
        retriever.save(folder, rows.held_out)
    run.update_state(encoder_rows=encoder_rows)


def _extended(run: Run, rows: RunRows) -> tuple[HybridRetriever, int] | None:
    """The parent's retriever with the new rows; None when there is no parent, or too much is new."""
    if run.parent is None:
        return None
    train, encoder_rows = rows["train"], run.parent.state["encoder_rows"]
    if not extends_index(train=len(train), fitted=encoder_rows):
        return None
    parent = HybridRetriever.open(run.parent.folder / "index")
    if _needs_bi_encoder(rows) and not parent.bi_encoded:
        return None
    known = {pair.id for pair in read_rows(run.parent.folder, "lookup")}
    lookup = [pair for pair in rows["lookup"] if pair.id not in known]
    return parent.extended([*train[: run.new_rows], *lookup]), encoder_rows


def _fitted(run: Run, rows: RunRows, model: LanguageModel, starter: Sequence[Pair]) -> tuple[HybridRetriever, int]:
    train = rows["train"]
    bi_encoder = _fit_bi_encoder(run, rows, starter) if _needs_bi_encoder(rows) else None
    retriever = HybridRetriever.build([*train, *rows["lookup"]], _sentence_encoder(run), bi_encoder)
    return fit_retriever(retriever, train, rows["dev"], model), len(train)


def _needs_bi_encoder(rows: RunRows) -> bool:
    return needs_bi_encoder(train=len(rows["train"]), dev=len(rows["dev"]))


def _fit_bi_encoder(run: Run, rows: RunRows, starter: Sequence[Pair]) -> BiEncoder:
    tell([translate("fitting a bi-encoder: which answers go with which questions")])
    train, seed, machine = rows["train"], run.config.train.seed, run.trained["machine"]
    sample = sample_rows(train, MAX_PAIRS, seed)
    typos = augment(sample, ("typo",), _TYPO_SHARE, seed, held_out=rows.held_out)
    known = {pair.id for pair in train}
    new = [pair for pair in starter if pair.id not in known][: len(train)]  # at most as many as the file has
    in_bf16 = machine["device"] == "cpu" and machine["precision"] == "bf16"
    return BiEncoder.fit([*sample, *new, *typos], seed, bf16=in_bf16)


def _sentence_encoder(run: Run) -> SentenceEncoder:
    name = run.config.model.encoder
    if name is None:
        return built_in_encoder()
    from daedap.model.encoder_conversion import open_encoder  # torch takes seconds to import

    return open_encoder(name, run.folder.parent / "cache")


def _starter_pairs_beside(held_out: Sequence[Pair]) -> list[Pair]:
    """The built-in pairs, by id, as additional training data; none when some of them are held out.

    In that case a parent's bi-encoder, which may have been fitted on them, must not be used either.
    """
    pairs = {pair.id: pair for pair in built_in_pairs()}
    return [] if any(pair.id in pairs for pair in held_out) else [pairs[id_] for id_ in sorted(pairs)]
