"""The README's commands are run as they stand, in both languages; its links and those of the guides lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READMES = ["README.md", "README.ko.md"]
GUIDES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = [*READMES, "CONTRIBUTING.md", "bench/RESULTS.md", *GUIDES]
KOREAN = sorted(path.name for path in (ROOT / "docs" / "ko").glob("*.md"))
TOPICS = [
    "영업시간",
    "주차",
    "예약",
    "환불",
    "배송",
    "포인트",
    "메뉴",
    "와이파이",
    "반려동물",
    "단체석",
    "쿠폰",
    "포장",
]


def blocks(readme: str, language: str) -> list[str]:
    text = (ROOT / readme).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    rows = [f"{topic}{ask},{topic}{tell}" for topic in TOPICS for ask, tell in ASKED.items()]
    (tmp_path / "qa.csv").write_text("질문,답변\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


ASKED = {
    " 되나요?": "에 관해서는 매장으로 전화해 주세요.",
    "은 어떻게 해요?": " 안내문을 홈페이지에서 보실 수 있어요.",
    " 비용이 있나요?": " 비용은 따로 받지 않아요.",
    " 오늘도 해?": "은 쉬는 날 없이 언제나 돼요.",
}


@pytest.mark.slow
def test_commands_run(shop: Path) -> None:
    (block,) = blocks("README.md", "console")
    lines = [line.removeprefix("$ ") for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == ["check", "train", "answer", "answer", "runs"]
    for line in lines:
        words = [sys.executable, "-m", *shlex.split(line)]
        done = subprocess.run(words, cwd=shop, capture_output=True, text=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip(), line


@pytest.mark.slow
def test_python_runs(shop: Path) -> None:
    (code,) = blocks("README.md", "python")
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=shop, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert "retrieved" in done.stdout


def test_both_say_the_same() -> None:
    english, korean = ((ROOT / readme).read_text(encoding="utf-8") for readme in READMES)
    assert blocks("README.md", "python") == blocks("README.ko.md", "python")
    assert blocks("README.md", "console") == blocks("README.ko.md", "console")
    for mark in (r"^## ", r"^\| ", r"^```"):
        assert len(re.findall(mark, english, re.M)) == len(re.findall(mark, korean, re.M)), mark
    assert set(re.findall(r"--[a-z][a-z-]+", english)) == set(re.findall(r"--[a-z][a-z-]+", korean))


@pytest.mark.parametrize("guide", KOREAN)
def test_guides_have_the_same_parts(guide: str) -> None:
    english, korean = ((ROOT / folder / guide).read_text(encoding="utf-8") for folder in ("docs", "docs/ko"))
    for mark in (r"^##+ ", r"^\| ", r"^```", r"^- ", r"^\d\. "):
        assert len(re.findall(mark, english, re.M)) == len(re.findall(mark, korean, re.M)), mark
    assert set(re.findall(r"--[a-z][a-z-]+", english)) == set(re.findall(r"--[a-z][a-z-]+", korean))


@pytest.mark.parametrize("readme", READMES)
def test_readmes_are_short(readme: str) -> None:
    assert len((ROOT / readme).read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), link


def test_the_tree_names_every_module() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## The tree")[1]
    modules = {path.name for path in (ROOT / "daedap").rglob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"[\w]+\.py\b", tree)) - {"conftest.py", "toys.py"} == modules
