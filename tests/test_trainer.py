from __future__ import annotations

import csv
import itertools
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import toys
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from daedap.commands.train import train
from daedap.config import ModelOptions, ReadOptions, RunOptions, SplitOptions, TrainOptions
from daedap.errors import RunError, SettingsError
from daedap.model.base import load_base, random_init_base
from daedap.model.device import Machine
from daedap.model.language_model import TorchModel
from daedap.model.loss import score_answers
from daedap.model.prompt import Example, build_prompt
from daedap.model.tokenizer import train_tokenizer
from daedap.model.trainable import set_dropout, with_lora
from daedap.training.checkpoint import checkpoints, load_weights, trained_weights
from daedap.training.trainer import Trainer, TrainResult, WeightAverage

pytestmark = pytest.mark.slow

MACHINE = Machine("cpu", "fp32", 1, "")
RECIPE = TrainOptions(
    num_train_epochs=3, per_device_train_batch_size=8, learning_rate=1e-2, logging_steps=1, save_steps=3, seed=1
)
FIVE_EPOCHS = replace(RECIPE, num_train_epochs=5, early_stopping_patience=0, save_total_limit=99)
AVERAGED = replace(FIVE_EPOCHS, swa_epoch_start=2)
RESTLESS: dict[str, Any] = {"learning_rate": 3e-2, "lr_scheduler_type": "constant_with_warmup"}
"""Every epoch overshoots the optimum in another direction."""
SPLITTING = SplitOptions(dev_size=0.15, test_size=0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(toys.TEXTS, 1000)


@pytest.fixture(scope="module")
def examples(tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    prompt = build_prompt(tokenizer, 96)
    return [prompt.example(pair) for pair in toys.PAIRS]


def small(tokenizer: PreTrainedTokenizerFast, width: int = 16) -> LlamaForCausalLM:
    torch.manual_seed(3)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    config: dict[str, Any] = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 96}
    return LlamaForCausalLM(LlamaConfig(**config, tie_word_embeddings=True))


def fit(
    model: PreTrainedModel | PeftModel,
    train_options: TrainOptions,
    folder: Path,
    train: list[Example],
    dev: list[Example],
) -> TrainResult:
    folder.mkdir(exist_ok=True)
    return Trainer(toys.task(model, train, dev), train_options, MACHINE, folder).run()


def fit_for_60_ticks(
    model: PreTrainedModel, train_options: TrainOptions, folder: Path, train: list[Example], dev: list[Example]
) -> TrainResult:
    """Train until a clock that advances by 1 whenever it is read shows 60."""
    ticks = itertools.count()
    task = toys.task(model, train, dev)
    return Trainer(task, train_options, MACHINE, folder, time_limit=60, clock=lambda: float(next(ticks))).run()


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_memorises_the_pairs(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    model = small(tokenizer, width=96)
    train_options = replace(RECIPE, num_train_epochs=45, learning_rate=5e-3, save_steps=1000, weight_decay=0.0)
    fit(model, train_options, tmp_path, examples, [])
    replies = TorchModel(model, build_prompt(tokenizer, 96), max_new_tokens=40).reply(toys.PAIRS)
    right = [reply.text == pair.answer for reply, pair in zip(replies, toys.PAIRS, strict=True)]
    assert sum(right) >= 0.95 * len(right)
    assert all(reply.ended for reply in replies)


def test_early_stopping(tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path) -> None:
    model = small(tokenizer, width=64)
    train_options = replace(RECIPE, num_train_epochs=40, early_stopping_patience=2, save_steps=1000)
    fitted = fit(model, train_options, tmp_path, examples[:40], examples[40:])
    losses = [line["loss"] for line in log(tmp_path) if line["event"] == "dev"]
    assert fitted.epochs == len(losses) < 40
    assert fitted.best_epoch == fitted.epochs - 2 == losses.index(min(losses)) + 1
    assert fitted.best_dev_loss == min(losses)


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_best_weights_are_kept_or_the_last(
    keep_best: bool, tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    model = small(tokenizer, width=64)
    train_options = replace(RECIPE, num_train_epochs=40, load_best_model_at_end=keep_best, save_steps=1000)
    fitted = fit(model, train_options, tmp_path, examples[:40], examples[40:])
    bits, labels = score_answers(model, examples[40:], "cpu").sum(axis=0)
    loss = float(-bits / labels) * 0.6931471805599453
    assert fitted.best_dev_loss
    assert (loss == pytest.approx(fitted.best_dev_loss, rel=1e-6)) is keep_best


def test_patience_0_never_stops(tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path) -> None:
    train_options = replace(RECIPE, num_train_epochs=8, learning_rate=0.5, early_stopping_patience=0)
    assert fit(small(tokenizer), train_options, tmp_path, examples[:16], examples[16:20]).epochs == 8


def test_a_dev_loss_that_is_not_finite_ends_the_training(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_dev_loss", lambda self, dev: math.inf)
    with pytest.raises(SettingsError, match=r"NaN or infinite at step 2\. Lower --learning-rate"):
        fit(small(tokenizer), RECIPE, tmp_path, examples[:16], examples[16:20])


def test_the_time_limit_ends_training_and_scales_the_schedule(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    fitted = fit_for_60_ticks(small(tokenizer), replace(RECIPE, num_train_epochs=1000), tmp_path, examples, [])
    assert 20 <= fitted.steps < 60
    rates = [line["learning_rate"] for line in log(tmp_path) if line["event"] == "train"]
    assert len(rates) == fitted.steps
    speeds = [line["samples_per_second"] for line in log(tmp_path) if line["event"] == "train"]
    assert max(speeds) == 8 / 2, "two ticks at least for a step of 8 rows: speed is measured by the same clock"
    assert rates[-1] < 0.1 * max(rates), "the learning rate falls as the time ends"


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_only_the_newest_checkpoints_stay(
    limit: int, tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    fit(small(tokenizer), replace(RECIPE, save_total_limit=limit), tmp_path, examples, examples[:8])
    names = [folder.name for folder in checkpoints(tmp_path / "checkpoints")]
    assert names == [f"step-{step:06d}" for step in (12, 15, 16, 18, 21, 24)[-limit:] if step % 3 == 0 or step % 8 == 0]
    assert not list((tmp_path / "checkpoints").glob(".*")), "an unfinished file is left"


def test_resuming_from_a_checkpoint_gives_the_same_weights(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    whole, parted = small(tokenizer), small(tokenizer)
    set_dropout(whole, 0.2)
    set_dropout(parted, 0.2)
    fit(whole, replace(RECIPE, save_total_limit=99), tmp_path / "whole", examples, examples[:8])
    for later in checkpoints(tmp_path / "whole" / "checkpoints")[2:]:
        later.rename(tmp_path / later.name)
    with (tmp_path / "whole" / "log.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"event": "tra')  # the disk was full
    fit(parted, replace(RECIPE, save_total_limit=99), tmp_path / "whole", examples, examples[:8])
    assert same(weights(whole), weights(parted))
    assert [line["step"] for line in log(tmp_path / "whole") if line["event"] == "train"] == list(range(1, 25))


def test_a_damaged_checkpoint_is_reported(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    fit(small(tokenizer), RECIPE, tmp_path, examples[:8], [])
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    path = newest / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RunError, match=f"{newest.name}.*Delete this folder"):
        load_weights(small(tokenizer), newest)


def test_a_lora_checkpoint_holds_trained_weights_only(tmp_path: Path) -> None:
    base = load_base(str(toys.kogpt2(tmp_path / "base")))
    total = sum(weight.numel() for weight in base.model.parameters())
    examples = [base.prompt(96).example(pair) for pair in toys.PAIRS]
    model = with_lora(base.model, rank=1, alpha=2, dropout=0.1, layers=1)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    fit(model, RECIPE, tmp_path / "run", examples, examples[:8])
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert sum(weight.numel() for weight in load_file(newest / "trained.safetensors").values()) == trained
    optimizer = (newest / "optimizer.bin").stat().st_size
    assert 2 * 4 * trained < optimizer < 2 * 4 * trained + 20_000 < 4 * total


def test_the_log_has_loss_learning_rate_and_speed(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    fit(small(tokenizer), replace(RECIPE, warmup_ratio=0.25), tmp_path, examples, [])
    lines = [line for line in log(tmp_path) if line["event"] == "train"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    rates = [line["learning_rate"] for line in lines]
    assert max(rates) == pytest.approx(1e-2)
    assert rates.index(max(rates)) == 6, "the warmup takes a quarter of 24 steps"
    assert rates[-1] == pytest.approx(1e-2 / 18), "and then decays linearly to 0"
    assert all(line["samples_per_second"] > 0 and line["grad_norm"] > 0 for line in lines)


def test_the_same_texts_and_seed_give_the_same_fresh_base() -> None:
    first, again, other = (random_init_base(toys.TEXTS, seed) for seed in (1, 1, 2))
    assert same(weights(first.model), weights(again.model))
    assert first.digest == again.digest != other.digest
    assert not same(weights(first.model), weights(other.model))


# ---- weight averaging -----------------------------------------------------------------------------------------------


def losses(folder: Path, event: str) -> list[float]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if line["event"] == event]


def loss_of(model: PreTrainedModel, dev: list[Example]) -> float:
    bits, labels = score_answers(model, dev, "cpu").sum(axis=0)
    return float(-bits / labels * math.log(2))


def mean(folder: Path, first: int, last: int, steps: int) -> dict[str, torch.Tensor]:
    """The mean of the weights in the checkpoints at the ends of these epochs."""
    names = [f"step-{epoch * steps:06d}" for epoch in range(first, last + 1)]
    ends = [load_file(folder / "checkpoints" / name / "trained.safetensors") for name in names]
    return {name: torch.stack([end[name] for end in ends]).mean(0) for name in ends[0]}


def test_the_mean_of_what_is_trained() -> None:
    frozen, trained = nn.Linear(3, 2).requires_grad_(False), nn.Linear(2, 2)
    model, before = nn.Sequential(frozen, trained), frozen.weight.clone()
    average, seen = WeightAverage(model), []
    for _ in range(3):
        seen.append(trained.weight.detach().clone())
        average.add()
        with torch.no_grad():
            trained.weight += torch.randn(2, 2)
    own = trained.weight.detach().clone()
    average.swap()
    torch.testing.assert_close(trained.weight, torch.stack(seen).mean(0))
    average.swap()
    assert torch.equal(trained.weight, own)
    assert torch.equal(frozen.weight, before)
    other = WeightAverage(model)
    other.load_state_dict(average.state_dict())
    means = []
    for one in (average, other):
        one.add()
        one.swap()
        means.append(trained.weight.detach().clone())
        one.swap()
    assert torch.equal(*means)


def test_the_average_competes_with_the_epochs(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    model, dev = small(tokenizer, width=64), examples[:16]
    plain = fit(small(tokenizer, width=64), replace(FIVE_EPOCHS, **RESTLESS), tmp_path / "plain", examples, dev)
    fitted = fit(model, replace(AVERAGED, **RESTLESS), tmp_path / "averaged", examples, dev)
    own, averages = (losses(tmp_path / "averaged", event) for event in ("dev", "average"))
    assert own == losses(tmp_path / "plain", "dev"), "the training itself is the same"
    assert len(averages) == 3, "from the end of the third epoch on there is something to average"
    assert fitted.averaged
    assert fitted.best_dev_loss == min(averages) < min(own) == plain.best_dev_loss
    assert fitted.best_epoch == 3 + averages.index(min(averages))
    assert loss_of(model, dev) == pytest.approx(fitted.best_dev_loss, rel=1e-5)
    for name, weight in mean(tmp_path / "averaged", 2, fitted.best_epoch, 8).items():
        torch.testing.assert_close(trained_weights(model)[name], weight)
    assert not plain.averaged


def test_an_average_that_is_worse_is_not_kept(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    """At a low learning rate, the first epochs are far from the last."""
    model, train_options = (
        small(tokenizer, width=64),
        replace(AVERAGED, swa_epoch_start=1, learning_rate=1e-3, warmup_ratio=0.0),
    )
    fitted = fit(
        model, replace(train_options, lr_scheduler_type="constant_with_warmup"), tmp_path, examples, examples[:8]
    )
    own = losses(tmp_path, "dev")
    assert not fitted.averaged
    assert (fitted.best_epoch, fitted.best_dev_loss) == (5, min(own))
    assert loss_of(model, examples[:8]) == pytest.approx(min(own), rel=1e-5)


@pytest.mark.parametrize("rows", [0, 8])
def test_without_selection_the_average_is_kept(
    rows: int, tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    model, train_options = small(tokenizer, width=64), replace(AVERAGED, load_best_model_at_end=False)
    fitted = fit(model, train_options, tmp_path, examples, examples[:rows])
    assert fitted.averaged
    for name, weight in mean(tmp_path, 2, 5, 8).items():
        torch.testing.assert_close(trained_weights(model)[name], weight)


def test_lora_weights_are_averaged(tmp_path: Path) -> None:
    base = load_base(str(toys.kogpt2(tmp_path / "base")))
    examples = [base.prompt(96).example(pair) for pair in toys.PAIRS]
    model = with_lora(base.model, rank=2, alpha=4, dropout=0.1, layers=1)
    assert fit(model, AVERAGED, tmp_path / "run", examples, []).averaged
    ends = mean(tmp_path / "run", 2, 5, 8)
    assert ends.keys() == {name for name, _ in model.named_parameters() if "lora" in name}
    for name, weight in ends.items():
        torch.testing.assert_close(trained_weights(model)[name], weight)


@pytest.mark.parametrize("last", ["step-000010", "step-000015", "step-000018"], ids=["epoch 2", "epoch 3", "within 4"])
def test_resuming_an_averaged_training_gives_the_same_weights(
    last: str, tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    straight, resumed = small(tokenizer, width=64), small(tokenizer, width=64)
    fit(straight, AVERAGED, tmp_path / "run", examples[:40], examples[40:])
    for later in checkpoints(tmp_path / "run" / "checkpoints"):
        if later.name > last:
            later.rename(tmp_path / later.name)
    fit(resumed, AVERAGED, tmp_path / "run", examples[:40], examples[40:])
    ours, theirs = trained_weights(straight), trained_weights(resumed)
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert len(losses(tmp_path / "run", "average")) == 3


def test_averaging_within_a_time_limit(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    train_options = replace(FIVE_EPOCHS, num_train_epochs=1000, swa_epoch_start=1, save_steps=1000, save_total_limit=1)
    fitted = fit_for_60_ticks(small(tokenizer), train_options, tmp_path, examples, examples[:8])
    assert fitted.steps < 60
    assert len(losses(tmp_path, "average")) == fitted.epochs - 1 > 0
    assert fitted.best_dev_loss == min(losses(tmp_path, "dev") + losses(tmp_path, "average"))


@pytest.mark.parametrize(
    ("start", "message"), [(-1, "must not be negative"), (5, "nothing to average"), (9, "nothing to")]
)
def test_invalid_start_epochs_are_refused(start: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainOptions(num_train_epochs=5, swa_epoch_start=start)


# ---- killed and resumed --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KillTrial:
    """Runs of uninterrupted trainings (two with seed 1, one with seed 2), and a run killed and resumed with seed 1."""

    straight: list[Path]
    killed: Path
    at: list[int]
    """The last logged step at each kill."""


def train_in_process(file: Path, model_options: ModelOptions, train_options: TrainOptions, runs: Path) -> Path:
    run_options = RunOptions(runs=runs, evaluate=False)
    return train(
        file,
        read_options=ReadOptions(),
        split_options=SPLITTING,
        model_options=model_options,
        train_options=train_options,
        run_options=run_options,
    ).folder


def options(*groups: SplitOptions | ModelOptions | TrainOptions) -> list[str]:
    given = {name: value for group in groups for name, value in asdict(group).items() if value is not None}
    words = (
        (f"--{name.replace('_', '-')}", str(value))
        for name, value in given.items()
        if value is not True and value != ()
    )
    return [word for pair in words for word in pair]


def last_step(run: Path) -> int:
    """-1 before the run has a config, 0 before its first step. An incomplete last line is ignored."""
    path = run / "log.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else int((run / "config.json").exists()) - 1


def command(*words: str) -> subprocess.Popen[str]:
    """`daedap train` with this process's number of threads, which affects rounding."""
    words = (sys.executable, "-m", "daedap", "train", *words)
    own = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", env=own)


def kill_and_resume(setup_training: list[str], runs: Path, moments: list[int]) -> list[int]:
    """Kill the command at each of these steps, then let it finish. Returns the last logged steps at the kills."""
    at, run = [], runs / "0001"
    for words, moment in zip([setup_training, *(["--resume"] for _ in moments)], moments, strict=False):
        process = command(*words, "--runs", str(runs))
        if os.name == "posix":
            psutil.Process(process.pid).nice(10)  # on a busy machine it might end before this process sees the moment
        while process.poll() is None and last_step(run) < moment:
            time.sleep(0.002)
        process.kill()
        assert process.wait() != 0, "it ended before it could be killed"
        process.communicate()
        at.append(last_step(run))
        assert bool(checkpoints(run / "checkpoints")) is (moment > 0)
        assert not (run / "manifest.json").exists()
    process = command("--resume", "--runs", str(runs))
    _, reply = process.communicate()
    assert process.returncode == 0, reply
    return at


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KillTrial]:
    folder = tmp_path_factory.mktemp("trials")
    file, train_options = folder / "대화.csv", replace(RECIPE, num_train_epochs=2, learning_rate=1e-3)
    with file.open("w", encoding="utf-8", newline="") as rows:
        csv.writer(rows).writerows([("Q", "A"), *((pair.question, pair.answer) for pair in toys.PAIRS)])
    base = str(toys.kogpt2(folder / "base"))
    learners = {
        "full": ModelOptions(base="fresh", precision="fp32", device="cpu", dropout=0.1),
        "lora": ModelOptions(
            base=base, method="lora", max_length=96, lora_r=4, precision="fp32", device="cpu", dropout=0.2
        ),
    }
    moments = {"full": [0, 9], "lora": [5]}
    with ThreadPoolExecutor() as pool:
        ends = {}
        for name, model_options in learners.items():
            setup_training = [str(file), *options(SPLITTING, model_options, train_options), "--no-evaluate"]
            ends[name] = pool.submit(kill_and_resume, setup_training, folder / f"{name}-killed", moments[name])
        straight = {}
        for name, model_options in learners.items():
            recipes = [train_options, train_options, replace(train_options, seed=2)]
            straight[name] = [
                train_in_process(file, model_options, one, folder / f"{name}-{i}") for i, one in enumerate(recipes)
            ]
    return {
        name: KillTrial(straight[name], folder / f"{name}-killed" / "0001", ends[name].result()) for name in learners
    }


@pytest.fixture(params=["full", "lora"])
def trial(request: pytest.FixtureRequest, trials: dict[str, KillTrial]) -> KillTrial:
    return trials[str(request.param)]


def weight_bytes(run: Path) -> bytes:
    return next(path for folder in ("model", "adapter") for path in (run / folder).glob("*.safetensors")).read_bytes()


def test_killed_and_resumed_training_gives_the_same_bytes(trial: KillTrial) -> None:
    assert weight_bytes(trial.killed) == weight_bytes(trial.straight[0])


def test_the_log_of_a_resumed_run_has_each_step_once(trial: KillTrial) -> None:
    resumed, straight = (
        [(line["event"], line["step"], line["epoch"], line["loss"], line.get("grad_norm")) for line in log(run)]
        for run in (trial.killed, trial.straight[0])
    )
    assert resumed == straight
    steps = [step for event, step, *_ in resumed if event == "train"]
    assert steps == list(range(1, len(steps) + 1))
    assert max(trial.at) > 3, "none was killed after its first checkpoint"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(trial: KillTrial) -> None:
    first, again, other = map(weight_bytes, trial.straight)
    assert first == again != other
