"""Engines that are opened once they agree with PyTorch in float32 on this kind of processor: a run's, or a bundle's.

    engine/reference.json    dev rows with their scores and greedy answers, by PyTorch in float32
           verified.json     kind of processor → the compute type that agrees with them there, and how closely

int8 arithmetic differs between processors, and a run may be moved: an engine is verified when it is first opened on a
new kind of processor. Where int8 deviates too much, the same weights are computed in float32; where that deviates, too,
PyTorch answers. A bundle is opened without PyTorch and transformers, and holds besides:

    engine/tokenizer.json    as the package tokenizers writes it
           prompt.json       the control ids between texts, and the limits
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from tokenizers import Tokenizer

from daedap.errors import StorageError
from daedap.files import write_json
from daedap.i18n import translate
from daedap.model.decoding import LanguageModel, unreadable_weights
from daedap.model.engine import ENGINE, REPLIES, Engine
from daedap.model.prompt import Prompt, Template
from daedap.model.tokenizer import PlainTokenizer
from daedap.runs import Json, Run
from daedap.types import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from daedap.model.language_model import TorchModel  # torch takes seconds to import

_log = logging.getLogger("daedap")
_REFERENCE, _VERIFIED = "reference.json", "verified.json"
_TOKENIZER, _PROMPT = "tokenizer.json", "prompt.json"
PYTORCH = "pytorch"
"""Recorded instead of a compute type where no engine agrees."""
_COMPUTE_TYPES = ("int8", "float32")
"""CTranslate2's, in the order in which they are tried: the fastest first."""
_ROWS = 16
_MAX_BPC_DIFFERENCE = 0.02
"""Bits per character, over all rows."""
_MARGIN = 0.5
"""Nats by which every token of a greedy answer must lead for the answer to count: rounding decides between tokens of
equal probability."""
_MAX_DIFFERENT = 0.1
"""Fraction of the counted answers that may differ."""


@dataclass(frozen=True)
class Agreement:
    """How closely an engine agrees with its reference."""

    compute_type: str
    bpc_difference: float
    """The engine's bits per character minus those of PyTorch in float32."""
    same_answers: int
    """Counted greedy answers that are equal."""
    clear_answers: int
    """Greedy answers that count: those whose margin is large enough."""

    @property
    def close(self) -> bool:
        """Whether the engine may replace PyTorch; False where a score is NaN."""
        allowed = max(1, round(_MAX_DIFFERENT * self.clear_answers))
        return abs(self.bpc_difference) <= _MAX_BPC_DIFFERENCE and self.clear_answers - self.same_answers <= allowed


