"""What a training is computed on: device, precision and processor features of this machine, whether torch.compile
works and pays here, and the processes that `torchrun` or `accelerate launch` starts.

int8 products are exact only where the processor accumulates them in 32 bits (VNNI); elsewhere they are added in pairs
in 16 bits, which may saturate. bf16 products are fast only with hardware support. Environment variables that restrict
numeric libraries to older instructions (ONEDNN_MAX_CPU_ISA and others) are respected, so that an AVX-512 machine can
act as an AVX2 one in tests.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from transformers.activations import NewGELUActivation

from daedap.config import DeviceName, Precision
from daedap.errors import SettingsError, first_line
from daedap.files import new_file
from daedap.i18n import translate

T = TypeVar("T")

_ISA_VARIABLES = (
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "CT2_FORCE_CPU_ISA",
    "CT2_USE_MKL",
    "MKL_ENABLE_INSTRUCTIONS",
)
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
"""PyTorch's name of a processor feature → its common name."""
_BEYOND_AVX2 = {"AVX-512", "VNNI", "bf16", "AMX"}


def processor_name() -> str:
    """The processor's model name, or its architecture where PyTorch knows no name."""
    capabilities = torch.cpu.get_capabilities()
    return str(capabilities.get("cpu_name") or capabilities.get("architecture"))


def processor_features() -> list[str]:
    """Features that libraries may use here, such as `["AVX2", "AVX-512", "VNNI"]`."""
    capabilities = torch.cpu.get_capabilities()
    features = list(dict.fromkeys(name for key, name in _FEATURES.items() if capabilities.get(key)))
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() == "AVX2":
        return [name for name in features if name not in _BEYOND_AVX2]
    return features


def has_fast_bf16() -> bool:
    """False on x86 without bf16 instructions, where a bf16 product takes two hundred times as long as in float32."""
    x86 = str(torch.cpu.get_capabilities().get("architecture")).startswith("x86")
    return not x86 or bool({"bf16", "AMX"} & set(processor_features()))


def processor_kind() -> str:
    """A key that is equal for processors on which an int8 model gives the same results.

    Made of architecture, vendor, features and the environment variables that restrict them.
    """
    restricted = [f"{name}={os.environ[name]}" for name in _ISA_VARIABLES if os.environ.get(name)]
    architecture = str(torch.cpu.get_capabilities().get("architecture"))
    vendor = processor_name().split(" ")[0]
    return " ".join([architecture, vendor, *processor_features(), *restricted])


# oneDNN caches a primitive with its scratch memory for every input shape. Training batches have few shapes
# (prompt.round_up), scored texts have many, so the cache is bounded.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
# Gradients far from any label are denormal numbers, which Intel processors multiply five times slower. Threads inherit
# the mode from the thread that starts them, so it is set before any parallel work: docs/EXPERIMENTS.md.
torch.set_flush_denormal(True)
_COMPILE_SAVING, _COMPILE_SECONDS = 0.16, 40.0
"""Fraction of the training time that torch.compile saves at least, and the seconds it takes: bench/RESULTS.md."""
_MIN_BF16_SPEEDUP = 1.5
"""How much faster bf16 products must be: casting weights takes time too, and fp32 is more exact."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run is computed on. The same machine, settings and seed give the same bytes."""

    device: DeviceName
    precision: Literal["fp32", "bf16"]
    threads: int
    processor: str
    compiled: bool | None = None
    """Whether training steps run through torch.compile; None: not yet decided."""
    processes: int = 1
    """Data-parallel processes."""
    features: list[str] = field(default_factory=list)
    """Processor features that matter for speed: AVX2, AVX-512, VNNI, bf16."""

    def autocast(self) -> torch.autocast:
        """A context in which matrix products are computed in this precision."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def summary(self) -> str:
        """One line for the terminal."""
        template = "Computed on {processor} ({features}): {threads} threads, {precision}"
        return translate(template, **asdict(self) | {"features": ", ".join(self.features) or self.device})


def choose_device(wanted: DeviceName = "auto") -> DeviceName:
    """The named device, or with "auto" the first of cuda, mps and cpu that exists. Raises SettingsError."""
    exists: dict[DeviceName, bool] = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available: list[DeviceName] = [*(name for name in exists if exists[name]), "cpu"]
    if wanted == "auto":
        return available[0]
    if wanted not in available:
        raise SettingsError(
            "--device {device}: not available on this machine.",
            "Leave --device out to use the best there is.",
            device=wanted,
        )
    return wanted


def choose_precision(wanted: Precision, width: int, device: str) -> Literal["fp32", "bf16"]:
    """The named precision, or with "auto" the faster one for matrix products of a model's hidden size `width`."""
    if wanted != "auto":
        return wanted
    if device == "mps" or (device == "cuda" and not torch.cuda.is_bf16_supported()):
        return "fp32"
    if device == "cpu" and not has_fast_bf16():
        return "fp32"

    def seconds(dtype: torch.dtype) -> float:
        """Of a feed-forward layer on 512 tokens."""
        states = torch.ones(512, width, dtype=dtype, device=device)
        weights = torch.ones(width, 4 * width, dtype=dtype, device=device)
        return best_of_n(lambda: (states @ weights).sum().item())  # .item() synchronizes the GPU

    return "bf16" if seconds(torch.float32) > _MIN_BF16_SPEEDUP * seconds(torch.bfloat16) else "fp32"


