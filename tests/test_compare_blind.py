from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import daedap_process
from fake_runs import TEST, fake_run

from daedap.cli import run as cli
from daedap.errors import RunError, StorageError
from daedap.evaluation.compare import (
    Preference,
    append_preference,
    count_preferences,
    on_answers,
    read_preferences,
)

Output = pytest.CaptureFixture[str]


def command_json(capsys: Output, *arguments: object) -> Any:
    capsys.readouterr()
    assert cli([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs; the second one has an empty reply to the last question."""
    fake_run(tmp_path, reply=lambda row: f"첫째의 {row}", test=TEST[:4])
    fake_run(tmp_path, reply=lambda row: "" if row == 3 else f"둘째의 {row}", test=TEST[:4])
    return tmp_path


def compare_blind(runs: Path, keys: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(keys))
    return cli(["compare", "1", "2", "--blind", "--runs", str(runs), *options])


def test_preferences_are_saved(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    assert compare_blind(runs, "1\n2\nhm\n=\nq\n", monkeypatch) == 0
    output = capsys.readouterr()
    preferences = read_preferences(runs / "verdicts.jsonl")
    assert [one.id for one in preferences] == sorted(pair.id for pair in TEST[:4])[:3]
    assert [one.winner for one in preferences] == [preferences[0].order[0], preferences[1].order[1], None]
    shown = re.findall(r"\n\[(\d)/4\] (.*)\n  1  (.*)\n  2  (.*)\n", output.err)
    assert [line[0] for line in shown] == ["1", "2", "3", "4"]
    for one, (_, question, *replies) in zip(preferences, shown, strict=False):
        assert question == one.question
        assert replies == [one.answers[run] or "(nothing)" for run in one.order]
        assert set(one.answers) == {"0001", "0002"}
    assert output.err.count("Which is better? 1, 2, = (alike), q (enough)") == 5
    assert "첫째" not in output.out
    assert re.match(r"Blind comparison: run 1 better \d times, run 2 better \d times, 1 ties\.\n", output.out)
    assert "no clear difference" in output.out


def test_the_order_is_random(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = set()
    for _ in range(8):
        compare_blind(runs, "=\n=\n=\n=\n", monkeypatch)
        orders |= {one.order for one in read_preferences(runs / "verdicts.jsonl")}
        (runs / "verdicts.jsonl").unlink()
    assert orders == {("0001", "0002"), ("0002", "0001")}, "32 questions in one order: 1 in 2,000,000,000"


def test_no_question_is_asked_twice(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    compare_blind(runs, "1\nㅂ\n", monkeypatch)
    capsys.readouterr()
    assert compare_blind(runs, "2\n2\n2\n2\n2\n", monkeypatch) == 0
    assert "4 questions are answered differently, 1 of them compared.\n\n[2/4]" in capsys.readouterr().err
    assert len({one.id for one in read_preferences(runs / "verdicts.jsonl")}) == 4
    compare_blind(runs, "1\n", monkeypatch)
    assert len(read_preferences(runs / "verdicts.jsonl")) == 4


def test_preferences_are_part_of_every_comparison(runs: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    document = command_json(capsys, "compare", 1, 2, "--runs", runs)["comparisons"][0]
    assert document["verdicts"]["share"] is None
    for one in document["samples"]:
        both = dict(zip(("0001", "0002"), one["replies"], strict=True))
        append_preference(
            runs / "verdicts.jsonl", Preference("", one["id"], one["question"], both, ("0001", "0002"), "0002")
        )
    counts = command_json(capsys, "compare", 1, 2, "--runs", runs)["comparisons"][0]["verdicts"]
    assert (counts["first"], counts["second"], counts["ties"], counts["p"]) == (0, 4, 0, 0.125)
    swapped = command_json(capsys, "compare", 2, 1, "--runs", runs)["comparisons"][0]["verdicts"]
    assert (swapped["first"], swapped["second"], swapped["share"]) == (4, 0, 0)
    assert cli(["compare", "1", "2", "--runs", str(runs)]) == 0
    assert "run 2 wins 100 % (interval of 95 %: 40 to 100, sign test p = 0.12): no clear difference." in (
        capsys.readouterr().out
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert command_json(capsys, "compare", 1, 2, "--blind", "--runs", runs)["comparisons"][0]["verdicts"] == counts


def test_preferences_on_a_deleted_run_do_not_count(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    compare_blind(runs, "1\n1\n1\n1\n", monkeypatch)
    shutil.rmtree(runs / "0002")
    fake_run(runs, reply=lambda row: f"새 둘째의 {row}", test=TEST[:4])
    verdicts = command_json(capsys, "compare", 1, 2, "--runs", runs)["comparisons"][0]["verdicts"]
    assert (verdicts["first"], verdicts["second"], verdicts["ties"]) == (0, 0, 0)


def test_a_question_after_a_conversation_is_shown_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    talk = [replace(pair, question="네", history=pair.messages) for pair in TEST[:1]]
    for name in ("첫째", "둘째"):
        fake_run(tmp_path, reply=lambda row, name=name: name, test=talk)  # type: ignore[misc]
    assert compare_blind(tmp_path, "", monkeypatch) == 0
    assert f"[1/1] {TEST[0].question}\n{TEST[0].answer}\n네\n" in capsys.readouterr().err


def test_killed_between_questions(runs: Path) -> None:
    command = [sys.executable, "-m", "daedap", "compare", "1", "2", "--blind", "--runs", str(runs)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONUTF8": "1", "DAEDAP_LANG": "ko"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdin
        assert process.stderr
        for question in (b"[1/4]", b"[2/4]", b"[3/4]"):
            while question not in process.stderr.readline():
                assert process.poll() is None
            if question != b"[3/4]":
                process.stdin.write(b"1\n")
                process.stdin.flush()
        process.kill()  # two preferences were given
        process.communicate()
    assert len(read_preferences(runs / "verdicts.jsonl")) == 2
    again = daedap_process("compare", "1", "2", "--blind", "--runs", str(runs), folder=runs)
    assert again.returncode == 0
    assert "4 questions are answered differently, 2 of them compared.\n\n[3/4]" in again.stderr


def test_ctrl_c_ends_the_questions(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    class Impatient(io.StringIO):
        def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
            if self.tell():
                raise KeyboardInterrupt
            return super().readline()

    monkeypatch.setattr("sys.stdin", Impatient("1\n"))
    assert cli(["compare", "1", "2", "--blind", "--runs", str(runs)]) == 0
    assert capsys.readouterr().out.startswith("Blind comparison: ")
    assert len(read_preferences(runs / "verdicts.jsonl")) == 1


def test_no_model_is_loaded(runs: Path) -> None:
    code = "import sys; from daedap.cli import run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, "compare", "1", "2", "--blind", "--runs", str(runs)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=True)
    assert not {"torch", "transformers", "kiwipiepy"} & set(done.stderr.splitlines()[-1].split())


# ---- the file of preferences ----

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
from daedap.evaluation.compare import Preference, append_preference
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
