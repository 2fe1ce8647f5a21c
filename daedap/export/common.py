"""What all exports have: their options, a comparison with the run, and a README with the warnings that apply.

What a target answers is computed the way its users do it, with the exported files alone; what the run answers, by
daedap. Both decode greedily, so every difference has a cause: a tokenizer that splits otherwise, a template, a weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from daedap.config import at_least_one
from daedap.data.split import SPLITS, read_rows, sample_rows
from daedap.errors import RunError, SettingsError
from daedap.evaluation.metrics import Score
from daedap.evaluation.tables import score_rows
from daedap.i18n import translate
from daedap.korean.text import compatibility_jamo
from daedap.runs import Run
from daedap.types import Pair

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from daedap.model.decoding import DecodingRules
    from daedap.model.language_model import TorchModel

_SHOWN = 60
"""Characters of an answer that a list of differences shows."""
_NON_COMMERCIAL = re.compile(r"(?i)(^|[^a-z])nc([^a-z]|$)|non-?commercial")
_SCORES = ("bpc", "hits_at_1", "recall_at_5", "mrr", "ended", "chrf")


Target = Literal["bundle", "web", "hf", "ctranslate2", "gguf"]
WHOLE: frozenset[Target] = frozenset({"bundle", "web"})
"""Targets that are the bot itself; the others are its language model alone."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a run is exported to, and how strictly that is compared with the run."""

    to: Target = "bundle"
    """bundle: the whole bot, answering without torch; web: a page that answers in the browser by itself; hf,
    ctranslate2 and gguf: its language model alone."""
    adapter: bool = False
    """With hf: the LoRA adapter alone, without the base's weights."""
    questions: int = 50
    """Compare the greedy answers to so many questions with those of the run."""
    allow_differences: bool = False
    """Keep an export whose answers differ from the run's; the differences are listed all the same."""

    def __post_init__(self) -> None:
        at_least_one(self, "questions")
        if self.adapter and self.to != "hf":
            raise SettingsError("--adapter goes with --to hf, not with --to {to}.", "Leave --adapter out.", to=self.to)


# ---- comparison ----


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
    """The questions whose prompt, tokens or text differ, each with what shows it best: the texts, else the tokens."""
    differences = []
    for question, ours, theirs in zip(questions, expected, actual, strict=True):
        if _plain(ours.text) != _plain(theirs.text):
            differences.append(Difference(question, ours.text, theirs.text))
        elif ours.prompt != theirs.prompt:
            differences.append(Difference(question, str([*ours.prompt]), str([*theirs.prompt])))
        elif ours.tokens != theirs.tokens:
            differences.append(Difference(question, str([*ours.tokens]), str([*theirs.tokens])))
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


def generation_config(rules: DecodingRules) -> GenerationConfig:
    """Greedy decoding by a run's rules, as transformers has it."""
    from transformers import GenerationConfig

    prompt = rules.prompt
    return GenerationConfig(
        max_new_tokens=rules.max_new_tokens,
        do_sample=False,
        bos_token_id=prompt.tokenizer.bos_token_id,
        eos_token_id=prompt.template.eos_id,
        pad_token_id=prompt.pad_id,
        suppress_tokens=rules.suppressed_ids or None,
    )


def trained_answers(model: TorchModel, rules: DecodingRules, questions: Sequence[str]) -> list[ModelAnswer]:
    """Greedy answers of a run's model."""
    return greedy_answers(model.model, rules, [rules.question(Pair(question, "")) for question in questions])


def greedy_answers(model: PreTrainedModel, rules: DecodingRules, prompts: Sequence[Sequence[int]]) -> list[ModelAnswer]:
    """Answers to prompts, decoded by a run's rules."""
    from daedap.model.tokenizer import decode

    def text(ids: Sequence[int]) -> str:
        return decode(rules.prompt.tokenizer, [id for id in ids if id != rules.prompt.template.eos_id])

    return generate(model, prompts, text, generation_config(rules))


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


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")


# ---- README ----