def choose_machine(device: DeviceName, precision: Precision, width: int) -> Machine:
    """The device and, by a probe, the precision for models of hidden size `width`.

    Raises SettingsError when the device is not available.
    """
    device = choose_device(device)
    return Machine(
        device,
        choose_precision(precision, width, device),
        torch.get_num_threads(),
        torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        processes=world_size(),
        features=processor_features(),
    )


def pays_to_compile(wanted: bool | None, seconds: float) -> bool:
    """Whether training steps go through torch.compile: as wanted, else when it saves more time than it takes.

    `seconds`: the expected time of training without it.
    """
    return _COMPILE_SAVING * seconds > _COMPILE_SECONDS and can_compile() if wanted is None else wanted


def can_compile() -> bool:
    """Whether torch.compile works on this machine."""
    try:
        require_compiler()
    except SettingsError:
        return False
    return True


def require_compiler() -> None:
    """Raise SettingsError where torch.compile does not work, before hours of preparation."""
    try:
        torch.compile(lambda number: number + 1)(torch.ones(2))
    except Exception as error:  # a missing compiler, header or OpenMP each has its own error
        raise SettingsError(
            "--torch-compile: PyTorch can't compile here ({error}).",
            "Install a C++ compiler (g++ or clang), or leave --torch-compile out.",
            error=first_line(error),
        ) from error


def best_of_n(work: Callable[[], object], times: int = 5, seconds: float = 1.0) -> float:
    """Call `work` up to `times` times and return the shortest duration in seconds: other load only adds time.

    Slow work is repeated less: at least twice, and not again once `seconds` have been spent.
    """
    work()  # the first call allocates and selects kernels
    measured: list[float] = []
    while len(measured) < times and (len(measured) < 2 or sum(measured) < seconds):
        start = time.perf_counter()
        work()
        measured.append(time.perf_counter() - start)
    return min(measured)


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def fuse_activations(model: nn.Module) -> None:
    """Replace GPT-2's `gelu_new`, eight elementwise kernels in transformers, by PyTorch's fused tanh GELU.

    The values are equal up to rounding.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


# Data-parallel training. In a single process, each of these does nothing or returns its input.


def init_distributed(device: str) -> None:
    """Create the process group and wait for the other processes."""
    if _is_distributed():
        PartialState(cpu=device == "cpu", **_store_options())


def _store_options() -> dict[str, Any]:
    """Arguments of `init_process_group` with a key-value store of its own for every restart.

    On one machine torchrun keeps one store for all attempts, so restarted processes would read the addresses of the
    dead ones (https://github.com/pytorch/pytorch/issues/135712).
    """
    attempt, machines = (os.environ.get(name, "") for name in ("TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE"))
    if attempt in ("", "0") or machines != "1":
        return {}
    store, rank, size = next(rendezvous("env://"))
    return {"store": PrefixStore(f"attempt {attempt}", store), "rank": rank, "world_size": size}


def is_main() -> bool:
    """Whether this is process 0, the only one that writes files, evaluates and decides."""
    return not _is_distributed() or PartialState().is_main_process


def world_size() -> int:
    """The number of processes."""
    return PartialState().num_processes if _is_distributed() else 1


def shard(items: Sequence[T]) -> Sequence[T]:
    """This process's items: every `world_size()`-th, from its rank on."""
    return items[PartialState().process_index :: world_size()] if _is_distributed() else items


def broadcast(make: Callable[[], T]) -> T:
    """Call `make` in the main process and return its result in every process."""
    if not _is_distributed():
        return make()
    made: T = broadcast_object_list([make()])[0] if is_main() else receive()
    return made


def receive() -> Any:
    """The result of the main process's `broadcast`, for a worker that can't name `make`."""
    return broadcast_object_list([None])[0]


def all_reduce_sum(value: float) -> float:
    """The sum of a value over all processes."""
    if not _is_distributed():
        return value
    summed = reduce(torch.tensor([value], dtype=torch.float64, device=PartialState().device), reduction="sum")
    return float(summed)


def barrier() -> None:
    """Wait until every process has reached this call."""
    if _is_distributed():
        PartialState().wait_for_everyone()


@contextmanager
def new_shared_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file into which every process writes its part; renamed to `path` when all have finished."""
    if is_main():
        with new_file(path) as file:
            broadcast(lambda: file.name)
            yield file
            barrier()
    else:
        with Path(receive()).open("r+b") as file:
            yield file
        barrier()
    barrier()  # until it is renamed


def _is_distributed() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
