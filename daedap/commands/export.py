"""`daedap export`: a run for other programs, compared with the run before it is called done."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import daedap.runs as run_store
from daedap.config import RUNS
from daedap.errors import ExportError, SettingsError
from daedap.export.bundle import compress, export_bundle
from daedap.export.common import ExportOptions, Facts, Target, Verification
from daedap.export.gguf import export_gguf
from daedap.export.language_model import export_adapter, export_engine, export_merged
from daedap.export.web import export_web
from daedap.files import new_folder, new_path
from daedap.i18n import tell, translate
from daedap.runs import Run

_MEGABYTE = 1_000_000
_LISTED = 20
"""Differences that are listed."""


@dataclass(frozen=True)
class Exported:
    """An export that was compared with its run."""

    target: Target
    path: Path
    bytes: int
    verification: Verification
    warnings: tuple[str, ...] = ()
    seconds: float | None = None
    """Of a bundle: from the start of a process to its first answer."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "target": self.target,
            "path": str(self.path),
            "bytes": self.bytes,
            **self.verification.to_json(),
            "first_answer_seconds": self.seconds,
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        compared, different = self.verification.compared, len(self.verification.differences)
        message = (
            "{path}: {size:.1f} MB; {equal:,} of {compared:,} answers equal the run's"
            if self.target != "web"
            else "{path}: {size:.1f} MB; {equal:,} of {compared:,} questions have the run's vectors by its files"
        )
        size = self.bytes / _MEGABYTE
        lines = [translate(message, path=self.path, size=size, equal=compared - different, compared=compared)]
        if texts := self.verification.texts:
            same = texts - len(self.verification.token_differences)
            lines.append(translate("{same:,} of {texts:,} texts have the run's tokens", same=same, texts=texts))
        if self.seconds is not None:
            lines.append(translate("First answer {seconds:.1f} s after the start", seconds=self.seconds))
        return [*lines, *self.warnings]


def export(
    run: str,
    path: Path,
    /,
    *,
    export_options: Annotated[ExportOptions, Parameter(name="*")] = ExportOptions(),
    runs: Path = RUNS,
) -> Exported:
    """Export a run, and compare every answer with the run's before it is called done.

    Raises RunError, ExportError, SettingsError and StorageError.

    Parameters
    ----------
    run
        Number, folder, latest or best.
    path
        The new folder; with --to bundle also a name that ends in .zip.
    runs
        Folder of the runs.
    """
    chosen = run_store.find(run, runs)
    _refuse(chosen, path, export_options)
    warnings = Facts.of(chosen).warnings(export_options.to)
    make = _export_bundle if export_options.to == "bundle" else _export_model
    return replace(make(chosen, path, export_options), warnings=tuple(warnings))


def _refuse(run: Run, path: Path, options: ExportOptions) -> None:
    """Raise SettingsError for a target that exists, a run that is a bundle, and a package that is missing."""
    if path.exists():
        raise SettingsError("{path} exists already, and nothing is replaced.", "Name another place.", path=path)
    if path.suffix == ".zip" and options.to != "bundle":
        raise SettingsError("{path}: --to {to} makes a folder.", "Name one.", path=path, to=options.to)
    if "bundle" in run.manifest:
        raise SettingsError("{folder} is a bundle already.", "Export the run it was made from.", folder=run.folder)
    if options.to == "gguf" and find_spec("gguf") is None:
        raise SettingsError("--to gguf takes the package gguf.", 'Install it: pip install "daedap[gguf]"')


def _export_bundle(run: Run, path: Path, options: ExportOptions) -> Exported:
    if path.suffix != ".zip":
        with new_folder(path) as folder:
            checked = export_bundle(run, folder)
            _require_equal(checked.verification, options)
            size = sum(run_store.sizes(folder).values())
    else:
        with new_path(path) as archive:
            folder = archive.with_name(f"{archive.name}.unpacked.tmp")
            try:
                checked = export_bundle(run, folder)
                _require_equal(checked.verification, options)
                compress(folder, archive)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            size = archive.stat().st_size
    return Exported("bundle", path, size, checked.verification, seconds=checked.seconds)


def _export_model(run: Run, path: Path, options: ExportOptions) -> Exported:
    """A web page, or the language model alone."""
    write = {
        "web": lambda run, folder, _: export_web(run, folder),
        "hf": export_adapter if options.adapter else export_merged,
        "ctranslate2": export_engine,
        "gguf": export_gguf,
    }[options.to]
    with new_folder(path) as folder:
        verification = write(run, folder, options.questions)
        _require_equal(verification, options)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Exported(options.to, path, size, verification)


def _require_equal(verification: Verification, options: ExportOptions) -> None:
    """List the differences. Raises ExportError when there are any, unless they are allowed."""
    different, split = verification.differences, verification.token_differences
    tell([each.line() for each in (*different, *split)[:_LISTED]])
    if (different or split) and not options.allow_differences:
        raise ExportError(
            "{count:,} of {compared:,} answers differ from the run's, and the tokens of {texts:,} texts: not exported.",
            "To export it all the same: --allow-differences",
            count=len(different),
            compared=verification.compared,
            texts=len(split),
        )
