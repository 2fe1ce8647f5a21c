"""`daedap bench`: how fast this machine trains, with the recipes that people commonly use and with daedap's own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from cyclopts import Parameter

from daedap.config import BenchOptions, ReadOptions, RecipeName, SplitOptions
from daedap.data.doctor import load
from daedap.data.reader import STARTER
from daedap.data.split import split
from daedap.errors import DataError
from daedap.evaluation.tables import align_columns, join_blocks
from daedap.i18n import tell, translate
from daedap.runs import Json, scratch_folder

if TYPE_CHECKING:
    from daedap.model.base import Base
    from daedap.training.baselines import Baseline
    from daedap.training.benchmark import BenchContext, MachineInfo, Measurement, Variant
    from daedap.types import Pair

_SEED = 42
_AS_LONG = "_as_long"


@dataclass(frozen=True)
class Bench:
    """What was measured."""

    base: str
    rows: int
    machine: MachineInfo
    peaks: dict[Literal["fp32", "bf16"], float]
    """GFLOP/s of matrix products."""
    speed: list[Measurement]
    quality: list[Measurement]

    def to_json(self) -> Json:
        """A JSON object: everything measured, with what follows from it."""
        return {
            "base": self.base,
            "rows": self.rows,
            "machine": asdict(self.machine),
            "peak_gflops": self.peaks,
            "speed": [self._entry(one) for one in self.speed],
            "quality": [self._entry(one) for one in self.quality],
        }

    def lines(self) -> list[str]:
        """Tables."""
        head = translate(
            "{base}, {rows:,} rows; {processor}, {threads} threads; "
            "matrix products: {fp32:,.0f} GFLOP/s in fp32, {bf16:,.0f} in bf16",
            base=self.base,
            rows=self.rows,
            processor=self.machine.processor,
            threads=self.machine.threads,
            **self.peaks,
        )
        return join_blocks([[head], *self._speed_blocks(), *self._quality_blocks()])

    def _entry(self, one: Measurement) -> Json:
        first = self.speed[0] if self.speed else one
        return {
            **one._asdict(),
            "samples_per_second": one.rate,
            "ratio": one.rate / first.rate,
            "counted": one.overall_rate,
            "counted_ratio": one.overall_rate / first.overall_rate,
            "utilisation": one.utilisation(self.peaks),
        }

    def _speed_blocks(self) -> list[list[str]]:
        heads = [
            translate("recipe"),
            translate("precision"),
            translate("rows per second"),
            translate("ratio"),
            translate("all counted"),
            translate("ratio"),
            translate("of the peak (%)"),
            translate("memory (MB)"),
        ]
        grid = [heads]
        for one in self.speed:
            entry = self._entry(one)
            cells = [f"{entry[name]:.2f}" for name in ("samples_per_second", "ratio", "counted", "counted_ratio")]
            use = [f"{100 * entry['utilisation']:.1f}", f"{one.peak_bytes / 1e6:,.0f}"]
            grid.append([one.name, one.precision, *cells, *use])
        note = "All counted: from the first row to the saved weights; of the usual recipes, only their steps."
        return [align_columns(grid), [translate(note)]]

    def _quality_blocks(self) -> list[list[str]]:
        if not self.quality:
            return []
        grid = [[translate("recipe"), translate("epochs"), translate("seconds"), translate("bits per character")]]
        for one in self.quality:
            bits = "-" if one.bits_per_character is None else f"{one.bits_per_character:.3f}"
            grid.append([one.name, f"{one.rows / self.rows:.0f}", f"{one.seconds:.1f}", bits])
        note = translate("as_long: for as many epochs as end in the time of the first recipe.")
        equal_time = any(one.name.endswith(_AS_LONG) for one in self.quality)
        return [align_columns(grid), [note] if equal_time else []]


def bench(
    file: Path | None = None,
    *,
    read_options: Annotated[ReadOptions, Parameter(name="*")] = ReadOptions(),
    bench_options: Annotated[BenchOptions, Parameter(name="*")] = BenchOptions(),
) -> Bench:
    """Measure how fast this machine trains, with the usual recipes and with daedap's.

    Raises DataError, BaseError, SettingsError and StorageError.

    Parameters
    ----------
    file
        CSV, TSV, JSONL, .xlsx or a KakaoTalk export. Without it, the built-in starter pairs.
    """
    from daedap.model.base import load_base  # torch takes seconds to import
    from daedap.model.device import choose_device
    from daedap.training.baselines import kogpt2_shape
    from daedap.training.benchmark import BenchContext, MachineInfo, measure_peaks

    device, name = choose_device(bench_options.device), bench_options.base
    make = partial(load_base, name) if name else partial(kogpt2_shape, bench_options.tokenizer)
    base = make()
    train, dev = _rows(file or STARTER, read_options, bench_options, base)
    peaks = measure_peaks(device)
    with scratch_folder(bench_options.runs, ".bench-") as folder:
        speed, quality = _measured(bench_options, BenchContext(make, train, dev, device, folder, peaks, _SEED))
    return Bench(base.name, len(train), MachineInfo(device), peaks, speed, quality)


def _rows(
    file: Path, read_options: ReadOptions, bench_options: BenchOptions, base: Base
) -> tuple[list[Pair], list[Pair]]:
    """Training and dev rows, as `daedap train` parts them, that all recipes can take whole."""
    from daedap.training.baselines import LENGTH, rows_that_fit  # as above

    loaded = load(file, read_options, fits=base.prompt(LENGTH).fits)
    parts = split(loaded.pairs, SplitOptions(), seed=_SEED)
    train, dev = (rows_that_fit(base, parts.rows(side)) for side in ("train", "dev"))
    if not train:
        raise DataError("{file}: no row is left to train on.", "Add rows, or shorter ones.", file=file)
    if bench_options.rows and bench_options.rows < len(train):
        train = random.Random(_SEED).sample(train, bench_options.rows)
    return train, dev


def _measured(bench_options: BenchOptions, context: BenchContext) -> tuple[list[Measurement], list[Measurement]]:
    """Speed and, where it is asked for, quality of each recipe: after equal epochs, and after equal time."""
    from daedap.training.benchmark import (  # as above
        choose_baseline_precision,
        measure_ours,
        measure_quality,
        measure_speed,
    )

    speed: list[Measurement] = []
    quality: list[Measurement] = []
    names = bench_options.recipes or get_args(RecipeName)
    for baseline in _available(names):
        tell([translate("measuring {recipe}", recipe=baseline.name)])
        precision = choose_baseline_precision(baseline, context)
        speed.append(measure_speed(baseline, context, precision, bench_options.steps))
        if bench_options.quality:
            quality.append(measure_quality(baseline, context, precision, bench_options.epochs))
    watched = context if bench_options.quality else replace(context, dev=())
    for variant in _possible(names):
        tell([translate("measuring {recipe}", recipe=variant.name)])
        speed.append(own := measure_ours(variant, watched, bench_options.epochs))
        if own.bits_per_character is not None:
            quality += [own, *_as_long(variant, context, own, bench_options.epochs, quality[:1])]
    return speed, quality


def _as_long(
    variant: Variant, context: BenchContext, own: Measurement, epochs: int, first: Sequence[Measurement]
) -> Iterator[Measurement]:
    """daedap's training for as many epochs as it ends in the time of the first recipe, where these are more."""
    from daedap.training.benchmark import measure_ours  # as above

    name = f"{variant.name}{_AS_LONG}"
    for other in first:
        if (more := int(epochs * other.seconds / own.seconds)) > epochs:
            tell([translate("measuring {recipe}", recipe=name)])
            yield measure_ours(variant, context, more)._replace(name=name)


def _available(names: Sequence[RecipeName]) -> Iterator[Baseline]:
    """The usual recipes among these whose libraries are installed; of the others it is said what they need."""
    from daedap.training.baselines import BASELINES  # as above

    for baseline in (BASELINES[name] for name in names if name in BASELINES):
        if baseline.available:
            yield baseline
        else:
            missing = '{recipe} is left out, for TRL is not installed. Install it: pip install "daedap[bench]"'
            tell([translate(missing, recipe=baseline.name)])


def _possible(names: Sequence[RecipeName]) -> Iterator[Variant]:
    """daedap's own variants among these; of one that needs a compiler that is not there it is said."""
    from daedap.model.device import can_compile
    from daedap.training.benchmark import VARIANTS  # as above

    for variant in (variant for variant in VARIANTS if variant.name in names):
        if not variant.train_options.get("torch_compile") or can_compile():
            yield variant
        else:
            tell([translate("{recipe} is left out: PyTorch finds no C++ compiler here.", recipe=variant.name)])
