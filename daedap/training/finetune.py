"""The training stage of a run: its config and rows → its model and `training.json`, in the run's folder.

`finetune` and `setup_run` are its table of contents: rows as ids, machine, plan, trainable model, fit, weights. A run
that continues another one (`--from`) starts with the parent's base, weights or adapter and replays some of its rows.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from accelerate.utils import set_seed
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from daedap.config import FRESH, AugmentOptions, DeviceName, Method, ModelOptions, TrainOptions
from daedap.data.split import RunRows, augment, sample_rows, without_question
from daedap.errors import SettingsError
from daedap.files import write_json
from daedap.i18n import translate
from daedap.model.base import Base, load_base, load_recorded_base, random_init_base
from daedap.model.decoding import unreadable_weights
from daedap.model.device import (
    Machine,
    broadcast,
    choose_device,
    choose_machine,
    fuse_activations,
    init_distributed,
    pays_to_compile,
    receive,
)
from daedap.model.language_model import load_full_model, save_trained, weights_folder
from daedap.model.prompt import Example, Prompt
from daedap.model.tokenizer import load_tokenizer
from daedap.model.trainable import cast_to_bf16, set_dropout, top_blocks, train_in_full, with_lora
from daedap.runs import Json, Run, TrainConfig
from daedap.training.activation_cache import find_frozen
from daedap.training.planner import Plan, choose_plan, extends_index, indexing_seconds, read_plan, scoring_seconds
from daedap.training.profiling import measure_costs
from daedap.training.trainer import Trainer, TrainResult, build_task
from daedap.types import Pair

_log = logging.getLogger("daedap")
_REPLAYED_PER_NEW_ROW, _LEAST_REPLAYED = 10, 32
"""Replayed rows per new row, and the fewest: a few new rows take few steps, in which little is forgotten."""
_MIN_LR_FACTOR = 0.1
"""Learning rate for a few new rows, as a factor of the usual one: the full rate costs 0.1 bits per character
(docs/EXPERIMENTS.md)."""
_SHORT_BUDGET = 180.0
"""Seconds up to which it takes too long to measure what fewer layers would save, where all are trained by default."""
_SMALL_FILE_ROWS = 500
"""Rows up to which bots answer by retrieval alone (training/planner.py): their language model trains for one epoch."""
_SMALL_MODEL_WEIGHTS = 50_000_000
"""Weights below which a base is trained in full by default: LoRA would save nothing there."""
_SHORT_ROW_TOKENS = 64
"""Mean tokens per row below which eager attention is faster than PyTorch's fused kernel, which takes ten times as long
at 17 tokens (bench/RESULTS.md)."""
_DEFAULT_LR = {"lora": 5e-4, "full": 5e-5}
"""Peak learning rate by method."""
_SMALL_MODEL_LR = 1e-3
"""Peak learning rate of a small base, by either method."""


@dataclass(frozen=True)
class Examples:
    """A run's rows as token ids."""

    train: list[Example]
    dev: list[Example]
    too_long: int
    """Rows left out because question, answer and end token do not fit."""
    augmented: int
    """Training rows made by augmentation."""


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """The inputs of a training: the base, the options and the rows as token ids."""

    base: Base
    model_options: ModelOptions
    train_options: TrainOptions
    """`learning_rate` is resolved, never None."""
    examples: Examples
    parent: Run | None = None
    """The run whose adapter training continues from."""


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that a training needs before its first step; the trainer updates its model in place."""

    inputs: TrainingInputs
    prompt: Prompt
    trainer: Trainer


def finetune(run: Run, rows: RunRows, base: Base | None = None) -> TrainingSetup:
    """Train by the run's config, from its newest checkpoint on; write `model/` or `adapter/`, then `training.json`.

    `base`: the run's base if it is loaded already. The seconds of all setups are added to "plan" in the run's state.
    Raises BaseError, SettingsError, RunError and StorageError.
    """
    started = time.perf_counter()
    init_distributed(choose_device(run.config.model.device))
    setup = setup_run(broadcast(lambda: run), rows, base)
    seconds = run.state.get("seconds", {})
    plan = seconds.get("plan", 0.0) + time.perf_counter() - started
    run.update_state(seconds={**seconds, "plan": round(plan, 1)})
    result = setup.trainer.run()
    save_trained(setup.trainer.task.model, setup.prompt, run.folder)
    write_json(run.folder / "training.json", _record(run, setup, result))
    return setup


def run_worker(device: DeviceName) -> NoReturn:
    """The processes with a rank above 0: they compute gradients, write nothing, and exit."""
    _log.setLevel(logging.WARNING)
    init_distributed(choose_device(device))
    run = receive()
    setup = setup_run(run, RunRows(run.folder))
    setup.trainer.run()
    sys.stderr.flush()
    os._exit(0)  # gloo may wait for the first process, which has exited, when the model is freed


def setup_run(run: Run, rows: RunRows, base: Base | None = None) -> TrainingSetup:
    """A run's training before its first step. Machine and plan are chosen once and recorded in the run's state.

    Raises BaseError, SettingsError, RunError and StorageError.
    """
    started = time.perf_counter()
    inputs = _read_inputs(run, rows, base)
    machine = broadcast(partial(_recorded_machine, run, inputs))
    plan = broadcast(partial(_recorded_plan, run, inputs, machine, scored=len(rows["test"])))
    _log.info("\n".join([machine.summary(), *plan.lines()]))
    machine = broadcast(partial(_with_compiler, run, machine, plan))
    spent = sum(run.state.get("seconds", {}).values()) + time.perf_counter() - started
    seconds = broadcast(lambda: plan.seconds_left(spent))  # the learning rate depends on it: it must be the same in all
    return setup_training(inputs, machine, plan, run.folder, seconds)


# Base and rows


def _read_inputs(run: Run, rows: RunRows, base: Base | None) -> TrainingInputs:
    """The run's base and options, and its rows as token ids: new, replayed and augmented ones."""
    model_options, options, train = run.config.model, run.config.train, _training_rows(run, rows)
    base = base or (parent_base(run.parent) if run.parent else choose_base(model_options, options, train))
    more = _augmented_rows(options, train, rows)
    examples = tokenize(base.prompt(model_options.max_length), train, rows["dev"], more)
    rate = options.learning_rate or _rate_of_continued_run(run, default_rate(model_options, base))
    options = replace(options, learning_rate=rate, num_train_epochs=_epochs(run.config, len(train)))
    return TrainingInputs(
        base=base, model_options=model_options, train_options=options, examples=examples, parent=run.parent
    )


