"""Killed at random moments, as by a full memory or a flat battery: nothing that was finished is lost, nothing is half.

A few kills of each command; DAEDAP_KILLS=20 for more, DAEDAP_KILLS_SEED=1 for others. Their moments are spread over the
time that the command takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import write_csv
from fake_runs import fake_run

import daedap.runs as run_store
from daedap.evaluation.compare import read_evaluated_run, read_preferences
from daedap.evaluation.report import REPORT_MARKER
from daedap.evaluation.run_record import read_run_record
from daedap.files import digest
from daedap.runs import Run

pytestmark = pytest.mark.slow

KILLS, SEED = (int(os.environ.get(name, "0")) for name in ("DAEDAP_KILLS", "DAEDAP_KILLS_SEED"))
SLOW, QUICK = KILLS or 1, KILLS or 3
"""Kills of a command that loads PyTorch, and of one that doesn't."""
RECIPE = ["--base", "fresh", "--test-size", "0.15", "--dev-size", "0.1", "--precision", "fp32", "--no-torch-compile"]
RECIPE += ["--num-train-epochs", "3", "--per-device-train-batch-size", "8", "--save-steps", "4", "--logging-steps", "2"]


@dataclass(frozen=True)
class Runs:
    """Runs, the first of which was fake_run without being disturbed."""

    file: Path
    runs: Path
    seconds: float
    """What its training took."""

    @property
    def first(self) -> Run:
        return Run(self.runs / "0001")

    def train(self) -> list[str]:
        return ["train", str(self.file), *RECIPE]


def command(words: Sequence[str], runs: Path, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "DAEDAP_LANG": "en", "PYTHONUTF8": "1"}
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
    return subprocess.Popen([sys.executable, "-m", "daedap", *words, "--runs", str(runs)], env=environment, **options)


def finish(words: Sequence[str], runs: Path) -> float:
    """Let a command come to its end; returns the seconds that it took."""
    start = time.perf_counter()
    process = command(words, runs, stderr=subprocess.PIPE)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 0, message.decode()
    return time.perf_counter() - start


def kill(words: Sequence[str], runs: Path, moment: float) -> None:
    """Kill a command after so many seconds; one that has ended by then must have ended well."""
    process = command(words, runs)
    try:
        assert process.wait(moment) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def moments(kills: int, seconds: float) -> list[float]:
    rng = random.Random(SEED)
    return [(number + rng.random()) / kills * seconds for number in range(kills)]


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): digest(path) for path in folder.rglob("*") if path.is_file()}


def unfinished(runs: Path) -> list[str]:
    """What bears a temporary name; not in a folder without settings, which was given up before its training began."""
    given_up = {run.folder for run in run_store.list_runs(runs) if not (run.folder / "config.json").exists()}
    return [str(path) for path in runs.rglob(".*.tmp") if not given_up & set(path.parents)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("killed")
    file, runs = write_csv(folder / "대화.csv"), folder / "runs"
    return Runs(file, runs, finish(["train", str(file), *RECIPE], runs))


def test_train(place: Runs, tmp_path: Path) -> None:
    """Killed, resumed, killed again, …: what comes out is what comes out undisturbed, byte for byte."""
    runs = tmp_path / "runs"
    shutil.copytree(place.first.folder, runs / "0001")
    done = contents(runs / "0001")
    for moment in moments(SLOW, place.seconds):
        kill(["train", "--resume"] if begun(runs) else place.train(), runs, moment)
        for run in run_store.list_runs(runs):
            if run.complete:
                run.check_files()
                assert read_evaluated_run(run).rows
        assert contents(runs / "0001") == done
    finish(["train", "--resume"] if begun(runs) else place.train(), runs)
    assert not begun(runs)
    complete = [run for run in run_store.list_runs(runs) if run.complete]
    assert len(complete) >= 2
    for run in complete:
        run.check_files()
        assert digest(run.folder / "model" / "model.safetensors") == digest(
            place.first.folder / "model" / "model.safetensors"
        )
        assert len(read_run_record(run).dev) == 3
    assert not unfinished(runs)


def begun(runs: Path) -> bool:
    """Whether there is a run to go on with."""
    return any(not run.complete and (run.folder / "config.json").exists() for run in run_store.list_runs(runs))


def test_evaluate(place: Runs, tmp_path: Path) -> None:
    run = unscored(place, tmp_path)
    words = ["evaluate", "--rows", "5"]
    seconds = finish(words, tmp_path)
    scores = steady(run)
    for moment in moments(SLOW, seconds):
        shutil.rmtree(run.folder / "evaluation", ignore_errors=True)
        kill(words, tmp_path, moment)
        run.check_files()
        if (run.folder / "evaluation").exists():
            assert steady(run) == scores
    shutil.rmtree(run.folder / "evaluation", ignore_errors=True)
    finish(words, tmp_path)
    assert steady(run) == scores
    assert not unfinished(tmp_path)


def unscored(place: Runs, runs: Path) -> Run:
    """The first run, as `--no-evaluate` would have left it."""
    run = Run(Path(shutil.copytree(place.first.folder, runs / "0001")))
    shutil.rmtree(run.folder / "evaluation")
    manifest = run.manifest
    files = {name: size for name, size in manifest["files"].items() if not name.startswith("evaluation")}
    (run.folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}), encoding="utf-8")
    return run


