"""Whether an engine computes what was trained: compared with PyTorch in float32, once for each kind of processor.

    engine/reference.json    dev rows with their scores and greedy answers, by PyTorch in float32
           verified.json     kind of processor → the compute type that agrees with them there, and how closely

Eight-bit arithmetic differs between processors, and a run may move from one to another: each kind is checked when the
engine is first opened there. Where eight bits are too far off, the same weights are computed in float32; where that is
too far off, too, PyTorch answers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daedap.errors import StorageError
from daedap.files import write_json
from daedap.i18n import translate
from daedap.model.device import processor_kind
from daedap.model.engine import ENGINE, Engine
from daedap.model.language_model import LanguageModel, TorchModel
from daedap.model.prompt import Prompt
from daedap.model.saved import unreadable_weights, open_trained, load_prompt
from daedap.runs import Json, Run
from daedap.types import Message, Pair

_log = logging.getLogger("daedap")
REFERENCE, VERIFIED = "reference.json", "verified.json"
PYTORCH = "pytorch"
"""In the place of a compute type: no engine agrees here."""
COMPUTE_TYPES = ("int8", "float32")
"""CTranslate2's, in the order in which they are tried: the faster ones first."""
_ROWS = 32
_BPC = 0.02
"""Bits per character by which all rows together may be more or less likely."""
_MARGIN = 0.5
"""Nats by which each token of a greedy answer must be ahead of the next best for the answer to be clear: where two
tokens are equally likely, rounding decides."""
_DIFFERENT = 0.1
"""Share of the clear answers that may be different ones."""


@dataclass(frozen=True)
class Agreement:
    """How closely an engine agrees with its reference."""

    compute_type: str
    bpc_difference: float
    """Bits per character that the engine finds more (+) or fewer (-) than PyTorch in float32."""
    same_answers: int
    """Greedy answers that are the same, among …"""
    clear_answers: int
    """… those in which no token was a close choice."""

    @property
    def close(self) -> bool:
        """Whether the engine may answer in PyTorch's place; never where a score is not a number."""
        allowed = max(1, round(_DIFFERENT * self.clear_answers))
        return abs(self.bpc_difference) <= _BPC and self.clear_answers - self.same_answers <= allowed


@dataclass(frozen=True)
class Reference:
    """What PyTorch computes in float32 for a few rows."""

    pairs: tuple[Pair, ...]
    log2_probabilities: tuple[float, ...]
    """Of each answer with its end token, given its question: the sum over its tokens."""
    answers: tuple[str, ...]
    """Greedy ones."""
    margins: tuple[float, ...]
    """Of each greedy answer: the least lead, in nats, of a token over the next best."""

    @classmethod
    def of(cls, speaker: TorchModel, pairs: Sequence[Pair]) -> Reference:
        """Compute it for the first rows that fit the model's length whole."""
        rows = [pair for pair in pairs if speaker.prompt.fits(pair)][:_ROWS]
        greedy = speaker.greedy(rows)
        return cls(
            tuple(rows),
            tuple(speaker.log2_probability(rows)[:, 0].tolist()),
            tuple(spoken.text for spoken, _ in greedy),
            tuple(margin for _, margin in greedy),
        )

    def compare(self, engine: Engine) -> Agreement:
        """Score and answer all rows with an engine; draw samples, too, since that is another way through its code."""
        scores = engine.log2_probability(self.pairs)[:, 0]
        characters = max(1, sum(len(pair.answer) for pair in self.pairs))
        clear = [row for row, margin in enumerate(self.margins) if margin >= _MARGIN]
        replies = [spoken.text for spoken in engine.reply(self.pairs)]
        engine.sample(self.pairs[:2], 4, seed=0)
        return Agreement(
            engine.compute_type,
            float((np.sum(self.log2_probabilities) - scores.sum()) / characters),
            sum(replies[row] == self.answers[row] for row in clear),
            len(clear),
        )

    def save(self, folder: Path) -> None:
        """Write it into an engine's folder."""
        write_json(folder / REFERENCE, asdict(self))

    @classmethod
    def open(cls, folder: Path) -> Reference:
        """Read it. Raises RunError when it is missing or damaged."""
        try:
            fields = json.loads((folder / REFERENCE).read_text(encoding="utf-8"))
            pairs = tuple(_pair(row) for row in fields.pop("pairs"))
            return cls(pairs, **{name: tuple(values) for name, values in fields.items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise unreadable_weights(folder / REFERENCE, error) from error


def open_engine(run: Run, device: str = "cpu") -> LanguageModel:
    """A complete run's model, computed by CTranslate2 where it agrees with PyTorch on this processor, else by PyTorch.

    Raises RunError when its files or its base have changed.
    """
    folder = run.folder / ENGINE
    if device != "cpu" or not folder.is_dir():
        return open_trained(run, device)
    engine = open_verified_engine(folder, load_prompt(run), run.learned["limits"]["max_new_tokens"])
    return engine or open_trained(run, device)


def open_verified_engine(folder: Path, prompt: Prompt, max_new_tokens: int) -> Engine | None:
    """The engine of a folder with the fastest compute type that agrees with its reference here; None: there is none.

    Raises RunError when a file is damaged.
    """
    if here := verified(folder).get(processor_kind()):
        chosen = str(here["compute_type"])
        return None if chosen == PYTORCH else Engine.open(folder, prompt, max_new_tokens, chosen)
    engine = verify_engine(folder, prompt, max_new_tokens)
    if engine is None:
        told = "The engine does not agree with the trained model on this processor: PyTorch answers, slower."
        _log.warning(translate(told))
    return engine


def verify_engine(folder: Path, prompt: Prompt, max_new_tokens: int) -> Engine | None:
    """Compare each compute type with the reference, and record the first one that agrees on this kind of processor."""
    reference = Reference.open(folder)
    for compute_type in COMPUTE_TYPES:
        engine = Engine.open(folder, prompt, max_new_tokens, compute_type)
        agreement = reference.compare(engine)
        if agreement.close:
            if compute_type != COMPUTE_TYPES[0]:
                told = (
                    "The engine computes in {compute_type} on this processor, slower: eight bits would be too far off."
                )
                _log.info(translate(told, compute_type=compute_type))
            _record(folder, asdict(agreement))
            return engine
    _record(folder, {"compute_type": PYTORCH})
    return None


def verified(folder: Path) -> Json:
    """Kind of processor → what was found there; nothing where no kind was checked yet."""
    try:
        found: Json = json.loads((folder / VERIFIED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise unreadable_weights(folder / VERIFIED, error) from error
    return found


def _record(folder: Path, found: Json) -> None:
    with suppress(StorageError):  # a run on a read-only disk is checked again each time
        write_json(folder / VERIFIED, {**verified(folder), processor_kind(): found})


def _pair(row: dict[str, Any]) -> Pair:
    return Pair(**{**row, "history": tuple(Message(**turn) for turn in row["history"])})
