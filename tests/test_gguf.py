"""Bases in GGUF files: small models written in the layout of llama.cpp's converter, and read back."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import gguf
import numpy as np
import published
import pytest
import torch
import toys
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from daedap.errors import BaseError
from daedap.model.base import load_base
from daedap.model.gguf import GgufReader, pick_gguf
from daedap.model.prompt import build_prompt
from daedap.model.tokenizer import encode, save_tokenizer

FloatArray = NDArray[np.float32]
SPLITS = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2", "lfm2": "lfm2", "gemma3": "default"}
ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 8192}
SMALL: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 16384,
    "initializer_range": 0.15,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "model_type": "llama", "rope_theta": 500_000.0, "rope_scaling": ROPE},
    "qwen2": {**SMALL, "model_type": "qwen2", "hidden_size": 128, "rope_theta": 10_000.0},
    "qwen3": {**SMALL, "model_type": "qwen3", "rope_theta": 1_000_000.0, "tie_word_embeddings": False},
    "gemma3": {
        **SMALL,
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 32,
        "sliding_window": 12,
        "_sliding_window_pattern": 6,
    },
    "lfm2": {
        **{name: value for name, value in SMALL.items() if name != "head_dim"},
        "model_type": "lfm2",
        "num_hidden_layers": 3,
        "full_attn_idxs": [2],
        "block_auto_adjust_ff_dim": False,
        "rope_theta": 1_000_000.0,
    },
}


@dataclass(frozen=True)
class Toy:
    """A model, and the file that was written from it."""

    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def toy(kind: str, folder: Path, stored: Kind = Kind.F32, metadata: Mapping[str, object] | None = None) -> Toy:
    """Write a random model; `metadata` adds or overrides entries."""
    folder.mkdir(parents=True, exist_ok=True)
    adds = kind in ("llama", "gemma3", "lfm2")
    traits = {"gemma3": published.TOKENIZERS["google/gemma-3-270m"]}.get(
        kind, published.TOKENIZERS["meta-llama/Llama-3.2-1B"]
    )
    split = published.QWEN2_SPLIT if kind.startswith("qwen") else published.LLAMA3_SPLIT
    tokenizer = published.tokenizer_of(replace(traits, split=split))
    config = {**CONFIGS[kind], "vocab_size": len(tokenizer) + 3}
    model = AutoModelForCausalLM.from_pretrained(published.save_random(config, folder / "source"), dtype=torch.float32)
    entries = {"general.license": "apache-2.0", "tokenizer.ggml.add_bos_token": adds, **(metadata or {})}
    path = folder / f"{kind}.gguf"
    write(path, kind, model, tokenizer, stored, entries)
    return Toy(path, model.eval(), tokenizer)


def write(
    path: Path,
    kind: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    stored: Kind,
    entries: dict[str, object],
) -> None:
    writer = gguf.GGUFWriter(path, str(entries.pop("general.architecture", kind)))
    for key, value in {**shape_of(kind, model), **tokens_of(kind, tokenizer), **entries}.items():
        add(writer, key, value)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    for name, weight in state.items():
        data = to_llama_cpp(kind, name, weight.numpy(), model)
        ours = stored if data.ndim == 2 and "conv" not in name else Kind.F32
        packed = gguf.quantize(data, ours)
        weight.copy_(torch.from_numpy(to_transformers(kind, name, gguf.dequantize(packed, ours), weight, model)))
        writer.add_tensor(str(names.get_name(name, try_suffixes=(".weight", ".bias"))), packed, raw_dtype=ours)
    if kind == "llama":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))
        unscaled = 500_000.0 ** -(torch.arange(16) / 16)
        writer.add_tensor("rope_freqs.weight", (unscaled / scaled).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def to_llama_cpp(kind: str, name: str, data: FloatArray, model: PreTrainedModel) -> FloatArray:
    """llama.cpp's converter permutes rows of Llama's rotary weights, adds 1 to Gemma's norms, squeezes convolutions."""
    if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = model.config.num_attention_heads if "q_proj" in name else model.config.num_key_value_heads
        data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
    if kind == "gemma3" and name.endswith("norm.weight"):
        return data + 1
    return data.squeeze(1) if name.endswith("conv.conv.weight") else data


