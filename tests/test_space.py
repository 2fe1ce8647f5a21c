"""The search space, the time budget and the size of a trial."""

from __future__ import annotations

import optuna
import pytest

from daedap.config import ModelOptions, TrainOptions, TuneOptions
from daedap.errors import SettingsError
from daedap.training.planner import Plan
from daedap.tuning.search import TrialSize, choose_trial_size, divide_budget
from daedap.tuning.study import SearchSpace, Values, as_flag, as_flags, space_around

PLAN = Plan(rows=9000, epochs=5, layers=4, blocks=12, seconds=300.0, scoring=80.0)
USUAL = TrainOptions(num_train_epochs=5)


def axes(space: SearchSpace) -> set[str]:
    return {axis.name for axis in space.axes}


def around(
    model_options: ModelOptions = ModelOptions(),
    train_options: TrainOptions = USUAL,
    method: str = "lora",
    epochs: bool = True,
) -> SearchSpace:
    return space_around(model_options, train_options, PLAN, method, 5e-4, epochs=epochs)


def test_axes_by_default() -> None:
    names = {"learning_rate", "weight_decay", "dropout", "num_train_epochs", "layers", "augment"}
    assert axes(around()) == names | {"lora_r"}
    assert axes(around(method="full")) == names
    assert axes(around(epochs=False)) == (names | {"lora_r"}) - {"num_train_epochs"}


def test_options_that_were_set_are_not_searched() -> None:
    model_options = ModelOptions(layers=2, lora_r=8, dropout=0.1)
    train_options = TrainOptions(num_train_epochs=5, learning_rate=1e-4, weight_decay=0.1, augment=("typo",))
    space = around(model_options, train_options, epochs=False)
    assert space.axes == ()
    assert space.to_options({}) == (model_options, train_options)


def test_the_defaults_lie_inside_and_come_to_themselves() -> None:
    for method in ("lora", "full"):
        space = around(method=method)
        for axis in space.axes:
            if axis.choices:
                assert axis.default in axis.choices
            else:
                assert axis.low <= float(axis.default) <= axis.high
        model_options, train_options = space.to_options(space.defaults)
        assert (model_options.lora_r, model_options.lora_alpha, model_options.layers, model_options.dropout) == (
            16,
            32,
            4,
            0.0,
        )
        assert (train_options.learning_rate, train_options.augment, train_options.epochs) == (5e-4, (), 5)


def test_settings_of_a_trial() -> None:
    model_options, train_options = around().to_options(
        {"lora_r": 8, "augment": "polite,casual", "layers": 2, "learning_rate": 1e-3}
    )
    assert (model_options.lora_r, model_options.lora_alpha, model_options.layers) == (8, 16, 2)
    assert (train_options.augment, train_options.learning_rate, train_options.weight_decay) == (
        ("polite", "casual"),
        1e-3,
        0.01,
    )


def test_every_draw_can_be_trained() -> None:
    space = around()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(30):
        model_options, train_options = space.to_options(space.suggest(study.ask()))
        assert 1 <= (model_options.layers or 0) <= 6
        assert 1.25e-4 <= (train_options.learning_rate or 0) <= 2e-3
        assert 1 <= train_options.epochs <= 8


def test_flags() -> None:
    assert as_flag("num_train_epochs", 7) == "--num-train-epochs 7"
    values: Values = {"learning_rate": 0.00123456, "augment": "none", "dropout": 0.1}
    assert as_flags(values) == "--learning-rate 0.00123 --dropout 0.1"


# ---- how large a trial is ----


def test_a_budget_is_divided() -> None:
    hour = divide_budget(PLAN, 3600)
    assert hour.final_run == pytest.approx(1.1 * 380)
    assert hour.default_training == 300
    assert hour.search + hour.final_run + hour.default_training == 3600
    short = divide_budget(PLAN, 600)
    assert (short.search, short.final_run, short.default_training) == (300, 300, 0)


def test_more_time_makes_larger_trials() -> None:
    sizes = [choose_trial_size(PLAN, seconds, 20, 500, epochs_set=False) for seconds in (100, 1000, 2000, 4000, 90_000)]
    fractions = [size.fraction for size in sizes if size.epochs is None]
    assert fractions == sorted(fractions)
    assert sizes[-1] == TrialSize(1.0, None)
    assert sizes[0].epochs == 2, "too little time to search for the epochs"
    assert round(9000 * sizes[0].fraction) >= 64
    fixed = choose_trial_size(PLAN, 100, 20, 500, epochs_set=True)
    assert fixed.epochs is None


def test_trials_fit_into_the_time() -> None:
    size = choose_trial_size(PLAN, 3000, 20, 500, epochs_set=False)
    learned = size.fraction * PLAN.rows * PLAN.epochs * PLAN.seconds / (PLAN.rows * PLAN.epochs)
    assert 20 * learned < 3000
    assert size.fraction > 0.2


def test_nonsense_is_refused() -> None:
    with pytest.raises(SettingsError, match="--trials 0"):
        TuneOptions(trials=0)
    with pytest.raises(SettingsError, match="letters, digits"):
        TuneOptions(study="../x")
    assert TuneOptions(study="상담-봇.2").study == "상담-봇.2"
