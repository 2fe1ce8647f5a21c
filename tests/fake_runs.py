"""Made-up runs: trained on these pairs, tested on those, with scores that are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from conftest import PAIRS

import daedap.runs as run_store
from daedap.config import ModelOptions, TrainOptions
from daedap.data.split import Leakage, Split, write_split
from daedap.evaluation.evaluate import Row
from daedap.files import write_json, write_lines
from daedap.runs import Run, TrainConfig
from daedap.types import Pair

Shares = dict[str, tuple[float, float]]
Score = Callable[[int], Shares]
"""Place of a test pair → its shares."""
TEST = PAIRS[:20]
"""20 pairs; no two questions are near-duplicates."""
TRAIN = [Pair("오늘 비가 온대", "우산을 챙기세요."), Pair("잠이 안 와", "따뜻한 우유를 드셔 보세요.")]
CONFIG = TrainConfig(file="qa.csv", model=ModelOptions(base="fresh"), train=TrainOptions(num_train_epochs=3))


def row_terms(place: float, *, bits: float = 20.0, polite: bool = True) -> Shares:
    """Shares of a row whose right answer comes at this place; 10 characters."""
    return {
        "bpc": (bits, 10.0),
        "hits_at_1": (float(place == 1), 1.0),
        "mrr": (1 / place, 1.0),
        "bland": (0.0, 1.0),
        "polite": (float(polite), 1.0),
    }


def all_second(row: int) -> Shares:
    """Every right answer comes second."""
    return row_terms(2)


def fake_run(
    runs: Path,
    score: Score = all_second,
    *,
    reply: Callable[[int], str] = lambda row: f"{row}번 대답이에요.",
    train: Sequence[Pair] = TRAIN,
    test: Sequence[Pair] = TEST,
    components: Sequence[int] | None = None,
    system: str = "model",
    config: TrainConfig = CONFIG,
    rows: int = 20,
) -> Run:
    """The next run; `components` are of the test pairs, each its own by default, and the first `rows` are answered."""
    run = run_store.create(runs)
    grouped = list(components or range(len(test)))
    everything = [*train, *test]
    sides = ["train"] * len(train) + ["test"] * len(test)
    numbers = [*range(len(train)), *(len(train) + group for group in grouped)]
    write_split(run.folder, Split(everything, sides, numbers, Leakage(0, 0)))  # type: ignore[arg-type]
    rows_json = [
        Row(
            id=pair.id,
            component=test[grouped[row]].id,
            label=pair.label,
            seen=row % 2 == 0,
            question=pair.question,
            answer=pair.answer,
            replies={system: reply(row)} if row < rows else {},
            terms={system: score(row)},
        ).to_json()
        for row, pair in enumerate(test)
    ]
    write_lines(run.folder / "evaluation" / "rows.jsonl", rows_json)
    write_json(run.folder / "evaluation" / "scores.json", {"candidates": 20})
    write_json(run.folder / "config.json", config.to_json())
    run.update_state(seconds={"prepare": 1.0})
    data = {"train": len(train), "test": len(test), "sha256": "ab" * 32}
    manifest = {
        "format": run_store.FORMAT,
        "number": run.number,
        "data": data,
        "training": {"epochs": 3, "seconds": 10.0 + run.number},
    }
    write_json(run.folder / "manifest.json", {**manifest, "files": run_store.sizes(run.folder)})
    return run
