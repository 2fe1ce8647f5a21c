"""The training stage: a run's settings and pairs → its model, all read from and written to the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from accelerate.utils import set_seed
from peft import PeftModel
from transformers import PreTrainedModel

from daedap.data.store import read_side
from daedap.errors import SettingsError
from daedap.files import write_json
from daedap.lm.adapter import set_dropout, train_in_full, with_lora
from daedap.lm.base import Base, load_base
from daedap.lm.device import settle
from daedap.lm.fit import Fitting
from daedap.lm.fresh import fresh_base
from daedap.lm.learned import save_learned
from daedap.lm.loss import answer_losses, collate
from daedap.lm.prompt import Example, Prompt
from daedap.lm.recipe import FRESH, Learner, Method, Recipe
from daedap.pair import Pair
from daedap.runs import Json, Run

_SMALL = 50_000_000
"""Weights below which a base is trained in full, as fast as a new one: LoRA would save nothing there."""
_RATES = {"lora": 5e-4, "full": 5e-5}
_RATE_OF_SMALL = 1e-3


@dataclass(frozen=True)
class Examples:
    """A run's rows as the model sees them."""

    train: list[Example]
    dev: list[Example]
    too_long: int
    """Rows left out because question, answer and end token do not fit."""


def learn(run: Run, base: Base | None = None) -> None:
    """Train what the run's settings ask for, from its newest checkpoint on; write the model and `learned.json`."""
    learner, recipe = Learner(**run.settings["learner"]), Recipe(**run.settings["recipe"])
    train, dev = read_side(run.folder, "train"), read_side(run.folder, "dev")
    base = base or choose_base(learner, recipe, train)
    prompt = base.prompt(learner.max_length)
    examples = _render(prompt, train, dev)
    recipe = replace(recipe, learning_rate=recipe.learning_rate or _default_rate(learner, base))
    set_seed(recipe.seed)  # LoRA's matrices start at random
    model = _trainable(base, learner)
    machine = settle(run, learner.device, learner.precision, partial(_trial, model, examples.train, prompt.pad))
    fitting = Fitting(model.to(machine.device), recipe, machine, run.folder, prompt.pad)  # type: ignore[arg-type]
    fitted = fitting.run(examples.train, examples.dev)
    save_learned(fitting.model, prompt, run.folder)  # type: ignore[arg-type]
    write_json(
        run.folder / "learned.json",
        {
            "base": {"name": base.name, "digest": base.digest, "licence": base.licence, "seed": recipe.seed},
            "method": _method(learner, base),
            "learning_rate": recipe.learning_rate,
            "limits": {"max_length": prompt.max_length, "max_new_tokens": _longest_answer(examples.train)},
            "rows": {"train": len(examples.train), "dev": len(examples.dev), "too_long": examples.too_long},
            "parameters": _count(fitting.model),
            "training": fitted._asdict(),
            "machine": asdict(machine),
        },
    )


def choose_base(learner: Learner, recipe: Recipe, train: Sequence[Pair]) -> Base:
    """The named base, or a fresh one fitted on the training rows alone. Raises BaseError."""
    if learner.base == FRESH:
        return fresh_base([text for pair in train for text in (pair.question, pair.answer)], recipe.seed)
    return load_base(learner.base)


def _method(learner: Learner, base: Base) -> Method:
    return learner.method or ("full" if _small(base) else "lora")


def _default_rate(learner: Learner, base: Base) -> float:
    return _RATE_OF_SMALL if _small(base) else _RATES[_method(learner, base)]


def _small(base: Base) -> bool:
    return base.model.num_parameters() < _SMALL


def _render(prompt: Prompt, train: Sequence[Pair], dev: Sequence[Pair]) -> Examples:
    learned, watched = ([prompt.example(pair) for pair in side if prompt.fits(pair)] for side in (train, dev))
    if not learned:
        raise SettingsError(
            "No training row fits into --max-length {length}.", "Give a larger one.", length=prompt.max_length
        )
    return Examples(learned, watched, len(train) + len(dev) - len(learned) - len(watched))


def _trainable(base: Base, learner: Learner) -> PreTrainedModel | PeftModel:
    if _method(learner, base) == "full":
        set_dropout(base.model, learner.dropout)
        return train_in_full(base.model, layers=learner.layers)
    set_dropout(base.model, 0.0)  # the base is frozen: noise in it teaches the adapter nothing
    return with_lora(
        base.model, rank=learner.lora_r, alpha=learner.lora_alpha, dropout=learner.dropout, layers=learner.layers
    )


def _trial(model: PreTrainedModel | PeftModel, train: list[Example], pad: int, device: str, dtype: torch.dtype) -> None:
    """One step of training that changes no weight."""
    model.to(device)  # type: ignore[arg-type]
    with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
        answer_losses(model, collate(train[:32], pad, device)).mean().backward()
    model.zero_grad()


def _longest_answer(train: Sequence[Example]) -> int:
    return max(len(example.ids) - example.answer for example in train)


def _count(model: torch.nn.Module) -> Json:
    weights = list(model.parameters())
    return {
        "total": sum(weight.numel() for weight in weights),
        "trained": sum(weight.numel() for weight in weights if weight.requires_grad),
    }
