"""The processes of one training, begun by `torchrun` or `accelerate launch`: the first one leads, the others help."""

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
    """Wait for the processes that were begun together; whoever was begun alone waits for nobody."""
    if _together():
        PartialState(cpu=device == "cpu", **_meeting_place())


def _meeting_place() -> dict[str, Any]:
    """Where processes that torchrun has begun again look for each other: not where the dead ones left their addresses.

    On one machine torchrun keeps one store for all attempts (https://github.com/pytorch/pytorch/issues/135712).
    """
    attempt, machines = (os.environ.get(name, "") for name in ("TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE"))
    if attempt in ("", "0") or machines != "1":
        return {}
    store, rank, size = next(rendezvous("env://"))
    return {"store": PrefixStore(f"attempt {attempt}", store), "rank": rank, "world_size": size}


def is_main() -> bool:
    """Whether this process leads: it alone writes the run, measures and decides."""
    return not _together() or PartialState().is_main_process


def world_size() -> int:
    """How many processes there are."""
    return PartialState().num_processes if _together() else 1


def shard(items: Sequence[T]) -> Sequence[T]:
    """What this process does of some work: one item after the other goes round."""
    return items[PartialState().process_index :: world_size()] if _together() else items


def broadcast(make: Callable[[], T]) -> T:
    """What the first process makes, in every process."""
    if not _together():
        return make()
    made: T = broadcast_object_list([make()])[0] if is_main() else receive()
    return made


def receive() -> Any:
    """The same in the others, which need not know how it is made."""
    return broadcast_object_list([None])[0]


def all_reduce_sum(value: float) -> float:
    """The sum of all processes' values."""
    if not _together():
        return value
    summed = reduce(torch.tensor([value], dtype=torch.float64, device=PartialState().device), reduction="sum")
    return float(summed)


def wait() -> None:
    """Until every process has come here."""
    if _together():
        PartialState().wait_for_everyone()


@contextmanager
def new_shared_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file that every process writes its part of; it becomes `path` once all have ended well."""
    if is_main():
        with new_file(path) as file:
            broadcast(lambda: file.name)
            yield file
            wait()
    else:
        with Path(receive()).open("r+b") as file:
            yield file
        wait()
    wait()  # until it has its name


def _together() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
