"""Conversion of a run's model to CTranslate2's layout, weights in int8.

    engine/model.bin config.json vocabulary.json            the model with its full vocabulary
           replies/model.bin config.json vocabulary.json    where it pays: with a head for the shortlist only

CTranslate2 has no shortlist for decoder-only models, but accepts a head shorter than the embedding, for the first
tokens of the vocabulary. Such a model can't score texts that contain other tokens.

The converters of CTranslate2 4.8 drop parts of some architectures; `_patch_spec` restores them. Each gap made an engine
fail or give wrong answers on copies of published configurations (tests/test_published_bases.py).
"""

from __future__ import annotations

import copy
import logging
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ctranslate2.converters.transformers import _MODEL_LOADERS  # by the name of the architecture's configuration
from ctranslate2.specs.attention_spec import RotaryScalingType
from ctranslate2.specs.model_spec import OPTIONAL, NumpyVariable, Variable
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from daedap.data.split import RunRows
from daedap.errors import EngineError, StorageError
from daedap.files import new_folder
from daedap.i18n import translate
from daedap.model.engine import ENGINE, HEAD, REPLIES
from daedap.model.language_model import TorchModel
from daedap.model.loss import shortlist
from daedap.model.prompt import Prompt
from daedap.model.verify import Reference, verify_engine
from daedap.runs import Run

_log = logging.getLogger("daedap")
_MIN_SAVING = 0.15
"""Fraction of the weights per generated token that a shortlist must save to be worth a second model file."""
_LARGEST_WEIGHT, LARGEST_PAIR = 127, 127
"""Of an int8 weight, and of the sum of the absolute values of any two of four neighbours. Without VNNI a processor adds
two products of an unsigned activation (at most 255) and a weight in 16 bits, which hold 255 × 128: larger pairs
saturate, and log-probabilities are off by up to 40 %."""
_NEIGHBOURS = 4
"""Weights that are multiplied at a time, any two of which may be added in 16 bits (vpmaddubsw)."""


def write_engine(run: Run, rows: RunRows, model: TorchModel) -> None:
    """Write a run's engine: int8 where it agrees with PyTorch, else float32, else none, with a warning.

    No failure here may cost the training: only a disk that can't be written ends the run (StorageError).
    """
    prompt = model.prompt
    kept = shortlist(prompt, prompt.fitting_examples(rows["train"]))
    kept = kept if kept is not None and _pays(model.model, len(kept)) else None
    model = replace(model, precision="fp32", allowed=kept)  # the reference chooses among the same tokens as the engine
    reference = Reference.of(model, [*rows["dev"], *rows["train"]])
    try:
        with new_folder(run.folder / ENGINE) as folder:
            for int8 in (True, False):
                convert(model.model, prompt, folder, kept, largest_pair=LARGEST_PAIR if int8 else None)
                reference.save(folder)
                if verify_engine(folder, prompt, model.max_new_tokens):
                    break
            else:
                raise _unsupported(model.model, translate("its answers differ from the trained model's"))
            if not int8:
                _log.info(translate("int8 is too coarse for these weights: the engine keeps them in float32."))
    except StorageError:
        raise
    except EngineError as error:
        _log.warning(str(error))
    except Exception as error:  # whatever a library raises
        _log.warning(str(_unsupported(model.model, f"{type(error).__name__}: {error}")))
        run.note("engine_failed", traceback=traceback.format_exc())


def convert(
    model: PreTrainedModel,
    prompt: Prompt,
    folder: Path,
    kept: Tensor | None = None,
    *,
    largest_pair: int | None = LARGEST_PAIR,
) -> None:
    """Write a model to a folder and, where it pays, one with a head for the `kept` ids to its `replies/`.

    `largest_pair`: the largest sum of two neighbouring int8 weights; None keeps float32. Raises EngineError when
    CTranslate2 doesn't support the model.
    """
    spec = _build_spec(model, prompt, largest_pair)
    _save(spec, folder)
    if kept is not None and _pays(model, len(kept)):
        _shorten(spec, kept)
        _save(spec, folder / REPLIES)


def _pays(model: PreTrainedModel, kept: int) -> bool:
    """Whether a head for so many tokens saves enough of the weights that are read per generated token."""
    head, embedding = cast("nn.Linear", model.get_output_embeddings()), model.get_input_embeddings()
    looked_up = 0 if embedding.weight is head.weight else cast("Tensor", embedding.weight).numel()
    saved = (head.out_features - kept) * head.in_features
    return saved > _MIN_SAVING * (model.num_parameters() - looked_up)


def _build_spec(model: PreTrainedModel, prompt: Prompt, largest_pair: int | None) -> Any:
    """The model as a CTranslate2 specification, in int8 unless `largest_pair` is None. Raises EngineError."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window and window < prompt.max_length:  # see _patch_spec
        reason = "its sliding window is {window} tokens, and --max-length is {length}"
        raise _unsupported(model, translate(reason, window=window, length=prompt.max_length))
    norms = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")
    try:
        with torch.no_grad():
            spec = _MODEL_LOADERS[type(model.config).__name__].get_model_spec(_copy_modules(model))
        spec.config.layer_norm_epsilon = float(next(value for name in norms if (value := getattr(config, name, None))))
        names = _token_names(prompt, config.vocab_size)
        spec.register_vocabulary(names)
        unknown = prompt.tokenizer.unk_token_id
        spec.config.unk_token = names[prompt.pad_id if unknown is None else unknown]
        spec.config.bos_token = spec.config.eos_token = names[prompt.template.eos_id]  # prompts bring their own BOS
        spec.validate()
        _patch_spec(spec, config)
        spec.optimize()
        if largest_pair:
            spec._visit(partial(quantize, largest_pair=largest_pair))
    except Exception as error:  # every loader fails in its own way
        raise _unsupported(model, f"{type(error).__name__}: {error}") from error
    return spec


def _copy_modules(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of all modules with shared tensors: the converters delete layers after reading them.

    With the attributes that the one for GPT-NeoX reads and transformers 5 has removed.
    """
    tensors = [*model.parameters(), *model.buffers()]
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    config: Any = copied.config
    if config.model_type == "gpt_neox":
        config.rotary_pct = config.rope_parameters["partial_rotary_factor"]
        copied.embed_out = copied.get_output_embeddings()
    return copied


