"""Which weights are trained, and views of a model for computing no more than that needs.

LoRA (Hu et al., 2021, arXiv:2106.09685) on every linear layer, or full fine-tuning; of all blocks or the top ones.
Frozen blocks below the lowest trained one give the same output in every epoch, so `frozen_lower` and `trained_upper`
split a model there: the lower part runs once (training/activation_cache.py). All views share the model's weights.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from daedap.errors import SettingsError

Module = TypeVar("Module", bound=nn.Module)
BLOCK = re.compile(r"\.(?:h|layers|blocks|layer)\.(\d+)\.")
"""The number of a block in a module or parameter name with a leading dot: `.transformer.h.3.attn.c_attn.weight`."""


def with_lora(model: PreTrainedModel, *, rank: int, alpha: int, dropout: float, layers: int | None) -> PeftModel:
    """Freeze the model; add LoRA to the linear layers of the top `layers` blocks (None: all). Raises SettingsError."""
    top = top_blocks(model, layers)
    linear_layers = (name for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D))
    blocks = ((name, BLOCK.search(f".{name}.")) for name in linear_layers)  # the head is in no block
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=[name for name, block in blocks if block and (top is None or int(block[1]) in top)],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's weights are (in, out)
    )
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel), "mixed adapters are not used"
    return adapted


def train_in_full(model: PreTrainedModel, *, layers: int | None) -> PreTrainedModel:
    """Train all weights, or the top `layers` blocks, the final norm and an untied head. Raises SettingsError."""
    top = top_blocks(model, layers)
    if top is None:
        return model
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]  # of tokens and positions
    below = {id(weight) for table in embeddings for weight in table.parameters()}
    for name, weight in model.named_parameters():
        block = BLOCK.search(f".{name}")
        weight.requires_grad = int(block[1]) in top if block else id(weight) not in below
    return model


def lowest_trained_block(model: nn.Module) -> int:
    """The number of the lowest block with a trained weight: all blocks below it are constant. 0 for the embeddings."""
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if any(weight.requires_grad and id(weight) in tables for weight in model.parameters()):
        return 0
    return min(int(block[1]) for name in trained if (block := BLOCK.search(f".{name}")))


def cast_to_bf16(model: nn.Module) -> None:
    """Keep frozen weights in bf16: half the memory, and autocast need not cast them at every step."""
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set the probability of every dropout, modules and attention's own ones."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = probability  # type: ignore[assignment]


def top_blocks(model: PreTrainedModel, layers: int | None) -> list[int] | None:
    """Numbers of the top `layers` blocks; None for all. Raises SettingsError when the model has fewer."""
    if layers is None:
        return None
    blocks = int(model.config.get_text_config().num_hidden_layers)
    if not 1 <= layers <= blocks:
        raise SettingsError(
            "--layers {layers}: the base has {blocks} layers.",
            "Give a number from 1 to {blocks}.",
            layers=layers,
            blocks=blocks,
        )
    return list(range(blocks - layers, blocks))


SPLITTABLE = frozenset({"gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "gemma3_text", "exaone4", "smollm3", "lfm2"})
"""Architectures whose blocks depend on nothing below but the hidden states that enter them."""
_FINAL_NORMS = ("ln_f", "final_layer_norm", "norm", "embedding_norm")
_FEED_FORWARD = ("mlp", "feed_forward")


def unwrap_peft(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model inside a PeftModel, LoRA layers in place; any other model as it is."""
    return model if isinstance(model, PreTrainedModel) else cast("PreTrainedModel", model.get_base_model())


def frozen_lower(model: PreTrainedModel, blocks: int) -> nn.Module:
    """The embedding and the lowest `blocks` blocks: ids, (rows, length), to hidden states, (rows, length, width)."""
    body = _slice_blocks(_body(model), 0, blocks)
    _take_final_norm(body)
    return _FrozenLower(body)


def trained_upper(model: PreTrainedModel, first_block: int = 0, shortlist: Tensor | None = None) -> PreTrainedModel:
    """The model from `first_block` on, its head for shortlisted tokens (None: all) at given positions only.

    Takes the model's own arguments, with the hidden states below as `inputs_embeds` unless `first_block` is 0, and
    `positions`: (row, position), (labels,) each. Its logits are (1, labels, tokens). The last block's feed-forward
    layer and the final norm run at these positions only, too.
    """
    view = shallow_view(model)
    body = _slice_blocks(_body(model), first_block, None) if first_block else shallow_view(_body(model))
    if first_block:
        _remove_embedding(body)
    view._modules[model.base_model_prefix] = _GatherPositions(body, split=model.config.model_type in SPLITTABLE)
    if shortlist is not None:
        head = cast("nn.Linear", model.get_output_embeddings())
        name = next(name for name, child in model.named_children() if child is head)
        view._modules[name] = _ShortlistHead(head, shortlist)
    return view