def choose_base(model_options: ModelOptions, train_options: TrainOptions, train: Sequence[Pair]) -> Base:
    """The named base, or one with random weights whose tokenizer is fitted on the training rows. Raises BaseError."""
    if model_options.base == FRESH:
        return random_init_base([text for pair in train for text in (pair.question, pair.answer)], train_options.seed)
    return load_base(model_options.base)


def parent_base(parent: Run) -> Base:
    """The parent's base, or its full weights where it was trained in full. Raises BaseError and RunError."""
    recorded, folder = parent.trained["base"], weights_folder(parent)
    if folder.name == "adapter":
        return load_recorded_base(parent, recorded)
    if recorded["name"] != FRESH:
        load_recorded_base(parent, recorded)  # raises now if it is gone: the run is evaluated beside its untuned base
    licence, digest = recorded["licence"], recorded["digest"]
    return Base(recorded["name"], load_full_model(folder), load_tokenizer(folder), licence, digest)


def _training_rows(run: Run, rows: RunRows) -> list[Pair]:
    """The training rows; in a run that continues another one the new rows and a sample of the others (replay)."""
    train = rows["train"]
    if not run.parent:
        return train
    options, new = run.config.train, train[: run.new_rows]
    known = train[len(new) :]
    return [*new, *sample_rows(known, replayed_rows(len(known), len(new), options.replay), options.seed)]


def replayed_rows(known: int, new: int, share: float | None) -> int:
    """How many known rows are replayed: the given share of them.

    By default ten per new row but at least 32, at most a tenth of the known rows, and never fewer than are new.
    """
    if share is not None:
        return round(share * known)
    most = math.ceil(known / 10)
    return max(new, min(most, max(_LEAST_REPLAYED, _REPLAYED_PER_NEW_ROW * new)))


def _augmented_rows(options: TrainOptions, train: Sequence[Pair], rows: RunRows) -> list[Pair]:
    """Augmented rows, as the options ask; the same ones when the run is resumed."""
    more = without_question(train, options.null_question_share, options.seed)
    if options.augment:
        more += augment(train, options.augment, options.augment_share, options.seed, held_out=rows.held_out)
    if more:
        _log.info(translate("Added {count:,} augmented training rows.", count=len(more)))
    return more


def tokenize(prompt: Prompt, train: Sequence[Pair], dev: Sequence[Pair], more: Sequence[Pair]) -> Examples:
    """Tokenize the rows that fit; `more`: augmented training rows. Where none fits, all training rows are truncated.

    Raises SettingsError when not even truncated rows fit.
    """
    fitting, held_out, augmented = (prompt.fitting_examples(rows) for rows in (train, dev, more))
    if not fitting:
        fitting = prompt.fitting_examples(map(prompt.shortened, train))
    if not fitting:
        raise SettingsError(
            "No training row fits into --max-length {length}.", "Give a larger one.", length=prompt.max_length
        )
    too_long = len(train) + len(dev) - len(fitting) - len(held_out)
    return Examples(fitting + augmented, held_out, too_long, len(augmented))


