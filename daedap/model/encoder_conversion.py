"""Sentence encoders of the hub, or of a folder, in int8 for sentence_encoder.py; converted once, kept in a cache.

What sentence-transformers writes beside a model is read: modules.json (its parts), 1_Pooling/config.json (mean or CLS),
sentence_bert_config.json (longest text, lower case), config_sentence_transformers.json (what is put before a text).
A BERT's folder without these files is pooled by the mean, as sentence-transformers does.

    CACHE/encoders/DIGEST/    the layout of sentence_encoder.py, by the SHA-256 of the files it was made from
"""

from __future__ import annotations

import json
import logging
import re
from csv import reader
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # before ctranslate2: see sentence_encoder.py
from ctranslate2.converters.transformers import _SUPPORTED_ACTIVATIONS, BertLoader, RobertaLoader
from tokenizers import Tokenizer, normalizers
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from daedap.errors import EncoderError, first_line
from daedap.files import digest, new_folder
from daedap.i18n import tell, translate
from daedap.model.convert import quantize
from daedap.model.sentence_encoder import CENTRE, EncoderSettings, Pooling, SentenceEncoder
from daedap.types import Float32Array

_log = logging.getLogger("daedap")
_LOADERS = {"bert": BertLoader, "roberta": RobertaLoader, "xlm-roberta": RobertaLoader}
"""Converters by `model_type`. CTranslate2's for XLM-R expects a classifier around the same modules."""
_SETTINGS = ("modules.json", "*Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
_TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt", "*.model")
_POOLING: dict[str, Pooling] = {"mean": "mean", "mean_tokens": "mean", "mean_sqrt_len_tokens": "mean"}
_POOLING |= {"cls": "cls", "cls_token": "cls"}
"""Dividing by the root of the length instead of the length makes no difference once a vector has length 1."""
_PREFIX_IN_CARD = re.compile(r"""["'`](query: )["'`]""")
"""E5's files do not name their prefix, but their model card does."""
_LEAST_COSINE = {True: 0.98, False: 0.999}
"""To transformers' own vectors, of the worst text: in int8, and in float32."""
_LONGEST = 512
_CENTRE_ROWS = 8
"""Every eighth built-in pair goes into the mean that is taken from all vectors."""
_STARTER = Path(__file__).parent.parent / "data" / "starter.csv"
_TEXTS = (
    "배송은 언제 와요?",
    "환불하려면 어떻게 해야 하나요?",
    "ㅋㅋ 오늘 기분이 너무 좋아ㅠㅠ!",
    "주문을 취소하면 쓴 쿠폰은 10분 안에 다시 들어와요. 다만 사용 기한이 지난 쿠폰은 돌려 드리지 못해요.",
    "비밀번호를 잊어버렸어요. 로그인 화면의 '비밀번호 찾기'에서 새로 정하실 수 있나요?",
    "The store opens at 11 and closes at 8.",
    "네",
    "",
)
"""What a conversion is checked on."""


@dataclass(frozen=True)
class _Source:
    """An encoder as it is published."""

    model: Path
    """Folder of config.json and the weights."""
    settings: EncoderSettings
    lower: bool
    """Texts are put in lower case first."""


def open_encoder(name: str, cache: Path, converted: str = "") -> SentenceEncoder:
    """The encoder of a folder or with a name on the hub, from the cache if it was converted before.

    `converted`: the digest of the conversion that is needed, as vectors of others can't be compared with its own.
    Raises EncoderError when it can't be had, is not supported, differs after conversion, or is another one now.
    """
    if converted and (cache / "encoders" / converted).is_dir():
        return SentenceEncoder.open(cache / "encoders" / converted)
    root = _locate(name)
    key = _digest(root)
    if converted not in ("", key):
        raise EncoderError(
            "The sentence encoder {name} has changed since it was used.",
            "Put the old one back, or train again.",
            name=name,
        )
    folder = cache / "encoders" / key
    if not folder.is_dir():
        tell([translate("converting the sentence encoder {name}", name=name)])
        _convert(_read_source(str(root.resolve()) if Path(name).is_dir() else name, root, key), folder)
    return SentenceEncoder.open(folder)


# Where it is


def _locate(name: str) -> Path:
    """A folder, or the hub's files in the local cache, which works without a network, too."""
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise EncoderError(
            "--encoder {name}: neither a folder nor a name on the hub (like intfloat/multilingual-e5-small).",
            "Give a folder that holds config.json, the weights and the tokenizer.",
            name=name,
        )
    from huggingface_hub import snapshot_download  # not needed for a folder

    wanted = ["*.json", "*.model", "vocab.txt", "merges.txt", "README.md"]
    others = ["onnx/*", "openvino/*", "*/onnx/*"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*wanted, "*.safetensors"], ignore_patterns=others))
        if any(folder.rglob("*.safetensors")):
            return folder
        wanted.append("pytorch_model*.bin")  # pickles only as a last resort
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=others))
    except Exception as error:  # errors of httpx, huggingface_hub and the OS alike
        raise EncoderError(
            "{name}: can't be downloaded from the hub ({error}).",
            "Download it elsewhere and give its folder: --encoder FOLDER",
            name=name,
            error=type(error).__name__,
        ) from error


