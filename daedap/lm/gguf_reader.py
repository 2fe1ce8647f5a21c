"""The bytes of a GGUF file: metadata, and tensors dequantized one at a time.

As github.com/ggml-org/ggml/blob/master/docs/gguf.md describes versions 2 and 3. The gguf package's own reader makes
several arrays of each word of the vocabulary: half a minute for Gemma's, where this takes a second.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Kinds of values, as `struct` names them; 8 is a text and 9 an array."""
_TEXT, _ARRAY = 8, 9


class Tensor(NamedTuple):
    """Where a tensor lies. shape: as PyTorch has it; kind: of its blocks; offset: from where the tensors begin."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufReader:
    """A file's metadata and tensors. Whatever is wrong with the file raises ValueError or struct.error."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    begin: int
    """Where the tensors begin."""

    @classmethod
    def open(cls, path: Path) -> GgufReader:
        """Read all but the tensors' numbers."""
        head = _Head(np.memmap(path, mode="r", dtype=np.uint8))
        magic, version, tensors, entries = head.unpack("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("not a GGUF file of version 2 or 3")
        metadata = {head.text(): head.value() for _ in range(entries)}
        named = {head.text(): head.tensor() for _ in range(tensors)}
        step = metadata.get("general.alignment", 32)
        return cls(path, metadata, named, -(-head.place // step) * step)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it."""
        return str(self.metadata["general.architecture"])

    @property
    def whole(self) -> bool:
        """Whether the file is as long as its tensors are."""
        ends = (tensor.offset + self._size(tensor) for tensor in self.tensors.values())
        return self.begin + max(ends, default=0) <= self.path.stat().st_size

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor's numbers, whatever they are stored as."""
        from gguf import GGMLQuantizationType, dequantize

        tensor = self.tensors[name]
        start, kind = self.begin + tensor.offset, GGMLQuantizationType(tensor.kind)
        data = self._bytes[start : start + self._size(tensor)]
        if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            data = data.view(np.float32 if kind == GGMLQuantizationType.F32 else np.float16)
        rows = dequantize(data.reshape(*tensor.shape[:-1], -1), kind)
        return np.array(rows, np.float32).reshape(tensor.shape)

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.memmap(self.path, mode="r", dtype=np.uint8)

    def _size(self, tensor: Tensor) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        numbers, octets = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        return math.prod(tensor.shape) // numbers * octets


class _Head:
    """Reads one thing after the other."""

    def __init__(self, octets: NDArray[np.uint8]) -> None:
        self.octets, self.place = octets.data, 0

    def unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self.octets, self.place)
        self.place += struct.calcsize(layout)
        return values

    def text(self) -> str:
        (length,) = self.unpack("<Q")
        self.place += length
        if self.place > len(self.octets):
            raise ValueError("it ends within a text")
        return str(self.octets[self.place - length : self.place], "utf-8")

    def value(self) -> Any:
        (kind,) = self.unpack("<I")
        return self._array() if kind == _ARRAY else next(self._values(kind, 1))

    def tensor(self) -> Tensor:
        (dimensions,) = self.unpack("<I")
        shape = self.unpack(f"<{dimensions}Q")
        return Tensor(tuple(reversed(shape)), *self.unpack("<IQ"))  # ggml names the fastest dimension first

    def _array(self) -> list[Any]:
        kind, count = self.unpack("<IQ")
        return list(self._values(kind, count))

    def _values(self, kind: int, count: int) -> Iterator[Any]:
        if kind == _TEXT:
            return (self.text() for _ in range(count))
        if kind not in _NUMBERS:
            raise ValueError(f"it holds values of an unknown kind ({kind})")
        return iter(self.unpack(f"<{count}{_NUMBERS[kind]}"))
