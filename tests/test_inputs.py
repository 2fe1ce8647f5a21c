from __future__ import annotations

import re
from pathlib import Path

import pytest

from daedap.data.inputs import Encoding, detect, open_text
from daedap.errors import DataError

TEXT = "질문,답변\n안녕하세요?,반가워요.\n점심 뭐 먹을까?,따뜻한 국밥 어때요?\n"


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


def written(folder: Path, data: bytes) -> Path:
    path = folder / "pairs.csv"
    path.write_bytes(data)
    return path


def read(path: Path) -> str:
    with open_text(path, detect(path)) as file:
        return file.read()


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("cp949", "cp949"),
        ("euc-kr", "cp949"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
    ],
)
def test_every_korean_encoding_is_told(tmp_path: Path, codec: str, message: str) -> None:
    path = written(tmp_path, TEXT.encode(codec))
    assert detect(path) == Encoding(message)
    assert read(path) == TEXT


def test_big_endian_with_mark(tmp_path: Path) -> None:
    assert read(written(tmp_path, b"\xfe\xff" + TEXT.encode("utf-16-be"))) == TEXT


def test_rare_syllables_of_cp949(tmp_path: Path) -> None:
    assert read(written(tmp_path, "똠방각하 먹었어?,펲시도 마셨지\n".encode("cp949"))).startswith("똠방")


@pytest.mark.parametrize("codec", ["cp949", "utf-8"])
def test_korean_that_begins_after_a_megabyte_of_ascii(tmp_path: Path, codec: str) -> None:
    path = written(tmp_path, b"hello,world\n" * 100_000 + "안녕,반가워\n".encode(codec))
    assert detect(path).name == codec
    assert read(path).endswith("안녕,반가워\n")


def test_a_character_across_two_chunks(tmp_path: Path) -> None:
    path = written(tmp_path, b"a" * ((1 << 20) - 1) + "한글".encode())
    assert detect(path).name == "utf-8"


def test_mixed_encodings_name_the_first_odd_line(tmp_path: Path) -> None:
    lines = ["안녕하세요,반가워요".encode()] * 9
    lines.insert(6, "커피 마실래요,좋아요".encode("cp949"))
    with pytest.raises(DataError, match=r"line 7: this line is CP949, the others are UTF-8.*UTF-8"):
        detect(written(tmp_path, b"\n".join(lines)))


def test_mixed_encodings_with_more_cp949(tmp_path: Path) -> None:
    lines = ["커피 마실래요,좋아요".encode("cp949")] * 9
    lines.insert(3, "안녕하세요,반가워요".encode())
    with pytest.raises(DataError, match="line 4: this line is UTF-8, the others are CP949"):
        detect(written(tmp_path, b"\n".join(lines)))


@pytest.mark.parametrize("codec", ["utf-8", "cp949"])
def test_a_cut_off_character_costs_its_row_only(tmp_path: Path, codec: str) -> None:
    good = "안녕하세요,반가워요\n".encode(codec)
    path = written(tmp_path, good * 20 + good[:-2] + b"\n")
    assert detect(path) == Encoding(codec, damaged=True)
    assert read(path).count("\ufffd") == 1


def test_many_broken_lines_are_refused(tmp_path: Path) -> None:
    good = "안녕하세요,반가워요\n".encode()
    with pytest.raises(DataError, match=r"line 11: .*neither UTF-8 nor CP949"):
        detect(written(tmp_path, good * 10 + (good[:1] + b"\n") * 10))


def test_a_third_encoding_is_guessed_last(tmp_path: Path) -> None:
    text = "これは日本語の文章です。よろしくお願いします。\n" * 20
    assert read(written(tmp_path, text.encode("euc-jp"))) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "not a text file but PNG"),
        (b"PK\x03\x04" + bytes(50), "not a text file but zip"),
        ("안녕,하이\n둘째\0,줄\n".encode(), "line 2: a NUL byte"),
        (bytes(4000), "line 1: a NUL byte"),
        (b"\xff\xfe" + b"\x00\xd8" * 5, "begins like UTF-16"),
    ],
)
def test_what_is_not_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*{message}.*[Ss]ave it"):
        detect(path)
