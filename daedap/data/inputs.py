"""Files as they are given: whether they can be read, of what kind their names say they are, what an archive holds."""

from __future__ import annotations

import difflib
import gzip
import zipfile
import zlib
from pathlib import Path
from typing import IO

from daedap.errors import DataError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
YAML_SUFFIXES = (".yml", ".yaml")
EXCEL_SUFFIXES = (".xlsx", ".xlsm", ".xls")


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
    suffix = Path(inner_name(path)).suffix.lower()
    with path.open("rb") as file:
        old_excel = file.read(4) == b"\xd0\xcf\x11\xe0"
    if suffix == ".xls" and old_excel:
        raise DataError("{file}: the old Excel format .xls can't be read.", "Save it as .xlsx.", file=path)
    if suffix in EXCEL_SUFFIXES and old_excel:
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
    if suffix not in (*JSON_SUFFIXES, *TABLE_SUFFIXES, *EXCEL_SUFFIXES, *YAML_SUFFIXES, ".parquet", ".md"):
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
        return _open_member(path)
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
    return _member(path) if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path) else path.name


_READABLE = (".txt", ".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson")


def _member(path: Path) -> str:
    """The one readable file of an archive; a phone exports a chat together with its photos."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX") and not name.endswith("/")]
    readable = [name for name in names if name.lower().endswith(_READABLE)]
    if len(readable) == 1:
        return readable[0]
    if not readable:
        raise DataError(
            "{file}: there is no text file or table in this archive.",
            "Unpack it and give one of its files.",
            file=path,
        )
    raise DataError(
        "{file} holds several files: {names}.",
        "Unpack it and give one of them.",
        file=path,
        names=", ".join(readable[:5]) + (", …" if len(readable) > 5 else ""),
    )


def _open_member(path: Path) -> IO[bytes]:
    name = _member(path)
    with zipfile.ZipFile(path) as archive:
        return archive.open(name)
