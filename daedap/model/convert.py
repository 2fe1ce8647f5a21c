"""What the converters of CTranslate2 4.8 leave out of a model, put back: found by comparing every base that users take.

Each gap made an engine fail or answer wrong on copies of published configurations (tests/test_published_bases.py).

A run's model → `engine/`: CTranslate2's layout, weights in eight bits.

    engine/model.bin config.json vocabulary.json            the model over its full vocabulary
           replies/model.bin config.json vocabulary.json    where it pays: with a head for the shortlist alone

CTranslate2 has no shortlist for models without an encoder, but the head may be shorter than the embedding: it then
says the first tokens of the vocabulary. Such a file can't score texts, as they may hold tokens it has no head for.
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

from daedap.data.split import read_rows
from daedap.errors import EngineError, StorageError
from daedap.files import new_folder
from daedap.i18n import translate
from daedap.model.engine import ENGINE, HEAD, REPLIES
from daedap.model.language_model import TorchModel
from daedap.model.loss import shortlist
from daedap.model.prompt import Prompt
from daedap.model.verify import Reference, verify_engine
from daedap.runs import Run


def readable(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the names that the converter of GPT-NeoX looks for, which transformers 5 has given up."""
    config: Any = model.config
    if config.model_type == "gpt_neox":
        config.rotary_pct = config.rope_parameters["partial_rotary_factor"]
        model.embed_out = model.get_output_embeddings()
    return model


def norm_epsilon(config: Any) -> float:
    """What is added to the variance before a norm divides by its root: each architecture has its own name for it."""
    names = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")
    return float(next(value for name in names if (value := getattr(config, name, None))))


def complete(spec: Any, config: Any) -> None:
    """Complete the attention of a validated specification that is not yet quantized."""
    _look_back_over_all(spec.decoder)
    for layer in spec.decoder.layer:
        attention = layer.self_attention
        if getattr(config, "head_dim", None) and not hasattr(attention, "head_dim"):
            _set(attention, "head_dim", np.int32(config.head_dim))
        if config.model_type == "llama":
            _scale_positions(attention, config)


def _look_back_over_all(decoder: Any) -> None:
    """Take sliding windows out: none is shorter than a text, convert.py refuses those that are.

    Where padding is removed, CTranslate2 takes the width of the states for the length of the texts: wider than the
    window, as gemma-3-270m's 640 against 512, they are masked in chunks that do not fit ("Length mask has size … which
    is different than the current batch size").
    """
    for part in (decoder, *(layer.self_attention for layer in decoder.layer)):
        if hasattr(part, "sliding_window"):
            _set(part, "sliding_window", np.int32(0))


def _scale_positions(attention: Any, config: Any) -> None:
    """Llama 3's rope scaling: the converter keeps its low and high factors only."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        _set(attention, "rotary_scaling_type", np.int8(RotaryScalingType.Llama3))
        _set(attention, "rotary_scaling_factor", np.float32(rope["factor"]))
        _set(attention, "original_max_position_embeddings", np.int32(rope["original_max_position_embeddings"]))


def _set(attention: Any, name: str, value: np.generic) -> None:
    """A specification refuses attributes that its maker did not ask for, though it writes them all the same."""
    object.__setattr__(attention, name, NumpyVariable(np.asarray(value)))


_log = logging.getLogger("daedap")
_PAYS = 0.15
"""Share of the weights that a shortlist must spare each token, to be worth a second file of the model."""
_LARGEST_WEIGHT, _LARGEST_PAIR = 127, 127
"""Of an eight-bit weight, and of the sum of any two of four neighbours. Without VNNI a processor adds pairs of products
of an unsigned activation (at most 255) and a weight in 16 bits, which hold 255 × 128: with larger pairs the sum
saturates, and log-probabilities are off by up to 40 %."""
_NEIGHBOURS = 4
"""Weights that a product takes at a time, whose pairs may be summed in 16 bits (vpmaddubsw)."""


def write_engine(run: Run, speaker: TorchModel) -> None:
    """Convert what a run has learned; what CTranslate2 can't compute right is said once, and answered by PyTorch.

    No failure here may cost the training: only a disk that can't be written ends the run (StorageError).
    """
    speaker = replace(speaker, precision="fp32")
    pairs = [pair for pair in read_rows(run.folder, "train") if speaker.prompt.fits(pair)]
    reference = Reference.of(speaker, [*read_rows(run.folder, "dev"), *pairs])
    kept = shortlist(speaker.prompt, [speaker.prompt.example(pair) for pair in pairs])
    try:
        with new_folder(run.folder / ENGINE) as folder:
            for eight_bits in (True, False):
                convert(speaker.model, speaker.prompt, folder, kept, largest_pair=_LARGEST_PAIR if eight_bits else None)
                reference.save(folder)
                if verify_engine(folder, speaker.prompt, speaker.max_new_tokens):
                    break
            else:
                raise _unknown(speaker.model, translate("its answers differ from the trained model's"))
            if not eight_bits:
                _log.info(translate("Eight bits are too coarse for these weights: the engine keeps them in float32."))
    except StorageError:
        raise
    except EngineError as error:
        _log.warning(str(error))
    except Exception as error:  # whatever a library raises, the training is worth more than its engine
        _log.warning(str(_unknown(speaker.model, f"{type(error).__name__}: {error}")))
        run.note("engine_failed", traceback=traceback.format_exc())


def convert(
    model: PreTrainedModel,
    prompt: Prompt,
    folder: Path,
    kept: Tensor | None = None,
    *,
    largest_pair: int | None = _LARGEST_PAIR,
) -> None:
    """Write a model to a folder, and to its `replies/` one with a head for the `kept` tokens, where that pays.

    `largest_pair`: the largest sum of two neighbouring weights in eight bits; None keeps the weights in float32. Raises
    EngineError when CTranslate2 doesn't know the model.
    """
    pays = kept is not None and _spared(model, len(kept)) > _PAYS
    spec = _spec(model, prompt, largest_pair)
    _save(spec, folder)
    if kept is not None and pays:
        _shorten(spec, kept)
        _save(spec, folder / REPLIES)


def _spared(model: PreTrainedModel, kept: int) -> float:
    """Share of the weights used for a token of the reply that a head for so many tokens leaves out."""
    head, embedding = cast("nn.Linear", model.get_output_embeddings()), model.get_input_embeddings()
    looked_up = 0 if embedding.weight is head.weight else cast("Tensor", embedding.weight).numel()
    return (head.out_features - kept) * head.in_features / (model.num_parameters() - looked_up)


def _spec(model: PreTrainedModel, prompt: Prompt, largest_pair: int | None) -> Any:
    """The model in CTranslate2's layout, rounded to eight bits unless `largest_pair` is None."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window and window < prompt.max_length:  # its layers would need a mask that is taken out
        told = "it looks back only {window} tokens, and --max-length is {length}"
        raise _unknown(model, translate(told, window=window, length=prompt.max_length))
    try:
        with torch.no_grad():
            spec = _MODEL_LOADERS[type(model.config).__name__].get_model_spec(readable(_with_same_weights(model)))
        spec.config.layer_norm_epsilon = norm_epsilon(config)
        names = _names(prompt, config.vocab_size)
        spec.register_vocabulary(names)
        unknown = prompt.tokenizer.unk_token_id
        spec.config.unk_token = names[prompt.pad_id if unknown is None else unknown]
        spec.config.bos_token = spec.config.eos_token = names[prompt.template.eos_id]  # ours begin with what they like
        spec.validate()
        complete(spec, config)
        spec.optimize()
        if largest_pair:
            spec._visit(partial(_quantize, largest_pair=largest_pair))
    except Exception as error:  # each loader has its own way of not knowing an architecture, an activation, a scaling
        raise _unknown(model, f"{type(error).__name__}: {error}") from error
    return spec


