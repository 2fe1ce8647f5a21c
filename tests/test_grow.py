"""`daedap train --from RUN`: what is new is learned, what is known is kept, and no row changes its side."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from conftest import PAIRS, write_csv

import daedap
from daedap.cli import run as cli
from daedap.data.split import RunRows, read_components, read_rows
from daedap.errors import DataError, RunError, SettingsError
from daedap.evaluation.run_record import read_run_record
from daedap.files import write_json
from daedap.model.language_model import open_trained
from daedap.runs import Run
from daedap.training.finetune import TrainingSetup, finetune, replayed_rows, setup_run
from daedap.types import Pair

pytestmark = pytest.mark.slow

NEW = [
    Pair(f"{dish} 맛있게 하는 집 아세요?", f"{dish}라면 시장 골목에 있는 집이 유명해요.", "0")
    for dish in (
        "김치찌개",
        "떡볶이",
        "삼겹살",
        "비빔밥",
        "칼국수",
        "순대국",
        "돈가스",
        "갈비탕",
        "냉면",
        "만두",
        "족발",
        "보쌈",
    )
]
QUICK: dict[str, Any] = {"precision": "fp32", "device": "cpu", "test_size": 0.15, "dev_size": 0.1}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with LoRA on the upper layer of a toy base."""
    folder = tmp_path_factory.mktemp("lora")
    options: dict[str, Any] = {**QUICK, "base": str(toys.kogpt2(folder / "base")), "method": "lora", "layers": 1}
    file = write_csv(folder / "qa.csv", PAIRS[:60])
    return daedap.train(file, runs=folder / "runs", num_train_epochs=1, evaluate=False, **options)


def copied(run: Run, runs: Path) -> Run:
    folder = runs / run.folder.name
    shutil.copytree(run.folder, folder)
    return Run(folder)


def ids(run: Run, side: Any) -> list[str]:
    return [pair.id for pair in read_rows(run.folder, side)]