def steady(run: Run) -> dict[str, Any]:
    """Its scores, without those that are times."""
    assert len(read_evaluated_run(run).rows) > 5
    scores = run.document("evaluation/scores.json")["scores"]
    return {system: {m: s for m, s in found["all"].items() if "latency" not in m} for system, found in scores.items()}


def test_report(place: Runs, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(place.first.folder, tmp_path / "0001")))
    page = run.folder / "report.html"
    seconds = finish(["report"], tmp_path)
    for moment in moments(QUICK, seconds):
        page.unlink(missing_ok=True)
        kill(["report"], tmp_path, moment)
        run.check_files()
        if page.exists():
            assert_whole(page)
    finish(["report"], tmp_path)
    assert_whole(page)
    assert not unfinished(tmp_path)


def assert_whole(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert REPORT_MARKER in text[:200]
    assert text.rstrip().endswith("</html>")


def test_compare_blind(tmp_path: Path) -> None:
    """Every verdict after which the next question was shown is there."""
    runs = [fake_run(tmp_path, reply=lambda row: f"가 {row}"), fake_run(tmp_path, reply=lambda row: f"나 {row}")]
    file = tmp_path / "verdicts.jsonl"
    start = time.perf_counter()
    assert asked(tmp_path, 60) == 20
    for moment in moments(QUICK, time.perf_counter() - start):
        if len(read_preferences(file)) == 20:
            file.unlink()
        before = len(read_preferences(file))
        shown = asked(tmp_path, moment)
        kept = len(read_preferences(file))
        assert max(shown - 1, 0) <= kept - before <= shown
        assert len({verdict.id for verdict in read_preferences(file)}) == kept, "a question was asked twice"
    asked(tmp_path, 60)
    assert len(read_preferences(file)) == len(file.read_text(encoding="utf-8").splitlines()) == 20
    for run in runs:
        run.check_files()


def asked(runs: Path, moment: float) -> int:
    """Answer one question after the other until the end, or the process is killed; returns how many there were."""
    pipe = subprocess.PIPE
    process = command(["compare", "1", "2", "--blind"], runs, stdin=pipe, stderr=pipe, bufsize=0)
    killer = threading.Timer(moment, process.kill)
    killer.start()
    message = b""
    with process:
        assert process.stderr
        assert process.stdin
        while said := process.stderr.read(65536):
            message += said
            if message.endswith(b" > "):
                time.sleep(0.02)  # else all answers are given in one moment
                give(process, b"1\n")
    killer.cancel()
    return len(re.findall(rb"\n\[\d+/20\] ", message))


def give(process: subprocess.Popen[bytes], answer: bytes) -> None:
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):  # killed meanwhile
        process.stdin.write(answer)
