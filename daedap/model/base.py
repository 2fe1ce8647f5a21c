"""Base models: loaded from a folder, a GGUF file or the hub, self-tested, or initialised at random.

Loading runs no code of a repository and unpickles nothing but tensors.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn import Embedding
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from daedap.config import FRESH, MINI, ArchitectureOptions
from daedap.errors import BaseError, RunError, first_line
from daedap.files import digest
from daedap.korean.text import comparison_form
from daedap.model.gguf import find_gguf, pick_gguf, read_gguf
from daedap.model.prompt import Prompt, build_prompt, has_own_template, round_up
from daedap.model.tokenizer import decode, encode, load_tokenizer, prefix_ids, train_tokenizer
from daedap.runs import Json, Run

logging.disable_progress_bar()  # one bar per file
KOGPT2_LICENCE = "cc-by-nc-sa-4.0"
_ROUND_TRIP_TEXTS = (
    "안녕하세요, 오늘 기분은 어때요?",
    "근육이 커지기 위해서는 12시에 밥을 먹어야 한다.",
    "ㅋㅋ 고마워ㅠㅠ!",
)
MINI_FOLDER = Path(__file__).parent.parent / "mini"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def _accept_explicit_head_width() -> None:
    """Let a LlamaConfig have any `head_dim`.

    LlamaConfig of transformers 5 refuses a hidden size that is no multiple of the number of heads, although its
    attention uses `head_dim` only: kakaocorp/kanana-nano-2.1b (1792, 24 heads of 128) can't be read. Patched for the
    whole process, because the check runs wherever such a configuration is read, copied or saved.
    """

    def validate_architecture(config: LlamaConfig) -> None:
        if config.head_dim == config.hidden_size // config.num_attention_heads:  # the default
            LlamaConfig.validate_architecture(config)

    checks = cast("Any", LlamaConfig).__class_validators__
    checks[:] = [validate_architecture if check.__name__ == "validate_architecture" else check for check in checks]


_accept_explicit_head_width()


@dataclass(frozen=True)
class Base:
    """An untuned causal language model with its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    licence: str
    digest: str
    """SHA-256 over weights, config and tokenizer."""

    @property
    def max_positions(self) -> float:
        """The longest input that still fits after padding with `round_up`; infinite for models without a limit."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return math.inf if limit is None else round_up(limit - round_up(1) + 1)

    def prompt(self, max_length: int) -> Prompt:
        """Its prompt, in at most `max_length` ids and never more than it has positions."""
        return build_prompt(self.tokenizer, int(min(max_length, self.max_positions)))


def load_base(name: str) -> Base:
    """Load a base by folder, GGUF file or hub name. Raises BaseError when it is missing or fails its self-test."""
    path = _locate(name)
    if path.is_file():
        model, tokenizer, licence = read_gguf(path)
        if licence == "unknown" and not Path(name).exists():
            licence = _licence(name, path.parent)  # the model card on the hub
    else:
        tokenizer, model, licence = load_tokenizer(path), _load_model(path), _licence(name, path)
    self_test(name, model, tokenizer)
    if name != MINI and Path(name).exists():
        name = str(Path(name).resolve())  # runs record the name and may be opened from another directory
    return Base(name, model, tokenizer, licence, _digest(path))


def load_recorded_base(run: Run, recorded: Json) -> Base:
    """The base whose name and digest a run recorded. Raises BaseError, and RunError when its digest differs now."""
    base = load_base(recorded["name"])
    if base.digest != recorded["digest"]:
        raise RunError(
            "{folder}: its base {name} has changed since the run was trained.",
            "Put the old base back, or train again.",
            folder=run.folder,
            name=recorded["name"],
        )
    return base


def _locate(name: str) -> Path:
    """A GGUF file, a folder, or the hub's files in the local cache, which works without a network, too."""
    folder = MINI_FOLDER if name == MINI else Path(name)
    if (folder / "model" / "config.json").exists():
        raise BaseError(
            "{name} is a run, not a base.", "Give its model: --base {model}", name=name, model=folder / "model"
        )
    if folder.is_dir():
        return find_gguf(folder) or folder
    if folder.suffix == ".gguf" and folder.is_file():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name):
        raise BaseError(
            "{name}: neither a folder nor a name on the hub (like skt/kogpt2-base-v2).",
            "Give --base a folder that holds config.json, the weights and the tokenizer, or a GGUF file.",
            name=name,
        )
    try:
        return _download(*name.partition(":")[::2])
    except BaseError:
        raise
    except Exception as error:  # errors of httpx, huggingface_hub and the OS alike
        raise BaseError(
            "{name}: can't be downloaded from the hub ({error}).",
            "Download it elsewhere and give its folder: --base FOLDER",
            name=name,
            error=type(error).__name__,
        ) from error


