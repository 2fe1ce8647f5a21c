"""Each rule on a run that has the problem."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toys
from conftest import PAIRS, write_csv

import daedap
from daedap.evaluation.diagnose import RULES, diagnose, healthy
from daedap.evaluation.row_rules import ROW_RULES, SEVERITIES, Finding
from daedap.evaluation.run_record import RunRecord, read_run_record
from daedap.types import Pair

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {
    "base": "fresh",
    "precision": "fp32",
    "test_size": 0.2,
    "dev_size": 0.1,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "logging_steps": 2,
}
ROW_RULES_OF_PAIRS = {"rows_too_alike", "repeated_answers"}
"""The pairs of conftest are combinations of ten subjects and eight predicates, so these are right."""
BROKEN = ("diverged", "low_rate", "two_epochs", "memorized", "messy", "leaking", "budgeted")


class RunFactory:
    """Trains runs and reads their records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self, pairs: Sequence[Pair] = PAIRS, **options: Any) -> RunRecord:
        file = write_csv(self.folder / "qa.csv", pairs)
        return read_run_record(daedap.train(file, runs=self.folder / "runs", **{**QUICK, **options}))


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> RunFactory:
    return RunFactory(tmp_path_factory.mktemp("broken"))


@pytest.fixture(scope="module")
def good(factory: RunFactory) -> RunRecord:
    return factory.record(num_train_epochs=10)


@pytest.fixture(scope="module")
def diverged(factory: RunFactory) -> RunRecord:
    return factory.record(num_train_epochs=2, learning_rate=0.9, evaluate=False)


@pytest.fixture(scope="module")
def low_rate(factory: RunFactory) -> RunRecord:
    return factory.record(num_train_epochs=2, learning_rate=1e-6)


@pytest.fixture(scope="module")
def two_epochs(factory: RunFactory) -> RunRecord:
    """Two epochs, where it takes ten."""
    return factory.record(num_train_epochs=2, evaluate=False)


@pytest.fixture(scope="module")
def memorized(factory: RunFactory) -> RunRecord:
    """Pairs that have nothing to do with each other, memorized."""
    endless = {"early_stopping_patience": 0, "load_best_model_at_end": False}
    return factory.record(toys.PAIRS, num_train_epochs=4, evaluate=False, **endless)


@pytest.fixture(scope="module")
def messy(factory: RunFactory) -> RunRecord:
    """One answer nearly everywhere, the others casual; two rows with a label of their own."""
    answers = [
        "잘할 수 있을 거예요." if n % 10 < 7 else f"{pair.question[:3]} 그런 거야" for n, pair in enumerate(PAIRS)
    ]
    pairs = [replace(pair, answer=answer) for pair, answer in zip(PAIRS, answers, strict=True)]
    rare = [Pair("비가 올까?", "우산 챙겨", "날씨"), Pair("눈이 펑펑 온다", "길이 미끄러워", "날씨")]
    return factory.record([*pairs, *rare], num_train_epochs=3)


@pytest.fixture(scope="module")
def leaking(factory: RunFactory) -> RunRecord:
    doubled = [*PAIRS, *(Pair(f"{pair.question}!!", pair.answer) for pair in PAIRS)]
    return factory.record(doubled, split="random", test_size=0.3, dev_size=0, num_train_epochs=1, evaluate=False)


@pytest.fixture(scope="module")
def budgeted(factory: RunFactory) -> RunRecord:
    return factory.record(budget="1s", num_train_epochs=500, evaluate=False)


@pytest.fixture(scope="module")
def broken(request: pytest.FixtureRequest) -> list[RunRecord]:
    return [request.getfixturevalue(name) for name in BROKEN]


def finding_of(record: RunRecord, rule: str) -> Finding:
    return next(finding for finding in diagnose(record) if finding.rule == rule)


def rules(record: RunRecord) -> set[str]:
    return {finding.rule for finding in diagnose(record)}


def test_a_good_run(good: RunRecord) -> None:
    assert rules(good) == {"few_rows", *ROW_RULES_OF_PAIRS}, "80 rows are few, and nothing else is wrong"
    assert finding_of(good, "few_rows").evidence.startswith("62 training rows.")
    data = {**good.manifest["data"], "train": 10_000}
    many = replace(good, manifest={**good.manifest, "data": data}, pairs=())
    assert diagnose(many) == []
    assert str(len(RULES) + len(ROW_RULES)) in healthy()


def test_every_rule_is_found_in_a_broken_run(broken: list[RunRecord]) -> None:
    alone = [replace(record, pairs=()) for record in broken]
    assert set().union(*map(rules, alone)) == {rule.__name__ for rule in RULES}


def test_rows_are_named_with_their_lines(good: RunRecord) -> None:
    assert len(good.pairs) == len(PAIRS), "held-out rows are the user's, too"
    assert finding_of(good, "rows_too_alike").evidence.count("line ") == 10, "five pairs"


def test_the_most_serious_comes_first(broken: list[RunRecord]) -> None:
    for record in broken:
        order = [SEVERITIES.index(finding.severity) for finding in diagnose(record)]
        assert order == sorted(order)
    assert diagnose(broken[1])[0].rule == "rate_too_low", "the cause stands before what comes of it"


