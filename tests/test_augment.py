from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PAIRS, write_csv

import daedap
from daedap.cli import run as cli
from daedap.config import PERTURBATIONS, AugmentOptions, Perturbation
from daedap.data.dedup import near_duplicates
from daedap.data.split import augment, without_question
from daedap.errors import SettingsError
from daedap.runs import Run
from daedap.types import Message, Pair

pytestmark = pytest.mark.slow

Output = pytest.CaptureFixture[str]
ASKED = Pair(
    "오늘 저녁에 뭐 해?", "영화를 볼 거예요.", "0", (Message("user", "안녕"), Message("assistant", "네")), 7, "방"
)


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_only_the_question_changes(kind: Perturbation) -> None:
    pairs = [ASKED, replace(ASKED, question="제가 밥을 살까요?")]
    copies = augment(pairs, [kind], 1.0, 0)
    assert copies
    for copy in copies:
        assert copy.question not in {pair.question for pair in pairs}
        assert replace(copy, question=ASKED.question) == ASKED


def test_answers_alone() -> None:
    alone = without_question([ASKED, *PAIRS], 1.0, 0)
    assert [pair.answer for pair in alone] == [ASKED.answer, *(pair.answer for pair in PAIRS)]
    assert not any(pair.question or pair.history for pair in alone)
    assert 0.2 * len(PAIRS) < len(without_question(PAIRS, 0.4, 0)) < 0.6 * len(PAIRS)
    assert without_question(PAIRS, 0.0, 0) == []
    with pytest.raises(SettingsError, match="null-question-share 2"):
        AugmentOptions(null_question_share=2)


def test_the_share_is_kept() -> None:
    assert augment(PAIRS, [], 1.0, 0) == []
    assert len(augment(PAIRS, ["spacing"], 1.0, 0)) == len(PAIRS)
    assert 0.3 * len(PAIRS) < len(augment(PAIRS, ["spacing"], 0.5, 0)) < 0.7 * len(PAIRS)
    assert 1.8 * len(PAIRS) < len(augment(PAIRS, ["typo"], 2.0, 0)) <= 2 * len(PAIRS)
    both = augment(PAIRS, ["typo", "spacing"], 1.0, 0)
    assert len(both) > 1.9 * len(PAIRS)


def test_the_seed_decides_and_the_order_does_not() -> None:
    shuffled = random.Random(1).sample(PAIRS, len(PAIRS))
    once = augment(PAIRS, PERTURBATIONS, 0.7, 3)
    assert augment(PAIRS, PERTURBATIONS, 0.7, 3) == once
    assert set(augment(shuffled, PERTURBATIONS, 0.7, 3)) == set(once)
    assert set(augment(PAIRS[:40], ["typo"], 0.7, 3)) <= set(once)
    assert augment(PAIRS, PERTURBATIONS, 0.7, 4) != once


def test_nothing_is_learned_twice() -> None:
    copies = augment([Pair("심심해요?", "놀아요."), Pair("심심해?", "놀아요.")], ["polite", "casual"], 3.0, 0)
    assert copies == []


def test_a_question_with_another_answer_is_not_taken_over() -> None:
    known = [Pair("심심해", "놀아요."), Pair("심심해요!", "책을 읽어요.")]
    assert augment(known, ["polite"], 1.0, 0) == []
    same_answer = [known[0], replace(known[1], answer="놀아요.")]
    assert [copy.question for copy in augment(same_answer, ["polite"], 1.0, 0)] == ["심심해요"]
    elsewhere = [known[0], replace(known[1], history=(Message("user", "안녕"),))]
    assert [copy.question for copy in augment(elsewhere, ["polite"], 1.0, 0)] == ["심심해요"]
    both = [Pair("배고파", "먹어요."), Pair("배고프다", "참아요.")]
    assert augment(both, ["polite"], 1.0, 0) == []


def test_no_copy_comes_near_a_held_out_question() -> None:
    learned, held_out = [Pair("뭐 하니", "쉬어요."), Pair("밥을 먹었니", "네.")], [Pair("뭐 해요?", "일해요.")]
    assert list(near_duplicates(["뭐 하니", "뭐 해요?"])) == [(0, []), (1, [])]
    copies = augment(learned, ["polite", "spacing"], 1.0, 0, held_out=held_out)
    assert {copy.question for copy in copies} == {"밥을 먹었어요", "밥을먹었니", "뭐하니"}


@pytest.mark.parametrize(
    "options",
    [{"augment": ["typo", "typos"]}, {"augment_share": 0}, {"augment_share": 11}, {"augment_share": float("nan")}],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="--augment"):
        AugmentOptions(**options)


# ---- daedap train --augment ----------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {
    "base": "fresh",
    "precision": "fp32",
    "num_train_epochs": 1,
    "dev_size": 0.1,
    "test_size": 0.15,
    "evaluate": False,
}


ALONE = {**QUICK, "null_question_share": 0.1}


@pytest.fixture(scope="module")
def augmented(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("augmented")
    run: Run = daedap.train(write_csv(folder / "qa.csv"), runs=folder / "runs", augment=["typo", "polite"], **ALONE)
    return run


def test_training_rows_alone_grow(augmented: Run) -> None:
    rows, data = augmented.manifest["rows"], augmented.manifest["data"]
    assert rows["augmented"] > 0.3 * data["train"]
    assert rows["train"] == data["train"] + rows["augmented"]
    assert (rows["dev"], rows["too_long"]) == (data["dev"], 0)


def test_it_is_written_down(augmented: Run) -> None:
    message = {"augment": ["typo", "polite"], "augment_share": 0.5, "null_question_share": 0.1}
    assert augmented.manifest["augmentation"] == message
    assert message.items() <= augmented.document("config.json")["train"].items()
    assert "kiwipiepy" in augmented.manifest["libraries"]


def test_begun_again_it_learns_the_same(augmented: Run, tmp_path: Path) -> None:
    again = Run(tmp_path / augmented.folder.name)
    shutil.copytree(augmented.folder / "data", again.folder / "data")
    shutil.copy(augmented.folder / "config.json", again.folder)
    daedap.train(resume=again.folder, runs=tmp_path)
    weights = Path("model", "model.safetensors")
    assert (again.folder / weights).read_bytes() == (augmented.folder / weights).read_bytes()
    assert again.manifest["rows"] == augmented.manifest["rows"]


def test_on_the_command_line(tmp_path: Path, capsys: Output, caplog: pytest.LogCaptureFixture) -> None:
    file = str(write_csv(tmp_path / "qa.csv"))
    quick = [
        "--base",
        "fresh",
        "--precision",
        "fp32",
        "--num-train-epochs",
        "1",
        "--no-evaluate",
        "--runs",
        str(tmp_path),
    ]
    assert cli(["train", "--augment", "spacing,laughter", file, "--augment-share", "0.25", *quick]) == 0
    assert "augmented training rows." in caplog.text
    assert cli(["train", file, "--augment", "spacing,jokes", *quick]) == 2
    written = " ".join(capsys.readouterr().err.split())
    assert all(word in written for word in ("jokes", "--augment", *PERTURBATIONS))
