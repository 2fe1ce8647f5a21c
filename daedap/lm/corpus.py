"""Documents as one stream of ids, cut into blocks of equal length: no place is spent on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from daedap.data.texts import Document
from daedap.errors import RunError
from daedap.lm.prompt import Prompt

_AT_ONCE = 10_000
"""Texts encoded at a time."""
PADDING = -100
"""No token; PyTorch's cross entropy leaves it out."""
Ids = NDArray[np.integer]


@dataclass(frozen=True)
class Corpus:
    """Documents one after the other.

    ids: (tokens,); starts: (documents,) where each begins in `ids`; characters: their length, line ends not counted.
    """

    ids: Ids
    starts: NDArray[np.int64]
    characters: int

    def steps(self, length: int, rows: int) -> int:
        """How many batches of `rows` blocks of `length` ids it fills."""
        return (len(self.ids) - 1) // length // rows

    def batches(self, length: int, rows: int, seed: Sequence[int], first: int = 0) -> Iterator[Ids]:
        """Batches from the `first` on, (rows, length + 1) each: ids to read and the one that follows each.

        A block begins with the last id of the one before, so that every id but the first is predicted once. The seed
        decides how documents are joined and in which order the blocks come; what fills no batch is left out.
        """
        random = np.random.default_rng(seed)
        ends = np.append(self.starts[1:], len(self.ids))
        joined = np.concatenate([self.ids[self.starts[n] : ends[n]] for n in random.permutation(len(ends))])
        blocks = _cut(joined, length)
        order = random.permutation(len(blocks))
        for step in range(first, self.steps(length, rows)):
            yield blocks[order[step * rows : (step + 1) * rows]]

    def in_order(self, length: int, rows: int) -> Iterator[Ids]:
        """All of it, every document in its place, the last batch filled up with `PADDING`."""
        missing = -(len(self.ids) - 1) % (length * rows)
        blocks = _cut(np.pad(self.ids.astype(np.int64), (0, missing), constant_values=PADDING), length)
        for start in range(0, len(blocks), rows):
            yield blocks[start : start + rows]

    def sizes(self) -> dict[str, int]:
        """Documents, tokens and characters."""
        return {"documents": len(self.starts), "tokens": len(self.ids), "characters": self.characters}

    def save(self, path: Path) -> None:
        """Write it as `path`, an .npz file."""
        np.savez(path, ids=self.ids, starts=self.starts, characters=self.characters)

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read it back. Raises RunError."""
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return cls(arrays["ids"], arrays["starts"], int(arrays["characters"]))
        except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
            raise RunError(
                "{file}: the encoded texts can't be read ({error}).", "Pretrain again.", file=path, error=error
            ) from error


def _cut(ids: Ids, length: int) -> Ids:
    """(blocks, length + 1), a view."""
    return np.lib.stride_tricks.sliding_window_view(ids, length + 1)[::length]


def encode_documents(documents: Sequence[Document], prompt: Prompt) -> Corpus:
    """Documents as ids: `<s>` before plain texts and an end token after each; dialogues in the chat template."""
    encoded = _encoded([text for document in documents for text in document.texts], prompt)
    small = np.uint16 if len(prompt.tokenizer) <= 1 << 16 else np.uint32
    parts = [np.array(_rendered(document, encoded, prompt), dtype=small) for document in documents]
    starts = np.cumsum([0, *map(len, parts)])[:-1]
    return Corpus(np.concatenate(parts), starts, sum(document.characters for document in documents))


def _encoded(texts: Sequence[str], prompt: Prompt) -> Iterator[list[int]]:
    """Each text as ids; what looks like a control token stays plain text."""
    for start in range(0, len(texts), _AT_ONCE):
        batch = list(texts[start : start + _AT_ONCE])
        yield from prompt.tokenizer(batch, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _rendered(document: Document, encoded: Iterator[list[int]], prompt: Prompt) -> list[int]:
    texts = [next(encoded) for _ in document.texts]
    if document.dialogue:
        return prompt.dialogue(texts)
    end = prompt.template.end
    bos = prompt.tokenizer.bos_token_id
    return [end if bos is None else bos, *(number for text in texts for number in (*text, end))]
