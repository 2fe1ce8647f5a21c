"""Documents as one stream of ids, cut into blocks of equal length: no place is spent on padding.

Pretraining: blocks of text in, a base out, within a time budget and resumable at every checkpoint.

The pretraining stage: texts → a base, all read from and written to one folder.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from daedap.config import ArchitectureOptions, PretrainOptions
from daedap.data.corpus import Document
from daedap.errors import RunError, SettingsError
from daedap.files import new_folder, write_text
from daedap.i18n import translate
from daedap.model.base import load_recorded_base, random_init_model, self_test
from daedap.model.device import Machine, require_compiler, resolve_machine
from daedap.model.prompt import Prompt, build_prompt
from daedap.model.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from daedap.runs import Json, Run
from daedap.training.checkpoint import cut_log, resume, save_checkpoint
from daedap.training.trainer import Progress, new_accelerator, refuse_no_number

_AT_ONCE = 10_000
"""Texts encoded at a time."""
PADDING = -100
"""No token; PyTorch's cross entropy leaves it out."""
Ids = NDArray[np.integer]


@dataclass(frozen=True)
class Corpus:
    """Documents one after the other.

    ids: (tokens,); starts: (documents,) where each begins in `ids`; characters: their length, line ends not counted.
    """

    ids: Ids
    starts: NDArray[np.int64]
    characters: int

    def steps(self, length: int, rows: int) -> int:
        """How many batches of `rows` blocks of `length` ids it fills."""
        return (len(self.ids) - 1) // length // rows

    def batches(self, length: int, rows: int, seed: Sequence[int], first: int = 0) -> Iterator[Ids]:
        """Batches from the `first` on, (rows, length + 1) each: ids to read and the one that follows each.

        A block begins with the last id of the one before, so that every id but the first is predicted once. The seed
        decides how documents are joined and in which order the blocks come; what fills no batch is left out.
        """
        random = np.random.default_rng(seed)
        ends = np.append(self.starts[1:], len(self.ids))
        joined = np.concatenate([self.ids[self.starts[n] : ends[n]] for n in random.permutation(len(ends))])
        blocks = _cut(joined, length)
        order = random.permutation(len(blocks))
        for step in range(first, self.steps(length, rows)):
            yield blocks[order[step * rows : (step + 1) * rows]]

    def in_order(self, length: int, rows: int) -> Iterator[Ids]:
        """All of it, every document in its place, the last batch filled up with `PADDING`."""
        missing = -(len(self.ids) - 1) % (length * rows)
        blocks = _cut(np.pad(self.ids.astype(np.int64), (0, missing), constant_values=PADDING), length)
        for start in range(0, len(blocks), rows):
            yield blocks[start : start + rows]

    def sizes(self) -> dict[str, int]:
        """Documents, tokens and characters."""
        return {"documents": len(self.starts), "tokens": len(self.ids), "characters": self.characters}

    def save(self, path: Path) -> None:
        """Write it as `path`, an .npz file."""
        np.savez(path, ids=self.ids, starts=self.starts, characters=self.characters)

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read it back. Raises RunError."""
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return cls(arrays["ids"], arrays["starts"], int(arrays["characters"]))
        except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
            raise RunError(
                "{file}: the encoded texts can't be read ({error}).", "Pretrain again.", file=path, error=error
            ) from error


def _cut(ids: Ids, length: int) -> Ids:
    """(blocks, length + 1), a view."""
    return np.lib.stride_tricks.sliding_window_view(ids, length + 1)[::length]


def encode_documents(documents: Sequence[Document], prompt: Prompt) -> Corpus:
    """Documents as ids: `<s>` before plain texts and an end token after each; dialogues in the chat template."""
    encoded = _encoded([text for document in documents for text in document.texts], prompt)
    small = np.uint16 if len(prompt.tokenizer) <= 1 << 16 else np.uint32
    parts = [np.array(_rendered(document, encoded, prompt), dtype=small) for document in documents]
    starts = np.cumsum([0, *map(len, parts)])[:-1]
    return Corpus(np.concatenate(parts), starts, sum(document.characters for document in documents))


def _encoded(texts: Sequence[str], prompt: Prompt) -> Iterator[list[int]]:
    """Each text as ids; what looks like a control token stays plain text."""
    for start in range(0, len(texts), _AT_ONCE):
        batch = list(texts[start : start + _AT_ONCE])
        yield from prompt.tokenizer(batch, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _rendered(document: Document, encoded: Iterator[list[int]], prompt: Prompt) -> list[int]:
    texts = [next(encoded) for _ in document.texts]
    if document.dialogue:
        return prompt.dialogue(texts)
    end = prompt.template.eos_id
    bos = prompt.tokenizer.bos_token_id
    return [end if bos is None else bos, *(number for text in texts for number in (*text, end))]


_BAR = "{desc} {percentage:3.0f}% |{bar}| {elapsed} {postfix}"
Loss = Callable[[Tensor], Tensor]


@dataclass
class PretrainState(Progress):
    """How far the reading of the texts is."""

    tokens: int = 0
    bits_per_character: float | None = None
    """On the held-out texts, when last measured."""
    best_bits: float | None = None
    best_step: int = 0


@dataclass
class Pretrainer:
    """One pretraining, from its first step or from its newest checkpoint to the end of its budget."""

    model: PreTrainedModel
    schedule: PretrainOptions
    machine: Machine
    folder: Path
    progress: PretrainState = field(default_factory=PretrainState)

    def __post_init__(self) -> None:
        self.accelerator = new_accelerator(
            self.machine, self.progress, self.model, mixed_precision="no"
        )  # see next_token_loss

    def run(self, train: Corpus, dev: Corpus | None) -> PretrainState:
        """Train until the budget is spent; the model is left with its last weights, rounded to half precision."""
        set_seed(self.schedule.seed)
        self.model = self.accelerator.prepare(self.model)
        self.optimizers = [self.accelerator.prepare(each) for each in optimizers(self.model, self.schedule)]
        self.loss = next_token_loss(self.model, self.machine, compiled=self.schedule.torch_compile)
        self.steps_per_pass = steps_per_pass(train, self.schedule)
        resume(self.accelerator, self.folder)
        cut_log(self.folder, self.progress.step)
        self._since = time.perf_counter() - self.progress.seconds
        self._read(train, dev)
        self.model.half().float()
        self._measure(dev)
        return self.progress

    def _read(self, train: Corpus, dev: Corpus | None) -> None:
        batches = self._batches(train)
        with tqdm(total=100, desc=translate("pretraining"), bar_format=_BAR) as bar:
            while self.share < 1:
                loss, norm = self._step(next(batches))
                bar.n = round(100 * self.share)
                bar.set_postfix_str(
                    translate("{tokens:,} tokens, loss {loss:.2f}", tokens=self.progress.tokens, loss=loss)
                )
                self._look_around(loss, norm, dev)
        self._save()

    @property
    def share(self) -> float:
        """How much is done, by time, steps or passes, whichever is furthest; at most 1."""
        schedule, step = self.schedule, self.progress.step
        steps = min(schedule.max_steps or math.inf, schedule.num_train_epochs * self.steps_per_pass)
        return min(1.0, max(step / steps, (time.perf_counter() - self._since) / schedule.seconds))

    def _batches(self, train: Corpus) -> Iterator[Tensor]:
        """Blocks of each step from the current one on, without end; each pass joins and cuts the texts anew."""
        rows, length = self.schedule.per_device_train_batch_size, self.schedule.block_size
        while True:
            passes, first = divmod(self.progress.step, self.steps_per_pass)
            for blocks in train.batches(length, rows, (self.schedule.seed, passes), first):
                yield _tensor(blocks, self.accelerator.device)

    def _step(self, batch: Tensor) -> tuple[float, float]:
        """One update; returns the mean loss in nats per token and the gradient's length before it was cut."""
        self.model.train()
        loss = self.loss(batch)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.schedule.max_grad_norm)
        nats, length = loss.item(), float(norm)
        refuse_no_number(self.progress.step + 1, nats, length)
        rate = self.schedule.rate(self.progress.step, self.share)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.progress.step += 1
        self.progress.tokens += batch[:, 1:].numel()
        return nats, length

    def _look_around(self, loss: float, norm: float, dev: Corpus | None) -> None:
        step, schedule = self.progress.step, self.schedule
        if step % schedule.logging_steps == 0:
            self._log("train", loss=loss, grad_norm=norm, learning_rate=schedule.rate(step, self.share))
        if step % schedule.eval_steps == 0:
            self._measure(dev)
        if step % schedule.save_steps == 0:
            self._save()

    def _measure(self, dev: Corpus | None) -> None:
        if dev is None:
            return
        rows, length = self.schedule.per_device_train_batch_size, self.schedule.block_size
        bits = total_bits(self.model, self.loss, dev, rows, length) / dev.characters
        progress = self.progress
        progress.bits_per_character = bits
        if progress.best_bits is None or bits < progress.best_bits:
            progress.best_bits, progress.best_step = bits, progress.step
        self._log("dev", bits_per_character=bits)

    def _save(self) -> None:
        self.progress.seconds = time.perf_counter() - self._since
        folder = self.folder / "checkpoints"
        save_checkpoint(self.accelerator, folder, self.progress.step, self.schedule.save_total_limit)

    def _log(self, event: str, **fields: float) -> None:
        seconds = round(time.perf_counter() - self._since, 1)
        progress = {"step": self.progress.step, "tokens": self.progress.tokens, "seconds": seconds}
        Run(self.folder).note(event, **progress, **fields)


