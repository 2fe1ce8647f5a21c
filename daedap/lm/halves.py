"""Views of a model that share its weights: its lower blocks alone, its upper blocks alone, its head for some tokens.

What is frozen and below everything that learns gives the same output in every epoch: it is run once (see cache.py).
What the head says of tokens that no answer has is computed for nothing: a shortlist leaves it out.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel

Module = TypeVar("Module", bound=nn.Module)
PARTED = frozenset({"gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "gemma3_text", "exaone4", "smollm3", "lfm2"})
"""Architectures whose blocks can be run apart: what enters a block is all that the blocks below have to say."""

_LAST_NORMS = ("ln_f", "final_layer_norm", "norm", "embedding_norm")


def plain(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model itself, an adapter's layers in their places."""
    return model if isinstance(model, PreTrainedModel) else cast("PreTrainedModel", model.get_base_model())


def lower_half(model: PreTrainedModel, blocks: int) -> nn.Module:
    """The embedding and the lowest `blocks` blocks: input_ids, (rows, length), to states, (rows, length, width)."""
    body = _with_blocks(_body(model), 0, blocks)
    norm = next(name for name in _LAST_NORMS if name in body._modules)
    body._modules[norm] = nn.Identity()
    return _Lower(body)


def reader(model: PreTrainedModel, lowest: int = 0, shortlist: Tensor | None = None) -> PreTrainedModel:
    """The model from block `lowest` on, its head for the tokens of the shortlist (None: all) at chosen places only.

    It takes what the model takes, `inputs_embeds` being the states below when `lowest` is not 0, and `at`: (row, place)
    of the positions to read, (labels,) each. Its logits are (1, labels, tokens).
    """
    twin = _twin(model)
    body = _with_blocks(_body(model), lowest, None) if lowest else _body(model)
    twin._modules[model.base_model_prefix] = _Picking(_without_embedding(body) if lowest else body)
    if shortlist is not None:
        name = next(name for name, part in model.named_children() if part is model.get_output_embeddings())
        twin._modules[name] = _Shortlisted(cast("nn.Linear", model.get_output_embeddings()), shortlist)
    return twin


class _Lower(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.body(input_ids=ids, use_cache=False).last_hidden_state
        return states


class _Picking(nn.Module):
    """A body that returns only what stands at some positions, as one row: the head is spared the others."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *args: Any, at: tuple[Tensor, Tensor], **kwargs: Any) -> Any:
        output = self.body(*args, **kwargs)
        return replace(output, last_hidden_state=output.last_hidden_state[at][None])

    def get_input_embeddings(self) -> nn.Module:
        """As transformers asks of every body."""
        return self.body.get_input_embeddings()  # type: ignore[operator, no-any-return]


class _Shortlisted(nn.Module):
    """A head for some tokens: their rows are copied when it is frozen, picked at every step when it learns."""

    def __init__(self, head: nn.Linear, tokens: Tensor) -> None:
        super().__init__()
        self.picked = tokens if head.weight.requires_grad else slice(None)
        self.weight = _rows(cast("nn.Parameter", head.weight), tokens)
        self.bias = None if head.bias is None else _rows(head.bias, tokens)

    def forward(self, states: Tensor) -> Tensor:
        return linear(states, self.weight[self.picked], None if self.bias is None else self.bias[self.picked])


def _rows(part: nn.Parameter, tokens: Tensor) -> nn.Parameter:
    return part if part.requires_grad else nn.Parameter(part.data[tokens], requires_grad=False)


class _NoPositions(nn.Module):
    """In the place of learned positions, which the states below already hold."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)


def _with_blocks(body: nn.Module, first: int, stop: int | None) -> nn.Module:
    twin = _twin(body)
    name = next(name for name, part in body.named_children() if isinstance(part, nn.ModuleList))
    blocks = list(cast("nn.ModuleList", body._modules[name]))[first:stop]
    twin._modules[name] = nn.ModuleList(blocks)
    twin.config = config = copy.copy(cast("Any", body.config))
    config.num_hidden_layers = len(blocks)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[first:stop]
    return twin


def _without_embedding(body: nn.Module) -> nn.Module:
    """No positions or noise are put in any more: the states below hold them. Its table of tokens is never asked."""
    tokens = body.get_input_embeddings()  # type: ignore[operator]
    for name, part in body.named_children():
        if isinstance(part, nn.Embedding) and part is not tokens:
            body._modules[name] = _NoPositions()
        elif isinstance(part, nn.Dropout):
            body._modules[name] = nn.Identity()
    return body


def _body(model: PreTrainedModel) -> nn.Module:
    return cast("nn.Module", getattr(model, model.base_model_prefix))


def _twin(module: Module) -> Module:
    """The same weights and parts in a module whose parts can be replaced."""
    twin = copy.copy(module)
    twin.__dict__ = {**module.__dict__, "_modules": dict(module._modules)}
    return twin
