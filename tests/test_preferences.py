from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from daedap.errors import RunError, StorageError
from daedap.evaluation.preferences import Preference, append_preference, count_preferences, on_answers, read_preferences

ANSWERS = {"0001": "우산을 챙기세요.", "0002": "비가 오네요"}


def preference(winner: str | None = "0002", row: str = "a") -> Preference:
    return Preference("2026-01-02T03:04:05+00:00", row, "비 와?", ANSWERS, ("0002", "0001"), winner)


def test_appended_preferences_are_read(tmp_path: Path) -> None:
    path = tmp_path / "새 폴더" / "verdicts.jsonl"
    assert read_preferences(path) == []
    preferences = [preference(), preference(None), preference("0001", "b")]
    for one in preferences:
        append_preference(path, one)
    assert read_preferences(path) == preferences
    assert "우산을 챙기세요." in path.read_text(encoding="utf-8")


def test_a_truncated_last_line_is_ignored_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    append_preference(path, preference())
    whole = path.read_bytes()
    for cut in (1, 20, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        assert read_preferences(path) == [preference()]
    append_preference(path, preference("0001"))
    assert read_preferences(path) == [preference(), preference("0001")]
    path.write_bytes(whole[:30])
    append_preference(path, preference())
    assert path.read_bytes() == whole


def test_several_processes_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    code = """
import sys
from pathlib import Path
from daedap.evaluation.preferences import Preference, append_preference
for row in range(20):
    append_preference(Path(sys.argv[1]), Preference("", f"{sys.argv[2]} {row}", "비 와?" * 500, {}, ("1", "2"), None))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, path, name]) for name in "가나"]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert {one.id for one in read_preferences(path)} == {f"{name} {row}" for name in "가나" for row in range(20)}


@pytest.mark.parametrize("line", ["{", "[]", '{"order": ["1"]}', '{"order": ["1", "2"], "answers": {}}', ""])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "verdicts.jsonl"
    append_preference(path, preference())
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match=r"verdicts\.jsonl, line 2: not a preference"):
        read_preferences(path)


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    for work in (lambda: append_preference(tmp_path, preference()), lambda: read_preferences(tmp_path)):
        with pytest.raises(StorageError, match="can't be written"):
            work()


def test_preferences_on_other_answers_do_not_count() -> None:
    preferences = [preference(), preference(row="b")]
    assert on_answers(preferences, dict(reversed(ANSWERS.items())), "a") == [preference()]
    assert on_answers(preferences, {**ANSWERS, "0002": "비가 와요"}, "a") == []
    assert on_answers(preferences, {**ANSWERS, "0003": "비가 오네요"}, "a") == []


def test_count() -> None:
    preferences = [preference("0002")] * 9 + [preference("0001")] + [preference(None)] * 4
    counts = count_preferences(preferences, "0001", "0002")
    assert (counts.first, counts.second, counts.ties, counts.share) == (1, 9, 4, 0.9)
    # Clopper-Pearson for 9 of 10, and 2 × (1 + 10) / 2^10.
    assert (counts.low, counts.high) == pytest.approx((0.5550, 0.9975), abs=1e-4)
    assert counts.p == pytest.approx(22 / 1024)
    assert counts.clear
    assert not count_preferences(preferences[5:], "0001", "0002").clear
    ties = count_preferences(preferences[10:], "0001", "0002")
    assert (ties.ties, ties.share, ties.p, ties.clear) == (4, None, None, False)


def test_lines_are_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    append_preference(path, preference())
    fields = {"time", "id", "question", "answers", "order", "winner"}
    assert json.loads(path.read_text(encoding="utf-8")).keys() == fields
