"""Comparison of an export with its run, question by question: the tokens that the model reads and writes, and the text.

What a target answers is computed the way its users do it, with the exported files alone; what the run answers, by
daedap. Both decode greedily, so every difference has a cause: a tokenizer that splits otherwise, a template, a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from daedap.data.split import SPLITS, read_rows, sample_rows
from daedap.i18n import translate
from daedap.korean.text import compatibility_jamo
from daedap.runs import Run
from daedap.types import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from daedap.model.decoding import DecodingRules
    from daedap.model.language_model import TorchModel

_SHOWN = 60
"""Characters of an answer that a list of differences shows."""


@dataclass(frozen=True)
class ModelAnswer:
    """A greedy answer to a question."""

    prompt: tuple[int, ...]
    """Ids that the model read."""
    tokens: tuple[int, ...]
    """Ids that it wrote, the end token included."""
    text: str


@dataclass(frozen=True)
class Difference:
    """A question that run and export answer differently."""

    question: str
    expected: str
    found: str

    def line(self) -> str:
        """For a terminal."""
        return translate(
            "  {question}: the run answers {expected}, the export {found}",
            question=_excerpt(self.question),
            expected=_excerpt(self.expected),
            found=_excerpt(self.found),
        )


@dataclass(frozen=True)
class Verification:
    """The result of a comparison."""

    compared: int
    """Questions."""
    differences: tuple[Difference, ...]
    texts: int = 0
    """Texts whose tokens were compared besides."""
    token_differences: tuple[Difference, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        listed = [*self.differences, *self.token_differences]
        pairs = [{"question": one.question, "run": one.expected, "export": one.found} for one in listed]
        return {"compared": self.compared, "texts": self.texts, "differences": pairs}


def compare(questions: Sequence[str], expected: Sequence[ModelAnswer], actual: Sequence[ModelAnswer]) -> Verification:
    """The questions whose prompt, tokens or text differ."""
    differences = []
    for question, ours, theirs in zip(questions, expected, actual, strict=True):
        if (ours.prompt, ours.tokens, _plain(ours.text)) != (theirs.prompt, theirs.tokens, _plain(theirs.text)):
            differences.append(Difference(question, *_shown(ours, theirs)))
    return Verification(len(questions), tuple(differences))


def pick_questions(run: Run, rules: DecodingRules, count: int) -> list[str]:
    """Questions of the run's rows, the held-out ones first, that leave room for the longest answer."""
    room = rules.prompt.max_length - rules.max_new_tokens
    picked: list[str] = []
    for name in reversed(SPLITS):
        questions = dict.fromkeys(pair.question for pair in read_rows(run.folder, name))
        fitting = [question for question in questions if len(rules.prompt.question(Pair(question, ""), 10**9)) <= room]
        picked += sample_rows(fitting, count - len(picked), seed=0)
    return picked


def trained_answers(model: TorchModel, rules: DecodingRules, questions: Sequence[str]) -> list[ModelAnswer]:
    """Greedy answers of a run's model."""
    from transformers import GenerationConfig

    from daedap.model.tokenizer import decode

    prompt = rules.prompt
    config = GenerationConfig(
        max_new_tokens=rules.max_new_tokens,
        do_sample=False,
        eos_token_id=prompt.template.eos_id,
        pad_token_id=prompt.pad_id,
        suppress_tokens=rules.suppressed_ids or None,
    )

    def text(ids: Sequence[int]) -> str:
        return decode(prompt.tokenizer, [id for id in ids if id != prompt.template.eos_id])

    prompts = [rules.question(Pair(question, "")) for question in questions]
    return generate(model.model, prompts, text, config)


def generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], text: Callable[[Sequence[int]], str], config: Any = None
) -> list[ModelAnswer]:
    """Answers to prompts, one at a time, by transformers; `config`: by default the model's own generation config."""
    import torch

    answers = []
    model.eval()
    with torch.inference_mode():
        for ids in prompts:
            given = torch.tensor([list(ids)])
            written = cast("Any", model).generate(
                given, attention_mask=torch.ones_like(given), generation_config=config
            )
            new = written[0, len(ids) :].tolist()
            answers.append(ModelAnswer(tuple(ids), tuple(new), text(new)))
    return answers


def _plain(text: str) -> str:
    """Without what a plain tokenizer leaves: spaces at the ends, and KoGPT2's conjoining jamo."""
    return compatibility_jamo(text).strip()


def _shown(ours: ModelAnswer, theirs: ModelAnswer) -> tuple[str, str]:
    """What shows the difference: the texts, else the tokens."""
    if _plain(ours.text) != _plain(theirs.text):
        return ours.text, theirs.text
    first, second = (ours.prompt, theirs.prompt) if ours.prompt != theirs.prompt else (ours.tokens, theirs.tokens)
    return str([*first]), str([*second])


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")
