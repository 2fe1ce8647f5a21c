"""Small random copies of published bases, with their proportions, tokenizer traits and chat templates.

published_bases.json holds the configurations. source: "published" (config.json as quoted in public), "published in
part", or "recalled" (checked against the published number of parameters where there is one).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import toys
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from daedap.files import write_json
from daedap.model.tokenizer import save_tokenizer

CONFIGS: dict[str, dict[str, Any]] = {
    name: entry["config"]
    for name, entry in json.loads((Path(__file__).parent / "published_bases.json").read_text(encoding="utf-8")).items()
}
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n<|eot_id|>' }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA3_PLAIN_TEMPLATE = LLAMA3_TEMPLATE.replace(
    "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n<|eot_id|>' }}", "{{ '\\n\\n<|eot_id|>' }}"
)
EXAONE_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '[|' + message.role + '|]\\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ message.content + '[|endofturn|]\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]\\n<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
CHATML_TURNS = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}CLOSED{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_TEMPLATE = CHATML_TURNS.replace("CLOSED", "")
CLOVA_TEMPLATE = (
    "{{ '<|im_start|>tool_list\\n<|im_end|>\\n<|im_start|>system\\n- AI.<|im_end|>\\n' }}"
    + CHATML_TURNS.replace("CLOSED", "{% if message.role == 'assistant' %}<|endofturn|>{% endif %}")
)
SMOLLM2_TEMPLATE = "{{ '<|im_start|>system\\nYou are SmolLM.<|im_end|>\\n' }}" + CHATML_TEMPLATE

LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class TokenizerTraits:
    """Special tokens, pre-tokenizer and chat template of a published tokenizer."""

    specials: tuple[str, ...]
    eos: str
    bos: str | None = None
    pad: str | None = None
    adds_bos: bool = False
    template: str | None = None
    split: str = LLAMA3_SPLIT
    kind: str = "bytes"


_LLAMA3_BASE = TokenizerTraits(LLAMA3, "<|end_of_text|>", "<|begin_of_text|>", adds_bos=True)
_LLAMA3_CHAT = TokenizerTraits(LLAMA3, "<|eot_id|>", "<|begin_of_text|>", adds_bos=True, template=LLAMA3_TEMPLATE)
_QWEN3 = TokenizerTraits(CHATML, "<|im_end|>", pad="<|endoftext|>", template=toys.QWEN3_TEMPLATE, split=QWEN2_SPLIT)
_AJOU = TokenizerTraits(("<pad>", "<s>", "</s>", "<unk>"), "</s>", "<s>", "<pad>", split=GPT2_SPLIT)
_GEMMA = TokenizerTraits((), "<eos>", "<bos>", "<pad>", adds_bos=True, kind="gemma")
_SMOL = TokenizerTraits(CHATML, "<|endoftext|>", "<|endoftext|>", split=GPT2_SPLIT)
TOKENIZERS = {
    "skt/kogpt2-base-v2": TokenizerTraits((), "</s>", "</s>", "<pad>", kind="kogpt2"),
    "skt/ko-gpt-trinity-1.2B-v0.5": TokenizerTraits((), "</s>", "</s>", "<pad>", kind="kogpt2"),
    "heegyu/ajoublue-gpt2-base": _AJOU,
    "heegyu/ajoublue-gpt2-medium": _AJOU,
    "EleutherAI/polyglot-ko-1.3b": TokenizerTraits(
        ("<|unused0|>", "<|unused1|>", "<|endoftext|>"), "<|endoftext|>", pad="<|endoftext|>", split=GPT2_SPLIT
    ),
    "Qwen/Qwen3-0.6B": _QWEN3,
    "Qwen/Qwen3-0.6B-Base": replace(_QWEN3, eos="<|endoftext|>"),
    "google/gemma-3-270m": _GEMMA,
    "google/gemma-3-270m-it": replace(_GEMMA, template=toys.GEMMA3_TEMPLATE),
    "kakaocorp/kanana-nano-2.1b-base": _LLAMA3_BASE,
    "kakaocorp/kanana-nano-2.1b-instruct": TokenizerTraits(
        LLAMA3, "<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>", adds_bos=True, template=LLAMA3_PLAIN_TEMPLATE
    ),
    "LGAI-EXAONE/EXAONE-4.0-1.2B": TokenizerTraits(
        ("[PAD]", "[BOS]", "[|user|]", "[|assistant|]", "[|system|]", "[|endofturn|]"),
        "[|endofturn|]",
        "[BOS]",
        "[PAD]",
        template=EXAONE_TEMPLATE,
    ),
    "naver-hyperclovax/HyperCLOVAX-SEED-Text-Instruct-0.5B": TokenizerTraits(
        (*CHATML, "<|endofturn|>", "<|stop|>"),
        "<|endoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
        template=CLOVA_TEMPLATE,
    ),
    "LiquidAI/LFM2-350M": TokenizerTraits(
        ("<|pad|>", "<|startoftext|>", *CHATML),
        "<|im_end|>",
        "<|startoftext|>",
        "<|pad|>",
        adds_bos=True,
        template="{{ bos_token }}" + CHATML_TEMPLATE,
    ),
    "K-intelligence/Midm-2.0-Mini-Instruct": TokenizerTraits(
        LLAMA3, "<|end_of_text|>", "<|begin_of_text|>", "<|end_of_text|>", template=LLAMA3_TEMPLATE
    ),
    "meta-llama/Llama-3.2-1B": _LLAMA3_BASE,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA3_CHAT,
    "HuggingFaceTB/SmolLM2-135M": _SMOL,
    "HuggingFaceTB/SmolLM2-135M-Instruct": TokenizerTraits(
        CHATML, "<|im_end|>", "<|im_start|>", "<|im_end|>", template=SMOLLM2_TEMPLATE, split=GPT2_SPLIT
    ),
    "HuggingFaceTB/SmolLM3-3B": TokenizerTraits(CHATML, "<|im_end|>", pad="<|im_end|>", template=CHATML_TEMPLATE),
}
MAX_POSITIONS, WINDOW, SCALED_FROM = 256, 12, 16
"""Of every copy: maximum length, sliding window, and original length of rope scaling; the tests' texts are longer than
the latter two."""
_SPARE_ROWS = 5
"""Embedding rows without a token."""


def copy_of(name: str, folder: Path) -> Path:
    """Write a small copy of a base in the hub's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(TOKENIZERS[name])
    if TOKENIZERS[name].kind == "kogpt2":  # published without a tokenizer_config.json
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    else:
        save_tokenizer(tokenizer, folder)
    return save_random(small(CONFIGS[name], tokenizer), folder)


