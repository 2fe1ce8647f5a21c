"""The search on instant trials: fake models whose quality depends on the learning rate only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pytest
from conftest import PAIRS

from daedap.config import ModelOptions, TrainOptions
from daedap.errors import SettingsError
from daedap.evaluation.metrics import characters
from daedap.model.language_model import TorchModel
from daedap.training.planner import Plan
from daedap.tuning.objective import split_dev
from daedap.tuning.result import SearchResult, VersusDefaults, search_result, study_page
from daedap.tuning.study import SearchSpace, TrialRunner, default_trial, open_study, run_trials, space_around
from daedap.types import Float64Array, Pair

pytestmark = pytest.mark.slow

SELECTION, COMPARISON = split_dev(PAIRS, [str(row) for row in range(len(PAIRS))])
PLAN = Plan(rows=60, epochs=3, layers=6, blocks=6)
ANSWER_OF = {pair.question: pair.answer for pair in PAIRS}


@dataclass(frozen=True)
class FakeModel:
    """Two bits a character, and so many bits less after another question."""

    attention: float
    bits: float = 2.0

    def log2_probability(self, pairs: Sequence[Pair]) -> Float64Array:
        size = characters([pair.answer for pair in pairs])
        other = np.array([ANSWER_OF[pair.question] != pair.answer for pair in pairs])
        return np.stack([-self.bits * size - self.attention * other, size], axis=1)


def space() -> SearchSpace:
    return space_around(ModelOptions(), TrainOptions(num_train_epochs=3), PLAN, "full", 1e-3, epochs=True)


def train(model_options: ModelOptions, train_options: TrainOptions, watch: Any) -> TorchModel:
    """The higher the learning rate, the better."""
    rate = train_options.learning_rate or 0.0
    if rate > 3.9e-3:
        raise SettingsError("The loss is no longer a number.")
    model = cast("TorchModel", FakeModel(1000 * rate))
    for epoch in range(1, train_options.epochs + 1):
        watch(epoch, model)
    return model


def study(folder: Path) -> AbstractContextManager[optuna.Study]:
    return open_study(None, folder, "s", {}, {"fraction": 0.5, "epochs": None})


def runner(train_function: Any = train) -> TrialRunner:
    return TrialRunner(space(), None, SELECTION, COMPARISON, train_function)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[optuna.Study]:
    with study(tmp_path_factory.mktemp("study")) as opened:
        run_trials(opened, runner(), seconds=60, max_trials=25, seed=1)
        yield opened


@pytest.fixture(scope="module")
def result(searched: optuna.Study) -> SearchResult:
    return search_result(searched, 30, COMPARISON)


def test_the_defaults_come_first_and_are_beaten(searched: optuna.Study, result: SearchResult) -> None:
    assert searched.trials[0].user_attrs["default"]
    assert {name: searched.trials[0].params[name] for name in space().defaults} == space().defaults
    assert (result.default.number, result.chosen) == (0, result.best)
    assert float(result.best.settings["learning_rate"]) > 2e-3
    assert result.against.verdict == "better"
    assert result.against.high < 0


def test_trials_end_early_fail_and_are_counted(result: SearchResult) -> None:
    counts = result.counts
    assert counts["pruned"] > 0
    assert counts["finished"] + counts["pruned"] == 25
    assert sum(counts.values()) == len(result.trials)
    assert all(one.score is not None for one in result.trials if one.state in ("complete", "pruned"))


def test_importance(result: SearchResult) -> None:
    assert next(iter(result.importance)) == "learning_rate"
    assert sum(result.importance.values()) == pytest.approx(1)


def test_it_ends_in_time_and_is_continued(tmp_path: Path) -> None:
    with study(tmp_path) as opened:
        run_trials(opened, runner(), seconds=0, max_trials=None, seed=1)
        assert len(opened.trials) == 1, "the defaults are tried however little time there is"
    with study(tmp_path) as opened:
        run_trials(opened, runner(), seconds=60, max_trials=4, seed=1)
        tried = opened.trials
        assert len(tried) >= 4
        run_trials(opened, runner(), seconds=60, max_trials=4, seed=1)
        assert opened.trials == tried
        assert default_trial(opened)
        assert search_result(opened, 30, COMPARISON).importance == {}, "four trials tell nothing"


def test_the_same_seed_tries_the_same(tmp_path: Path) -> None:
    tried = []
    for name in "ab":
        with study(tmp_path / name) as opened:
            run_trials(opened, runner(), seconds=60, max_trials=5, seed=3)
            tried.append([trial.params for trial in opened.trials])
    assert tried[0] == tried[1]


def test_defaults_that_can_not_be_trained(tmp_path: Path) -> None:
    def refuse(model_options: ModelOptions, train_options: TrainOptions, watch: Any) -> TorchModel:
        raise SettingsError("No training row fits.")

    message = r"The defaults can't be trained: No training row fits\."
    with study(tmp_path) as opened, pytest.raises(SettingsError, match=message):
        run_trials(opened, runner(refuse), seconds=60, max_trials=5, seed=1)


def test_programming_errors_are_raised(tmp_path: Path) -> None:
    def wrong(model_options: ModelOptions, train_options: TrainOptions, watch: Any) -> TorchModel:
        raise ValueError("a mistake")

    with study(tmp_path) as opened, pytest.raises(ValueError, match="a mistake"):
        run_trials(opened, runner(wrong), seconds=60, max_trials=5, seed=1)


def test_a_model_that_writes_worse_is_not_chosen(tmp_path: Path) -> None:
    def verbose(model_options: ModelOptions, train_options: TrainOptions, watch: Any) -> TorchModel:
        better = (train_options.learning_rate or 0.0) != 1e-3
        return cast("TorchModel", FakeModel(60.0 if better else 0.0, 2.1 if better else 2.0))

    with study(tmp_path) as opened:
        run_trials(opened, runner(verbose), seconds=60, max_trials=6, seed=1)
        result = search_result(opened, 30, COMPARISON)
    assert min(one.score or 9 for one in result.trials) < (result.default.score or 0)
    assert result.chosen == result.default == result.best
    assert result.against.verdict == "defaults"
    assert any(line.startswith("not better than the defaults: +0.000") for line in result.lines())


def test_verdicts() -> None:
    assert VersusDefaults(-0.1, -0.2, -0.01, 9).verdict == "better"
    assert VersusDefaults(-0.1, -0.2, 0.01, 9).verdict == "unclear"
    assert VersusDefaults(0.1, -0.2, 0.3, 9).verdict == "defaults"


def test_lines_and_json(result: SearchResult) -> None:
    lines = result.lines()
    assert lines[0].startswith(f"Study s: {len(result.trials)} trials (")
    assert lines[1] == "Each trial was trained on 30 rows (50%)."
    assert lines[2].startswith(f"Best, trial {result.best.number}: score {result.best.score:.3f} (defaults ")
    assert lines[3].startswith("better than the defaults: -")
    assert lines[4].startswith("Option importance: --learning-rate ")
    document = json.loads(json.dumps(result.to_json()))
    assert document["verdict"] == "better"
    assert len(document["trials"]) == len(result.trials)
    short = replace(result, epochs=2).lines()[1]
    assert short == "Each trial was trained on 30 rows (50%) for 2 epochs: there was no time for more."


# ---- the page ----


def test_the_page_needs_nothing_else(result: SearchResult) -> None:
    html = study_page(result, None, None)
    assert "default-src 'none'" in html
    assert not any(mark in html for mark in ("<script", "<link", "<img", "http://", "https://", "url(", "@import"))
    assert html.count("<svg") == 1
    assert html.count("<circle") == result.counts["finished"]
    assert html.count('class="track"') == len(result.importance)
    rows = html.partition('id="trials"')[2]
    assert rows.count("<tr") == len(result.trials) + 1
    assert "color-scheme: light dark" in html


def test_the_page_in_korean(result: SearchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "ko")
    html = study_page(replace(result, study="<b>봇</b>"), result.against, 7)
    assert '<html lang="ko">' in html
    assert "<h1>탐색 &lt;b&gt;봇&lt;/b&gt;</h1>" in html
    assert "기본 설정보다 낫습니다" in html
    assert "학습 결과 7번" in html
