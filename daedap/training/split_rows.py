"""Which rows of a file a run learns from: those that are not too long, split into training, dev and test rows.

With `--from`, the parent's split is extended. Nothing here needs torch, unless a base other than the built-in one says
how long a row may be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from daedap.config import FRESH, MINI, ModelOptions, ReadOptions, SplitOptions
from daedap.data.doctor import Loaded
from daedap.data.split import (
    Split,
    SplitName,
    as_fraction,
    extend_split,
    read_rows,
    read_split,
    require_training_rows,
    split,
)
from daedap.errors import DataError, RunError, SettingsError
from daedap.files import digest
from daedap.i18n import tell, translate
from daedap.korean.text import comparison_form
from daedap.runs import Json, Run
from daedap.types import Pair

MINI_FOLDER = Path(__file__).parent.parent / "mini"
"""Folder of daedap-mini."""
_CONTROL_TOKENS = 3
"""<|user|> question <|assistant|> answer </s>: what daedap-mini's chat template adds."""
_FRESH_CONTROL_TOKENS = 8
"""An over-estimate of those of a fresh base, whose tokenizer is not fitted yet; so far there are 5."""
_USED: tuple[SplitName, ...] = ("train", "dev", "test")
_CHANGEABLE = ("dropout", "precision", "device", "cache_gb", "fraction")
"""Options that may differ from the parent's; all others are taken over."""


@dataclass(frozen=True)
class LengthLimit:
    """The longest pair that a base learns; longer ones are only looked up."""

    base: str
    tokens: int
    """Question, answer and control tokens; for a fresh base, characters."""
    fits: Callable[[Pair], bool]


