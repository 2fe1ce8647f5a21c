"""Tokens as the API counts them: by the tokenizer of the sentence encoder, which every run has."""

from __future__ import annotations

from functools import cache
from typing import Any

from daedap.model.sentence_encoder import built_in_encoder


def count_tokens(text: str) -> int:
    """Tokens of a text."""
    return len(_tokenizer().encode(text, add_special_tokens=False).ids)


def first_tokens(text: str, count: int) -> str:
    """The beginning of a text: so many tokens, or all of it."""
    offsets = _tokenizer().encode(text, add_special_tokens=False).offsets
    return text if len(offsets) <= count else text[: offsets[count - 1][1]]


@cache
def _tokenizer() -> Any:
    tokenizer = built_in_encoder().tokenizer
    whole = type(tokenizer).from_str(tokenizer.to_str())
    whole.no_truncation()
    return whole
