"""An engine answers only where it computes what was trained, on the processor at hand."""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ctranslate2
import numpy as np
import pytest
import torch
import toys
from ctranslate2.specs.common_spec import LinearSpec
from ctranslate2.specs.model_spec import NumpyVariable
from transformers import GPT2LMHeadModel

from daedap.errors import RunError
from daedap.files import write_json
from daedap.model.base import load_base
from daedap.model.convert import _quantize, convert
from daedap.model.device import choose_precision, has_fast_bf16, processor_features, processor_kind
from daedap.model.engine import Engine
from daedap.model.language_model import CachedScorer, TorchModel
from daedap.model.verify import Agreement, Reference, open_engine, open_verified_engine, verified
from daedap.runs import Run, find

ROWS = toys.PAIRS[:12]


def outliers(speaker: TorchModel) -> TorchModel:
    """One number of every state is a thousand times the others, and weighs nothing: eight bits see nothing but it."""
    body: Any = cast("GPT2LMHeadModel", speaker.model).transformer
    with torch.no_grad():
        for block in body.h:
            for norm, reads in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                norm.weight[0] = 1000.0
                reads.weight[0] = 0.0
    return speaker


@pytest.fixture
def speaker(tmp_path: Path) -> TorchModel:
    base = load_base(str(toys.kogpt2(tmp_path / "kogpt2")))
    return TorchModel(base.model, base.prompt(96), max_new_tokens=12)


def made(speaker: TorchModel, folder: Path) -> Path:
    convert(speaker.model, speaker.prompt, folder)
    Reference.of(speaker, ROWS).save(folder)
    return folder


def checked(speaker: TorchModel, folder: Path) -> Engine | None:
    return open_verified_engine(folder, speaker.prompt, speaker.max_new_tokens)


def test_eight_bits_serve_where_they_agree(speaker: TorchModel, tmp_path: Path) -> None:
    folder = made(speaker, tmp_path / "engine")
    engine = checked(speaker, folder)
    assert engine is not None
    assert engine.compute_type == "int8"
    found = verified(folder)[processor_kind()]
    assert found["compute_type"] == "int8"
    assert abs(found["bpc_difference"]) <= 0.02


def test_float32_takes_over_where_eight_bits_are_too_far_off(
    speaker: TorchModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="daedap")
    folder = made(outliers(speaker), tmp_path / "engine")
    engine = checked(speaker, folder)
    assert engine is not None
    assert engine.compute_type == "float32"
    assert "computes in float32 on this processor" in caplog.text
    eight_bits = Engine.open(folder, speaker.prompt, 12, "int8")
    assert not Reference.open(folder).compare(eight_bits).close
    wanted, found = speaker.log2_probability(ROWS)[:, 0], engine.log2_probability(ROWS)[:, 0]
    assert found.sum() == pytest.approx(wanted.sum(), rel=0.01)


