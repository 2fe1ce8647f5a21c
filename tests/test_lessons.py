"""Lessons: what they answer, and the commands that teach, list, export and import them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PAIRS, daedap_process
from serving import runs_with

import daedap
from daedap import pipeline
from daedap.commands.chat import Talk
from daedap.commands.lessons import lessons
from daedap.commands.teach import teach
from daedap.config import AnswerOptions
from daedap.data.split import read_rows
from daedap.database.connection import Database
from daedap.database.lessons import LessonStore, new_lesson
from daedap.errors import DataError, SettingsError
from daedap.files import write_lines
from daedap.retrieval.bot import Bot
from daedap.runs import Run
from daedap.types import Lesson, Reply

KNOWN = PAIRS[10]
NEW = Lesson("1", "영업시간 알려 주세요", "아침 열 시부터 저녁 여덟 시까지예요.", "similar")


@pytest.fixture(scope="module")
def opened(trained: Run) -> Bot:
    return daedap.Bot.open(trained.folder)


@pytest.fixture
def bot(opened: Bot) -> Bot:
    """A bot that was taught nothing yet."""
    opened.teach([])
    return opened


@pytest.fixture
def runs(trained: Run, tmp_path: Path) -> Path:
    return runs_with(trained, tmp_path)


def test_a_lesson_answers_its_question_however_it_is_typed(bot: Bot) -> None:
    bot.teach([NEW])
    for question in (NEW.question, "영업 시간  알려주세요!!"):
        reply = bot.reply(question)
        assert (reply.text, reply.source, reply.score, reply.lesson) == (NEW.answer, "lesson", 1.0, NEW)
    assert bot.reply(KNOWN.question).text == KNOWN.answer, "what else is known stays known"


def test_a_taught_greeting_answers_greetings_of_other_words(bot: Bot) -> None:
    assert bot.reply("안뇽하세용").text == "안녕하세요! 무엇을 도와드릴까요?"
    bot.teach([Lesson("1", "안녕하세요", "어서 오세요, 솔빛 서점입니다.", "similar")])
    assert bot.reply("안뇽하세용").text == "어서 오세요, 솔빛 서점입니다."
    assert bot.reply("안뇽하세용").source == "lesson"
    assert bot.reply("고마웡").source == "retrieved", "a courtesy of another kind"


def test_questions_like_it(bot: Bot) -> None:
    like = "영업시간 좀 알려주실래요"
    bot.teach([NEW])
    assert bot.reply(like).text == NEW.answer
    bot.teach([replace(NEW, scope="exact")])
    assert bot.reply(like).source != "lesson"


def test_a_lesson_corrects_what_is_known(bot: Bot) -> None:
    bot.teach([Lesson("1", KNOWN.question, "아니에요, 달라요.", "exact")])
    assert bot.reply(KNOWN.question).text == "아니에요, 달라요."
    bot.teach([])
    assert bot.reply(KNOWN.question).text == KNOWN.answer


def test_a_known_question_is_not_caught_by_a_lesson_for_others(bot: Bot) -> None:
    bot.teach([Lesson("1", f"{KNOWN.question} 왜 그럴까", "모르겠어요.", "similar")])
    assert bot.reply(KNOWN.question).text == KNOWN.answer


def test_of_two_lessons_the_latest_counts(bot: Bot) -> None:
    bot.teach([replace(NEW, id="2", answer="이제는 아홉 시부터예요."), NEW])
    assert bot.reply(NEW.question).text == "이제는 아홉 시부터예요."


def test_distress_comes_before_questions_like_a_lesson(bot: Bot) -> None:
    bot.teach([Lesson("1", "진짜 죽고 싶다", "하하 그러세요.", "similar")])
    assert "109" in bot.reply("정말 죽고 싶다 너무 힘들어").text


def test_a_batch_with_the_language_model(trained: Run) -> None:
    bot = daedap.Bot.open(trained.folder, answer_options=AnswerOptions(samples=2))
    bot.teach([NEW])
    replies = bot.reply_many([NEW.question, "영업시간 좀 알려주실래요", KNOWN.question])
    assert [reply.source for reply in replies] == ["lesson", "lesson", "retrieved"]


# ---- the store ----


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    database = Database.open(None, tmp_path)
    store = LessonStore(database)
    (first,) = store.add(new_lesson("질문", "첫 대답", origin="owner"))
    assert store.add(replace(first, answer="또 다른")) == [first], "the same id again"
    second = store.accept(first.id, {"answer": "고친 대답"})
    assert second
    assert [(one.answer, one.state) for one in store.all()] == [("고친 대답", "accepted"), ("첫 대답", "replaced")]
    assert [one.answer for one in store.in_force()] == ["고친 대답"]
    before = store.revision()
    store.undo(second.id)
    assert [one.answer for one in store.in_force()] == ["첫 대답"]
    assert store.revision() > before
    database.close()


def test_personal_data_is_masked(tmp_path: Path) -> None:
    lesson = new_lesson("제 번호 010-1234-5678 맞죠", "네 me@example.com 으로", origin="visitor")
    assert (lesson.question, lesson.masked, lesson.state) == ("제 번호 ***-****-**** 맞죠", True, "pending")
    kept = new_lesson("번호", "010-1234-5678", origin="owner", keep_personal=True)
    assert (kept.answer, kept.masked) == ("010-1234-5678", False)
    for question, answer in (("", "x"), ("x", " \n"), ("x" * 2001, "x"), ("x", "x" * 4001)):
        with pytest.raises(DataError):
            new_lesson(question, answer, origin="owner")


# ---- the commands ----


def test_teach_and_answer(runs: Path) -> None:
    taught = teach(KNOWN.question, "새 대답이에요.", runs=runs)
    assert taught.effect["conflict"]["answer"] == KNOWN.answer
    message = daedap_process("answer", KNOWN.question, "--json", "--runs", str(runs), folder=runs)
    assert json.loads(message.stdout)["source"] == "lesson"
    assert json.loads(message.stdout)["answer"] == "새 대답이에요."


def test_teach_in_the_chat(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk(Bot.open(runs=runs))
    for line in ("/teach 너무 일러요", "화성까지 얼마나 걸려", "/teach 일곱 달쯤이요.", "화성까지 얼마나 걸려?"):
        assert talk.take(line)
    first, *_, last = capsys.readouterr().out.strip().splitlines()
    assert first == "Nothing has been answered yet."
    assert last == "일곱 달쯤이요."
    assert Bot.open(runs=runs).reply("화성까지 얼마나 걸려").text == "일곱 달쯤이요."


def test_lessons_as_a_table_and_back(runs: Path, trained: Run, tmp_path: Path) -> None:
    teach("=1+1은?", '=HYPERLINK("x")', scope="exact", runs=runs)
    teach("둘째", "'그대로'", runs=runs)
    file = tmp_path / "교정.csv"
    assert lessons("export", str(file), runs=runs).lines() == [f"2 lessons written to {file}"]
    rows = list(csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines()))
    assert [row["question"] for row in rows] == ["둘째", "'=1+1은?"], "no cell is a formula"
    (tmp_path / "other").mkdir()
    other = runs_with(trained, tmp_path / "other")
    for count in (2, 0):
        assert lessons("import", str(file), runs=other).lines() == [f"{count} lessons taught, {2 - count} were known"]
    found = {(one.question, one.answer, one.scope) for one in lessons(runs=other).lessons}
    assert found == {("=1+1은?", '=HYPERLINK("x")', "exact"), ("둘째", "'그대로'", "similar")}


def test_undo_by_the_beginning_of_an_id(runs: Path) -> None:
    lesson = teach("하나", "둘", runs=runs).lesson
    assert "하나" in "\n".join(lessons(runs=runs).lines())
    lessons("undo", lesson.id[:6], runs=runs)
    assert [one.state for one in lessons(runs=runs).lessons] == ["undone"]
    with pytest.raises(SettingsError, match="no such lesson"):
        lessons("undo", "zzz", runs=runs)
    with pytest.raises(SettingsError, match="needs a file or an id"):
        lessons("export", runs=runs)


def test_tables_that_are_none(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="question and answer"):
        lessons("import", str(tmp_path / "x.csv"), runs=runs)
    with pytest.raises(DataError, match="can't be read"):
        lessons("import", str(tmp_path / "nothing.csv"), runs=runs)


def test_train_learns_lessons_and_checks_them(qa: Path, runs: Path) -> None:
    options: dict[str, Any] = {"num_train_epochs": 1, "evaluate": False, "runs": runs, "precision": "fp32"}
    with pytest.raises(SettingsError, match="nothing was taught yet"):
        daedap.train(from_="1", lessons=True, **options)
    lesson = teach(KNOWN.question, "배운 대답이에요.", runs=runs).lesson
    run = daedap.train(from_="1", lessons=True, **options)
    checked = run.manifest["lessons"]
    assert (checked["count"], checked["ids"], checked["missing"], checked["typos"]["count"]) == (1, [lesson.id], [], 1)
    assert KNOWN.question in [pair.question for pair in read_rows(run.folder, "train")]
    lessons("undo", lesson.id, runs=runs)
    reply = Bot.open(2, runs=runs).reply(KNOWN.question)
    assert (reply.text, reply.source) == ("배운 대답이에요.", "retrieved")


class LiteralBot:
    """Knows its questions letter for letter, and nothing else."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known

    def reply_many(self, questions: Sequence[str]) -> list[Reply]:
        return [Reply(question, self.known.get(question, "뭐라고요?"), "retrieved", 1.0) for question in questions]


