"""A model that can be asked, computed by PyTorch: every architecture, on every device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from daedap.lm.batches import even_batches
from daedap.lm.prompt import Prompt
from daedap.lm.score import FloatArray, score_answers
from daedap.lm.speech import Speech, Teller
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
        return [said for said, _ in self.greedy(pairs)]

    def greedy(self, pairs: Sequence[Pair]) -> list[tuple[Spoken, float]]:
        """Greedy replies, each with the least lead of one of its tokens over the next best, in nats."""
        return [said for (said,) in self._answer(pairs, 1, do_sample=False)]

    def stream(self, pair: Pair, tell: Callable[[str], None]) -> Spoken:
        """Answer one question, telling each word as soon as it is whole."""
        question, teller = self._speech.question(pair), _Streamer(Teller(self.prompt, tell))
        return self._generate([question], self._settings(len(question), do_sample=False), teller)[0][0]

    def sample(
        self, pairs: Sequence[Pair], count: int, *, seed: int, temperature: float = 1.0, top_k: int = 0
    ) -> list[list[Spoken]]:
        """`count` random answers to each question, the likeliest first; the same one may come more than once.

        Each token is drawn among the `top_k` likeliest ones (0: all). Same questions, same seed: same answers.
        """
        with torch.random.fork_rng(devices=[self.model.device] if self.device == "cuda" else []):
            torch.manual_seed(seed)
            drawn = self._answer(pairs, count, do_sample=True, temperature=float(temperature), top_k=top_k, top_p=1.0)
        spoken = ([one for one, _ in said] for said in drawn)
        return [sorted(said, key=lambda one: one.log2_probability, reverse=True) for said in spoken]

    @cached_property
    def _speech(self) -> Speech:
        return Speech(self.prompt, self.max_new_tokens)

    def _answer(self, pairs: Sequence[Pair], count: int, **choice: Any) -> list[list[tuple[Spoken, float]]]:
        """`count` replies to each question, short questions with short ones; `choice`: how a token is chosen."""
        questions = [self._speech.question(pair) for pair in pairs]
        spoken: dict[int, list[tuple[Spoken, float]]] = {}
        lengths = [len(ids) for ids in questions]
        rooms = [self._speech.room(length) for length in lengths]
        for rows in even_batches(lengths, rooms, max(1, _AT_ONCE // count)):
            together = [questions[row] for row in rows]
            settings = self._settings(max(map(len, together)), num_return_sequences=count, **choice)
            said = self._generate(together, settings)
            spoken |= {row: said[place * count : (place + 1) * count] for place, row in enumerate(rows)}
        return [spoken[row] for row in range(len(pairs))]

    @torch.inference_mode()
    def _generate(
        self, questions: Sequence[list[int]], settings: GenerationConfig, streamer: BaseStreamer | None = None
    ) -> list[tuple[Spoken, float]]:
        self.model.eval()
        length = max(map(len, questions))
        ids = torch.tensor([[self.prompt.pad] * (length - len(ids)) + ids for ids in questions], device=self.device)
        mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in questions], device=self.device)
        output = cast("Any", self.model).generate(
            ids, attention_mask=mask, generation_config=settings, streamer=streamer
        )
        scores: Tensor = cast("Any", self.model).compute_transition_scores(
            output.sequences, output.logits, normalize_logits=True
        )
        leads = torch.stack([_leads(step) for step in output.scores], dim=1).double().tolist()
        rows = zip(output.sequences[:, length:].tolist(), scores.double().tolist(), leads, strict=True)
        spoken = ((self._speech.spoken(ids, nats), lead) for ids, nats, lead in rows)
        return [(said, min(lead[: said.tokens])) for said, lead in spoken]

    def _settings(self, length: int, **choice: Any) -> GenerationConfig:
        """For questions of up to so many tokens."""
        return GenerationConfig(
            max_new_tokens=self._speech.room(length),
            eos_token_id=self.prompt.template.end,
            pad_token_id=self.prompt.pad,
            suppress_tokens=self._speech.mute or None,
            output_scores=True,  # after muting and cutting down to the likeliest ones
            output_logits=True,  # before muting, so that a reply is as likely here as when it is scored
            return_dict_in_generate=True,
            **choice,
        )


def _leads(scores: Tensor) -> Tensor:
    """(rows,): by how much the best token's score is above the next best's."""
    best = scores.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


class _Streamer(BaseStreamer):
    """Gets the question first, then one token at a time."""

    def __init__(self, teller: Teller) -> None:
        self._teller, self._asked = teller, False

    def put(self, value: Tensor) -> None:
        if self._asked:
            self._teller.hear(value.tolist())
        self._asked = True

    def end(self) -> None:
        self._teller.finish()
