"""Files as they are given: whether they can be read, of what kind they are, what an archive holds; their encoding."""

from __future__ import annotations

import codecs
import difflib
import gzip
import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

from daedap.errors import DataError
from daedap.korean.text import HANGUL

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
YAML_SUFFIXES = (".yml", ".yaml")
_TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", *JSON_SUFFIXES)
_EXCEL_SUFFIXES = (".xlsx", ".xlsm", ".xls")


def refuse_unreadable(path: Path) -> None:
    """Raise DataError unless the path is a regular file that is readable and not empty."""
    try:
        if path.is_dir():
            raise DataError("{file} is a folder.", "Give one file of pairs in it.", file=path)
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise DataError("{file} is not a regular file.", "Save it as a file first: it is read twice.", file=path)
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except PermissionError as error:
        raise DataError("{file} may not be read.", "Give yourself permission to read it.", file=path) from error
    except OSError as error:
        raise DataError("{file} can't be opened ({error}).", "Copy it elsewhere.", file=path, error=error) from error
    if empty:
        raise empty_file(path)


def _missing(path: Path) -> DataError:
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    if near := difflib.get_close_matches(path.name, names, 1):
        return DataError("{file} doesn't exist.", "Did you mean {near}?", file=path, near=path.with_name(near[0]))
    return DataError("{file} doesn't exist.", "Check the name and the folder.", file=path)


def empty_file(path: Path) -> DataError:
    """What is raised for a file without any row."""
    return DataError("{file} is empty.", "Write one question and answer per line.", file=path)


def refuse_unknown(path: Path) -> None:
    """Raise DataError for files of another kind, by their name, and for old or locked workbooks."""
    suffix = suffix_of(path)
    with path.open("rb") as file:
        old_excel = file.read(4) == b"\xd0\xcf\x11\xe0"
    if suffix == ".xls" and old_excel:
        raise DataError("{file}: the old Excel format .xls can't be read.", "Save it as .xlsx.", file=path)
    if suffix in _EXCEL_SUFFIXES and old_excel:
        raise DataError(
            "{file} is not an Excel workbook, or it is damaged or has a password.",
            "Open it in Excel and save it again as .xlsx, or as CSV (UTF-8).",
            file=path,
        )
    if suffix == ".eml":
        raise DataError(
            "{file} is an e-mail, not the chat itself.",
            "Open it and save the .txt or .zip that is attached to it; give that file.",
            file=path,
        )
    if suffix not in (*_TEXT_SUFFIXES, *_EXCEL_SUFFIXES, *YAML_SUFFIXES, ".parquet", ".md"):
        raise DataError(
            "{file}: files ending in '{value}' can't be read.",
            "Give a .csv, .tsv, .jsonl, .xlsx or a KakaoTalk .txt file.",
            file=path,
            value=path.suffix,
        )


def open_binary(path: Path) -> IO[bytes]:
    """The bytes of a file; of the file in it for .gz, and for .zip with a single readable one.

    Raises DataError when a .zip holds none or several.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] == b"\x1f\x8b" and path.suffix.lower() == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if head == b"PK\x03\x04" and path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            return archive.open(_member(archive, path))
    return path.open("rb")


def refuse_damaged_archive(path: Path) -> None:
    """Raise DataError for a .gz or .zip that can't be unpacked to its end."""
    if path.suffix.lower() not in (".gz", ".zip"):
        return
    try:
        inner_name(path)
        with open_binary(path) as file:
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError) as error:
        raise DataError(
            "{file} can't be unpacked ({error}).",
            "Unpack it yourself and give the file in it.",
            file=path,
            error=str(error)[:100],
        ) from error


def inner_name(path: Path) -> str:
    """Name of the file inside a .zip or .gz, of the file itself otherwise."""
    if path.suffix.lower() == ".gz":
        return path.stem
    if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _member(archive, path)
    return path.name


def suffix_of(path: Path) -> str:
    """How the name of a file ends, or of the file inside an archive, in small letters: .csv."""
    return Path(inner_name(path)).suffix.lower()


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    """The one readable file of an archive; a phone exports a chat together with its photos."""
    names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
    readable = [name for name in names if name.lower().endswith(_TEXT_SUFFIXES)]
    if len(readable) == 1:
        return readable[0]
    if not readable:
        raise DataError(
            "{file}: there is no text file or table in this archive.", "Unpack it and give one of its files.", file=path
        )
    raise DataError(
        "{file} holds several files: {names}.",
        "Unpack it and give one of them.",
        file=path,
        names=", ".join(readable[:5]) + (", …" if len(readable) > 5 else ""),
    )


# ---- encodings ----

