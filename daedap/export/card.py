"""What whoever gets an export has to know: what it is, its data and licences, its scores, and warnings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from daedap.errors import RunError
from daedap.evaluation.metrics import Score
from daedap.evaluation.tables import score_rows
from daedap.export.options import WHOLE, Target
from daedap.i18n import translate
from daedap.runs import Run

_NON_COMMERCIAL = re.compile(r"(?i)(^|[^a-z])nc([^a-z]|$)|non-?commercial")
_SCORES = ("bpc", "hits_at_1", "recall_at_5", "mrr", "ended", "chrf")


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
            sum(map(_personal_rows, _lineage(run))),
            {name: {metric: Score(**score) for metric, score in of.items()} for name, of in systems.items() if of},
            scored.get("candidates", 20),
            bool(run.document("index/weights.json").get("generates")),
        )

    def warnings(self, target: Target) -> list[str]:
        """What to mind before passing the export on."""
        warnings = [self._alone()] if target not in WHOLE else []
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

    def _alone(self) -> str:
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
    rows = translate("{rows:,} pairs of questions and answers, {train:,} of them learned", **_counts(data))
    yield f"- {translate('Data')}: {rows} (`{name}`, SHA-256 `{data['sha256']}`)"
    yield f"- {translate('Base')}: {facts.base} (`{run.manifest['base']['digest']}`)"
    yield f"- {translate('Licence of the base')}: {facts.licence}"
    yield f"- {translate('Licence of the data')}: {translate('not recorded: that of the file it was made from')}"
    yield f"- {translate('Made by')}: daedap {version('daedap')}, {run.manifest['finished']}"
    if facts.scores:
        yield from ("", f"## {translate('Scores on held-out rows')}", "", *_score_table(facts))


def _counts(data: dict[str, Any]) -> dict[str, int]:
    return {"rows": int(data["usable"]), "train": int(data["train"])}


def _score_table(facts: Facts) -> Iterator[str]:
    systems = {name: {key: of[key] for key in _SCORES if key in of} for name, of in facts.scores.items()}
    names = {"model": translate("model"), "bot": translate("bot")}
    yield "| | " + " | ".join(names[name] for name in systems) + " |"
    yield "|---|" + "---|" * len(systems)
    for row in score_rows(systems, {}, facts.candidates):
        yield "| " + " | ".join(row[: 1 + len(systems)]) + " |"


def _lineage(run: Run) -> Iterator[Run]:
    """The run and those that it goes on from, as far as their folders are there."""
    current: Run | None = run
    while current is not None and (current.folder / "data" / "findings.json").exists():
        yield current
        current = current.parent


def _personal_rows(run: Run) -> int:
    try:
        findings = run.document("data/findings.json").get("findings", [])
    except RunError:
        return 0
    return sum(int(one.get("count", 0)) for one in findings if one.get("kind") == "personal")