def _with_same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules over the same tensors: loaders delete layers that they have read."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _quantize(layer: Any, name: str, value: Any, largest_pair: int = _LARGEST_PAIR) -> None:
    """Round a matrix to eight bits, each row with its scale: for `LayerSpec._visit`, as `_quantize` of CTranslate2.

    A row may use 127 steps to each side, unless two neighbours of it are so large together that their products would
    saturate on processors without VNNI: then it uses fewer.
    """
    key = name.rsplit("/", maxsplit=1)[-1]
    if not isinstance(value, Variable) or value.is_scalar() or not hasattr(layer, f"{key}_scale"):
        return
    rows = value.to("float32").numpy()
    sizes = np.abs(rows)
    largest = np.maximum(sizes.max(axis=1) / _LARGEST_WEIGHT, _largest_pair(sizes) / largest_pair)
    step = np.maximum(largest, np.finfo(np.float32).tiny)
    setattr(layer, key, NumpyVariable(np.rint(rows / step[:, None]).astype(np.int8)))
    setattr(layer, f"{key}_scale", NumpyVariable((1 / step).astype(np.float32)))


def _largest_pair(sizes: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows,): the largest sum of two among four neighbours of each row."""
    sizes = np.pad(sizes, ((0, 0), (0, -sizes.shape[1] % _NEIGHBOURS)))
    one, two, three, four = (sizes[:, place::_NEIGHBOURS] for place in range(_NEIGHBOURS))
    across = np.maximum(one, two) + np.maximum(three, four)
    pairs: NDArray[np.float32] = np.maximum(np.maximum(one + two, three + four), across).max(axis=1)
    return pairs


def _names(prompt: Prompt, rows: int) -> list[str]:
    """A token for each row of the embedding, no two alike: some rows belong to no token."""
    names: dict[str, int] = {}
    for number in range(rows):
        name = cast("str | None", prompt.tokenizer.convert_ids_to_tokens(number))
        names[f"<row {number}>" if name is None or name in names else name] = number
    assert len(names) == rows, "two rows of the embedding have the same name"
    return list(names)


def _shorten(spec: Any, kept: Tensor) -> None:
    """Put the kept tokens first, and leave the head nothing but them."""
    decoder, names = spec.decoder, spec._vocabulary
    order = np.concatenate([kept.numpy(), np.setdiff1d(np.arange(len(names)), kept.numpy())])
    embedding, head = decoder.embeddings, decoder.projection
    source = embedding if isinstance(head.weight, str) else head  # a name where both share one matrix
    _pick(source, head, order[: len(kept)])
    _pick(embedding, embedding, order)
    spec.register_vocabulary([names[number] for number in order])
    spec.config.add_attribute(HEAD, len(kept))


def _pick(source: Any, target: Any, rows: NDArray[np.int64]) -> None:
    """Give `target` these rows of `source`, each with its scale; it keeps its own bias for them."""
    for part, owner in (("weight", source), ("weight_scale", source), ("bias", target)):
        values = getattr(owner, part, OPTIONAL)
        if values != OPTIONAL:
            setattr(target, part, NumpyVariable(values.numpy()[rows]))


def _save(spec: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))


def _unknown(model: PreTrainedModel, error: str) -> EngineError:
    return EngineError(
        "CTranslate2 can't compute a model of type {architecture} ({error}).",
        "It is answered by PyTorch, which takes longer.",
        architecture=model.config.model_type,
        error=error,
    )
