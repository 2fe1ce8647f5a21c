"""Question → Reply: look it up, else encode and match it, decide; where that helps, rerank with the language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daedap.config import RUNS, AnswerOptions
from daedap.data.split import HELD_OUT, read_rows
from daedap.errors import DataError, RunError
from daedap.i18n import translate_to
from daedap.korean.text import HANGUL, SpeechLevel, speech_level
from daedap.retrieval.courtesies import by_courtesy, courtesy_of
from daedap.retrieval.distress import DistressHelp
from daedap.retrieval.hybrid import HybridRetriever
from daedap.retrieval.lessons import LessonBook, LessonHit, bundled_lessons, stored_lessons
from daedap.retrieval.lexical import Hits
from daedap.retrieval.matcher import Match
from daedap.retrieval.query import Query, printable
from daedap.runs import Run, find
from daedap.types import Evidence, Generation, Lesson, Message, Pair, Reply, Sampling

if TYPE_CHECKING:
    from daedap.model.decoding import LanguageModel
    from daedap.retrieval.rerank import Reranker

KNOWN = 0.6
"""Similarity from which a question counts as known (docs/EXPERIMENTS.md, "When a question is known")."""
_NEAREST = 20
_SUGGESTIONS = 3
_SAMPLES = 8
_LEVEL_ROWS, _LEVEL_SHARE = 1000, 0.9
"""Known answers looked at for language and speech level, and the share from which on the bot keeps to it."""
_COURTESY_ROWS = 100_000
"""Known pairs among which those for courtesies are looked for: a few microseconds each, once."""
_TOP_K = 40


@dataclass
class Bot:
    """A run that answers. The index is read when it is opened, the language model when it is first needed."""

    run: Run
    retriever: HybridRetriever
    answer_options: AnswerOptions = AnswerOptions()
    hidden: frozenset[str] = frozenset()
    """Ids of pairs that small talk must not answer with: held-out rows."""
    device: str = "cpu"
    model: LanguageModel | None = None
    """The run's model if it is open already."""
    lessons: LessonBook | None = None
    """Corrected answers: exact ones come first, those to similar questions compete with the known answers."""
    sampling: Sampling = Sampling()
    """How the language model proposes answers."""

    @classmethod
    def open(
        cls,
        run: str | int | Path = "latest",
        *,
        runs: str | Path = RUNS,
        answer_options: AnswerOptions = AnswerOptions(),
        held_out: bool = True,
    ) -> Bot:
        """Open a run by number, folder, `latest` or `best`, or a bundle. Raises RunError when it is unknown or damaged.

        `held_out`: also answer from the rows that were held out for the scores, which are the user's, too, and from the
        lessons taught since.
        """
        opened = find(str(run), Path(runs))
        bot = cls.from_run(opened, answer_options=answer_options, held_out=held_out)
        if held_out:
            bot.teach(stored_lessons(opened.folder.parent))
        return bot

    @classmethod
    def from_run(
        cls,
        run: Run,
        *,
        answer_options: AnswerOptions = AnswerOptions(),
        held_out: bool,
        model: LanguageModel | None = None,
    ) -> Bot:
        """The bot of a run whose index is there; its scores and manifest may still be missing."""
        pairs = [pair for name in HELD_OUT for pair in read_rows(run.folder, name)]
        retriever = HybridRetriever.open(run.folder / "index", pairs if held_out else [])
        hidden = frozenset() if held_out else frozenset(pair.id for pair in pairs)
        return cls(run, retriever, answer_options, hidden, model=model)

    def teach(self, lessons: Sequence[Lesson]) -> None:
        """Answer with these lessons from now on, the latest first, instead of those before; a bundle's own stay."""
        lessons = [*lessons, *bundled_lessons(self.run.folder)]
        self.lessons = LessonBook.build(lessons, self.retriever) if lessons else None

    def with_sampling(self, sampling: Sampling) -> Bot:
        """The same bot, whose language model proposes answers otherwise; what it has loaded is shared."""
        loaded = self._reranker  # once, not by each copy
        other = copy(self)
        other.sampling, other._reranker = sampling, loaded
        return other

    @cached_property
    def language_model(self) -> LanguageModel:
        """The run's language model."""
        if self.model:
            return self.model
        if (self.run.folder / "engine" / "prompt.json").exists():
            from daedap.model.verify import open_language_model

            return open_language_model(self.run.folder / "engine")
        if not (self.run.folder / "training.json").exists():
            raise RunError(
                "{folder} is a bundle, which holds no language model.",
                "Leave --samples out, or name the run that it was made from.",
                folder=self.run.folder,
            )
        from daedap.model.verify import open_engine

        return open_engine(self.run, self.device)

    @cached_property
    def _reranker(self) -> Reranker:
        return self.retriever.reranker(self.language_model)

    @cached_property
    def _distress_help(self) -> DistressHelp:
        return DistressHelp.built_in(self.hidden, self.retriever.encoder)

    def nearest(self, question: str, count: int) -> list[Evidence]:
        """The `count` known pairs that match a question best, with distinct answers, best first."""
        match = self.retriever.matcher.match(self.retriever.encode([question]), count)[0]
        return self.retriever.index.evidence(match.rows, match.similarities)

    def exact_pair(self, question: str) -> Pair | None:
        """The row for exactly this question, if there is one; of several, the newest."""
        row = self.retriever.matcher.exact_row(question)
        return None if row is None else self.retriever.index.pairs[row]

    @property
    def generates(self) -> bool:
        """Whether the language model proposes answers."""
        return self._samples > 0

    @property
    def _samples(self) -> int:
        """Answers that the model proposes; without an option, none where it was not measured to help."""
        if self.answer_options.samples is not None:
            return self.answer_options.samples
        return _SAMPLES if self.retriever.weights.generates else 0

    def reply(self, question: str, history: Sequence[Message] = ()) -> Reply:
        """Answer one question, given the turns before it."""
        return self.reply_to_pairs([Pair(question, "", history=tuple(history))])[0]

    def reply_many(self, questions: Iterable[str]) -> list[Reply]:
        """Answer independent questions in one batch."""
        return self.reply_to_pairs([Pair(question, "") for question in questions])

    def stream(self, question: str, on_text: Callable[[str], None], history: Sequence[Message] = ()) -> Reply:
        """Like `reply`; `on_text` gets the text line by line once it is chosen among the candidates."""
        reply = self.reply(question, history)
        for line in reply.text.splitlines(keepends=True):
            on_text(line)
        return reply

    def score_candidates(self, pairs: Sequence[Pair], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(pairs, candidates): scores of candidate answers, equally many for each pair."""
        return np.stack(self._reranker.scores(self.retriever.encode(pairs), candidates))

    def reply_to_pairs(self, pairs: Sequence[Pair]) -> list[Reply]:
        """A reply to each pair's question and history, in one batch; the pairs' own answers are ignored.

        Exactly known questions are looked up; only the others are encoded.
        """
        return _fill_missing(
            [self._exact_reply(printable(pair.question)) for pair in pairs],
            lambda rest: self._decide(self.retriever.encode(pairs[row] for row in rest)),
        )

    def _exact_reply(self, question: str) -> Reply | None:
        """The reply to an empty question, or to one that equals a lesson's or a row's after normalization."""
        if not question.strip():
            return self._fallback(question)
        book = self.lessons  # another thread may teach meanwhile
        if lesson := book.exact(question) if book else None:
            return lesson.reply(question)
        if row := self.exact_pair(question):
            return Reply(question, row.answer, "retrieved", 1.0, Evidence(row.question, row.answer, 1.0))
        return None

    def _decide(self, queries: Sequence[Query]) -> list[Reply]:
        """Help, a courtesy, a lesson, or a known answer; else, with the language model, what reranking chooses."""
        book = self.lessons  # another thread may teach meanwhile
        matches = self.retriever.matcher.match(queries, 1 + _SUGGESTIONS) if book or not self.generates else []
        lessons = book.find(queries, matches) if book else [None] * len(queries)
        if not self.generates:
            return [self._by_match(*each) for each in zip(queries, matches, lessons, strict=True)]
        hits = self.retriever.search(queries, _NEAREST)
        return _fill_missing(
            [self._by_similarity(*each) for each in zip(queries, hits, lessons, strict=True)],
            lambda rest: self._rerank([queries[row] for row in rest], [hits[row] for row in rest]),
        )

    def _by_match(self, query: Query, match: Match, lesson: LessonHit | None) -> Reply:
        """Help, a lesson, a courtesy, the best pair's answer, suggestions, or the fallback: by probability."""
        evidence, options = self.retriever.index.evidence(match.rows, match.similarities), self.answer_options
        best, probability = evidence[0], match.probability
        if reply := self._before_known(query, evidence, max(best.similarity, probability), lesson):
            return reply
        if probability >= options.direct_answer_threshold or options.fallback == "off":
            return Reply(query.text, best.answer, "retrieved", probability, best)
        if probability < options.suggestion_threshold or options.fallback:
            return self._fallback(query.text, best, probability)
        text = translate_to(self.speaks_korean, "I am not sure that I understand. Did you mean one of these?")
        suggestions = tuple(one.question for one in evidence[:_SUGGESTIONS])
        return Reply(query.text, text, "fallback", probability, best, suggestions)

    def _by_similarity(self, query: Query, hits: Hits, lesson: LessonHit | None) -> Reply | None:
        """Help, a lesson, a courtesy, the fallback out of scope, or the answer to a known question; None: rerank."""
        evidence = self.retriever.index.evidence(*hits)
        best = evidence[0]
        if reply := self._before_known(query, evidence, best.similarity, lesson):
            return reply
        out_of_scope = best.similarity < min(self.retriever.weights.out_of_scope_threshold, KNOWN)
        if out_of_scope and self.answer_options.fallback != "off":
            return self._fallback(query.text, best, best.similarity)
        if best.similarity >= KNOWN or not self._fits_model(query):
            return Reply(query.text, best.answer, "retrieved", best.similarity, best)
        return None

    def _before_known(
        self, query: Query, known: Sequence[Evidence], score: float, lesson: LessonHit | None
    ) -> Reply | None:
        """Help in distress, a sure lesson, or a courtesy returned; `score`: of the first of `known`, the best pairs."""
        help = self._distress_help.help(query, max(score, lesson.probability if lesson else 0.0))
        if help:
            return Reply(query.text, help.answer, "retrieved", help.similarity, help)
        if lesson and lesson.probability >= self.answer_options.direct_answer_threshold:
            return lesson.reply(query.text)
        return self._courtesy_reply(query.text, known)

    def _courtesy_reply(self, question: str, known: Sequence[Evidence]) -> Reply | None:
        """By a lesson for the same kind of courtesy, else a known pair for it, else the built-in reply."""
        if not (courtesy := courtesy_of(question)):
            return None
        book = self.lessons  # another thread may teach meanwhile
        if lesson := book.courtesy(courtesy) if book else None:
            return lesson.reply(question)
        near = next((pair for pair in known if courtesy_of(pair.question) == courtesy), None)
        evidence = near or self._own_courtesies.get(courtesy.name) or courtesy.reply(korean=self.speaks_korean)
        return Reply(question, evidence.answer, "retrieved", evidence.similarity, evidence)

    @cached_property
    def _own_courtesies(self) -> dict[str, Evidence]:
        """Kind of courtesy → the first known pair for it."""
        pairs = self.retriever.index.pairs[:_COURTESY_ROWS]
        return by_courtesy((pair.question, Evidence(pair.question, pair.answer, 1.0)) for pair in pairs)

    def _fallback(self, question: str, evidence: Evidence | None = None, score: float = 0.0) -> Reply:
        """The reply to an empty question, or to one that nothing known answers."""
        text = self.answer_options.fallback
        if text in (None, "off"):
            text = translate_to(self.speaks_korean, "I didn't quite understand. Could you say it another way?")
        return Reply(question, str(text), "fallback", score, evidence)

    def _fits_model(self, query: Query) -> bool:
        """Whether the question fits into the model's context; a longer one is answered by retrieval alone."""
        prompt = self.language_model.prompt
        try:
            prompt.question(replace(query.pair, history=()), max_ids=prompt.max_length - 1)
        except DataError:
            return False
        return True

    def _rerank(self, queries: Sequence[Query], hits: Sequence[Hits]) -> list[Reply]:
        """The best of the nearest known questions' answers and of the model's proposals."""
        fits = self.language_model.prompt.fits
        hits = [self._filter_hits(lambda pair: fits(replace(pair, history=())), each) for each in hits]
        hits = [self._in_speech_level(each) for each in hits]
        known = [[self.retriever.index.pairs[row].answer for row in each.rows] for each in hits]
        proposals = [
            [one for one in generations if one.ended and one.text and self._keeps_speech_level(one.text)]
            for generations in self._proposals(queries)
        ]
        texts = [[*old, *(one.text for one in new)] for old, new in zip(known, proposals, strict=True)]
        best = self._reranker.best(queries, texts)
        return [self._chosen(*each) for each in zip(queries, hits, proposals, best, strict=True)]

    def _filter_hits(self, condition: Callable[[Pair], bool], hits: Hits) -> Hits:
        """The hits whose pairs fulfil a condition; all of them where none does."""
        kept = [place for place, row in enumerate(hits.rows) if condition(self.retriever.index.pairs[row])]
        return Hits(hits.rows[kept], hits.similarities[kept]) if kept else hits

    def _in_speech_level(self, hits: Hits) -> Hits:
        """Without answers in another speech level than the bot's, unless there are no others."""
        return self._filter_hits(lambda pair: self._keeps_speech_level(pair.answer), hits)

    def _keeps_speech_level(self, answer: str) -> bool:
        return self._speech_level in (None, speech_level(answer))

    @cached_property
    def _speech_level(self) -> SpeechLevel | None:
        """The speech level of nearly all known answers; None where they are mixed."""
        levels = Counter(speech_level(pair.answer) for pair in self.retriever.index.pairs[:_LEVEL_ROWS])
        level, count = levels.most_common(1)[0]
        return level if count >= _LEVEL_SHARE * levels.total() else None

    @cached_property
    def speaks_korean(self) -> bool:
        """Whether the bot's own sentences are Korean: those of its file are, most of them."""
        answers = [pair.answer for pair in self.retriever.index.pairs[:_LEVEL_ROWS]]
        return 2 * sum(bool(HANGUL.search(answer)) for answer in answers) > len(answers)

    def _proposals(self, queries: Sequence[Query]) -> list[list[Generation]]:
        pairs = [query.pair for query in queries]
        how = self.sampling
        if how.is_greedy:
            return [[reply] for reply in self.language_model.reply(pairs)]
        seed = self.answer_options.seed if how.seed is None else how.seed
        options: Any = {"temperature": how.temperature, "top_k": _TOP_K, "top_p": how.top_p}
        return self.language_model.sample(pairs, self._samples, seed=seed, **options)

    def _chosen(self, query: Query, hits: Hits, proposals: Sequence[Generation], best: int) -> Reply:
        known = self.retriever.index.evidence(*hits)
        if best < len(known):
            evidence = known[best]
            return Reply(query.text, evidence.answer, "retrieved", evidence.similarity, evidence)
        proposal = proposals[best - len(known)]
        return Reply(query.text, proposal.text, "generated", proposal.log2_probability, known[0])


def _fill_missing(replies: Sequence[Reply | None], answer: Callable[[list[int]], Sequence[Reply]]) -> list[Reply]:
    """Replace each None by a reply from `answer`, which is called once with the indices of all of them."""
    missing = [index for index, reply in enumerate(replies) if reply is None]
    filled = dict(zip(missing, answer(missing) if missing else [], strict=True))
    return [reply or filled[index] for index, reply in enumerate(replies)]
