from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import toys
from conftest import write_csv
from peft import PeftModel

from daedap.cli import run as cli
from daedap.commands.bench import Bench, _as_long, _possible
from daedap.config import BenchOptions, RecipeName
from daedap.errors import BaseError, SettingsError
from daedap.model.base import load_base
from daedap.training.baselines import BASELINES, NAMES, Step, kogpt2_shape
from daedap.training.benchmark import (
    VARIANTS,
    BenchContext,
    MachineInfo,
    Measurement,
    Variant,
    bits_per_character,
    choose_baseline_precision,
    measure_ours,
    measure_quality,
    measure_speed,
    step_rates,
)

pytestmark = pytest.mark.slow

PEAKS = {"fp32": 100.0, "bf16": 150.0}
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.kogpt2(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "qa.csv", toys.PAIRS)


@pytest.fixture
def context(folder: Path, tmp_path: Path) -> BenchContext:
    return BenchContext(lambda: load_base(str(folder)), toys.PAIRS[:40], toys.PAIRS[40:50], "cpu", tmp_path, PEAKS)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daedap.training.profiling._SHAPES", ((64, 64, 64),))


def measured(name: str, rate: float, **fields: Any) -> Measurement:
    return Measurement(name, "fp32", 8, 1.0, (rate, rate, 100 * rate), 500_000_000, 2e9)._replace(**fields)


def test_a_rate_is_the_median_of_the_warm_steps() -> None:
    steps = [Step(8, 128, 1024, seconds) for seconds in (9.0, 1.0, 2.0, 4.0)]
    assert step_rates(steps) == (8.0, 4.0, 2.0)
    assert step_rates(steps[:1]) == (8 / 9,)
    assert measured("a", 3.0, step_rates=step_rates(steps)).rate == 4.0


def test_utilisation_is_of_the_peak_in_its_precision() -> None:
    one = measured("a", 10.0)
    assert one.utilisation({"fp32": 100.0, "bf16": 400.0}) == pytest.approx(0.2)
    assert one._replace(precision="bf16").utilisation({"fp32": 100.0, "bf16": 400.0}) == pytest.approx(0.05)


def test_speed_and_quality(context: BenchContext) -> None:
    speed = measure_speed(BASELINES["full_padded"], context, "fp32", 3)
    assert (speed.rows, len(speed.step_rates), speed.bits_per_character) == (12, 2, None)
    assert speed.peak_bytes > 50e6
    few = measure_quality(BASELINES["full_padded"], context, "fp32", 1)
    assert (few.rows, len(few.step_rates)) == (40, 9)
    eager = replace(BASELINES["full_padded"], learning_rate=3e-3)
    more = measure_quality(eager, replace(context, dev=context.train), "fp32", 8)
    assert more.rows == 8 * 40
    assert few.bits_per_character
    assert more.bits_per_character
    assert more.bits_per_character < 0.8 * few.bits_per_character


def test_bits_are_those_of_answers_by_their_characters(context: BenchContext) -> None:
    base, bits = context.base(), 0.0
    prompt = base.prompt(128)
    for pair in context.dev:
        example = prompt.example(pair)
        ids = torch.tensor([example.ids])
        chances = base.model.eval()(input_ids=ids).logits[0].log_softmax(-1)
        learned = range(example.answer_start, len(example.ids))
        bits -= sum(float(chances[place - 1, ids[0, place]].detach()) for place in learned) / math.log(2)
    characters = sum(len(pair.answer) for pair in context.dev)
    assert bits_per_character(base.model, prompt, context.dev, "cpu") == pytest.approx(bits / characters, rel=1e-4)


def test_unpadded_rows_are_less_work(context: BenchContext) -> None:
    pytest.importorskip("trl")
    padded, grouped = (measure_speed(BASELINES[name], context, "fp32", 2) for name in ("lora_padded", "trl_best"))
    assert grouped.flops_per_row < 0.4 * padded.flops_per_row


def test_trls_model_is_scored_with_its_saved_weights(context: BenchContext) -> None:
    pytest.importorskip("trl")
    result = measure_quality(BASELINES["trl_best"], context, "fp32", 2)
    saved = PeftModel.from_pretrained(context.base().model, str(context.scratch / "trl_best"))
    bits = bits_per_character(saved, context.base().prompt(128), context.dev, "cpu")
    assert result.bits_per_character == pytest.approx(bits, rel=1e-5)


def test_bf16_is_not_tried_where_it_is_slower_or_not_allowed(context: BenchContext) -> None:
    assert choose_baseline_precision(BASELINES["lora_padded"], context) == "fp32"
    slow_bf16 = replace(context, peaks={"fp32": 2.0, "bf16": 1.0})
    assert choose_baseline_precision(BASELINES["trl_best"], slow_bf16) == "fp32"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_ours_is_measured_whole(context: BenchContext, variant: Variant) -> None:
    variant = replace(variant, model_options={**variant.model_options, "method": "lora", "layers": 1}, train_options={})
    result = measure_ours(variant, context, epochs=2)
    assert (result.name, result.rows, result.whole) == (variant.name, 2 * len(context.train), True)
    assert result.overall_rate == result.rows / result.seconds
    assert result.bits_per_character is not None
    assert math.isfinite(result.bits_per_character)
    assert not list(context.scratch.iterdir()), "no activation cache is left for the next variant"


