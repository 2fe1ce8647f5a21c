"""Tokenizers: loading without garbling Korean, saving for plain `AutoTokenizer`, training a BPE one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from daedap.errors import BaseError, first_line
from daedap.korean.text import compatibility_jamo, nfc

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast  # takes seconds to import

# Old tokenizer files do not say which tokens are special; these are the names that Korean GPT models use.
_SPECIAL_TOKENS = {
    "bos_token": ("</s>", "<s>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|endoftext|>"),
    "unk_token": ("<unk>",),
    "pad_token": ("<pad>", "<|pad|>"),
    "mask_token": ("<mask>",),
}
_SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"]
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|>{{ message.content }}"
    "{% else %}<|assistant|>{{ message.content }}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read a tokenizer from a folder in the hub's layout.

    Without a `tokenizer_config.json` (skt/kogpt2-base-v2), `AutoTokenizer` guesses a class from the model type and
    replaces the file's own pre-tokenizer: transformers 5 then garbles every Hangul character. `tokenizer.json` is
    loaded directly instead. Raises BaseError when there is none or it can't be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    try:
        if (folder / "tokenizer_config.json").exists() or not file.exists():
            return cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
        known = Tokenizer.from_file(str(file)).token_to_id
        named = {role: [name for name in names if known(name) is not None] for role, names in _SPECIAL_TOKENS.items()}
        tokens = {role: names[0] for role, names in named.items() if names}
        return PreTrainedTokenizerFast(tokenizer_file=str(file), **tokens)
    except Exception as error:  # the libraries raise OSError, ValueError, KeyError and bare Exception here
        raise BaseError(
            "{folder}: its tokenizer can't be loaded ({error}).",
            "The folder must hold the model's tokenizer files (tokenizer.json, tokenizer_config.json).",
            folder=folder,
            error=first_line(error),
        ) from error


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer with a `tokenizer_class` that transformers 4 knows, too."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a text without special tokens; a typed `</s>` or `<usr>` is split like any other text."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Text of token ids, none of them a control token; unknown tokens are dropped.

    KoGPT2's NFKC normalizer turns ㅋㅋ and ㅠㅠ into conjoining jamo, which are mapped back.
    """
    known = [id for id in ids if id != tokenizer.unk_token_id]
    text = tokenizer.decode(known, clean_up_tokenization_spaces=False)
    return compatibility_jamo(str(text)).strip()


@dataclass(frozen=True)
class PlainTokenizer:
    """What `Prompt` and `DecodingRules` use of transformers' tokenizers, by the package tokenizers alone."""

    backend: Tokenizer
    unk_token_id: int | None
    pad_token_id: int | None
    all_special_ids: tuple[int, ...]

    def __call__(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> dict[str, list[int]]:
        """As transformers': `input_ids`."""
        self.backend.encode_special_tokens = split_special_tokens
        return {"input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: Sequence[int], *, clean_up_tokenization_spaces: bool) -> str:
        """As transformers'."""
        assert not clean_up_tokenization_spaces, "no Korean tokenizer needs that"
        return str(self.backend.decode(list(ids), skip_special_tokens=False))

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id → token."""
        return dict(self.backend.get_added_tokens_decoder())


def prefix_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids that the tokenizer prepends to a text, by a flag or by its post-processor: BOS or nothing in most cases.

    The base saw them before every pretraining text. Ids that are appended do not count.
    """
    text = "가"
    complete, bare = (tokenizer(text, add_special_tokens=added)["input_ids"] for added in (True, False))
    starts = (start for start in range(len(complete)) if complete[start : start + len(bare)] == bare)
    return list(complete[: next(starts, 0)])


def find_control_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids that encoding a text never yields: roles, EOS, padding.

    The `special` flag of a token can't tell: KoGPT2 marks 😊 special, and Gemma's newlines are added tokens.
    """
    added = tokenizer.added_tokens_decoder.items()
    unreachable = {id for id, token in added if id not in encode(tokenizer, token.content)}
    return unreachable | {*tokenizer.all_special_ids}


def train_tokenizer(
    texts: Sequence[str], vocabulary: int, *, character_coverage: float = 1.0
) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer with byte fallback and a token for each chat role.

    `vocabulary`: the maximum size, of control tokens, 256 bytes, characters and merges. `character_coverage`: as in
    SentencePiece, the fraction of all characters in `texts` that get tokens of their own; bytes spell the rest.
    """
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = _alphabet(texts, (vocabulary - 256) // 2, character_coverage)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 256,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=_SPECIALS,
        min_frequency=2,
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    backend = Tokenizer(_with_bytes(json.loads(trained.to_str())["model"]))
    backend.normalizer, backend.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in _SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=_CHAT_TEMPLATE,
    )


def _alphabet(texts: Sequence[str], most: int, coverage: float) -> list[str]:
    """The most frequent characters, at most `most`, ties by code point: BpeTrainer breaks ties at random."""
    counts = Counter(char for text in texts for char in nfc(text) if char != " ")
    frequent = sorted(counts, key=lambda char: (-counts[char], char))
    covered = np.cumsum([counts[char] for char in frequent])
    enough = int(np.searchsorted(covered, coverage * covered[-1])) + 1 if frequent else 0
    return ["▁", *frequent[: min(enough, most - 1)]]


def _with_bytes(model: dict[str, Any]) -> models.BPE:
    """The same BPE with a token for each byte after the control tokens, as in Llama.

    Byte tokens are ordinary ones: as special tokens of the trainer, a typed "<0x41>" would be encoded as one.
    """
    names = [*_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    names += sorted((name for name in model["vocab"] if name not in _SPECIALS), key=model["vocab"].__getitem__)
    vocabulary = {name: id for id, name in enumerate(names)}
    merges = [tuple(merge) for merge in model["merges"]]
    return models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