def length_limit(base: str, max_length: int) -> LengthLimit:
    """The limit of a base and of `--max-length`, whichever is lower.

    Raises BaseError when a base other than the built-in ones can't be loaded.
    """
    if base == FRESH:
        return LengthLimit(
            base, max_length, lambda pair: len(pair.question) + len(pair.answer) + _FRESH_CONTROL_TOKENS <= max_length
        )
    if base != MINI:
        from daedap.model.base import load_base  # torch takes seconds to import

        prompt = load_base(base).prompt(max_length)
        return LengthLimit(base, prompt.max_length, prompt.fits)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MINI_FOLDER / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # a typed </s> is text
    positions: int = json.loads((MINI_FOLDER / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    limit = min(max_length, positions)

    def fits(pair: Pair) -> bool:
        if 4 * (len(pair.question) + len(pair.answer) + 2) + _CONTROL_TOKENS <= limit:  # four bytes a character at most
            return True
        texts = (pair.question, pair.answer)
        lengths = (len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        return sum(lengths) + _CONTROL_TOKENS <= limit

    return LengthLimit(MINI, limit, fits)


def parent_options(
    parent: Run, model_options: ModelOptions, split_options: SplitOptions
) -> tuple[ModelOptions, SplitOptions]:
    """The parent's model and split options. Raises SettingsError when other values are given, RunError for a base."""
    if parent.command != "train":
        raise RunError(
            "--from {folder}: this is a base, not a run.",
            "Train on it: daedap train FILE --base {model}",
            folder=parent.folder,
            model=parent.folder / "model",
        )
    config, data = parent.config, parent.document("data/source.json")
    inherited = replace(config.model, layers=parent.state["plan"]["layers"])
    dev, test = (as_fraction(size, data["usable"]) for size in (config.split.dev_size, config.split.test_size))
    split_before = replace(config.split, dev_size=dev, test_size=test)
    return _inherit(parent, model_options, inherited), _inherit(parent, split_options, split_before)


def parent_file(parent: Run, read_options: ReadOptions) -> tuple[Path, ReadOptions]:
    """The parent's file and, unless others are given, the options it was read with."""
    return Path(parent.config.file), parent.config.read if read_options == ReadOptions() else read_options


def _inherit(parent: Run, wanted: Any, inherited: Any) -> Any:
    """The parent's options with the changeable ones that were given; a default value counts as not given."""
    for option in fields(wanted):
        wish, was = getattr(wanted, option.name), getattr(inherited, option.name)
        if option.name not in _CHANGEABLE and wish not in (option.default, was):
            raise SettingsError(
                "--{option} {wish}: run {parent} was made with {was}, and what goes on from it keeps that.",
                "Leave --{option} out, or train without --from.",
                option=option.name.replace("_", "-"),
                wish=wish,
                parent=parent.folder.name,
                was=was,
            )
    return replace(inherited, **{name: getattr(wanted, name) for name in _CHANGEABLE if hasattr(wanted, name)})


def _continue_split(
    parent: Run, file: Path, pairs: Sequence[Pair], split_options: SplitOptions, seed: int, taught: Sequence[Pair]
) -> tuple[Split, frozenset[str]]:
    """The parent's split, extended by the pairs of the file that it does not hold.

    Also the ids of the rows that are new to training, dev or test. Raises DataError when no training row is new.
    `taught`: lessons, which are training rows whatever the split.
    """
    before = read_split(parent.folder)
    known = {pair.id for pair in before.pairs}
    parts = extend_split(before, [pair for pair in pairs if pair.id not in known], split_options, seed=seed)
    parts = _with_taught(parts, taught)
    used = known - {pair.id for pair in before.rows("unused")}
    new = {name: {pair.id for pair in parts.rows(name)} - used for name in _USED}
    if not new["train"]:
        raise DataError(
            "{file}: no training row is new to run {parent}.",
            "Add rows; {held_out} new one(s) are held out and not trained on.",
            file=file,
            parent=parent.folder.name,
            held_out=len(new["dev"] | new["test"]),
        )
    return parts, frozenset().union(*new.values())


def with_parents_lookup(pairs: Sequence[Pair], parent: Run | None) -> list[Pair]:
    """The pairs that are used for retrieval only, then those of the parent that the file does not hold."""
    known = {pair.id for pair in pairs}
    before = read_rows(parent.folder, "lookup") if parent else []
    return [*pairs, *(pair for pair in before if pair.id not in known)]


@dataclass(frozen=True)
class SplitRows:
    """A split, and what is new in it."""

    split: Split
    new_ids: frozenset[str] = frozenset()
    """Ids of the rows that the parent did not use."""


def split_rows(
    file: Path,
    pairs: Sequence[Pair],
    split_options: SplitOptions,
    seed: int,
    parent: Run | None,
    taught: Sequence[Pair] = (),
) -> SplitRows:
    """Split a file's rows, or extend the parent's split. Raises DataError when there is no training row.

    `taught`: lessons. They are training rows whatever the split; rows of the file that they correct are left out.
    """
    corrected = {comparison_form(pair.question) for pair in taught}
    pairs = [pair for pair in pairs if pair.history or comparison_form(pair.question) not in corrected]
    new = frozenset[str]()
    if parent:
        parts, new = _continue_split(parent, file, pairs, split_options, seed, taught)
    else:
        parts = _with_taught(split(pairs, split_options, seed=seed), taught)
    require_training_rows(parts, file)
    if "dev" not in parts.assignments:
        tell([translate("No dev rows: training can't stop early, and the last weights are kept.")])
    return SplitRows(parts, new)


def _with_taught(parts: Split, taught: Sequence[Pair]) -> Split:
    """The split with lessons as further training rows; those that it holds already become training rows."""
    trained, known = {pair.id for pair in taught}, {pair.id for pair in parts.pairs}
    pairs = [*parts.pairs, *(pair for pair in taught if pair.id not in known)]
    held = zip(parts.pairs, parts.assignments, strict=True)
    assignments: list[SplitName] = ["train" if pair.id in trained else name for pair, name in held]
    assignments += ["train"] * (len(pairs) - len(parts.pairs))
    components = [*parts.components, *range(len(parts.pairs), len(pairs))]
    return replace(parts, pairs=pairs, assignments=assignments, components=components)


def describe_source(file: Path, loaded: Loaded, split_options: SplitOptions, rows: SplitRows) -> Json:
    """`data/source.json`: file, digest, counts and leakage of the rows; also logged."""
    parts = rows.split
    new = {name: sum(pair.id in rows.new_ids for pair in parts.rows(name)) for name in _USED}
    counts = {side: parts.assignments.count(side) for side in ("train", "dev", "test", "left_out", "unused")}
    leak = asdict(parts.leak)
    message = (
        "{train:,} training rows, {dev:,} dev rows to decide when to stop, {test:,} test rows for the scores; "
        "{questions:.1%} of the test questions and {answers:.1%} of the test answers are known from training."
    )
    tell([translate(message, **counts, **leak)])
    if rows.new_ids:
        message = "New among them: {train:,} training rows, {dev:,} dev rows, {test:,} test rows."
        tell([translate(message, **new)])
    return {
        "file": str(file),
        "sha256": digest(file),
        "format": loaded.report.source.format,
        "encoding": loaded.report.source.encoding_name,
        "rows": loaded.report.rows,
        "usable": loaded.report.usable or len(loaded.pairs),
        **counts,
        **({"new": new} if rows.new_ids else {}),
        "components": len(set(parts.components)),
        "split": split_options.split,
        "leak": leak,
    }
