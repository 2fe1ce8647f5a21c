"""What the converters of CTranslate2 4.8 leave out of a model, put back: found by comparing every base that users take.

Each gap made an engine fail or answer wrong on copies of published configurations (tests/test_published_bases.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ctranslate2.specs.attention_spec import RotaryScalingType
from ctranslate2.specs.model_spec import OPTIONAL, NumpyVariable
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
    for layer in spec.decoder.layer:
        attention = layer.self_attention
        if getattr(config, "head_dim", None) and not hasattr(attention, "head_dim"):
            _set(attention, "head_dim", np.int32(config.head_dim))
        if config.model_type == "llama":
            _scale_positions(attention, config)
        if getattr(config, "num_key_value_heads", None) == 1 and config.num_attention_heads > 1:
            _repeat_key_value_head(attention, config.num_attention_heads)


def _scale_positions(attention: Any, config: Any) -> None:
    """Llama 3's rope scaling: the converter keeps its low and high factors only."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        _set(attention, "rotary_scaling_type", np.int8(RotaryScalingType.Llama3))
        _set(attention, "rotary_scaling_factor", np.float32(rope["factor"]))
        _set(attention, "original_max_position_embeddings", np.int32(rope["original_max_position_embeddings"]))


def _repeat_key_value_head(attention: Any, heads: int) -> None:
    """Give the only key-value head twice, or once for each query head where that number is odd.

    It computes the same; but CTranslate2 takes a single one for a case of its own (multi-query attention), whose
    scoring of several texts fails: "Length mask has size … which is different than the current batch size".
    """
    times = 2 if heads % 2 == 0 else heads
    projection = attention.linear[0]
    for part in ("weight", "bias"):
        if (value := getattr(projection, part)) != OPTIONAL:
            rows = value.to("float32").numpy()
            width = len(rows) // (heads + 2)
            query, key, values = np.split(rows, [heads * width, (heads + 1) * width])
            repeated = np.concatenate([query, *[key] * times, *[values] * times])
            setattr(projection, part, NumpyVariable(repeated))
    _set(attention, "num_heads_kv", np.int32(times))


def _set(attention: Any, name: str, value: np.generic) -> None:
    """A specification refuses attributes that its maker did not ask for, though it writes them all the same."""
    object.__setattr__(attention, name, NumpyVariable(np.asarray(value)))
