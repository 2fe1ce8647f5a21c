"""The pretraining stage: texts → a base, all read from and written to one folder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from daedap.data.texts import Document
from daedap.files import new_folder, write_text
from daedap.lm.base import same_base, self_test
from daedap.lm.corpus import Corpus, encode_documents
from daedap.lm.device import need_compiler, settle
from daedap.lm.fresh import fresh_model
from daedap.lm.pretraining import Pretraining, Reading, steps_per_pass
from daedap.lm.prompt import prompt_for
from daedap.lm.recipe import Schedule, Shape
from daedap.lm.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from daedap.runs import Json, Run

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
    prompt = prompt_for(tokenizer, 0)
    sizes: Json = {"vocabulary": len(prompt.tokenizer)}
    with new_folder(run.folder / "data") as temporary:
        save_tokenizer(prompt.tokenizer, temporary)
        for side, documents in {"train": train, "dev": dev}.items():
            if documents:
                corpus = encode_documents(documents, prompt)
                corpus.save(temporary / f"{side}.npz")
                sizes[side] = corpus.sizes()
    return sizes


def make_base(run: Run) -> Reading:
    """Pretrain as the run's settings say, from its newest checkpoint on, and write `model/`."""
    schedule = _schedule(run)
    train = Corpus.load(run.folder / "data" / "train.npz")
    dev = Corpus.load(run.folder / "data" / "dev.npz") if "dev" in run.settings["sizes"] else None
    steps_per_pass(train, schedule)  # refuses what is too short before anything takes time
    if schedule.torch_compile:
        need_compiler()
    tokenizer = load_tokenizer(run.folder / "data")
    model = _first_weights(run, tokenizer, schedule)
    machine = settle(run, schedule.device, schedule.precision, model.config.get_text_config().hidden_size)
    pretraining = Pretraining(model, schedule, machine, run.folder)
    progress = pretraining.run(train, dev)
    _save(run, pretraining.model, tokenizer, progress)
    return progress


def _first_weights(run: Run, tokenizer: PreTrainedTokenizerFast, schedule: Schedule) -> PreTrainedModel:
    """The base's, or random ones of the shape that was told."""
    if recorded := run.settings["base"]:
        return same_base(run, recorded).model
    model = fresh_model(tokenizer, schedule.seed, Shape(**run.settings["shape"]), places=schedule.block_size)
    self_test(str(run.folder), model, tokenizer)
    return model


def _schedule(run: Run) -> Schedule:
    told = run.settings["schedule"]
    return Schedule(**{**told, "budget": told["budget"] and timedelta(seconds=told["budget"])})


def _save(run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, progress: Reading) -> None:
    """The base in half precision, as bases are published, with its tokenizer and a card."""
    files = ", ".join(Path(text["file"]).name for text in run.settings["texts"])
    card = _CARD.format(name=run.folder.name, files=files, tokens=progress.tokens, minutes=progress.seconds / 60)
    with new_folder(run.folder / "model") as temporary:
        model.half().save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
        write_text(temporary / "README.md", card)
