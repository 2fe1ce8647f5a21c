"""The built-in encoder back as a BERT in PyTorch, to go on learning: its eight-bit weights times their scales.

    python bench/sentence_encoder/dequantize.py daedap/encoder OUT

The other direction is convert.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from bert import Bert
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from daedap.export.web import read_weights

NAMES = {
    "self_attention/linear_1": "attention.output.dense",
    "self_attention/layer_norm": "attention.output.LayerNorm",
    "ffn/linear_0": "intermediate.dense",
    "ffn/linear_1": "output.dense",
    "ffn/layer_norm": "output.LayerNorm",
}
"""CTranslate2's names of a layer's parts, and BERT's; query, key and value are one matrix there."""


def dequantize(folder: Path) -> Bert:
    """The encoder of a folder, in float32."""
    stored = dict(read_weights(folder / "model.bin"))

    def weights(name: str) -> NDArray[np.float32]:
        scale = stored.get(f"{name}_scale")
        found: NDArray[np.float32] = stored[name].astype(np.float32)
        return found if scale is None else found / scale[:, None]

    layers = len({name.split("/")[0] for name in stored if name.startswith("layer_")})
    inner, width = stored["layer_0/ffn/linear_0/weight"].shape
    state = {
        "embeddings.word_embeddings.weight": weights("embeddings_0/weight"),
        "embeddings.token_type_embeddings.weight": weights("embeddings_1/weight"),
        "embeddings.position_embeddings.weight": weights("position_encodings/encodings"),
        "embeddings.LayerNorm.weight": stored["layernorm_embedding/gamma"],
        "embeddings.LayerNorm.bias": stored["layernorm_embedding/beta"],
    }
    for layer in range(layers):
        source, target = f"layer_{layer}", f"encoder.layer.{layer}"
        for part in ("weight", "bias"):
            three = np.split(weights(f"{source}/self_attention/linear_0/{part}"), 3)
            for name, one in zip(("query", "key", "value"), three, strict=True):
                state[f"{target}.attention.self.{name}.{part}"] = one
        for theirs, ours in NAMES.items():
            kinds = ("gamma", "beta") if "norm" in theirs else ("weight", "bias")
            for kind, part in zip(kinds, ("weight", "bias"), strict=True):
                state[f"{target}.{ours}.{part}"] = weights(f"{source}/{theirs}/{kind}")
    config = BertConfig(
        vocab_size=len(state["embeddings.word_embeddings.weight"]),
        hidden_size=width,
        num_attention_heads=int(stored["num_heads"].item()),
        num_hidden_layers=layers,
        intermediate_size=inner,
        max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
        type_vocab_size=len(state["embeddings.token_type_embeddings.weight"]),
        layer_norm_eps=1e-12,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    missing, unexpected = model.load_state_dict({n: torch.tensor(one) for n, one in state.items()}, strict=False)
    if unexpected or any("position_ids" not in name for name in missing):
        raise SystemExit(f"{folder}: weights that do not fit: {missing} {unexpected}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return Bert(model, tokenizer)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    dequantize(Path(sys.argv[1])).save(Path(sys.argv[2]))
