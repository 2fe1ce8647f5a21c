"""A BERT-style encoder in PyTorch, from a folder or by its hub name: texts → vectors of length 1, mean over tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel

LONGEST = 64
"""Tokens of a text at most, in training."""
APART = 16
"""Steps that processes learn apart."""


@dataclass(frozen=True)
class Bert:
    """A model with its tokenizer, and what is put before each text."""

    model: Any
    tokenizer: Tokenizer
    prefix: str = ""

    @classmethod
    def open(cls, name: str, prefix: str = "") -> Bert:
        """Of a folder, or of the hub. Dropout in attention is off: it costs time and changes little."""
        path = Path(name) / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path)) if path.exists() else Tokenizer.from_pretrained(name)
        tokenizer.no_padding()
        tokenizer.enable_truncation(LONGEST)
        return cls(AutoModel.from_pretrained(name, attention_probs_dropout_prob=0.0), tokenizer, prefix)

    def save(self, folder: Path) -> None:
        """Write both."""
        self.model.save_pretrained(folder)
        self.tokenizer.save(str(folder / "tokenizer.json"))

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Numbers of the tokens of each text."""
        return [one.ids for one in self.tokenizer.encode_batch_fast([self.prefix + text for text in texts])]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(texts, width), rows of length 1, with gradients where they are on."""
        return self.encode_tokens(self.tokens(texts))

    def encode_tokens(self, texts: Sequence[Sequence[int]], batch: int = 48) -> Tensor:
        """The same from tokens; texts of about the same length go through the model together."""
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        chunks = (order[start : start + batch] for start in range(0, len(order), batch))
        parts = [self._pooled([texts[at] for at in chunk]) for chunk in chunks]
        return normalize(torch.cat(parts)[torch.tensor(order).argsort()], dim=1)

    @torch.inference_mode()
    def centre(self, texts: Sequence[str]) -> None:
        """Move the origin to the mean of these texts, by the last norm's bias: E5's vectors lie in one corner."""
        tokens = sorted(self.tokens(texts), key=len)
        mean = torch.cat([self._pooled(tokens[start : start + 48]) for start in range(0, len(tokens), 48)]).mean(0)
        self.model.encoder.layer[-1].output.LayerNorm.bias -= mean

    def _pooled(self, texts: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, texts))
        ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(texts, width) without gradients and dropout."""
        was_training = self.model.training
        self.model.eval()
        found = self.encode(texts).numpy()
        self.model.train(was_training)
        return found


def steps(model: Any, count: int, rate: float, warmup: int = 10) -> Iterator[Any]:
    """AdamW over what is to be learned, its rate rising for some steps and then falling to nothing.

    For each step the caller computes the gradients; the step is taken when it asks for the next. Several processes
    (torchrun) learn apart and average their weights every so often: on a busy machine none waits for another at each
    product, as threads would.
    """
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.01)
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / warmup, (count - step) / (count - warmup))
        yield optimizer
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % APART == APART - 1 or step == count - 1:
            average(learned)


def rank() -> int:
    """Which of several processes this is, counted from 0; the first one tells and saves."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank() if dist.is_initialized() else 0


@torch.no_grad()
def average(weights: Sequence[Tensor]) -> None:
    """Give all processes the mean of their weights."""
    if dist.is_initialized():
        for weight in weights:
            dist.all_reduce(weight)
            weight.div_(dist.get_world_size())