def steps_per_pass(train: Corpus, schedule: PretrainOptions) -> int:
    """How many steps it takes to read all of it. Raises SettingsError when it is too short for one."""
    rows, length = schedule.per_device_train_batch_size, schedule.block_size
    if steps := train.steps(length, rows):
        return steps
    raise SettingsError(
        "The texts have {tokens:,} tokens, and one step takes {needed:,}.",
        "Give more texts, or a smaller --per-device-train-batch-size or --block-size.",
        tokens=len(train.ids),
        needed=rows * length + 1,
    )


def optimizers(model: nn.Module, schedule: PretrainOptions) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices between embedding and head and AdamW for the rest.

    Muon (Jordan et al., 2024) makes every update of a matrix orthogonal; its rate is brought to AdamW's scale as Liu
    et al. (2025, arXiv:2502.16982) do, so that one rate and one weight decay serve both.
    """
    hidden = [weight for name, weight in model.named_parameters() if _hidden(name, weight)]
    rest = [weight for name, weight in model.named_parameters() if not _hidden(name, weight)]
    rate, decay = schedule.learning_rate, schedule.weight_decay
    adamw = torch.optim.AdamW([{"params": rest, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.95))
    if schedule.optim == "adamw_torch":
        adamw.add_param_group({"params": hidden, "weight_decay": decay})
        return [adamw]
    return [adamw, torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")]


def _hidden(name: str, weight: Tensor) -> bool:
    return weight.ndim == 2 and not re.search(r"embed|lm_head", name)


def next_token_loss(model: nn.Module, machine: Machine, *, compiled: bool) -> Loss:
    """A function from blocks, (rows, length + 1), to the mean −ln p of what follows each id; padding is left out."""

    def loss(blocks: Tensor) -> Tensor:
        with torch.autocast(machine.device, torch.bfloat16, enabled=machine.precision == "bf16"):
            logits = model(input_ids=blocks[:, :-1].clamp(min=0), use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1).float(), blocks[:, 1:].flatten(), ignore_index=PADDING)

    return torch.compile(loss) if compiled else loss


@torch.no_grad()
def total_bits(model: nn.Module, loss: Loss, corpus: Corpus, rows: int, length: int) -> float:
    """−log2 p of every id of a corpus but the first, each read with what its block holds before it."""
    model.eval()
    device = next(model.parameters()).device
    batches = (_tensor(blocks, device) for blocks in corpus.in_order(length, rows))
    nats = sum(loss(batch).item() * int(torch.count_nonzero(batch[:, 1:] != PADDING)) for batch in batches)
    return nats / math.log(2)


def _tensor(blocks: Ids, device: torch.device) -> Tensor:
    return torch.from_numpy(blocks.astype(np.int64)).to(device)


_COVERAGE = 0.9995
"""SentencePiece's character coverage for languages with many characters."""
_CARD = """---
language: ko
license: other
---
# {name}

A base made by `daedap pretrain` from {files}: {tokens:,} tokens read in {minutes:.0f} minutes.
Its licence follows from the texts'.
"""