@dataclass(frozen=True)
class Facts:
    """What a run's files say about it."""

    base: str
    licence: str
    data: dict[str, Any]
    personal_rows: int
    """Rows with personal data, of the run and of those it goes on from."""
    scores: dict[str, dict[str, Score]]
    """System (model, bot) → metric → score on all test rows."""
    candidates: int
    generates: bool = False
    """Whether the language model takes part in the bot's answers, and is in a bundle, too."""

    @classmethod
    def of(cls, run: Run) -> Facts:
        """Read them. Raises RunError."""
        manifest = run.manifest
        scored = run.document("evaluation/scores.json") if (run.folder / "evaluation" / "scores.json").exists() else {}
        systems = {name: scored.get("scores", {}).get(name, {}).get("all", {}) for name in ("model", "bot")}
        return cls(
            manifest["base"]["name"],
            manifest["base"]["licence"],
            manifest["data"],
            _personal_rows(run),
            {name: {metric: Score(**score) for metric, score in of.items()} for name, of in systems.items() if of},
            scored.get("candidates", 20),
            bool(run.document("index/weights.json").get("generates")),
        )

    def warnings(self, target: Target) -> list[str]:
        """What to mind before passing the export on."""
        warnings = [self._model_alone()] if target not in WHOLE else []
        if self.personal_rows:
            message = (
                "{count:,} rows of the file hold personal data. Whoever gets the export can read or recover them: "
                "train again with --mask-personal before you pass it on."
            )
            warnings.append(translate(message, count=self.personal_rows))
        if (target not in WHOLE or self.generates) and _NON_COMMERCIAL.search(self.licence):
            message = "The base {base} is licensed {licence}, for non-commercial use only, and so is this export."
            warnings.append(translate(message, base=self.base, licence=self.licence))
        return warnings

    def _model_alone(self) -> str:
        """That it is the language model alone, and how much worse that is than the bot."""
        shares = {name: scores["hits_at_1"].value for name, scores in self.scores.items() if "hits_at_1" in scores}
        if shares.keys() >= {"model", "bot"}:
            message = (
                "This is the language model alone, not the bot: of {count} candidates it puts the right answer first "
                "for {model:.0%} of the test questions, the bot for {bot:.0%}. The whole bot: --to bundle"
            )
            return translate(message, count=self.candidates, **shares)
        return translate("This is the language model alone, without what the bot looks up. The whole bot: --to bundle")


def write_card(run: Run, target: Target, usage: str, folder: Path) -> None:
    """Write README.md, with the header that the hub reads."""
    facts = Facts.of(run)
    lines = [*_header(facts, target), *_body(run, facts, target), "", f"## {translate('Usage')}", "", usage]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _header(facts: Facts, target: Target) -> Iterator[str]:
    licence = facts.licence if re.fullmatch(r"[a-z0-9.-]+", facts.licence) and facts.licence != "unknown" else "other"
    yield from ("---", "language: ko", f"license: {licence}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", facts.base):
        yield f"base_model: {facts.base}"
    if target not in WHOLE:
        yield "pipeline_tag: text-generation"
    yield from ("---", "")


def _body(run: Run, facts: Facts, target: Target) -> Iterator[str]:
    data = facts.data
    name = Path(str(data["file"])).name
    yield "# " + translate("daedap run {number}: {target}", number=run.number, target=target)
    yield ""
    yield from (f"> {warning}\n" for warning in facts.warnings(target))
    counts = {"rows": int(data["usable"]), "train": int(data["train"])}
    rows = translate("{rows:,} pairs of questions and answers, {train:,} of them learned", **counts)
    yield f"- {translate('Data')}: {rows} (`{name}`, SHA-256 `{data['sha256']}`)"
    yield f"- {translate('Base')}: {facts.base} (`{run.manifest['base']['digest']}`)"
    yield f"- {translate('Licence of the base')}: {facts.licence}"
    yield f"- {translate('Licence of the data')}: {translate('not recorded: that of the file it was made from')}"
    yield f"- {translate('Made by')}: daedap {version('daedap')}, {run.manifest['finished']}"
    if facts.scores:
        yield from ("", f"## {translate('Scores on held-out rows')}", "", *_score_table(facts))


def _score_table(facts: Facts) -> Iterator[str]:
    systems = {name: {key: of[key] for key in _SCORES if key in of} for name, of in facts.scores.items()}
    names = {"model": translate("model"), "bot": translate("bot")}
    yield "| | " + " | ".join(names[name] for name in systems) + " |"
    yield "|---|" + "---|" * len(systems)
    for row in score_rows(systems, {}, facts.candidates):
        yield "| " + " | ".join(row[: 1 + len(systems)]) + " |"


def _personal_rows(run: Run | None) -> int:
    """Rows with personal data, of a run and of those that it goes on from, as far as their folders are there."""
    if run is None or not (run.folder / "data" / "findings.json").exists():
        return 0
    try:
        findings = run.document("data/findings.json").get("findings", [])
    except RunError:
        findings = []
    rows = sum(int(one.get("count", 0)) for one in findings if one.get("kind") == "personal")
    return rows + _personal_rows(run.parent)
