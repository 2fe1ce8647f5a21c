"""Models of a well-known shape with random weights: as fast as the real one, and there without a download."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from daedap.files import digest
from daedap.lm.base import BUILT_IN, Base, self_test
from daedap.lm.prompt import prompt_for
from daedap.lm.tokenizer import load_tokenizer, save_tokenizer

KOGPT2_SHAPE = "kogpt2-shape"
"""Name of a base with the shape of skt/kogpt2-base-v2 and random weights."""
_SEED = 42


def kogpt2_shape(tokenizer_folder: Path | None = None) -> Base:
    """skt/kogpt2-base-v2's shape, 125 million random weights, always the same; it is fast or slow as the real one is.

    With the tokenizer of a folder (a `tokenizer.json` is enough), else daedap-mini's. Raises BaseError when the
    tokenizer can't be read, garbles Korean, or has more than 51,200 ids.
    """
    folder = tokenizer_folder or BUILT_IN
    tokenizer = load_tokenizer(folder)
    prompt_for(tokenizer, 64)  # gives it the template of its roles
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = GPT2LMHeadModel(_kogpt2_config(tokenizer))
    self_test(KOGPT2_SHAPE, model, tokenizer)
    return Base(KOGPT2_SHAPE, model, tokenizer, "random weights", digest(*sorted(folder.glob("tokenizer*.json"))))


def _kogpt2_config(tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    return GPT2Config(
        vocab_size=51_200,
        n_positions=1024,
        n_embd=768,
        n_layer=12,
        n_head=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save_base(base: Base, folder: Path) -> Path:
    """Write a base as a folder that `load_base` reads. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    base.model.save_pretrained(folder)
    save_tokenizer(base.tokenizer, folder)
    return folder
