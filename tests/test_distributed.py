"""Data-parallel training equals training in one process, and survives a killed worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import toys
from conftest import write_csv

from daedap.cli import run as cli
from daedap.model.language_model import open_trained
from daedap.runs import Run

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2", "-m"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "-m"],
}
RECIPE = ["--precision", "fp32", "--no-torch-compile", "--device", "cpu", "--swa-epoch-start", "1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.kogpt2(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "qa.csv", toys.PAIRS)


def arguments_of(file: Path, base: Path, runs: Path, *more: str) -> list[str]:
    epochs = () if "--num-train-epochs" in more else ("--num-train-epochs", "2")
    return ["train", str(file), "--base", str(base), "--runs", str(runs), *RECIPE, *epochs, *more]


def launch(launcher: str, arguments: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "daedap", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
    )


def wait_for_end(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise
    assert process.returncode == 0, output
    return output


def states(runs: Path) -> dict[str, torch.Tensor]:
    paths = sorted(runs.glob("cache/*.states"))
    return {path.name: torch.from_file(str(path), size=path.stat().st_size // 4) for path in paths}


def assert_same(one: Path, other: Path) -> None:
    """Compare the probabilities of all answers: single weights without influence may differ."""
    ours, theirs = (open_trained(Run(folder)).log2_probability(toys.PAIRS) for folder in (one, other))
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)


@pytest.mark.parametrize(
    ("launcher", "method"),
    [("torchrun", ["--method", "lora", "--layers", "1"]), ("accelerate", ["--method", "full"])],
    ids=["torchrun-lora", "accelerate-full"],
)
def test_two_processes_train_the_same_model_as_one(
    file: Path, base: Path, tmp_path: Path, launcher: str, method: list[str]
) -> None:
    batch_size = "--per-device-train-batch-size"
    arguments = arguments_of(file, base, tmp_path / "two", *method, batch_size, "4", "--json")
    output = wait_for_end(launch(launcher, arguments))
    assert cli(arguments_of(file, base, tmp_path / "one", *method, batch_size, "8")) == 0
    one, two = Run(tmp_path / "one" / "0001"), Run(tmp_path / "two" / "0001")
    assert_same(one.folder, two.folder)
    assert two.manifest["machine"]["processes"] == 2
    assert two.manifest["training"]["steps"] == one.manifest["training"]["steps"]
    assert two.manifest["training"]["best_dev_loss"] == pytest.approx(one.manifest["training"]["best_dev_loss"])
    assert two.manifest["headline"].keys() == one.manifest["headline"].keys()
    assert output.count('"number": 1') == 1, "only process 0 prints"
    caches = [states(run.folder.parent) for run in (one, two)]
    assert caches[0].keys() == caches[1].keys()
    assert bool(caches[0]) == ("--layers" in method)
    for name, kept in caches[0].items():
        torch.testing.assert_close(kept, caches[1][name], rtol=1e-4, atol=1e-4)


def test_a_killed_process_is_restarted_from_the_last_checkpoint(file: Path, base: Path, tmp_path: Path) -> None:
    more = ["--method", "lora", "--num-train-epochs", "60", "--early-stopping-patience", "0", "--no-evaluate"]
    more += ["--save-steps", "5", "--per-device-train-batch-size"]
    process = launch("torchrun", arguments_of(file, base, tmp_path / "killed", *more, "4"))
    run = tmp_path / "killed" / "0001"
    wait_for(run / "checkpoints", process)
    helper = next(child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1")
    helper.kill()
    wait_for_end(process)
    assert sorted(path.name for path in run.parent.glob("0*")) == ["0001"], "the same run is continued"
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    assert steps == sorted(steps)
    assert Run(run).complete
    assert cli(arguments_of(file, base, tmp_path / "whole", *more, "8")) == 0
    assert_same(run, tmp_path / "whole" / "0001")


def wait_for(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait for the second checkpoint."""
    while len(list(folder.glob("step-*"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_bad_input_ends_all_processes(base: Path, tmp_path: Path) -> None:
    process = launch("torchrun", arguments_of(tmp_path / "없음.csv", base, tmp_path / "runs"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "없음.csv" in output
    assert not (tmp_path / "runs").exists()
