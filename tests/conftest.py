from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import daedap
from daedap.runs import Run
from daedap.types import Pair

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # toy models gain nothing from more, and lose tenfold on a busy machine

WHO = {
    "우리 강아지가": "강아지도",
    "회사 부장님이": "부장님도",
    "옆집 아이가": "그 아이도",
    "오래된 친구가": "그 친구도",
    "헤어진 사람이": "그 사람도",
    "할머니께서": "할머니도",
    "고등학교 동창이": "동창도",
    "새로 온 선생님이": "선생님도",
    "막내 동생이": "동생도",
    "어제 만난 손님이": "손님도",
}
DOES = {
    "자꾸 화를 내요": "마음이 힘들 때예요.",
    "밥을 안 먹어": "입맛이 없나 봐요.",
    "너무 보고 싶다": "같은 마음일 거예요.",
    "갑자기 연락을 끊었어": "사정이 있겠죠.",
    "선물을 보내 줬어요": "고마워하고 있네요.",
    "밤새 울었대": "따뜻한 말이 필요해요.",
    "이사를 간대": "새집이 좋을 거예요.",
    "약속을 또 잊었네": "바빠서 그랬을 거예요.",
}
PAIRS = [
    Pair(f"{who} {does}", f"{they} {message}", str(n % 3))
    for who, they in WHO.items()
    for n, (does, message) in enumerate(DOES.items())
]
"""80 pairs; no two questions are near-duplicates."""


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "en")


def write_csv(path: Path, pairs: Sequence[Pair] = PAIRS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Q", "A", "label"])
        rows.writerows((pair.question, pair.answer, pair.label) for pair in pairs)
    return path


def daedap_process(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line as a user has it; standard input is empty."""
    return subprocess.run(
        [sys.executable, "-m", "daedap", *arguments],
        cwd=folder,
        env={**os.environ, "DAEDAP_LANG": "en", "PYTHONUTF8": "1", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="session")
def qa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "qa.csv")


@pytest.fixture(scope="session")
def trained(qa: Path) -> Run:
    """A complete run; read it, never change it: others use it too."""
    return daedap.train(
        qa,
        base="fresh",
        runs=qa.parent / "runs",
        test_size=0.15,
        dev_size=0.1,
        precision="fp32",
        num_train_epochs=6,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        logging_steps=10,
    )


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server's first database; its tests are skipped where it is not installed."""
    from postgresql import postgresql_server

    with postgresql_server() as url:
        yield url
