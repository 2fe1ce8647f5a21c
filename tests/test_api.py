"""The Python API: functions with the options of the commands, and a stub that says so to editors and type checkers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from typing_extensions import assert_type

import daedap
from daedap.api import FUNCTIONS, PUBLIC, flat, parse_duration, stub
from daedap.config import AnswerOptions, TrainOptions
from daedap.errors import SettingsError

STUB = Path(daedap.__file__).with_suffix(".pyi")


def test_the_stub_is_up_to_date() -> None:
    assert STUB.read_text(encoding="utf-8") == stub(), "run: python -m daedap.api > daedap/__init__.pyi"


def test_all_public_names_are_there() -> None:
    assert {*PUBLIC, *FUNCTIONS} <= set(dir(daedap))
    assert all(getattr(daedap, name).__doc__ for name in (*PUBLIC, *FUNCTIONS))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = daedap.trian  # type: ignore[attr-defined]


def typed() -> None:
    """Not run: checked by mypy. A wrong name or type of an option is an error, and results have their own types."""
    run = daedap.train("qa.csv", num_train_epochs=3, budget="30m", lora_r=8, augment=["typo"], from_=1)
    assert_type(run, daedap.Run)
    bot = daedap.Bot.open(run.folder, answer_options=AnswerOptions(fallback="off"))
    assert_type(bot.reply("오늘 너무 피곤해"), daedap.Reply)
    assert_type(daedap.evaluate(run=2, rows=100), daedap.Evaluation)
    assert_type(daedap.train(Path("qa.csv"), learning_rate=1e-3, evaluate=False).folder, Path)
    daedap.train("qa.csv", nmu_train_epochs=3)  # type: ignore[call-arg]
    daedap.train("qa.csv", num_train_epochs="three")  # type: ignore[arg-type]
    daedap.train("qa.csv", augment=["jokes"])  # type: ignore[list-item]
    daedap.check()  # type: ignore[call-arg]


def test_options_are_keywords() -> None:
    def command(file: Path, *, train_options: TrainOptions = TrainOptions(), runs: Path | None = None) -> object:
        return file, train_options, runs

    made = flat(command)("qa.csv", budget="1h30m", augment="typo", runs="runs")
    assert made == (Path("qa.csv"), TrainOptions(budget=timedelta(minutes=90), augment=["typo"]), Path("runs"))
    with pytest.raises(TypeError, match="unexpected keyword argument 'sede'"):
        flat(command)("qa.csv", sede=7)


def test_times() -> None:
    assert parse_duration("45s") == timedelta(seconds=45)
    assert parse_duration("1d2h3.5m") == timedelta(days=1, hours=2, minutes=3.5)
    assert parse_duration("1h1h") == timedelta(hours=2)
    for text in ("", "soon", "30", "-5m", "5 m"):
        with pytest.raises(SettingsError, match="not a time"):
            parse_duration(text)
