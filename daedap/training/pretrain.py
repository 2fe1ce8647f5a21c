"""Pretraining: plain texts to a base, within a time budget and resumable at every checkpoint.

Documents are tokenized into one stream of ids and cut into blocks of equal length, so that nothing is padded.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
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
from daedap.model.device import Machine, choose_device, choose_machine, require_compiler
from daedap.model.prompt import Prompt, build_prompt
from daedap.model.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from daedap.runs import Json, Run
from daedap.training.checkpoint import Progress, TrainingLoop, check_finite

_TOKENIZE_BATCH = 10_000
PADDING = -100
"""The `ignore_index` of PyTorch's cross entropy."""
Ids = NDArray[np.integer]


@dataclass(frozen=True)
class Corpus:
    """Tokenized documents, concatenated.

    ids: (tokens,); starts: (documents,), the first index of each in `ids`; characters: without line ends.
    """

    ids: Ids
    starts: NDArray[np.int64]
    characters: int

    def steps(self, length: int, rows: int) -> int:
        """The number of full batches of `rows` blocks of `length` ids."""
        return (len(self.ids) - 1) // length // rows

    def batches(self, length: int, rows: int, seed: Sequence[int], first: int = 0) -> Iterator[Ids]:
        """Batches of one pass from number `first` on, (rows, length + 1): inputs and the id that follows each.

        A block begins with the last id of the previous one, so that every id but the first is a label once. The seed
        decides the order of documents and of blocks; ids that fill no batch are left out.
        """
        random = np.random.default_rng(seed)
        ends = np.append(self.starts[1:], len(self.ids))
        joined = np.concatenate([self.ids[self.starts[n] : ends[n]] for n in random.permutation(len(ends))])
        blocks = _blocks(joined, length)
        order = random.permutation(len(blocks))
        for step in range(first, self.steps(length, rows)):
            yield blocks[order[step * rows : (step + 1) * rows]]

    def in_order(self, length: int, rows: int) -> Iterator[Ids]:
        """All documents in their order, (rows, length + 1) each, the last batch filled up with `PADDING`."""
        missing = -(len(self.ids) - 1) % (length * rows)
        blocks = _blocks(np.pad(self.ids.astype(np.int64), (0, missing), constant_values=PADDING), length)
        for start in range(0, len(blocks), rows):
            yield blocks[start : start + rows]

    def sizes(self) -> dict[str, int]:
        """The number of documents, tokens and characters."""
        return {"documents": len(self.starts), "tokens": len(self.ids), "characters": self.characters}

    def save(self, path: Path) -> None:
        """Write an .npz file."""
        np.savez(path, ids=self.ids, starts=self.starts, characters=self.characters)

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read an .npz file. Raises RunError."""
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return cls(arrays["ids"], arrays["starts"], int(arrays["characters"]))
        except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
            raise RunError(
                "{file}: the encoded texts can't be read ({error}).", "Pretrain again.", file=path, error=error
            ) from error


def _blocks(ids: Ids, length: int) -> Ids:
    """(blocks, length + 1), a view."""
    return np.lib.stride_tricks.sliding_window_view(ids, length + 1)[::length]


def encode_documents(documents: Sequence[Document], prompt: Prompt) -> Corpus:
    """Tokenize documents: BOS before a plain text and EOS after each of its parts; dialogues in the chat template."""
    texts = [text for document in documents for text in document.texts]
    batches = (texts[start : start + _TOKENIZE_BATCH] for start in range(0, len(texts), _TOKENIZE_BATCH))
    flags = {"add_special_tokens": False, "split_special_tokens": True}  # as in tokenizer.encode
    encoded = (ids for batch in batches for ids in prompt.tokenizer(batch, **flags)["input_ids"])
    dtype = np.uint16 if len(prompt.tokenizer) <= 1 << 16 else np.uint32
    parts = [np.array(_render(document, encoded, prompt), dtype=dtype) for document in documents]
    starts = np.cumsum([0, *map(len, parts)])[:-1]
    return Corpus(np.concatenate(parts), starts, sum(document.characters for document in documents))


def _render(document: Document, encoded: Iterator[list[int]], prompt: Prompt) -> list[int]:
    texts = [next(encoded) for _ in document.texts]
    if document.dialogue:
        return prompt.dialogue(texts)
    eos, bos = prompt.template.eos_id, prompt.tokenizer.bos_token_id
    return [eos if bos is None else bos, *(id for text in texts for id in (*text, eos))]


_BAR = "{desc} {percentage:3.0f}% |{bar}| {elapsed} {postfix}"
Loss = Callable[[Tensor], Tensor]


@dataclass
class PretrainState(Progress):
    """The position of a pretraining."""

    tokens: int = 0
    bits_per_character: float | None = None
    """On the dev documents, when last evaluated."""
    best_bits: float | None = None
    best_step: int = 0


@dataclass
class Pretrainer(TrainingLoop):
    """Pretraining from its first step or its newest checkpoint to the end of its budget."""

    model: PreTrainedModel
    options: PretrainOptions
    machine: Machine
    folder: Path
    progress: PretrainState = field(default_factory=PretrainState)
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        # Precision is handled in next_token_loss, which is compiled as a whole.
        self.accelerator = self._new_accelerator(self.model, mixed_precision="no")

    def run(self, train: Corpus, dev: Corpus | None) -> PretrainState:
        """Train until the budget is spent; the model is left with its last weights, rounded to float16."""
        set_seed(self.options.seed)
        self.model = self.accelerator.prepare(self.model)
        self.optimizers = [self.accelerator.prepare(each) for each in optimizers(self.model, self.options)]
        self.loss = next_token_loss(self.model, self.machine, compiled=self.options.torch_compile)
        self.steps_per_pass = steps_per_pass(train, self.options)
        self._resume()
        self._train(train, dev)
        self.model.half().float()
        self._evaluate_dev(dev)
        return self.progress

    def _train(self, train: Corpus, dev: Corpus | None) -> None:
        batches = self._batches(train)
        with tqdm(total=100, desc=translate("pretraining"), bar_format=_BAR) as bar:
            while self.fraction_done < 1:
                loss, norm = self._step(next(batches))
                bar.n = round(100 * self.fraction_done)
                tokens = self.progress.tokens
                bar.set_postfix_str(translate("{tokens:,} tokens, loss {loss:.2f}", tokens=tokens, loss=loss))
                self._end_step(loss, norm, dev)
        self._save_checkpoint(self.options.save_total_limit)

    @property
    def fraction_done(self) -> float:
        """By time, steps or passes, whichever is furthest; at most 1."""
        options, step = self.options, self.progress.step
        steps = min(options.max_steps or math.inf, options.num_train_epochs * self.steps_per_pass)
        return min(1.0, max(step / steps, self._elapsed() / options.seconds))

    def _batches(self, train: Corpus) -> Iterator[Tensor]:
        """The batch of each step from the current one on, endlessly; every pass has an order of its own."""
        rows, length = self.options.per_device_train_batch_size, self.options.block_size
        while True:
            passes, first = divmod(self.progress.step, self.steps_per_pass)
            for blocks in train.batches(length, rows, (self.options.seed, passes), first):
                yield _tensor(blocks, self.accelerator.device)

    def _step(self, batch: Tensor) -> tuple[float, float]:
        """One update. Returns the mean loss in nats per token and the gradient norm before clipping."""
        self.model.train()
        loss = self.loss(batch)
        norm = self._backward(loss, self.model.parameters(), self.options.max_grad_norm)
        nats = loss.item()
        check_finite(self.progress.step + 1, nats, norm)
        self._apply_gradients(self.optimizers, self.options.rate(self.progress.step, self.fraction_done))
        self.progress.tokens += batch[:, 1:].numel()
        return nats, norm

    def _end_step(self, loss: float, norm: float, dev: Corpus | None) -> None:
        """Log, evaluate and save a checkpoint where this step is due for it."""
        step, options = self.progress.step, self.options
        if step % options.logging_steps == 0:
            self._log("train", loss=loss, grad_norm=norm, learning_rate=options.rate(step, self.fraction_done))
        if step % options.eval_steps == 0:
            self._evaluate_dev(dev)
        if step % options.save_steps == 0:
            self._save_checkpoint(options.save_total_limit)

    def _evaluate_dev(self, dev: Corpus | None) -> None:
        if dev is None:
            return
        options, progress = self.options, self.progress
        total = total_bits(self.model, self.loss, dev, options.per_device_train_batch_size, options.block_size)
        progress.bits_per_character = bits = total / dev.characters
        if progress.best_bits is None or bits < progress.best_bits:
            progress.best_bits, progress.best_step = bits, progress.step
        self._log("dev", bits_per_character=bits)

    def _log(self, event: str, **fields: float) -> None:
        progress, seconds = self.progress, round(self._elapsed(), 1)
        Run(self.folder).note(event, step=progress.step, tokens=progress.tokens, seconds=seconds, **fields)


def steps_per_pass(train: Corpus, options: PretrainOptions) -> int:
    """The number of steps of one pass over the texts. Raises SettingsError when they are too short for one."""
    rows, length = options.per_device_train_batch_size, options.block_size
    if steps := train.steps(length, rows):
        return steps
    raise SettingsError(
        "The texts have {tokens:,} tokens, and one step takes {needed:,}.",
        "Give more texts, or a smaller --per-device-train-batch-size or --block-size.",
        tokens=len(train.ids),
        needed=rows * length + 1,
    )


def optimizers(model: nn.Module, options: PretrainOptions) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or Muon for hidden matrices and AdamW for embedding, head and vectors.

    Muon (Jordan et al., 2024) orthogonalizes the update of a matrix; its rate is scaled to AdamW's as in Liu et al.
    (2025, arXiv:2502.16982), so that one rate and one weight decay serve both.
    """
    hidden, rest = list[Tensor](), list[Tensor]()
    for name, weight in model.named_parameters():
        (hidden if weight.ndim == 2 and not re.search(r"embed|lm_head", name) else rest).append(weight)
    rate, decay = options.learning_rate, options.weight_decay
    adamw = torch.optim.AdamW([{"params": rest, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.95))
    if options.optim == "adamw_torch":
        adamw.add_param_group({"params": hidden, "weight_decay": decay})
        return [adamw]
    return [adamw, torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")]


def next_token_loss(model: nn.Module, machine: Machine, *, compiled: bool) -> Loss:
    """A function from blocks, (rows, length + 1), to the mean −ln p of all ids but the first of a row and padding."""

    def loss(blocks: Tensor) -> Tensor:
        with machine.autocast():
            logits = model(input_ids=blocks[:, :-1].clamp(min=0), use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1).float(), blocks[:, 1:].flatten(), ignore_index=PADDING)

    return torch.compile(loss) if compiled else loss


@torch.no_grad()
def total_bits(model: nn.Module, loss: Loss, corpus: Corpus, rows: int, length: int) -> float:
    """−log2 p of every id of a corpus but the first, each given the earlier ids of its block."""
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
    """A tokenizer trained on the training texts."""
    texts = [text for document in train for text in document.texts]
    return train_tokenizer(texts, vocab_size, character_coverage=_COVERAGE)


def write_corpora(
    run: Run, tokenizer: PreTrainedTokenizerFast, train: Sequence[Document], dev: Sequence[Document]
) -> Json:
    """Tokenize both splits and write them with the tokenizer to the run's `data/`. Returns their sizes."""
    prompt = build_prompt(tokenizer, 0)
    sizes: Json = {"vocabulary": len(prompt.tokenizer)}
    with new_folder(run.folder / "data") as temporary:
        save_tokenizer(prompt.tokenizer, temporary)
        for split, documents in {"train": train, "dev": dev}.items():
            if documents:
                corpus = encode_documents(documents, prompt)
                corpus.save(temporary / f"{split}.npz")
                sizes[split] = corpus.sizes()
    return sizes


def pretrain_base(run: Run) -> PretrainState:
    """Pretrain by the run's config, from its newest checkpoint on, and write `model/`.

    Raises RunError, BaseError, SettingsError and StorageError.
    """
    config = run.document("config.json")
    budget = config["schedule"]["budget"]
    options = PretrainOptions(**{**config["schedule"], "budget": budget and timedelta(seconds=budget)})
    train = Corpus.load(run.folder / "data" / "train.npz")
    dev = Corpus.load(run.folder / "data" / "dev.npz") if "dev" in config["sizes"] else None
    steps_per_pass(train, options)  # too short texts fail here, before anything slow
    if options.torch_compile:
        require_compiler()
    tokenizer = load_tokenizer(run.folder / "data")
    model = _initial_model(run, config, tokenizer, options)
    machine = _recorded_machine(run, options, model.config.get_text_config().hidden_size)
    pretrainer = Pretrainer(model, options, machine, run.folder)
    progress = pretrainer.run(train, dev)
    _save(run, pretrainer.model, tokenizer, progress)
    return progress


def _recorded_machine(run: Run, options: PretrainOptions, width: int) -> Machine:
    """The machine of the run's first start, else this one: a resumed run must change neither device nor precision."""
    if not run.state:
        run.update_state(machine=asdict(choose_machine(options.device, options.precision, width)))
    machine = Machine(**run.state["machine"])
    choose_device(machine.device)
    return machine


def _initial_model(
    run: Run, config: Json, tokenizer: PreTrainedTokenizerFast, options: PretrainOptions
) -> PreTrainedModel:
    """The model of the run's base, or one of the run's shape with random weights."""
    if recorded := config["base"]:
        return load_recorded_base(run, recorded).model
    shape = ArchitectureOptions(**config["shape"])
    model = random_init_model(tokenizer, options.seed, shape, max_positions=options.block_size)
    self_test(str(run.folder), model, tokenizer)
    return model


def _save(run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, progress: PretrainState) -> None:
    """Write the base in float16, as bases are published, with its tokenizer and a model card."""
    files = ", ".join(Path(text["file"]).name for text in run.document("config.json")["texts"])
    card = _CARD.format(name=run.folder.name, files=files, tokens=progress.tokens, minutes=progress.seconds / 60)
    with new_folder(run.folder / "model") as temporary:
        model.half().save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
        write_text(temporary / "README.md", card)
