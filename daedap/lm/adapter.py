"""Which weights are trained: LoRA on every linear layer, or all of them; in all blocks, or the top ones only."""

from __future__ import annotations

import re

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from daedap.errors import SettingsError

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


def lowest_trained(model: nn.Module) -> int:
    """The number of the lowest block that learns anything: all that lies below it always says the same. 0: no block."""
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    if any(weight.requires_grad and id(weight) in tables for weight in model.parameters()):
        return 0
    return min(int(block[1]) for name in trained if (block := _BLOCK.search(f".{name}")))


def keep_in_bf16(model: nn.Module) -> None:
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
