"""Plain texts and dialogues to pretrain on: what belongs together stays together, and some of it is held out whole."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path

from daedap.data.clean import BadRow, clean, clean_text, is_damaged, texts_of
from daedap.data.encoding import detect, open_text
from daedap.data.jsonl import objects
from daedap.data.kakaotalk import is_chat
from daedap.data.reader import DEFAULT_READ_OPTIONS, ReadOptions, open_source, refuse_unreadable, rows
from daedap.errors import DataError
from daedap.korean.text import comparison_form
from daedap.types import Pair

_STRETCH = 500
"""Lines that are taken as one document where no blank line parts them."""
_MARGIN = 100
"""Lines at either end of a held-out stretch that are left out: their neighbours in training may belong to them."""
_ENOUGH = 500_000
"""Characters at most that are held out: measuring on more would take time from training."""
_PLAIN = (".txt", ".md")
_JSON = (".jsonl", ".ndjson", ".json")
_SAMPLE = 200
"""Lines looked at to tell what a file is."""


@dataclass(frozen=True, slots=True)
class Document:
    """Texts that belong together: a chapter, the reviews of a film, or the turns of a dialogue."""

    texts: tuple[str, ...]
    dialogue: bool = False
    """Whether the texts are a user's and an assistant's turns, strictly alternating, the assistant's last."""
    cut: bool = False
    """Whether it is a stretch of a longer text, cut anywhere."""

    @property
    def characters(self) -> int:
        """Its length without line ends."""
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class Texts:
    """What one file holds."""

    documents: list[Document]
    left_out: int
    """Lines or rows that can't be read, or are damaged."""


def read_texts(path: Path, read_options: ReadOptions = DEFAULT_READ_OPTIONS) -> Texts:
    """The documents of a file.

    `.txt` and `.md` hold one text a line, and blank lines between documents. JSON lines with a `text` are a document
    each. Every other file that `daedap train` reads, KakaoTalk's `.txt` too, holds dialogues; what the system says in
    them is not learned.

    Raises DataError when the file can't be read or holds no text.
    """
    refuse_unreadable(path)
    suffix = path.suffix.lower()
    if suffix in _PLAIN and not is_chat(_sample(path)):
        found = _plain(path)
    elif suffix in _JSON and any("text" in row for _, row in objects(_sample(path)) if not isinstance(row, BadRow)):
        found = _json_texts(path)
    else:
        found = _dialogues(path, read_options)
    if not found.documents:
        raise DataError("{file} holds no text.", "Write one text a line.", file=path)
    return found


def _sample(path: Path) -> list[str]:
    with open_text(path, detect(path)) as lines:
        return list(islice((line for line in lines if line.strip()), _SAMPLE))


def _plain(path: Path) -> Texts:
    with open_text(path, detect(path)) as lines:
        texts = [_tidy(line) for line in lines]
    whole = ["" if is_damaged(text) else text for text in texts]
    groups = [tuple(group) for filled, group in groupby(whole, bool) if filled]
    documents = [document for group in groups for document in _stretches(group)]
    return Texts(documents, sum(text != kept for text, kept in zip(texts, whole, strict=True)))


def _tidy(line: str) -> str:
    return " ".join(clean_text(line)[0].split())


def _stretches(texts: tuple[str, ...]) -> Iterator[Document]:
    """One document, or stretches of one that is long; the last takes the rest."""
    count = max(1, len(texts) // _STRETCH)
    for number in range(count):
        end = (number + 1) * _STRETCH if number + 1 < count else len(texts)
        yield Document(texts[number * _STRETCH : end], cut=count > 1)


def _json_texts(path: Path) -> Texts:
    with open_text(path, detect(path)) as lines:
        found = [row.get("text") if isinstance(row, dict) else None for _, row in objects(lines)]
    parts = [tuple(filter(None, map(_tidy, text.splitlines()))) for text in found if isinstance(text, str)]
    documents = [document for part in parts if part for document in _stretches(part)]
    return Texts(documents, len(found) - sum(map(bool, parts)))


def _dialogues(path: Path, read_options: ReadOptions) -> Texts:
    found = list(rows(open_source(path, read_options)))
    pairs = [clean(row)[0] for row in found if isinstance(row, Pair) and not is_damaged(*texts_of(row))]
    usable = [pair for pair in pairs if pair.question and pair.answer]
    threads = groupby(enumerate(usable), key=lambda numbered: numbered[1].conversation_id or numbered[0])
    documents = dict.fromkeys(_dialogue([pair for _, pair in conversation_id]) for _, conversation_id in threads)
    return Texts(list(documents), len(found) - len(usable))


def _dialogue(pairs: Sequence[Pair]) -> Document:
    return Document(tuple(text for pair in pairs for text in (pair.question, pair.answer)), dialogue=True)


def hold_out(
    files: Sequence[Sequence[Document]], share: float, seed: int, repeat: Sequence[int] = ()
) -> tuple[list[Document], list[Document]]:
    """Set whole documents of every file apart, about `share` of its characters, and free them of what training knows.

    `repeat` says how often each file's documents are learned; once unless told otherwise.

    Returns: documents to train on and held-out ones. A text that also stands in training, in whichever file, spacing
    and punctuation aside, is taken out of the held-out ones; a dialogue only when all of it does.
    """
    train, held = list[Document](), list[Document]()
    for documents, times in zip(files, repeat or [1] * len(files), strict=True):
        chosen = _chosen([document.characters for document in documents], share, seed)
        train += [document for number, document in enumerate(documents) if number not in chosen] * times
        held += [_without_margin(documents[number]) for number in sorted(chosen)]
    forms = {form for document in held for form in _forms(document)}
    known = forms.intersection(form for document in train for form in _forms(document)) if forms else set()
    freed = (_freed(document, known) for document in held)
    return train, [document for document in freed if document.texts]


def _chosen(sizes: Sequence[int], share: float, seed: int) -> set[int]:
    """Numbers of documents that together come near the share: none that goes far beyond it, and never all of them."""
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    wanted, chosen = min(share * sum(sizes), _ENOUGH), set[int]()
    for number in order:
        if len(chosen) + 1 < len(sizes) and sizes[number] <= 2 * wanted:
            chosen.add(number)
            wanted -= sizes[number]
    if share and not chosen and len(sizes) > 1:
        chosen.add(min(order, key=sizes.__getitem__))
    return chosen


def _without_margin(document: Document) -> Document:
    return replace(document, texts=document.texts[_MARGIN:-_MARGIN]) if document.cut else document


def _forms(document: Document) -> Iterable[str]:
    if document.dialogue:
        return (comparison_form("\n".join(document.texts)),)
    return map(comparison_form, document.texts)


def _freed(document: Document, known: set[str]) -> Document:
    if document.dialogue:
        return replace(document, texts=()) if known.issuperset(_forms(document)) else document
    return replace(document, texts=tuple(text for text in document.texts if comparison_form(text) not in known))
