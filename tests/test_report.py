from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import PAIRS, write_csv

import daedap
from daedap.cli import run as cli
from daedap.errors import RunError, SettingsError
from daedap.evaluation.diagnose import diagnose
from daedap.evaluation.report import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Series,
    choose_samples,
    make_chart,
    report_page,
)
from daedap.evaluation.run_record import read_run_record
from daedap.files import write_json
from daedap.i18n import speaks_korean
from daedap.runs import Json, Run

Output = pytest.CaptureFixture[str]
SECTIONS = ["diagnosis", "plan", "curves", "scores", "parts", "samples", "data", "settings", "licence"]
ATTACK = "<script>alert('안녕')</script>"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page taken apart: tags, attributes and text, every tag closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.sections: dict[str, str] = {}
        self._open: list[str] = []
        self._section = ""
        self.feed(html)
        self.close()
        assert self._open == [], "a tag is left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.sections[self._section] = self.sections.get(self._section, "") + data


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    shutil.copytree(trained.folder, tmp_path / "runs" / "0001")
    return Run(tmp_path / "runs" / "0001")


@pytest.fixture
def html(run: Run) -> str:
    return daedap.report(1, runs=run.folder.parent).file.read_text(encoding="utf-8")


def test_sections_and_contents(run: Run, html: str) -> None:
    page = Page(html)
    assert [name for name in page.sections if name] == SECTIONS
    manifest = run.manifest
    assert f"{manifest['headline']['bpc']:.3f}" in page.sections["scores"]
    assert all(
        name in page.sections["scores"] for name in ("seen answers", "unseen answers", "label 0", "bot", "retrieval")
    )
    assert f"{100 * manifest['headline']['hits_at_1']:.1f}" in html.partition('<section id="diagnosis">')[0], (
        "the bot's"
    )
    assert manifest["base"]["licence"] in page.sections["licence"]
    assert "--num-train-epochs" in page.sections["settings"]
    changed = re.findall(r"class=changed><td><code>(.*?)</code>", html)
    assert {"--num-train-epochs", "--learning-rate"} <= set(changed)
    assert "--augment" not in changed, "an empty list in the file is the default's empty tuple"
    assert "rows/s" in page.sections["plan"]
    assert page.tags["svg"] == 4
    assert page.tags["circle"] == manifest["training"]["epochs"]
    shown = re.findall(r'<div class="question">(.*?)</div>', html)
    lines = (run.folder / "evaluation" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert shown
    rows = {row["question"]: row for row in map(json.loads, lines)}
    assert set(shown) <= rows.keys()
    assert all(rows[question]["replies"]["bot"] in page.sections["samples"] for question in shown)


def test_no_external_resources(html: str) -> None:
    page = Page(html)
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object"}
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "onload", "onclick"}
    assert not re.search(r"https?://|url\(|@import", html)
    assert "default-src 'none'" in html
    assert "color-scheme: light dark" in html


def test_text_is_escaped(run: Run) -> None:
    record = read_run_record(run)
    rows = tuple(
        {**row, "question": ATTACK, "replies": {"bot": ATTACK, "model": ATTACK}, "label": ATTACK} for row in record.rows
    )
    examples = [{"line": 2, "value": ATTACK}]
    doctor = {**record.doctor, "findings": [{"kind": "blank", "action": "dropped", "count": 1, "examples": examples}]}
    manifest = {**record.manifest, "data": {**record.manifest["data"], "file": ATTACK}}
    hostile = replace(
        record,
        rows=rows,
        doctor=doctor,
        manifest=manifest,
        labels={ATTACK: 3, "0": 60},
        common_answer=ATTACK,
        common_share=0.9,
    )
    html = report_page(hostile, diagnose(hostile))
    page = Page(html)
    assert not page.tags["script"]
    assert ATTACK in page.sections["samples"]
    assert ATTACK in page.sections["diagnosis"]
    assert ATTACK in page.sections["data"]
    assert not any(ATTACK in value for _, value in page.attributes)


def test_korean(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "ko")
    report = daedap.report(runs=run.folder.parent)
    html = report.file.read_text(encoding="utf-8")
    assert '<html lang="ko">' in html
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == [
        "진단",
        "계획과 실제",
        "곡선",
        "점수",
        "무엇이 답하는가",
        "답변 예시",
        "데이터",
        "설정",
        "베이스 모델과 라이선스",
    ]
    assert any(line.startswith(("심각: ", "주의: ")) for line in report.lines())


