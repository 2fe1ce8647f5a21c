"""The language model as a GGUF file for llama.cpp and Ollama: Llama's layout with a BPE tokenizer that spells in bytes.

llama.cpp knows no BPE over Metaspace, but joins pieces by score: with minus the merge's rank as the score, it makes the
same tokens. Its converter gives all tokens one score, and the tokens differ: docs/export.md. What llama.cpp does
otherwise is mended in the chat template: a text that begins with a space gets no second one, and control tokens that a
user types are broken up, since llama.cpp reads them anywhere in a prompt.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from daedap.data.split import SPLITS, read_rows
from daedap.errors import ExportError
from daedap.export.common import (
    Difference,
    ModelAnswer,
    Verification,
    compare,
    greedy_answers,
    pick_questions,
    trained_answers,
    write_card,
)
from daedap.files import write_text
from daedap.i18n import translate
from daedap.korean.text import nfc
from daedap.runs import Run
from daedap.types import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from daedap.model.decoding import DecodingRules
    from daedap.model.gguf import GgufReader
    from daedap.model.language_model import TorchModel

FILE = "model.gguf"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in GGUF files."""
SPACE = "▁"
USAGE = """\
```
ollama create my-model -f Modelfile && ollama run my-model
llama-cli -m model.gguf --jinja -cnv -p ""
```"""
_TEXTS = 6_000
"""Questions and answers of the run whose tokens are compared."""
_HARD_TEXTS = (
    " 앞에 빈칸",
    "  빈칸 둘, 뒤에도 ",
    "줄\n바꿈\t탭",
    "😊 이모지 👩‍👩‍👧 漢字 Ωß",
    "<0x41> ▁밑줄▁",
    "ㅋㅋㅋ ㅠㅠ ㅇㅋ",
    "ABC abc 0123456789 !@#$%^&*()",
    "뷁 쀍 똠방각하",
)
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""Tokens that spell what is no token."""


def export_gguf(run: Run, folder: Path, count: int) -> Verification:
    """Write a run's model, and compare tokens of the run's texts and the answers to `count` questions."""
    from daedap.model.decoding import DecodingRules
    from daedap.model.language_model import open_trained

    model = open_trained(run)
    write(model, folder, name=f"daedap run {run.number}", licence=str(run.trained["base"]["licence"]))
    write_card(run, "gguf", USAGE, folder)
    rules = DecodingRules(model.prompt, model.max_new_tokens)
    questions = pick_questions(run, rules, count)
    answers = compare(questions, trained_answers(model, rules, questions), exported_answers(folder, rules, questions))
    pairs = [pair for name in SPLITS for pair in read_rows(run.folder, name)]
    texts = [text for pair in pairs for text in (pair.question, pair.answer)][:_TEXTS]
    different = token_differences(folder, rules, texts)
    return replace(answers, texts=len(texts) + len(_HARD_TEXTS), token_differences=tuple(different))


def write(model: TorchModel, folder: Path, *, name: str, licence: str) -> None:
    """Write model.gguf and Modelfile. Raises ExportError for a model that would not be the same in llama.cpp."""
    from gguf import GGUFWriter, LlamaFileType

    prompt, config = model.prompt, model.model.config
    _check_tokenizer(prompt.tokenizer)
    _check_model(config)
    roles = _roles(model)
    folder.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(folder / FILE, "llama")
    writer.add_name(name)
    writer.add_license(licence)
    writer.add_file_type(LlamaFileType.ALL_F32)
    _add_shape(writer, config)
    _add_tokenizer(writer, prompt.tokenizer, config.vocab_size)
    writer.add_eos_token_id(prompt.template.eos_id)
    writer.add_chat_template(chat_template(*roles, _control_tokens(prompt.tokenizer)))
    for tensor, values in _tensors(model):
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_text(folder / "Modelfile", _modelfile(*roles, context=prompt.max_length, tokens=model.max_new_tokens))


def chat_template(user: str, assistant: str, end: str, controls: Sequence[str]) -> str:
    """A Jinja template of these role tokens in which no message can hold a control token.

    A control token in a message gets a space behind its first character; the first space of a message is left out,
    since llama.cpp puts one there anyway. System messages are left out, as the model has learned none.
    """
    safe = f" | replace({SPACE!r}, ' ')" + "".join(
        f" | replace({token!r}, {token[0] + ' ' + token[1:]!r})" for token in controls
    )
    return (
        "{% for message in messages %}"
        f"{{% set text = message.content{safe} %}}"
        "{% if text.startswith(' ') %}{% set text = text[1:] %}{% endif %}"
        f"{{% if message.role == 'user' %}}{user}{{{{ text }}}}"
        f"{{% elif message.role == 'assistant' %}}{assistant}{{{{ text }}}}{end}{{% endif %}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


def exported_answers(folder: Path, rules: DecodingRules, questions: Sequence[str]) -> list[ModelAnswer]:
    """Answers by the weights, the tokens and the chat template that the written file holds."""
    from daedap.model.gguf import GgufReader, dequantized_model

    file = GgufReader.open(folder / FILE)
    return greedy_answers(dequantized_model(file), rules, prompt_ids(file, questions))


def token_differences(folder: Path, rules: DecodingRules, texts: Sequence[str]) -> list[Difference]:
    """Texts that llama.cpp would tokenize differently; a typed control token must not become one.

    llama.cpp does not compose Hangul (NFC): texts are compared as they are after it.
    """
    from daedap.model.gguf import GgufReader

    file, controls = GgufReader.open(folder / FILE), _control_tokens(rules.prompt.tokenizer)
    plain = [nfc(text) for text in (*texts, *_HARD_TEXTS) if text and not any(token in text for token in controls)]
    typed = [f"{token} 라고 {token}{token}" for token in controls]
    expected = [rules.prompt.question(Pair(text, ""), 10**9) for text in plain]
    compared = zip(plain, expected, prompt_ids(file, plain), strict=True)
    differences = [Difference(text, str(ours), str(theirs)) for text, ours, theirs in compared if ours != theirs]
    empty, control_ids = prompt_ids(file, ["가"])[0], rules.prompt.control_ids
    for text, ids in zip(typed, prompt_ids(file, typed), strict=True):
        if sum(id in control_ids for id in ids) != sum(id in control_ids for id in empty):
            differences.append(Difference(text, translate("no control token"), str(ids)))
    return differences


def prompt_ids(file: GgufReader, questions: Sequence[str]) -> list[list[int]]:
    """What llama.cpp reads for each question: its chat template rendered, then tokenized."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    data = file.metadata
    names = ("tokens", "scores", "token_type")
    vocabulary = SpmVocabulary(*(data[f"tokenizer.ggml.{name}"] for name in names))
    template = ImmutableSandboxedEnvironment().from_string(data["tokenizer.chat_template"])
    chats = ([{"role": "user", "content": question}] for question in questions)
    return [vocabulary.tokenize(template.render(messages=chat, add_generation_prompt=True)) for chat in chats]


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, split = state["model"], state["pre_tokenizer"] or {}
    vocabulary = model.get("vocab", {})
    if model["type"] != "BPE" or not vocabulary.keys() >= _BYTES:
        raise _refusal(
            translate("its tokenizer has no byte tokens, and llama.cpp ends at a character it does not know")
        )
    if (split.get("type"), split.get("prepend_scheme")) != ("Metaspace", "always"):
        raise _refusal(translate("its tokenizer splits words otherwise than llama.cpp can"))
    if (state["normalizer"] or {"type": "NFC"})["type"] != "NFC" or model.get("ignore_merges"):
        raise _refusal(translate("its tokenizer changes texts in a way that llama.cpp can't"))
    merged = ["".join(_parts(merge)) for merge in model["merges"]]
    if len(set(merged)) < len(merged) or any(SPACE in token[1:] for token in vocabulary):
        raise _refusal(translate("its merges can't be told by one score for each token"))


