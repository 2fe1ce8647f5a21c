"""`daedap bench`: how fast this machine trains, with the recipes that people commonly use and with daedap's own."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from cyclopts import Parameter

from daedap.config import BenchOptions, ReadOptions, RecipeName, SplitOptions
from daedap.data.doctor import load
from daedap.data.split import split
from daedap.errors import DataError
from daedap.evaluation.tables import align_columns
from daedap.files import storage
from daedap.i18n import tell, translate
from daedap.retrieval.small_talk import STARTER
from daedap.runs import Json

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
        return [head, "", *self._speed_lines(), *self._quality_lines()]

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

    def _speed_lines(self) -> list[str]:
        heads = [
            translate("recipe"),
            translate("precision"),
            translate("rows per second"),
            translate("ratio"),
            translate("all counted"),
            translate("ratio"),
        ]
        grid = [[*heads, translate("of the peak (%)"), translate("memory (MB)")]]
        for one in self.speed:
            result = self._entry(one)
            cells = [f"{result[name]:.2f}" for name in ("samples_per_second", "ratio", "counted", "counted_ratio")]
            grid.append(
                [one.name, one.precision, *cells, f"{100 * result['utilisation']:.1f}", f"{one.peak_bytes / 1e6:,.0f}"]
            )
        return [
            *align_columns(grid),
            "",
            translate("All counted: from the first row to the saved weights; of the usual recipes, only their steps."),
        ]

    def _quality_lines(self) -> list[str]:
        if not self.quality:
            return []
        grid = [[translate("recipe"), translate("epochs"), translate("seconds"), translate("bits per character")]]
        for one in self.quality:
            bits = one.bits_per_character
            cells = [f"{one.rows / self.rows:.0f}", f"{one.seconds:.1f}", "-" if bits is None else f"{bits:.3f}"]
            grid.append([one.name, *cells])
        note = ["", translate("as_long: for as many epochs as end in the time of the first recipe.")]
        equal_time = any(one.name.endswith(_AS_LONG) for one in self.quality)
        return ["", *align_columns(grid), *(note if equal_time else [])]


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
    from daedap.model.device import choose_device
    from daedap.training.benchmark import BenchContext, MachineInfo, measure_peaks  # torch takes seconds to import

    device = choose_device(bench_options.device)
    make = _base_maker(bench_options)
    base = make()
    train, dev = _rows(file or STARTER, read_options, bench_options, base)
    peaks = measure_peaks(device)
    with _scratch(bench_options.runs) as folder:
        speed, quality = _measured(bench_options, BenchContext(make, train, dev, device, folder, peaks, _SEED))
    return Bench(base.name, len(train), MachineInfo(device), peaks, speed, quality)


def _base_maker(bench_options: BenchOptions) -> Callable[[], Base]:
    from daedap.model.base import load_base  # as above
    from daedap.training.baselines import kogpt2_shape

    return (
        partial(load_base, bench_options.base) if bench_options.base else partial(kogpt2_shape, bench_options.tokenizer)
    )


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


def _measured(bench_options: BenchOptions, ground: BenchContext) -> tuple[list[Measurement], list[Measurement]]:
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
    for stock in _there(names):
        tell([translate("measuring {recipe}", recipe=stock.name)])
        floats = choose_baseline_precision(stock, ground)
        speed.append(measure_speed(stock, ground, floats, bench_options.steps))
        if bench_options.quality:
            quality.append(measure_quality(stock, ground, floats, bench_options.epochs))
    watched = ground if bench_options.quality else replace(ground, dev=())
    for level in _possible(names):
        tell([translate("measuring {recipe}", recipe=level.name)])
        speed.append(own := measure_ours(level, watched, bench_options.epochs))
        if own.bits_per_character is not None:
            quality += [own, *_as_long(level, ground, own, bench_options.epochs, quality[:1])]
    return speed, quality


def _as_long(
    level: Variant, ground: BenchContext, own: Measurement, epochs: int, first: Sequence[Measurement]
) -> Iterator[Measurement]:
    """daedap's training for as many epochs as it ends in the time of the first recipe, where these are more."""
    from daedap.training.benchmark import measure_ours  # as above

    for other in first:
        if (more := int(epochs * other.seconds / own.seconds)) > epochs:
            tell([translate("measuring {recipe}", recipe=f"{level.name}{_AS_LONG}")])
            yield measure_ours(level, ground, more)._replace(name=f"{level.name}{_AS_LONG}")


def _there(names: Sequence[RecipeName]) -> Iterator[Baseline]:
    """The usual recipes among these whose libraries are installed; of the others it is said what they need."""
    from daedap.training.baselines import BASELINES  # as above

    for stock in (BASELINES[name] for name in names if name in BASELINES):
        if stock.available:
            yield stock
        else:
            missing = "{recipe} is left out, for TRL is not installed. Install it: pip install daedap[bench]"
            tell([translate(missing, recipe=stock.name)])


def _possible(names: Sequence[RecipeName]) -> Iterator[Variant]:
    """daedap's own levels among these; of one that needs a compiler that is not there it is said."""
    from daedap.model.device import can_compile
    from daedap.training.benchmark import VARIANTS  # as above

    for level in VARIANTS:
        if level.name in names and (not level.train_options.get("torch_compile") or can_compile()):
            yield level
        elif level.name in names:
            tell([translate("{recipe} is left out: PyTorch finds no C++ compiler here.", recipe=level.name)])


@contextmanager
def _scratch(runs: Path) -> Iterator[Path]:
    """A folder for what training writes: beside the runs, where there is room for models; gone afterwards."""
    new = not runs.exists()
    with storage(runs):
        runs.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix=".bench-", dir=runs) as folder:
                yield Path(folder)
        finally:
            if new:
                with suppress(OSError):  # a run was begun there meanwhile
                    runs.rmdir()