def to_transformers(kind: str, name: str, data: FloatArray, weight: torch.Tensor, model: PreTrainedModel) -> FloatArray:
    """The inverse, for rounded weights."""
    if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = model.config.num_attention_heads if "q_proj" in name else model.config.num_key_value_heads
        data = data.reshape(heads, -1, 2, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
    if kind == "gemma3" and name.endswith("norm.weight"):
        return data - 1
    return data.reshape(weight.shape)


def shape_of(kind: str, model: PreTrainedModel) -> dict[str, object]:
    config = model.config
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None) or config.norm_eps,
        "rope.freq_base": 1_000_000.0 if kind == "gemma3" else config.rope_parameters["rope_theta"],
    }
    if kind == "gemma3":
        shape["attention.sliding_window"] = config.sliding_window
    if kind == "lfm2":
        attends = [kind == "full_attention" for kind in config.layer_types]
        shape |= {
            "attention.head_count_kv": [2 * attention for attention in attends],
            "shortconv.l_cache": config.conv_L_cache,
        }
    elif kind != "qwen2":
        shape |= {"attention.key_length": head_width, "attention.value_length": head_width}
    if kind == "llama":
        shape["rope.dimension_count"] = head_width
    return {f"{kind}.{name}": value for name, value in shape.items()}


def tokens_of(kind: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["content"]: 3 if token["special"] else 4 for token in state["added_tokens"]}
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    kinds = [added.get(token, 6 if token.startswith("<0x") else 1) for token in tokens]
    spare = ["<mask>", "[PAD1]", "[PAD2]"]  # the first as Gemma has it
    entries: dict[str, object] = {
        "model": "llama" if kind == "gemma3" else "gpt2",
        "pre": SPLITS[kind],
        "tokens": [*tokens, *spare],
        "token_type": [*kinds, 5, 5, 5],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if kind == "gemma3":
        entries |= {"scores": [0.0] * (len(tokens) + 3), "padding_token_id": 0, "unknown_token_id": 3}
    else:
        entries["merges"] = [" ".join(merge) for merge in state["model"]["merges"]]
    return {f"tokenizer.ggml.{name}": value for name, value in entries.items()}


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    ways: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if value is not None:
        ways[type(value)](key, value)


@pytest.mark.parametrize("stored", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_written_file_is_read_back(kind: str, stored: Kind, tmp_path: Path) -> None:
    """Logits, tokens and prefix equal the source's; its weights are rounded like those in the file."""
    made = toy(kind, tmp_path, stored)
    base = load_base(str(made.path))
    assert (base.name, base.licence, base.model.dtype) == (str(made.path), "apache-2.0", torch.float32)
    assert type(base.model) is type(made.model)
    for text in toys.TEXTS[:40]:
        assert encode(base.tokenizer, text) == encode(made.tokenizer, text)
    prompt = base.prompt(128)
    prefix = [made.tokenizer.bos_token_id] if kind in ("llama", "gemma3", "lfm2") else []
    assert prompt.template.opening[: len(prefix)] == prefix
    ids = torch.tensor([prompt.example(toys.PAIRS[0]).ids])
    with torch.no_grad():
        torch.testing.assert_close(base.model(input_ids=ids).logits, made.model(input_ids=ids).logits)


def test_a_gguf_base_is_saved_like_any_model(tmp_path: Path) -> None:
    made = toy("gemma3", tmp_path / "gguf", Kind.Q8_0)
    base = load_base(str(made.path))
    base.model.save_pretrained(tmp_path / "saved")
    save_tokenizer(base.prompt(128).tokenizer, tmp_path / "saved")
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    again = load_base(str(tmp_path / "saved"))
    for name, weight in base.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight)
    assert again.prompt(128).example(toys.PAIRS[3]) == base.prompt(128).example(toys.PAIRS[3])
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved("안녕")["input_ids"][0] == made.tokenizer.bos_token_id


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    made = toy("qwen3", tmp_path)
    assert load_base(str(tmp_path)).digest == load_base(str(made.path)).digest


def test_several_files_in_a_folder_are_refused(tmp_path: Path) -> None:
    made = toy("qwen3", tmp_path)
    (tmp_path / "other.gguf").write_bytes(made.path.read_bytes())
    with pytest.raises(BaseError, match=r"2 GGUF files.*--base .*other\.gguf"):
        load_base(str(tmp_path))


def test_without_a_flag_the_vocabulary_decides_on_bos(tmp_path: Path) -> None:
    for kind, adds in (("gemma3", True), ("qwen3", False)):
        made = toy(kind, tmp_path / kind, metadata={"tokenizer.ggml.add_bos_token": None})
        prefix = [made.tokenizer.bos_token_id] * adds
        assert load_base(str(made.path)).prompt(64).template.opening[: len(prefix)] == prefix


def test_the_files_chat_template_is_used(tmp_path: Path) -> None:
    made = toy("gemma3", tmp_path, metadata={"tokenizer.chat_template": toys.GEMMA3_TEMPLATE})
    base = load_base(str(made.path))
    made.tokenizer.chat_template = toys.GEMMA3_TEMPLATE
    assert base.prompt(96).template == build_prompt(made.tokenizer, 96).template
    assert base.prompt(96).template.opening.count(made.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.1, 0.5, 0.999])