def test_a_korean_run_is_reported_in_korean_in_any_locale(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAEDAP_LANG")
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    report = daedap.report(runs=run.folder.parent)
    assert '<html lang="ko">' in report.file.read_text(encoding="utf-8")
    assert any(line.startswith(("심각: ", "주의: ")) for line in report.lines())
    assert not speaks_korean()


def test_lines_and_json(run: Run, capsys: Output) -> None:
    runs = str(run.folder.parent)
    assert cli(["report", "--runs", runs]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    rows = run.manifest["rows"]["train"]
    assert first == str(run.folder / "report.html")
    assert any(line.startswith(f"warning: There are few training rows. {rows} training rows.") for line in lines)
    assert cli(["report", "1", "--runs", runs, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == first
    assert len(document["findings"]) == len(lines)
    assert document["findings"][0].keys() == {"rule", "severity", "message", "evidence", "advice"}
    assert document["record"]["manifest"] == run.manifest


def test_a_report_is_replaced_and_nothing_else_is(run: Run, tmp_path: Path) -> None:
    runs, out = run.folder.parent, tmp_path / "보고서.html"
    first = daedap.report(1, out=str(out), runs=runs).file.read_bytes()
    assert daedap.report(run.folder, out=out, runs=runs).file.read_bytes() == first
    assert not (run.folder / "report.html").exists()
    run.check_files()
    file = write_csv(tmp_path / "qa.csv")
    before = file.read_bytes()
    with pytest.raises(SettingsError, match="no report"):
        daedap.report(1, out=file, runs=runs)
    with pytest.raises(SettingsError, match="folder"):
        daedap.report(1, out=tmp_path, runs=runs)
    assert file.read_bytes() == before


def child(run: Run, number: int, parent: str) -> Run:
    folder = run.folder.parent / f"{number:04d}"
    shutil.copytree(run.folder, folder)
    write_json(folder / "manifest.json", {**run.manifest, "number": number, "parent": parent})
    write_json(folder / "config.json", replace(run.config, parent=parent).to_json())
    return Run(folder)


def test_lineage(run: Run) -> None:
    second = child(run, 2, "0001")
    third = read_run_record(child(second, 3, str(second.folder)))
    assert [ancestor.name for ancestor in third.ancestors] == ["0002", "0001"]
    assert third.scores["parent"] == third.scores["model"]
    assert third.scores["parent_bot"] == third.scores["bot"]
    text = Page(report_page(third, [])).sections
    assert "← 0001" in text["plan"]
    assert "parent" in text["scores"]
    assert "No problem found by any" in text["diagnosis"]
    shutil.rmtree(run.folder)
    orphan = read_run_record(second)
    assert [ancestor.headline for ancestor in orphan.ancestors] == [None]
    assert "parent" not in orphan.scores
    assert "no longer there" in Page(report_page(orphan, [])).sections["plan"]


def test_a_parent_scored_on_the_same_rows_is_the_one_to_show(run: Run) -> None:
    second = child(run, 2, "0001")
    scores = second.document("evaluation/scores.json")
    beside = {name: {**slices, "all": {}} for name, slices in scores["scores"].items()}
    changed = {**scores, "scores": {**scores["scores"], "parent": beside["model"]}}
    write_json(second.folder / "evaluation" / "scores.json", changed)
    assert read_run_record(second).scores["parent"]["all"] == {}


def test_a_run_that_was_not_scored(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "qa.csv", PAIRS[:20])
    options: dict[str, Any] = {"dev_size": 0, "test_size": 0, "num_train_epochs": 1, "precision": "fp32"}
    run = daedap.train(file, base="fresh", runs=tmp_path / "runs", **options)
    report = daedap.report(run.folder)
    text = Page(report.file.read_text(encoding="utf-8")).sections
    assert "This run was not scored." in text["scores"]
    assert "No test row was answered." in text["samples"]
    assert {"unscored", "unwatched"} <= {finding.rule for finding in report.findings}


def test_unreadable_runs_are_refused(run: Run) -> None:
    runs = run.folder.parent
    with pytest.raises(RunError, match="no such run"):
        daedap.report(7, runs=runs)
    with (run.folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"event": "dev", "st')
    assert len(read_run_record(run).dev) == run.manifest["training"]["epochs"], (
        "a line that a kill cut short is left out"
    )
    (run.folder / "log.jsonl").write_text("깨진 줄\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"log\.jsonl can't be read"):
        daedap.report(1, runs=runs)
    write_json(run.folder / "config.json", {**run.config.to_json(), "command": "pretrain"})
    with pytest.raises(RunError, match="is a base"):
        read_run_record(run)


def test_an_average_is_shown(run: Run) -> None:
    for epoch in (2, 3):
        run.note("average", step=8 * epoch, epoch=epoch, loss=4.5 / epoch)
    training = {**run.manifest["training"], "averaged": True, "best_epoch": 3}
    write_json(run.folder / "manifest.json", {**run.manifest, "training": training})
    shown = Page(daedap.report(1, runs=run.folder.parent).file.read_text(encoding="utf-8"))
    assert "(kept: the average up to 3)" in shown.sections["plan"]
    assert "average" in shown.sections["curves"]
    assert "2.250" in shown.sections["curves"]


# ---- charts ----


def chart_of(*values: float, wide: bool = False) -> Chart:
    chart = make_chart("손실", [Series("학습", [(10.0 * n, value) for n, value in enumerate(values, 1)])], wide=wide)
    assert chart
    return chart


def points_of(chart: Chart) -> list[tuple[float, float]]:
    pairs = chart.curves[0].path.removeprefix("M").split("L")
    return [(float(x), float(y)) for x, y in (pair.split() for pair in pairs)]


def test_points_and_ticks() -> None:
    chart = chart_of(4.0, 1.0, 2.0)
    assert [tick.text for tick in chart.up] == ["0", "1", "2", "3", "4"]
    assert (chart.up[0].at, chart.up[-1].at) == (HEIGHT - BOTTOM, TOP)
    (_, first), (_, second), (last, third) = points_of(chart)
    assert (first, last) == (TOP, WIDTH - RIGHT)
    assert second == pytest.approx(chart.up[1].at, abs=0.1)
    assert third == pytest.approx(chart.up[2].at, abs=0.1)


def test_a_scale_is_logarithmic_only_where_it_may_be() -> None:
    assert [tick.text for tick in chart_of(2.0, 900.0, wide=True).up] == ["1", "10", "100", "1000"]
    assert [tick.text for tick in chart_of(2.0, 900.0).up] == ["0", "500", "1000"]
    assert chart_of(0.0, 900.0, wide=True).up[0].text == "0"


def test_long_curves_are_downsampled() -> None:
    points = points_of(chart_of(*(1 + n % 2 for n in range(100_000))))
    assert len(points) <= 300
    assert len({y for _, y in points}) == 1, "neighbours are put together at their mean"


def test_nan_is_left_out() -> None:
    assert len(points_of(chart_of(2.0, math.nan, 1.0, math.inf))) == 2
    assert make_chart("손실", [Series("학습", []), Series("dev", [(1, math.nan)])]) is None


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e-6, 1e-7], [3.0], [1e9, 2.0]])
def test_any_values_can_be_chart_of(values: list[float]) -> None:
    for x, y in points_of(chart_of(*values)):
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT - BOTTOM


def test_dotted_series_show_their_values() -> None:
    chart = make_chart("손실", [Series("dev", [(9, 3.25), (18, 2.5)], dotted=True)])
    assert chart
    assert [label for _, _, label in chart.curves[0].dots] == ["3.250", "2.500"]


# ---- samples ----

ANSWER = "따뜻한 물로 씻고 일찍 주무세요."


def sample_row(name: str, reply: str | None, place: float = 1.0) -> Json:
    replies = {} if reply is None else {"model": reply}
    return {"id": name, "answer": ANSWER, "replies": replies, "shares": {"model": {"mrr": [1 / place, 1.0]}}}


def test_the_most_and_the_least_similar_replies() -> None:
    rows = [
        sample_row("far", "네"),
        sample_row("same", ANSWER),
        sample_row("near", "따뜻한 물로 씻어요."),
        sample_row("unasked", None),
    ]
    good, bad = choose_samples(rows, count=1)
    assert [sample.row["id"] for sample in good] == ["same"]
    assert [sample.row["id"] for sample in bad] == ["far"]
    assert good[0].likeness == 100


def test_the_bots_reply_is_shown_rather_than_the_models() -> None:
    shares = {"model": {"mrr": [0.1, 1.0]}, "bot": {"mrr": [1.0, 1.0]}}
    record = {**sample_row("one", "네"), "replies": {"model": "네", "bot": ANSWER}, "shares": shares}
    ([sample], _) = choose_samples([record])
    assert (sample.likeness, sample.place) == (100, 1)


def test_of_equal_likeness_the_better_rank_is_better() -> None:
    [good], [bad] = choose_samples(
        [sample_row("last", "", 20), sample_row("middle", "", 3), sample_row("first", "", 1)], count=1
    )
    assert (good.row["id"], bad.row["id"]) == ("first", "last")
    assert bad.place == 20


def test_no_row_is_sample_twice() -> None:
    for size in range(6):
        good, bad = choose_samples([sample_row(str(n), ANSWER[:n]) for n in range(size)], count=4)
        ids = [sample.row["id"] for sample in (*good, *bad)]
        assert len(ids) == len(set(ids))
        assert len(ids) >= size - 1
