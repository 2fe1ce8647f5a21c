"""Checkpoints in accelerate's layout, without frozen weights, and the log of a resumed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from daedap.errors import RunError
from daedap.files import new_folder, new_path, remove_folder, write_text

_WEIGHTS = "trained.safetensors"


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Trained weights by name, on the CPU and contiguous as safetensors requires."""
    trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    return {name: weight.detach().cpu().contiguous() for name, weight in trained}


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write the trained weights into a folder, replacing earlier ones atomically."""
    with new_path(folder / _WEIGHTS) as temporary:
        save_file(trained_weights(model), temporary)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load saved weights into the model. Raises RunError when the file is truncated or damaged."""
    try:
        keys = model.load_state_dict(load_file(folder / _WEIGHTS), strict=False)
    except Exception as error:  # safetensors and torch have their own errors
        raise _unreadable(folder, error) from error
    assert not keys.unexpected_keys, f"{folder} holds weights of another model"


def keep_only_trained(accelerator: Accelerator, model: nn.Module) -> None:
    """Make accelerate's `save_state` and `load_state` handle trained weights only: megabytes with LoRA, not gigabytes.

    Names are those of `model`: accelerate may have been given a part or a wrapper of it.
    """

    def save(_: list[nn.Module], weights: list[dict[str, Any]], folder: str) -> None:
        save_file(trained_weights(model), Path(folder) / _WEIGHTS)
        weights.clear()  # accelerate writes what is left in this list

    def load(models: list[nn.Module], folder: str) -> None:
        load_weights(model, Path(folder))
        models.clear()  # likewise

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, limit: int) -> None:
    """Write `step-000200/` atomically, then delete all but the newest `limit` checkpoints."""
    path = folder / f"step-{step:06d}"
    if not path.exists():  # the same step is the same state
        with new_folder(path) as temporary:
            accelerator.save_state(str(temporary))
    for old in checkpoints(folder)[:-limit]:
        remove_folder(old)


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def resume(accelerator: Accelerator, folder: Path) -> None:
    """Load the newest checkpoint of a run's folder, if there is one. Raises RunError when it can't be read."""
    for newest in checkpoints(folder / "checkpoints")[-1:]:
        try:
            accelerator.load_state(str(newest))
        except RunError:
            raise
        except Exception as error:  # pickles, random states and JSON have their own errors
            raise _unreadable(newest, error) from error


def cut_log(folder: Path, step: int) -> None:
    """Remove the log lines of later steps, and a last line that a full disk or a kill left incomplete."""
    log = folder / "log.jsonl"
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        complete = (line for line in lines if line.endswith("\n"))
        write_text(log, "".join(line for line in complete if json.loads(line).get("step", 0) <= step))


def _unreadable(folder: Path, error: Exception) -> RunError:
    return RunError(
        "{folder}: the checkpoint can't be read ({error}).",
        "Delete this folder and resume again: the checkpoint before it is used.",
        folder=folder,
        error=str(error).splitlines()[0] if str(error) else type(error).__name__,
    )
