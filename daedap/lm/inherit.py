"""What a run that goes on from another one begins with: its parent's base, weights and adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from daedap.lm.base import Base, same_base
from daedap.lm.learned import adapter_or_model, damaged, whole_model
from daedap.lm.recipe import FRESH
from daedap.lm.tokenizer import load_tokenizer
from daedap.runs import Run

if TYPE_CHECKING:
    from peft import PeftModel


def inherited_base(parent: Run) -> Base:
    """The parent's base, with what the parent has learned in full. Raises BaseError and RunError."""
    recorded, folder = parent.learned["base"], adapter_or_model(parent)
    if folder.name == "adapter":
        return same_base(parent, recorded)
    if recorded["name"] != FRESH:
        same_base(parent, recorded)  # so that the run can still be held against its untuned base
    licence, digest = recorded["licence"], recorded["digest"]
    return Base(recorded["name"], whole_model(folder), load_tokenizer(folder), licence, digest)


def inherit_adapter(model: PeftModel, parent: Run) -> None:
    """Give new LoRA matrices the parent's values. Raises RunError when these can't be read, or have other shapes."""
    folder = parent.folder / "adapter"
    try:
        values = load_file(folder / "adapter_model.safetensors")
        set_peft_model_state_dict(model, values)
    except Exception as error:  # safetensors and torch have their own errors
        raise damaged(folder, error) from error
    assert values.keys() == get_peft_model_state_dict(model).keys(), f"{folder} holds another adapter"
