"""FAQ accuracy: known questions in other words, questions out of scope, and how well scores separate the two.

Beside the bot stand look-ups that need no training and never refuse: character n-grams and the sentence encoder alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daedap.evaluation.metrics import PARTS, Part, RatioTerms, Score, as_json, ratio, reply_part
from daedap.evaluation.tables import PERCENT, Grid, align_columns, format_score, join_blocks, part_names
from daedap.i18n import translate
from daedap.korean.text import comparison_form
from daedap.model.sentence_encoder import built_in_encoder
from daedap.retrieval.query import Encoder
from daedap.runs import Json
from daedap.types import Float64Array, Pair

if TYPE_CHECKING:
    from daedap.evaluation.question_files import EvalQuestion
    from daedap.evaluation.testset import ScorableBot
    from daedap.types import Reply

BoolArray = NDArray[np.bool_]
ScoresByKind = Mapping[str, Mapping[str, Score]]
"""Kind ("all" first) → metric → score."""
SHOWN_COVERAGES = (0.2, 0.4, 0.6, 0.8, 1.0)
_MAX_POINTS = 100
"""Points of the risk-coverage curve."""


@dataclass(frozen=True, slots=True)
class LookUp:
    """What a system that never refuses would answer to each question, and how sure it is."""

    answers: tuple[str, ...]
    """(questions,): the answer of the nearest known pair; empty where the bot named none."""
    scores: Float64Array
    """(questions,): higher is surer."""


@dataclass(frozen=True, slots=True)
class LookUpScores:
    """A system on all questions, if it never refused."""

    right: Mapping[str, Score]
    """Kind of paraphrase ("all" first) → share whose nearest known answer is right."""
    auroc_right: float | None
    """AUROC of its score for "the nearest known answer is right", which it never is out of scope; None if all are
    right, or none."""
    auroc_scope: float | None
    """AUROC of its score for "the question is in scope"; None without both kinds."""


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """What happens if known answers are given from a score on."""

    threshold: float
    coverage: float
    """Share of all questions that get a known answer."""
    risk: float
    """Share of these answers that are wrong, those to questions out of scope among them."""
    right: float | None
    """Share of the paraphrases that get a right answer."""
    out_of_scope: float | None
    """Share of the questions out of scope that get a known answer."""


@dataclass(frozen=True, slots=True)
class FaqReply:
    """A reply to a test question."""

    question: EvalQuestion
    reply: Reply
    part: Part
    known: bool
    """It is a known answer, of whichever row."""
    right: bool
    suggested: bool
    """The bot asked back, and a question that it suggested has a right answer."""

    def to_json(self) -> dict[str, Any]:
        """Question, kind and right answers, and what became of them."""
        outcome = "right" if self.right else "known" if self.known else "suggested" if self.suggested else "refused"
        return {
            "question": self.question.question,
            "kind": self.question.kind,
            "answers": list(self.question.answers),
            "answer": self.reply.text,
            "source": self.reply.source,
            "part": self.part,
            "score": round(self.reply.score, 6),
            "nearest": self.reply.evidence.question if self.reply.evidence else None,
            "outcome": outcome,
        }


@dataclass(frozen=True, slots=True)
class FaqEvaluation:
    """A bot on paraphrases and on questions out of scope."""

    paraphrases: ScoresByKind
    """Metrics: right, right_or_suggested, wrong (the known answer of another row), refused (no known answer: a
    fallback, small talk, or a text of the model). Empty without paraphrases."""
    out_of_scope: ScoresByKind
    """Metric: answered (with a known answer). Empty without such questions."""
    parts: Mapping[str, Mapping[Part, Score]]
    """"paraphrases" and "out_of_scope" → part → share of the replies that come from it."""
    systems: Mapping[str, LookUpScores]
    """The bot and the baselines, never refusing."""
    curve: tuple[RiskPoint, ...]
    """The risk-coverage curve of the bot's scores, from the surest question on."""
    replies: tuple[FaqReply, ...]
    """Replies to the paraphrases, then to the questions out of scope."""
    look_ups: Mapping[str, LookUp]
    """What `systems` was computed from; not part of `to_json`."""

    def to_json(self) -> dict[str, Any]:
        """All fields but `look_ups` as a JSON object."""
        names = ("paraphrases", "out_of_scope", "parts", "systems", "curve")
        document = {name: as_json(getattr(self, name)) for name in names}
        return {**document, "replies": as_json([reply.to_json() for reply in self.replies])}

    def lines(self) -> list[str]:
        """Tables for a terminal."""
        document = self.to_json()
        return join_blocks(map(align_columns, [*faq_tables(document), part_table(part_shares(document))]))


