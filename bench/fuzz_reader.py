"""Mutated files must neither crash the reader nor be read with the wrong columns.

    .venv/bin/python bench/fuzz_reader.py --files 10000

Every file is a small sample of a kind that daedap reads, changed at random (seed = its number): bytes flipped, cut out,
repeated or inserted, ends cut off, encodings mixed, columns moved, delimiters and line ends replaced. A file counts as

- crashed, when reading it raises anything but a DataError;
- wrong, when it is accepted and at least two pairs, and half of all pairs, have a known answer, label, date, number or
  speaker for a question, or a known question, label, date, number or speaker for an answer.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import openpyxl

from daedap.config import ReadOptions
from daedap.data.doctor import load
from daedap.errors import DataError

PAIRS = [
    ("주차할 수 있나요?", "건물 지하에 두 시간 무료로 세우실 수 있습니다."),
    ("영업시간이 어떻게 되나요?", "평일은 아홉 시부터 여섯 시까지, 주말은 다섯 시까지입니다."),
    ("환불은 어떻게 하나요?", "칠 일 안에 영수증과 함께 가져오시면 환불해 드립니다."),
    ("배송은 며칠 걸려요?", "보통 이틀쯤 걸립니다."),
    ("아이와 함께 가도 되나요?", "네, 아이 의자가 준비되어 있습니다."),
    ("예약을 바꾸고 싶어요", "전날까지 전화로 말씀해 주시면 바꿔 드립니다."),
    ("카드로 결제할 수 있나요?", "네, 모든 카드를 받습니다."),
    ("포장이 되나요?", "네, 한 개에 오백 원을 받고 포장해 드립니다."),
    ("화장실은 어디에 있나요?", "들어오셔서 왼쪽 복도 끝에 있습니다."),
    ("반려견과 들어갈 수 있나요?", "작은 강아지는 안고 들어오실 수 있습니다."),
]
LABELS = ["시설", "시설", "결제", "배송", "시설", "예약", "결제", "포장", "시설", "시설"]
NUMBERS = [str(number) for number in range(1, 11)]
DATES = [f"2024-03-{day:02}" for day in range(1, 11)]
HEADER = ["번호", "분류", "질문", "답변", "등록일"]
FOREIGN = {*LABELS, *NUMBERS, *DATES, *HEADER, "고객", "상담원", "제목", "내용"}
QUESTIONS, ANSWERS = ({pair[side] for pair in PAIRS} for side in (0, 1))
TABLE = [[number, label, *pair, date] for number, label, pair, date in zip(NUMBERS, LABELS, PAIRS, DATES, strict=True)]

Sample = tuple[str, bytes]
"""Name and bytes of a file."""


def table_bytes(table: Sequence[Sequence[str]], delimiter: str, encoding: str, ending: str = "\n") -> bytes:
    """A text table; cells with the delimiter, quotes or line breaks are quoted."""

    def quoted(cell: str) -> str:
        return f'"{cell.replace(chr(34), chr(34) * 2)}"' if any(c in cell for c in (delimiter, '"', "\n")) else cell

    return "".join(delimiter.join(map(quoted, row)) + ending for row in table).encode(encoding)


def workbook_bytes(table: Sequence[Sequence[str]]) -> bytes:
    """A workbook with one sheet."""
    book = openpyxl.Workbook()
    for row in table:
        book.worksheets[0].append(list(row))
    book.save(buffer := io.BytesIO())
    return buffer.getvalue()


def moved_columns(rng: random.Random, header: Sequence[str], body: Sequence[Sequence[str]]) -> list[list[str]]:
    """The table with its columns in another order, some of those beside question and answer left out."""
    order = [
        index for index in range(len(header)) if header[index] in ("질문", "답변", "제목", "내용") or rng.random() < 0.7
    ]
    rng.shuffle(order)
    return [[row[index] for index in order] for row in [header, *body]]


def samples(rng: random.Random) -> dict[str, Callable[[], Sample]]:
    """Kinds of files → one of them."""
    table = moved_columns(rng, HEADER, TABLE) if rng.random() < 0.5 else [HEADER, *TABLE]
    objects = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    messages = [text for pair in PAIRS for text in zip(("고객", "상담원"), pair, strict=True)]
    titles = moved_columns(rng, ["번호", "제목", "내용"], [[n, *pair] for n, pair in zip(NUMBERS, PAIRS, strict=True)])
    bare = [row[2:4] for row in TABLE]
    chat = "".join(f"[{who}] [오후 {1 + n // 60}:{n % 60:02}] {text}\n" for n, (who, text) in enumerate(messages))
    phone = "".join(f"2024년 3월 1일 오후 1:{n:02}, {who} : {text}\n" for n, (who, text) in enumerate(messages))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.csv", table_bytes(table, ",", "utf-8"))

    def dumped(value: object) -> bytes:
        return json.dumps(value, ensure_ascii=False, indent=rng.choice([None, 1])).encode()

    return {
        "csv": lambda: ("a.csv", table_bytes(table, ",", "utf-8")),
        "csv, BOM": lambda: ("a.csv", table_bytes(table, ",", "utf-8-sig", "\r\n")),
        "csv, CP949": lambda: ("a.csv", table_bytes(table, ",", "cp949", "\r\n")),
        "csv, semicolons": lambda: ("a.csv", table_bytes(table, ";", "utf-8")),
        "csv, title rows": lambda: ("a.csv", table_bytes([["자주 묻는 질문"], [], *table], ",", "utf-8")),
        "csv, 제목 and 내용": lambda: ("a.csv", table_bytes(titles, ",", "utf-8")),
        "csv, no header": lambda: ("a.csv", table_bytes(bare, ",", "utf-8")),
        "csv, five columns, no header": lambda: ("a.csv", table_bytes(table[1:], ",", "utf-8")),
        "csv of messages": lambda: ("a.csv", table_bytes([["화자", "발화"], *messages], ",", "utf-8")),
        "tsv, UTF-16": lambda: ("a.txt", table_bytes(table, "\t", "utf-16")),
        "pipes": lambda: ("a.txt", table_bytes(table, "|", "utf-8")),
        "xlsx": lambda: ("a.xlsx", workbook_bytes(table)),
        "zip": lambda: ("a.zip", zipped.getvalue()),
        "gz": lambda: ("a.csv.gz", gzip.compress(table_bytes(table, ",", "utf-8"), mtime=0)),
        "json list": lambda: ("a.json", dumped(objects)),
        "json, data": lambda: ("a.json", dumped({"version": 1, "data": objects})),
        "jsonl": lambda: ("a.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects).encode()),
        "jsonl, messages": lambda: (
            "a.jsonl",
            "".join(
                json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}) + "\n"
                for q, a in PAIRS
            ).encode(),
        ),
        "csv, whole lines quoted": lambda: (
            "a.csv",
            "".join(
                f'"{line}"\n' for line in table_bytes(table, ",", "utf-8").decode().replace('"', '""').splitlines()
            ).encode(),
        ),
        "arrows": lambda: ("a.txt", "".join(f"{q} -> {a}\n" for q, a in PAIRS).encode()),
        "marks on one line": lambda: ("a.txt", "".join(f"질문: {q} / 답변: {a}\n" for q, a in PAIRS).encode()),
        "Q. and A.": lambda: ("a.txt", "".join(f"Q. {q}\nA. {a}\n\n" for q, a in PAIRS).encode()),
        "KakaoTalk, PC": lambda: ("a.txt", f"상담원 님과 카카오톡 대화\n저장한 날짜 : 2024-03-01\n\n{chat}".encode()),
        "KakaoTalk, phone": lambda: ("a.txt", phone.encode()),
        "KakaoTalk, Mac": lambda: (
            "a.csv",
            table_bytes(
                [["Date", "User", "Message"], *([f"2024-03-01 13:{n:02}:00", *m] for n, m in enumerate(messages))],
                ",",
                "utf-8-sig",
            ),
        ),
    }


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Some bytes replaced."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """The end, the beginning or a middle part taken out."""
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice([data[:end], data[start:], data[:start] + data[end:]])


def repeated(rng: random.Random, data: bytes) -> bytes:
    """A part repeated."""
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:]


def inserted(rng: random.Random, data: bytes) -> bytes:
    """Some bytes inserted: any, or such as have a meaning in these files."""
    piece = rng.choice(
        [bytes([rng.randrange(256)]), b'"', b",", b"\n", b"\t", b";", b"{", b"]", b"\0", b"\xef\xbb\xbf"]
    )
    at = rng.randrange(len(data) + 1)
    return data[:at] + piece * rng.choice([1, 1, 2, 10]) + data[at:]


def mixed(rng: random.Random, data: bytes) -> bytes:
    """A part in another encoding."""
    lines = data.split(b"\n")
    start = rng.randrange(len(lines))
    other = rng.choice(["cp949", "utf-16-le", "utf-8-sig"])
    part = b"\n".join(lines[start:]).decode("utf-8", "ignore").encode(other, "ignore")
    return b"\n".join([*lines[:start], part])


def replaced(rng: random.Random, data: bytes) -> bytes:
    """Line ends or delimiters replaced throughout or from some place on."""
    old, new = rng.choice(
        [(b"\n", b"\r"), (b"\n", b"\r\n"), (b",", b";"), (b",", b"\t"), (b'"', b"'"), (b" ", b"\xc2\xa0")]
    )
    at = rng.choice([0, rng.randrange(len(data) + 1)])
    return data[:at] + data[at:].replace(old, new)


def shuffled(rng: random.Random, data: bytes) -> bytes:
    """Some lines moved or dropped."""
    lines = data.split(b"\n")
    for _ in range(rng.choice([1, 2, 5])):
        line = lines.pop(rng.randrange(len(lines)))
        if rng.random() < 0.5:
            lines.insert(rng.randrange(len(lines) + 1), line)
        if not lines:
            return data
    return b"\n".join(lines)


MUTATIONS = (flipped, cut, repeated, inserted, mixed, replaced, shuffled)


def mutated(seed: int) -> tuple[str, Sample]:
    """Kind and sample of a number: one, two or three mutations; one in ten only has its columns moved."""
    rng = random.Random(seed)
    kinds = samples(rng)
    kind = list(kinds)[seed % len(kinds)]
    name, data = kinds[kind]()
    for _ in range(0 if rng.random() < 0.1 else rng.choice([1, 1, 2, 3])):
        data = rng.choice(MUTATIONS)(rng, data) if data else data
    return kind, (name, data)


def wrong_pairs(found: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs with an answer or a foreign cell for a question, or a question or a foreign cell for an answer."""
    return [
        (question, answer)
        for question, answer in found
        if question in ANSWERS or question in FOREIGN or answer in QUESTIONS or answer in FOREIGN
    ]