def test_new_rows_are_learned_and_old_ones_stay_where_they_were(trained: Run, tmp_path: Path) -> None:
    parent = copied(trained, tmp_path)
    before = (parent.folder / "manifest.json").read_bytes()
    file = write_csv(tmp_path / "more.csv", [*PAIRS[:20], *NEW])
    run = daedap.train(file, from_=1, runs=tmp_path, num_train_epochs=2)
    assert (run.number, run.manifest["parent"], run.parent) == (2, 1, parent)
    assert (parent.folder / "manifest.json").read_bytes() == before
    for side in ("train", "dev", "test"):
        assert set(ids(parent, side)) <= set(ids(run, side))
        components = dict(zip(ids(run, side), read_components(run.folder, side), strict=True))
        old = dict(zip(ids(parent, side), read_components(parent.folder, side), strict=True))
        assert {name: components[name] for name in old} == old
    new = run.manifest["data"]["new"]
    assert sum(new.values()) == len(NEW)
    assert set(ids(run, "train")[: new["train"]]) <= {pair.id for pair in NEW}
    again = max(-(-len(ids(parent, "train")) // 10), new["train"])
    assert run.manifest["rows"]["train"] == new["train"] + again
    assert run.manifest["base"] == parent.manifest["base"]
    assert_growth_is_told(run)
    assert_the_bot_knows_what_is_new(run)


def assert_growth_is_told(run: Run) -> None:
    growth = json.loads((run.folder / "evaluation" / "growth.json").read_text(encoding="utf-8"))
    assert {"hits_at_1", "bpc", "question_gain"} <= growth["kept"].keys()
    assert growth["kept"]["bpc"]["n"] == len(ids(run.parent, "test"))  # type: ignore[arg-type]
    assert growth["answered"]["before"]["value"] == 0
    assert growth["answered"]["after"]["value"] == 1
    scores = json.loads((run.folder / "evaluation" / "scores.json").read_text(encoding="utf-8"))["scores"]
    assert {"bot", "model", "parent", "parent_bot", "base"} <= scores.keys()
    assert [ancestor.name for ancestor in read_run_record(run).ancestors] == ["0001"]


def assert_the_bot_knows_what_is_new(run: Run) -> None:
    bot = daedap.Bot.open(run.folder)
    assert [reply.text for reply in bot.reply_many([pair.question for pair in NEW])] == [pair.answer for pair in NEW]
    assert bot.reply(PAIRS[3].question).text == PAIRS[3].answer


@pytest.mark.parametrize(
    ("known", "new", "share", "rows"),
    [
        (10_000, 1, None, 32),
        (10_000, 50, None, 500),
        (10_000, 500, None, 1000),
        (10_000, 3000, None, 3000),
        (101, 1, None, 11),
        (101, 50, None, 50),
        (1000, 5, 0.3, 300),
        (1000, 5, 0.0, 0),
    ],
)
def test_how_many_known_rows_are_replayed(known: int, new: int, share: float | None, rows: int) -> None:
    assert replayed_rows(known, new, share) == rows


def test_setup_and_training_are_timed_apart(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was interrupted after its last step: the setups of both processes count, and the training once."""

    def slow(*arguments: Any) -> TrainingSetup:
        time.sleep(0.2)
        return setup_run(*arguments)

    monkeypatch.setattr("daedap.training.finetune.setup_run", slow)
    run = copied(trained, tmp_path)
    (run.folder / "manifest.json").unlink()
    (run.folder / "training.json").unlink()
    seconds, steps = run.state["seconds"], trained.trained["training"]
    run.update_state(seconds={**seconds, "plan": 1000.0})
    finetune(run, RunRows(run.folder))
    assert run.state["seconds"]["plan"] > 1000
    assert run.state["seconds"].keys() == seconds.keys()
    assert run.trained["training"] == steps
    assert 0 < seconds["plan"] < 60


def test_a_new_answer_goes_before_an_old_one(trained: Run, tmp_path: Path) -> None:
    copied(trained, tmp_path)
    known = read_rows(trained.folder, "train")[4]
    other = Pair(known.question, "그건 이제 달라졌어요.", known.label)
    file = write_csv(tmp_path / "more.csv", [other])
    run = daedap.train(file, from_=1, runs=tmp_path, num_train_epochs=1, evaluate=False)
    assert daedap.Bot.open(run.folder).reply(known.question).text == other.answer


def test_weights_go_on(trained: Run, tmp_path: Path) -> None:
    """One step with a rate of almost nothing: the new run says what its parent says, not what the base does."""
    copied(trained, tmp_path)
    file = write_csv(tmp_path / "more.csv", NEW)
    options: dict[str, Any] = {
        "learning_rate": 1e-9,
        "num_train_epochs": 1,
        "evaluate": False,
        "replay": 0,
        "precision": "fp32",
    }
    run = daedap.train(file, from_=1, runs=tmp_path, **options)
    new = run.manifest["data"]["new"]["train"]
    assert run.manifest["rows"]["train"] == new
    old, now = (open_trained(one).log2_probability(PAIRS)[:, 0] for one in (trained, run))
    assert now == pytest.approx(old, rel=1e-4)


def test_an_adapter_goes_on(lora: Run, tmp_path: Path) -> None:
    copied(lora, tmp_path)
    file = write_csv(tmp_path / "more.csv", PAIRS[60:])
    options: dict[str, Any] = {"num_train_epochs": 1, "evaluate": False}
    still = daedap.train(file, from_=1, runs=tmp_path, learning_rate=1e-9, **options)
    old, now = (open_trained(one).log2_probability(PAIRS)[:, 0] for one in (lora, still))
    assert now == pytest.approx(old, rel=1e-3)
    assert still.config.model.layers == 1
    moved = daedap.train(file, from_=1, runs=tmp_path, learning_rate=1e-2, **options)
    assert abs(open_trained(moved).log2_probability(PAIRS)[:, 0] - old).max() > 0.1


def test_the_rest_of_a_fraction_is_new(qa: Path, tmp_path: Path) -> None:
    """200 → 2,000 → all rows, without starting over: as many rows as at once, on the same sides."""
    options: dict[str, Any] = {**QUICK, "base": "fresh", "num_train_epochs": 1, "evaluate": False}
    whole = daedap.train(qa, runs=tmp_path / "whole", **options)
    first = daedap.train(qa, runs=tmp_path, fraction=0.2, **options)
    second = daedap.train(from_=1, runs=tmp_path, fraction=0.5, num_train_epochs=1, evaluate=False)
    third = daedap.train(from_="latest", runs=tmp_path, num_train_epochs=1, evaluate=False)
    assert set(ids(first, "train")) < set(ids(second, "train")) < set(ids(third, "train"))
    for side in ("train", "dev", "test"):
        assert set(ids(third, side)) == set(ids(whole, side))
    assert third.state["encoder_rows"] == len(ids(third, "train"))
    assert [third.parent, second.parent, first.parent] == [second, first, None]


def test_what_is_interrupted_goes_on(trained: Run, tmp_path: Path) -> None:
    copied(trained, tmp_path)
    run = daedap.train(write_csv(tmp_path / "more.csv", NEW), from_=1, runs=tmp_path, num_train_epochs=1)
    learned = (run.folder / "model" / "model.safetensors").read_bytes()
    for name in ("manifest.json", "training.json"):
        (run.folder / name).unlink()
    for name in ("model", "index", "evaluation"):
        shutil.rmtree(run.folder / name)
    assert daedap.train(resume=2, runs=tmp_path).complete
    assert (run.folder / "model" / "model.safetensors").read_bytes() == learned


def test_nothing_new(trained: Run, qa: Path, tmp_path: Path) -> None:
    copied(trained, tmp_path)
    with pytest.raises(DataError, match="no training row is new to run 0001"):
        daedap.train(qa, from_=1, runs=tmp_path)
    assert not (tmp_path / "0002").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "daedap-mini"}, "--base daedap-mini: run 0001 was made with fresh"),
        ({"layers": 1}, "--layers 1: run 0001 was made with 4"),
        ({"test_size": 0.3}, "--test-size 0.3: run 0001 was made with 0.15"),
        ({"split": "random"}, "--split random: run 0001 was made with components"),
        ({"replay": 1.5}, "--replay 1.5: must lie between 0 and 1"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_a_run_goes_on_from_is_kept(trained: Run, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    copied(trained, tmp_path)
    file = write_csv(tmp_path / "more.csv", NEW)
    if "base" in options:
        options = {"base": str(tmp_path / "다른-베이스")}
        message = "run 0001 was made with fresh"
    with pytest.raises(SettingsError, match=message.replace("(", r"\(")):
        daedap.train(file, from_=1, runs=tmp_path, **options)
    assert not (tmp_path / "0002").exists()


def test_a_parent_that_is_gone(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run"):
        daedap.train(write_csv(tmp_path / "more.csv", NEW), from_=7, runs=tmp_path)
    copied(trained, tmp_path)
    run = daedap.train(tmp_path / "more.csv", from_=1, runs=tmp_path, num_train_epochs=1, evaluate=False)
    shutil.rmtree(tmp_path / "0001")
    assert daedap.Bot.open(run.folder).reply(NEW[0].question).text == NEW[0].answer
    assert cli(["evaluate", "--run", "2", "--rows", "5", "--runs", str(tmp_path)]) == 0


def test_the_parent_s_file_is_read_as_it_was(tmp_path: Path) -> None:
    rows = [f"{number},쓸모없음,{pair.question},x,{pair.answer}" for number, pair in enumerate(PAIRS)]
    file = tmp_path / "구식.csv"
    file.write_text("\n".join(["번호,분류,물음,비고,대꾸", *rows]) + "\n", encoding="utf-8")
    columns: dict[str, Any] = {"question_column": "3", "answer_column": "5", "dev_size": 0, "test_size": 0}
    quick: dict[str, Any] = {"num_train_epochs": 1, "evaluate": False, "runs": tmp_path}
    first = daedap.train(file, base="fresh", precision="fp32", fraction=0.5, **columns, **quick)
    second = daedap.train(from_=first.folder, fraction=1.0, **quick)
    assert {pair.question for pair in read_rows(second.folder, "train")} == {pair.question for pair in PAIRS}


def test_lora_in_bf16_begins_alike_whenever_it_is_begun(lora: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "0001"
    shutil.copytree(lora.folder / "data", folder / "data")
    config = replace(lora.config, model=replace(lora.config.model, precision="bf16"))
    write_json(folder / "config.json", config.to_json())
    run = Run(folder)
    first, again = (
        {
            name: weight.detach().clone()
            for name, weight in setup_run(run, RunRows(folder)).trainer.task.model.named_parameters()
            if weight.requires_grad
        }
        for _ in range(2)
    )
    assert first.keys() == again.keys()
    assert {weight.dtype for weight in first.values()} == {torch.float32}
    assert all(torch.equal(first[name], again[name]) for name in first), "the second one finds its plan made"


def test_rows_too_long_to_learn_are_found_and_stay_found(tmp_path: Path) -> None:
    terms = Pair("환불 약관 전문을 보여 주세요", "제1조 환불은 이렇게 합니다. " * 60)
    more = Pair("배송 약관 전문을 보여 주세요", "제2조 배송은 이렇게 합니다. " * 60)
    options: dict[str, Any] = {
        **QUICK,
        "base": str(toys.kogpt2(tmp_path / "base")),
        "runs": tmp_path / "runs",
        "evaluate": False,
    }
    first = daedap.train(write_csv(tmp_path / "qa.csv", [*PAIRS[:30], terms]), num_train_epochs=1, **options)
    assert [pair.question for pair in read_rows(first.folder, "lookup")] == [terms.question]
    assert daedap.Bot.open(first.folder).reply("환불 약관 전문을 보여 주세요!").text == terms.answer.strip()
    second = daedap.train(write_csv(tmp_path / "new.csv", [*NEW, more]), from_="1", num_train_epochs=1, **options)
    bot = daedap.Bot.open(second.folder)
    for pair in (terms, more):
        assert bot.reply(pair.question).text == pair.answer.strip()
    third = daedap.train(write_csv(tmp_path / "newer.csv", PAIRS[30:70]), from_="2", num_train_epochs=1, **options)
    assert daedap.Bot.open(third.folder).reply(terms.question).text == terms.answer.strip(), (
        "the encoder is fitted anew"
    )
