"""Rendering of conversations as token ids, and which of them are labels.

Training, scoring and generation all render through `Prompt`, so they can't disagree. Control tokens come from the
tokenizer's chat template; users' texts are encoded separately, so they never become control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from daedap.errors import BaseError, DataError
from daedap.model.tokenizer import encode, find_control_ids, prefix_ids
from daedap.types import Message, Pair, Role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast  # takes seconds to import

KOGPT2_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<usr>{{ message.content }}{% else %}<sys>{{ message.content }}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<sys>{% endif %}"
)
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}질문:\n{{ message.content }} "
    "{% else %}답변:\n{{ message.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}답변:\n{% endif %}"
)
"""A line break before each text and a space after it: byte-level tokenizers split there, too, when they encode the
rendered string. (Untuned gemma-3-270m: 3.6 nats per answer token; 4.3 with a space before the text, which elsewhere is
part of the next word's token.)"""
_STRFTIME_NOW = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_FIXED_DATE = date(2024, 7, 26)
"""Replaces today's date in chat templates, which would change the prompt every day. Llama 3.2's template falls back to
this date where `strftime_now` is missing."""
_PLACEHOLDERS = [f"MARK{n}MARK" for n in range(4)]
_LENGTH_MULTIPLE = 4
"""Batches are padded to multiples of this length. oneDNN builds kernels for every new shape; with many shapes that
takes twice as long as the training step itself: bench/RESULTS.md, "Few shapes"."""
_SENTENCE_OR_WORD = re.compile(r".*[.!?。]\s|.*\s", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenized conversation. `ids[answer_start:]`, the answer and its EOS token, are the labels."""

    ids: list[int]
    answer_start: int

    @property
    def n_labels(self) -> int:
        """The number of tokens that the loss counts."""
        return len(self.ids) - self.answer_start


@dataclass(frozen=True, slots=True)
class Template:
    """The control ids between the texts of a conversation, cut out of the tokenizer's chat template.

    Sequence: opening Q past_assistant A user Q … assistant A eos_id. Some templates (Qwen3) render the last answer
    differently from earlier ones, hence `past_assistant`.
    """

    opening: list[int]
    past_assistant: list[int]
    user: list[int]
    assistant: list[int]
    eos_id: int


@dataclass(frozen=True)
class Prompt:
    """Renders conversations for one tokenizer as at most `max_length` ids."""

    tokenizer: PreTrainedTokenizerFast
    template: Template
    max_length: int

    @cached_property
    def control_ids(self) -> set[int]:
        """Ids that only the template yields, never a text."""
        return find_control_ids(self.tokenizer)

    @property
    def pad_id(self) -> int:
        """The padding id: EOS where the tokenizer has none."""
        pad = self.tokenizer.pad_token_id
        return self.template.eos_id if pad is None else int(pad)

    def example(self, pair: Pair, *, truncate: bool = True) -> Example:
        """Prompt and answer as ids, truncated to `max_length`: the oldest turns first, then the question's beginning.

        Raises DataError when the answer leaves no room for the template, or without `truncate` for the question.
        """
        answer = [*encode(self.tokenizer, pair.answer), self.template.eos_id]
        question = self.question(pair, self.max_length - len(answer), truncate=truncate)
        return Example([*question, *answer], len(question))

    def fitting_examples(self, pairs: Iterable[Pair]) -> list[Example]:
        """The examples of the pairs that `fits` accepts, each tokenized once."""
        examples = []
        for pair in pairs:
            with suppress(DataError):
                examples.append(self.example(pair, truncate=False))
        return examples

    def shortened(self, pair: Pair) -> Pair:
        """The pair without its history and as far as it fits, to the end of a sentence or word: its beginning."""
        pair = replace(pair, history=())
        while pair.question + pair.answer and not self.fits(pair):
            if len(pair.answer) >= len(pair.question):
                pair = replace(pair, answer=_beginning(pair.answer))
            else:
                pair = replace(pair, question=_beginning(pair.question))
        return pair

    def fits(self, pair: Pair) -> bool:
        """Whether question, answer and EOS fit into `max_length` without truncation; history is not counted."""
        parts = [self.template.opening, self.template.assistant, [self.template.eos_id]]
        texts = [encode(self.tokenizer, text) for text in (pair.question, pair.answer)]
        return sum(map(len, parts + texts)) <= self.max_length

    def question(self, pair: Pair, max_ids: int | None = None, *, truncate: bool = False) -> list[int]:
        """The prompt: all ids before the answer, at most `max_ids` (default `max_length`), oldest turns dropped first.

        Raises DataError when the question alone is too long; with `truncate` its beginning is cut instead.
        """
        max_ids = self.max_length if max_ids is None else max_ids
        for oldest in range(len(pair.history) + 1):
            ids = self._render(_alternating((*pair.history[oldest:], Message("user", pair.question))))
            if len(ids) <= max_ids:
                return ids
        opening, controls = len(self.template.opening), len(self.template.opening) + len(self.template.assistant)
        if truncate and max_ids >= controls:
            return ids[:opening] + ids[opening + len(ids) - max_ids :]
        raise DataError(
            "The question is {tokens} tokens long; the model takes {room}.",
            "Shorten it, or train with a larger --max-length.",
            tokens=len(ids),
            room=max_ids,
        )

    def dialogue(self, turns: Sequence[Sequence[int]]) -> list[int]:
        """Encoded turns, user and assistant alternating, as one dialogue with EOS: for pretraining."""
        template = self.template
        separators = [template.past_assistant, template.user] * (len(turns) // 2)
        separators[-2:] = [template.assistant, [template.eos_id]]
        return [*template.opening, *(id for turn, ids in zip(turns, separators, strict=True) for id in (*turn, *ids))]

    def _render(self, turns: Sequence[Message]) -> list[int]:
        """`turns` alternate, beginning and ending with the user."""
        ids = list(self.template.opening)
        for turn in turns[:-1]:
            ids += encode(self.tokenizer, turn.content)
            ids += self.template.past_assistant if turn.role == "user" else self.template.user
        return ids + encode(self.tokenizer, turns[-1].content) + self.template.assistant


def _beginning(text: str) -> str:
    """About the first three quarters of a text: up to the last sentence or word that ends there."""
    cut = text[: len(text) * 3 // 4]
    end = _SENTENCE_OR_WORD.match(cut)
    return end[0].strip() if end and end[0].strip() else cut


def round_up(length: int, step: int = _LENGTH_MULTIPLE) -> int:
    """The next multiple of `step`: the padded length of so many positions."""
    return -(-length // step) * step


def sorted_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row indices by length, shortest first, in batches of `size`: where the order of batches does not matter."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """Strictly alternating turns, beginning and ending with the user.

    Consecutive turns of one role are joined by line breaks; system messages count as the user's.
    """
    turns: list[Message] = []
    for turn in messages:
        role: Role = "assistant" if turn.role == "assistant" else "user"
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].content}\n{turn.content}")
        else:
            turns.append(Message(role, turn.content))
    return turns[1:] if turns[0].role == "assistant" else turns


def build_prompt(tokenizer: PreTrainedTokenizerFast, max_length: int) -> Prompt:
    """The prompt of a tokenizer: its own chat template, else KoGPT2's role tokens, else 질문/답변 in plain text.

    Templates other than the tokenizer's own begin with what it prepends to a text (BOS in most cases). The template is
    set on the tokenizer, so that it is saved with it. Raises BaseError when it can't be used.
    """
    if not tokenizer.chat_template:
        ids, tokens = prefix_ids(tokenizer), set(tokenizer.all_special_tokens) | set(tokenizer.added_tokens_encoder)
        bos_only = ids == [tokenizer.bos_token_id]
        prefix = "{{ bos_token }}" if bos_only else "".join(tokenizer.convert_ids_to_tokens(ids))
        roles = {"<usr>", "<sys>", "</s>"} <= tokens
        tokenizer.chat_template = prefix + (KOGPT2_TEMPLATE if roles else PLAIN_TEMPLATE)
    if isinstance(template := tokenizer.chat_template, str):
        tokenizer.chat_template = _STRFTIME_NOW.sub(lambda call: repr(_FIXED_DATE.strftime(call[2])), template)
    return Prompt(tokenizer, _parse_template(tokenizer), max_length)


def has_own_template(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the chat template came with the tokenizer; if so, it alone decides how a prompt begins."""
    return not str(tokenizer.chat_template).endswith((KOGPT2_TEMPLATE, PLAIN_TEMPLATE))


def _parse_template(tokenizer: PreTrainedTokenizerFast) -> Template:
    """Render two exchanges of placeholders with the chat template, and encode the text between the placeholders."""
    roles = ("user", "assistant", "user", "assistant")
    turns = [{"role": role, "content": text} for role, text in zip(roles, _PLACEHOLDERS, strict=True)]
    try:
        texts = re.split("|".join(_PLACEHOLDERS), str(tokenizer.apply_chat_template(turns, tokenize=False)))
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in texts]
        opening, past_assistant, user, assistant, closing = encoded
    except Exception as error:  # jinja2 raises what the template's author chose
        raise BaseError(
            "The base's chat template can't be used ({error}).",
            "Remove chat_template from its tokenizer_config.json to use daedap's own.",
            error=error,
        ) from error
    # An answer ends with the template's token (`<|im_end|>`) when it is an added one, else with EOS.
    eos = closing[0] if closing and closing[0] in tokenizer.added_tokens_decoder else tokenizer.eos_token_id
    if eos is None:
        raise BaseError("The base's tokenizer has no end token.", "Set eos_token in its tokenizer_config.json.")
    return Template(opening, past_assistant, user, assistant, int(eos))
