"""What a run that goes on from another one begins with: its parent's base, weights, adapter, and some of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from daedap.data.split import drawn
from daedap.data.store import read_side
from daedap.lm.base import Base, same_base
from daedap.lm.learned import adapter_or_model, damaged, whole_model
from daedap.lm.recipe import FRESH
from daedap.lm.tokenizer import load_tokenizer
from daedap.pair import Pair
from daedap.runs import Run

if TYPE_CHECKING:
    from peft import PeftModel

_AGAIN, _FEWEST_AGAIN = 10, 32
"""Known rows learned again for each new one, and at least: a few new rows take few steps, which forget little."""
_LEAST_RATE = 0.1
"""Share of the learning rate for a few new rows: the whole of it costs 0.1 bits per character (docs/EXPERIMENTS.md)."""


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


def rows_to_learn(run: Run) -> list[Pair]:
    """The training rows; of a run that goes on from another one, the new ones and some of the others again."""
    train = read_side(run.folder, "train")
    if not run.parent:
        return train
    new, recipe = run.new_rows, run.settings["recipe"]
    return [*train[:new], *drawn(train[new:], _again(len(train) - new, new, recipe["replay"]), recipe["seed"])]


def _again(known: int, new: int, share: float | None) -> int:
    """So many known rows: this share; or ten for each new row, up to a tenth of them; or as many as are new."""
    if share is not None:
        return round(share * known)
    return max(min(-(-known // 10), max(_FEWEST_AGAIN, _AGAIN * new)), new)


def inherited_rate(run: Run, usual: float) -> float:
    """Of a run that goes on from another one only as much as its rows are new: the rest is to stay as it is."""
    if not run.parent:
        return usual
    new, known = run.new_rows, int(run.document("data/source.json")["train"]) - run.new_rows
    return usual * min(1.0, max(_LEAST_RATE, new / max(1, known)))
