from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import toys

from daedap.data.corpus import Document
from daedap.errors import RunError
from daedap.model.prompt import Prompt, build_prompt
from daedap.model.tokenizer import decode, encode, train_tokenizer
from daedap.training.pretrain import Corpus, encode_documents
from daedap.types import Message, Pair


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return build_prompt(train_tokenizer(toys.TEXTS, 1000), 0)


def test_plain_texts_have_bos_and_eos(prompt: Prompt) -> None:
    corpus = encode_documents([Document(("배고파", "</s> 졸려")), Document(("잘 자",))], prompt)
    first, second, third = (encode(prompt.tokenizer, text) for text in ("배고파", "</s> 졸려", "잘 자"))
    begin, end = prompt.tokenizer.bos_token_id, prompt.template.eos_id
    assert corpus.ids.tolist() == [begin, *first, end, *second, end, begin, *third, end]
    assert corpus.starts.tolist() == [0, 1 + len(first) + 1 + len(second) + 1]
    assert corpus.characters == len("배고파</s> 졸려잘 자")
    assert end not in second, "what people wrote never becomes a control token"


def test_dialogues_are_rendered_as_in_fine_tuning(prompt: Prompt) -> None:
    corpus = encode_documents([Document(("안녕", "반가워요", "뭐 해?", "놀아요"), dialogue=True)], prompt)
    pair = Pair("뭐 해?", "놀아요", history=(Message("user", "안녕"), Message("assistant", "반가워요")))
    all_batches = build_prompt(prompt.tokenizer, 100).example(pair)
    assert corpus.ids.tolist() == all_batches.ids


def test_every_id_but_the_first_is_a_label_once() -> None:
    corpus = Corpus(np.arange(1, 24, dtype=np.uint32), np.array([0]), 23)
    blocks = np.concatenate(list(corpus.in_order(4, rows=2)))
    assert blocks.shape == (6, 5)
    targets = blocks[:, 1:].ravel()
    assert targets[targets > 0].tolist() == list(range(2, 24))
    assert blocks[1:, 0].tolist() == blocks[:-1, -1].tolist()


def test_the_seed_decides_the_order() -> None:
    starts = np.array([0, 7, 9, 20])
    corpus = Corpus(np.arange(40, dtype=np.uint32), starts, 40)
    first, again, other = (np.stack(list(corpus.batches(5, 2, (1, seed)))) for seed in (1, 1, 2))
    assert first.shape == (corpus.steps(5, 2), 2, 6) == (3, 2, 6)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    many = [block for seed in range(5) for batch in corpus.batches(5, 2, (1, seed)) for block in batch.tolist()]
    inside = [(a, b) for block in many for a, b in pairwise(block) if b != a + 1]
    assert inside
    assert {b for _, b in inside} <= set(starts.tolist()), "documents are joined, never torn"


def test_batches_can_start_in_the_middle() -> None:
    corpus = Corpus(np.arange(200, dtype=np.uint16), np.array([0, 50, 90]), 200)
    all_batches, rest = list(corpus.batches(5, 4, (7, 0))), list(corpus.batches(5, 4, (7, 0), first=6))
    assert len(all_batches) == 9
    np.testing.assert_array_equal(np.stack(all_batches[6:]), np.stack(rest))


def test_a_saved_corpus_is_read_back(tmp_path: Path, prompt: Prompt) -> None:
    corpus = encode_documents([Document(tuple(toys.TEXTS))], prompt)
    corpus.save(tmp_path / "train.npz")
    again = Corpus.load(tmp_path / "train.npz")
    assert np.array_equal(again.ids, corpus.ids)
    assert (
        again.sizes() == corpus.sizes() == {"documents": 1, "tokens": len(corpus.ids), "characters": corpus.characters}
    )
    text = decode(prompt.tokenizer, [number for number in again.ids.tolist() if number not in prompt.control_ids])
    assert text.startswith(toys.TEXTS[0])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", None])
def test_a_damaged_file_is_reported(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "train.npz").write_bytes(content)
    with pytest.raises(RunError, match=r"train\.npz: the encoded texts can't be read"):
        Corpus.load(tmp_path / "train.npz")