def save_random(config: dict[str, Any], folder: Path) -> Path:
    """Write a model with random weights, in the dtype of the configuration, which is written unchanged."""
    write_json(folder / "config.json", config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.1)  # so that norms matter
    model.to(getattr(torch, config.get("torch_dtype", "float32"))).save_pretrained(folder)
    write_json(folder / "config.json", config)  # as published, not as this version of transformers writes it
    return folder


def tokenizer_of(traits: TokenizerTraits) -> PreTrainedTokenizerFast:
    """A tokenizer with these traits, trained on the toys' texts."""
    if traits.kind == "kogpt2":
        backend = toys.kogpt2_tokenizer(toys.CORPUS)
    elif traits.kind == "gemma":
        backend = toys.gemma3_tokenizer()
    else:
        backend = _byte_level(traits.split)
        backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in traits.specials])
        backend.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    if traits.adds_bos:
        assert traits.bos
        backend.post_processor = TemplateProcessing(
            single=[traits.bos, "$A"],
            pair=[traits.bos, "$A", "$B"],
            special_tokens=[(traits.bos, backend.token_to_id(traits.bos))],
        )
    names = {"bos_token": traits.bos, "eos_token": traits.eos, "pad_token": traits.pad}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=traits.template, **{role: name for role, name in names.items() if name}
    )


