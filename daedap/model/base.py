"""Base models: found by hub name or folder, loaded safely, and self-tested before anything is built on them.

A small Llama-style model made from nothing, with a tokenizer fitted on the training rows.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn import Embedding
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from daedap.config import FRESH, MINI, ArchitectureOptions
from daedap.errors import BaseError, RunError
from daedap.files import digest
from daedap.korean.text import comparison_form
from daedap.model.gguf import find_gguf, read_gguf
from daedap.model.prompt import Prompt, round_up, has_own_template, build_prompt
from daedap.model.tokenizer import prefix_ids, decode, encode, load_tokenizer, train_tokenizer
from daedap.runs import Json, Run

logging.disable_progress_bar()  # a bar for each of a dozen files says nothing
KOGPT2_LICENCE = "cc-by-nc-sa-4.0"
_TEXTS = ("안녕하세요, 오늘 기분은 어때요?", "근육이 커지기 위해서는 12시에 밥을 먹어야 한다.", "ㅋㅋ 고마워ㅠㅠ!")
BUILT_IN = Path(__file__).parent.parent / "mini"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def _accept_explicit_head_width() -> None:
    """Let Llama's heads be of any width that the configuration names.

    LlamaConfig of transformers 5 refuses a width that the heads do not divide, although its attention looks at
    `head_dim` alone: kakaocorp/kanana-nano-2.1b (1792, 24 heads of 128) can't even be read. It is said here, once for
    the whole process, because the check is made wherever such a configuration is read, copied or saved.
    """
    checks = cast("Any", LlamaConfig).__class_validators__

    def validate_architecture(config: LlamaConfig) -> None:
        if config.head_dim == config.hidden_size // config.num_attention_heads:  # not named, or needlessly
            LlamaConfig.validate_architecture(config)

    names = [check.__name__ for check in checks]
    if validate_architecture.__name__ in names:
        checks[names.index(validate_architecture.__name__)] = validate_architecture


_accept_explicit_head_width()


@dataclass(frozen=True)
class Base:
    """A causal language model with its tokenizer, as published."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    licence: str
    digest: str
    """SHA-256 over weights, shape and tokenizer."""

    @property
    def places(self) -> float:
        """The most ids it can read at a time, as `filled` leaves them."""
        places = getattr(self.model.config, "max_position_embeddings", None)
        return math.inf if places is None else round_up(places - round_up(1) + 1)

    def prompt(self, max_length: int) -> Prompt:
        """How conversations are rendered for it, in at most `max_length` ids and never more than it has places for."""
        return build_prompt(self.tokenizer, int(min(max_length, self.places)))


def load_base(name: str) -> Base:
    """Load a base by folder or hub name. Raises BaseError when it can't be had or fails its self-test."""
    place = _place(name)
    if place.is_file():
        model, tokenizer, licence = read_gguf(place)
    else:
        tokenizer, model, licence = load_tokenizer(place), _load_model(place), _licence(name, place)
    self_test(name, model, tokenizer)
    if name != MINI and Path(name).exists():
        name = str(Path(name).resolve())  # a run must find its base again from anywhere
    return Base(name, model, tokenizer, licence, _digest(place))


def load_recorded_base(run: Run, recorded: Json) -> Base:
    """The base whose name and digest a run recorded. Raises BaseError, and RunError when it is no longer the same."""
    base = load_base(recorded["name"])
    if base.digest != recorded["digest"]:
        raise RunError(
            "{folder}: its base {name} has changed since the run was trained.",
            "Put the old base back, or train again.",
            folder=run.folder,
            name=recorded["name"],
        )
    return base


def _place(name: str) -> Path:
    """A GGUF file, the base's folder, or the hub's files in the local cache, which serves without a network, too."""
    folder = BUILT_IN if name == MINI else Path(name)
    if (folder / "model" / "config.json").exists():
        raise BaseError(
            "{name} is a run, not a base.", "Give its model: --base {model}", name=name, model=folder / "model"
        )
    if folder.is_dir():
        return find_gguf(folder) or folder
    if folder.suffix == ".gguf" and folder.is_file():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise BaseError(
            "{name}: neither a folder nor a name on the hub (like skt/kogpt2-base-v2).",
            "Give --base a folder that holds config.json, the weights and the tokenizer, or a GGUF file.",
            name=name,
        )
    try:
        return _download(name)
    except Exception as error:  # httpx, huggingface_hub and OS errors alike mean that it can't be had
        raise BaseError(
            "{name}: can't be had from the hub ({error}).",
            "Download it elsewhere and give its folder: --base FOLDER",
            name=name,
            error=type(error).__name__,
        ) from error


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # a folder does without

    wanted = ["*.json", "*.model", "*.txt", "*.jinja", "README.md"]
    folder = Path(snapshot_download(name, allow_patterns=[*wanted, "*.safetensors"]))
    if not any(folder.glob("*.safetensors")):  # pickles only where there is nothing better
        folder = Path(snapshot_download(name, allow_patterns=[*wanted, "*.bin"]))
    return folder


