"""Tokenizers: loaded so that Korean survives, saved so that plain `AutoTokenizer` loads them right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from daedap.errors import BaseError
from daedap.korean.text import compatibility_jamo, nfc

# Old files name their special tokens nowhere; these are the names that Korean GPT files use.
_USUAL_NAMES = {
    "bos_token": ("</s>", "<s>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|endoftext|>"),
    "unk_token": ("<unk>",),
    "pad_token": ("<pad>", "<|pad|>"),
    "mask_token": ("<mask>",),
}
_SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"]
_OUR_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|>{{ message.content }}"
    "{% else %}<|assistant|>{{ message.content }}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read a tokenizer from a folder in the hub's layout.

    Without a `tokenizer_config.json` (skt/kogpt2-base-v2), `AutoTokenizer` guesses a class from the model type and
    replaces the file's own pre-tokenizer: transformers 5 then garbles every Hangul character. So the file is taken
    as it is. Raises BaseError when there is none or it can't be read.
    """
    try:
        if (folder / "tokenizer_config.json").exists() or not (folder / "tokenizer.json").exists():
            return cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
        return _from_file(folder / "tokenizer.json")
    except Exception as error:  # the libraries raise OSError, ValueError, KeyError and bare Exception here
        raise BaseError(
            "{folder}: its tokenizer can't be loaded ({error}).",
            "The folder must hold the model's tokenizer files (tokenizer.json, tokenizer_config.json).",
            folder=folder,
            error=str(error).splitlines()[0] if str(error) else type(error).__name__,
        ) from error


def _from_file(path: Path) -> PreTrainedTokenizerFast:
    known = Tokenizer.from_file(str(path))
    names = {
        role: next((name for name in usual if known.token_to_id(name) is not None), None)
        for role, usual in _USUAL_NAMES.items()
    }
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **{role: name for role, name in names.items() if name})


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer; `tokenizer_class` is the name that every version of transformers knows."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """A user's text as ids: what looks like a control token (`</s>`, `<usr>`) stays plain text."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Ids of a text, no control token among them, as text, with ㅋㅋ and ㅠㅠ as people type them."""
    known = [number for number in ids if number != tokenizer.unk_token_id]
    text = tokenizer.decode(known, clean_up_tokenization_spaces=False)
    return compatibility_jamo(str(text)).strip()


def prefix_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids that the tokenizer puts before a text by itself, by a flag or by its post-processor; most often BOS or none.

    A base has seen them at the beginning of every text it learned. What is added at the end is no part of them.
    """
    text = "가"
    whole, bare = (tokenizer(text, add_special_tokens=added)["input_ids"] for added in (True, False))
    starts = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
    return list(whole[: next(starts, 0)])


def find_control_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids that no text becomes when it is encoded: roles, end, padding.

    The file's own marks can't tell: KoGPT2 marks 😊 special, and Gemma keeps newlines among its added tokens.
    """
    added = tokenizer.added_tokens_decoder.items()
    return {number for number, token in added if number not in encode(tokenizer, token.content)} | {
        *tokenizer.all_special_ids
    }


def train_tokenizer(
    texts: Sequence[str], vocabulary: int, *, character_coverage: float = 1.0
) -> PreTrainedTokenizerFast:
    """A BPE tokenizer for Korean with byte fallback, so that no text is ever lost, and one token for each role.

    `vocabulary` is the most it may hold: control tokens, 256 bytes, then characters and merges learned from `texts`.
    `character_coverage` is SentencePiece's: the share of letters that have tokens of their own; bytes spell the rest.
    """
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = normalizers.NFC()
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = _alphabet(texts, (vocabulary - 256) // 2, character_coverage)  # rarer characters are written in bytes
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 256,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=_SPECIALS,
        min_frequency=2,
        show_progress=False,
    )
    learned.train_from_iterator(texts, trainer)
    whole = Tokenizer(_with_bytes(json.loads(learned.to_str())["model"]))
    whole.normalizer, whole.pre_tokenizer = learned.normalizer, learned.pre_tokenizer
    whole.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    whole.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in _SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=_OUR_TEMPLATE,
    )


def _alphabet(texts: Sequence[str], most: int, coverage: float) -> list[str]:
    """The most frequent characters. The trainer's own choice among equally frequent ones changes from run to run."""
    counts = Counter(char for text in texts for char in nfc(text) if char != " ")
    frequent = sorted(counts, key=lambda char: (-counts[char], char))
    covered = np.cumsum([counts[char] for char in frequent])
    enough = int(np.searchsorted(covered, coverage * covered[-1])) + 1 if frequent else 0
    return ["▁", *frequent[: min(enough, most - 1)]]


def _with_bytes(model: dict[str, Any]) -> models.BPE:
    """The same BPE with a token for each byte, placed after the control tokens as Llama has them.

    They are ordinary tokens: had they been given to the trainer as special ones, a typed "<0x41>" would be one.
    """
    names = [*_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    names += sorted((name for name in model["vocab"] if name not in _SPECIALS), key=model["vocab"].__getitem__)
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [tuple(merge) for merge in model["merges"]]
    return models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