def _check_model(config: Any) -> None:
    rope = config.rope_parameters.get("rope_type") if config.model_type == "llama" else None
    plain = not (getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False))
    if config.model_type != "llama" or rope != "default" or not plain or config.hidden_act != "silu":
        reason = translate(
            "of architectures only plain Llama can be written, and this is {kind}", kind=config.model_type
        )
        raise _refusal(reason)


def _refusal(reason: str) -> ExportError:
    return ExportError(
        "This model can't be written as GGUF so that llama.cpp answers the same ({reason}).",
        "Export it with --to hf, or the whole bot with --to bundle.",
        reason=reason,
    )


def _roles(model: TorchModel) -> tuple[str, str, str]:
    """The tokens before a user's and an assistant's text, and the end token."""
    template, names = model.prompt.template, model.prompt.tokenizer.convert_ids_to_tokens
    user, assistant, end = template.opening, template.assistant, template.eos_id
    if template.past_assistant != assistant or template.user != [end, *user] or {*user, *assistant} & {end}:
        raise _refusal(translate("its chat template has other parts than two role tokens and an end token"))
    return "".join(names(user)), "".join(names(assistant)), str(names(end))


def _control_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values()]


def _add_shape(writer: Any, config: Any) -> None:
    width = config.head_dim or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """Tokens, scores and types; rows of the embedding without a token become unused ones."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ranks = {"".join(_parts(merge)): rank for rank, merge in enumerate(merges, 1)}
    names = cast("list[str | None]", [tokenizer.convert_ids_to_tokens(id) for id in range(rows)])
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}

    def kind(token: str | None) -> int:
        if token is None:
            return UNUSED
        if token in special:
            return UNKNOWN if token == tokenizer.unk_token else CONTROL
        return BYTE if token in _BYTES else NORMAL

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<row {id}>" if name is None else name for id, name in enumerate(names)])
    writer.add_token_scores([float(-ranks.get(name or "", 0)) for name in names])
    writer.add_token_types([kind(name) for name in names])
    for name in ("bos_token_id", "unk_token_id", "pad_token_id"):
        if (id := getattr(tokenizer, name)) is not None:
            getattr(writer, f"add_{name}")(id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)


def _parts(merge: str | list[str]) -> list[str]:
    """A merge as older and newer versions of tokenizers write it."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _tensors(model: TorchModel) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """GGUF's names and values in float32. A head that is the embedding is left out: llama.cpp takes the embedding."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    config = model.model.config
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for ours, tensor in model.model.state_dict().items():
        if ours == "lm_head.weight" and config.tie_word_embeddings:
            continue
        theirs = names.get_name(ours, try_suffixes=(".weight",))
        assert theirs, f"{ours} is no part of a Llama"
        weights: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
        if theirs.endswith(("attn_q.weight", "attn_k.weight")):
            is_query = theirs.endswith("attn_q.weight")
            weights = _permuted(weights, config.num_attention_heads if is_query else config.num_key_value_heads)
        yield theirs, weights


