"""A readable file of pairs and how to read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daedap.config import ReadOptions
from daedap.data.column_stats import Column
from daedap.data.columns import Columns
from daedap.data.encoding import Encoding
from daedap.data.turn_columns import TurnColumns

Format = Literal["csv", "tsv", "jsonl", "xlsx", "kakaotalk", "text", "yaml", "parquet"]

DEFAULT_READ_OPTIONS = ReadOptions()


@dataclass(frozen=True, kw_only=True)
class Source:
    """A readable file and how to read it."""

    path: Path
    format: Format
    """By content, whatever the file's name ends with."""
    text: Encoding | None = None
    """None for Excel."""
    delimiter: str = ""
    """Field separator of a text table."""
    columns: Columns | None = None
    """None for chats, conversations and tables of messages."""
    turns: TurnColumns | None = None
    """Of a table of messages."""
    texts: Column | None = None
    """Of a table with a column of rendered conversations: ### 질문: … ### 답변: …"""
    speaker: str = ""
    """Of a table of messages: whose messages are the answers."""
    sheets: tuple[str, ...] = ()
    """Sheets of a workbook that are read."""
    read_options: ReadOptions = DEFAULT_READ_OPTIONS

    @property
    def encoding(self) -> str:
        """Name of the encoding, for the report."""
        return self.text.name if self.text else ""