def test_ours_computes_less(context: BenchContext) -> None:
    whole, top = (
        measure_ours(Variant("ours", {"method": "lora", "layers": layers}), context, epochs=1) for layers in (2, 1)
    )
    assert top.flops_per_row < 0.8 * whole.flops_per_row


def test_the_table() -> None:
    quality = [measured("a", 2.0, bits_per_character=3.25)]
    result = Bench("base", 40, MachineInfo("cpu", "chip", 2), {"fp32": 100.0, "bf16": 50.0}, [], quality)
    assert "seconds" in "\n".join(result.lines())
    two = replace(result, speed=[measured("a", 2.0), measured("b", 8.0)])
    lines = "\n".join(two.lines())
    assert [line.split() for line in lines.splitlines() if line.startswith("b ")] == [
        ["b", "fp32", "8.00", "4.00", "8.00", "4.00", "16.0", "500"]
    ]
    assert "3.250" in lines
    entry = two.to_json()["speed"][1]
    assert (entry["ratio"], entry["utilisation"]) == (4.0, pytest.approx(0.16))
    assert json.loads(json.dumps(two.to_json()))["machine"]["processor"] == "chip"


def test_the_command(folder: Path, file: Path, tmp_path: Path, capsys: Output) -> None:
    runs = tmp_path / "runs"
    words = ["bench", str(file), "--base", str(folder), "--steps", "2", "--rows", "30", "--runs", str(runs)]
    words += ["--recipes", "full_padded,lora_padded,ours_fp32", "--quality", "--epochs", "1"]
    words += ["--device", "cpu", "--json"]
    assert cli(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in result["speed"]] == ["full_padded", "lora_padded", "ours_fp32"]
    assert [one["rows"] for one in result["quality"][:3]] == [30, 30, 30]
    assert all(math.isfinite(one["bits_per_character"]) for one in result["quality"])
    assert result["speed"][0]["ratio"] == 1
    assert not runs.exists(), "nothing is left behind"


def test_ours_also_gets_the_time_of_the_first_baseline(context: BenchContext) -> None:
    variant = Variant("ours", {"method": "lora", "layers": 1})
    own = measured("ours", 1.0, rows=40, seconds=10.0)
    slow = measured("full_padded", 1.0, seconds=25.0)
    (longer,) = _as_long(variant, context, own, 1, [slow])
    assert (longer.name, longer.rows) == ("ours_as_long", 80)
    assert list(_as_long(variant, context, own, 1, [slow._replace(seconds=15.0)])) == []
    lines = Bench("base", 40, MachineInfo("cpu", "chip", 2), context.peaks, [own], [slow, longer]).lines()  # type: ignore[arg-type]
    assert [line.split()[:2] for line in lines if line.startswith("ours_as_long ")] == [["ours_as_long", "2"]]


def test_without_a_compiler_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    names: tuple[RecipeName, ...] = ("ours", "ours_compiled")
    with caplog.at_level("INFO", "daedap"):
        assert [variant.name for variant in _possible(names)] == ["ours"]
    assert "ours_compiled is left out: PyTorch finds no C++ compiler" in caplog.text
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert [variant.name for variant in _possible(names)] == list(names)


def test_without_trl_its_recipe_is_left_out(
    folder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    words = ["bench", str(file), "--base", str(folder), "--recipes", "trl_best", "--runs", str(tmp_path)]
    with caplog.at_level("INFO", logger="daedap"):
        assert cli(words) == 0
    assert 'pip install "daedap[bench]"' in caplog.text


def test_names_of_recipes_are_those_there_are() -> None:
    assert get_args(RecipeName) == (*NAMES, *(variant.name for variant in VARIANTS))


@pytest.mark.parametrize(
    "options", [{"steps": 1}, {"rows": 0}, {"epochs": 0}, {"base": "b", "tokenizer": Path("t")}], ids=str
)
def test_settings_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        BenchOptions(**options)


@pytest.fixture
def small_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GPT2Config

    def small(**options: Any) -> GPT2Config:
        return GPT2Config(**{**options, "n_embd": 24, "n_layer": 1})

    monkeypatch.setattr("daedap.training.baselines.GPT2Config", small)


@pytest.mark.usefixtures("small_shape")
def test_a_shape_has_the_same_weights_every_time(folder: Path) -> None:
    first, again = kogpt2_shape(), kogpt2_shape()
    for name, weight in first.model.state_dict().items():
        assert weight.equal(again.model.state_dict()[name])
    theirs = kogpt2_shape(folder)
    assert "<usr>" in str(theirs.tokenizer.chat_template)
    assert theirs.model.config.eos_token_id == theirs.tokenizer.eos_token_id


def test_a_shape_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BaseError):
        kogpt2_shape(tmp_path)


def test_the_shape_is_that_of_kogpt2() -> None:
    model = kogpt2_shape().model
    assert model.num_parameters() == 125_164_032, "as skt/kogpt2-base-v2 has"
    assert (model.config.n_layer, model.config.n_head, model.config.n_positions) == (12, 12, 1024)