def _permuted(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows in llama.cpp's order: rotary pairs are neighbours there, and half a head apart in transformers."""
    halves = weights.reshape(heads, 2, -1, weights.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))


def _modelfile(user: str, assistant: str, end: str, *, context: int, tokens: int) -> str:
    """For Ollama, whose templates can't break up control tokens that a user types."""
    user_turn = f'{{{{ if eq .Role "user" }}}}{user}{{{{ .Content }}}}'
    assistant_turn = f'{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ .Content }}}}{end}'
    turns = f"{{{{ range .Messages }}}}{user_turn}{assistant_turn}{{{{ end }}}}{{{{ end }}}}"
    return f'''FROM ./{FILE}
TEMPLATE """{turns}{assistant}"""
PARAMETER stop "{end}"
PARAMETER stop "{user}"
PARAMETER num_ctx {context}
PARAMETER num_predict {tokens}
PARAMETER temperature 0
'''


@dataclass(frozen=True)
class SpmVocabulary:
    """llama.cpp's tokenizer for vocabularies of SentencePiece: what a written GGUF file makes of a text.

    After `llm_tokenizer_spm_session` and `llama_vocab::impl::tokenize` of https://github.com/ggml-org/llama.cpp
    (src/llama-vocab.cpp). Control tokens are cut out of the text first, wherever they stand. A space is put before each
    piece between them; then those two neighbours are joined whose joined text is the token with the highest score,
    until no two can be joined. What is no token is spelled in bytes.
    """

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]

    def tokenize(self, text: str) -> list[int]:
        """Ids of a rendered prompt, control tokens included, without BOS."""
        ids: list[int] = []
        for part in self._control_tokens.split(text):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids += self._encode(f" {part}".replace(" ", SPACE))
        return ids

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: id for id, token in enumerate(self.tokens)}

    @cached_property
    def _special(self) -> dict[str, int]:
        """Tokens that are found in a text before anything else."""
        kinds = (UNKNOWN, CONTROL, USER_DEFINED)
        return {token: id for token, id in self._ids.items() if self.types[id] in kinds}

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        longest_first = sorted(self._special, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def _encode(self, text: str) -> Iterator[int]:
        for piece in self._merged(text):
            if piece in self._ids:
                yield self._ids[piece]
            else:
                yield from (self._ids[f"<0x{byte:02X}>"] for byte in piece.encode())

    def _merged(self, text: str) -> list[str]:
        """The pieces that are left when no two neighbours form a token."""
        pieces, before, after = list(text), list(range(-1, len(text) - 1)), list(range(1, len(text) + 1))
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right < len(pieces) and (id := self._ids.get(pieces[left] + pieces[right])) is not None:
                heapq.heappush(queue, (-self.scores[id], left, right, len(pieces[left]) + len(pieces[right])))

        for left in range(len(pieces) - 1):
            offer(left, left + 1)
        while queue:
            _, left, right, length = heapq.heappop(queue)
            if not pieces[left] or not pieces[right] or len(pieces[left]) + len(pieces[right]) != length:
                continue  # one of them was joined with another neighbour meanwhile
            pieces[left], pieces[right] = pieces[left] + pieces[right], ""
            after[left] = after[right]
            if after[right] < len(pieces):
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [piece for piece in pieces if piece]
