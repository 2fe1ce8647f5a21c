"""Bases in GGUF files (llama.cpp's format), dequantized to float32 so that they can be trained and saved as usual.

Reads versions 2 and 3 of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf package's reader creates
several arrays per token of the vocabulary: half a minute for Gemma's 262,144 tokens, where this one takes a second.

transformers' `gguf_file=` uses that reader three times, ignores head width, attention scale and rope factors of the
file, and does not add BOS. This module uses its building blocks and handles these.

Dequantizing takes many times as long as loading, and a training loads its base several times: the result is kept in
huggingface_hub's cache of assets, by the file's content.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from filelock import FileLock
from huggingface_hub.constants import HF_ASSETS_CACHE
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from daedap.errors import BaseError, StorageError
from daedap.files import digest, new_folder
from daedap.i18n import translate

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of metadata values → format characters of `struct`; 8 is a string and 9 an array."""
_TEXT, _ARRAY = 8, 9


class Tensor(NamedTuple):
    """A tensor's entry. shape: in PyTorch's order; kind: GGMLQuantizationType; offset: from the start of the data."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufReader:
    """A file's metadata and tensor entries. A damaged file raises ValueError or struct.error."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    data_start: int
    """Position of the tensor data in the file."""

    @classmethod
    def open(cls, path: Path) -> GgufReader:
        """Read everything but the tensor data."""
        head = _HeaderReader(np.memmap(path, mode="r", dtype=np.uint8))
        magic, version, tensors, entries = head.unpack("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("not a GGUF file of version 2 or 3")
        metadata = {head.text(): head.value() for _ in range(entries)}
        named = {head.text(): head.tensor() for _ in range(tensors)}
        step = metadata.get("general.alignment", 32)
        return cls(path, metadata, named, -(-head.position // step) * step)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata["general.architecture"])

    @property
    def complete(self) -> bool:
        """Whether the file is long enough for all its tensors."""
        ends = (tensor.offset + self._size(tensor) for tensor in self.tensors.values())
        return self.data_start + max(ends, default=0) <= self.path.stat().st_size

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor, dequantized."""
        from gguf import GGMLQuantizationType, dequantize

        tensor = self.tensors[name]
        start, kind = self.data_start + tensor.offset, GGMLQuantizationType(tensor.kind)
        data = np.memmap(self.path, mode="r", dtype=np.uint8)[start : start + self._size(tensor)]
        rows = dequantize(data.reshape(*tensor.shape[:-1], -1), kind)
        return np.array(rows, np.float32).reshape(tensor.shape)

    def _size(self, tensor: Tensor) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        numbers, octets = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        return math.prod(tensor.shape) // numbers * octets


class _HeaderReader:
    """Reads values sequentially."""

    def __init__(self, octets: NDArray[np.uint8]) -> None:
        self.octets, self.position = octets.data, 0

    def unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self.octets, self.position)
        self.position += struct.calcsize(layout)
        return values

    def text(self) -> str:
        (length,) = self.unpack("<Q")
        self.position += length
        if self.position > len(self.octets):
            raise ValueError("it ends within a text")
        return str(self.octets[self.position - length : self.position], "utf-8")

    def value(self) -> Any:
        (kind,) = self.unpack("<I")
        if kind != _ARRAY:
            return next(self._values(kind, 1))
        kind, count = self.unpack("<IQ")
        return list(self._values(kind, count))

    def tensor(self) -> Tensor:
        (dimensions,) = self.unpack("<I")
        shape = self.unpack(f"<{dimensions}Q")
        return Tensor(tuple(reversed(shape)), *self.unpack("<IQ"))  # ggml names the fastest dimension first

    def _values(self, kind: int, count: int) -> Iterator[Any]:
        if kind == _TEXT:
            return (self.text() for _ in range(count))
        if kind not in _NUMBERS:
            raise ValueError(f"it holds values of an unknown kind ({kind})")
        return iter(self.unpack(f"<{count}{_NUMBERS[kind]}"))


ARCHITECTURES = ("gemma3", "lfm2", "llama", "qwen2", "qwen3")
"""llama.cpp's names of tested architectures; "llama" includes kanana, HyperCLOVA X SEED, Midm and SmolLM2."""
_PRE_TOKENIZERS = ("gpt-2", "llama-bpe", "llama3", "lfm2", "midm-2.0", "qwen2")
"""Pre-tokenizers of byte-level BPE that transformers implements in the same way."""
_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Llama 3's rope scaling: a file contains only the factors computed from these values."""
_LAYERS_27B = 62
"""Of Gemma 3 27B, which llama.cpp recognises by it: it alone scales attention by hidden size / heads."""
_ROPE = "rope_freqs.weight"
_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def find_gguf(folder: Path) -> Path | None:
    """The folder's GGUF file, when it has no safetensors. Raises BaseError when there are several."""
    files = sorted(folder.glob("*.gguf"))
    if not files or any(folder.glob("*.safetensors")):
        return None
    if len(files) > 1:
        raise BaseError(
            "{folder}: {count} GGUF files, {first} among them.",
            "Name the one you want: --base {first}",
            folder=folder,
            count=len(files),
            first=files[0],
        )
    return files[0]


def pick_gguf(names: Sequence[str], repository: str, tag: str = "") -> str | None:
    """The GGUF file among a repository's file names: the only one, or the one of this quantization (`Q8_0`).

    None where there is no GGUF file. Raises BaseError when the choice is left to the user.
    """
    files = sorted(name for name in names if name.endswith(".gguf") and "/" not in name and "mmproj" not in name)
    fitting = [name for name in files if re.search(rf"(?i)[-._]{re.escape(tag)}\.gguf$", name)] if tag else files
    if len(fitting) == 1 or not files:
        return fitting[0] if fitting else None
    tags = [match[1] for name in files if (match := re.search(r"[-.]((?:I?Q\d|B?F\d)\w*)\.gguf$", name))]
    raise BaseError(
        "{repository}: {count} GGUF files, {files}.",
        "Name the quantization you want: --base {repository}:{tag}",
        repository=repository,
        count=len(files),
        files=", ".join(files),
        tag=tags[0] if tags else "Q8_0",
    )


def read_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str]:
    """Model, tokenizer and licence ("unknown" when it names none) of a file. Raises BaseError."""
    if find_spec("gguf") is None:
        raise BaseError(
            "{path}: reading GGUF files takes the package gguf.", 'Install it: pip install "daedap[gguf]"', path=path
        )
    try:
        file = GgufReader.open(path)
        _check(file)
        return _cached_model(file), _tokenizer(file), str(file.metadata.get("general.license", "unknown"))
    except BaseError:
        raise
    except Exception as error:  # struct.error, KeyError, UnicodeDecodeError, ValueError …
        raise BaseError(
            "{path}: the GGUF file can't be read ({error}).",
            "It may be cut short or of another kind; get it again, or the model's safetensors.",
            path=path,
            error=f"{type(error).__name__}: {error}".splitlines()[0][:200],
        ) from error


def _check(file: GgufReader) -> None:
    """Raise BaseError for truncated files and for what would be read wrong."""
    if not file.complete:
        raise BaseError("{path}: the GGUF file is cut short.", "Get it again.", path=file.path)
    if file.architecture not in ARCHITECTURES:
        raise _unknown(file, translate("architecture"), file.architecture)
    split = file.metadata.get("tokenizer.ggml.pre")
    if file.metadata["tokenizer.ggml.model"] == "gpt2" and split not in _PRE_TOKENIZERS:
        raise _unknown(file, translate("tokenizer"), split)
    scaling = file.metadata.get(f"{file.architecture}.rope.scaling.type", "none")
    if scaling != "none":
        raise _unknown(file, translate("rope scaling"), scaling)


def _unknown(file: GgufReader, part: str, value: object) -> BaseError:
    return BaseError(
        "{path}: {part} {value} of GGUF files is not known here.",
        "Give the folder of its safetensors instead; known architectures: {known}.",
        path=file.path,
        part=part,
        value=value,
        known=", ".join(ARCHITECTURES),
    )


_CONVERSION = 1
"""To be raised when the same file is to be read differently: older cached models are then read no more."""
_CACHED_MODELS = 3
"""Dequantized models that are kept; each takes four bytes a weight."""


def _cached_model(file: GgufReader) -> PreTrainedModel:
    """The model from the cache, else dequantized and written there; a cache that can't be written is done without."""
    assets = Path(os.environ.get("HF_ASSETS_CACHE", HF_ASSETS_CACHE)) / "daedap" / "gguf"
    folder = assets / f"{digest(file.path)[:32]}-{_CONVERSION}"
    if folder.is_dir():
        with suppress(Exception):  # of safetensors, torch or transformers: a damaged cache is written anew
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            os.utime(folder)  # most recently used
            model.name_or_path = model.config._name_or_path = ""  # runs record it, and the cache may be emptied
            return model
    model = dequantized_model(file)
    with suppress(StorageError, OSError):
        assets.mkdir(parents=True, exist_ok=True)
        with FileLock(assets / ".lock"):
            with new_folder(folder) as new:
                model.save_pretrained(new)
            for old in sorted(assets.glob("[!.]*"), key=lambda path: path.stat().st_mtime)[:-_CACHED_MODELS]:
                shutil.rmtree(old, ignore_errors=True)
    return model


def dequantized_model(file: GgufReader) -> PreTrainedModel:
    """The model of a file, in float32. Raises BaseError when weights are missing, ValueError for other damage."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    model: PreTrainedModel = AutoModelForCausalLM.from_config(_config(file), dtype=torch.float32)
    processor = cast("Any", TENSOR_PROCESSORS.get(file.architecture, TensorProcessor))(config=model.config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    weights, read = model.state_dict(), file.tensors.keys() & names.keys()
    for name in read:  # one at a time: memory may hold the model only once
        values = torch.from_numpy(processor.process(weights=file.read(name), name=name).weights)
        if values.shape != weights[names[name]].shape:
            raise ValueError(f"{name} has the shape {[*values.shape]}")
        weights[names[name]].copy_(values)
    absent = weights.keys() - {names[name] for name in read} - set(model.all_tied_weights_keys)
    if unmatched := sorted(absent or file.tensors.keys() - names.keys() - {_ROPE}):
        raise BaseError(
            "{folder}: its weights are not all there: {count} are missing, {first} among them.",
            "The files may belong to another model or be incomplete; get them again.",
            folder=file.path,
            count=len(unmatched),
            first=unmatched[0],
        )
    model.tie_weights()
    model.eval()
    return model


def _config(file: GgufReader) -> PretrainedConfig:
    """The configuration from the metadata."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS, get_gguf_config

    kind, metadata = file.architecture, file.metadata
    if kind in GGUF_CONFIG_ARCHS:
        settings: dict[str, Any] = get_gguf_config(metadata, tuple(file.tensors))
    else:
        keys = cast("dict[str, str | None]", GGUF_CONFIG_MAPPING[kind])
        names = {ours: metadata.get(f"{kind}.{theirs}") for theirs, ours in keys.items() if ours}
        settings = {name: value for name, value in names.items() if value is not None}
        settings["model_type"] = "gemma3_text" if kind == "gemma3" else kind
        settings["tie_word_embeddings"] = "output.weight" not in file.tensors
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            settings[f"{name}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if (width := metadata.get(f"{kind}.attention.key_length")) and kind != "qwen2":  # whose heads divide the width
        settings["head_dim"] = width
    settings["vocab_size"] = file.tensors["token_embd.weight"].shape[0]  # some have more rows than tokens
    if kind == "gemma3" and settings["num_hidden_layers"] != _LAYERS_27B:
        settings["query_pre_attn_scalar"] = settings["head_dim"]
    if _ROPE in file.tensors:
        settings["rope_parameters"] = _llama3_rope(file, settings.pop("rope_theta"))
    return AutoConfig.for_model(**settings)


def _llama3_rope(file: GgufReader, theta: float) -> dict[str, Any]:
    """Llama 3's rope scaling. Raises BaseError where it does not yield the file's factors."""
    factors = file.read(_ROPE)
    scaling = {**_LLAMA3, "factor": float(factors.max()), "rope_theta": theta}
    config = LlamaConfig(head_dim=2 * len(factors), max_position_embeddings=1 << 17, rope_parameters=scaling)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    unscaled = theta ** -(np.arange(len(factors)) / len(factors))
    if not np.allclose(unscaled / scaled.numpy(), factors, rtol=1e-3):
        raise _unknown(file, translate("rope scaling"), _ROPE)
    return scaling


def _tokenizer(file: GgufReader) -> PreTrainedTokenizerFast:
    """The file's tokenizer, which adds BOS where `tokenizer.ggml.add_bos_token` is set."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    metadata = {key.removeprefix("tokenizer."): value for key, value in file.metadata.items()}
    fields = {ours: metadata[key] for key, ours in GGUF_TOKENIZER_MAPPING["tokenizer"].items() if key in metadata}
    backend = convert_gguf_tokenizer(file.architecture, fields)[0]
    if backend.get_vocab_size() > len(fields["tokens"]):  # transformers adds some, such as `<|endoftext|>`
        state = json.loads(backend.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < len(fields["tokens"])]
        backend = Tokenizer.from_str(json.dumps(state))
    numbers = {name: metadata.get(f"ggml.{key}_token_id") for name, key in _TOKENS.items()}
    names = {name: fields["tokens"][number] for name, number in numbers.items() if number is not None}
    # Without the flag, llama.cpp adds it where the vocabulary is SentencePiece's.
    adds = metadata.get("ggml.add_bos_token", metadata["ggml.model"] == "llama")
    prefix = [names["bos_token"]] if adds and "bos_token" in names else []
    backend.post_processor = TemplateProcessing(
        single=[*prefix, "$A"],
        pair=[*prefix, "$A", "$B"],
        special_tokens=[(token, backend.token_to_id(token)) for token in prefix],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=metadata.get("chat_template"), **names)
