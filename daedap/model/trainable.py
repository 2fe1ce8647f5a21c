"""Which weights are trained: LoRA on every linear layer, or all of them; in all blocks, or the top ones only.

Views of a model that share its weights: its lower blocks alone, its upper blocks alone, its head for some tokens.

What is frozen and below everything that learns gives the same output in every epoch: it is run once (see cache.py).
What the head says of tokens that no answer has is computed for nothing: a shortlist leaves it out.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from daedap.errors import SettingsError

if TYPE_CHECKING:
    from peft import PeftModel

Linear = (nn.Linear, Conv1D)
_BLOCK = re.compile(r"\.(?:h|layers|blocks|layer)\.(\d+)\.")


def with_lora(model: PreTrainedModel, *, rank: int, alpha: int, dropout: float, layers: int | None) -> PeftModel:
    """Freeze the model and add LoRA to all linear layers of the top `layers` blocks (None: all)."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=_linear(model, top_blocks(model, layers)),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 keeps (in, out)
    )
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel), "mixed adapters are not asked for"
    return adapted


def train_in_full(model: PreTrainedModel, *, layers: int | None) -> PreTrainedModel:
    """Train every weight, or only the top `layers` blocks with what comes after them."""
    top = top_blocks(model, layers)
    if top is None:
        return model
    tables = [part for part in model.modules() if isinstance(part, nn.Embedding)]  # of tokens and of positions
    below = {id(weight) for table in tables for weight in table.parameters()}
    for name, weight in model.named_parameters():
        block = _BLOCK.search(f".{name}")
        weight.requires_grad = int(block[1]) in top if block else id(weight) not in below
    return model


def lowest_trained_block(model: nn.Module) -> int:
    """The number of the lowest block that learns anything: all that lies below it always says the same. 0: no block."""
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    if any(weight.requires_grad and id(weight) in tables for weight in model.parameters()):
        return 0
    return min(int(block[1]) for name in trained if (block := _BLOCK.search(f".{name}")))


def cast_to_bf16(model: nn.Module) -> None:
    """Keep weights that will not be trained in bf16, half the memory: no step has to round them again."""
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()


def set_dropout(model: nn.Module, probability: float) -> None:
    """Give every dropout that the architecture has this probability."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = probability  # type: ignore[assignment]


def _linear(model: PreTrainedModel, blocks: list[int] | None) -> list[str]:
    """Full names of the linear layers inside these blocks (None: all); the head is in none."""
    found = ((name, _BLOCK.search(f".{name}.")) for name, part in model.named_modules() if isinstance(part, Linear))
    return [name for name, block in found if block and (blocks is None or int(block[1]) in blocks)]


def top_blocks(model: PreTrainedModel, layers: int | None) -> list[int] | None:
    """Numbers of the top blocks. Raises SettingsError when there are not so many."""
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


Module = TypeVar("Module", bound=nn.Module)
SPLITTABLE = frozenset({"gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "gemma3_text", "exaone4", "smollm3", "lfm2"})
"""Architectures whose blocks can be run apart: what enters a block is all that the blocks below have to say."""

_LAST_NORMS = ("ln_f", "final_layer_norm", "norm", "embedding_norm")


def unwrap_peft(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model itself, an adapter's layers in their places."""
    return model if isinstance(model, PreTrainedModel) else cast("PreTrainedModel", model.get_base_model())


def frozen_lower(model: PreTrainedModel, blocks: int) -> nn.Module:
    """The embedding and the lowest `blocks` blocks: input_ids, (rows, length), to states, (rows, length, width)."""
    body = _with_blocks(_body(model), 0, blocks)
    norm = next(name for name in _LAST_NORMS if name in body._modules)
    body._modules[norm] = nn.Identity()
    return _Lower(body)


def trained_upper(model: PreTrainedModel, lowest: int = 0, shortlist: Tensor | None = None) -> PreTrainedModel:
    """The model from block `lowest` on, its head for the tokens of the shortlist (None: all) at chosen places only.

    It takes what the model takes, `inputs_embeds` being the states below when `lowest` is not 0, and `at`: (row, place)
    of the positions to read, (labels,) each. Its logits are (1, labels, tokens).
    """
    twin = shallow_view(model)
    body = _with_blocks(_body(model), lowest, None) if lowest else _body(model)
    twin._modules[model.base_model_prefix] = _GatherPositions(_without_embedding(body) if lowest else body)
    if shortlist is not None:
        name = next(name for name, part in model.named_children() if part is model.get_output_embeddings())
        twin._modules[name] = _ShortlistHead(cast("nn.Linear", model.get_output_embeddings()), shortlist)
    return twin


class _Lower(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.body(input_ids=ids, use_cache=False).last_hidden_state
        return states


class _GatherPositions(nn.Module):
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


class _ShortlistHead(nn.Module):
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
    twin = shallow_view(body)
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


def shallow_view(module: Module) -> Module:
    """The same weights and parts in a module whose parts can be replaced."""
    twin = copy.copy(module)
    twin.__dict__ = {**module.__dict__, "_modules": dict(module._modules)}
    return twin
