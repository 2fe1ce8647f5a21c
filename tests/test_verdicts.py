from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from daedap.errors import RunError, StorageError
from daedap.evaluation.preferences import Verdict, add, count, on, read

ANSWERS = {"0001": "우산을 챙기세요.", "0002": "비가 오네요"}


def verdict(winner: str | None = "0002", row: str = "a") -> Verdict:
    return Verdict("2026-01-02T03:04:05+00:00", row, "비 와?", ANSWERS, ("0002", "0001"), winner)


def test_what_is_added_is_read(tmp_path: Path) -> None:
    path = tmp_path / "새 폴더" / "verdicts.jsonl"
    assert read(path) == []
    given = [verdict(), verdict(None), verdict("0001", "b")]
    for one in given:
        add(path, one)
    assert read(path) == given
    assert "우산을 챙기세요." in path.read_text(encoding="utf-8")


def test_a_half_line_is_passed_over_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    add(path, verdict())
    whole = path.read_bytes()
    for cut in (1, 20, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        assert read(path) == [verdict()]
    add(path, verdict("0001"))
    assert read(path) == [verdict(), verdict("0001")]
    path.write_bytes(whole[:30])
    add(path, verdict())
    assert path.read_bytes() == whole


def test_several_processes_add_at_once(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    code = """
import sys
from pathlib import Path
from daedap.evaluation.preferences import Verdict, add
for row in range(20):
    add(Path(sys.argv[1]), Verdict("", f"{sys.argv[2]} {row}", "비 와?" * 500, {}, ("1", "2"), None))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, path, name]) for name in "가나"]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert {one.id for one in read(path)} == {f"{name} {row}" for name in "가나" for row in range(20)}


@pytest.mark.parametrize("line", ["{", "[]", '{"order": ["1"]}', '{"order": ["1", "2"], "answers": {}}', ""])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "verdicts.jsonl"
    add(path, verdict())
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match=r"verdicts\.jsonl, line 2: not a verdict"):
        read(path)


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    for work in (lambda: add(tmp_path, verdict()), lambda: read(tmp_path)):
        with pytest.raises(StorageError, match="can't be written"):
            work()


def test_verdicts_on_other_answers_do_not_count() -> None:
    given = [verdict(), verdict(row="b")]
    assert on(given, dict(reversed(ANSWERS.items())), "a") == [verdict()]
    assert on(given, {**ANSWERS, "0002": "비가 와요"}, "a") == []
    assert on(given, {**ANSWERS, "0003": "비가 오네요"}, "a") == []


def test_count() -> None:
    given = [verdict("0002")] * 9 + [verdict("0001")] + [verdict(None)] * 4
    found = count(given, "0001", "0002")
    assert (found.first, found.second, found.ties, found.share) == (1, 9, 4, 0.9)
    # Clopper-Pearson for 9 of 10, and 2 × (1 + 10) / 2^10.
    assert (found.low, found.high) == pytest.approx((0.5550, 0.9975), abs=1e-4)
    assert found.p == pytest.approx(22 / 1024)
    assert found.clear
    assert not count(given[5:], "0001", "0002").clear
    ties = count(given[10:], "0001", "0002")
    assert (ties.ties, ties.share, ties.p, ties.clear) == (4, None, None, False)


def test_lines_are_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    add(path, verdict())
    fields = {"time", "id", "question", "answers", "order", "winner"}
    assert json.loads(path.read_text(encoding="utf-8")).keys() == fields
