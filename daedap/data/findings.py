"""The report of the data doctor: kinds of findings, statistics, and their text and JSON forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from daedap.data.clean import excerpt
from daedap.data.reader import Source
from daedap.i18n import translate
from daedap.types import Pair

Action = Literal["dropped", "repaired", "kept"]


class Kind(NamedTuple):
    """One kind of finding."""

    action: Action
    description: str
    """Template for `translate`."""


KINDS: dict[str, Kind] = {
    # unreadable rows
    "quote": Kind("dropped", "a quote that is not closed or not doubled"),
    "fields": Kind("dropped", "wrong number of fields"),
    "json": Kind("dropped", "not a JSON object"),
    "keys": Kind("dropped", "no text under the keys of question and answer"),
    "turns": Kind("dropped", "a conversation without an answer, or with a turn that can't be read"),
    "damaged": Kind("dropped", "broken characters"),
    "attachment": Kind("dropped", "chat messages without text (photos, emoticons, deleted messages)"),
    "system": Kind("dropped", "notices of the chat program"),
    "header": Kind("dropped", "the header, repeated"),
    "tool": Kind("dropped", "conversations whose tool calls and results are left out"),
    "sheet": Kind("dropped", "sheets without a question and an answer column"),
    "hidden": Kind("dropped", "hidden sheets and rows"),
    "formula": Kind("dropped", "a formula without a stored value: open the file in Excel and save it"),
    # rows without a pair
    "blank": Kind("dropped", "an empty row"),
    "empty_question": Kind("dropped", "empty question"),
    "empty_answer": Kind("dropped", "empty answer"),
    "duplicate": Kind("dropped", "exact duplicate of an earlier pair"),
    # repaired rows
    "category": Kind("repaired", "rows without an answer get one of their category"),
    "spaces": Kind("repaired", "spaces at the ends, or unusual ones"),
    "markup": Kind("repaired", "HTML, entities or Markdown"),
    "marks": Kind("repaired", "marks such as Q. and A. before question and answer"),
    "quotation": Kind("repaired", "quotation marks around question and answer"),
    "control": Kind("repaired", "control characters"),
    "zero_width": Kind("repaired", "invisible characters"),
    "decomposed": Kind("repaired", "letters in pieces (NFD, as typed on a Mac)"),
    "label": Kind("repaired", "label with stray characters"),
    "masked": Kind("repaired", "personal data replaced by asterisks"),
    # rows worth a look
    "too_long": Kind("kept", "too long for the model: looked up, not learned"),
    "personal": Kind(
        "kept", "personal data (mobile, card, account or resident numbers, e-mail); --mask-personal hides it"
    ),
    "conflict": Kind("kept", "one question with several answers"),
    "similar_label": Kind("kept", "label that looks like a more frequent one"),
    "very_long": Kind("kept", "much longer than the others"),
}
NOT_ROWS = frozenset({"attachment", "system", "header", "tool", "sheet", "hidden", "category"})
"""Kinds of lines that are not counted as rows."""


@dataclass(frozen=True)
class Example:
    """One place of a finding."""

    line: int
    value: str
    """Excerpt, safe to print."""


@dataclass(frozen=True)
class Finding:
    """A kind of problem or repair, its count and its first places."""

    kind: str
    """One of `KINDS`."""
    count: int
    """Rows; for `conflict` questions, for `similar_label` labels."""
    examples: tuple[Example, ...]

    @property
    def action(self) -> Action:
        """What happens to the rows."""
        return KINDS[self.kind].action

    @property
    def description(self) -> str:
        """The kind in the user's language."""
        return translate(KINDS[self.kind].description)

    def to_json(self) -> dict[str, Any]:
        """The finding as plain JSON types."""
        examples = [asdict(example) for example in self.examples]
        kind = {"kind": self.kind, "action": self.action, "description": self.description}
        return {**kind, "count": self.count, "examples": examples}

    def line(self) -> str:
        """The finding as text in the user's language, with its first three places."""
        shown = [
            translate("line {line} '{value}'" if example.value else "line {line}", **asdict(example))
            for example in self.examples[:3]
        ]
        where = ", ".join(shown + ["…"] * (self.count > len(shown)))
        template = "kept: {what}: {count:,} ({where})"
        if self.action == "dropped":
            template = "dropped: {what}: {count:,} ({where})"
        elif self.action == "repaired":
            template = "repaired: {what}: {count:,} ({where})"
        return translate(template, what=self.description, count=self.count, where=where)


