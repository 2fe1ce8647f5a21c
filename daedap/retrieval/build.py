"""From a run's rows to what its bot knows: `index/`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from daedap.data.augment import augment
from daedap.data.split import HELD_OUT, drawn, read_side
from daedap.files import new_folder
from daedap.i18n import tell, translate
from daedap.retrieval.encoder import MOST, BiEncoder
from daedap.retrieval.hybrid import HybridRetriever, extend_retriever, fit_retriever
from daedap.retrieval.small_talk import built_in
from daedap.runs import Run
from daedap.types import Pair

if TYPE_CHECKING:
    from daedap.model.language_model import LanguageModel  # torch takes seconds to import

_SLIPS = 0.5
"""Questions with a typing slip that the encoder learns, for each row: 2 points of Hits@1/20 under such slips."""
_OUTGROWN = 1.1
"""Times the rows that the encoder has learned from, beyond which it is learned anew."""


def build_index(run: Run, speaker: LanguageModel) -> int:
    """Write what the bot knows; returns how many rows its encoder has learned from.

    `speaker` is the run's model, by which the views of an answer are weighed.

    The held-out rows are encoded by what was learned without them, for the bot that talks.
    """
    held_out = [pair for side in HELD_OUT for pair in read_side(run.folder, side)]
    beside = _built_in_not_in(held_out)
    memory, encoded = (_grown(run) if beside else None) or _learned(run, speaker, held_out, beside)
    with new_folder(run.folder / "index") as folder:
        memory.save(folder)
        memory.space.extended(held_out).save(folder)
    return encoded


def _grown(run: Run) -> tuple[HybridRetriever, int] | None:
    """The parent's memory with the new rows before its own; None when too much is new, or there is no parent."""
    parent = run.parent
    if parent is None:
        return None
    train, encoded = read_side(run.folder, "train"), parent.manifest["memory"]["encoder_rows"]
    if len(train) > _OUTGROWN * encoded:
        return None
    return extend_retriever(HybridRetriever.open(parent.folder / "index"), train[: run.new_rows]), encoded


def _learned(
    run: Run, speaker: LanguageModel, held_out: Sequence[Pair], beside: Sequence[Pair]
) -> tuple[HybridRetriever, int]:
    tell([translate("learning which answers go with which questions")])
    train, dev, seed = read_side(run.folder, "train"), read_side(run.folder, "dev"), run.settings["recipe"]["seed"]
    taught = drawn(train, MOST, seed)
    slips = augment(taught, ("typo",), _SLIPS, seed, held_out=held_out)
    known = {pair.id for pair in train}
    unknown = [pair for pair in beside if pair.id not in known]
    more = [*unknown[: len(train)], *slips]  # no more than the file has rows
    machine = run.learned["machine"]
    encoder = BiEncoder.fit([*taught, *more], seed, bf16=machine["device"] == "cpu" and machine["precision"] == "bf16")
    return fit_retriever(train, dev, encoder, speaker), len(train)


def _built_in_not_in(held_out: Sequence[Pair]) -> list[Pair]:
    """Built-in pairs to learn from, by id: none where some of them are what is scored on.

    Then a parent's encoder, which may know them, is of no use either.
    """
    pairs = {pair.id: pair for pair in built_in()}
    return [] if any(pair.id in pairs for pair in held_out) else [pairs[id_] for id_ in sorted(pairs)]
