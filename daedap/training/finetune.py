"""The training stage: a run's settings and rows → its model, read from and written to the run's folder.

A run that continues another one (`--from`) starts with the parent's base, weights or adapter and
replays some of its rows.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NoReturn

import torch
from accelerate.utils import set_seed
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from daedap.config import FRESH, AugmentOptions, DeviceName, Method, ModelOptions, TrainOptions, read_train_options
from daedap.data.augment import augment, without_question
from daedap.data.split import HELD_OUT, read_rows, sample_rows
from daedap.errors import SettingsError
from daedap.files import write_json
from daedap.i18n import translate
from daedap.model.base import Base, load_base, load_recorded_base, random_init_base
from daedap.model.device import Machine, choose_device, fuse_activations, resolve_compiler, resolve_machine
from daedap.model.distributed import broadcast, init_distributed, receive
from daedap.model.prompt import Example, Prompt
from daedap.model.saved import load_full_model, save_trained, unreadable_weights, weights_folder
from daedap.model.tokenizer import load_tokenizer
from daedap.model.trainable import (
    cast_to_bf16,
    set_dropout,
    top_blocks,
    train_in_full,
    with_lora,
)
from daedap.runs import Json, Run
from daedap.training.activation_cache import find_frozen
from daedap.training.planner import Plan, choose_plan, indexing_seconds, measure_costs, scoring_seconds
from daedap.training.trainer import Trainer, TrainResult, build_task
from daedap.types import Pair

_log = logging.getLogger("daedap")
_REPLAYED_PER_NEW_ROW, _LEAST_REPLAYED = 10, 32
"""Replayed rows per new row, and the fewest: a few new rows take few steps, in which little is forgotten."""
_LEAST_RATE_SHARE = 0.1
"""Share of the learning rate for a few new rows: the full rate costs 0.1 bits per character (docs/EXPERIMENTS.md)."""


def parent_base(parent: Run) -> Base:
    """The parent's base, or its full weights where it was trained in full. Raises BaseError and RunError."""
    recorded, folder = parent.learned["base"], weights_folder(parent)
    if folder.name == "adapter":
        return load_recorded_base(parent, recorded)
    if recorded["name"] != FRESH:
        load_recorded_base(parent, recorded)  # raises now if it is gone: the run is evaluated beside its untuned base
    licence, digest = recorded["licence"], recorded["digest"]
    return Base(recorded["name"], load_full_model(folder), load_tokenizer(folder), licence, digest)


def load_parent_adapter(model: PeftModel, parent: Run) -> None:
    """Load the parent's LoRA matrices. Raises RunError when they can't be read or have other shapes."""
    folder = parent.folder / "adapter"
    try:
        values = load_file(folder / "adapter_model.safetensors")
        set_peft_model_state_dict(model, values)
    except Exception as error:  # safetensors and torch have their own errors
        raise unreadable_weights(folder, error) from error
    assert values.keys() == get_peft_model_state_dict(model).keys(), f"{folder} holds another adapter"


def rows_to_learn(run: Run) -> list[Pair]:
    """The training rows; in a run that continues another one the new rows and a sample of the others (replay)."""
    train = read_rows(run.folder, "train")
    if not run.parent:
        return train
    new, train_options = run.new_rows, run.settings["recipe"]
    return [
        *train[:new],
        *sample_rows(
            train[new:], _replayed_rows(len(train) - new, new, train_options["replay"]), train_options["seed"]
        ),
    ]


