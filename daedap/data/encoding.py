"""Detection of a text file's encoding. The whole file is read: its first megabyte may be plain ASCII."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TextIO

from daedap.data.inputs import open_binary
from daedap.errors import DataError
from daedap.korean.text import HANGUL

_CHUNK = 1 << 20
_BOMS = (  # UTF-32-LE's byte order mark begins with UTF-16-LE's, so it is tested first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BINARY = {
    b"PK\x03\x04": "zip",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"%PDF": "PDF",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"\xd0\xcf\x11\xe0": "xls / doc / hwp",
    b"SQLite format 3": "SQLite",
    b"PAR1": "Parquet",
}
# The 2,350 common syllables of KS X 1001. UTF-8 misread as CP949 gives Hanja and rare syllables instead.
_COMMON = "".join(bytes((lead, trail)).decode("cp949") for lead in range(0xB0, 0xC9) for trail in range(0xA1, 0xFF))
_COMMON_HANGUL = re.compile(f"[{_COMMON}]")
_LEGIBLE = re.compile(f"[\t\r\n -~ㄱ-ㅣ{_COMMON}]")


@dataclass(frozen=True)
class Encoding:
    """The encoding of a file."""

    name: str
    """Name of the Python codec."""
    damaged: bool = False
    """Some lines can't be decoded; their invalid bytes are read as U+FFFD."""


def open_text(path: Path, encoding: Encoding) -> TextIO:
    """Open a file as text without newline translation: quoted fields keep their line ends."""
    errors = "replace" if encoding.damaged else "strict"
    return io.TextIOWrapper(open_binary(path), encoding=encoding.name, errors=errors, newline="")


def detect(path: Path) -> Encoding:
    """Detect the encoding of a file.

    In this order: byte order mark; strict UTF-8; UTF-8 or CP949 (a superset of EUC-KR) by lines; charset-normalizer.

    Raises:
        DataError: The file is binary, mixes encodings, or is in none that fits.
    """
    with open_binary(path) as file:
        head = file.read(1 << 16)
    _refuse_binary(path, head)
    codec = next((name for bom, name in _BOMS if head.startswith(bom)), "utf-8")
    if codec in ("utf-16", "utf-32"):
        return _with_bom(path, codec)
    if line := _line_of_nul(path):
        return _utf16_without_bom(path, head) or _refuse_nul(path, line)
    if _decodes(path, codec):
        return Encoding(codec)
    return _by_lines(path, codec)


def _refuse_binary(path: Path, head: bytes) -> None:
    for magic, kind in _BINARY.items():
        if head.startswith(magic):
            raise DataError(
                "{file} is not a text file but {kind}.",
                "Save it as CSV (UTF-8), JSONL or Excel (.xlsx).",
                file=path,
                kind=kind,
            )


def _refuse_nul(path: Path, line: int) -> NoReturn:
    raise DataError(
        "{file}, line {line}: a NUL byte; this is not a text file, or it is damaged.",
        "Save it again as CSV (UTF-8), JSONL or Excel (.xlsx).",
        file=path,
        line=line,
    )


def _chunks(path: Path) -> Iterator[bytes]:
    with open_binary(path) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _decodes(path: Path, name: str) -> bool:
    decoder = codecs.getincrementaldecoder(name)("strict")
    try:
        for chunk in _chunks(path):
            decoder.decode(chunk)
        decoder.decode(b"", True)
    except UnicodeError:
        return False
    return True


def _with_bom(path: Path, name: str) -> Encoding:
    if _decodes(path, name):
        return Encoding(name)
    raise DataError(
        "{file} begins like {encoding} but can't be decoded as such.",
        "Open it in an editor and save it again as UTF-8.",
        file=path,
        encoding=name.upper(),
    )


def _line_of_nul(path: Path) -> int:
    """Line number of the first NUL byte; 0 when there is none."""
    line = 1
    for chunk in _chunks(path):
        if (at := chunk.find(0)) >= 0:
            return line + chunk.count(b"\n", 0, at)
        line += chunk.count(b"\n")
    return 0