def _digest(root: Path) -> str:
    """SHA-256 of the files that decide a text's vector."""
    weights = sorted(root.rglob("*.safetensors")) or sorted(root.rglob("pytorch_model*.bin"))
    others = {path for pattern in ("config.json", *_SETTINGS, *_TOKENIZER) for path in root.rglob(pattern)}
    return digest(*weights, *sorted(others))


# What it is


def _read_source(name: str, folder: Path, key: str) -> _Source:
    modules = _read_json(name, folder / "modules.json", [])
    parts = {str(part["type"]).rpartition(".")[2]: folder / str(part["path"]) for part in modules}
    if other := sorted(parts.keys() - {"Transformer", "Pooling", "Normalize"}):
        raise _unsupported(name, translate("it has a part {part}", part=other[0]))
    model = parts.get("Transformer", folder)
    config = _read_json(name, model / "config.json", None)
    _check_architecture(name, config)
    pooling = _read_pooling(name, parts["Pooling"] / "config.json") if "Pooling" in parts else "mean"
    texts = _read_json(name, model / "sentence_bert_config.json", {})
    positions = int(config["max_position_embeddings"])
    if config["model_type"] != "bert":
        positions -= int(config.get("pad_token_id", 1)) + 1  # RoBERTa counts positions from there
    longest = min(int(texts.get("max_seq_length") or _LONGEST), positions)
    settings = EncoderSettings(_read_prefix(name, folder), longest, pooling, name, key)
    return _Source(model, settings, bool(texts.get("do_lower_case")))


def _check_architecture(name: str, config: Any) -> None:
    if config is None:
        raise EncoderError(
            "{name}: no config.json, so it is no encoder's folder.",
            "Give a folder that holds config.json, the weights and the tokenizer.",
            name=name,
        )
    kind = config.get("model_type")
    if kind not in _LOADERS:
        raise _unsupported(name, translate("its architecture is {kind}", kind=kind))
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise _unsupported(name, translate("its positions are relative"))
    if config.get("hidden_act", "gelu") not in _SUPPORTED_ACTIVATIONS:
        raise _unsupported(name, translate("its activation is {kind}", kind=config["hidden_act"]))


