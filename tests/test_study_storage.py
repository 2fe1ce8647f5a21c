"""Where studies are kept: SQLite, and a real PostgreSQL that two machines share, one of which dies."""

from __future__ import annotations

import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import toys
from conftest import write_csv

from daedap.errors import SettingsError, StorageError
from daedap.tuning.study import open_storage, open_study

pytestmark = pytest.mark.slow

SIGNATURE = {"file": "1234", "recipe": {"seed": 42}}
TRIAL_SIZE = {"fraction": 0.5, "epochs": None}
OPTIONS = ["--dev-size", "0.3", "--precision", "fp32", "--device", "cpu", "--budget", "5m", "--no-finish"]


def test_a_study_is_made_once_and_found_again(tmp_path: Path) -> None:
    with open_study(None, tmp_path / "봇", "봇", SIGNATURE, TRIAL_SIZE) as first:
        first.enqueue_trial({"x": 1.0})
    with open_study(None, tmp_path / "봇", "봇", SIGNATURE, {"fraction": 1.0, "epochs": 3}) as again:
        assert again.user_attrs["scale"] == TRIAL_SIZE, "who made it says what a trial is"
        assert len(again.trials) == 1
    assert [path.name for path in (tmp_path / "봇").iterdir()] == ["study.db"]


def test_another_question_is_refused(tmp_path: Path) -> None:
    with open_study(None, tmp_path, "qa", SIGNATURE, TRIAL_SIZE):
        pass
    other = {**SIGNATURE, "recipe": {"seed": 7}}
    message = r"--study qa: that study was started with other settings \(recipe\)"
    with pytest.raises(SettingsError, match=message), open_study(None, tmp_path, "qa", other, TRIAL_SIZE):
        pass


def test_databases_that_can_not_be_used(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"postgresql://me:secret@127.0.0.1:{free.getsockname()[1]}/nothing"
        with pytest.raises(StorageError, match="the database can't be used") as message, open_storage(url):
            pass
    assert "secret" not in str(message.value)
    for nonsense in ("nonsense", "nosuchdatabase://host/x"):
        with pytest.raises(SettingsError, match=f"--storage {nonsense}"), open_storage(nonsense):
            pass
    (tmp_path / "study.db").write_bytes(b"not a database" * 1000)
    refused = pytest.raises(StorageError, match="the database can't be used")
    with refused, open_study(None, tmp_path, "qa", SIGNATURE, TRIAL_SIZE):
        pass


def test_a_killed_trial_is_tried_again(tmp_path: Path) -> None:
    with open_study(None, tmp_path, "qa", SIGNATURE, TRIAL_SIZE) as study:
        study.enqueue_trial({"x": 0.25}, user_attrs={"default": True})
        killed = study.ask()
        killed.suggest_float("x", 0, 1)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:  # its last sign of life, an hour ago
        message = "INSERT INTO trial_heartbeats (trial_id, heartbeat) VALUES (?, datetime('now', '-1 hour'))"
        database.execute(message, (killed._trial_id,))
    with open_study(None, tmp_path, "qa", SIGNATURE, TRIAL_SIZE) as study:
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
        assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
        assert (study.trials[1].value, study.trials[1].user_attrs) == (0.25, {"default": True})


# ---- PostgreSQL ----


def test_machines_that_begin_at_once_share_one_study(postgresql: str, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from daedap.tuning.study import open_study
with open_study(sys.argv[1], Path(sys.argv[2]), "together", {SIGNATURE}, {{"fraction": sys.argv[2]}}) as study:
    print(study.user_attrs["scale"]["fraction"])
"""
    commands = [[sys.executable, "-c", code, postgresql, str(tmp_path / name)] for name in "abc"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    message = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(message) == 1, "all of them go by what the first one said"


def worker(url: str, file: Path, base: Path, runs: Path, trials: int) -> subprocess.Popen[str]:
    words = ["tune", str(file), "--base", str(base), "--storage", url, "--study", "둘이서", "--runs", str(runs)]
    command = [sys.executable, "-m", "daedap", *words, *OPTIONS, "--trials", str(trials)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(url: str) -> dict[int, Any]:
    """Trials that are over, by number."""
    with open_storage(url) as database:
        if "둘이서" not in (study.study_name for study in database.get_all_studies()):
            return {}
        study = optuna.load_study(study_name="둘이서", storage=database)
        over = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        return {one.number: (one.value, one.params, one.user_attrs) for one in study.get_trials(states=over)}


def test_two_workers_one_of_which_is_killed(postgresql: str, tmp_path: Path) -> None:
    file, base = write_csv(tmp_path / "qa.csv"), toys.llama(tmp_path / "base")
    doomed, other = (worker(postgresql, file, base, tmp_path / name, 16) for name in ("a", "b"))
    end = time.monotonic() + 100
    while len(before := ended(postgresql)) < 3:
        assert time.monotonic() < end, doomed.communicate(timeout=1)[1]
        time.sleep(0.1)
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    message, errors = other.communicate(timeout=100)
    assert other.returncode == 0, errors
    after = ended(postgresql)
    assert len(after) >= 16
    assert {number: after[number] for number in before} == before, "what was finished is still database, as it was"
    assert "Study 둘이서: " in message
    assert not list((tmp_path / "b").glob("[0-9]*")), "--no-finish trains no run"
    assert not list((tmp_path / "b").glob(".tune-*"))
