"""A run's language model in a bundle: its engine and prompt, opened without PyTorch and transformers.

engine/                  as a run's: model.bin, config.json, vocabulary.json, replies/, reference.json
       tokenizer.json    as the package tokenizers writes it
       prompt.json       the control ids between texts, the limits, and where the compute type was found to agree
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tokenizers import Tokenizer

from daedap.errors import StorageError
from daedap.files import write_json
from daedap.i18n import translate
from daedap.model.decoding import unreadable_weights
from daedap.model.engine import REPLIES, Engine
from daedap.model.prompt import Prompt, Template
from daedap.model.verify import COMPUTE_TYPES, REFERENCE, VERIFIED, Reference, verified

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_log = logging.getLogger("daedap")
PROMPT, TOKENIZER = "prompt.json", "tokenizer.json"
_CPU = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class PlainTokenizer:
    """What `Prompt` and `DecodingRules` use of transformers' tokenizers, by the package tokenizers alone."""

    backend: Tokenizer
    unk_token_id: int | None
    pad_token_id: int | None
    all_special_ids: tuple[int, ...]

    def __call__(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> dict[str, list[int]]:
        """As transformers': `input_ids`."""
        self.backend.encode_special_tokens = split_special_tokens
        return {"input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: Sequence[int], *, clean_up_tokenization_spaces: bool) -> str:
        """As transformers'."""
        assert not clean_up_tokenization_spaces, "no Korean tokenizer needs that"
        return str(self.backend.decode(list(ids), skip_special_tokens=False))

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id → token."""
        return dict(self.backend.get_added_tokens_decoder())


def save_language_model(engine: Engine, folder: Path) -> None:
    """Write an engine and what it takes to ask it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.bin", "config.json", "vocabulary.json", REFERENCE):
        shutil.copyfile(engine.folder / name, folder / name)
    if (engine.folder / REPLIES).is_dir():
        shutil.copytree(engine.folder / REPLIES, folder / REPLIES)
    tokenizer = engine.prompt.tokenizer
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    settings = {
        "template": asdict(engine.prompt.template),
        "max_length": engine.prompt.max_length,
        "max_new_tokens": engine.max_new_tokens,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
        "special": tokenizer.all_special_ids,
    }
    write_json(folder / PROMPT, settings)
    write_json(folder / VERIFIED, {_processor(): engine.compute_type})


def open_language_model(folder: Path) -> Engine:
    """Read it. On another processor than before, the compute type that agrees with the reference is found first.

    Raises RunError when a file is missing or damaged.
    """
    try:
        settings = json.loads((folder / PROMPT).read_text(encoding="utf-8"))
        backend = Tokenizer.from_file(str(folder / TOKENIZER))
        backend.no_truncation()
        backend.no_padding()
        tokenizer = PlainTokenizer(backend, settings["unk"], settings["pad"], tuple(settings["special"]))
        template = Template(**settings["template"])
    except Exception as error:  # tokenizers raises Exception itself
        raise unreadable_weights(folder, error) from error
    prompt = Prompt(cast("PreTrainedTokenizerFast", tokenizer), template, settings["max_length"])
    compute_types = verified(folder)
    if known := compute_types.get(_processor()):
        return Engine.open(folder, prompt, settings["max_new_tokens"], known)
    engine = _verified(folder, prompt, settings["max_new_tokens"])
    with suppress(StorageError):  # on a read-only disk, verify again each time
        write_json(folder / VERIFIED, {**compute_types, _processor(): engine.compute_type})
    return engine


def _verified(folder: Path, prompt: Prompt, max_new_tokens: int) -> Engine:
    """With the fastest compute type that agrees with PyTorch; the most exact one where none does."""
    reference = Reference.open(folder)
    for compute_type in COMPUTE_TYPES:
        engine = Engine.open(folder, prompt, max_new_tokens, compute_type)
        if reference.compare(engine).close:
            return engine
    _log.warning(translate("The language model gives other answers on this processor than where it was exported."))
    return engine


def _processor() -> str:
    """Equal for processors on which an int8 model gives the same results; told without PyTorch."""
    lines = _CPU.read_text(encoding="utf-8", errors="replace").splitlines() if _CPU.exists() else []
    flags = {line for line in lines if line.startswith(("flags", "Features", "vendor_id"))}
    features = hashlib.sha256("\n".join(sorted(flags)).encode()).hexdigest()[:16] if flags else platform.processor()
    return f"{platform.machine()} {features}"