_CHUNK = 1 << 20
_BOMS = {  # UTF-32-LE's byte order mark begins with UTF-16-LE's, so it is tested first
    codecs.BOM_UTF8: "utf-8-sig",
    **dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    **dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
}
_BINARY = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"%PDF": "PDF",
    b"PK\x03\x04": "zip",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"\xd0\xcf\x11\xe0": "xls / doc / hwp",
    b"SQLite format 3": "SQLite",
    b"PAR1": "Parquet",
}
"""How files begin that are no text."""
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
    """The encoding of a file; raises DataError when the file is binary, mixes encodings, or is in none that fits.

    In this order: byte order mark; strict UTF-8; UTF-8 or CP949 (a superset of EUC-KR) by lines; charset-normalizer.
    """
    with open_binary(path) as file:
        head = file.read(1 << 16)
    for magic, kind in _BINARY.items():
        if head.startswith(magic):
            raise DataError(
                "{file} is not a text file but {kind}.",
                "Save it as CSV (UTF-8), JSONL or Excel (.xlsx).",
                file=path,
                kind=kind,
            )
    codec = next((name for bom, name in _BOMS.items() if head.startswith(bom)), "utf-8")
    nul = _line_of_nul(path) if codec.startswith("utf-8") else 0
    if nul and (without_bom := _utf16_without_bom(path, head)):
        return without_bom
    if nul:
        raise DataError(
            "{file}, line {line}: a NUL byte; this is not a text file, or it is damaged.",
            "Save it again as CSV (UTF-8), JSONL or Excel (.xlsx).",
            file=path,
            line=nul,
        )
    if _decodes(path, codec):
        return Encoding(codec)
    if not codec.startswith("utf-8"):
        raise DataError(
            "{file} begins like {encoding} but can't be decoded as such.",
            "Open it in an editor and save it again as UTF-8.",
            file=path,
            encoding=codec.upper(),
        )
    return _by_lines(path, codec)


def _chunks(path: Path) -> Iterator[bytes]:
    with open_binary(path) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _decodes(path: Path, name: str) -> bool:
    try:
        for _ in codecs.iterdecode(_chunks(path), name):
            pass
    except UnicodeError:
        return False
    return True


def _line_of_nul(path: Path) -> int:
    """Line number of the first NUL byte; 0 when there is none."""
    line = 1
    for chunk in _chunks(path):
        before, nul, _ = chunk.partition(b"\0")
        line += before.count(b"\n")
        if nul:
            return line
    return 0


def _utf16_without_bom(path: Path, head: bytes) -> Encoding | None:
    """UTF-16 by its byte order: decoded correctly the text is Hangul and ASCII, otherwise (or if binary) it is not."""

    def legible(name: str) -> float:
        text = head.decode(name, "ignore")
        return len(_LEGIBLE.findall(text)) / max(len(text), 1)

    name = max("utf-16-le", "utf-16-be", key=legible)
    return Encoding(name) if legible(name) > 0.7 and _decodes(path, name) else None


def _by_lines(path: Path, codec: str) -> Encoding:
    counts, first = Counter[tuple[str, str]](), dict[tuple[str, str], int]()
    lines, sample = 0, bytearray()
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            if line.isascii():
                continue
            for fact in _facts(line):
                counts[fact] += 1
                first.setdefault(fact, number)
            lines += 1
            sample += line if len(sample) < 1 << 15 else b""
    main, minor = sorted(("utf-8", "cp949"), key=lambda name: -counts["korean", name])
    if counts["korean", minor]:
        raise DataError(
            "{file}, line {line}: this line is {minor}, the others are {main}: the encodings are mixed.",
            "Convert the parts to UTF-8 before you join them, or save the file again as UTF-8.",
            file=path,
            line=first["korean", minor],
            minor=minor.upper(),
            main=main.upper(),
        )
    broken = counts["broken", main]
    # Exports often cut characters at a field's end: those rows are dropped, not the file.
    if counts["korean", main] and broken <= max(1, lines // 10):
        return Encoding(codec if main == "utf-8" else main, damaged=broken > 0)
    if not counts["korean", main] and (guess := _guess(path, bytes(sample))):
        return guess
    raise DataError(
        "{file}, line {line}: the text is neither UTF-8 nor CP949 (EUC-KR).",
        "Open it in the program that wrote it and save it as UTF-8.",
        file=path,
        line=first["broken", main],
    )


def _facts(line: bytes) -> Iterator[tuple[str, str]]:
    """What a line tells: ("broken", encoding) where it can't be decoded, ("korean", encoding) where it surely is."""
    texts: dict[str, str] = {}
    for name in ("utf-8", "cp949"):
        try:
            texts[name] = line.decode(name)
        except UnicodeDecodeError:
            yield "broken", name
    cp949 = texts.get("cp949", "")
    if HANGUL.search(texts.get("utf-8", "")):
        yield "korean", "utf-8"
    # Non-ASCII characters take two bytes in CP949, so bytes minus characters is their number.
    elif cp949 and 2 * len(_COMMON_HANGUL.findall(cp949)) >= len(line) - len(cp949):
        yield "korean", "cp949"


def _guess(path: Path, sample: bytes) -> Encoding | None:
    import charset_normalizer  # slow import, rarely needed

    best = charset_normalizer.from_bytes(sample).best()
    garbled = best is not None and bool(re.search("[\x80-\x9f]", str(best)))  # C1 controls occur in no text
    return Encoding(best.encoding) if best and not garbled and _decodes(path, best.encoding) else None
