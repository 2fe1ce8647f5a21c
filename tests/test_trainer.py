from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from daedap.commands.train import RunOptions, train
from daedap.config import ModelOptions, TrainOptions
from daedap.data.reader import ReadOptions
from daedap.data.split import SplitOptions
from daedap.errors import RunError
from daedap.model.base import load_base, random_init_base
from daedap.model.device import Machine
from daedap.model.language_model import TorchModel
from daedap.model.loss import score_answers
from daedap.model.prompt import Example, build_prompt
from daedap.model.tokenizer import train_tokenizer
from daedap.model.trainable import set_dropout, with_lora
from daedap.training.checkpoint import checkpoints, load_weights
from daedap.training.trainer import Trainer, TrainResult

MACHINE = Machine("cpu", "fp32", 1, "")
RECIPE = TrainOptions(
    num_train_epochs=3, per_device_train_batch_size=8, learning_rate=1e-2, logging_steps=1, save_steps=3, seed=1
)
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


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_learns_the_pairs_by_heart(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    model = small(tokenizer, width=96)
    train_options = replace(RECIPE, num_train_epochs=45, learning_rate=5e-3, save_steps=1000, weight_decay=0.0)
    fit(model, train_options, tmp_path, examples, [])
    spoken = TorchModel(model, build_prompt(tokenizer, 96), max_new_tokens=40).reply(toys.PAIRS)
    right = [said.text == pair.answer for said, pair in zip(spoken, toys.PAIRS, strict=True)]
    assert sum(right) >= 0.95 * len(right)
    assert all(said.ended for said in spoken)


def test_training_stops_when_dev_gets_no_better(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
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


def test_training_ends_with_its_time(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    """By a clock on which each look takes a second."""
    seconds = itertools.count()
    train_options = replace(RECIPE, num_train_epochs=1000)
    fitting = Trainer(
        toys.task(small(tokenizer), examples, []),
        train_options,
        MACHINE,
        tmp_path,
        seconds=60,
        clock=lambda: float(next(seconds)),
    )
    fitted = fitting.run()
    assert 30 <= fitted.steps <= 60
    rates = [line["learning_rate"] for line in log(tmp_path) if line["event"] == "train"]
    assert len(rates) == fitted.steps
    assert rates[-1] < 0.1 * max(rates), "the learning rate falls as the time ends"


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_only_the_newest_checkpoints_stay(
    limit: int, tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    fit(small(tokenizer), replace(RECIPE, save_total_limit=limit), tmp_path, examples, examples[:8])
    names = [folder.name for folder in checkpoints(tmp_path / "checkpoints")]
    assert names == [f"step-{step:06d}" for step in (12, 15, 16, 18, 21, 24)[-limit:] if step % 3 == 0 or step % 8 == 0]
    assert not list((tmp_path / "checkpoints").glob(".*")), "something unfinished is left"


def test_going_on_from_a_checkpoint_is_as_if_never_stopped(
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


def test_a_damaged_checkpoint_is_told(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    fit(small(tokenizer), RECIPE, tmp_path, examples[:8], [])
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    path = newest / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RunError, match=f"{newest.name}.*Delete this folder"):
        load_weights(small(tokenizer), newest)


def test_a_lora_checkpoint_holds_what_is_trained_alone(tmp_path: Path) -> None:
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


def test_the_log_tells_loss_rate_and_speed(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], tmp_path: Path
) -> None:
    fit(small(tokenizer), replace(RECIPE, warmup_ratio=0.25), tmp_path, examples, [])
    lines = [line for line in log(tmp_path) if line["event"] == "train"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    rates = [line["learning_rate"] for line in lines]
    assert max(rates) == pytest.approx(1e-2)
    assert rates.index(max(rates)) == 6, "the warmup takes a quarter of 24 steps"
    assert rates[-1] == pytest.approx(1e-2 / 18), "and from there it falls to nothing, a step after the last"
    assert all(line["samples_per_second"] > 0 and line["grad_norm"] > 0 for line in lines)


def test_the_same_texts_and_seed_give_the_same_fresh_base() -> None:
    first, again, other = (random_init_base(toys.TEXTS, seed) for seed in (1, 1, 2))
    assert same(weights(first.model), weights(again.model))
    assert first.digest == again.digest != other.digest
    assert not same(weights(first.model), weights(other.model))


# ---- killed and resumed --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One training that was never stopped (twice with one seed, then with another), and the same killed."""

    straight: list[Path]
    killed: Path
    at: list[int]
    """The last logged step at each kill."""


def in_process(file: Path, model_options: ModelOptions, train_options: TrainOptions, runs: Path) -> Path:
    place = RunOptions(runs=runs, evaluate=False)
    return train(
        file,
        read_options=ReadOptions(),
        split_options=SPLITTING,
        model_options=model_options,
        train_options=train_options,
        place=place,
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
    """-1 before the run has begun, 0 before its first step. Only lines that are whole: it is still being written."""
    path = run / "log.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else int((run / "settings.json").exists()) - 1


def command(*words: str) -> subprocess.Popen[str]:
    """`daedap train`, computing in as many threads as this process does: their number decides the last bits."""
    words = (sys.executable, "-m", "daedap", "train", *words)
    own = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", env=own)


def kill_and_resume(begin: list[str], runs: Path, moments: list[int]) -> list[int]:
    """Kill the command each time it has come to a step; at last let it end. Returns the steps it had come to."""
    at, run = [], runs / "0001"
    for words, moment in zip([begin, *(["--resume"] for _ in moments)], moments, strict=False):
        process = command(*words, "--runs", str(runs))
        while process.poll() is None and last_step(run) < moment:
            time.sleep(0.002)
        process.kill()
        assert process.wait() != 0, "it ended before it could be killed"
        process.communicate()
        at.append(last_step(run))
        assert bool(checkpoints(run / "checkpoints")) is (moment > 0)
        assert not (run / "manifest.json").exists()
    process = command("--resume", "--runs", str(runs))
    _, said = process.communicate()
    assert process.returncode == 0, said
    return at


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    place = tmp_path_factory.mktemp("trials")
    file, train_options = place / "대화.csv", replace(RECIPE, num_train_epochs=2, learning_rate=1e-3)
    with file.open("w", encoding="utf-8", newline="") as rows:
        csv.writer(rows).writerows([("Q", "A"), *((pair.question, pair.answer) for pair in toys.PAIRS)])
    base = str(toys.kogpt2(place / "base"))
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
            begin = [str(file), *options(SPLITTING, model_options, train_options), "--no-evaluate"]
            ends[name] = pool.submit(kill_and_resume, begin, place / f"{name}-killed", moments[name])
        straight = {}
        for name, model_options in learners.items():
            recipes = [train_options, train_options, replace(train_options, seed=2)]
            straight[name] = [
                in_process(file, model_options, one, place / f"{name}-{i}") for i, one in enumerate(recipes)
            ]
    return {name: Trial(straight[name], place / f"{name}-killed" / "0001", ends[name].result()) for name in learners}


@pytest.fixture(params=["full", "lora"])
def trial(request: pytest.FixtureRequest, trials: dict[str, Trial]) -> Trial:
    return trials[str(request.param)]


def learned(run: Path) -> bytes:
    return next(path for folder in ("model", "adapter") for path in (run / folder).glob("*.safetensors")).read_bytes()


def test_killed_and_resumed_training_gives_the_same_bytes(trial: Trial) -> None:
    assert learned(trial.killed) == learned(trial.straight[0])


def test_the_log_of_a_resumed_run_has_each_step_once(trial: Trial) -> None:
    resumed, straight = (
        [(line["event"], line["step"], line["epoch"], line["loss"], line.get("grad_norm")) for line in log(run)]
        for run in (trial.killed, trial.straight[0])
    )
    assert resumed == straight
    steps = [step for event, step, *_ in resumed if event == "train"]
    assert steps == list(range(1, len(steps) + 1))
    assert max(trial.at) > 3, "none was killed after its first checkpoint"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(trial: Trial) -> None:
    first, again, other = map(learned, trial.straight)
    assert first == again != other
