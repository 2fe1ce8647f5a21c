"""Which columns of a table hold questions, answers and labels, or the messages of a conversation.

By their headers and by their content. Numbers, dates, categories and names are never taken for questions. Where the
choice is not clear the table is refused, with a sample of every column and the command to repeat.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from daedap.data.clean import excerpt
from daedap.data.headers import Column, Part, column_stats, find_header, has_role, header_role, index_of, speaker_side
from daedap.errors import ColumnsError, DataError


@dataclass(frozen=True)
class Columns:
    """The columns of a table of pairs."""

    question: Column
    answer: Column
    label: Column | None
    header: bool
    """Whether the table has a header."""
    width: int
    """Number of columns."""
    header_line: int = 0
    """Line of the last header row; rows up to it are not data."""
    alternatives: tuple[Column, ...] = ()
    """Further columns with other wordings of the question."""
    rounds: tuple[tuple[int, int], ...] = ()
    """Question and answer columns of a conversation that stands in one row: 사람문장1, 시스템문장1, 사람문장2, …"""
    names: tuple[str, ...] = ()
    """The header."""


@dataclass(frozen=True)
class TurnColumns:
    """The columns of a table in which every row is one message of a conversation."""

    text: Column
    speaker: Column | None
    """None: two speakers take turns."""
    conversation: Column | None
    turn: Column | None
    """Number of the message in its conversation; a smaller number begins a new one."""
    width: int
    header_line: int
    more_texts: tuple[Column, ...] = ()
    """Further columns with the texts of some rows: 고객질문, 고객답변, 상담사답변, …"""

    def text_of(self, fields: Sequence[str]) -> str:
        """The text of a row."""
        texts = (fields[column.index] for column in (self.text, *self.more_texts))
        return next(filter(str.strip, texts), "")


def choose_columns(
    rows: Sequence[tuple[int, Sequence[str]]], requested: Mapping[Part, str | None], file: Path
) -> Columns | TurnColumns:
    """The columns of a table, by line number and cells of its first rows.

    Raises DataError when the choice is not clear, or when a column that the user requested, by its name or its number
    from 1, doesn't exist. The message names `file`.
    """
    cells = [row for _, row in rows]
    named = [name for name in requested.values() if name]
    header = find_header(cells, named)
    data = cells[header.row + 1 :] if header else cells
    names = header.names if header else _typical(cells)
    line = rows[header.row][0] if header and header.row >= 0 else 0
    if len(names) < 2:
        raise _single_column(names, file)
    if not named and (turns := (header and turn_columns(names, line)) or turns_by_content(names, data, line)):
        return turns
    # Rows with more cells than the header has names, other than commas in an unquoted answer (네, 됩니다).
    widths = Counter(
        len(row) for row in data if any(cell.strip() and not cell.startswith(" ") for cell in row[len(names) :])
    )
    if header and not named and widths.total() > max(1, len(data) // 2):
        names = [*names, *[""] * (widths.most_common(1)[0][0] - len(names))]
        raise _Chooser(names, data, file, True).unclear()
    return replace(_Chooser(names, data, file, header is not None).choose(requested), header_line=line)


def choose_keys(
    names: Sequence[str], requested: Mapping[Part, str | None], file: Path, sample: Sequence[str] = ()
) -> Columns:
    """The keys of a JSON object that hold question, answer and label; otherwise like `choose_columns`.

    `sample` holds a value for each key, for the message.
    """
    if len(names) < 2:
        raise _single_column(names, file)
    return _Chooser(names, [sample] if sample else [], file, True, keys=True).choose(requested)


def _single_column(names: Sequence[str], file: Path) -> DataError:
    return DataError(
        "{file} has only one column ({columns}): questions and answers need one each.",
        "Separate them with a comma or a tab, one pair a line.",
        file=file,
        columns=_listed(names),
    )


def _typical(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first row of the most frequent width: the very first one may be broken."""
    filled = [row for row in rows if any(map(str.strip, row))]
    usual = Counter(map(len, filled)).most_common(1)
    return next((list(row) for row in filled if len(row) == usual[0][0]), [])


# ---- messages ----


def turn_columns(names: Sequence[str], line: int) -> TurnColumns | None:
    """Columns of a table of messages: speaker and text, or dialogue and text; None when there are answers."""
    columns: dict[str, Column] = {}
    ranks: dict[str, float] = {}
    for index, name in enumerate(names):
        if (role := header_role(name)) and name.strip():
            columns.setdefault(role.role, Column(index, name))
            ranks[role.role] = min(role.rank, ranks.get(role.role, 9))
    speaker, conversation = columns.get("speaker"), columns.get("conversation")
    text = columns.get("utterance") or (columns.get("question") if ranks.get("question") == 1 else None)
    text = text or (columns.get("content") if speaker else None)
    if not text or not (speaker or conversation) or ranks.get("answer", 9) < 2:
        return None
    return TurnColumns(text, speaker, conversation, columns.get("turn"), len(names), line)


def turns_by_content(names: Sequence[str], data: Sequence[Sequence[str]], line: int) -> TurnColumns | None:
    """Columns of a table of messages by its content: one says who speaks (고객 and 상담원, Q and A), others what."""
    speakers = [index for index in range(len(names)) if _names_speakers(data, index)]
    # Beside 화자, a column QA says whether a message asks.
    speakers = [index for index in speakers if has_role(names[index], "speaker")] or speakers
    if len(speakers) != 1:
        return None
    others = [Column(index, name) for index, name in enumerate(names) if index != speakers[0]]
    sides = [column for column in others if has_role(column.name, "question", "answer", below=3)]
    if len(sides) < 2:
        texts = [column for column in others if column_stats(data, column.index).kind == "text"]
        if len(texts) != 1:
            return None
    else:
        texts = sides
        if any(sum(bool(row[side.index].strip()) for side in sides if side.index < len(row)) > 1 for row in data):
            return None
    columns = {role.role: Column(index, name) for index, name in enumerate(names) if (role := header_role(name))}
    speaker = Column(speakers[0], names[speakers[0]])
    conversation, turn = columns.get("conversation"), columns.get("turn")
    return TurnColumns(texts[0], speaker, conversation, turn, len(names), line, tuple(texts[1:]))


def _names_speakers(rows: Sequence[Sequence[str]], index: int) -> bool:
    """Whether the cells of a column are the names of two sides, one that asks and one that answers."""
    cells = Counter(row[index].strip() for row in rows if index < len(row) > 1 and row[index].strip())
    sides = {name: speaker_side(name) for name in cells if len(name) <= 12}
    known = sum(cells[name] for name, side in sides.items() if side)
    few = sum(side is not None for side in sides.values()) <= 4
    # A few cells of a damaged or joined file may hold anything.
    return known > 1 and few and known >= 0.8 * cells.total() and {"question", "answer"} <= {*sides.values()}


# ---- question, answer and label ----


class _Chooser:
    """Chooses question, answer and label among the columns of one table."""

    def __init__(
        self, names: Sequence[str], data: Sequence[Sequence[str]], file: Path, header: bool, *, keys: bool = False
    ) -> None:
        self.names, self.data, self.file, self.header, self.keys = names, data, file, header, keys
        self.roles = [header_role(name) if header else None for name in names]
        self.stats = [column_stats(data, index) for index in range(len(names))]
        self.places: dict[Part, int] = {}

    def choose(self, requested: Mapping[Part, str | None]) -> Columns:
        """The columns. Raises DataError when they are not clear."""
        self.places = {part: self.find(name) for part, name in requested.items() if name}
        fixed = set(self.places)
        if self.header:
            self.add_by_headers()
        by_content = not {"question", "answer"} <= self.places.keys()
        self.add_by_content()
        if not {"question", "answer"} <= self.places.keys():
            raise self.unclear()
        if len(set(self.places.values())) < len(self.places):
            raise DataError(
                "{file}: one column was chosen twice; the columns are {columns}.",
                "Choose different columns for question, answer and label.",
                file=self.file,
                columns=_listed(self.names),
            )
        self.refuse_numbers(fixed)
        question, answer = self.places["question"], self.places["answer"]
        if by_content and not fixed and self.stats[question].asks < self.stats[answer].asks:  # the answers come first
            self.places |= {"question": answer, "answer": question}
            raise self.unclear()
        return self.columns()

    def find(self, name: str) -> int:
        """Index of a column that the user named, or numbered from 1."""
        if self.header and (index := index_of(name, self.names)) is not None:
            return index
        if name.strip().isdecimal() and 1 <= int(name) <= len(self.names):
            return int(name) - 1
        folded = [other.strip().casefold() for other in self.names]
        near = difflib.get_close_matches(name.strip().casefold(), folded, 3, 0.5)
        raise DataError(
            "{file} has no column {value}; its columns are {columns}.",
            "Did you mean {near}?" if near else "Give one of these names, or a number counted from 1.",
            file=self.file,
            value=name,
            columns=_listed(self.names),
            near=_listed([other for other, form in zip(self.names, folded, strict=True) if form in near]),
        )

    def best(self, *roles: str) -> int | None:
        """The surest free column of these roles; earlier roles come first."""
        ranked = [
            (roles.index(role.role), role.rank, index)
            for index, role in enumerate(self.roles)
            if role and role.role in roles and index not in self.places.values() and self.names[index].strip()
        ]
        return min(ranked)[2] if ranked else None

    def add(self, part: Part, *roles: str) -> None:
        """Choose the surest free column of these roles for a part that has none yet."""
        if part not in self.places and (index := self.best(*roles)) is not None:
            self.places[part] = index

    def add_by_headers(self) -> None:
        """Add columns by their headers. 제목 is the question of 내용 or of 답변, 내용 the question of 답변."""
        self.add("question", "question")
        self.add("answer", "answer")
        self.add("label", "label")
        if "question" in self.places:
            self.add("answer", "content")
        elif "answer" in self.places:
            self.add("question", "content", "title", "utterance")
        elif (title := self.best("title")) is not None and (content := self.best("content")) is not None:
            self.places |= {"question": title, "answer": content}
            # A third column of texts may hold the answers to 제목 and 내용.
            others = (index for index in range(len(self.names)) if self.is_open(index) and self.roles[index] is None)
            if any(self.stats[index].kind == "text" for index in others):
                self.places = {"question": content}
                raise self.unclear()

    def add_by_content(self) -> None:
        """Add what the headers leave open where only one choice is left: columns of text in their order."""
        missing: list[Part] = [part for part in ("question", "answer") if part not in self.places]
        unsaid = self.header and len(missing) == 2 and (self.keys or any(self.roles))
        if not missing or unsaid or (self.keys and len(self.names) > 2):
            return
        free = [index for index in range(len(self.names)) if self.is_open(index)]
        kinds = ("text",) if len(self.names) > 2 else ("text", "category")
        texts = [index for index in free if self.keys or not self.data or self.stats[index].kind in kinds]
        if len(texts) == len(missing):
            self.places |= dict(zip(missing, texts, strict=True))
            categories = [index for index in free if index not in texts and self.stats[index].kind != "empty"]
            if "label" not in self.places and len(self.names) == 3 and categories and not self.header:
                self.places["label"] = categories[0]

    def is_open(self, index: int) -> bool:
        """Whether a column may be a question or an answer though its header says neither."""
        role = self.roles[index]
        unknown = role is None or (role.role in ("content", "utterance", "title") and not self.keys)
        return index not in self.places.values() and unknown

    def refuse_numbers(self, fixed: set[Part]) -> None:
        """Refuse questions that are numbers, dates, names or categories, and such answers that no header calls so."""
        question, answer = (self.stats[self.places[part]] for part in ("question", "answer"))
        roles = {part: role.role if (role := self.roles[index]) else None for part, index in self.places.items()}
        no_question = question.kind == "name" or (question.kind == "category" and answer.kind == "text")
        if "question" not in fixed and (question.kind == "number" or (no_question and roles["question"] != "question")):
            raise self.unclear()
        if "answer" in fixed:
            return
        if roles["answer"] != "answer" and answer.kind in ("number", "name") and question.questions < 0.5:
            raise self.unclear()
        free = (stats for index, stats in enumerate(self.stats) if index not in self.places.values())
        if answer.kind == "number" and any(stats.kind == "text" for stats in free):
            del self.places["answer"]
            raise self.unclear()

    def columns(self) -> Columns:
        """The columns that were chosen, with numbered columns of the same name beside them."""
        names = [name.strip() for name in self.names]
        chosen = {part: Column(at, names[at] if self.header else str(at + 1)) for part, at in self.places.items()}
        columns = Columns(chosen["question"], chosen["answer"], chosen.get("label"), self.header, len(names))
        if not self.header:
            return columns
        columns = replace(columns, names=tuple(names))
        questions, answers = (_numbered(names, self.places[part]) for part in ("question", "answer"))
        if len(questions) > 1 and questions.keys() == answers.keys():
            return replace(columns, rounds=tuple((questions[number], answers[number]) for number in sorted(questions)))
        more = [index for index in questions.values() if index != columns.question.index]
        more += [index for index, role in enumerate(self.roles) if role and role.role == "alternatives"]
        return replace(columns, alternatives=tuple(Column(index, names[index]) for index in more))

    def likely(self) -> tuple[int, int]:
        """The columns that a refusal suggests: of the texts, the one that asks most and the longest other one."""
        texts = [index for index, stats in enumerate(self.stats) if stats.kind == "text"]
        others = [index for index in range(len(self.names)) if index not in texts]
        question, answer = (self.places.get(part, -1) for part in ("question", "answer"))
        if question < 0 or self.stats[question].kind == "number":
            texts.sort(key=lambda index: (-self.stats[index].asks, -self.stats[index].questions))
            question = next(index for index in (*texts, *others) if index != answer)
        if answer < 0:
            lengths = [sum(len(row[index].strip()) for row in self.data if index < len(row)) for index in texts]
            texts = [index for _, index in sorted(zip((-length for length in lengths), texts, strict=True))]
            answer = next(index for index in (*texts, *others) if index != question)
        return question, answer

    def unclear(self) -> ColumnsError:
        """Refusal with a sample of every column and the command that names them."""
        shown = []
        for index, name in enumerate(self.names[:12]):
            cells = (row[index].strip() for row in self.data if index < len(row) and row[index].strip())
            sample = excerpt(next(cells, ""))[:30]
            title = f"{index + 1} {excerpt(name.strip())[:30]}".rstrip() if self.header else str(index + 1)
            shown.append(f"{title} '{sample}'" if sample else title)
        places = self.likely()
        names = (self.names[index].strip() for index in places)
        keys = [name if re.fullmatch(r"[\w.-]+", name) else f'"{name}"' for name in names]
        question, answer = keys if self.keys else [index + 1 for index in places]
        return ColumnsError(
            "{file}: it is not clear which column holds the questions and which the answers. Columns: {columns}.",
            "Say it with their names or numbers: {command} --question-column {question} --answer-column {answer}",
            file=self.file,
            columns=", ".join(shown) + (", …" if len(self.names) > 12 else ""),
            command=f'daedap check "{self.file}"',
            question=question,
            answer=answer,
        )


def _numbered(names: Sequence[str], index: int) -> dict[int, int]:
    """Number → index of the columns that differ from this one in their number only: 질문1, 질문2."""
    matches = [re.fullmatch(r"(.*?)\s*[_-]?(\d+)", name) for name in names]
    mine = matches[index]
    return {int(other[2]): at for at, other in enumerate(matches) if mine and other and other[1] == mine[1]}


def _listed(names: Sequence[str]) -> str:
    shown = [excerpt(name.strip())[:30] or "''" for name in names[:12]]
    return ", ".join(shown) + (", …" if len(names) > 12 else "")