class _FrozenLower(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.body(input_ids=ids, use_cache=False).last_hidden_state
        return states


class _GatherPositions(nn.Module):
    """A body that returns the hidden states of given positions only, as one row: the head runs nowhere else.

    `split`: change the body so that all that follows the last block's attention runs nowhere else either.
    """

    def __init__(self, body: nn.Module, *, split: bool) -> None:
        super().__init__()
        self.body = body
        self.feed_forward = _feed_forward_at_positions(body) if split else None
        self.norm = _take_final_norm(body) if split else nn.Identity()

    def forward(self, *args: Any, positions: tuple[Tensor, Tensor], **kwargs: Any) -> Any:
        if self.feed_forward is not None:
            self.feed_forward.positions = positions
        output = self.body(*args, **kwargs)
        return replace(output, last_hidden_state=self.norm(output.last_hidden_state[positions][None]))

    def get_input_embeddings(self) -> nn.Module:
        """Required by transformers of every body."""
        return self.body.get_input_embeddings()  # type: ignore[operator, no-any-return]


class _AtPositions(nn.Module):
    """A layer that is computed at the given positions of its input and is 0 at all others, where nobody looks."""

    positions: tuple[Tensor, Tensor]
    """(row, position), set before each call. A position may occur twice: only one occurrence gets a gradient."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: Tensor) -> Tensor:
        computed: Tensor = self.layer(states[self.positions][None])[0]
        rows, length, width = states.shape
        row, position = self.positions
        source = torch.full((rows * length,), len(row), device=states.device)
        source[row * length + position] = torch.arange(len(row), device=states.device)
        padded = torch.cat([computed, computed.new_zeros(1, width)])
        return padded[source].view(rows, length, width)


def _feed_forward_at_positions(body: nn.Module) -> _AtPositions:
    """Replace the last block's feed-forward layer, in a view of a body that becomes another view."""
    name, (*blocks, last) = _blocks(body)
    view = shallow_view(last)
    part = next(part for part in _FEED_FORWARD if part in view._modules)
    limited = view._modules[part] = _AtPositions(cast("nn.Module", view._modules[part]))
    body._modules[name] = nn.ModuleList([*blocks, view])
    return limited


def _take_final_norm(body: nn.Module) -> nn.Module:
    """Take the final norm out of a view of a body."""
    name = next(name for name in _FINAL_NORMS if name in body._modules)
    norm = cast("nn.Module", body._modules[name])
    body._modules[name] = nn.Identity()
    return norm


class _ShortlistHead(nn.Module):
    """A head for some tokens: rows of a frozen head are copied once, rows of a trained one indexed at every step."""

    def __init__(self, head: nn.Linear, tokens: Tensor) -> None:
        super().__init__()
        self.index = tokens if head.weight.requires_grad else slice(None)
        self.weight = _rows(cast("nn.Parameter", head.weight), tokens)
        self.bias = None if head.bias is None else _rows(head.bias, tokens)

    def forward(self, states: Tensor) -> Tensor:
        return linear(states, self.weight[self.index], None if self.bias is None else self.bias[self.index])


def _rows(parameter: nn.Parameter, tokens: Tensor) -> nn.Parameter:
    return parameter if parameter.requires_grad else nn.Parameter(parameter.data[tokens], requires_grad=False)


class _NoPositions(nn.Module):
    """Replaces learned position embeddings, which are already part of the hidden states."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)


def _slice_blocks(body: nn.Module, first: int, stop: int | None) -> nn.Module:
    view, (name, blocks) = shallow_view(body), _blocks(body)
    blocks = blocks[first:stop]
    view._modules[name] = nn.ModuleList(blocks)
    view.config = config = copy.copy(cast("Any", body.config))
    config.num_hidden_layers = len(blocks)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[first:stop]
    return view


def _remove_embedding(body: nn.Module) -> None:
    """Remove position embeddings and input dropout: the hidden states contain both. The token table stays, unused."""
    tokens = body.get_input_embeddings()  # type: ignore[operator]
    for name, child in body.named_children():
        if isinstance(child, nn.Embedding) and child is not tokens:
            body._modules[name] = _NoPositions()
        elif isinstance(child, nn.Dropout):
            body._modules[name] = nn.Identity()


def _blocks(body: nn.Module) -> tuple[str, list[nn.Module]]:
    """The name of the list of blocks in a body, and the blocks."""
    return next((name, list(child)) for name, child in body.named_children() if isinstance(child, nn.ModuleList))


def _body(model: PreTrainedModel) -> nn.Module:
    return cast("nn.Module", getattr(model, model.base_model_prefix))


def shallow_view(module: Module) -> Module:
    """A module with the same weights and children, whose children can be replaced without changing the original."""
    view = copy.copy(module)
    view.__dict__ = {**module.__dict__, "_modules": dict(module._modules)}
    return view