@dataclass(frozen=True)
class Reference:
    """Scores and greedy answers of a few rows by PyTorch in float32."""

    pairs: tuple[Pair, ...]
    log2_probabilities: tuple[float, ...]
    """Of each pair's answer with EOS: the sum over its tokens."""
    answers: tuple[str, ...]
    """Greedily decoded."""
    margins: tuple[float, ...]
    """Of each greedy answer: see TorchModel.greedy."""

    @classmethod
    def of(cls, model: TorchModel, pairs: Sequence[Pair]) -> Reference:
        """Compute it for the first rows that need no truncation; where all do, for their beginnings."""
        rows = list(islice(filter(model.prompt.fits, pairs), _ROWS))
        rows = rows or list(map(model.prompt.shortened, pairs[:_ROWS]))
        greedy = model.greedy(rows)
        return cls(
            tuple(rows),
            tuple(model.log2_probability(rows)[:, 0].tolist()),
            tuple(reply.text for reply, _ in greedy),
            tuple(margin for _, margin in greedy),
        )

    def compare(self, engine: Engine) -> Agreement:
        """Score and answer all rows with an engine; sampling is tried as well, as it takes another code path."""
        scores = engine.log2_probability(self.pairs)[:, 0]
        characters = max(1, sum(len(pair.answer) for pair in self.pairs))
        clear = [row for row, margin in enumerate(self.margins) if margin >= _MARGIN]
        replies = [reply.text for reply in engine.reply(self.pairs)]
        engine.sample(self.pairs[:2], 4, seed=0)
        return Agreement(
            engine.compute_type,
            float((np.sum(self.log2_probabilities) - scores.sum()) / characters),
            sum(replies[row] == self.answers[row] for row in clear),
            len(clear),
        )

    def save(self, folder: Path) -> None:
        """Write it into an engine's folder."""
        write_json(folder / _REFERENCE, asdict(self))

    @classmethod
    def open(cls, folder: Path) -> Reference:
        """Read it. Raises RunError when it is missing or damaged."""
        try:
            fields = json.loads((folder / _REFERENCE).read_text(encoding="utf-8"))
            pairs = tuple(Pair.from_json(row) for row in fields.pop("pairs"))
            return cls(pairs, **{name: tuple(values) for name, values in fields.items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise unreadable_weights(folder / _REFERENCE, error) from error


def open_engine(run: Run, device: str = "cpu") -> LanguageModel:
    """A complete run's model: its engine where that agrees with PyTorch on this processor, else PyTorch.

    Raises RunError when its files or its base have changed.
    """
    from daedap.model.language_model import load_prompt, open_trained  # torch takes seconds to import

    folder = run.folder / ENGINE
    if device != "cpu" or not folder.is_dir():
        return open_trained(run, device)
    engine = open_verified_engine(folder, load_prompt(run), run.trained["limits"]["max_new_tokens"])
    return engine or open_trained(run, device)


def open_verified_engine(folder: Path, prompt: Prompt, max_new_tokens: int) -> Engine | None:
    """The engine with the fastest compute type that agrees with the reference on this processor; None: none does.

    Raises RunError when a file is damaged.
    """
    from daedap.model.device import processor_kind  # torch takes seconds to import

    if record := read_verifications(folder).get(processor_kind()):
        compute_type = str(record["compute_type"])
        return None if compute_type == PYTORCH else Engine.open(folder, prompt, max_new_tokens, compute_type)
    engine = verify_engine(folder, prompt, max_new_tokens)
    if engine is None:
        _log.warning(
            translate("The engine does not agree with the trained model on this processor: PyTorch answers, slower.")
        )
    return engine


def verify_engine(folder: Path, prompt: Prompt, max_new_tokens: int) -> Engine | None:
    """Compare each compute type with the reference, and record the first one that agrees on this kind of processor."""
    from daedap.model.device import processor_kind  # torch takes seconds to import

    for engine, agreement in _compared(folder, prompt, max_new_tokens):
        if agreement.close:
            if engine.compute_type != _COMPUTE_TYPES[0]:
                message = "The engine computes in {compute_type} on this processor, slower: int8 deviates too much."
                _log.info(translate(message, compute_type=engine.compute_type))
            _record(folder, processor_kind(), asdict(agreement))
            return engine
    _record(folder, processor_kind(), {"compute_type": PYTORCH})
    return None


def _compared(folder: Path, prompt: Prompt, max_new_tokens: int) -> Iterator[tuple[Engine, Agreement]]:
    """The engine with each compute type, and how closely that agrees with the reference."""
    reference = Reference.open(folder)
    for compute_type in _COMPUTE_TYPES:
        engine = Engine.open(folder, prompt, max_new_tokens, compute_type)
        yield engine, reference.compare(engine)


def read_verifications(folder: Path) -> Json:
    """Kind of processor → its record in verified.json; empty before the first verification."""
    try:
        records: Json = json.loads((folder / _VERIFIED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise unreadable_weights(folder / _VERIFIED, error) from error
    return records


def _record(folder: Path, processor: str, record: object) -> None:
    with suppress(StorageError):  # on a read-only disk, verify again each time
        write_json(folder / _VERIFIED, {**read_verifications(folder), processor: record})


# Bundles


def save_language_model(engine: Engine, folder: Path) -> None:
    """Write an engine and what it takes to ask it without PyTorch and transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.bin", "config.json", "vocabulary.json", _REFERENCE):
        shutil.copyfile(engine.folder / name, folder / name)
    if (engine.folder / REPLIES).is_dir():
        shutil.copytree(engine.folder / REPLIES, folder / REPLIES)
    tokenizer = engine.prompt.tokenizer
    tokenizer.backend_tokenizer.save(str(folder / _TOKENIZER))
    settings = {
        "template": asdict(engine.prompt.template),
        "max_length": engine.prompt.max_length,
        "max_new_tokens": engine.max_new_tokens,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
        "special": tokenizer.all_special_ids,
    }
    write_json(folder / _PROMPT, settings)
    write_json(folder / _VERIFIED, {_processor(): engine.compute_type})


def open_language_model(folder: Path) -> Engine:
    """Read it, on a new processor with the fastest compute type that agrees with the reference, else the most exact.

    Raises RunError when a file is missing or damaged.
    """
    try:
        settings = json.loads((folder / _PROMPT).read_text(encoding="utf-8"))
        backend = Tokenizer.from_file(str(folder / _TOKENIZER))
        backend.no_truncation()
        backend.no_padding()
        tokenizer = PlainTokenizer(backend, settings["unk"], settings["pad"], tuple(settings["special"]))
        template = Template(**settings["template"])
    except Exception as error:  # tokenizers raises Exception itself
        raise unreadable_weights(folder, error) from error
    prompt = Prompt(cast("PreTrainedTokenizerFast", tokenizer), template, settings["max_length"])
    if compute_type := read_verifications(folder).get(_processor()):
        return Engine.open(folder, prompt, settings["max_new_tokens"], compute_type)
    compared = _compared(folder, prompt, settings["max_new_tokens"])
    engine = next((engine for engine, agreement in compared if agreement.close), None)
    if engine is None:
        message = "The language model gives other answers on this processor than where it was exported."
        _log.warning(translate(message))
        engine = Engine.open(folder, prompt, settings["max_new_tokens"], _COMPUTE_TYPES[-1])
    _record(folder, _processor(), engine.compute_type)
    return engine


def _processor() -> str:
    """Equal for processors on which an int8 model gives the same results; told without PyTorch."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines() if cpu.exists() else []
    flags = {line for line in lines if line.startswith(("flags", "Features", "vendor_id"))}
    features = hashlib.sha256("\n".join(sorted(flags)).encode()).hexdigest()[:16] if flags else platform.processor()
    return f"{platform.machine()} {features}"
