"""The bots that are served: opened once, warmed up, taught the lessons in force, replaced by newer runs."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from threading import Lock

import daedap.runs as run_store
from daedap.config import AnswerOptions
from daedap.database.lessons import LessonStore
from daedap.errors import DaedapError, RunError
from daedap.retrieval.bot import Bot
from daedap.runs import Run
from daedap.serve.observability import log_failure
from daedap.types import Lesson, Pair, Reply, Sampling

_OPEN = 3
"""Bots held in memory beside the one that everybody talks with."""


@dataclass(frozen=True)
class Question:
    """A question to a bot."""

    bot: Bot
    pair: Pair
    """The question with its history; its answer is empty."""
    sampling: Sampling | None = None
    """How the client wants the language model to propose answers, in bots where it does."""

    @property
    def batch(self) -> tuple[object, ...]:
        """Questions with equal keys are answered together; a seeded one alone, as others would change its samples."""
        if not self.sampling or not self.bot.generates:
            return (id(self.bot),)
        return (id(self.bot), self.sampling, id(self) if self.sampling.seed is not None else None)

    @property
    def sampled_bot(self) -> Bot:
        """The bot that answers."""
        return self.bot.with_sampling(self.sampling) if self.sampling and self.bot.generates else self.bot


@dataclass
class Bots:
    """The runs of a folder. Its methods may take seconds: they are called in threads, from one or several."""

    runs: Path
    name: str
    """The run that is served: a number, latest or best."""
    answer_options: AnswerOptions
    lesson_store: LessonStore
    current: Bot = field(init=False)
    _others: OrderedDict[int, Bot] = field(default_factory=OrderedDict)
    _lessons: Sequence[Lesson] = ()
    _revision: int = -1
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        run = run_store.find(self.name, self.runs)
        if any(self._generates(each) for each in (run, *self.complete())):
            import_module("daedap.model.engine")  # PyTorch before CTranslate2: see model/sentence_encoder.py
        self._revision, self._lessons = self.lesson_store.revision(), self.lesson_store.in_force()
        self.current = self._open(run)

    def complete(self) -> list[Run]:
        """The runs that can be chosen, the latest first."""
        return [run for run in reversed(run_store.list_runs(self.runs)) if run.complete and run.command == "train"]

    def get(self, number: int) -> Bot:
        """The bot of a run, by number. Raises RunError."""
        if number == self.current.run.number:
            return self.current
        with self._lock:
            if number not in self._others:
                self._others[number] = self._open(run_store.find(str(number), self.runs))
                if len(self._others) > _OPEN:
                    self._others.popitem(last=False)
            self._others.move_to_end(number)
            return self._others[number]

    def refresh_run(self) -> bool:
        """Change to the run that is latest or best by now, once it is open and warm. Returns whether there was one."""
        run = run_store.find(self.name, self.runs)
        if run.folder == self.current.run.folder:
            return False
        bot = self._open(run)
        with self._lock:
            bot.teach(self._lessons)  # they may have changed while it was being opened
            self.current = bot
        return True

    def refresh_lessons(self) -> bool:
        """Take over the lessons in force, when another process or a request changed them."""
        revision = self.lesson_store.revision()
        if revision == self._revision:
            return False
        with self._lock:
            lessons = self.lesson_store.in_force()
            for bot in (self.current, *self._others.values()):
                bot.teach(lessons)
            self._lessons, self._revision = lessons, revision
        return True

    def answer(self, questions: Sequence[Question]) -> list[Reply | Exception]:
        """Reply to a batch. A question that fails, fails alone."""
        batches: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for row, question in enumerate(questions):
            batches[question.batch].append(row)
        replies: dict[int, Reply | Exception] = {}
        for rows in batches.values():
            answers = _answers(questions[rows[0]].sampled_bot, [questions[row].pair for row in rows])
            replies.update(zip(rows, answers, strict=True))
        return [replies[row] for row in range(len(questions))]

    def _open(self, run: Run) -> Bot:
        bot = Bot.from_run(run, answer_options=self.answer_options, held_out=True)
        bot.teach(self._lessons)
        known = bot.retriever.index.pairs[0].question
        bot.reply_many([known, f"{known} 그리고요?", "안녕하세요"])  # whatever is read at first use is read now
        return bot

    def _generates(self, run: Run) -> bool:
        """Whether the bot of a run lets its language model propose answers."""
        if self.answer_options.samples is not None:
            return self.answer_options.samples > 0
        try:
            weights = run.document("index/weights.json")
        except RunError:
            return True
        return bool(weights.get("generates")) or not (run.folder / "index" / "sentences.npz").exists()


def example_questions(bot: Bot, count: int) -> list[str]:
    """Known questions from all over the file, to begin with."""
    pairs = bot.retriever.index.pairs
    return [pair.question for pair in pairs[:: max(1, len(pairs) // count)][:count]]


def alternatives(bot: Bot, question: str, count: int) -> list[Reply]:
    """The answers of the nearest known questions, all different, the nearest first."""
    replies: dict[str, Reply] = {}
    for evidence in bot.nearest(question, count):
        reply = Reply(question, evidence.answer, "retrieved", evidence.similarity, evidence)
        replies.setdefault(evidence.answer, reply)
    return list(replies.values())


def _answers(bot: Bot, queries: Sequence[Pair]) -> Sequence[Reply | Exception]:
    try:
        return bot.reply_to_pairs(queries)
    except Exception as error:
        if len(queries) == 1:
            if not isinstance(error, DaedapError):
                log_failure(error)
            return [error]
        return [reply for query in queries for reply in _answers(bot, [query])]
