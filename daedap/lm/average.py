"""Weight averaging: the mean of what a training has learned at several moments (SWA: Izmailov et al., 2018).

Late epochs learn the training rows by heart, each in its own direction; their mean does so less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_swa_multi_avg_fn


class Average:
    """The mean of a model's trained weights, frozen ones left out. accelerate keeps it in every checkpoint."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._mean = [torch.zeros_like(weight, requires_grad=False) for weight in self._weights]
        self._update = get_swa_multi_avg_fn()

    def add(self) -> None:
        """Take in the weights as they are now."""
        self._update(self._mean, self._weights, self.count)
        self.count += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it, bit for bit."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Put the averaged weights into the model and keep its own in their place."""
        for weight, mean in zip(self._weights, self._mean, strict=True):
            own = weight.clone()
            weight.copy_(mean)
            mean.copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values and tensors."""
        return {"count": self.count, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        self.count = int(state["count"])
        for mean, saved in zip(self._mean, state["mean"], strict=True):
            mean.copy_(saved)
