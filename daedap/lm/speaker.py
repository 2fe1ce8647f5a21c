"""A model that can be asked: how likely an answer is, and what it would say itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from daedap.lm.batches import sorted_batches
from daedap.lm.prompt import Prompt
from daedap.lm.score import FloatArray, score_answers
from daedap.lm.tokenizer import decode
from daedap.pair import Pair, Spoken

_AT_ONCE = 64


@dataclass(frozen=True)
class Speaker:
    """A model with its prompt, on one device."""

    model: PreTrainedModel
    prompt: Prompt
    max_new_tokens: int
    """Of the longest reply: what the longest answer it learned takes."""
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of scoring; replies are always made in fp32."""

    def log2_probability(self, pairs: Sequence[Pair]) -> FloatArray:
        """Per pair: the sum of log2 p over answer and end token, and their number. (pairs, 2), float64."""
        examples = [self.prompt.example(pair) for pair in pairs]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            return score_answers(self.model, examples, self.device)

    def reply(self, pairs: Sequence[Pair]) -> list[Spoken]:
        """Answer each question by greedy decoding; the pairs' own answers are not looked at."""
        questions = [self._question(pair) for pair in pairs]
        spoken: dict[int, Spoken] = {}
        for rows in sorted_batches([len(ids) for ids in questions], _AT_ONCE):
            spoken |= zip(rows, self._generate([questions[row] for row in rows]), strict=True)
        return [spoken[row] for row in range(len(pairs))]

    def stream(self, pair: Pair, tell: Callable[[str], None]) -> Spoken:
        """Answer one question, telling each word as soon as it is whole."""
        return self._generate([self._question(pair)], _Teller(self.prompt, tell))[0]

    def _question(self, pair: Pair) -> list[int]:
        """History gives way to the longest reply; a long question makes the reply shorter instead."""
        alone = self.prompt.question(replace(pair, history=()), room=self.prompt.max_length - 1)
        return self.prompt.question(pair, room=max(len(alone), self.prompt.max_length - self.max_new_tokens))

    @torch.inference_mode()
    def _generate(self, questions: Sequence[list[int]], teller: BaseStreamer | None = None) -> list[Spoken]:
        self.model.eval()
        length = max(map(len, questions))
        ids = torch.tensor([[self.prompt.pad] * (length - len(ids)) + ids for ids in questions], device=self.device)
        mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in questions], device=self.device)
        output = cast("Any", self.model).generate(
            ids, attention_mask=mask, generation_config=self._settings(length), streamer=teller
        )
        scores: Tensor = cast("Any", self.model).compute_transition_scores(
            output.sequences, output.logits, normalize_logits=True
        )
        rows = zip(output.sequences[:, length:].tolist(), scores.double().tolist(), strict=True)
        return [self._spoken(*row) for row in rows]

    def _settings(self, length: int) -> GenerationConfig:
        """Greedy, and of all control tokens only the end token can be said."""
        end = self.prompt.template.end
        mute = sorted(self.prompt.controls - {end})
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=min(self.max_new_tokens, self.prompt.max_length - length),
            eos_token_id=end,
            pad_token_id=self.prompt.pad,
            suppress_tokens=mute or None,
            output_logits=True,  # before muting, so that a reply is as likely here as when it is scored
            return_dict_in_generate=True,
        )

    def _spoken(self, ids: list[int], nats: list[float]) -> Spoken:
        end = self.prompt.template.end
        ended = end in ids
        said = ids[: ids.index(end)] if ended else ids
        counted = nats[: len(said) + ended]
        mean = sum(counted) / len(counted) / math.log(2)
        return Spoken(decode(self.prompt.tokenizer, said), ended, len(counted), mean)


class _Teller(BaseStreamer):
    """Gets the question first, then one token at a time."""

    def __init__(self, prompt: Prompt, tell: Callable[[str], None]) -> None:
        self._prompt, self._tell = prompt, tell
        self._asked, self._said, self._told = False, list[int](), 0

    def put(self, value: Tensor) -> None:
        if self._asked:
            self._said += [number for number in value.tolist() if number != self._prompt.template.end]
            self._tell_up_to(self._text.rfind(" ") + 1)
        self._asked = True

    def end(self) -> None:
        self._tell_up_to(len(self._text))

    @property
    def _text(self) -> str:
        return decode(self._prompt.tokenizer, self._said)

    def _tell_up_to(self, place: int) -> None:
        if place > self._told:
            self._tell(self._text[self._told : place])
            self._told = place