def test_a_file_cut_short_is_refused(kept: float, tmp_path: Path) -> None:
    path = toy("qwen3", tmp_path).path
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refused(path, "can't be read|cut short")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGML" + bytes(100))
    refused(tmp_path / "a.gguf", "not a GGUF file")
    (tmp_path / "a.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0) + bytes(32))
    refused(tmp_path / "a.gguf", "can't be read.*general.architecture")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture mamba .*safetensors instead.*gemma3"),
        ({"tokenizer.ggml.pre": "strange"}, "tokenizer strange .*safetensors instead"),
        ({"qwen3.rope.scaling.type": "yarn"}, "rope scaling yarn .*safetensors instead"),
    ],
)
def test_unsupported_features_are_refused(metadata: dict[str, object], message: str, tmp_path: Path) -> None:
    refused(toy("qwen3", tmp_path, metadata=metadata).path, message)


def test_another_rope_scaling_than_llama_3s_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS["llama"], "rope_scaling", {**ROPE, "original_max_position_embeddings": 1024})
    refused(toy("llama", tmp_path).path, "rope scaling rope_freqs.*safetensors instead")


def test_a_file_without_a_block_is_refused(tmp_path: Path) -> None:
    refused(toy("qwen3", tmp_path, metadata={"qwen3.block_count": 3}).path, r"not all there.*layers\.2")
    refused(toy("qwen3", tmp_path, metadata={"qwen3.block_count": 1}).path, r"not all there.*blk\.1")


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    refused(toy("qwen3", tmp_path, metadata={"qwen3.feed_forward_length": 64}).path, "can't be read.*has the shape")


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy("qwen3", tmp_path).path
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(path, r'takes the package gguf.*pip install "daedap\[gguf\]"')


def test_the_reader_agrees_with_the_package(tmp_path: Path) -> None:
    path = toy("lfm2", tmp_path, Kind.Q4_0).path
    ours, theirs = GgufReader.open(path), gguf.GGUFReader(path)
    assert ours.metadata == {
        key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")
    }
    for tensor in theirs.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.read(tensor.name), expected)


@pytest.fixture(autouse=True)
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Dequantized models are kept there."""
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "daedap" / "gguf"


def test_dequantized_weights_are_kept_by_content(tmp_path: Path, assets: Path) -> None:
    path = toy("gemma3", tmp_path, Kind.Q4_0).path
    first = load_base(str(path))
    (kept,) = assets.glob("[!.]*")
    again = load_base(str(path.rename(tmp_path / "renamed.gguf")))
    assert [*assets.glob("[!.]*")] == [kept]
    assert (again.digest, again.model.name_or_path) == (first.digest, first.model.name_or_path)
    assert again.model.config.to_dict() == first.model.config.to_dict() | {"transformers_version": ANY}
    weights = again.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in first.model.state_dict().items())
    (kept / "model.safetensors").unlink()  # `again` maps it into memory
    (kept / "model.safetensors").write_bytes(b"damaged")
    mended = load_base(str(tmp_path / "renamed.gguf")).model.state_dict()
    assert all(torch.equal(weight, mended[name]) for name, weight in weights.items())
    assert (kept / "model.safetensors").stat().st_size > 1000


def test_few_dequantized_models_are_kept(tmp_path: Path, assets: Path) -> None:
    for kind in CONFIGS:
        load_base(str(toy(kind, tmp_path / kind).path))
    assert len(CONFIGS) > len([*assets.glob("[!.]*")]) == 3


def test_without_a_cache_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = toy("qwen3", tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "file" / "assets"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(load_base(str(made.path)).model.state_dict()[name], made.model.state_dict()[name])


def test_a_quantization_is_picked_by_its_name() -> None:
    names = [
        "README.md",
        "a-Q4_K_M.gguf",
        "a-Q4_K_S.gguf",
        "a.f16.gguf",
        "mmproj-a-f16.gguf",
        "Q8_0/a-00001-of-00002.gguf",
    ]
    assert pick_gguf(names, "a/b", "q4_k_m") == "a-Q4_K_M.gguf"
    assert pick_gguf(names, "a/b", "F16") == "a.f16.gguf"
    assert pick_gguf(["README.md"], "a/b") is None
    for tag in ("", "Q5_K_M", "Q8_0"):
        with pytest.raises(BaseError, match="3 GGUF files"):
            pick_gguf(names, "a/b", tag)


def refused(path: Path, message: str) -> None:
    with pytest.raises(BaseError, match=f"{path.name}.*({message})"):
        load_base(str(path))
