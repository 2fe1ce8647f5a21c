"""Plans: measured on this machine and fitted into a budget."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import toys
from conftest import write_csv

from daedap.cli import run as cli
from daedap.model.base import load_base
from daedap.model.device import Machine
from daedap.model.trainable import with_lora
from daedap.runs import Run
from daedap.training.planner import Costs, Plan, choose_plan, indexing_seconds, scoring_seconds
from daedap.training.profiling import measure_costs

CPU = Machine("cpu", "fp32", 1, "")
REQUEST = Plan(rows=10_000, epochs=5, layers=12, blocks=12)
COSTS = Costs(step=0.001, trained=0.001, frozen=0.0003)
Output = pytest.CaptureFixture[str]


def test_without_a_budget_nothing_is_reduced() -> None:
    plan = choose_plan(COSTS, REQUEST, layers=None, epochs=None)
    assert replace(plan, seconds=0.0, requested=0.0) == REQUEST
    assert plan.seconds == pytest.approx(10_000 * 5 * 0.013)
    assert plan.lines() == [
        "10,000 of 10,000 rows × 5 epochs, top 12 of 12 layers: about 10.8 min for training, 0.0 min for the rest."
    ]


@pytest.mark.parametrize("minutes", [20, 8, 5, 3, 1, 0.5, 0.2])
def test_a_plan_fits_into_its_budget(minutes: float) -> None:
    plan = choose_plan(COSTS, replace(REQUEST, budget=60 * minutes), layers=None, epochs=None)
    assert plan.seconds <= 60 * minutes
    assert (len(plan.lines()) == 1) == (minutes > 11), "reductions are reported"


def test_time_for_the_evaluation_is_reserved() -> None:
    request = replace(REQUEST, budget=600.0, scoring=scoring_seconds(COSTS, 12, 1000))
    assert choose_plan(COSTS, request, layers=None, epochs=None).seconds <= 600 - request.scoring
    few, many = indexing_seconds(1_000, dev_rows=500), indexing_seconds(10_000, dev_rows=500)
    assert many > indexing_seconds(10_000, dev_rows=50) > few > 0, "a bi-encoder needs rows and dev rows"


def test_expected_time_of_the_evaluation() -> None:
    """Of the run's model and its base: 192 answers and 640 candidates each; 2,000 candidates for the weights."""
    costs = COSTS._replace(head=0.002)
    row, candidate = 12 * 0.0003 + 0.002, 0.6 * 12 * 0.0003 + 0.002
    answers = 32 * (0.4 + 20 * row)
    assert scoring_seconds(costs, 12, 1000) == pytest.approx(2 + 384 * row + 3280 * candidate + answers)
    assert scoring_seconds(costs, 12, 1000, models=1) == pytest.approx(2 + 192 * row + 2640 * candidate + answers)
    assert scoring_seconds(costs, 12, 10) < scoring_seconds(costs, 12, 1000) / 4
    assert scoring_seconds(costs, 12, 0) == 0


def test_an_extended_index_takes_less_time() -> None:
    assert indexing_seconds(10_000, dev_rows=500, extended=True) < indexing_seconds(10_000, dev_rows=500) / 3


def test_less_time_means_less_work() -> None:
    plans = [
        choose_plan(COSTS, replace(REQUEST, budget=60 * minutes), layers=None, epochs=None)
        for minutes in (20, 5, 2, 0.3)
    ]
    work = [plan.fraction * plan.epochs * plan.layers for plan in plans]
    assert work == sorted(work, reverse=True)
    assert plans[0].layers == 12
    assert plans[0].epochs == 5


def test_the_users_choices_are_kept() -> None:
    plan = choose_plan(COSTS, replace(REQUEST, budget=100.0), layers=3, epochs=4)
    assert (plan.layers, plan.epochs) == (3, 4)
    assert plan.fraction < 1


def test_too_small_a_budget_is_reported() -> None:
    plan = choose_plan(COSTS, replace(REQUEST, budget=0.1), layers=None, epochs=None)
    assert plan.seconds > 0.1
    assert "training ends when the time is over" in plan.lines()[2]


@pytest.mark.parametrize("name", list(toys.BASES))
def test_every_architecture_can_be_measured(tmp_path: Path, name: str) -> None:
    base = load_base(str(toys.BASES[name](tmp_path / name)))
    model = with_lora(base.model, rank=2, alpha=4, dropout=0.0, layers=None)
    prompt = base.prompt(100)
    costs = measure_costs(model, [prompt.example(pair) for pair in toys.PAIRS], CPU)
    assert costs.frozen > 0
    assert costs.head > 0
    assert costs.step + costs.trained > costs.frozen / 2
    assert all(weight.grad is None for weight in model.parameters())


def test_the_budget_is_recorded_in_the_run(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "qa.csv")
    words = ["train", str(file), "--base", "fresh", "--num-train-epochs", "2", "--no-torch-compile", "--no-evaluate"]
    assert cli([*words, "--budget", "2m", "--runs", str(tmp_path)]) == 0
    run = Run(tmp_path / "0001")
    assert run.state["plan"]["budget"] == 120
    assert run.config.train.budget == timedelta(minutes=2)


@pytest.mark.parametrize("value", ["0s", "-5m"])
def test_an_empty_budget_is_refused(tmp_path: Path, capsys: Output, value: str) -> None:
    assert (
        cli(["train", str(write_csv(tmp_path / "qa.csv")), f"--budget={value}", "--runs", str(tmp_path / "runs")]) == 1
    )
    assert "must be longer than nothing" in capsys.readouterr().err