def fit_tokenizer(train: Sequence[Document], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of the training texts."""
    texts = [text for document in train for text in document.texts]
    return train_tokenizer(texts, vocab_size, character_coverage=_COVERAGE)


def encode(run: Run, tokenizer: PreTrainedTokenizerFast, train: Sequence[Document], dev: Sequence[Document]) -> Json:
    """Encode both sides and write them with the tokenizer; returns their sizes."""
    prompt = build_prompt(tokenizer, 0)
    sizes: Json = {"vocabulary": len(prompt.tokenizer)}
    with new_folder(run.folder / "data") as temporary:
        save_tokenizer(prompt.tokenizer, temporary)
        for side, documents in {"train": train, "dev": dev}.items():
            if documents:
                corpus = encode_documents(documents, prompt)
                corpus.save(temporary / f"{side}.npz")
                sizes[side] = corpus.sizes()
    return sizes


def pretrain_base(run: Run) -> PretrainState:
    """Pretrain as the run's settings say, from its newest checkpoint on, and write `model/`."""
    schedule = _schedule(run)
    train = Corpus.load(run.folder / "data" / "train.npz")
    dev = Corpus.load(run.folder / "data" / "dev.npz") if "dev" in run.settings["sizes"] else None
    steps_per_pass(train, schedule)  # refuses what is too short before anything takes time
    if schedule.torch_compile:
        require_compiler()
    tokenizer = load_tokenizer(run.folder / "data")
    model = _first_weights(run, tokenizer, schedule)
    machine = resolve_machine(run, schedule.device, schedule.precision, model.config.get_text_config().hidden_size)
    pretraining = Pretrainer(model, schedule, machine, run.folder)
    progress = pretraining.run(train, dev)
    _save(run, pretraining.model, tokenizer, progress)
    return progress


def _first_weights(run: Run, tokenizer: PreTrainedTokenizerFast, schedule: PretrainOptions) -> PreTrainedModel:
    """The base's, or random ones of the shape that was told."""
    if recorded := run.settings["base"]:
        return load_recorded_base(run, recorded).model
    model = random_init_model(
        tokenizer, schedule.seed, ArchitectureOptions(**run.settings["shape"]), max_positions=schedule.block_size
    )
    self_test(str(run.folder), model, tokenizer)
    return model


def _schedule(run: Run) -> PretrainOptions:
    told = run.settings["schedule"]
    return PretrainOptions(**{**told, "budget": told["budget"] and timedelta(seconds=told["budget"])})


def _save(run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, progress: PretrainState) -> None:
    """The base in half precision, as bases are published, with its tokenizer and a card."""
    files = ", ".join(Path(text["file"]).name for text in run.settings["texts"])
    card = _CARD.format(name=run.folder.name, files=files, tokens=progress.tokens, minutes=progress.seconds / 60)
    with new_folder(run.folder / "model") as temporary:
        model.half().save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
        write_text(temporary / "README.md", card)