def read(path: Path) -> list[tuple[str, str]]:
    """The pairs of a file as they are learned; of a chat, with 상담원 answering."""
    try:
        loaded = load(path)
    except DataError as error:
        if "--speaker" not in str(error) and "KakaoTalk" not in str(error):
            raise
        loaded = load(path, ReadOptions(speaker="상담원"))
    return [(pair.question, pair.answer) for pair in (*loaded.pairs, *loaded.lookup)]


def main() -> None:
    """Read them all and print the counts, and every failure with its number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    options = parser.parse_args()
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first, options.first + options.files):
            kind, (name, data) = mutated(seed)
            path = Path(folder) / name
            path.write_bytes(data)
            try:
                found = read(path)
            except DataError:
                counts["refused"] += 1
                continue
            except Exception:
                counts["crashed"] += 1
                print(f"crashed: file {seed}, {kind}\n{traceback.format_exc(limit=-3)}")
                continue
            wrong = wrong_pairs(found)
            counts["accepted"] += 1
            counts["pairs"] += len(found)
            counts["pairs of damaged rows"] += len(wrong)
            if len(wrong) > 1 and 2 * len(wrong) >= len(found):
                counts["wrong"] += 1
                print(f"wrong: file {seed}, {kind}: {wrong[:3]}")
    print(
        ", ".join(f"{kind}: {counts[kind]:,}" for kind in ("accepted", "refused", "crashed", "wrong", *sorted(counts)))
    )


if __name__ == "__main__":
    main()
