"""The same functions by fewer kernels: what PyTorch computes in one pass where a model's own code takes many.

What this processor can do, as far as numeric libraries make use of it.

Eight-bit products are exact only where the processor sums them in 32 bits (VNNI); elsewhere they are summed in pairs
in 16 bits, which may saturate. bf16 products are fast only in hardware. Variables that hold libraries back count, too,
so that one machine can stand for another in tests.

What this machine computes on, and in which precision it is fastest: found by trying, not by guessing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import psutil
import torch
from torch import nn
from transformers.activations import NewGELUActivation

from daedap.config import DeviceName, Precision
from daedap.errors import SettingsError
from daedap.files import write_json
from daedap.i18n import translate
from daedap.model.distributed import world_size
from daedap.runs import Run


def fuse_activations(model: nn.Module) -> None:
    """Give GPT-2's activation its fused kernel: `gelu_new` of transformers takes eight passes over its input.

    The values are the same up to rounding.
    """
    for module in list(model.modules()):
        for name, part in module.named_children():
            if isinstance(part, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


_HELD_BACK = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "CT2_FORCE_CPU_ISA", "CT2_USE_MKL", "MKL_ENABLE_INSTRUCTIONS")
_FEATURES = {
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx_vnni": "VNNI",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "bf16",
    "amx_bf16": "AMX",
    "neon": "NEON",
    "i8mm": "int8 products",
    "bf16": "bf16",
}
"""PyTorch's names of processor features → the names that people search for."""
_BEYOND_AVX2 = {"AVX-512", "VNNI", "bf16", "AMX"}


def processor_name() -> str:
    """The processor as its maker calls it."""
    return str(torch.cpu.get_capabilities().get("cpu_name") or torch.cpu.get_capabilities().get("architecture"))


def processor_features() -> list[str]:
    """Its features that libraries may use here: `["AVX2", "AVX-512", "VNNI"]`, without those held back."""
    capabilities = torch.cpu.get_capabilities()
    found = list(dict.fromkeys(name for key, name in _FEATURES.items() if capabilities.get(key)))
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() == "AVX2":
        return [name for name in found if name not in _BEYOND_AVX2]
    return found


def has_fast_bf16() -> bool:
    """False on x86 without bf16 instructions: a product takes two hundred times as long there as in float32."""
    x86 = str(torch.cpu.get_capabilities().get("architecture")).startswith("x86")
    return not x86 or bool({"bf16", "AMX"} & set(processor_features()))


def processor_kind() -> str:
    """Equal for processors on which an eight-bit model computes the same: features, and what holds libraries back."""
    held_back = [f"{name}={os.environ[name]}" for name in _HELD_BACK if os.environ.get(name)]
    architecture = str(torch.cpu.get_capabilities().get("architecture"))
    vendor = processor_name().split(" ")[0]
    return " ".join([architecture, vendor, *processor_features(), *held_back])


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

    def summary(self) -> str:
        """For a terminal."""
        told = "Computed on {processor} ({features}): {threads} threads, {precision}"
        return translate(told, **asdict(self) | {"features": ", ".join(self.features) or self.device})


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
    if device == "cpu" and not has_fast_bf16():
        return "fp32"
    fp32, bf16 = (best_of_n(_product(width, dtype, device)) for dtype in (torch.float32, torch.bfloat16))
    return "bf16" if fp32 > _WORTH_IT * bf16 else "fp32"


def _product(width: int, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """A feed-forward layer's product for a batch of 512 tokens."""
    states, weights = torch.ones(512, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
    left, right = states.to(device), weights.to(device)

    def multiply() -> None:
        (left @ right).sum().item()  # .item() waits for the GPU

    return multiply


def resolve_machine(run: Run, device: DeviceName, precision: Precision, width: int) -> Machine:
    """What a run was begun on, or what a probe chooses now: a resumed run must change neither device nor precision.

    Raises SettingsError when the device is not there.
    """
    if "machine" in run.settings:
        begun = run.settings["machine"]
        choose_device(begun["device"])
        return Machine(**begun)
    chosen = choose_device(device)
    machine = describe_machine(chosen, choose_precision(precision, width, chosen))
    write_json(run.folder / "settings.json", {**run.settings, "machine": asdict(machine)})
    return machine


def resolve_compiler(run: Run, machine: Machine, wanted: bool | None, seconds: float) -> Machine:
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
        require_compiler()
    except SettingsError:
        return False
    return True


def require_compiler() -> None:
    """Raise SettingsError where PyTorch can't compile, before hours are spent on getting there."""
    try:
        torch.compile(lambda number: number + 1)(torch.ones(2))
    except Exception as error:  # a missing compiler, header or OpenMP each has its own error
        raise SettingsError(
            "--torch-compile: PyTorch can't compile here ({error}).",
            "Install a C++ compiler (g++ or clang), or leave --torch-compile out.",
            error=str(error).splitlines()[0] if str(error) else type(error).__name__,
        ) from error


def best_of_n(work: Callable[[], None], times: int = 5, seconds: float = 1.0) -> float:
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


def describe_machine(device: str, precision: Literal["fp32", "bf16"]) -> Machine:
    """The machine's description, for the manifest."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor_name()
    return Machine(device, precision, torch.get_num_threads(), name, processes=world_size(), features=processor_features())


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes
