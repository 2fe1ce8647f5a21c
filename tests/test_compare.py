from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_runs import CONFIG, TEST, TRAIN, Score, all_second, fake_run, row_terms

import daedap
from daedap.cli import run as cli
from daedap.errors import RunError, SettingsError
from daedap.evaluation.compare import (
    CommonRows,
    Difference,
    common_rows,
    count_replied,
    differences,
    differing_replies,
    read_evaluated_run,
)
from daedap.files import write_lines
from daedap.runs import Run

Output = pytest.CaptureFixture[str]


def shared(*runs: Run) -> CommonRows:
    first, second = (read_evaluated_run(run) for run in runs)
    return common_rows(first, second)


def metrics(tmp_path: Path, first: Score, second: Score, **options: Any) -> dict[str, Difference]:
    return differences(shared(fake_run(tmp_path, first, **options), fake_run(tmp_path, second, **options)))["all"]


def command_json(capsys: Output, *arguments: object) -> Any:
    capsys.readouterr()
    assert cli([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_metric_has_its_direction(tmp_path: Path) -> None:
    result = metrics(
        tmp_path,
        lambda row: {**row_terms(2, bits=30), "ended": (1.0, 1.0)},
        lambda row: {**row_terms(1, bits=20, polite=False), "bland": (1.0, 1.0), "ended": (1.0, 1.0)},
    )
    verdicts = {metric: one.verdict for metric, one in result.items()}
    assert verdicts == {
        "bpc": "better",
        "hits_at_1": "better",
        "mrr": "better",
        "bland": "worse",
        "polite": "less",
        "ended": "none",
        "unique": None,
    }
    bits = result["bpc"]
    assert (bits.first, bits.second, bits.difference, bits.low, bits.high, bits.n) == (3, 2, -1, -1, -1, 20)


def test_the_interval_is_paired(tmp_path: Path) -> None:
    """Rows differ far more from each other than the two runs do on each of them."""
    result = metrics(
        tmp_path, lambda row: row_terms(2, bits=10 * row + 1), lambda row: row_terms(2, bits=10 * row + row % 3)
    )
    bits = result["bpc"]
    assert bits.difference == pytest.approx(-0.005)
    assert bits.low is not None
    assert bits.high is not None
    assert -0.05 < bits.low < 0 < bits.high < 0.05
    assert bits.verdict == "none"


def length(result: Difference) -> float:
    assert result.low is not None
    assert result.high is not None
    return result.high - result.low


def test_components_are_resampled_as_a_whole(tmp_path: Path) -> None:
    def better(row: int) -> dict[str, tuple[float, float]]:
        return row_terms(2, bits=20 + (-8 if row % 10 < 6 else 8))

    alone = metrics(tmp_path / "a", all_second, better)["bpc"]
    grouped = metrics(tmp_path / "b", all_second, better, components=[row % 10 for row in range(20)])["bpc"]
    assert alone.difference == grouped.difference
    assert length(grouped) > 1.2 * length(alone)


def test_few_components_have_no_interval(tmp_path: Path) -> None:
    result = metrics(tmp_path / "a", all_second, lambda row: row_terms(1), test=TEST[:9])
    assert {(one.low, one.high, one.verdict) for one in result.values()} == {(None, None, None)}
    ten = metrics(tmp_path / "b", all_second, lambda row: row_terms(1), test=TEST[:10])
    assert ten["mrr"].verdict == "better"


def test_a_nan_score_is_null(tmp_path: Path, capsys: Output) -> None:
    fake_run(tmp_path)
    fake_run(tmp_path, lambda row: row_terms(2, bits=math.nan if row == 3 else 20))
    entry = command_json(capsys, "compare", 1, 2, "--runs", tmp_path)["comparisons"][0]
    bits = entry["differences"]["all"]["bpc"]
    assert (bits["first"], bits["second"], bits["difference"], bits["verdict"]) == (2, None, None, None)
    assert {one["id"]: one["bits_per_character"] for one in entry["samples"]}.get(TEST[3].id) is None
    assert cli(["compare", "1", "2", "--runs", str(tmp_path)]) == 0
    assert re.search(r"bits per character +2\.000 +\? +\?", capsys.readouterr().out)


def test_slices(tmp_path: Path) -> None:
    runs = fake_run(tmp_path), fake_run(tmp_path, lambda row: row_terms(1 if row % 2 else 2))
    result = differences(shared(*runs))
    assert {name: part["mrr"].second for name, part in result.items()} == {"all": 0.75, "seen": 0.5, "unseen": 1.0}
    assert {name: part["mrr"].n for name, part in result.items()} == {"all": 20, "seen": 10, "unseen": 10}


def test_rows_measured_by_one_run_only_do_not_count(tmp_path: Path) -> None:
    def ranks_five(row: int) -> dict[str, tuple[float, float]]:
        return row_terms(1) if row < 12 else {"bpc": (20.0, 10.0)}

    result = metrics(tmp_path, all_second, ranks_five)
    assert (result["mrr"].n, result["mrr"].first, result["mrr"].second, result["bpc"].n) == (12, 0.5, 1, 20)


def test_rankings_on_other_test_rows_are_not_compared(tmp_path: Path, capsys: Output) -> None:
    fake_run(tmp_path)
    fake_run(tmp_path, lambda row: row_terms(1), test=TEST[2:])
    entry = command_json(capsys, "compare", 1, 2, "--runs", tmp_path)["comparisons"][0]
    assert (entry["rows"], entry["alone"], entry["same_test"]) == (18, 2, False)
    assert entry["differences"]["all"].keys() == {"bpc", "bland", "polite", "unique"}
    assert all(one["places"] is None for one in entry["samples"])
    assert cli(["compare", "1", "2", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 rows are left out: only one of the runs was tested on them." in out
    assert "daedap evaluate --run RUN --data FILE" in out


def with_a_bot(run: Run) -> Run:
    """The run with a bot in its evaluation: every answer right, no likelihoods."""
    path = run.folder / "evaluation" / "rows.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record["shares"]["bot"] = {"mrr": [1, 1], "polite": [1, 1]}
        record["replies"]["bot"] = f"{run.number}번 봇의 대답"
    write_lines(path, records)
    return run


def test_the_bot_is_compared_where_both_have_it(tmp_path: Path) -> None:
    first, second, model = with_a_bot(fake_run(tmp_path)), with_a_bot(fake_run(tmp_path)), fake_run(tmp_path)
    result = shared(first, second)
    systems = {metric: one.system for metric, one in differences(result)["all"].items()}
    assert {name for name, system in systems.items() if system == "bot"} == {"mrr", "polite", "unique"}
    assert {name for name, system in systems.items() if system == "model"} == {"bpc", "hits_at_1", "bland"}
    assert differing_replies(result, {})[0].replies == ("1번 봇의 대답", "2번 봇의 대답")
    assert {one.system for one in differences(shared(first, model))["all"].values()} == {"model"}
    assert differing_replies(shared(first, model), {}) == []


def test_the_largest_rank_differences_come_first(tmp_path: Path) -> None:
    first = fake_run(tmp_path, reply=lambda row: f"첫째 {row}")
    second = fake_run(
        tmp_path,
        lambda row: row_terms({4: 1, 7: 20}.get(row, 2), bits=99 if row == 9 else 20),
        reply=lambda row: "첫째 3!!" if row == 3 else f"둘째 {row}",
        rows=15,
    )
    result = shared(first, second)
    listed = differing_replies(result, {pair.id: pair.question for pair in TEST})
    assert count_replied(result) == 15
    assert len(listed) == 14, "punctuation is no difference"
    assert [one.id for one in listed[:3]] == [TEST[row].id for row in (4, 7, 9)]
    top = listed[0]
    assert (top.question, top.right, top.replies) == (TEST[4].question, TEST[4].answer, ("첫째 4", "둘째 4"))
    assert (top.places, top.bits) == ((2, 1), (2, 2))


def test_settings_that_differ(tmp_path: Path, capsys: Output) -> None:
    fake_run(tmp_path)
    changed = replace(CONFIG, file="new.csv", train=replace(CONFIG.train, learning_rate=1e-3), evaluate=False)
    fake_run(tmp_path, config=changed).update_state(seconds={"prepare": 7.0})
    fake_run(tmp_path, train=TRAIN[:1])
    settings = command_json(capsys, "compare", 2, 1, 3, "--runs", tmp_path)["settings"]
    assert settings == {
        "file": ["new.csv", "qa.csv", "qa.csv"],
        "train.learning_rate": [1e-3, None, None],
        "training.seconds": [12.0, 11.0, 13.0],
        "data.train": [2, 2, 1],
    }
    assert cli(["compare", "2", "1", "3", "--runs", str(tmp_path)]) == 0
    lines = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert ["what differs", "run 2", "run 1", "run 3"] in lines
    assert ["--learning-rate", "0.001", "-", "-"] in lines
    assert ["training rows", "2", "2", "1"] in lines


def test_tables_and_replies_as_text(tmp_path: Path, capsys: Output) -> None:
    fake_run(tmp_path, reply=lambda row: "글쎄요")
    fake_run(tmp_path, lambda row: row_terms(1 if row == 5 else 3), reply=lambda row: TEST[row].answer)
    assert cli(["compare", "1", "2", "--samples", "1", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Run 2 compared with run 1, on the 20 rows that both were tested on." in lines
    head = next(line for line in lines if line.startswith("all pairs (n=20)"))
    row = next(line for line in lines if line.startswith("mean reciprocal rank"))
    assert re.split(r" {2,}", head) == ["all pairs (n=20)", "run 1", "run 2", "difference"]
    assert re.fullmatch(r"mean reciprocal rank +0\.500 +0\.367 +-0\.133 \[-0\.167, -0\.0\d+\] +worse", row)
    assert sum(line.startswith("mean reciprocal rank") for line in lines) == 3  # all, seen, unseen
    assert lines[-6:] == [
        "20 of 20 questions are answered differently. The largest differences in rank:",
        "",
        f"> {TEST[5].question}",
        f"  right answer    {TEST[5].answer}",
        "  run 1 (rank 2)  글쎄요",
        f"  run 2 (rank 1)  {TEST[5].answer}",
    ]


def test_korean(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "ko")
    fake_run(tmp_path)
    fake_run(tmp_path, lambda row: row_terms(1), reply=lambda row: "")
    assert cli(["compare", "1", "2", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"글자당 비트\(BPC\) +2\.000 +2\.000 +\+0\.000 \[\+0\.000, \+0\.000\] +뚜렷한 차이 없음", out)
    assert re.search(r"평균 역순위\(MRR\) .* 나아짐", out)
    assert "학습 결과 2 (정답 1위)  (아무 말 없음)" in out
    assert not re.search("[a-z]{4,} [a-z]{3,} [a-z]{3,}", out)


def test_runs_with_equal_replies(tmp_path: Path, capsys: Output) -> None:
    fake_run(tmp_path), fake_run(tmp_path)
    assert cli(["compare", "1", "2", "--runs", str(tmp_path)]) == 0
    assert "All 20 questions are answered alike." in capsys.readouterr().out


def test_real_runs(trained: Run, tmp_path: Path, capsys: Output) -> None:
    for name in ("0001", "0002"):
        shutil.copytree(trained.folder, tmp_path / name)
    manifest = {**trained.manifest, "number": 2, "training": {**trained.manifest["training"], "epochs": 5}}
    (tmp_path / "0002" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    document = command_json(capsys, "compare", 1, "latest", "--runs", tmp_path)
    assert document["settings"] == {"training.epochs": [6, 5]}
    entry = document["comparisons"][0]
    assert (entry["rows"], entry["answered"], entry["answered_differently"]) == (9, 9, 0)
    headline = trained.manifest["headline"]
    for metric in ("bpc", "question_gain", "hits_at_1", "mrr", "bland", "polite", "ended", "unique"):
        result = entry["differences"]["all"][metric]
        assert (result["first"], result["difference"]) == (pytest.approx(headline[metric]), 0)
    python = daedap.compare([1, tmp_path / "0002"], runs=str(tmp_path), samples=3)
    assert [run.number for run in python.runs] == [1, 2]
    assert "No intervals: 9 groups of questions" in "\n".join(python.lines())


def test_runs_of_two_folders_are_named_by_folder(tmp_path: Path) -> None:
    first, second = fake_run(tmp_path / "집"), fake_run(tmp_path / "회사", lambda row: row_terms(1))
    result = daedap.compare([first.folder, second.folder], runs=tmp_path)
    assert result.names == [str(first.folder), str(second.folder)]
    assert result.lines()[-1] == "All 20 questions are answered alike."


def test_mistakes(tmp_path: Path, capsys: Output) -> None:
    runs = [fake_run(tmp_path) for _ in range(3)]
    named: Any
    for named, message in (([1], "at least two runs"), ([2, runs[1].folder], "named twice")):
        with pytest.raises(SettingsError, match=message):
            daedap.compare(named, runs=tmp_path)
    with pytest.raises(SettingsError, match="--blind compares two runs, not 3"):
        daedap.compare([1, 2, 3], blind=True, runs=tmp_path)
    with pytest.raises(SettingsError, match="--samples -1"):
        daedap.compare([1, 2], samples=-1, runs=tmp_path)
    with pytest.raises(RunError, match="no such run"):
        daedap.compare([1, 9], runs=tmp_path)
    shutil.rmtree(runs[1].folder)
    (fake_run(tmp_path).folder / "manifest.json").unlink()  # interrupted
    assert cli(["compare", "1", "4", "--runs", str(tmp_path)]) == 1
    assert cli(["compare", "--runs", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_without_scores_gets_them_from_evaluate(trained: Run, tmp_path: Path, capsys: Output) -> None:
    for name in ("0001", "0002"):
        shutil.copytree(trained.folder, tmp_path / name)
    manifest = trained.manifest
    kept = {name: size for name, size in manifest["files"].items() if not name.startswith("evaluation")}
    (tmp_path / "0002" / "manifest.json").write_text(json.dumps({**manifest, "files": kept}), encoding="utf-8")
    shutil.rmtree(tmp_path / "0002" / "evaluation")
    assert cli(["compare", "1", "2", "--runs", str(tmp_path)]) == 1
    remedy = re.search(r"--no-evaluate\. Score it: daedap (.*)\n", capsys.readouterr().err)
    assert remedy
    assert cli([*remedy[1].split(), "--runs", str(tmp_path)]) == 0
    entry = command_json(capsys, "compare", 1, 2, "--runs", tmp_path)["comparisons"][0]
    assert entry["differences"]["all"]["bpc"]["difference"] == pytest.approx(0, abs=1e-9)
