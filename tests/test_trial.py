"""Trials train like `daedap train` and leave the base unchanged."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import toys
from conftest import PAIRS

from daedap.config import ModelOptions, SplitOptions, TrainOptions
from daedap.data.split import RunRows, split, write_split
from daedap.files import write_json
from daedap.model.language_model import TorchModel, open_trained
from daedap.runs import Run, TrainConfig
from daedap.training.finetune import finetune
from daedap.training.planner import indexing_seconds
from daedap.training.trial import TrialContext, prepare_trials

PARTS = split(PAIRS, SplitOptions(dev_size=0.2, test_size=0.1))
RECIPE = TrainOptions(num_train_epochs=2, per_device_train_batch_size=8, learning_rate=2e-3)


@pytest.fixture(params=["lora", "full"])
def model_options(request: pytest.FixtureRequest, tmp_path: Path) -> ModelOptions:
    return ModelOptions(base=str(toys.llama(tmp_path / "base")), method=request.param, precision="fp32", device="cpu")


@pytest.fixture
def context(model_options: ModelOptions, tmp_path: Path) -> TrialContext:
    folder = tmp_path / "runs" / ".tune-1"
    write_split(folder, PARTS)
    return prepare_trials(folder, model_options, RECIPE, PARTS.rows("train"))


def nothing(epoch: int, model: TorchModel) -> None:
    pass


def test_the_plan_of_a_whole_training(context: TrialContext, model_options: ModelOptions) -> None:
    assert (context.method, context.learning_rate) == (model_options.method, 2e-3)
    assert (context.plan.rows, context.plan.epochs, context.plan.blocks) == (len(PARTS.rows("train")), 2, 2)
    assert context.plan.seconds > 0
    indexing = indexing_seconds(context.plan.rows, dev_rows=len(PARTS.rows("dev")))
    assert context.plan.scoring > indexing + 1, "the evaluation of the test rows is planned"
    longer = context.expected_plan(model_options, TrainOptions(num_train_epochs=20), PARTS.rows("train"))
    assert longer.seconds > 2 * context.plan.seconds


def test_calibration_by_a_real_epoch(context: TrialContext, model_options: ModelOptions) -> None:
    calibrated = context.calibrated(model_options, RECIPE, len(PARTS.rows("train")))
    assert calibrated.slowdown >= 1
    assert calibrated.plan.seconds == pytest.approx(calibrated.slowdown * context.plan.seconds)
    slower = replace(calibrated, slowdown=1000.0).expected_plan(model_options, RECIPE, PARTS.rows("train"))
    assert slower.seconds > 10 * context.plan.seconds


def test_trials_are_independent(context: TrialContext, model_options: ModelOptions) -> None:
    first = context.train(model_options, RECIPE, nothing).log2_probability(PAIRS)
    other = context.train(
        model_options, TrainOptions(num_train_epochs=1, learning_rate=1e-2), nothing
    ).log2_probability(PAIRS)
    again = context.train(model_options, RECIPE, nothing).log2_probability(PAIRS)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_a_trial_trains_like_a_run(context: TrialContext, model_options: ModelOptions, tmp_path: Path) -> None:
    trial = context.train(model_options, RECIPE, nothing).log2_probability(PAIRS)
    run = Run(tmp_path / "runs" / "0001")
    write_split(run.folder, PARTS)
    config = TrainConfig(file="", model=model_options, train=RECIPE)
    write_json(run.folder / "config.json", config.to_json())
    run.update_state(plan=asdict(context.plan))
    finetune(run, RunRows(run.folder))
    np.testing.assert_allclose(trial, open_trained(run).log2_probability(PAIRS), rtol=1e-3)


def test_each_epoch_is_reported_and_no_checkpoint_is_left(context: TrialContext, model_options: ModelOptions) -> None:
    epochs = []
    context.train(model_options, RECIPE, lambda epoch, model: epochs.append(epoch))
    assert epochs == [1, 2]
    assert not list((context.folder / "checkpoints").glob("step-*"))


def test_the_callback_may_stop_a_trial(context: TrialContext, model_options: ModelOptions) -> None:
    def enough(epoch: int, model: TorchModel) -> None:
        raise KeyError(epoch)

    with pytest.raises(KeyError, match="1"):
        context.train(model_options, RECIPE, enough)


def test_trials_share_the_activation_cache(context: TrialContext, model_options: ModelOptions) -> None:
    top = ModelOptions(base=model_options.base, method=model_options.method, layers=1, precision="fp32", device="cpu")
    for rate in (1e-3, 2e-3):
        context.train(top, TrainOptions(num_train_epochs=1, learning_rate=rate), nothing)
    held = list((context.folder.parent / "cache").glob("*.states"))
    assert len(held) == 2, "of the training rows and the dev rows, once"