def _utf16_without_bom(path: Path, head: bytes) -> Encoding | None:
    """UTF-16 by its byte order: decoded correctly the text is Hangul and ASCII, otherwise (or if binary) it is not."""

    def legible(name: str) -> float:
        text = head.decode(name, "ignore")
        return len(_LEGIBLE.findall(text)) / max(len(text), 1)

    name = max("utf-16-le", "utf-16-be", key=legible)
    return Encoding(name) if legible(name) > 0.7 and _decodes(path, name) else None


@dataclass
class _LineStatistics:
    """Statistics of the non-ASCII lines of a file."""

    lines: int = 0
    korean: dict[str, int] = field(default_factory=lambda: {"utf-8": 0, "cp949": 0})
    """Number of lines that are certainly Korean, by encoding."""
    broken: dict[str, int] = field(default_factory=lambda: {"utf-8": 0, "cp949": 0})
    """Number of lines that can't be decoded, by encoding."""
    first_korean: dict[str, int] = field(default_factory=dict)
    first_broken: dict[str, int] = field(default_factory=dict)
    sample: bytearray = field(default_factory=bytearray)

    def add(self, number: int, line: bytes) -> None:
        self.lines += 1
        texts = {"utf-8": _decoded(line, "utf-8"), "cp949": _decoded(line, "cp949")}
        for name, text in texts.items():
            if text is None:
                self.broken[name] += 1
                self.first_broken.setdefault(name, number)
        if name := _korean_in(texts, len(line)):
            self.korean[name] += 1
            self.first_korean.setdefault(name, number)
        if len(self.sample) < 1 << 15:
            self.sample += line


def _decoded(line: bytes, name: str) -> str | None:
    try:
        return line.decode(name)
    except UnicodeDecodeError:
        return None


def _korean_in(texts: dict[str, str | None], size: int) -> str:
    """The encoding in which a line of `size` bytes is Korean; empty when undecided."""
    if HANGUL.search(texts["utf-8"] or ""):
        return "utf-8"
    text = texts["cp949"] or ""
    # Non-ASCII characters take two bytes in CP949, so bytes minus characters is their number.
    return "cp949" if text and 2 * len(_COMMON_HANGUL.findall(text)) >= size - len(text) else ""


def _by_lines(path: Path, codec: str) -> Encoding:
    lines_seen = _LineStatistics()
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            if not line.isascii():
                lines_seen.add(number, line)
    main, minor = sorted(lines_seen.korean, key=lambda name: -lines_seen.korean[name])
    if lines_seen.korean[minor]:
        raise DataError(
            "{file}, line {line}: this line is {minor}, the others are {main}: the encodings are mixed.",
            "Convert the parts to UTF-8 before you join them, or save the file again as UTF-8.",
            file=path,
            line=lines_seen.first_korean[minor],
            minor=minor.upper(),
            main=main.upper(),
        )
    if not lines_seen.korean[main]:
        return _guess(path, lines_seen)
    # Exports often cut characters at a field's end: those rows are dropped, not the file.
    if lines_seen.broken[main] > max(1, lines_seen.lines // 10):
        _refuse_undecodable(path, lines_seen.first_broken[main])
    return Encoding(codec if main == "utf-8" else main, damaged=lines_seen.broken[main] > 0)


def _guess(path: Path, lines_seen: _LineStatistics) -> Encoding:
    import charset_normalizer  # slow import, rarely needed

    best = charset_normalizer.from_bytes(bytes(lines_seen.sample)).best()
    garbled = best is not None and bool(re.search("[\x80-\x9f]", str(best)))  # C1 controls occur in no text
    if best is None or garbled or not _decodes(path, best.encoding):
        _refuse_undecodable(path, lines_seen.first_broken["utf-8"])
    return Encoding(best.encoding)


def _refuse_undecodable(path: Path, line: int) -> NoReturn:
    raise DataError(
        "{file}, line {line}: the text is neither UTF-8 nor CP949 (EUC-KR).",
        "Open it in the program that wrote it and save it as UTF-8.",
        file=path,
        line=line,
    )
