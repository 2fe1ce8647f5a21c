"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from daedap.errors import StorageError

_NO_SPACE = re.compile(r"os error (27|28|122)|PytorchStreamWriter|inline_container")
"""What safetensors and torch say when the disk is full; neither raises OSError."""


@contextmanager
def storage(place: Path) -> Iterator[None]:
    """Tell a full or unwritable disk in one clear line (StorageError)."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what, remedy = "{place}: no space left to write.", "Free some space or choose another folder with --runs."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            what, remedy = "{place}: can't be written ({error}).", "Choose another folder with --runs."
        else:
            raise
        raise StorageError(what, remedy, place=error.filename or place, error=error.strerror) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` once the block ends well; an older `path` is replaced."""
    temporary = path.with_name(f".{path.name}.tmp")
    with storage(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if _NO_SPACE.search(str(error)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file, open to be written, that becomes `path` once the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON document whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_lines(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    """Write one JSON document a line, whole or not at all."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The name of the user's file may hold bytes that no encoding knows: they become "?".
            temporary.write_text(text, encoding="utf-8", errors="replace")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def digest(*paths: Path) -> str:
    """SHA-256 of files one after the other, in hexadecimal."""
    sha = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()