def test_no_engine_serves_where_none_agrees(
    speaker: TorchModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made(speaker, tmp_path / "engine")
    reference = Reference.open(folder)
    replace(reference, log2_probabilities=(float("nan"), *reference.log2_probabilities[1:])).save(folder)
    assert checked(speaker, folder) is None
    assert checked(speaker, folder) is None
    assert caplog.text.count("PyTorch answers, slower") == 1, "said when it is found out, and remembered"
    assert verified(folder)[processor_kind()] == {"compute_type": "pytorch"}


def test_a_kind_of_processor_is_checked_once(
    speaker: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(speaker, tmp_path / "engine")
    assert checked(speaker, folder) is not None
    here = processor_kind()
    (folder / "reference.json").unlink()
    assert checked(speaker, folder) is not None, "not computed again"
    monkeypatch.setenv("CT2_FORCE_CPU_ISA", "GENERIC")  # now it counts as another kind
    assert processor_kind() != here
    with pytest.raises(RunError, match=r"reference\.json.*can't be read"):
        checked(speaker, folder)
    Reference.of(speaker, ROWS).save(folder)
    assert checked(speaker, folder) is not None
    assert set(verified(folder)) == {here, processor_kind()}


def test_a_run_moves_to_another_processor(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = Run(Path(shutil.copytree(trained.folder, tmp_path / "0001")))
    assert moved.manifest["engine"] == verified(moved.folder / "engine")[processor_kind()]
    monkeypatch.setenv("CT2_FORCE_CPU_ISA", "GENERIC")
    assert isinstance(open_engine(moved), Engine)
    assert processor_kind() in verified(moved.folder / "engine")
    assert find(str(moved.folder), tmp_path) == moved, "a record of another processor is no damage"


def test_answers_that_were_close_choices_do_not_count() -> None:
    assert Agreement("int8", 0.019, same_answers=9, clear_answers=10).close
    assert Agreement("int8", -0.019, same_answers=0, clear_answers=0).close
    assert not Agreement("int8", 0.021, same_answers=10, clear_answers=10).close
    assert not Agreement("int8", 0.0, same_answers=7, clear_answers=10).close
    assert not Agreement("int8", float("nan"), same_answers=10, clear_answers=10).close


def test_the_margin_of_an_answer_is_its_closest_choice(speaker: TorchModel) -> None:
    (said, margin), *_ = speaker.greedy(ROWS[:1])
    ids, is_main = speaker.prompt.question(ROWS[0]), []
    controls = [number for number in speaker.prompt.control_ids if number != speaker.prompt.template.eos_id]
    for _ in range(said.tokens):
        with torch.no_grad():
            logits = cast("GPT2LMHeadModel", speaker.model)(torch.tensor([ids])).logits[0, -1]
        logits[controls] = -torch.inf
        best = logits.topk(2)
        is_main.append(float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    assert margin == pytest.approx(min(is_main), abs=1e-3)


def test_a_damaged_record_is_told(speaker: TorchModel, tmp_path: Path) -> None:
    folder = made(speaker, tmp_path / "engine")
    (folder / "verified.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"verified\.json.*can't be read"):
        checked(speaker, folder)
    (folder / "verified.json").unlink()
    document = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    write_json(folder / "reference.json", {**document, "pairs": [{"question": "주차 되나요?"}]})
    with pytest.raises(RunError, match=r"reference\.json.*can't be read"):
        checked(speaker, folder)


@pytest.mark.parametrize("width", [1, 5, 64])
def test_no_pair_of_weights_can_saturate(width: int) -> None:
    """A processor without VNNI sums two products of an activation up to 255 in 16 bits."""
    rows = np.random.default_rng(0).standard_t(2, (50, width)).astype(np.float32)
    rows[0] = 0.0
    layer = LinearSpec()
    layer.weight = NumpyVariable(rows.copy())
    _quantize(layer, "linear/weight", layer.weight)
    weights, scale = layer.weight.numpy().astype(int), layer.weight_scale.numpy()
    np.testing.assert_allclose(weights / scale[:, None], rows, atol=float(0.51 / scale.min()))
    padded = np.pad(np.abs(weights), ((0, 0), (0, -width % 4))).reshape(len(rows), -1, 4)
    pairs = np.sort(padded, axis=2)[:, :, 2:].sum(axis=2)
    assert pairs.max() <= 128
    assert np.abs(weights).max(axis=1)[1:].min() >= 63, "no step is wasted"


def test_the_compute_types_are_ctranslate2s() -> None:
    assert {"int8", "float32"} <= ctranslate2.get_supported_compute_types("cpu")


def test_a_pair_is_scored_once(speaker: TorchModel) -> None:
    scored, asked = CachedScorer(speaker), [ROWS[0], ROWS[1], replace(ROWS[0], label="다른 이름표")]
    np.testing.assert_allclose(scored.log2_probability(asked), speaker.log2_probability(asked), rtol=1e-6)
    assert len(scored.known) == 2, "what a row is called makes no difference to its answer"
    scored.known.update(dict.fromkeys(scored.known, (-1.0, 2.0)))
    assert scored.log2_probability(asked).tolist() == [[-1.0, 2.0]] * 3
    assert scored.log2_probability([]).shape == (0, 2)


def test_bf16_is_not_even_tried_without_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not {"AVX-512", "VNNI", "bf16"} & set(processor_features())
    if platform.machine() == "x86_64":
        assert not has_fast_bf16()
        assert choose_precision("auto", 768, "cpu") == "fp32"
