"""Trained weights of a run in standard layouts: a PEFT adapter, or a full model of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from daedap.config import FRESH
from daedap.files import new_folder
from daedap.model.base import load_recorded_base, random_init_model
from daedap.model.decoding import unreadable_weights
from daedap.model.device import fuse_activations
from daedap.model.language_model import TorchModel
from daedap.model.prompt import Prompt, build_prompt
from daedap.model.tokenizer import load_tokenizer, save_tokenizer
from daedap.runs import Run

if TYPE_CHECKING:
    from peft import PeftModel


def save_trained(model: PreTrainedModel | PeftModel, prompt: Prompt, run_folder: Path) -> None:
    """Write `adapter/` (LoRA) or `model/` (all weights), each with the tokenizer and its chat template."""
    name = "model" if isinstance(model, PreTrainedModel) else "adapter"
    if isinstance(model, PreTrainedModel) and model.generation_config:
        model.generation_config.eos_token_id = prompt.template.eos_id
    with new_folder(run_folder / name) as temporary:
        cast("PreTrainedModel", model).save_pretrained(temporary)
        save_tokenizer(prompt.tokenizer, temporary)


def open_trained(run: Run, device: str = "cpu") -> TorchModel:
    """The trained model of a complete run. Raises RunError when its files or its base have changed."""
    folder = weights_folder(run)
    model = _load_merged(run, folder) if folder.name == "adapter" else load_full_model(folder)
    return _torch_model(run, model, load_tokenizer(folder), device)


def open_untuned(run: Run, device: str = "cpu") -> TorchModel:
    """The base of a run without its training, as `open_trained`."""
    recorded = run.trained["base"]
    if recorded["name"] == FRESH:
        tokenizer = load_tokenizer(run.folder / "model")
        return _torch_model(run, random_init_model(tokenizer, recorded["seed"]), tokenizer, device)
    base = load_recorded_base(run, run.trained["base"])
    return _torch_model(run, base.model, base.tokenizer, device)


def load_prompt(run: Run) -> Prompt:
    """The prompt of a run's model, without loading the model. Raises BaseError when its tokenizer can't be read."""
    return _prompt(run, load_tokenizer(weights_folder(run)))


def weights_folder(run: Run) -> Path:
    """The folder of a run's weights: `adapter/`, else `model/`."""
    adapter = run.folder / "adapter"
    return adapter if adapter.is_dir() else run.folder / "model"


def _prompt(run: Run, tokenizer: PreTrainedTokenizerFast) -> Prompt:
    return build_prompt(tokenizer, run.trained["limits"]["max_length"])


def _torch_model(run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, device: str) -> TorchModel:
    trained = run.trained
    fuse_activations(model)
    model.to(device)  # type: ignore[arg-type]
    limit, precision = trained["limits"]["max_new_tokens"], trained["machine"]["precision"]
    return TorchModel(model, _prompt(run, tokenizer), limit, device, precision)


def load_full_model(folder: Path) -> PreTrainedModel:
    """A full model from a folder, in float32. Raises RunError when its weights can't be read."""
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype="float32", weights_only=True, trust_remote_code=False
        )
    except Exception as error:  # a damaged file fails in safetensors, torch or transformers
        raise unreadable_weights(folder, error) from error
    return model


def _load_merged(run: Run, folder: Path) -> PreTrainedModel:
    """Base and adapter merged into one model, as fast as the base."""
    from peft import PeftModel  # takes a second to import; not needed for a full model

    base = load_recorded_base(run, run.trained["base"])
    try:
        merged: PreTrainedModel = PeftModel.from_pretrained(base.model, str(folder)).merge_and_unload()
    except Exception as error:  # as above
        raise unreadable_weights(folder, error) from error
    return merged
