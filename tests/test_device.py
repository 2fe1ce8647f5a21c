from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
import toys
from torch import nn
from transformers.activations import NewGELUActivation

from daedap.errors import SettingsError
from daedap.model.base import load_base
from daedap.model.device import choose_precision, fuse_activations, has_fast_bf16, processor_features, require_compiler


def test_a_fused_activation_computes_the_same(tmp_path: Path) -> None:
    model = load_base(str(toys.kogpt2(tmp_path / "kogpt2"))).model
    ids = torch.randint(0, 900, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids).logits
        fuse_activations(model)
        actual = model(ids).logits
    assert not any(isinstance(part, NewGELUActivation) for part in model.modules())
    assert sum(isinstance(part, nn.GELU) for part in model.modules()) == 2
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_bf16_is_not_chosen_without_hardware_support(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not {"AVX-512", "VNNI", "bf16"} & set(processor_features())
    if platform.machine() == "x86_64":
        assert not has_fast_bf16()
        assert choose_precision("auto", 768, "cpu") == "fp32"


def test_a_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("No working C++ compiler found\nlong explanation")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    with pytest.raises(SettingsError, match=r"can't compile here \(No working C\+\+ compiler found\)\. Install"):
        require_compiler()
