"""What the converters of CTranslate2 4.8 leave out of a model, put back: found by comparing every base that users take.

Each gap made an engine fail or answer wrong on copies of published configurations (tests/test_published_bases.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ctranslate2.specs.attention_spec import RotaryScalingType
from ctranslate2.specs.model_spec import NumpyVariable
from transformers import PreTrainedModel


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