# Options that were not given


def method_of(model_options: ModelOptions, base: Base) -> Method:
    """The chosen method, or the default for the size of the base."""
    return model_options.method or ("full" if _is_small(base) else "lora")


def default_rate(model_options: ModelOptions, base: Base) -> float:
    """The default peak learning rate."""
    return _SMALL_MODEL_LR if _is_small(base) else _DEFAULT_LR[method_of(model_options, base)]


def _is_small(base: Base) -> bool:
    return base.model.num_parameters() < _SMALL_MODEL_WEIGHTS


def _rate_of_continued_run(run: Run, usual: float) -> float:
    """The learning rate of a run that continues another one: reduced in proportion to its share of new rows."""
    if not run.parent:
        return usual
    new, known = run.new_rows, int(run.document("data/source.json")["train"]) - run.new_rows
    return usual * min(1.0, max(_MIN_LR_FACTOR, new / max(1, known)))


def _epochs(config: TrainConfig, rows: int) -> int | None:
    """As chosen; else 1 where a pretrained base is tuned on a small file, and None, the usual default, elsewhere."""
    chosen, tunes_base = config.train.num_train_epochs, not config.parent and config.model.base != FRESH
    if chosen or not tunes_base or config.train.swa_epoch_start > 1 or rows > _SMALL_FILE_ROWS:
        return chosen
    _log.info(translate("Small file: answers come from retrieval, so the language model trains for one epoch."))
    return 1


# Machine and plan, chosen at the first start of a run and recorded in its state


def _recorded_machine(run: Run, inputs: TrainingInputs) -> Machine:
    """The machine of the run's first start, as a resumed run must change neither device nor precision; else this one.

    Raises SettingsError when the device is not available.
    """
    if recorded := run.state.get("machine"):
        choose_device(recorded["device"])
        return Machine(**recorded)
    options, width = inputs.model_options, inputs.base.model.config.get_text_config().hidden_size
    machine = choose_machine(options.device, options.precision, width)
    run.update_state(machine=asdict(machine))
    return machine


def _recorded_plan(run: Run, inputs: TrainingInputs, machine: Machine, scored: int) -> Plan:
    """The plan of the run's first start; else a new one, which is recorded."""
    if recorded := run.state.get("plan"):
        return read_plan(recorded)
    examples, models, extended = inputs.examples, 2, False
    indexed = len(examples.train) - examples.augmented
    if run.parent:
        source = run.document("data/source.json")
        indexed = int(source["train"])  # more than it is trained on
        models = 1 if source["new"]["test"] == 0 else 2  # the base's scores are known then
        extended = extends_index(train=indexed, fitted=run.parent.state["encoder_rows"])
    indexing = indexing_seconds(indexed, dev_rows=len(examples.dev), extended=extended)
    plan = make_plan(inputs, machine, scored=scored if run.config.evaluate else 0, indexing=indexing, models=models)
    run.update_state(plan=asdict(plan))
    return plan


def make_plan(inputs: TrainingInputs, machine: Machine, *, scored: int, indexing: float, models: int = 2) -> Plan:
    """The default plan, or the one that fits into the budget at the least cost; costs are measured by a few steps.

    `scored`: test rows. `indexing`: expected seconds of the index. `models`: language models that are scored.
    """
    base, options, train_options = inputs.base, inputs.model_options, inputs.train_options
    blocks = int(base.model.config.get_text_config().num_hidden_layers)
    top_blocks(base.model, options.layers)  # refuses more than there are before anything is tried
    model = _trainable(inputs, machine, layers=None)
    budget = train_options.budget.total_seconds() if train_options.budget else None
    skip_layer_timing = budget is None or budget <= _SHORT_BUDGET
    all_layers_trained = skip_layer_timing and options.layers is None and isinstance(model, PreTrainedModel)
    costs = measure_costs(model, inputs.examples.train, machine, all_layers_trained=all_layers_trained)
    if isinstance(model, PeftModel):
        model.unload()
    top_third = math.ceil(blocks / 3)  # is enough where LoRA tunes a large base (docs/EXPERIMENTS.md)
    requested = Plan(
        rows=len(inputs.examples.train),
        epochs=train_options.epochs,
        layers=options.layers or (blocks if method_of(options, base) == "full" else top_third),
        blocks=blocks,
        scoring=indexing + scoring_seconds(costs, blocks, scored, models=models),
        budget=budget,
    )
    layers = blocks if all_layers_trained else options.layers
    return choose_plan(costs, requested, layers=layers, epochs=train_options.num_train_epochs)


