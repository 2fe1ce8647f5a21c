"""How long a pair may be to be learned: by the tokenizer of the base, for the built-in one without loading torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daedap.config import FRESH, MINI
from daedap.types import Pair

BUILT_IN = Path(__file__).parent.parent / "mini"
"""Folder of daedap-mini."""
_CONTROL_TOKENS = 3
"""<|user|> question <|assistant|> answer </s>: what daedap-mini's chat template adds."""


@dataclass(frozen=True)
class LengthLimit:
    """The longest pair that a base learns; longer ones are only looked up."""

    base: str
    tokens: int
    """Question, answer and control tokens; for a fresh base, characters."""
    fits: Callable[[Pair], bool]


def length_limit(base: str, max_length: int) -> LengthLimit:
    """The limit of a base and of `--max-length`, whichever is lower.

    Raises BaseError when a base other than the built-in ones can't be loaded.
    """
    if base == FRESH:
        return LengthLimit(base, max_length, lambda pair: len(pair.question) + len(pair.answer) + 8 <= max_length)
    if base == MINI:
        return _built_in_limit(max_length)
    from daedap.model.base import load_base  # torch takes seconds to import

    prompt = load_base(base).prompt(max_length)
    return LengthLimit(base, prompt.max_length, prompt.fits)


def _built_in_limit(max_length: int) -> LengthLimit:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(BUILT_IN / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # a typed </s> is text
    positions: int = json.loads((BUILT_IN / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    limit = min(max_length, positions)

    def fits(pair: Pair) -> bool:
        if 4 * (len(pair.question) + len(pair.answer) + 2) + _CONTROL_TOKENS <= limit:  # four bytes a character at most
            return True
        texts = (pair.question, pair.answer)
        lengths = (len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        return sum(lengths) + _CONTROL_TOKENS <= limit

    return LengthLimit(MINI, limit, fits)
