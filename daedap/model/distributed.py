"""Data-parallel training with the processes that `torchrun` or `accelerate launch` starts.

Every function also works in a single process, where it does nothing or returns its input.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from daedap.files import new_file

T = TypeVar("T")


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