def evaluate_faq(
    bot: ScorableBot,
    known: Sequence[Pair],
    paraphrases: Sequence[EvalQuestion],
    out_of_scope: Sequence[EvalQuestion],
) -> FaqEvaluation:
    """Ask all questions in one batch; `known` are the pairs that the bot looks answers up in.

    A reply is right if it equals a right answer, by comparison form. Intervals are by bootstrap over known answers:
    paraphrases of one answer are drawn together.
    """
    questions, count = [*paraphrases, *out_of_scope], len(paraphrases)
    answers_of: dict[str, set[str]] = {}
    for pair in known:
        answers_of.setdefault(pair.question, set()).add(comparison_form(pair.answer))
    known_forms = set().union(*answers_of.values())
    known_pairs = {(pair.question, pair.answer) for pair in known}
    replies = [
        _outcome(question, reply, reply_part(reply, known_pairs), answers_of, known_forms)
        for question, reply in zip(questions, _ask(bot, questions), strict=True)
    ]
    inside, outside = replies[:count], replies[count:]
    metrics = {
        "right": [reply.right for reply in inside],
        "right_or_suggested": [reply.right or reply.suggested for reply in inside],
        "wrong": [reply.known and not reply.right for reply in inside],
        "refused": [not reply.known for reply in inside],
    }
    look_ups = {"bot": _bot_look_up(replies), **baselines(known, [question.question for question in questions])}
    groups = {"paraphrases": inside, "out_of_scope": outside}
    return FaqEvaluation(
        paraphrases=_by_kind(paraphrases, metrics),
        out_of_scope=_by_kind(out_of_scope, {"answered": [reply.known for reply in outside]}),
        parts={name: _parts(group) for name, group in groups.items() if group},
        systems={name: look_up_scores(look_up, questions) for name, look_up in look_ups.items()},
        curve=_risk_coverage(look_ups["bot"], questions),
        replies=tuple(replies),
        look_ups=look_ups,
    )


def right_answer_rate(bot: ScorableBot, questions: Sequence[EvalQuestion]) -> Score:
    """Share of at least one question to which a bot's reply is a right answer, as in `evaluate_faq`."""
    replies = zip(questions, _ask(bot, questions), strict=True)
    return _share([comparison_form(reply.text) in question.forms for question, reply in replies], questions)


def _ask(bot: ScorableBot, questions: Sequence[EvalQuestion]) -> Sequence[Reply]:
    return bot.reply_to_pairs([Pair(question.question, "") for question in questions])


def _outcome(
    question: EvalQuestion, reply: Reply, part: Part, answers_of: Mapping[str, set[str]], known_forms: set[str]
) -> FaqReply:
    """`answers_of`: known question → comparison forms of its answers; `known_forms`: those of all known answers."""
    form = comparison_form(reply.text)
    suggested = {answer for text in reply.suggestions for answer in answers_of.get(text, ())}
    right = form in question.forms
    known = right or form in known_forms
    return FaqReply(question, reply, part, known=known, right=right, suggested=bool(suggested & question.forms))


def _by_kind(questions: Sequence[EvalQuestion], metrics: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, Score]]:
    """Kind → metric → share of true values; {} without questions. "all" comes first, then the kinds if several."""
    kinds = [kind for kind in dict.fromkeys(question.kind for question in questions) if kind]
    shares = {}
    for kind in ["all", *(kinds if len(kinds) > 1 else [])] if questions else []:
        rows = [row for row, question in enumerate(questions) if kind in ("all", question.kind)]
        chosen = [questions[row] for row in rows]
        shares[kind] = {name: _share([values[row] for row in rows], chosen) for name, values in metrics.items()}
    return shares


