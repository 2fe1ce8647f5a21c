"""A run's model → `engine/`: CTranslate2's layout, weights in eight bits.

    engine/model.bin config.json vocabulary.json            the model over its full vocabulary
           replies/model.bin config.json vocabulary.json    where it pays: with a head for the shortlist alone

CTranslate2 has no shortlist for models without an encoder, but the head may be shorter than the embedding: it then
says the first tokens of the vocabulary. Such a file can't score texts, as they may hold tokens it has no head for.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ctranslate2.converters.transformers import _MODEL_LOADERS  # by the name of the architecture's configuration
from ctranslate2.specs.model_spec import OPTIONAL, NumpyVariable
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from daedap.data.store import read_side
from daedap.errors import EngineError
from daedap.files import new_folder
from daedap.language import say
from daedap.lm.engine import ENGINE, HEAD, REPLIES, Engine
from daedap.lm.learned import open_learned
from daedap.lm.prompt import Prompt
from daedap.lm.score import FloatArray
from daedap.lm.shortlist import shortlist
from daedap.runs import Run

_log = logging.getLogger("daedap")
_PAYS = 0.15
"""Share of the weights that a shortlist must spare each token, to be worth a second file of the model."""
_TRIED = 32
_ALIKE = 0.1
"""Bits per token by which the engine may differ: rounding takes a few hundredths."""


def write_engine(run: Run) -> None:
    """Convert what a run has learned; where CTranslate2 can't compute it, say so: PyTorch will answer."""
    speaker = replace(open_learned(run), precision="fp32")
    pairs = [pair for pair in read_side(run.folder, "train") if speaker.prompt.fits(pair)]
    wanted = speaker.log2_probability(pairs[:_TRIED])
    kept = shortlist(speaker.prompt, [speaker.prompt.example(pair) for pair in pairs])
    try:
        with new_folder(run.folder / ENGINE) as folder:
            convert(speaker.model, speaker.prompt, folder, kept)
            engine = Engine.open(folder, speaker.prompt, speaker.max_new_tokens)
            _need_likeness(speaker.model, wanted, engine.log2_probability(pairs[:_TRIED]))
    except EngineError as error:
        _log.info(str(error))


def convert(model: PreTrainedModel, prompt: Prompt, folder: Path, kept: Tensor | None = None) -> None:
    """Write a model to a folder, and to its `replies/` one with a head for the `kept` tokens, where that pays.

    The model is used up: it can't be asked afterwards. Raises EngineError when CTranslate2 doesn't know it.
    """
    pays = kept is not None and _spared(model, len(kept)) > _PAYS
    spec = _spec(model, prompt)
    _save(spec, folder)
    if kept is not None and pays:
        _shorten(spec, kept)
        _save(spec, folder / REPLIES)


def _spared(model: PreTrainedModel, kept: int) -> float:
    """Share of the weights used for a token of the reply that a head for so many tokens leaves out."""
    head, embedding = cast("nn.Linear", model.get_output_embeddings()), model.get_input_embeddings()
    looked_up = 0 if embedding.weight is head.weight else cast("Tensor", embedding.weight).numel()
    return (head.out_features - kept) * head.in_features / (model.num_parameters() - looked_up)


def _spec(model: PreTrainedModel, prompt: Prompt) -> Any:
    """The model in CTranslate2's layout, rounded to eight bits."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window and window < prompt.max_length:  # its score_batch fails on longer texts
        told = "it looks back only {window} tokens, and --max-length is {length}"
        raise _unknown(model, say(told, window=window, length=prompt.max_length))
    try:
        with torch.no_grad():
            spec = _MODEL_LOADERS[type(model.config).__name__].get_model_spec(model)
        spec.config.layer_norm_epsilon = getattr(config, "rms_norm_eps", None) or config.layer_norm_epsilon
        names = _names(prompt, config.vocab_size)
        spec.register_vocabulary(names)
        unknown = prompt.tokenizer.unk_token_id
        spec.config.unk_token = names[prompt.pad if unknown is None else unknown]
        spec.config.bos_token = spec.config.eos_token = names[prompt.template.end]  # ours begin with what they like
        spec.validate()
        spec.optimize(quantization="int8")
    except Exception as error:  # each loader has its own way of not knowing an architecture, an activation, a scaling
        raise _unknown(model, f"{type(error).__name__}: {error}") from error
    return spec


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


def _need_likeness(model: PreTrainedModel, wanted: FloatArray, found: FloatArray) -> None:
    """Raise EngineError unless the engine finds the same texts as likely as the model did."""
    apart = float(np.abs(wanted[:, 0] - found[:, 0]).sum() / wanted[:, 1].sum())
    if not apart < _ALIKE:  # nor when it is not a number
        raise _unknown(model, say("{apart:.2f} bits per token apart", apart=apart))


def _unknown(model: PreTrainedModel, error: str) -> EngineError:
    return EngineError(
        "CTranslate2 can't compute a model of type {architecture} ({error}).",
        "It is answered by PyTorch, which takes longer.",
        architecture=model.config.model_type,
        error=error,
    )
