"""llama.cpp's tokenizer for vocabularies of SentencePiece, in Python: what a written GGUF file makes of a text.

After `llm_tokenizer_spm_session` and `llama_vocab::impl::tokenize` of https://github.com/ggml-org/llama.cpp
(src/llama-vocab.cpp). Control tokens are cut out of the text first, wherever they stand. A space is put before each
piece between them; then those two neighbours are joined whose joined text is the token with the highest score, until no
two can be joined. What is no token is spelled in bytes.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in GGUF files."""
SPACE = "▁"


@dataclass(frozen=True)
class SpmVocabulary:
    """The vocabulary of a GGUF file."""

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]

    def tokenize(self, text: str) -> list[int]:
        """Ids of a rendered prompt, control tokens included, without BOS."""
        ids: list[int] = []
        for part in self._control_tokens.split(text):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids += self._encode(f" {part}".replace(" ", SPACE))
        return ids

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: id for id, token in enumerate(self.tokens)}

    @cached_property
    def _special(self) -> dict[str, int]:
        """Tokens that are found in a text before anything else."""
        kinds = (UNKNOWN, CONTROL, USER_DEFINED)
        return {token: id for token, id in self._ids.items() if self.types[id] in kinds}

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        longest_first = sorted(self._special, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def _encode(self, text: str) -> Iterator[int]:
        for piece in self._merged(text):
            if piece in self._ids:
                yield self._ids[piece]
            else:
                yield from (self._ids[f"<0x{byte:02X}>"] for byte in piece.encode())

    def _merged(self, text: str) -> list[str]:
        """The pieces that are left when no two neighbours form a token."""
        pieces, before, after = list(text), list(range(-1, len(text) - 1)), list(range(1, len(text) + 1))
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right < len(pieces) and (id := self._ids.get(pieces[left] + pieces[right])) is not None:
                heapq.heappush(queue, (-self.scores[id], left, right, len(pieces[left]) + len(pieces[right])))

        for left in range(len(pieces) - 1):
            offer(left, left + 1)
        while queue:
            _, left, right, length = heapq.heappop(queue)
            if not pieces[left] or not pieces[right] or len(pieces[left]) + len(pieces[right]) != length:
                continue  # one of them was joined with another neighbour meanwhile
            pieces[left], pieces[right] = pieces[left] + pieces[right], ""
            after[left] = after[right]
            if after[right] < len(pieces):
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [piece for piece in pieces if piece]
