"""The built-in base."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_csv
from transformers import AutoModelForCausalLM, AutoTokenizer

import daedap
from daedap.config import MINI
from daedap.model.base import MINI_FOLDER, Base, load_base
from daedap.model.tokenizer import decode, encode

pytestmark = pytest.mark.slow

SENTENCES = [
    "어제 본 영화가 생각보다 재미있어서 친구한테도 추천했어요.",
    "오늘은 날씨가 너무 좋아서 공원에 산책하러 나갔다.",
    "배우들의 연기가 정말 좋았고 마지막 장면에서 눈물이 났다.",
    "저는 주말에 집에서 책을 읽거나 음악을 들어요.",
    "이 노래를 들을 때마다 어린 시절이 생각난다.",
    "아이들과 함께 보기에 좋은 따뜻한 이야기입니다.",
    "처음에는 지루했는데 뒤로 갈수록 점점 재미있어졌다.",
    "회사에서 힘든 일이 있었지만 집에 오니 마음이 편해졌어요.",
    "왜 이렇게 평점이 높은지 도저히 이해할 수가 없네요.",
    "다음 편이 나오면 꼭 극장에서 다시 보고 싶습니다.",
]


@pytest.fixture(scope="module")
def mini() -> Base:
    return load_base(MINI)


def test_it_fits_into_the_package() -> None:
    sizes = {path.name: path.stat().st_size for path in MINI_FOLDER.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= set(sizes)
    assert sum(sizes.values()) <= 30e6
    assert MINI_FOLDER.parent == Path(daedap.__file__).parent


def test_transformers_loads_it() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(MINI_FOLDER)
    model = AutoModelForCausalLM.from_pretrained(MINI_FOLDER)
    assert (model.config.model_type, len(tokenizer)) == ("llama", model.config.vocab_size)
    talk = [{"role": "user", "content": "안녕"}, {"role": "assistant", "content": "안녕하세요!"}]
    ids = tokenizer.apply_chat_template(talk, tokenize=True)["input_ids"]
    user, assistant = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    assert (ids[0], ids.count(user), ids.count(assistant), ids[-1]) == (user, 1, 1, tokenizer.eos_token_id)


UNUSUAL = ["뷁쉛 웱", "漢字와 English", "😊👩‍👩‍👧 ☃", "ㅋㅋㅋㅋ ㅠㅠ", "1+1=2 <|user|> </s>", "힣" * 40]


@pytest.mark.parametrize("text", UNUSUAL)
def test_the_tokenizer_is_lossless(mini: Base, text: str) -> None:
    assert decode(mini.tokenizer, encode(mini.tokenizer, text)) == text


def test_sentences_are_more_likely_than_shuffled_words(mini: Base) -> None:
    rng = random.Random(0)
    right = 0
    for sentence in SENTENCES:
        words = sentence.split()
        rng.shuffle(words)
        right += bits(mini, sentence) < bits(mini, " ".join(words))
    assert right >= 9


def test_bits_per_character_of_korean(mini: Base) -> None:
    per_character = [bits(mini, sentence) / len(sentence) for sentence in SENTENCES]
    assert np.mean(per_character) < 4.0  # random weights: about 6.5


def bits(base: Base, text: str) -> float:
    ids = torch.tensor([[base.tokenizer.bos_token_id, *encode(base.tokenizer, text), base.tokenizer.eos_token_id]])
    with torch.no_grad():
        logs = base.model(input_ids=ids[:, :-1]).logits[0].log_softmax(-1)
    return -float(logs.gather(1, ids[0, 1:, None]).sum()) / math.log(2)


def test_training_starts_from_it(tmp_path: Path) -> None:
    run = daedap.train(write_csv(tmp_path / "qa.csv"), runs=tmp_path, num_train_epochs=1, evaluate=False)
    manifest = run.manifest
    assert (manifest["base"]["name"], manifest["base"]["licence"]) == (MINI, "mit")
    assert (manifest["method"], manifest["learning_rate"]) == ("full", 1e-3)


def test_the_model_card_names_the_data() -> None:
    card = (MINI_FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    sources = ["NSMC", "GoEmotions", "KOTE", "HG-TODS", "XPersona", "ChatterBot"]
    licences = ["CC0", "Apache-2.0", "BSD-3-Clause"]
    assert all(name in card for name in sources + licences)
    assert "@@" not in card