def _read_pooling(name: str, file: Path) -> Pooling:
    config = _read_json(name, file, {})
    flags = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    modes = [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else flags
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise _unsupported(name, translate("its pooling is {kind}", kind=" + ".join(modes) or "-"))
    if not config.get("include_prompt", True):
        raise _unsupported(name, translate("its prefix is left out of the mean"))
    return _POOLING[modes[0]]


def _read_prefix(name: str, folder: Path) -> str:
    """What is put before a question, and before answers alike: they have to be comparable."""
    config = _read_json(name, folder / "config_sentence_transformers.json", {})
    prompts = config.get("prompts") or {}
    card = folder / "README.md"
    if not prompts and card.is_file():
        match = _PREFIX_IN_CARD.search(card.read_text(encoding="utf-8", errors="replace"))
        return match[1] if match else ""
    return str(prompts.get("query") or prompts.get(config.get("default_prompt_name")) or "")


def _read_json(name: str, file: Path, default: Any) -> Any:
    if not file.is_file():
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EncoderError("{name}: {file} is damaged.", "Get it again.", name=name, file=file.name) from error


# Conversion


def _convert(source: _Source, folder: Path) -> None:
    """Write the folder: int8 where its vectors agree with transformers', else float32."""
    model, tokenizer = _load_model(source), _load_tokenizer(source)
    reference = _reference(source, model, tokenizer)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as new:
        for int8 in (True, False):
            write_encoder(model, tokenizer, source.settings, new, int8=int8)
            encoder = SentenceEncoder.open(new)
            worst = float((encoder.encode(_TEXTS) * reference).sum(axis=1).min())
            if worst >= _LEAST_COSINE[int8]:
                break
        else:
            reason = translate("its vectors differ after conversion: cosine {worst:.3f}", worst=worst)
            raise _unsupported(source.settings.name, reason)
        if not int8:
            _log.info(translate("int8 is too coarse for these weights: the encoder keeps them in float32."))
        with _STARTER.open(encoding="utf-8-sig", newline="") as file:
            rows = list(reader(file))[1::_CENTRE_ROWS]
        texts = [text for row in rows for text in row[:2]]
        np.save(new / CENTRE, encoder.encode(texts).mean(axis=0), allow_pickle=False)


def _load_model(source: _Source) -> PreTrainedModel:
    try:
        model, report = AutoModel.from_pretrained(
            source.model, dtype=torch.float32, weights_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # every file format has its own errors
        raise EncoderError(
            "{name}: its weights can't be loaded ({error}).",
            "The files may be cut short, unsafe or of an unknown architecture; get them again.",
            name=source.settings.name,
            error=first_line(error),
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:  # transformers only warns, and initialises them at random
        raise EncoderError(
            "{name}: its weights are not all there: {count} are missing, {first} among them.",
            "The files may belong to another model or be incomplete; get them again.",
            name=source.settings.name,
            count=len(missing),
            first=missing[0],
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def _load_tokenizer(source: _Source) -> Tokenizer:
    """As the package tokenizers has it, in lower case where the encoder wants that."""
    try:
        loaded = AutoTokenizer.from_pretrained(source.model, trust_remote_code=False)
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # it has many ways to fail, and none of its own
        raise EncoderError(
            "{name}: its tokenizer can't be loaded ({error}).",
            "It needs tokenizer.json, or what it can be made from: vocab.txt, or sentencepiece.bpe.model.",
            name=source.settings.name,
            error=type(error).__name__,
        ) from error
    if source.lower:
        own = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@torch.inference_mode()
def _reference(source: _Source, model: PreTrainedModel, tokenizer: Tokenizer) -> Float32Array:
    """(texts, width): transformers' own vectors, of length 1."""
    tokenizer.enable_truncation(source.settings.max_length)
    vectors = []
    for text in _TEXTS:
        ids = tokenizer.encode(source.settings.prefix + text).ids or [0]
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        vectors.append((states[0] if source.settings.pooling == "cls" else states.mean(dim=0)).numpy())
    tokenizer.no_truncation()
    rows = np.stack(vectors).astype(np.float32)
    unit: Float32Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


@torch.no_grad()
def write_encoder(
    model: PreTrainedModel, tokenizer: Tokenizer, settings: EncoderSettings, folder: Path, *, int8: bool = True
) -> None:
    """Write a BERT, RoBERTa or XLM-R in the layout of sentence_encoder.py."""
    bert: Any = model
    config, is_bert = bert.config, bert.config.model_type == "bert"
    config.position_embedding_type = "absolute"  # what transformers 5 no longer says
    bert.pooler = nn.ModuleDict({"dense": nn.Linear(1, 1)}) if is_bert else None  # BERT's converter insists on one
    spec = _LOADERS[config.model_type]().get_model_spec(bert)
    if is_bert:
        del spec.pooler_dense, spec.pooler_activation
    names = [tokenizer.id_to_token(row) for row in range(config.vocab_size)]
    spec.register_vocabulary([f"<row {row}>" if name is None else name for row, name in enumerate(names)])
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.config.unk_token = spec._vocabulary[0]  # ids are given, never tokens
    spec.validate()
    spec.optimize()
    if int8:
        spec._visit(quantize)
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings.save(folder)


def _unsupported(name: str, reason: str) -> EncoderError:
    return EncoderError(
        "The sentence encoder {name} is not supported: {reason}.",
        "BERT, RoBERTa and XLM-R with mean or CLS pooling are.",
        name=name,
        reason=reason,
    )
