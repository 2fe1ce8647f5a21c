from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from daedap.errors import EncoderError
from daedap.model.sentence_encoder import ENCODER_FOLDER, FILES, SentenceEncoder

TEXTS = ["배송은 언제 와요?", "오늘 기분이 너무 좋아", "ㅋㅋㅋㅋ", "", "?!", "환불은요? " * 90, "漢字 😀 뷁"]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder.open(workers=2)


def cosines(encoder: SentenceEncoder, one: str, others: list[str]) -> list[float]:
    vectors = encoder.encode([one, *others])
    return [float(cosine) for cosine in vectors[1:] @ vectors[0]]


def test_vectors_have_length_1(encoder: SentenceEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.width)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_no_texts(encoder: SentenceEncoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.width)


def test_a_text_has_the_same_vector_alone_and_among_others(encoder: SentenceEncoder) -> None:
    """But for activations that round to another step: a few texts differ by up to 0.012."""
    texts = [text + "요" * number for number in range(20) for text in TEXTS]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    among = encoder.encode(texts)
    assert (among * alone).sum(axis=1).min() > 0.995
    assert np.median(np.abs(among - alone).max(axis=1)) < 1e-3


def test_what_is_too_long_is_cut_off(encoder: SentenceEncoder) -> None:
    long = "배송은 언제 와요? " * 400
    np.testing.assert_allclose(encoder.encode([long]), encoder.encode([long + "환불은요?"]), atol=1e-3)


@pytest.mark.parametrize("text", ["뷁 쀍", "漢字 😀", "ㅋㅋ ㅠㅠ ㄳ", "a/s 5,000원", "세탁기에 돌려도 되나요?"])
def test_no_text_is_lost(encoder: SentenceEncoder, text: str) -> None:
    ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    assert encoder.tokenizer.decode(ids).strip() == text


def test_laughter_and_tears_stay_the_letters_people_type(encoder: SentenceEncoder) -> None:
    assert encoder.tokenizer.encode("ㅋㅋㅋㅋㅋㅋ", add_special_tokens=False).tokens[-1] == "ㅋㅋ"
    assert encoder.tokenizer.encode("슬퍼ㅠㅠㅠ").ids == encoder.tokenizer.encode("슬퍼ㅠㅠ").ids


@pytest.mark.parametrize(
    ("asked", "same", "others"),
    [
        (
            "지금 사면 언제쯤 받아 볼 수 있어요?",
            "배송은 얼마나 걸리나요?",
            ["교환은 어떻게 하나요?", "매장이 어디예요?"],
        ),
        ("비번 까먹음", "비밀번호를 잊어버렸어요", ["회원 탈퇴는 어떻게 하나요?", "적립금은 언제 들어오나요?"]),
        ("차 세울 데 있나여ㅠ", "주차장이 있나요?", ["예약을 취소할 수 있나요?", "몇 시까지 하나요?"]),
        ("오늘 진짜 힘들다", "너무 피곤한 하루였어", ["배송비는 얼마인가요?", "내일 영화 볼까?"]),
        ("환불은 며칠 안에 돼?", "반품하면 돈은 언제 돌려받나요?", ["환기는 자주 해야 돼?", "며칠 있다 헤어졌어"]),
    ],
)
def test_what_means_the_same_is_nearest(encoder: SentenceEncoder, asked: str, same: str, others: list[str]) -> None:
    near, *far = cosines(encoder, asked, [same, *others])
    assert near > max(far) + 0.05


def test_all_cores_give_what_one_gives(encoder: SentenceEncoder) -> None:
    texts = [f"{text} {number}" for number in range(30) for text in TEXTS]
    np.testing.assert_array_equal(encoder.encode(texts), SentenceEncoder.open(workers=1).encode(texts))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"model\.bin is missing"):
        SentenceEncoder.open(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_told(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(ENCODER_FOLDER, folder)
    (folder / name).write_bytes(b"{")
    with pytest.raises(EncoderError, match="holds no sentence encoder"):
        SentenceEncoder.open(folder)


def test_the_built_in_encoder_knows_its_version(encoder: SentenceEncoder) -> None:
    assert encoder.settings.digest == hashlib.sha256((ENCODER_FOLDER / "model.bin").read_bytes()).hexdigest()


def test_a_prefix_is_put_before_each_text(tmp_path: Path, encoder: SentenceEncoder) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(ENCODER_FOLDER, folder)
    (folder / "encoder.json").write_text(json.dumps({"prefix": "질문: ", "max_length": 128}), encoding="utf-8")
    prefixed = SentenceEncoder.open(folder).encode(["배송비는?"])
    np.testing.assert_allclose(prefixed, encoder.encode(["질문: 배송비는?"]), atol=1e-3)


def test_ctranslate2_is_not_loaded_before_torch() -> None:
    """In that order, its OpenMP runtime makes a training five times as slow, and some crash."""
    loaded = "import sys, daedap.commands.train, daedap.retrieval.bot; print('ctranslate2' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "False\n"
    )