def _share(values: Sequence[bool], questions: Sequence[EvalQuestion]) -> Score:
    """Share of true values; questions with the same right answer are one bootstrap group, others each their own."""
    names = [min(question.forms, default=f"\0{place}") for place, question in enumerate(questions)]
    groups = np.unique(names, return_inverse=True)[1].astype(np.int64)
    score = ratio(RatioTerms(np.array(values, np.float64), np.ones(len(values))), groups)
    assert score, "no questions"
    return score


def _parts(replies: Sequence[FaqReply]) -> dict[Part, Score]:
    questions = [reply.question for reply in replies]
    shares = {part: _share([reply.part == part for reply in replies], questions) for part in PARTS}
    return {part: share for part, share in shares.items() if part != "lesson" or share.value}


# What would be answered if nothing were refused


def _bot_look_up(replies: Sequence[FaqReply]) -> LookUp:
    """The nearest known answer that each reply names. Small talk names none, and counts as the least sure."""
    answers = tuple(
        one.reply.evidence.answer if one.reply.evidence and one.part != "small_talk" else "" for one in replies
    )
    # A generated reply's score is a log probability, no measure of what is known.
    scores = [
        one.reply.evidence.similarity if one.part == "generated" and one.reply.evidence else one.reply.score
        for one in replies
    ]
    return LookUp(answers, np.where([bool(answer) for answer in answers], scores, 0.0))


