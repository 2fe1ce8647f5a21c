"""A small Llama-style model made from nothing, with a tokenizer fitted on the training rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from daedap.lm.base import Base, self_test
from daedap.lm.tokenizer import train_tokenizer

NAME = "fresh"
_VOCABULARY = 4096


def fresh_base(texts: Sequence[str], seed: int) -> Base:
    """An untrained model for these texts; the same texts and seed give the same model."""
    tokenizer = train_tokenizer(texts, _VOCABULARY)
    model = fresh_model(tokenizer, seed)
    self_test(NAME, model, tokenizer)
    digest = hashlib.sha256(f"{seed}\n{tokenizer.backend_tokenizer.to_str()}".encode()).hexdigest()
    return Base(NAME, model, tokenizer, "yours: learned from your file alone", digest)


def fresh_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Random weights: 4 layers of width 256, about 4 million with a vocabulary of 4,096."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
