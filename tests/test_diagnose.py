"""Each rule is tried on a run that is really broken in its way."""

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
from daedap.evaluation.diagnose import RULES, SEVERITIES, Finding, diagnose, healthy
from daedap.evaluation.run_record import RunRecord, read_run_record
from daedap.types import Pair

QUICK: dict[str, Any] = {
    "base": "fresh",
    "precision": "fp32",
    "test_size": 0.2,
    "dev_size": 0.1,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "logging_steps": 2,
}
BROKEN = ("hot", "cold", "short", "heart", "messy", "leaking", "hurried")


class Workshop:
    """Makes broken runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self, pairs: Sequence[Pair] = PAIRS, **options: Any) -> RunRecord:
        file = write_csv(self.folder / "qa.csv", pairs)
        return read_run_record(daedap.train(file, runs=self.folder / "runs", **{**QUICK, **options}))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("broken"))


@pytest.fixture(scope="module")
def good(workshop: Workshop) -> RunRecord:
    return workshop.record(num_train_epochs=10)


@pytest.fixture(scope="module")
def hot(workshop: Workshop) -> RunRecord:
    return workshop.record(num_train_epochs=2, learning_rate=0.9, evaluate=False)


@pytest.fixture(scope="module")
def cold(workshop: Workshop) -> RunRecord:
    return workshop.record(num_train_epochs=2, learning_rate=1e-6)


@pytest.fixture(scope="module")
def short(workshop: Workshop) -> RunRecord:
    """Two epochs, where it takes ten."""
    return workshop.record(num_train_epochs=2, evaluate=False)


@pytest.fixture(scope="module")
def heart(workshop: Workshop) -> RunRecord:
    """Pairs that have nothing to do with each other, learned by heart."""
    endless = {"early_stopping_patience": 0, "load_best_model_at_end": False}
    return workshop.record(toys.PAIRS, num_train_epochs=4, evaluate=False, **endless)


@pytest.fixture(scope="module")
def messy(workshop: Workshop) -> RunRecord:
    """One answer nearly everywhere, the others casual; two rows with a label of their own."""
    answers = [
        "잘할 수 있을 거예요." if n % 10 < 7 else f"{pair.question[:3]} 그런 거야" for n, pair in enumerate(PAIRS)
    ]
    pairs = [replace(pair, answer=answer) for pair, answer in zip(PAIRS, answers, strict=True)]
    rare = [Pair("비가 올까?", "우산 챙겨", "날씨"), Pair("눈이 펑펑 온다", "길이 미끄러워", "날씨")]
    return workshop.record([*pairs, *rare], num_train_epochs=3)


@pytest.fixture(scope="module")
def leaking(workshop: Workshop) -> RunRecord:
    doubled = [*PAIRS, *(Pair(f"{pair.question}!!", pair.answer) for pair in PAIRS)]
    return workshop.record(doubled, split="random", test_size=0.3, dev_size=0, num_train_epochs=1, evaluate=False)


@pytest.fixture(scope="module")
def hurried(workshop: Workshop) -> RunRecord:
    return workshop.record(budget="1s", num_train_epochs=500, evaluate=False)


@pytest.fixture(scope="module")
def broken(request: pytest.FixtureRequest) -> list[RunRecord]:
    return [request.getfixturevalue(name) for name in BROKEN]


def finding_of(record: RunRecord, rule: str) -> Finding:
    return next(finding for finding in diagnose(record) if finding.rule == rule)


def rules(record: RunRecord) -> set[str]:
    return {finding.rule for finding in diagnose(record)}


def test_a_good_run(good: RunRecord) -> None:
    assert rules(good) == {"few_rows"}, "80 rows are few, and nothing else is wrong"
    assert finding_of(good, "few_rows").evidence.startswith("62 training rows.")
    many = replace(good, manifest={**good.manifest, "data": {**good.manifest["data"], "train": 10_000}})
    assert diagnose(many) == []
    assert str(len(RULES)) in healthy()


def test_every_rule_is_found_in_a_broken_run(broken: list[RunRecord]) -> None:
    assert set().union(*map(rules, broken)) == {rule.__name__ for rule in RULES}


def test_the_most_serious_comes_first(broken: list[RunRecord]) -> None:
    for record in broken:
        order = [SEVERITIES.index(finding.severity) for finding in diagnose(record)]
        assert order == sorted(order)
    assert diagnose(broken[1])[0].rule == "rate_too_low", "the cause stands before what comes of it"


def test_a_learning_rate_too_high(hot: RunRecord) -> None:
    finding = finding_of(hot, "rate_too_high")
    assert finding.severity == "serious"
    assert "learning rate 0.9." in finding.evidence
    assert f"{max(window.loss for window in hot.train):.2f} at step" in finding.evidence
    assert "--learning-rate 0.09" in finding.advice
    assert "too_few_epochs" not in rules(hot), "a loss that comes down from a jump calls for no more epochs"


def test_a_learning_rate_too_low(cold: RunRecord) -> None:
    finding = finding_of(cold, "rate_too_low")
    assert finding.severity == "serious"
    assert finding.evidence.endswith(f"after {cold.training['steps']} steps; learning rate 1e-06.")
    assert "--learning-rate 1e-05" in finding.advice


def test_a_model_that_has_learned_nothing(cold: RunRecord) -> None:
    no_gain, endless = finding_of(cold, "ignores_question"), finding_of(cold, "does_not_end")
    assert (no_gain.severity, endless.severity) == ("serious", "serious")
    gain = cold.scores["model"]["all"]["question_gain"]
    assert f"{gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}]" in no_gain.evidence
    assert endless.evidence.startswith("0% of 11 replies")
    assert "by the model (n=11)" in finding_of(cold, "retrieval_better").evidence
    long = replace(cold, doctor={**cold.doctor, "answers": {**cold.doctor["answers"], "p50": 80}})
    assert "does_not_end" not in rules(long), "long answers can't end within 32 tokens"


def test_too_few_epochs(short: RunRecord) -> None:
    first, last = (dev.loss for dev in short.dev)
    finding = finding_of(short, "too_few_epochs")
    assert f"Loss {first:.3f}, then {last:.3f}: {1 - last / first:.0%} less" in finding.evidence
    assert "--num-train-epochs 5" in finding.advice
    plan = {**short.plan, "budget": 60.0}
    assert "--budget" in finding_of(replace(short, settings={**short.settings, "plan": plan}), "too_few_epochs").advice


def test_overfitting(heart: RunRecord) -> None:
    finding = finding_of(heart, "overfitting")
    assert finding.severity == "serious"
    assert finding.message.startswith("Overfitting from epoch 2 on:")
    assert "From epoch 1 to 4 the dev loss rose" in finding.evidence
    settings = {**heart.settings, "recipe": {**heart.train_options, "load_best_model_at_end": True}}
    kept = finding_of(replace(heart, settings=settings), "overfitting")
    assert kept.severity == "hint"
    assert kept.advice.startswith("The weights of epoch 1 were kept")
    training = {**heart.training, "averaged": True, "best_epoch": 2}
    averaged = replace(heart, settings=settings, manifest={**heart.manifest, "training": training})
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


def test_a_budget_that_is_too_short(hurried: RunRecord) -> None:
    finding = finding_of(hurried, "out_of_time")
    assert f"{hurried.training['epochs']} of 500 planned epoch(s)" in finding.evidence
    assert "1.0 s given" in finding.evidence


def test_korean(cold: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "ko")
    assert diagnose(cold)[0].message == "거의 배우지 못했습니다. 손실이 내려가지 않습니다."


def test_record_is_json(good: RunRecord) -> None:
    document = json.loads(json.dumps(good.to_json(), allow_nan=False))
    assert "rows" not in document
    assert document["dev"][0]["epoch"] == document["train"][0]["epoch"] == 1
    assert len(document["dev"]) == good.training["epochs"]
    assert document["labels"] == {"1": 24, "0": 22, "2": 16}
