"""The shortlist: the only tokens that the softmax of training compares (the term is machine translation's)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from daedap.lm.prompt import Example, Prompt

_SINGLE = re.compile("[가-힣ㄱ-ㅎㅏ-ㅣ!-~…]")
_WORTH_IT = 0.7
"""Share of the vocabulary above which a shortlist saves too little."""


def shortlist(prompt: Prompt, examples: Sequence[Example]) -> Tensor | None:
    """Tokens of the training answers and of single letters, digits and marks, (tokens,), sorted; None: not worth it.

    A probability in training is one among these tokens: it is too high by what the others would take, which is next to
    nothing for a base that knows the language. Scores and replies use the full vocabulary.
    """
    vocabulary = len(prompt.tokenizer)
    said = {token for example in examples for token in example.ids[example.answer :]}
    texts = prompt.tokenizer.backend_tokenizer.decode_batch([[token] for token in range(vocabulary)])
    single = {token for token, text in enumerate(texts) if _SINGLE.fullmatch(text.strip())}
    chosen = sorted((said | single) - (prompt.controls - {prompt.template.end}))
    return torch.tensor(chosen) if len(chosen) < _WORTH_IT * vocabulary else None