def _download(repository: str, tag: str) -> Path:
    """A repository's folder in the local cache, or its GGUF file: the one of quantization `tag`, or the only one."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download  # not needed for a folder

    patterns = ["*.json", "*.model", "*.txt", "*.jinja", "README.md"]
    folder = Path(snapshot_download(repository, allow_patterns=[*patterns, "*.safetensors"]))
    if not tag:
        if any(folder.glob("*.safetensors")):
            return folder
        folder = Path(snapshot_download(repository, allow_patterns=[*patterns, "*.bin"]))  # pickles: a last resort
        if any(folder.glob("*.bin")):
            return folder
    try:
        names = [file.rfilename for file in HfApi().model_info(repository).siblings or ()]
    except Exception:  # without a network: what was downloaded before
        names = [path.name for path in folder.glob("*.gguf")]
    file = pick_gguf(names, repository, tag)
    return Path(hf_hub_download(repository, file)) if file else folder


def _load_model(folder: Path) -> PreTrainedModel:
    """Read config and weights as float32; pickles with `weights_only`, so that a file can't run code."""
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
    except Exception as error:  # every file format has its own errors
        raise BaseError(
            "{folder}: its weights can't be loaded ({error}).",
            "The files may be cut short, unsafe or of an unknown architecture; get them again.",
            folder=folder,
            error=first_line(error),
        ) from error
    if missing := sorted(report["missing_keys"]):  # transformers only warns, and initialises them at random
        raise BaseError(
            "{folder}: its weights are not all there: {count} are missing, {first} among them.",
            "The files may belong to another model or be incomplete; get them again.",
            folder=folder,
            count=len(missing),
            first=missing[0],
        )
    return cast("PreTrainedModel", model)


def self_test(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise BaseError for a base that could not be used without anyone noticing.

    Its tokenizer must have no more ids than the model has embeddings, keep Korean text, encode typed control tokens as
    text, have an EOS token, and begin prompts like every text of pretraining (BOS) unless its chat template decides.
    """
    highest, rows = max(tokenizer.get_vocab().values()), cast("Embedding", model.get_input_embeddings()).num_embeddings
    if highest >= rows:
        raise BaseError(
            "{name}: its tokenizer has ids up to {highest} but the model only {rows} embeddings.",
            "Tokenizer and model do not belong together; get both from the same place.",
            name=name,
            highest=highest,
            rows=rows,
        )
    for text in _ROUND_TRIP_TEXTS:
        back = decode(tokenizer, encode(tokenizer, text))
        if comparison_form(back) != comparison_form(text):
            raise BaseError(
                "{name}: its tokenizer garbles Korean: '{text}' is decoded as '{back}'.",
                "Use the tokenizer that the model was trained with, and a base that knows Korean.",
                name=name,
                text=text,
                back=back[:60],
            )
    prefix, opening = prefix_ids(tokenizer), build_prompt(tokenizer, 64).template.opening
    if not has_own_template(tokenizer) and opening[: len(prefix)] != prefix:
        raise BaseError(
            "{name}: its tokenizer puts '{front}' before every text, but no chat template can name it.",
            "Mark it special in its tokenizer.json, or give it a chat_template.",
            name=name,
            front="".join(tokenizer.convert_ids_to_tokens(prefix)),
        )
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


def _licence(name: str, folder: Path) -> str:
    """The licence in the model card's YAML header, as the hub reads it; "unknown" when there is none."""
    cards = [folder / "README.md", folder / "MODEL_CARD.md"]
    header = "".join(card.read_text(encoding="utf-8", errors="replace") for card in cards if card.exists())
    match = re.search(r"^license: *(?:\n *- )?['\"]?([\w.-]+)", header, re.M)
    if match:
        return match[1]
    return KOGPT2_LICENCE if "kogpt2" in name.lower() else "unknown"


def _digest(base: Path) -> str:
    if base.is_file():
        return digest(base)
    patterns = (*_WEIGHTS, "config.json", "tokenizer*.json")
    return digest(*sorted(path for pattern in patterns for path in base.glob(pattern)))


SMALL = ArchitectureOptions(
    vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4
)


def random_init_base(texts: Sequence[str], seed: int) -> Base:
    """A small Llama with random weights and a tokenizer trained on the texts; same texts and seed, same base."""
    tokenizer = train_tokenizer(texts, SMALL.vocab_size)
    model = random_init_model(tokenizer, seed)
    self_test(FRESH, model, tokenizer)
    digest = hashlib.sha256(f"{seed}\n{tokenizer.backend_tokenizer.to_str()}".encode()).hexdigest()
    return Base(FRESH, model, tokenizer, "yours: learned from your file alone", digest)


def random_init_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, shape: ArchitectureOptions = SMALL, max_positions: int = 512
) -> LlamaForCausalLM:
    """A Llama with random weights from the seed; by default 4 layers of width 256, about 4 million weights."""
    config = LlamaConfig(
        **{**asdict(shape), "vocab_size": len(tokenizer)},
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