def _byte_level(split: str) -> Tokenizer:
    return Tokenizer.from_str(_trained_bytes(split))


@lru_cache
def _trained_bytes(split: str) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(toys.CORPUS, trainer)
    return backend.to_str()


def small(published: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The configuration scaled down: the same query heads per key-value head, and so on."""
    config = {**published, "vocab_size": len(tokenizer) + _SPARE_ROWS, "initializer_range": 0.15}
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    for name, number in ids.items():
        if f"{name}_token_id" in config:
            config[f"{name}_token_id"] = number
    if isinstance(published.get("eos_token_id"), list):
        config["eos_token_id"] = [tokenizer.eos_token_id, *range(3)]
    shape = _gpt2_shape(published) if published["model_type"] == "gpt2" else _shape(published)
    return config | shape | _lengths(published)


def _gpt2_shape(published: dict[str, Any]) -> dict[str, Any]:
    inner = published["n_inner"]
    return {
        "n_layer": 3,
        "n_head": 4,
        "n_embd": 32,
        "n_inner": inner and inner * 32 // published["n_embd"],
        "n_positions": MAX_POSITIONS,
        "n_ctx": MAX_POSITIONS,
    }


def _shape(published: dict[str, Any]) -> dict[str, Any]:
    """4 to 8 heads of 16, key-value heads and hidden size in proportion."""
    heads, shared = published["num_attention_heads"], published.get("num_key_value_heads")
    shared = shared or heads
    kept = 1 if shared == 1 else 2
    small_shape = {"num_attention_heads": heads // shared * kept, "num_key_value_heads": kept, "head_dim": 16}
    wide = published.get("head_dim", published["hidden_size"] // heads) * heads
    small_shape["hidden_size"] = published["hidden_size"] * small_shape["num_attention_heads"] * 16 // wide
    inner = published.get("intermediate_size") or published["block_ff_dim"]
    small_shape["intermediate_size"] = inner * small_shape["hidden_size"] // published["hidden_size"] // 4 * 4
    small_shape |= _layers(published)
    small_shape |= {
        name: small_shape["hidden_size"] for name in ("block_dim", "conv_dim", "conv_dim_out") if name in published
    }
    small_shape |= {"num_heads": small_shape["num_attention_heads"]} if "num_heads" in published else {}
    small_shape |= {"query_pre_attn_scalar": 16} if "query_pre_attn_scalar" in published else {}
    if "block_ff_dim" in published:  # LFM2 uses two thirds of it, rounded up to a multiple
        small_shape |= {"block_ff_dim": small_shape.pop("intermediate_size"), "block_multiple_of": 8}
    return {name: number for name, number in small_shape.items() if name in published or name == "hidden_size"}


def _layers(published: dict[str, Any]) -> dict[str, Any]:
    """Enough layers for the whole pattern of layer types."""
    kinds = published.get("layer_types") or []
    count = 6 if len(set(kinds)) > 1 or "full_attn_idxs" in published else 4 if "no_rope_layers" in published else 3
    small_shape: dict[str, Any] = {"num_hidden_layers": count}
    for name in ("layer_types", "no_rope_layers"):
        small_shape |= {name: published[name][:count]} if name in published else {}
    if "full_attn_idxs" in published:
        small_shape["full_attn_idxs"] = [index for index in published["full_attn_idxs"] if index < count]
    return small_shape


def _lengths(published: dict[str, Any]) -> dict[str, Any]:
    small_shape: dict[str, Any] = (
        {"max_position_embeddings": MAX_POSITIONS} if "max_position_embeddings" in published else {}
    )
    if published.get("sliding_window"):
        small_shape["sliding_window"] = WINDOW
    if published.get("rope_scaling"):
        small_shape["rope_scaling"] = {**published["rope_scaling"], "original_max_position_embeddings": SCALED_FROM}
    return small_shape
