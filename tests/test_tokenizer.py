from __future__ import annotations

import json
from pathlib import Path

import pytest
import toys
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from daedap.errors import BaseError
from daedap.model.tokenizer import decode, encode, find_control_ids, load_tokenizer, save_tokenizer, train_tokenizer

REAL = Path(__file__).parents[2] / "shared" / "data" / "kogpt2"
HANGUL = "근육이 커지기 위해서는 12시에 밥을 먹어야 한다."
TYPED = [
    "</s>",
    "<s>",
    "<usr>",
    "<sys>",
    "<unk>",
    "<pad>",
    "<mask>",
    "<|user|>",
    "<|assistant|>",
    "<unused0>",
    "<0x41>",
]
LAUGHTER = ["ㅋㅋ", "ㅠㅠ", "ㅋㅋㅋㅋ 고마워ㅠㅠ", "눈물이 난다ㅠㅠ"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.kogpt2(tmp_path_factory.mktemp("bases") / "kogpt2")


@pytest.fixture(scope="module")
def kogpt2(folder: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def ours() -> PreTrainedTokenizerFast:
    return train_tokenizer(toys.TEXTS, 700)


@pytest.fixture(scope="module")
def real() -> PreTrainedTokenizerFast:
    if not REAL.is_dir():
        pytest.skip(f"KoGPT2's own tokenizer is not there: {REAL}")
    return load_tokenizer(REAL)


def test_kogpt2_keeps_hangul(kogpt2: PreTrainedTokenizerFast) -> None:
    assert decode(kogpt2, encode(kogpt2, HANGUL)) == HANGUL


def test_auto_tokenizer_garbles_kogpt2(folder: Path, kogpt2: PreTrainedTokenizerFast) -> None:
    plain = AutoTokenizer.from_pretrained(folder)
    ids = plain(HANGUL, add_special_tokens=False)["input_ids"]
    assert str(plain.decode(ids)).strip() != HANGUL
    assert ids != encode(kogpt2, HANGUL)


def test_special_tokens_of_kogpt2(kogpt2: PreTrainedTokenizerFast) -> None:
    names = (kogpt2.bos_token, kogpt2.eos_token, kogpt2.unk_token, kogpt2.pad_token, kogpt2.mask_token)
    assert names == ("</s>", "</s>", "<unk>", "<pad>", "<mask>")
    assert kogpt2.convert_tokens_to_ids(["</s>", "<usr>", "<pad>", "<sys>", "<unused0>"]) == [1, 2, 3, 4, 9]
    assert len(kogpt2) == kogpt2.backend_tokenizer.get_vocab_size(), "an additional token"


def test_encoding_adds_neither_beginning_nor_end(kogpt2: PreTrainedTokenizerFast) -> None:
    assert not {0, 1} & set(encode(kogpt2, HANGUL))


def test_the_real_kogpt2_has_51200_tokens(real: PreTrainedTokenizerFast) -> None:
    assert len(real) == 51_200
    assert max(real.get_vocab().values()) == 51_199
    names = ["<s>", "</s>", "<usr>", "<pad>", "<sys>", "<unk>", "<mask>", "<d>", "</d>", "<unused0>"]
    assert real.convert_tokens_to_ids(names) == list(range(10))


def test_the_real_kogpt2_gives_the_published_ids(real: PreTrainedTokenizerFast) -> None:
    assert encode(real, "근육이 커지기 위해서는") == [33245, 10114, 12748, 11357]
    answer = [12557, 6824, 9108, 9028, 7098, 25856]
    assert encode(real, "12시 땡!") == [9349, 7888, 739, 7318, 376]
    assert encode(real, "하루가 또 가네요.") == answer
    assert real("<usr>12시 땡!<sys>하루가 또 가네요.")["input_ids"] == [2, 9349, 7888, 739, 7318, 376, 4, *answer]


@pytest.mark.parametrize("text", [HANGUL, "좋아요 😊", *LAUGHTER, *TYPED])
def test_the_real_kogpt2_is_lossless(real: PreTrainedTokenizerFast, text: str) -> None:
    ids = encode(real, text)
    assert decode(real, ids) == text
    assert not find_control_ids(real) & set(ids)


@pytest.mark.parametrize("text", LAUGHTER)
@pytest.mark.parametrize("name", ["kogpt2", "ours"])
def test_jamo_are_decoded_as_typed(name: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    assert decode(tokenizer, encode(tokenizer, text)) == text


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("name", ["kogpt2", "ours"])
def test_typed_control_tokens_stay_text(name: str, typed: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    ids = encode(tokenizer, f"저는 {typed} 좋아해요")
    assert not find_control_ids(tokenizer) & set(ids)
    assert decode(tokenizer, ids) == f"저는 {typed} 좋아해요"


def test_an_emoji_is_text_although_kogpt2_marks_it_special(kogpt2: PreTrainedTokenizerFast) -> None:
    ids = encode(kogpt2, "좋아요 😊")
    assert kogpt2.convert_tokens_to_ids("😊") in ids
    assert decode(kogpt2, ids) == "좋아요 😊"
    assert {0, 1, 2, 3, 4, 6, 7, 8} <= find_control_ids(kogpt2)


@pytest.mark.parametrize("name", ["kogpt2", "ours"])
def test_plain_auto_tokenizer_loads_what_is_saved(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    plain = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*toys.TEXTS, "<usr>12시 땡!<sys>하루가 또 가네요.</s>", "<|user|>안녕<|assistant|>"]:
        assert plain(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="tokenizer"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"', encoding="utf-8")
    with pytest.raises(BaseError, match=tmp_path.name):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "좋아요 😀👍🏽",
        "龘한 글자",
        "첫 줄\n둘째 줄\n\n넷째 줄",
        "탭\t하나",
        "Ünïcödé العربية",
        "  두 칸  띄기",
        "뷁쀍",
        "a\x00b",
    ],
)
def test_trained_tokenizers_are_lossless(ours: PreTrainedTokenizerFast, text: str) -> None:
    ids = encode(ours, text)
    assert decode(ours, ids) == text.strip()
    assert ours.unk_token_id not in ids


@pytest.mark.parametrize("most", [400, 700, 4096])
def test_the_vocabulary_size_is_bounded(most: int) -> None:
    tokenizer = train_tokenizer(toys.TEXTS, most)
    assert len(tokenizer) <= most
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer))), "ids have gaps"


def test_roles_are_one_token_each(ours: PreTrainedTokenizerFast) -> None:
    roles = [ours("<|user|>")["input_ids"], ours("<|assistant|>")["input_ids"], ours("</s>")["input_ids"]]
    assert roles == [[4], [5], [2]]


@pytest.mark.parametrize("most", [400, 700])
def test_the_same_texts_give_the_same_tokenizer(most: int) -> None:
    first, *others = (train_tokenizer(toys.TEXTS, most).backend_tokenizer.to_str() for _ in range(4))
    assert others == [first] * 3
