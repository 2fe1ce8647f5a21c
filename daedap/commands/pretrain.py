"""`daedap pretrain`: plain texts and dialogues → a base of one's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

import daedap.runs as run_store
from daedap.commands.train import refuse_with_resume
from daedap.config import FRESH, ArchitectureOptions, BaseOptions, PretrainOptions, ReadOptions
from daedap.data.corpus import Document, hold_out, read_texts
from daedap.errors import SettingsError
from daedap.files import digest, write_json
from daedap.i18n import tell, translate
from daedap.pipeline import describe_environment
from daedap.runs import Json, Run

if TYPE_CHECKING:
    from daedap.model.base import Base

_WORSE = 1.005
"""How much worse than at its best a base must have become for a word about it."""


@dataclass(frozen=True)
class MadeBase:
    """A finished base."""

    run: Run

    @property
    def model(self) -> Path:
        """The folder to give to `--base`."""
        return self.run.folder / "model"

    def to_json(self) -> Json:
        """The manifest and where it lies."""
        return self.run.to_json()

    def lines(self) -> list[str]:
        """What it is and how it's used, for a terminal."""
        made = self.run.manifest
        read = "Base {number} is complete: {tokens:,} tokens read in {minutes:.0f} minutes."
        lines = [translate(read, number=self.run.number, tokens=made["tokens"], minutes=made["seconds"] / 60)]
        if (bits := made["bits_per_character"]) is not None:
            lines.append(translate("Held-out texts: {bits:.3f} bits per character.", bits=bits))
            if bits > _WORSE * made["best_bits"]:
                template = "It was better at step {step}: {best:.3f}. Give more texts, or a smaller --num-train-epochs."
                lines.append(translate(template, step=made["best_step"], best=made["best_bits"]))
        return [*lines, translate("Use it: daedap train FILE --base {folder}", folder=self.model)]


def pretrain(
    files: Sequence[Path] = (),
    *,
    read_options: Annotated[ReadOptions, Parameter(name="*")] = ReadOptions(),
    shape: Annotated[ArchitectureOptions, Parameter(name="*")] = ArchitectureOptions(),
    schedule: Annotated[PretrainOptions, Parameter(name="*")] = PretrainOptions(),
    base_options: Annotated[BaseOptions, Parameter(name="*")] = BaseOptions(),
) -> MadeBase:
    """Make a base from texts, for `daedap train --base`.

    Raises DataError, SettingsError, RunError and StorageError.

    Parameters
    ----------
    files
        Plain texts (.txt: one text a line, blank lines between documents; .jsonl with a text in each line) and
        dialogues (any file that train reads). A file named twice is learned twice as often.
    """
    if base_options.resume:
        refuse_with_resume(*files, read_options, shape, schedule)
        run = run_store.interrupted(base_options.resume, base_options.bases, "pretrain")
        with run.locked():
            return _finish(run)
    _check(files, base_options.base, shape, schedule)
    run = run_store.create(base_options.bases)
    with run.discard_if_not_started(), run.locked():
        _prepare(run, files, read_options, base_options, shape, schedule)
        return _finish(run)


def _check(files: Sequence[Path], base: str, shape: ArchitectureOptions, schedule: PretrainOptions) -> None:
    """Refuse at once what would fail only after all texts are read."""
    if not files:
        raise SettingsError("No file of texts is given.", "Name at least one: daedap pretrain texts.txt")
    if base != FRESH and shape != ArchitectureOptions():
        raise SettingsError(
            "--base {base} has its own shape and tokenizer.", "Leave the options of the shape out.", base=base
        )
    from daedap.model.device import choose_device, require_compiler  # torch takes seconds to import

    choose_device(schedule.device)
    if schedule.torch_compile:
        require_compiler()


def _prepare(
    run: Run,
    files: Sequence[Path],
    read_options: ReadOptions,
    base_options: BaseOptions,
    shape: ArchitectureOptions,
    schedule: PretrainOptions,
) -> None:
    """Read, part and encode the texts; the config comes last, and with it the run can be resumed."""
    from daedap.training.pretrain import fit_tokenizer, write_corpora  # as above

    start = None if base_options.base == FRESH else _load(base_options.base, schedule)
    times = Counter(file.resolve() for file in files)
    digests = {file: digest(file) for file in times if file.is_file()}
    train, dev = _split_texts(times, read_options, base_options.dev_size, schedule.seed)
    tokenizer = start.tokenizer if start else fit_tokenizer(train, shape.vocab_size)
    sizes = write_corpora(run, tokenizer, train, dev)
    _log_sizes(sizes)
    config = {
        "format": run_store.FORMAT,
        "command": "pretrain",
        "texts": [{"file": str(file), "times": times[file], "sha256": digests[file]} for file in times],
        "dev_size": base_options.dev_size,
        "sizes": sizes,
        "base": start and {"name": start.name, "digest": start.digest, "licence": start.licence},
        "shape": None if start else asdict(shape),
        "schedule": {**asdict(schedule), "budget": schedule.budget and schedule.budget.total_seconds()},
    }
    write_json(run.folder / "config.json", config)


def _load(name: str, schedule: PretrainOptions) -> Base:
    from daedap.model.base import load_base  # as above

    base = load_base(name)
    if schedule.block_size > base.max_positions:
        raise SettingsError(
            "--block-size {value}: {name} has only {places} places.",
            "Try {places}.",
            value=schedule.block_size,
            name=name,
            places=base.max_positions,
        )
    return base


def _split_texts(
    times: Counter[Path], read_options: ReadOptions, dev_size: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Documents to train on, those of a file that is named twice twice, and held-out ones."""
    documents_by_file = []
    for file in times:
        texts = read_texts(file, read_options)
        documents_by_file.append(texts.documents)
        template = (
            "{file}: {documents:,} documents, {characters:,} characters; {left_out:,} rows that can't be read left out"
        )
        characters = sum(document.characters for document in texts.documents)
        documents = len(texts.documents)
        tell([translate(template, file=file.name, documents=documents, characters=characters, left_out=texts.left_out)])
    return hold_out(documents_by_file, dev_size, seed, repeat=list(times.values()))


def _log_sizes(sizes: Json) -> None:
    learned, template = sizes["train"], "{tokens:,} tokens to learn, {vocabulary:,} of them different"
    tell([translate(template, tokens=learned["tokens"], vocabulary=sizes["vocabulary"])])
    if "dev" in sizes:
        tell([translate("{characters:,} characters held out to measure on", characters=sizes["dev"]["characters"])])
    else:
        tell([translate("No texts are held out, so nothing will be measured.")])


def _finish(run: Run) -> MadeBase:
    from daedap.training.pretrain import pretrain_base  # as above

    progress = pretrain_base(run)
    config, files = run.document("config.json"), run_store.sizes(run.folder)
    manifest = {**config, **describe_environment(run), **asdict(progress), "files": files}
    write_json(run.folder / "manifest.json", manifest)
    return MadeBase(run)
