"""An engine is used only where it agrees with PyTorch on this processor."""

from __future__ import annotations

import json
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
from daedap.model.convert import convert, quantize
from daedap.model.device import processor_kind
from daedap.model.engine import Engine
from daedap.model.language_model import TorchModel
from daedap.model.verify import Agreement, Reference, open_engine, open_verified_engine, read_verifications
from daedap.runs import Run, find

ROWS = toys.PAIRS[:12]


def outliers(model: TorchModel) -> TorchModel:
    """Make one feature of every activation a thousand times larger and ignore it: int8 rounds all others to 0."""
    body: Any = cast("GPT2LMHeadModel", model.model).transformer
    with torch.no_grad():
        for block in body.h:
            for norm, reads in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                norm.weight[0] = 1000.0
                reads.weight[0] = 0.0
    return model


@pytest.fixture
def model(tmp_path: Path) -> TorchModel:
    base = load_base(str(toys.kogpt2(tmp_path / "kogpt2")))
    return TorchModel(base.model, base.prompt(96), max_new_tokens=12)


def converted(model: TorchModel, folder: Path) -> Path:
    convert(model.model, model.prompt, folder)
    Reference.of(model, ROWS).save(folder)
    return folder


def open_verified(model: TorchModel, folder: Path) -> Engine | None:
    return open_verified_engine(folder, model.prompt, model.max_new_tokens)


def test_int8_is_used_where_it_agrees(model: TorchModel, tmp_path: Path) -> None:
    folder = converted(model, tmp_path / "engine")
    engine = open_verified(model, folder)
    assert engine is not None
    assert engine.compute_type == "int8"
    actual = read_verifications(folder)[processor_kind()]
    assert actual["compute_type"] == "int8"
    assert abs(actual["bpc_difference"]) <= 0.02


def test_float32_is_used_where_int8_deviates(
    model: TorchModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="daedap")
    folder = converted(outliers(model), tmp_path / "engine")
    engine = open_verified(model, folder)
    assert engine is not None
    assert engine.compute_type == "float32"
    assert "computes in float32 on this processor" in caplog.text
    int8 = Engine.open(folder, model.prompt, 12, "int8")
    assert not Reference.open(folder).compare(int8).close
    wanted, actual = model.log2_probability(ROWS)[:, 0], engine.log2_probability(ROWS)[:, 0]
    assert actual.sum() == pytest.approx(wanted.sum(), rel=0.01)


def test_no_engine_is_used_where_none_agrees(
    model: TorchModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = converted(model, tmp_path / "engine")
    reference = Reference.open(folder)
    replace(reference, log2_probabilities=(float("nan"), *reference.log2_probabilities[1:])).save(folder)
    assert open_verified(model, folder) is None
    assert open_verified(model, folder) is None
    assert caplog.text.count("PyTorch answers, slower") == 1, "reported once, then recorded"
    assert read_verifications(folder)[processor_kind()] == {"compute_type": "pytorch"}


def test_a_kind_of_processor_is_verified_once(
    model: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = converted(model, tmp_path / "engine")
    assert open_verified(model, folder) is not None
    here = processor_kind()
    (folder / "reference.json").unlink()
    assert open_verified(model, folder) is not None, "not verified again"
    monkeypatch.setenv("CT2_FORCE_CPU_ISA", "GENERIC")  # counts as another kind of processor
    assert processor_kind() != here
    with pytest.raises(RunError, match=r"reference\.json.*can't be read"):
        open_verified(model, folder)
    Reference.of(model, ROWS).save(folder)
    assert open_verified(model, folder) is not None
    assert set(read_verifications(folder)) == {here, processor_kind()}


def test_a_run_is_moved_to_another_processor(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = Run(Path(shutil.copytree(trained.folder, tmp_path / "0001")))
    assert moved.manifest["engine"] == read_verifications(moved.folder / "engine")[processor_kind()]
    monkeypatch.setenv("CT2_FORCE_CPU_ISA", "GENERIC")
    assert isinstance(open_engine(moved), Engine)
    assert processor_kind() in read_verifications(moved.folder / "engine")
    assert find(str(moved.folder), tmp_path) == moved, "records of other processors are no damage"


def test_agreement_thresholds() -> None:
    assert Agreement("int8", 0.019, same_answers=9, clear_answers=10).close
    assert Agreement("int8", -0.019, same_answers=0, clear_answers=0).close
    assert not Agreement("int8", 0.021, same_answers=10, clear_answers=10).close
    assert not Agreement("int8", 0.0, same_answers=7, clear_answers=10).close
    assert not Agreement("int8", float("nan"), same_answers=10, clear_answers=10).close


def test_the_margin_is_the_smallest_lead(model: TorchModel) -> None:
    (reply, margin), *_ = model.greedy(ROWS[:1])
    ids, margins = model.prompt.question(ROWS[0]), []
    controls = [id for id in model.prompt.control_ids if id != model.prompt.template.eos_id]
    for _ in range(reply.tokens):
        with torch.no_grad():
            logits = cast("GPT2LMHeadModel", model.model)(torch.tensor([ids])).logits[0, -1]
        logits[controls] = -torch.inf
        best = logits.topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    assert margin == pytest.approx(min(margins), abs=1e-3)


def test_a_damaged_record_is_reported(model: TorchModel, tmp_path: Path) -> None:
    folder = converted(model, tmp_path / "engine")
    (folder / "verified.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"verified\.json.*can't be read"):
        open_verified(model, folder)
    (folder / "verified.json").unlink()
    document = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    write_json(folder / "reference.json", {**document, "pairs": [{"question": "주차 되나요?"}]})
    with pytest.raises(RunError, match=r"reference\.json.*can't be read"):
        open_verified(model, folder)


@pytest.mark.parametrize("width", [1, 5, 64])
def test_no_pair_of_int8_weights_can_saturate(width: int) -> None:
    """Without VNNI, two products with an activation of up to 255 are added in 16 bits."""
    rows = np.random.default_rng(0).standard_t(2, (50, width)).astype(np.float32)
    rows[0] = 0.0
    layer = LinearSpec()
    layer.weight = NumpyVariable(rows.copy())
    quantize(layer, "linear/weight", layer.weight)
    weights, scale = layer.weight.numpy().astype(int), layer.weight_scale.numpy()
    np.testing.assert_allclose(weights / scale[:, None], rows, atol=float(0.51 / scale.min()))
    padded = np.pad(np.abs(weights), ((0, 0), (0, -width % 4))).reshape(len(rows), -1, 4)
    pairs = np.sort(padded, axis=2)[:, :, 2:].sum(axis=2)
    assert pairs.max() <= 128
    assert np.abs(weights).max(axis=1)[1:].min() >= 63, "the range is used"


def test_the_compute_types_are_supported() -> None:
    assert {"int8", "float32"} <= ctranslate2.get_supported_compute_types("cpu")
