"""Answers by transformers and by the engine, side by side in one process: one reply, the best of many, a batch.

python bench/answering.py ChatbotData.csv [--tokenizer FOLDER] [--questions 64]     prints a table

The weights are random and have the shape of skt/kogpt2-base-v2, so no answer ends by itself: each has as many
tokens as the file's answers have in the middle. The tokenizer is daedap-mini's unless --tokenizer names another one's
folder (a tokenizer.json is enough).
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import GenerationConfig

from daedap.data.doctor import load
from daedap.model.base import Base
from daedap.model.convert import convert
from daedap.model.engine import Engine
from daedap.model.loss import shortlist
from daedap.model.prompt import Prompt
from daedap.training.baselines import kogpt2_shape
from daedap.types import Pair

_MAX_LENGTH = 128
_SAMPLES = 8
_RETRIEVED = 5
"""Known answers that are ranked among the sampled ones."""


@dataclass(frozen=True)
class BenchContext:
    """What answers, and what it is asked."""

    base: Base
    prompt: Prompt
    whole: Engine
    short: Engine
    pairs: Sequence[Pair]
    questions: int
    tokens: int
    """Of every reply."""


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--times", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ground = prepare(load(options.file).pairs, options.tokenizer, options.questions, Path(folder))
        print("\n".join(table(measure(ground, options.times), ground)))


def prepare(pairs: Sequence[Pair], tokenizer: Path | None, questions: int, folder: Path) -> BenchContext:
    """The same random weights for everybody: with transformers, converted, and converted with a short head."""
    base = kogpt2_shape(tokenizer)
    prompt = base.prompt(_MAX_LENGTH)
    examples = [prompt.example(pair) for pair in pairs]
    tokens = round(statistics.median(example.n_labels for example in examples))
    convert(copy.deepcopy(base.model), prompt, folder / "whole")
    convert(copy.deepcopy(base.model), prompt, folder / "short", shortlist(prompt, examples))
    engines = (Engine.open(folder / name, prompt, tokens) for name in ("whole", "short"))
    return BenchContext(base, prompt, *engines, pairs, questions, tokens)


def measure(ground: BenchContext, times: int) -> dict[str, list[float]]:
    """Median seconds of each task by transformers, the engine with its whole head, and with a short one.

    One after the other, round by round, so that whatever else the machine does falls on all of them.
    """
    tasks = _tasks(ground)
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in ways] for name, ways in tasks.items()}
    for turn in range(times + 1):
        asked = [
            ground.pairs[(turn * ground.questions + row * 7) % len(ground.pairs)] for row in range(ground.questions)
        ]
        for name, ways in tasks.items():
            for place, way in enumerate(ways):
                start = time.perf_counter()
                way(asked)
                if turn:  # the first round warms up
                    seconds[name][place].append(time.perf_counter() - start)
    return {name: [statistics.median(measured) for measured in ways] for name, ways in seconds.items()}


def _tasks(ground: BenchContext) -> dict[str, list[Callable[[Sequence[Pair]], object]]]:
    engines = (ground.whole, ground.short)
    return {
        "one greedy reply": [
            lambda pairs: transformers_reply(ground, pairs[:1]),
            *(lambda pairs, engine=engine: engine.reply(pairs[:1]) for engine in engines),
        ],
        f"{_SAMPLES} sampled, ranked with {_RETRIEVED} known answers": [
            lambda pairs: transformers_reply(ground, pairs[:1]),
            *(lambda pairs, engine=engine: best_of_many(engine, pairs) for engine in engines),
        ],
        f"{ground.questions} questions at once": [
            lambda pairs: transformers_reply(ground, pairs),
            *(lambda pairs, engine=engine: engine.reply(pairs) for engine in engines),
        ],
    }


def transformers_reply(ground: BenchContext, pairs: Sequence[Pair]) -> list[str]:
    """As people write it: one greedy `generate` in fp32, the questions padded on the left."""
    questions = [ground.prompt.question(pair) for pair in pairs]
    length, pad = max(map(len, questions)), ground.prompt.pad_id
    ids = torch.tensor([[pad] * (length - len(question)) + question for question in questions])
    mask = torch.tensor([[0] * (length - len(question)) + [1] * len(question) for question in questions])
    settings = GenerationConfig(do_sample=False, max_new_tokens=ground.tokens, pad_token_id=pad)
    with torch.inference_mode():
        output = ground.base.model.eval().generate(ids, attention_mask=mask, generation_config=settings)
    return [str(text) for text in ground.base.tokenizer.batch_decode(output[:, length:])]


def best_of_many(engine: Engine, pairs: Sequence[Pair]) -> str:
    """The likeliest of some sampled and some known answers."""
    sampled = [said.text for said in engine.sample(pairs[:1], _SAMPLES, seed=1, temperature=0.9, top_k=40)[0]]
    known = [pair.answer for pair in pairs[1 : 1 + _RETRIEVED]]
    candidates = [replace(pairs[0], answer=answer) for answer in [*sampled, *known]]
    scores = engine.log2_probability(candidates)
    return candidates[int((scores[:, 0] / scores[:, 1]).argmax())].answer


def table(seconds: dict[str, list[float]], ground: BenchContext) -> list[str]:
    """Milliseconds, and how many times as fast as transformers; in the second row, as its one reply."""
    head = "| median ms | transformers, fp32, one greedy reply each | engine, whole head | engine, short head |"
    rows = []
    for name, (plain, *others) in seconds.items():
        cells = [name, f"{plain * 1e3:.0f}", *(f"{other * 1e3:.0f} ({plain / other:.1f}×)" for other in others)]
        rows.append(f"| {' | '.join(cells)} |")
    note = f"Shape of KoGPT2, random weights, {ground.tokens} tokens a reply, {torch.get_num_threads()} threads."
    return [head, "|---|---|---|---|", *rows, "", note]


if __name__ == "__main__":
    main()
