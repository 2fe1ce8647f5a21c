"""What a run is exported to, and how strictly that is compared with the run: the options of `daedap export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from daedap.config import at_least_one
from daedap.errors import SettingsError

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
