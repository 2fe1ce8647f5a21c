"""Pretraining corpora: plain texts and dialogues as documents, and a held-out part made of whole documents."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise
from pathlib import Path

from daedap.config import ReadOptions
from daedap.data.clean import clean, clean_text, is_damaged, texts_of
from daedap.data.inputs import JSON_SUFFIXES, detect, open_text, refuse_unreadable
from daedap.data.kakaotalk import is_chat
from daedap.data.objects import objects
from daedap.data.reader import DEFAULT_READ_OPTIONS, detect_source, read_pairs
from daedap.errors import DataError
from daedap.korean.text import comparison_form
from daedap.types import Pair

_DOCUMENT_LINES = 500
"""Lines per document where no blank line separates documents."""
_MARGIN = 100
"""Lines dropped at both ends of a held-out piece of a longer text: adjacent training lines may continue them."""
_MAX_HELD_OUT = 500_000
"""Maximum held-out characters: more would slow the evaluation without making it better."""
_SAMPLE = 200
"""Lines read to detect the format of a file."""


@dataclass(frozen=True, slots=True)
class Document:
    """Texts in context: a chapter, the reviews of one film, or the messages of a dialogue."""

    texts: tuple[str, ...]
    dialogue: bool = False
    """Whether the texts alternate strictly between user and assistant, the assistant last."""
    cut: bool = False
    """Whether it is a piece of a longer text, cut at an arbitrary line."""

    @property
    def characters(self) -> int:
        """Length without line ends."""
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class Corpus:
    """The documents of one file."""

    documents: list[Document]
    left_out: int
    """Lines or rows that are unreadable or damaged."""


def read_texts(path: Path, read_options: ReadOptions = DEFAULT_READ_OPTIONS) -> Corpus:
    """The documents of a file.

    `.txt` and `.md`: one text a line, blank lines between documents. JSON lines with a `text` key: one document each.
    Everything else that `daedap train` reads, KakaoTalk's `.txt` included: dialogues, without system messages.

    Raises DataError when the file can't be read or holds no text.
    """
    refuse_unreadable(path)
    suffix = path.suffix.lower()
    if suffix in (".txt", ".md") and not is_chat(_sample(path)):
        corpus = _plain(path)
    elif suffix in JSON_SUFFIXES and any(isinstance(row, dict) and "text" in row for _, row in objects(_sample(path))):
        corpus = _json_texts(path)
    else:
        corpus = _dialogues(path, read_options)
    if not corpus.documents:
        raise DataError("{file} holds no text.", "Write one text a line.", file=path)
    return corpus


def _sample(path: Path) -> list[str]:
    with open_text(path, detect(path)) as lines:
        return list(islice((line for line in lines if line.strip()), _SAMPLE))


def _plain(path: Path) -> Corpus:
    with open_text(path, detect(path)) as lines:
        texts = [_normalize(line) for line in lines]
    damaged = sum(map(is_damaged, texts))
    groups = groupby(("" if is_damaged(text) else text for text in texts), bool)
    return Corpus([document for filled, group in groups if filled for document in _cut(tuple(group))], damaged)


def _normalize(line: str) -> str:
    return " ".join(clean_text(line)[0].split())


def _cut(texts: tuple[str, ...]) -> list[Document]:
    """A group of lines as one document, or as several of about _DOCUMENT_LINES; the last one takes the remainder."""
    count = max(1, len(texts) // _DOCUMENT_LINES)
    bounds = [*range(0, count * _DOCUMENT_LINES, _DOCUMENT_LINES), len(texts)]
    return [Document(texts[start:end], cut=count > 1) for start, end in pairwise(bounds)]


def _json_texts(path: Path) -> Corpus:
    with open_text(path, detect(path)) as lines:
        values = [row.get("text") if isinstance(row, dict) else None for _, row in objects(lines)]
    texts = [tuple(filter(None, map(_normalize, value.splitlines()))) for value in values if isinstance(value, str)]
    documents = [document for group in texts if group for document in _cut(group)]
    return Corpus(documents, len(values) - sum(map(bool, texts)))


def _dialogues(path: Path, read_options: ReadOptions) -> Corpus:
    read = list(read_pairs(detect_source(path, read_options)))
    pairs = [clean(row)[0] for row in read if isinstance(row, Pair) and not is_damaged(*texts_of(row))]
    usable = [pair for pair in pairs if pair.question and pair.answer]
    conversations = groupby(enumerate(usable), key=lambda numbered: numbered[1].conversation_id or numbered[0])
    dialogues = (
        tuple(text for _, pair in group for text in (pair.question, pair.answer)) for _, group in conversations
    )
    documents = [Document(texts, dialogue=True) for texts in dict.fromkeys(dialogues)]
    return Corpus(documents, len(read) - len(usable))


def hold_out(
    files: Sequence[Sequence[Document]], share: float, seed: int, repeat: Sequence[int] = ()
) -> tuple[list[Document], list[Document]]:
    """Training documents and held-out ones: whole documents of every file, about `share` of its characters.

    `repeat` gives how often the documents of each file are trained on (default once). A held-out text that also occurs
    in training, in any file and compared without spacing and punctuation, is removed; a dialogue only as a whole.
    """
    train, held = list[Document](), list[Document]()
    for documents, times in zip(files, repeat or [1] * len(files), strict=True):
        sampled = _sample_documents([document.characters for document in documents], share, seed)
        train += [document for number, document in enumerate(documents) if number not in sampled] * times
        pieces = (documents[number] for number in sorted(sampled))
        held += [replace(one, texts=one.texts[_MARGIN:-_MARGIN]) if one.cut else one for one in pieces]
    forms = {form for document in held for form in _forms(document)}
    known = forms.intersection(form for document in train for form in _forms(document)) if forms else set()
    unseen = (_without_known(document, known) for document in held)
    return train, [document for document in unseen if document.texts]


def _sample_documents(sizes: Sequence[int], share: float, seed: int) -> set[int]:
    """Indices of random documents with about `share` of all characters; none that far exceeds it, never all."""
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    budget, sampled = min(share * sum(sizes), _MAX_HELD_OUT), set[int]()
    for number in order:
        if len(sampled) + 1 < len(sizes) and sizes[number] <= 2 * budget:
            sampled.add(number)
            budget -= sizes[number]
    if share and not sampled and len(sizes) > 1:
        sampled.add(min(order, key=sizes.__getitem__))
    return sampled


def _forms(document: Document) -> Iterable[str]:
    return map(comparison_form, ["\n".join(document.texts)] if document.dialogue else document.texts)


def _without_known(document: Document, known: set[str]) -> Document:
    if document.dialogue:
        return replace(document, texts=()) if known.issuperset(_forms(document)) else document
    return replace(document, texts=tuple(text for text in document.texts if comparison_form(text) not in known))
