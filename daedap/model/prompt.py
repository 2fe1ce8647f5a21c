"""The one function that turns a conversation into ids and says which of them are learned.

Training, scoring and generation all render through it, so they can't disagree. The control tokens come from the
tokenizer's chat template; what people wrote is encoded apart from them, so it never becomes a control token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property

from transformers import PreTrainedTokenizerFast

from daedap.errors import BaseError, DataError
from daedap.model.tokenizer import encode, find_control_ids, prefix_ids
from daedap.types import Message, Pair, Role

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
"""Line break before what people write, space after it: byte-level tokenizers split there, too, when they read the whole
at once. (On gemma-3-270m, untuned, an answer's token costs 3.6 nats this way; 4.3 with spaces before it: they are
parts of the next word's token elsewhere.)"""
_CLOCK = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_DAY = date(2024, 7, 26)
"""Templates that name today's date would give another prompt each day: they name this one, which Llama 3.2's names
where there is no clock."""
_MARKS = [f"MARK{n}MARK" for n in range(4)]
_LENGTHS = 4
"""Batches are filled up to lengths that are multiples of this. oneDNN builds its kernels for every new shape, and among
many shapes that takes twice as long as a step itself: bench/RESULTS.md, "Few shapes"."""


@dataclass(frozen=True, slots=True)
class Example:
    """A rendered conversation. `ids[answer:]` are the answer and its end token: the part that is learned."""

    ids: list[int]
    answer: int

    @property
    def labels(self) -> int:
        """How many tokens are learned."""
        return len(self.ids) - self.answer


@dataclass(frozen=True, slots=True)
class Template:
    """The control ids around what people write, cut out of the tokenizer's chat template.

    opening Q answered_before A asking Q … answering A end
    """

    opening: list[int]
    answered_before: list[int]
    asking: list[int]
    answering: list[int]
    eos_id: int


@dataclass(frozen=True)
class Prompt:
    """Renders conversations for one tokenizer, in at most `max_length` ids."""

    tokenizer: PreTrainedTokenizerFast
    template: Template
    max_length: int

    @cached_property
    def control_ids(self) -> set[int]:
        """Ids that only the template may use: no text becomes one of them."""
        return find_control_ids(self.tokenizer)

    @property
    def pad_id(self) -> int:
        """The id that fills short rows and is never looked at: padding, or the end token where there is none."""
        pad = self.tokenizer.pad_token_id
        return self.template.eos_id if pad is None else int(pad)

    def example(self, pair: Pair) -> Example:
        """Question and answer as ids. When it is too long the oldest turns go first, then how the question begins.

        Raises DataError when the answer leaves no room at all.
        """
        answer = [*encode(self.tokenizer, pair.answer), self.template.eos_id]
        question = self.question(pair, room=self.max_length - len(answer), whole=False)
        return Example([*question, *answer], len(question))

    def fits(self, pair: Pair) -> bool:
        """Whether question, answer and end token fit without cutting any of them."""
        parts = [self.template.opening, self.template.answering, [self.template.eos_id]]
        texts = [encode(self.tokenizer, text) for text in (pair.question, pair.answer)]
        return sum(map(len, parts + texts)) <= self.max_length

    def question(self, pair: Pair, room: int | None = None, *, whole: bool = True) -> list[int]:
        """Everything up to where the answer begins. Raises DataError when the question alone is too long.

        Unless it need not be whole: then its end alone is read.
        """
        room = self.max_length if room is None else room
        for oldest in range(len(pair.history) + 1):
            ids = self._render(_alternating((*pair.history[oldest:], Message("user", pair.question))))
            if len(ids) <= room:
                return ids
        begin, least = len(self.template.opening), len(self.template.opening) + len(self.template.answering)
        if not whole and room >= least:
            return ids[:begin] + ids[begin + len(ids) - room :]
        raise DataError(
            "The question is {tokens} tokens long; the model takes {room}.",
            "Shorten it, or train with a larger --max-length.",
            tokens=len(ids),
            room=room,
        )

    def dialogue(self, turns: Sequence[Sequence[int]]) -> list[int]:
        """Encoded turns, a user's and an assistant's in turn, as one dialogue with its end token."""
        template = self.template
        between = [template.answered_before, template.asking] * (len(turns) // 2)
        between[-2:] = [template.answering, [template.eos_id]]
        return [*template.opening, *(id for turn, after in zip(turns, between, strict=True) for id in (*turn, *after))]

    def _render(self, turns: Sequence[Message]) -> list[int]:
        """`turns` alternate and both begin and end with the user."""
        ids = list(self.template.opening)
        for turn in turns[:-1]:
            ids += encode(self.tokenizer, turn.content)
            ids += self.template.answered_before if turn.role == "user" else self.template.asking
        return ids + encode(self.tokenizer, turns[-1].content) + self.template.answering


def round_up(length: int, step: int = _LENGTHS) -> int:
    """The next multiple of the step: what so many positions are filled up to."""
    return -(-length // step) * step


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """Strictly alternating turns from the user's first to the user's last.

    Neighbours of one role are joined, and system turns are the user's.
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
    """The prompt of a tokenizer: its own chat template, else KoGPT2's roles, else plain words.

    The template is kept on the tokenizer, so that it is saved with it. Raises BaseError when it can't be used.
    """
    if not tokenizer.chat_template:
        roles = {"<usr>", "<sys>", "</s>"} <= set(tokenizer.all_special_tokens) | set(tokenizer.added_tokens_encoder)
        tokenizer.chat_template = _front(tokenizer) + (KOGPT2_TEMPLATE if roles else PLAIN_TEMPLATE)
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = _CLOCK.sub(lambda call: repr(_DAY.strftime(call[2])), tokenizer.chat_template)
    return Prompt(tokenizer, _cut(tokenizer), max_length)


def has_own_template(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether its chat template came with it: that one alone says how a prompt begins."""
    return not str(tokenizer.chat_template).endswith((KOGPT2_TEMPLATE, PLAIN_TEMPLATE))


def _front(tokenizer: PreTrainedTokenizerFast) -> str:
    """What it puts before a text by itself, as the beginning of a template, which must name it: BOS most often."""
    ids = prefix_ids(tokenizer)
    if ids == [tokenizer.bos_token_id]:
        return "{{ bos_token }}"
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def _cut(tokenizer: PreTrainedTokenizerFast) -> Template:
    """Render two turns whose contents are marks, and keep what stands between the marks."""
    roles = ("user", "assistant", "user", "assistant")
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=True)]
    try:
        texts = re.split("|".join(_MARKS), str(tokenizer.apply_chat_template(turns, tokenize=False)))
        opening, answered_before, asking, answering, closing = (_control(tokenizer, text) for text in texts)
    except Exception as error:  # jinja2 raises what the template's author chose
        raise BaseError(
            "The base's chat template can't be used ({error}).",
            "Remove chat_template from its tokenizer_config.json to use daedap's own.",
            error=error,
        ) from error
    return Template(opening, answered_before, asking, answering, _end(tokenizer, closing))


def _control(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return ids


def _end(tokenizer: PreTrainedTokenizerFast, closing: Sequence[int]) -> int:
    """The token that ends an answer: the template's own (`<|im_end|>`) when it is a control token, else EOS."""
    if closing and closing[0] in tokenizer.added_tokens_decoder:
        return closing[0]
    if tokenizer.eos_token_id is None:
        raise BaseError(
            "The base's tokenizer has no end token.",
            "Set eos_token in its tokenizer_config.json.",
        )
    return int(tokenizer.eos_token_id)