def _replayed_rows(known: int, new: int, share: float | None) -> int:
    """How many known rows are replayed: the given share; else ten per new row, up to a tenth of the known rows."""
    if share is not None:
        return round(share * known)
    return max(min(-(-known // 10), max(_LEAST_REPLAYED, _REPLAYED_PER_NEW_ROW * new)), new)


def parent_learning_rate(run: Run, usual: float) -> float:
    """The learning rate of a run that continues another one: reduced in proportion to its share of new rows."""
    if not run.parent:
        return usual
    new, known = run.new_rows, int(run.document("data/source.json")["train"]) - run.new_rows
    return usual * min(1.0, max(_LEAST_RATE_SHARE, new / max(1, known)))


_SMALL_MODEL_WEIGHTS = 50_000_000
"""Weights below which a base is trained in full by default: LoRA would save nothing there."""
_SHORT_ROW_TOKENS = 64
"""Mean tokens per row below which eager attention is faster than the fused kernel."""
_RATES = {"lora": 5e-4, "full": 5e-5}
_RATE_OF_SMALL = 1e-3


@dataclass(frozen=True)
class Examples:
    """A run's rows as token ids."""

    train: list[Example]
    dev: list[Example]
    too_long: int
    """Rows left out because question, answer and end token do not fit."""
    augmented: int
    """Training rows made by augmentation."""


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that a training needs before its first step; the trainer updates its model in place."""

    base: Base
    model_options: ModelOptions
    prompt: Prompt
    examples: Examples
    trainer: Trainer


def finetune(run: Run, base: Base | None = None) -> TrainingSetup:
    """Train by the run's settings, from its newest checkpoint on; write the model and `learned.json`."""
    init_distributed(choose_device(run.settings["learner"]["device"]))
    setup = setup_training(broadcast(lambda: run), base)
    result = setup.trainer.run()
    save_trained(setup.trainer.task.model, setup.prompt, run.folder)
    write_json(run.folder / "learned.json", _record(run, setup, result))
    return setup


def run_worker(device: DeviceName) -> NoReturn:
    """The processes with a rank above 0: they compute gradients, write nothing, and exit."""
    _log.setLevel(logging.WARNING)
    init_distributed(choose_device(device))
    setup = setup_training(receive())
    setup.trainer.run()
    sys.stderr.flush()
    os._exit(0)  # gloo may wait for the first process, which is gone, when the model is put away


def setup_training(run: Run, base: Base | None = None) -> TrainingSetup:
    """Load the base, tokenize the rows, plan, and compute the activations of the frozen layers."""
    started = time.perf_counter()
    model_options, train_options = ModelOptions(**run.settings["learner"]), read_train_options(run.settings["recipe"])
    train, dev = rows_to_learn(run), read_rows(run.folder, "dev")
    base = base or (parent_base(run.parent) if run.parent else choose_base(model_options, train_options, train))
    prompt = base.prompt(model_options.max_length)
    examples = render(prompt, train, dev, _augmented_rows(run, train_options, train))
    train_options = replace(
        train_options,
        learning_rate=train_options.learning_rate or parent_learning_rate(run, default_rate(model_options, base)),
    )
    width = base.model.config.get_text_config().hidden_size
    machine = broadcast(partial(resolve_machine, run, model_options.device, model_options.precision, width))
    _choose_attention(base.model, examples.train)
    fuse_activations(base.model)
    plan = broadcast(
        partial(_resolve_plan, run, partial(make_plan, run, base, model_options, train_options, examples, machine))
    )
    _log.info("\n".join([machine.summary(), *plan.lines()]))
    examples, train_options = _apply_plan(examples, train_options, plan)
    model = _trainable(base, model_options, train_options, machine, layers=plan.trained_layers)
    if run.parent and isinstance(model, PeftModel):
        load_parent_adapter(model, run.parent)
    frozen = find_frozen(model, base.digest, machine, run.folder.parent / "cache", int(model_options.cache_gb * 1e9))
    task = build_task(
        model, prompt, [examples.train, examples.dev], frozen, shortlisted=_shortlisted(model_options, base)
    )
    machine = broadcast(partial(resolve_compiler, run, machine, train_options.torch_compile, plan.seconds))
    seconds = plan.seconds_left(run.settings.get("prepare_seconds", 0.0) + time.perf_counter() - started)
    return TrainingSetup(
        base, model_options, prompt, examples, Trainer(task, train_options, machine, run.folder, seconds)
    )


def _resolve_plan(run: Run, choose_plan: Callable[[], Plan]) -> Plan:
    """The plan recorded in the run, or a new one, which is recorded."""
    if "plan" not in run.settings:
        write_json(run.folder / "settings.json", {**run.settings, "plan": asdict(choose_plan())})
    return Plan(**run.settings["plan"])


def make_plan(
    run: Run, base: Base, model_options: ModelOptions, train_options: TrainOptions, examples: Examples, machine: Machine
) -> Plan:
    """The default plan, or the one that fits into the budget at the least cost; costs are measured by a few steps."""
    blocks = int(base.model.config.get_text_config().num_hidden_layers)
    top_blocks(base.model, model_options.layers)  # refuses more than there are before anything is tried
    model = _trainable(base, model_options, train_options, machine, layers=None)
    whole = train_options.budget is None and model_options.layers is None and isinstance(model, PreTrainedModel)
    costs = measure_costs(model, examples.train, machine, whole=whole)
    if isinstance(model, PeftModel):
        model.unload()
    scored = len(read_rows(run.folder, "test")) if run.settings.get("evaluate") else 0
    wish = Plan(
        rows=len(examples.train),
        epochs=train_options.epochs,
        layers=model_options.layers or _default_layers(model_options, base, blocks),
        blocks=blocks,
        scoring=indexing_seconds(_indexed_rows(run, examples)) + scoring_seconds(costs, blocks, scored),
        budget=train_options.budget.total_seconds() if train_options.budget else None,
    )
    return choose_plan(costs, wish, layers=model_options.layers, epochs=train_options.num_train_epochs)


def _indexed_rows(run: Run, examples: Examples) -> int:
    """Rows that will be indexed: in a run that continues another one, more than it is trained on."""
    if run.parent:
        return int(run.document("data/source.json")["train"])
    return len(examples.train) - examples.augmented


def _default_layers(model_options: ModelOptions, base: Base, blocks: int) -> int:
    """All, or the top third where LoRA tunes a large base (docs/EXPERIMENTS.md)."""
    return blocks if method_of(model_options, base) == "full" else math.ceil(blocks / 3)


def _apply_plan(examples: Examples, train_options: TrainOptions, plan: Plan) -> tuple[Examples, TrainOptions]:
    """The plan's fraction of the training rows, sampled by the seed, and its number of epochs."""
    count = max(1, round(plan.fraction * len(examples.train)))
    fewer = replace(examples, train=sample_rows(examples.train, count, train_options.seed))
    return fewer, replace(train_options, num_train_epochs=plan.epochs)


def _record(run: Run, setup: TrainingSetup, result: TrainResult) -> Json:
    base, examples, trainer = setup.base, setup.examples, setup.trainer
    parent = run.parent.learned if run.parent else None
    started = {"name": base.name, "digest": base.digest, "licence": base.licence, "seed": trainer.train_options.seed}
    longest = max(_longest_answer(examples.train), parent["limits"]["max_new_tokens"] if parent else 0)
    return {
        "base": parent["base"] if parent else started,
        "method": method_of(setup.model_options, base),
        "learning_rate": trainer.train_options.learning_rate,
        "limits": {"max_length": setup.prompt.max_length, "max_new_tokens": longest},
        "augmentation": {name: getattr(trainer.train_options, name) for name in AugmentOptions.__dataclass_fields__},
        "rows": {
            "train": len(examples.train),
            "augmented": examples.augmented,
            "dev": len(examples.dev),
            "too_long": examples.too_long,
        },
        "parameters": _count_weights(trainer.task.model),
        "training": result._asdict(),
        "machine": asdict(trainer.machine),
    }


def choose_base(model_options: ModelOptions, train_options: TrainOptions, train: Sequence[Pair]) -> Base:
    """The named base, or one with random weights whose tokenizer is fitted on the training rows. Raises BaseError."""
    if model_options.base == FRESH:
        return random_init_base([text for pair in train for text in (pair.question, pair.answer)], train_options.seed)
    return load_base(model_options.base)


def method_of(model_options: ModelOptions, base: Base) -> Method:
    """The chosen method, or the default for the size of the base."""
    return model_options.method or ("full" if _is_small(base) else "lora")


def default_rate(model_options: ModelOptions, base: Base) -> float:
    """The default peak learning rate."""
    return _RATE_OF_SMALL if _is_small(base) else _RATES[method_of(model_options, base)]


def _is_small(base: Base) -> bool:
    return base.model.num_parameters() < _SMALL_MODEL_WEIGHTS


def _augmented_rows(run: Run, train_options: TrainOptions, train: Sequence[Pair]) -> list[Pair]:
    """Augmented rows, as the options ask; the same ones when the run is resumed."""
    more = without_question(train, train_options.null_question_share, train_options.seed)
    if train_options.augment:
        held_out = [pair for side in HELD_OUT for pair in read_rows(run.folder, side)]
        more += augment(
            train, train_options.augment, train_options.augment_share, train_options.seed, held_out=held_out
        )
    if more:
        _log.info(translate("{count:,} more rows to learn, made from these", count=len(more)))
    return more


def render(prompt: Prompt, train: Sequence[Pair], dev: Sequence[Pair], more: Sequence[Pair]) -> Examples:
    """Tokenize the rows that fit; `more`: augmented training rows. Raises SettingsError when no row fits."""
    sides = ([prompt.example(pair) for pair in side if prompt.fits(pair)] for side in (train, dev, more))
    learned, watched, augmented = sides
    if not learned:
        raise SettingsError(
            "No training row fits into --max-length {length}.", "Give a larger one.", length=prompt.max_length
        )
    too_long = len(train) + len(dev) - len(learned) - len(watched)
    return Examples(learned + augmented, watched, too_long, len(augmented))


def _trainable(
    base: Base, model_options: ModelOptions, train_options: TrainOptions, machine: Machine, layers: int | None
) -> PreTrainedModel | PeftModel:
    """The base with its trainable weights, on the device; with LoRA and bf16, frozen weights are cast to bf16."""
    set_seed(train_options.seed)  # LoRA's matrices start at random
    base.model.to(machine.device)  # type: ignore[arg-type]
    if method_of(model_options, base) == "full":
        set_dropout(base.model, model_options.dropout)
        return train_in_full(base.model, layers=layers)
    set_dropout(base.model, 0.0)  # the base is frozen: dropout in it would only add noise
    if machine.precision == "bf16":
        cast_to_bf16(base.model)  # before LoRA: its first values follow its layers' precision, resumed or not
    return with_lora(
        base.model,
        rank=model_options.lora_r,
        alpha=model_options.lora_alpha,
        dropout=model_options.dropout,
        layers=layers,
    )


def _choose_attention(model: PreTrainedModel, train: Sequence[Example]) -> None:
    """Eager attention for short rows: PyTorch's fused kernel takes ten times as long at 17 tokens (RESULTS.md)."""
    if statistics.mean(len(example.ids) for example in train) < _SHORT_ROW_TOKENS:
        model.set_attn_implementation("eager")


def _shortlisted(model_options: ModelOptions, base: Base) -> bool:
    return method_of(model_options, base) == "lora" if model_options.shortlist is None else model_options.shortlist


def _longest_answer(train: Sequence[Example]) -> int:
    return max(len(example.ids) - example.answer_start for example in train)


def _count_weights(model: torch.nn.Module) -> Json:
    weights = list(model.parameters())
    return {
        "total": sum(weight.numel() for weight in weights),
        "trained": sum(weight.numel() for weight in weights if weight.requires_grad),
    }