def with_lessons(folder: Path, lessons: Sequence[Lesson]) -> Run:
    write_lines(folder / "data" / "lessons.jsonl", [asdict(lesson) for lesson in lessons])
    return Run(folder)


def test_a_lesson_that_is_only_found_letter_for_letter_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="daedap")
    lessons = [NEW, replace(NEW, id="2", question="문은 언제 닫아요"), replace(NEW, id="3", question="OK?")]
    known = {lesson.question: lesson.answer for lesson in lessons[::2]}
    monkeypatch.setattr(Bot, "from_run", lambda run, held_out: LiteralBot(known))
    run = with_lessons(tmp_path, lessons)
    pipeline.check_lessons(run)
    assert run.state["lessons"] == {
        "count": 3,
        "ids": ["1", "2", "3"],
        "missing": ["2"],
        "typos": {"count": 2, "wrong": ["1", "2"]},
    }, "nothing can be misspelt in OK?"
    assert "2 of 3 lessons are found in the new index; asked with a typo, 0 of 2 are answered correctly" in caplog.text
    assert "Answered incorrectly: 문은 언제 닫아요" in caplog.text
    pipeline.check_lessons(run)
    assert run.state["lessons"]["typos"]["count"] == 2, "the typos are the same each time"


def test_a_check_that_fails_leaves_the_run_complete(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = with_lessons(Path(shutil.copytree(trained.folder, tmp_path / "0001")), [NEW])
    (run.folder / "manifest.json").unlink()

    def fail(run: Run, held_out: bool) -> LiteralBot:
        raise ValueError("no bot")

    monkeypatch.setattr(Bot, "from_run", fail)
    pipeline.complete_run(run)
    assert "The lessons could not be checked (ValueError: no bot)" in caplog.text
    assert "lessons" not in run.manifest
    last = (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["event"] == "lessons_failed"
