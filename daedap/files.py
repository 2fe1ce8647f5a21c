"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import IO

from daedap.errors import StorageError

_NO_SPACE = re.compile(r"os error (27|28|122)|PytorchStreamWriter|inline_container")
"""What safetensors and torch say when the disk is full; neither raises OSError."""


@contextmanager
def storage_errors(place: Path) -> Iterator[None]:
    """Turn the OSErrors of a full or unwritable disk into a StorageError."""
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
    with storage_errors(path):
        previous = path.with_name(f".{path.name}.old.tmp")
        for left in (temporary, previous):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            _tell_full_disk(error, path)
            raise
        if path.exists():  # renamed rather than deleted first, so that the name is missing for an instant only
            path.replace(previous)
        temporary.replace(path)
        shutil.rmtree(previous, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder: should this be cut short, what is left no longer bears the folder's name."""
    doomed = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    shutil.rmtree(doomed)


@contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """A temporary name for a file that becomes `path` once the block ends well; an older `path` is replaced at once."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _own_name(path)
        try:
            yield temporary
            temporary.replace(path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            _tell_full_disk(error, path)
            raise


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file, open to be written, that becomes `path` once the block ends well."""
    with new_path(path) as temporary, temporary.open("wb") as file:
        yield file


def _own_name(path: Path) -> Path:
    """A temporary name that is this process's own. Files of killed processes of this machine beside it are deleted."""
    machine = socket.gethostname()
    for left in path.parent.glob(f".*.{escape(machine)}.*.tmp"):
        if not _is_running(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{machine}.{os.getpid()}.tmp")


def _is_running(process: str) -> bool:
    from psutil import pid_exists  # `daedap --help` does without

    return not process.isdecimal() or pid_exists(int(process))


def _tell_full_disk(error: BaseException, path: Path) -> None:
    """Raise OSError(ENOSPC) if the error of a library that writes weights means a full disk."""
    if _NO_SPACE.search(str(error)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def sweep(folder: Path) -> None:
    """Delete what killed processes have not finished writing, at any depth of a folder that only this one writes to."""
    for left in list(folder.rglob(".*.tmp")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON document whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON document a line, whole or not at all; holds one at a time."""
    with new_path(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with new_path(path) as temporary:
        # The name of the user's file may hold bytes that no encoding knows: they become "?".
        temporary.write_text(text, encoding="utf-8", errors="replace")


def add_line(path: Path, record: Mapping[str, object], *, lasting: bool) -> None:
    """Append one JSON document to a file of lines. Several processes may add at once.

    A last line that a kill cut short is taken out first. What is `lasting` is on the disk when this returns, and
    outlives a power cut too.
    """
    from filelock import FileLock  # as above

    line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")), path.open("ab+") as file:
            _cut_unended(file)
            file.write(line)
            file.flush()
            if lasting:
                os.fsync(file.fileno())


def _cut_unended(file: IO[bytes]) -> None:
    if end := file.seek(0, os.SEEK_END):
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def digest(*paths: Path) -> str:
    """SHA-256 of files one after the other, in hexadecimal."""
    sha = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()
