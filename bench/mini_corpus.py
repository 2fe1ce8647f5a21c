"""Write the texts that daedap-mini was pretrained on: python bench/mini_corpus.py FOLDER OUTPUT

FOLDER holds nsmc.txt, goemotions_ko.txt, kote.txt (one text a line) and dialogues.jsonl, each perhaps with .xz. A text
is dropped when it insults, is hardly Korean, is shorter than four characters, or came before.
"""

from __future__ import annotations

import json
import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PLAIN = ("nsmc", "goemotions_ko", "kote")
INSULTS = re.compile(
    r"[시씨쉬]\s*[이1]?\s*[발벌팔8]|ㅅㅂ|ㅆㅂ|ㅂㅅ|ㅈㄹ|ㅈㄴ|ㄲㅈ|ㄷㅊ|병\s*신|븅신|빙신|등신|새끼|새키|쉐끼|색히|시키들|지랄|[좆좃씹]|존나|졸라"
    r"|닥쳐|꺼져|엿먹|뒤[져진질]|뒈|죽어라|죽여|자살해|쓰레기|걸레|벌레|돼지|멍청|찌질|찐따|미친|또라이|돌아이|싸이코|애미|애비|니미|느금|엠창"
    r"|한남|김치녀|된장녀|맘충|급식충|충들|틀딱|년[들아]|년이|놈[들아이]|개독|홍어|전라디언|짱[깨개]|쪽[바발]|왜놈|일베|좌빨|수꼴|빨갱이"
    r"|호모|게이|레즈|섹스|야동|강간|자위|보지[^않못도마]|자지|창녀|fuck|shit",
    re.IGNORECASE,
)
"""Crude on purpose: a review too many costs nothing, an insult learned is said to a user one day."""
HANGUL = re.compile("[가-힣]")


def lines(folder: Path, name: str) -> Iterator[str]:
    """Lines of a file of the folder, whether it is compressed or not."""
    path = folder / name
    if path.exists():
        yield from path.open(encoding="utf-8")
    else:
        with lzma.open(f"{path}.xz", "rt", encoding="utf-8") as file:
            yield from file


def kept(texts: Iterator[str]) -> Iterator[str]:
    """The texts worth learning."""
    seen = set[str]()
    for raw in texts:
        text = " ".join(raw.split())
        korean = len(HANGUL.findall(text)) >= 0.4 * len(text)
        if len(text) >= 4 and korean and text not in seen and not INSULTS.search(text):
            seen.add(text)
            yield text


def polite(dialogues: Iterator[str]) -> Iterator[str]:
    """Dialogues in which nobody insults."""
    for line in dialogues:
        if not any(INSULTS.search(turn["content"]) for turn in json.loads(line)["messages"]):
            yield line.strip()


def main(folder: Path, output: Path) -> None:
    """Write the four files."""
    output.mkdir(parents=True, exist_ok=True)
    for name in PLAIN:
        texts = list(kept(lines(folder, f"{name}.txt")))
        (output / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        print(f"{name}: {len(texts):,} texts, {sum(map(len, texts)):,} characters")
    talks = list(polite(lines(folder, "dialogues.jsonl")))
    (output / "dialogues.jsonl").write_text("\n".join(talks) + "\n", encoding="utf-8")
    print(f"dialogues: {len(talks):,}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
