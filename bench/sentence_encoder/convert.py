"""A BERT-style encoder → the layout that daedap.model.sentence_encoder reads: CTranslate2, weights in eight bits.

    python bench/sentence_encoder/convert.py STUDENT daedap/encoder
    python bench/sentence_encoder/convert.py TEACHER OUT --prefix "query: " --max-length 64 --full-range

Weights are rounded as daedap.model.convert rounds them, so that products don't saturate on processors without VNNI.
`--full-range` rounds to the full eight bits instead: a little more exact where there is VNNI, wrong elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import sys
from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bert import Bert
from ctranslate2.converters.transformers import BertLoader
from torch import nn

from daedap.model.convert import LARGEST_PAIR, quantize


def convert(encoder: Bert, folder: Path, max_length: int, largest_pair: int) -> None:
    """Write the folder. `largest_pair`: the largest sum of two neighbouring weights in eight bits."""
    spec = specification(encoder)
    spec.optimize()
    spec._visit(partial(quantize, largest_pair=largest_pair))
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    encoder.tokenizer.no_truncation()
    encoder.tokenizer.save(str(folder / "tokenizer.json"))
    digest = hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest()
    settings = {"prefix": encoder.prefix, "max_length": max_length, "digest": digest}
    (folder / "encoder.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")


@torch.no_grad()
def specification(encoder: Bert) -> Any:
    """The model in CTranslate2's layout, in float32, without the pooler, which the converter insists on."""
    model = encoder.model
    model.config.position_embedding_type = "absolute"  # what transformers 5 no longer says
    model.pooler = nn.Module()
    model.pooler.dense = nn.Linear(1, 1)
    spec = BertLoader().get_model_spec(model)
    del spec.pooler_dense, spec.pooler_activation
    tokens = [encoder.tokenizer.id_to_token(number) for number in range(model.config.vocab_size)]
    spec.register_vocabulary([f"<row {row}>" if name is None else name for row, name in enumerate(tokens)])
    spec.config.layer_norm_epsilon = model.config.layer_norm_eps
    spec.config.unk_token = "<unk>"
    spec.validate()
    return spec


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--full-range", action="store_true")
    options = parser.parse_args(sys.argv[1:])
    pair = 2 * 127 if options.full_range else LARGEST_PAIR
    convert(Bert.open(options.model, options.prefix), options.out, options.max_length, pair)
