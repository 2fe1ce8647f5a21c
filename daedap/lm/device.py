"""What this machine computes on, and in which precision it is fastest: found by trying, not by guessing."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import psutil
import torch

from daedap.errors import SettingsError
from daedap.files import write_json
from daedap.lm.recipe import DeviceName, Precision
from daedap.runs import Run

_WORTH_IT = 1.2
"""How much faster bf16 must be: below that, a probe's noise would decide, and fp32 is more exact."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run was computed. The same machine, settings and seed give the same bytes."""

    device: str
    precision: Literal["fp32", "bf16"]
    threads: int
    processor: str


def choose_device(wanted: DeviceName = "auto") -> str:
    """The best device there is, or the wanted one. Raises SettingsError when it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, available in there.items() if available)
    if not there[wanted]:
        raise SettingsError(
            "--device {device}: not available on this machine.",
            "Leave --device out to use the best there is.",
            device=wanted,
        )
    return wanted


def choose_precision(wanted: Precision, step: Callable[[torch.dtype], None], device: str) -> Literal["fp32", "bf16"]:
    """The wanted precision, or the faster one. `step` does one training step in a data type, changing no weight."""
    if wanted != "auto":
        return wanted
    if device == "mps" or (device == "cuda" and not torch.cuda.is_bf16_supported()):
        return "fp32"
    fp32, bf16 = (_seconds(partial(step, dtype)) for dtype in (torch.float32, torch.bfloat16))
    return "bf16" if fp32 > _WORTH_IT * bf16 else "fp32"


def settle(run: Run, device: DeviceName, precision: Precision, trial: Callable[[str, torch.dtype], None]) -> Machine:
    """What a run was begun on, or what a probe chooses now: a resumed run must change neither device nor precision.

    `trial` does one training step on a device in a data type, changing no weight.
    """
    if "machine" in run.settings:
        return Machine(**run.settings["machine"])
    chosen = choose_device(device)
    machine = this_machine(chosen, choose_precision(precision, partial(trial, chosen), chosen))
    write_json(run.folder / "settings.json", {**run.settings, "machine": asdict(machine)})
    return machine


def need_compiler() -> None:
    """Raise SettingsError where PyTorch can't compile, before hours are spent on getting there."""
    try:
        torch.compile(lambda number: number + 1)(torch.ones(2))
    except Exception as error:  # a missing compiler, header or OpenMP each has its own error
        raise SettingsError(
            "--torch-compile: PyTorch can't compile here ({error}).",
            "Install a C++ compiler (g++ or clang), or leave --torch-compile out.",
            error=str(error).splitlines()[0] if str(error) else type(error).__name__,
        ) from error


def _seconds(work: Callable[[], None], times: int = 3) -> float:
    work()  # the first call allocates and picks kernels
    measured = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        measured.append(time.perf_counter() - start)
    return statistics.median(measured)


def this_machine(device: str, precision: Literal["fp32", "bf16"]) -> Machine:
    """The machine's description, for the manifest."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return Machine(device, precision, torch.get_num_threads(), name)


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes
