"""Columns of tables in which every row is one message of a conversation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from daedap.data.column_stats import Column, column_stats
from daedap.data.headers import header_role, speaker_side


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
        columns = (self.text, *self.more_texts)
        return next((text for column in columns if (text := fields[column.index]).strip()), "")


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
    named = [index for index in speakers if (role := header_role(names[index])) and role.role == "speaker"]
    speakers = named or speakers  # beside 화자, a column QA says whether a message asks
    if len(speakers) != 1:
        return None
    sides = [index for index, name in enumerate(names) if index not in speakers and _is_side(name)]
    stats = [column_stats(data, index) for index in range(len(names))]
    texts = [index for index, column in enumerate(stats) if column.kind == "text" and index not in speakers]
    one_each = all(sum(bool(row[i].strip()) for i in sides if i < len(row)) <= 1 for row in data)
    if len(sides) > 1 and not one_each:
        return None
    chosen = [Column(index, names[index]) for index in (sides if len(sides) > 1 else texts)]
    if not chosen or (len(sides) < 2 and len(texts) != 1):
        return None
    columns = {role.role: Column(index, name) for index, name in enumerate(names) if (role := header_role(name))}
    return TurnColumns(
        chosen[0],
        Column(speakers[0], names[speakers[0]]),
        columns.get("conversation"),
        columns.get("turn"),
        len(names),
        line,
        tuple(chosen[1:]),
    )


def _is_side(name: str) -> bool:
    role = header_role(name)
    return bool(role and role.role in ("question", "answer") and role.rank < 3)


def _names_speakers(rows: Sequence[Sequence[str]], index: int) -> bool:
    """Whether the cells of a column are the names of two sides, one that asks and one that answers."""
    cells = Counter(row[index].strip() for row in rows if index < len(row) > 1 and row[index].strip())
    sides = {name: speaker_side(name) for name in cells if len(name) <= 12}
    known = sum(cells[name] for name, side in sides.items() if side)
    few = sum(side is not None for side in sides.values()) <= 4
    # A few cells of a damaged or joined file may hold anything.
    return known > 1 and few and known >= 0.8 * cells.total() and {"question", "answer"} <= {*sides.values()}
