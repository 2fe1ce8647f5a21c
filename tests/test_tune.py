"""`daedap tune` as a user has it: a study, a page, a run; killed and called again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import toys

import daedap
from daedap.cli import run as cli
from daedap.commands.tune import _epochs_left
from daedap.config import TrainOptions
from daedap.data.split import read_rows
from daedap.errors import SettingsError
from daedap.files import write_json
from daedap.runs import Run
from daedap.training.planner import Plan
from daedap.tuning.study import open_storage

pytestmark = pytest.mark.slow

Output = pytest.CaptureFixture[str]
KILLS = int(os.environ.get("DAEDAP_KILLS", "0")) or 2
OPTIONS = ["--dev-size", "0.3", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.llama(tmp_path_factory.mktemp("base"))


def words(qa: Path, base: Path, runs: Path, *more: str) -> list[str]:
    return ["tune", str(qa), "--base", str(base), "--runs", str(runs), *OPTIONS, *more]


def command_json(capsys: Output, arguments: list[str]) -> Any:
    capsys.readouterr()
    assert cli([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def finished(runs: Path) -> dict[int, Any]:
    """Trials that are over, by number, as the database has them."""
    found: dict[int, Any] = {}
    over = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    for file in runs.glob("studies/*/study.db"):
        with open_storage(f"sqlite:///{file}") as database:
            for name in (study.study_name for study in database.get_all_studies()):
                study = optuna.load_study(study_name=name, storage=database)
                found |= {one.number: (one.value, one.params, one.user_attrs) for one in study.get_trials(states=over)}
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_search_ends_in_a_run_and_goes_on(qa: Path, base: Path, tmp_path: Path, capsys: Output) -> None:
    command = words(qa, base, tmp_path, "--budget", "40s", "--trials")
    first = command_json(capsys, [*command, "3"])
    assert len(first["trials"]) >= 3
    assert first["trials"][0]["default"]
    page = Path(first["page"])
    assert page.parent == tmp_path / "studies" / first["study"]
    assert "daedap study" in page.read_text(encoding="utf-8")
    run = Run(tmp_path / "0001")
    assert run.config.study == f"{first['study']}:{first['chosen']['number']}"
    chosen = first["chosen"]["settings"]
    assert run.config.train.learning_rate == pytest.approx(chosen["learning_rate"])
    assert run.config.train.num_train_epochs == chosen["num_train_epochs"]
    assert run.config.model.dropout == chosen["dropout"]
    assert first["run"]["number"] == 1
    assert not list(tmp_path.glob(".tune-*"))

    before = contents(run.folder)
    second = command_json(capsys, [*command, "3"])
    assert second["trials"] == first["trials"], "the study was over"
    assert second["run"]["number"] == 1, "the same settings need no other run"
    third = command_json(capsys, [*command, "5", "--no-finish"])
    assert len(third["trials"]) >= 5
    assert third["trials"][:3] == first["trials"][:3]
    assert third["run"] is None
    assert contents(run.folder) == before
    assert cli([*command, "5", "--no-finish", "--study", first["study"], "--learning-rate", "1e-3"]) == 1
    assert "that study was started with other settings" in capsys.readouterr().err


def test_from_python_with_options(qa: Path, base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dev_size": 0.3, "precision": "fp32", "learning_rate": 2e-3, "num_train_epochs": 1}
    tuned = daedap.tune(qa, base=base, runs=tmp_path, trials=2, budget="1m", finish=False, study="봇", **options)
    assert tuned.run is None
    assert not {"learning_rate", "num_train_epochs"} & tuned.search.default.settings.keys()
    assert tuned.page == tmp_path / "studies" / "봇" / "tune.html"
    assert tuned.lines()[0].startswith("Study 봇: ")


def test_a_long_budget_compares_whole_trainings(qa: Path, base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dev_size": 0.3, "precision": "fp32", "learning_rate": 1e-5, "layers": 2}
    tuned = daedap.tune(qa, base=base, runs=tmp_path, trials=7, budget="20m", num_train_epochs=2, **options)
    assert tuned.run
    assert (tuned.whole is None) == tuned.search.chosen.default
    assert tuned.to_json()["run"]["number"] == 1


def test_too_few_dev_rows_leave_nothing_behind(qa: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dev rows are too few"):
        daedap.tune(qa, base=base, runs=tmp_path / "runs", dev_size=0.05)
    assert not (tmp_path / "runs").exists()


def test_epochs_that_there_is_time_for() -> None:
    plan = Plan(rows=100, epochs=6, layers=2, blocks=2, seconds=60.0, scoring=10.0)
    train_options = TrainOptions(num_train_epochs=6)
    assert [_epochs_left(train_options, plan, left) for left in (100, 70, 50, 1)] == [6, 6, 4, 1]
    assert _epochs_left(TrainOptions(num_train_epochs=6, augment=("typo", "spacing")), plan, 70) == 3


def test_the_run_that_was_begun_is_finished_first(qa: Path, base: Path, tmp_path: Path, capsys: Output) -> None:
    command = words(qa, base, tmp_path, "--budget", "40s", "--trials", "3")
    first = command_json(capsys, command)
    run = Run(tmp_path / "0001")
    (run.folder / "manifest.json").unlink()  # as if it had been killed right before
    again = command_json(capsys, command)
    assert again["run"]["number"] == 1
    assert again["trials"] == first["trials"]
    assert run.complete
    assert [path.name for path in sorted(tmp_path.glob("[0-9]*"))] == ["0001"]


def test_killed_at_random_moments(qa: Path, base: Path, tmp_path: Path) -> None:
    search = ["--budget", f"{KILLS}m", "--trials", str(3 * KILLS)]
    command = [sys.executable, "-m", "daedap", *words(qa, base, tmp_path, *search)]
    rng, seen, runs = random.Random(4), dict[int, Any](), dict[str, dict[str, bytes]]()
    for seconds in [rng.uniform(4, 9) for _ in range(KILLS)]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = finished(tmp_path)
        assert {number: now[number] for number in seen} == seen
        assert all(contents(tmp_path / name) == before for name, before in runs.items())
        seen, runs = now, {path.parent.name: contents(path.parent) for path in tmp_path.glob("*/manifest.json")}
    done = subprocess.run(command, env={**os.environ, "DAEDAP_LANG": "en"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    now = finished(tmp_path)
    assert len(now) >= 3 * KILLS
    assert {number: now[number] for number in seen} == seen
    assert all(contents(tmp_path / name) == before for name, before in runs.items())
    complete = [Run(path.parent) for path in tmp_path.glob("*/manifest.json")]
    assert len(complete) == 1
    complete[0].check_files()
    assert read_rows(complete[0].folder, "train")


def test_scratch_of_the_killed_is_swept(qa: Path, base: Path, tmp_path: Path) -> None:
    dead, young = tmp_path / ".tune-dead", tmp_path / ".tune-young"
    for folder in (dead, young):
        write_json(folder / "data" / "train.jsonl", {})
    os.utime(dead, (0, 0))
    daedap.tune(qa, base=base, runs=tmp_path, trials=1, budget="20s", finish=False, dev_size=0.3, num_train_epochs=1)
    assert [path.name for path in tmp_path.glob(".tune-*")] == [young.name]