def _with_compiler(run: Run, machine: Machine, plan: Plan) -> Machine:
    """The machine with the decision on torch.compile, made at the run's first start and recorded."""
    if machine.compiled is None:
        machine = replace(machine, compiled=pays_to_compile(run.config.train.torch_compile, plan.seconds))
        run.update_state(machine=asdict(machine))
    return machine


# Trainable model and trainer


def setup_training(
    inputs: TrainingInputs, machine: Machine, plan: Plan, folder: Path, seconds: float = math.inf
) -> TrainingSetup:
    """The trainable model, the activations of its frozen layers, and the trainer of the plan's rows and epochs.

    `folder`: for checkpoints and log, beside the activation cache. `seconds`: the time that is left for training.
    """
    base, options, examples = inputs.base, inputs.model_options, inputs.examples
    model, prompt = _trainable(inputs, machine, layers=plan.trained_layers), base.prompt(options.max_length)
    if inputs.parent and isinstance(model, PeftModel):
        _load_parent_adapter(model, inputs.parent)
    count = max(1, round(plan.fraction * len(examples.train)))
    examples = replace(examples, train=sample_rows(examples.train, count, inputs.train_options.seed))
    frozen = find_frozen(model, base.digest, machine, folder.parent / "cache", int(options.cache_gb * 1e9))
    shortlisted = method_of(options, base) == "lora" if options.shortlist is None else options.shortlist
    task = build_task(model, prompt, [examples.train, examples.dev], frozen, shortlisted=shortlisted)
    train_options = replace(inputs.train_options, num_train_epochs=plan.epochs)
    trainer = Trainer(task, train_options, machine, folder, time_limit=seconds)
    return TrainingSetup(replace(inputs, examples=examples), prompt, trainer)


def _trainable(inputs: TrainingInputs, machine: Machine, layers: int | None) -> PreTrainedModel | PeftModel:
    """The base with its trainable weights, on the device; with LoRA and bf16, frozen weights are cast to bf16."""
    model, options = inputs.base.model, inputs.model_options
    if statistics.mean(len(example.ids) for example in inputs.examples.train) < _SHORT_ROW_TOKENS:
        model.set_attn_implementation("eager")
    fuse_activations(model)
    set_seed(inputs.train_options.seed)  # LoRA's matrices start at random
    model.to(machine.device)  # type: ignore[arg-type]
    if method_of(options, inputs.base) == "full":
        set_dropout(model, options.dropout)
        return train_in_full(model, layers=layers)
    set_dropout(model, 0.0)  # the base is frozen: dropout in it would only add noise
    if machine.precision == "bf16":
        cast_to_bf16(model)  # before LoRA: its first values follow its layers' precision, resumed or not
    return with_lora(model, rank=options.lora_r, alpha=options.lora_alpha, dropout=options.dropout, layers=layers)


def _load_parent_adapter(model: PeftModel, parent: Run) -> None:
    """Load the parent's LoRA matrices. Raises RunError when they can't be read or have other shapes."""
    folder = parent.folder / "adapter"
    try:
        values = load_file(folder / "adapter_model.safetensors")
        set_peft_model_state_dict(model, values)
        if values.keys() != get_peft_model_state_dict(model).keys():
            raise ValueError("it holds another adapter")
    except Exception as error:  # safetensors and torch have their own errors
        raise unreadable_weights(folder, error) from error


def _record(run: Run, setup: TrainingSetup, result: TrainResult) -> Json:
    """The document `training.json`."""
    inputs, trainer = setup.inputs, setup.trainer
    base, examples, options = inputs.base, inputs.examples, trainer.train_options
    parent = run.parent.trained if run.parent else None
    started = {"name": base.name, "digest": base.digest, "licence": base.licence, "seed": options.seed}
    longest = max(example.n_labels for example in examples.train)
    weights = [(weight.numel(), weight.requires_grad) for weight in trainer.task.model.parameters()]
    return {
        "base": parent["base"] if parent else started,
        "method": method_of(inputs.model_options, base),
        "learning_rate": options.learning_rate,
        "limits": {
            "max_length": setup.prompt.max_length,
            "max_new_tokens": max(longest, parent["limits"]["max_new_tokens"] if parent else 0),
        },
        "augmentation": {name: getattr(options, name) for name in AugmentOptions.__dataclass_fields__},
        "rows": {
            "train": len(examples.train),
            "augmented": examples.augmented,
            "dev": len(examples.dev),
            "too_long": examples.too_long,
        },
        "parameters": {
            "total": sum(size for size, _ in weights),
            "trained": sum(size for size, trained in weights if trained),
        },
        "training": result._asdict(),
        "machine": asdict(trainer.machine),
    }