def test_a_learning_rate_too_high(diverged: RunRecord) -> None:
    finding = finding_of(diverged, "rate_too_high")
    assert finding.severity == "serious"
    assert "learning rate 0.9." in finding.evidence
    assert f"{max(window.loss for window in diverged.train):.2f} at step" in finding.evidence
    assert "--learning-rate 0.09" in finding.advice
    assert "too_few_epochs" not in rules(diverged), "a loss that comes down from a jump calls for no more epochs"


def test_a_learning_rate_too_low(low_rate: RunRecord) -> None:
    finding = finding_of(low_rate, "rate_too_low")
    assert finding.severity == "serious"
    assert finding.evidence.endswith(f"after {low_rate.training['steps']} steps; learning rate 1e-06.")
    assert "--learning-rate 1e-05" in finding.advice


def test_a_model_that_has_learned_nothing(low_rate: RunRecord) -> None:
    no_gain, endless = finding_of(low_rate, "ignores_question"), finding_of(low_rate, "does_not_end")
    assert (no_gain.severity, endless.severity) == ("serious", "serious")
    gain = low_rate.scores["model"]["all"]["question_gain"]
    assert f"{gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}]" in no_gain.evidence
    assert endless.evidence.startswith("0% of 11 replies")
    assert "by the model (n=11)" in finding_of(low_rate, "retrieval_better").evidence
    long = replace(low_rate, doctor={**low_rate.doctor, "answers": {**low_rate.doctor["answers"], "p50": 80}})
    assert "does_not_end" not in rules(long), "long answers can't end within 32 tokens"


def test_too_few_epochs(two_epochs: RunRecord) -> None:
    first, last = (dev.loss for dev in two_epochs.dev)
    finding = finding_of(two_epochs, "too_few_epochs")
    assert f"Loss {first:.3f}, then {last:.3f}: {1 - last / first:.0%} less" in finding.evidence
    assert "--num-train-epochs 5" in finding.advice
    state = {**two_epochs.state, "plan": {**two_epochs.plan, "budget": 60.0}}
    assert "--budget" in finding_of(replace(two_epochs, state=state), "too_few_epochs").advice


def test_overfitting(memorized: RunRecord) -> None:
    finding = finding_of(memorized, "overfitting")
    assert finding.severity == "serious"
    assert finding.message.startswith("Overfitting from epoch 2 on:")
    assert "From epoch 1 to 4 the dev loss rose" in finding.evidence
    config = {**memorized.config, "train": {**memorized.train_options, "load_best_model_at_end": True}}
    kept = finding_of(replace(memorized, config=config), "overfitting")
    assert kept.severity == "hint"
    assert kept.advice.startswith("The weights of epoch 1 were kept")
    training = {**memorized.training, "averaged": True, "best_epoch": 2}
    averaged = replace(memorized, config=config, manifest={**memorized.manifest, "training": training})
    assert finding_of(averaged, "overfitting").advice.startswith("The average of the epochs up to 2 was kept")


def test_answers_that_are_all_the_same(messy: RunRecord) -> None:
    assert "'잘할 수 있을 거예요.' answers 67%" in finding_of(messy, "constant_answers").evidence
    assert "8% of 12 replies are unique" in finding_of(messy, "bland").evidence
    assert finding_of(messy, "mixed_speech").evidence.startswith("68% of the answers end politely")
    assert finding_of(messy, "few_for_label").evidence.endswith("fewer than 10 training rows: 날씨 (1).")


def test_test_rows_that_leak(leaking: RunRecord) -> None:
    finding = finding_of(leaking, "leak")
    assert finding.severity == "serious"
    assert f"{leaking.manifest['data']['leak']['questions']:.0%} of the 48 test questions" in finding.evidence
    assert rules(leaking) >= {"unwatched", "unscored"}


def test_a_budget_that_is_too_short(budgeted: RunRecord) -> None:
    finding = finding_of(budgeted, "out_of_time")
    assert f"{budgeted.training['epochs']} of 500 planned epoch(s)" in finding.evidence
    assert "1.0 s given" in finding.evidence


def test_the_time_needed_is_that_of_the_plan(budgeted: RunRecord) -> None:
    plan = {**budgeted.plan, "requested": 5400.0, "scoring": 1800.0}
    assert budgeted.state["plan"]["requested"] > 0, "the key that a run writes"
    needed = finding_of(replace(budgeted, state={"plan": plan}), "out_of_time")
    assert needed.evidence.startswith("2.0 h were needed, 1.0 s given")
    earlier = {"wished" if name == "requested" else name: value for name, value in plan.items()}
    assert finding_of(replace(budgeted, state={"plan": earlier}), "out_of_time") == needed


def test_korean(low_rate: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "ko")
    assert diagnose(low_rate)[0].message == "거의 학습되지 않았습니다. 손실이 내려가지 않습니다."


def test_record_is_json(good: RunRecord) -> None:
    document = json.loads(json.dumps(good.to_json(), allow_nan=False))
    assert "rows" not in document
    assert document["dev"][0]["epoch"] == document["train"][0]["epoch"] == 1
    assert len(document["dev"]) == good.training["epochs"]
    assert document["labels"] == {"1": 24, "0": 22, "2": 16}