def baselines(known: Sequence[Pair], questions: Sequence[str], encoder: Encoder | None = None) -> dict[str, LookUp]:
    """The most similar known pair by character n-grams, and by a sentence encoder (by default the built-in one)."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # 1 s

    answers = [pair.answer for pair in known]
    rows = [f"{pair.question} {pair.answer}" for pair in known]
    ngrams = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), dtype=np.float32).fit(rows)
    lexical = (ngrams.transform(questions) @ ngrams.transform(rows).T).toarray()
    encoder = encoder or built_in_encoder()
    vectors = encoder.encode(questions)
    by_question = vectors @ encoder.encode([pair.question for pair in known]).T
    by_both = by_question + vectors @ encoder.encode(answers).T
    similarities = {"ngrams": lexical, "encoder_questions": by_question, "encoder": by_both}
    return {
        name: LookUp(tuple(answers[row] for row in cosines.argmax(axis=1)), cosines.max(axis=1).astype(np.float64))
        for name, cosines in similarities.items()
    }


def look_up_scores(look_up: LookUp, questions: Sequence[EvalQuestion]) -> LookUpScores:
    """How often the nearest known answer is right, by kind, and what its score is worth."""
    right, inside = _right_and_inside(look_up, questions)
    by_kind = _by_kind([question for question in questions if question.answers], {"right": right[inside].tolist()})
    shares = {kind: scores["right"] for kind, scores in by_kind.items()}
    return LookUpScores(shares, _auroc(right, look_up.scores), _auroc(inside, look_up.scores))


def _right_and_inside(look_up: LookUp, questions: Sequence[EvalQuestion]) -> tuple[BoolArray, BoolArray]:
    """(questions,) each: whether the answer is right (out of scope none is), and whether the question is in scope."""
    pairs = zip(questions, look_up.answers, strict=True)
    right = [comparison_form(answer) in question.forms for question, answer in pairs]
    return np.array(right), np.array([bool(question.answers) for question in questions])


def _auroc(labels: BoolArray, scores: Float64Array) -> float | None:
    from sklearn.metrics import roc_auc_score  # 1 s

    return float(roc_auc_score(labels, scores)) if labels.any() and not labels.all() else None


def _risk_coverage(look_up: LookUp, questions: Sequence[EvalQuestion]) -> tuple[RiskPoint, ...]:
    """Points at different scores, the surest first; at most 100, the last one answers everything."""
    right, inside = _right_and_inside(look_up, questions)
    order = np.argsort(-look_up.scores, kind="stable")
    scores = look_up.scores[order]
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # equal scores are answered together
    if len(ends) > _MAX_POINTS:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, _MAX_POINTS).round().astype(int))]
    rights, insides = np.cumsum(right[order]), np.cumsum(inside[order])
    total, outside = int(inside.sum()), int((~inside).sum())
    return tuple(
        RiskPoint(
            threshold=float(scores[end]),
            coverage=float((end + 1) / len(scores)),
            risk=float(1 - rights[end] / (end + 1)),
            right=float(rights[end] / total) if total else None,
            out_of_scope=float((end + 1 - insides[end]) / outside) if outside else None,
        )
        for end in ends
    )


# Tables, from the JSON that a run keeps, for the terminal and the report


def faq_tables(document: Mapping[str, Any]) -> list[Grid]:
    """All tables but that of the parts, the headings first in each."""
    paraphrase_heads = [
        translate("paraphrases (%)"),
        translate("questions"),
        translate("right"),
        translate("right or suggested"),
        translate("wrong"),
        translate("no known answer"),
    ]
    outside_heads = [translate("out of scope (%)"), translate("questions"), translate("answered with a known answer")]
    tables = [
        _kind_table(paraphrase_heads, document["paraphrases"]),
        _kind_table(outside_heads, document["out_of_scope"]),
        _system_table(document["systems"]),
        _curve_table(document["curve"]),
    ]
    return [grid for grid in tables if grid]


def _kind_table(heads: list[str], scores: Mapping[str, Mapping[str, Json]]) -> Grid:
    """Scores of the questions of each kind; [] without questions."""
    rows = []
    for kind, metrics in scores.items():
        cells = [format_score(PERCENT, Score(**score)) for score in metrics.values()]
        count = next(iter(metrics.values()))["n"]
        rows.append([translate("all") if kind == "all" else kind, f"{count:,}", *cells])
    return [heads, *rows] if rows else []


def part_table(shares: Mapping[str, Mapping[str, Score]]) -> Grid:
    """How often each part answers: a column for each kind of question; [] without any."""
    names = part_names()
    rows = [
        [names[part], *(format_score(PERCENT, by.get(part)) for by in shares.values())]
        for part in PARTS
        if any(part in by for by in shares.values())
    ]
    return [[translate("which part answers"), *shares], *rows] if rows else []


def part_shares(document: Mapping[str, Any]) -> dict[str, dict[str, Score]]:
    """Heading of a kind of question → part → share, from `FaqEvaluation.to_json`."""
    names = {"paraphrases": translate("paraphrases"), "out_of_scope": translate("out of scope")}
    return {
        names[side]: {part: Score(**score) for part, score in shares.items()}
        for side, shares in document["parts"].items()
    }


def _system_table(systems: Mapping[str, Json]) -> Grid:
    """The bot and the baselines, if nothing were refused."""
    names = {
        "bot": translate("bot"),
        "ngrams": translate("character n-grams, question and answer"),
        "encoder_questions": translate("sentence encoder, question"),
        "encoder": translate("sentence encoder, question and answer"),
    }
    kinds = list(systems["bot"]["right"])
    heads = [
        translate("never refusing"),
        *(translate("right (%)") if kind == "all" else kind for kind in kinds),
        translate("AUROC right or not"),
        translate("AUROC in or out of scope"),
    ]
    rows = []
    for name, scores in systems.items():
        right = [format_score(PERCENT, Score(**scores["right"][kind])) for kind in kinds]
        areas = [_number(scores[key], 1, 3) for key in ("auroc_right", "auroc_scope")]
        rows.append([names.get(name, name), *right, *areas])
    return [heads, *rows]


def _curve_table(curve: Sequence[Json]) -> Grid:
    """The risk-coverage curve at a few coverages: the first point that covers so much."""
    heads = [
        translate("answered (%)"),
        translate("from a score of"),
        translate("wrong among the answered (%)"),
        translate("paraphrases right (%)"),
        translate("out of scope answered (%)"),
    ]
    points = [next(point for point in curve if point["coverage"] >= least - 1e-9) for least in SHOWN_COVERAGES]
    rows = []
    for point in {point["coverage"]: point for point in points}.values():
        shares = [_number(point[key], 100, 1) for key in ("risk", "right", "out_of_scope")]
        rows.append([f"{100 * point['coverage']:.0f}", f"{point['threshold']:.3f}", *shares])
    return [heads, *rows]


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"
