"""A small Llama-style model made from nothing, with a tokenizer fitted on the training rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from daedap.lm.base import Base, self_test
from daedap.lm.recipe import FRESH, Shape
from daedap.lm.tokenizer import train_tokenizer

SMALL = Shape(vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4)


def fresh_base(texts: Sequence[str], seed: int) -> Base:
    """An untrained model for these texts; the same texts and seed give the same model."""
    tokenizer = train_tokenizer(texts, SMALL.vocab_size)
    model = fresh_model(tokenizer, seed)
    self_test(FRESH, model, tokenizer)
    digest = hashlib.sha256(f"{seed}\n{tokenizer.backend_tokenizer.to_str()}".encode()).hexdigest()
    return Base(FRESH, model, tokenizer, "yours: learned from your file alone", digest)


def fresh_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, shape: Shape = SMALL, places: int = 512
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