def _patch_spec(spec: Any, config: Any) -> None:
    """Restore what the converter dropped from the attention of a validated, not yet quantized specification.

    Sliding windows are removed; `_build_spec` refuses those that are shorter than the longest text. With padding
    removed, CTranslate2 mistakes the hidden size for the text length. Where it exceeds the window (gemma-3-270m:
    640 > 512) masking fails with "Length mask has size … which is different than the current batch size".
    """
    llama3 = config.model_type == "llama" and config.rope_parameters.get("rope_type") == "llama3"
    for part in (spec.decoder, *(layer.self_attention for layer in spec.decoder.layer)):
        if hasattr(part, "sliding_window"):
            _set(part, "sliding_window", np.int32(0))
    for attention in (layer.self_attention for layer in spec.decoder.layer):
        if getattr(config, "head_dim", None) and not hasattr(attention, "head_dim"):
            _set(attention, "head_dim", np.int32(config.head_dim))
        if llama3:  # the converter keeps only the low and high frequency factors
            rope = config.rope_parameters
            _set(attention, "rotary_scaling_type", np.int8(RotaryScalingType.Llama3))
            _set(attention, "rotary_scaling_factor", np.float32(rope["factor"]))
            _set(attention, "original_max_position_embeddings", np.int32(rope["original_max_position_embeddings"]))


def _set(part: Any, name: str, value: np.generic) -> None:
    """Set an attribute that the spec's class does not declare: its `__setattr__` refuses it, saving writes it."""
    object.__setattr__(part, name, NumpyVariable(np.asarray(value)))


def quantize(layer: Any, name: str, value: Any, largest_pair: int = LARGEST_PAIR) -> None:
    """Round a matrix to int8 with a scale per row: for `LayerSpec._visit`, like CTranslate2's own `_quantize`.

    A row uses the range ±127, or less where two neighbours would exceed `largest_pair` and saturate without VNNI.
    """
    key = name.rsplit("/", maxsplit=1)[-1]
    if not isinstance(value, Variable) or value.is_scalar() or not hasattr(layer, f"{key}_scale"):
        return
    rows = value.to("float32").numpy()
    sizes = np.abs(rows)
    step = np.maximum(sizes.max(axis=1) / _LARGEST_WEIGHT, _largest_pair(sizes) / largest_pair)
    step = np.maximum(step, np.finfo(np.float32).tiny)
    setattr(layer, key, NumpyVariable(np.rint(rows / step[:, None]).astype(np.int8)))
    setattr(layer, f"{key}_scale", NumpyVariable((1 / step).astype(np.float32)))


def _largest_pair(sizes: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows,): the largest sum of two values among four neighbours, from (rows, columns)."""
    sizes = np.pad(sizes, ((0, 0), (0, -sizes.shape[1] % _NEIGHBOURS)))
    one, two, three, four = (sizes[:, offset::_NEIGHBOURS] for offset in range(_NEIGHBOURS))
    across = np.maximum(one, two) + np.maximum(three, four)
    pairs: NDArray[np.float32] = np.maximum(np.maximum(one + two, three + four), across).max(axis=1)
    return pairs


def _token_names(prompt: Prompt, rows: int) -> list[str]:
    """A unique name for each row of the embedding; rows without a token are numbered."""
    names: dict[str, int] = {}
    for id in range(rows):
        name = cast("str | None", prompt.tokenizer.convert_ids_to_tokens(id))
        names[f"<row {id}>" if name is None or name in names else name] = id
    assert len(names) == rows, "two rows of the embedding have the same name"
    return list(names)


def _shorten(spec: Any, kept: Tensor) -> None:
    """Move the kept ids to the front of the vocabulary and reduce the head to them."""
    decoder, names = spec.decoder, spec._vocabulary
    order = np.concatenate([kept.numpy(), np.setdiff1d(np.arange(len(names)), kept.numpy())])
    embedding, head = decoder.embeddings, decoder.projection
    source = embedding if isinstance(head.weight, str) else head  # a string where both share one matrix
    _select_rows(source, head, order[: len(kept)])
    _select_rows(embedding, embedding, order)
    spec.register_vocabulary([names[id] for id in order])
    spec.config.add_attribute(HEAD, len(kept))


def _select_rows(source: Any, target: Any, rows: NDArray[np.int64]) -> None:
    """Set weight and scales of `target` to these rows of `source`'s, and its bias to these of its own."""
    for part, owner in (("weight", source), ("weight_scale", source), ("bias", target)):
        values = getattr(owner, part, OPTIONAL)
        if values != OPTIONAL:
            setattr(target, part, NumpyVariable(values.numpy()[rows]))


def _save(spec: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))


def _unsupported(model: PreTrainedModel, error: str) -> EngineError:
    return EngineError(
        "CTranslate2 can't compute a model of type {architecture} ({error}).",
        "It is answered by PyTorch, which takes longer.",
        architecture=model.config.model_type,
        error=error,
    )