def _load_model(folder: Path) -> PreTrainedModel:
    """Read config and weights; pickles with `weights_only`, so that a file can hold tensors and nothing that runs."""
    if not (folder / "config.json").exists():
        raise BaseError(
            "{folder}: no config.json, so it is not a model's folder.",
            "Give the folder that holds config.json, the weights and the tokenizer.",
            folder=folder,
        )
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise BaseError(
            "{folder}: no weights (model.safetensors or pytorch_model.bin).",
            "Copy the model's weights into the folder.",
            folder=folder,
        )
    try:
        model, report = cast("Any", AutoModelForCausalLM).from_pretrained(
            folder, dtype=torch.float32, weights_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # each format has its own errors; none of them is a reason to go on
        raise BaseError(
            "{folder}: its weights can't be loaded ({error}).",
            "The files may be cut short, unsafe or of an unknown architecture; get them again.",
            folder=folder,
            error=str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__,
        ) from error
    if missing := sorted(report["missing_keys"]):  # transformers only warns, and fills them at random
        raise BaseError(
            "{folder}: its weights are not all there: {count} are missing, {first} among them.",
            "The files may belong to another model or be incomplete; get them again.",
            folder=folder,
            count=len(missing),
            first=missing[0],
        )
    return cast("PreTrainedModel", model)


def self_test(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a base that would garble Korean, look up rows it does not have, never end, or obey typed control tokens.

    Raises BaseError.
    """
    _test_vocabulary(name, model, tokenizer)
    for text in _TEXTS:
        back = decode(tokenizer, encode(tokenizer, text))
        if comparison_form(back) != comparison_form(text):
            raise BaseError(
                "{name}: its tokenizer does not keep Korean: '{text}' comes back as '{back}'.",
                "Use the tokenizer that the model was trained with, and a base that knows Korean.",
                name=name,
                text=text,
                back=back[:60],
            )
    _test_opening(name, tokenizer)
    specials = set(tokenizer.all_special_ids) | {build_prompt(tokenizer, 64).template.eos_id}
    for special in specials - {tokenizer.unk_token_id}:
        typed = tokenizer.convert_ids_to_tokens(special)
        if special in encode(tokenizer, f"{typed} {typed}"):
            raise BaseError(
                "{name}: its tokenizer turns a typed '{typed}' into the control token.",
                "Save it again as a fast tokenizer whose control tokens are marked special.",
                name=name,
                typed=typed,
            )


def _test_opening(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """A prompt begins as every text did that the base has learned from, unless its own chat template says otherwise."""
    front, opening = prefix_ids(tokenizer), build_prompt(tokenizer, 64).template.opening
    if not has_own_template(tokenizer) and opening[: len(front)] != front:
        raise BaseError(
            "{name}: its tokenizer puts '{front}' before every text, but no chat template can name it.",
            "Mark it special in its tokenizer.json, or give it a chat_template.",
            name=name,
            front="".join(tokenizer.convert_ids_to_tokens(front)),
        )


def _test_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    highest, rows = max(tokenizer.get_vocab().values()), cast("Embedding", model.get_input_embeddings()).num_embeddings
    if highest >= rows:
        raise BaseError(
            "{name}: its tokenizer has ids up to {highest} but the model only {rows} embeddings.",
            "Tokenizer and model do not belong together; get both from the same place.",
            name=name,
            highest=highest,
            rows=rows,
        )


def _licence(name: str, folder: Path) -> str:
    """The licence in the model card's header, as the hub reads it; "unknown" when the card names none."""
    cards = [folder / "README.md", folder / "MODEL_CARD.md"]
    header = "".join(card.read_text(encoding="utf-8", errors="replace") for card in cards if card.exists())
    found = re.search(r"^license: *(?:\n *- )?['\"]?([\w.-]+)", header, re.M)
    if found:
        return found[1]
    return KOGPT2_LICENCE if "kogpt2" in name.lower() else "unknown"


def _digest(place: Path) -> str:
    if place.is_file():
        return digest(place)
    patterns = (*_WEIGHTS, "config.json", "tokenizer*.json")
    return digest(*sorted(path for pattern in patterns for path in place.glob(pattern)))


SMALL = ArchitectureOptions(
    vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4
)


def random_init_base(texts: Sequence[str], seed: int) -> Base:
    """An untrained model for these texts; the same texts and seed give the same model."""
    tokenizer = train_tokenizer(texts, SMALL.vocab_size)
    model = random_init_model(tokenizer, seed)
    self_test(FRESH, model, tokenizer)
    digest = hashlib.sha256(f"{seed}\n{tokenizer.backend_tokenizer.to_str()}".encode()).hexdigest()
    return Base(FRESH, model, tokenizer, "yours: learned from your file alone", digest)


def random_init_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, shape: ArchitectureOptions = SMALL, places: int = 512
) -> LlamaForCausalLM:
    """Random weights, decided by the seed. Unless told otherwise 4 layers of width 256: about 4 million."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        max_position_embeddings=places,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