@dataclass(frozen=True)
class TextStats:
    """Lengths in characters and speech level of all usable questions, or of all usable answers."""

    mean: float = 0.0
    p50: int = 0
    p95: int = 0
    p99: int = 0
    max: int = 0
    polite: float = 0.0
    """Share of polite texts, 0 to 1."""

    @property
    def mixed(self) -> bool:
        """Whether both speech levels are common; a model would mix them as well."""
        return 0.1 < self.polite < 0.9


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a file holds and what is learned from it."""

    source: Source
    rows: int
    """Number of pairs and unreadable rows; a conversation counts once per answer."""
    usable: int
    """Number of pairs that are learned; those that are too long for the model are only looked up."""
    findings: tuple[Finding, ...]
    """In the order of `KINDS`."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Usable pairs by label, the most frequent first."""
    questions: TextStats = TextStats()
    answers: TextStats = TextStats()
    first: Pair | None = None
    """The first usable pair, as it is learned."""
    looked_up: int = 0
    """Number of further pairs, too long for the model: the bot finds them by their questions."""
    limit: tuple[str, int] | None = None
    """The base by which the length was judged, and the longest pair that it learns, in tokens."""
    near_duplicates: int | None = None
    """Number of near-duplicates of earlier questions among the first `compared` ones; None when not counted."""
    compared: int = 0

    def finding(self, kind: str) -> Finding | None:
        """The finding of a kind, or None."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    @property
    def exit_code(self) -> int:
        """Exit code of `daedap check`: 1 when nothing is usable."""
        return 0 if self.usable or self.looked_up else 1

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        columns = self.source.columns
        chosen = {part: getattr(columns, part, None) for part in ("question", "answer", "label")}
        return {
            "file": str(self.source.path),
            "format": self.source.format,
            "encoding": self.source.encoding_name or None,
            "columns": {part: column.name if column else None for part, column in chosen.items()},
            "rows": self.rows,
            "usable": self.usable,
            "looked_up": self.looked_up,
            "limit": {"base": self.limit[0], "tokens": self.limit[1]} if self.limit else None,
            "findings": [finding.to_json() for finding in self.findings],
            "labels": dict(self.labels),
            "questions": asdict(self.questions),
            "answers": asdict(self.answers),
            "sheets": list(self.source.sheets),
            "first_pair": {"question": self.first.question, "answer": self.first.answer} if self.first else None,
            "near_duplicates": self.near_duplicates,
            "compared": self.compared,
        }

    def lines(self) -> list[str]:
        """The report as text in the user's language."""
        lines = [
            translate(
                "{file}: {rows:,} rows, {usable:,} usable ({format}{encoding})",
                file=self.source.path,
                rows=self.rows,
                usable=self.usable + self.looked_up,
                format=self.source.format,
                encoding=f", {self.source.encoding_name}" if self.source.encoding_name else "",
            ),
            *_column_lines(self.source),
        ]
        if self.first:  # as it is learned, so that wrongly chosen columns are seen at once
            pair = {"question": excerpt(self.first.question), "answer": excerpt(self.first.answer)}
            lines.append(translate("first pair: '{question}' → '{answer}'", **pair))
        if self.limit:
            message = "learned: all of them; {base} learns rows of up to {tokens} tokens"
            if self.looked_up:
                message = (
                    "learned: {usable:,} rows of up to {tokens} tokens ({base}); "
                    "only looked up, as they are longer: {count:,}"
                )
            base, tokens = self.limit
            lines.append(translate(message, usable=self.usable, count=self.looked_up, base=base, tokens=tokens))
        lines += [finding.line() for finding in self.findings]
        if self.source.format == "kakaotalk":
            lines.append(translate("This is a private chat: train on it only if everybody in it agrees."))
        if self.near_duplicates:
            template = "kept: {count:,} of the first {compared:,} questions nearly repeat an earlier one"
            lines.append(translate(template, count=self.near_duplicates, compared=self.compared))
        return lines + self._statistics_lines()

    def _statistics_lines(self) -> list[str]:
        lines = []
        for name, stats in ((translate("questions"), self.questions), (translate("answers"), self.answers)):
            template = (
                "{name}: {mean:.1f} characters on average (median {p50}, up to {p95} for 95 %, up to {p99} for 99 %, "
                "longest {max:,}); {polite:.0%} polite"
            )
            lines += [translate(template, name=name, **asdict(stats))] if self.usable else []
        if self.answers.mixed:
            lines.append(translate("The answers mix polite and casual speech; the chatbot will too."))
        if any(self.labels):
            shown = [f"{label or '-'} ({count:,})" for label, count in list(self.labels.items())[:10]]
            labels = ", ".join(shown) + (", …" if len(self.labels) > 10 else "")
            lines.append(translate("labels: {labels}", labels=labels))
        return lines


def _column_lines(source: Source) -> list[str]:
    columns = source.columns
    if source.turns:
        names = {"text": source.turns.text.name, "speaker": source.speaker or "-"}
        return [translate("columns: messages = {text}; answers are those of {speaker}", **names)]
    if not columns:
        return []
    sheets = [translate("sheets: {sheets}", sheets=", ".join(source.sheets))] if len(source.sheets) > 1 else []
    template = "columns: question = {question}, answer = {answer}, label = {label}"
    if not columns.header:
        template = "no header; columns: question = {question}, answer = {answer}, label = {label}"
    label = columns.label.name if columns.label else "-"
    return [*sheets, translate(template, question=columns.question.name, answer=columns.answer.name, label=label)]
