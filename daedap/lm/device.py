"""What this machine computes on, and in which precision it is fastest: found by trying, not by guessing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import psutil
import torch

from daedap.errors import SettingsError
from daedap.files import write_json
from daedap.language import say
from daedap.lm.processor import may_be_fast_in_bf16, processor_features, processor_name
from daedap.lm.ranks import world
from daedap.lm.recipe import DeviceName, Precision
from daedap.runs import Run

# oneDNN keeps what it built for each shape, with its scratch memory: batches have few shapes (prompt.py), texts many.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
# Gradients far from any label are denormal numbers, on which Intel's processors multiply five times slower. Threads
# inherit the mode from the one that starts them, so it is set before any parallel work: docs/EXPERIMENTS.md.
torch.set_flush_denormal(True)
_COMPILED_SAVES, _COMPILING_TAKES = 0.16, 40.0
"""Share of a training's time that compiling saves at least, and the seconds that it takes: see bench/RESULTS.md."""
_WORTH_IT = 1.5
"""How much faster bf16 must be: rounding weights to it takes time too, and fp32 is more exact."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run was computed. The same machine, settings and seed give the same bytes."""

    device: str
    precision: Literal["fp32", "bf16"]
    threads: int
    processor: str
    compiled: bool | None = None
    """Whether the steps of training are; None: not yet decided."""
    processes: int = 1
    """How many of them share every step."""
    features: list[str] = field(default_factory=list)
    """Of the processor, as far as they make it faster: AVX2, AVX-512, VNNI, bf16."""

    def line(self) -> str:
        """For a terminal."""
        told = "Computed on {processor} ({features}): {threads} threads, {precision}"
        return say(told, **asdict(self) | {"features": ", ".join(self.features) or self.device})


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


def choose_precision(wanted: Precision, width: int, device: str) -> Literal["fp32", "bf16"]:
    """The wanted precision, or the one in which this machine multiplies matrices of a model's width the faster."""
    if wanted != "auto":
        return wanted
    if device == "mps" or (device == "cuda" and not torch.cuda.is_bf16_supported()):
        return "fp32"
    if device == "cpu" and not may_be_fast_in_bf16():
        return "fp32"
    fp32, bf16 = (shortest(_product(width, dtype, device)) for dtype in (torch.float32, torch.bfloat16))
    return "bf16" if fp32 > _WORTH_IT * bf16 else "fp32"


def _product(width: int, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """A feed-forward layer's product for a batch of 512 tokens."""
    states, weights = torch.ones(512, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
    left, right = states.to(device), weights.to(device)

    def multiply() -> None:
        (left @ right).sum().item()  # .item() waits for the GPU

    return multiply


def settle(run: Run, device: DeviceName, precision: Precision, width: int) -> Machine:
    """What a run was begun on, or what a probe chooses now: a resumed run must change neither device nor precision.

    Raises SettingsError when the device is not there.
    """
    if "machine" in run.settings:
        begun = run.settings["machine"]
        choose_device(begun["device"])
        return Machine(**begun)
    chosen = choose_device(device)
    machine = this_machine(chosen, choose_precision(precision, width, chosen))
    write_json(run.folder / "settings.json", {**run.settings, "machine": asdict(machine)})
    return machine


def settle_compiler(run: Run, machine: Machine, wanted: bool | None, seconds: float) -> Machine:
    """Whether the steps of training are compiled: as wanted, else when so many seconds of them win back what it costs.

    As with the precision, a resumed run keeps what was chosen.
    """
    if machine.compiled is not None:
        return machine
    if wanted is None:
        wanted = _COMPILED_SAVES * seconds > _COMPILING_TAKES and can_compile()
    machine = replace(machine, compiled=wanted)
    write_json(run.folder / "settings.json", {**run.settings, "machine": asdict(machine)})
    return machine


def can_compile() -> bool:
    """Whether PyTorch can compile here."""
    try:
        need_compiler()
    except SettingsError:
        return False
    return True


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


def shortest(work: Callable[[], None], times: int = 5, seconds: float = 1.0) -> float:
    """The shortest of several times: what else the machine does only makes the others longer.

    Slow work is done less often: two times at least, and no more once so many seconds have been spent.
    """
    work()  # the first call allocates and picks kernels
    measured: list[float] = []
    while len(measured) < times and (len(measured) < 2 or sum(measured) < seconds):
        start = time.perf_counter()
        work()
        measured.append(time.perf_counter() - start)
    return min(measured)


def this_machine(device: str, precision: Literal["fp32", "bf16"]) -> Machine:
    """The machine's description, for the manifest."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor_name()
    return Machine(device, precision, torch.get_num_threads(), name, processes=world(), features=processor_features())


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes
