from __future__ import annotations

from pathlib import Path

import torch
import toys
from torch import nn
from transformers.activations import NewGELUActivation

from daedap.model.base import load_base
from daedap.model.device import fuse_activations


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
