"""The bot in a web page without a server: what it answers in a real Chromium, beside the bot itself."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PAIRS

from daedap.commands.export import export
from daedap.errors import ExportError
from daedap.export.bundle import _questions as questions_of
from daedap.export.common import ExportOptions
from daedap.export.web import check, write
from daedap.retrieval.bot import Bot
from daedap.retrieval.matcher import SIGNALS
from daedap.runs import Run
from daedap.types import Lesson

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Page, expect, sync_playwright  # noqa: E402

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
browser_needed = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: apt-get install chromium")
LESSONS = [
    Lesson("1", "고양이는 왜 울어", "배가 고파서요.", "exact"),
    Lesson("2", "주말에 문 여나요", "토요일까지 열어요.", "similar"),
]
OPEN = "async () => { const { Bot } = await import('./bot.js'); window.bot = await Bot.open(location.href); }"
REPLY = """async (questions) => {
  const replies = [];
  for (const question of questions) replies.push(await bot.reply(question));
  return replies;
}"""
SIGNAL = """async (text) => {
  const query = { text, ...bot.encoder.encode(bot.tokenizer.encode(text)) };
  return await bot.known.signals(query, 4);
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Files, and no log."""

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def visit(folder: Path) -> Iterator[tuple[Page, list[str]]]:
    """A page of a folder, and what went wrong or left this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url, complaints = f"http://127.0.0.1:{server.server_port}/", list[str]()
        with sync_playwright() as started:
            chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = chromium.new_page(locale="ko-KR")
            page.set_default_timeout(60_000)
            page.on(
                "console",
                lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None,
            )
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda sent: complaints.append(sent.url) if not sent.url.startswith(url) else None)
            page.goto(url)
            yield page, complaints
            chromium.close()
        server.shutdown()


@pytest.fixture(scope="module")
def bot(trained: Run) -> Bot:
    opened = Bot.open(trained.folder)
    opened.teach(LESSONS)
    return opened


@browser_needed
def test_a_page_answers_as_the_bot(bot: Bot, tmp_path: Path) -> None:
    write(bot, tmp_path / "site")
    questions = [*questions_of(bot.run, len(PAIRS))[:194], *(lesson.question for lesson in LESSONS)]
    questions += ["주말에 문 열어요?", "죽고 싶어", "  ", "ㅋㅋ 漢字 😊\ud800"]
    questions += ["고마웡", "네 안녕히 계세요~", "야 이 멍청이야", "👍", "네오", "네 네네", "안녕하세요, 문 닫나요?"]
    expected = bot.reply_many(questions)
    with visit(tmp_path / "site") as (page, complaints):
        page.evaluate(OPEN)
        found = page.evaluate(REPLY, [question.encode("utf-8", "replace").decode() for question in questions])
    assert complaints == []
    pairs = list(zip(expected, found, strict=True))
    same = [reply.text == one["answer"] and list(reply.suggestions) == one["suggestions"] for reply, one in pairs]
    assert np.mean(same) >= 0.95
    assert {reply.source for reply in expected} == {"retrieved", "lesson", "fallback"}
    assert max(abs(reply.score - one["score"]) for (reply, one), alike in zip(pairs, same, strict=True) if alike) < 0.2


@browser_needed
def test_a_page_computes_the_bots_signals(bot: Bot, tmp_path: Path) -> None:
    """Also where the interaction model takes part."""
    matcher = bot.retriever.matcher
    weights = replace(matcher.weights, interaction=0.05)
    bot = replace(bot, retriever=replace(bot.retriever, matcher=replace(matcher, weights=weights)))
    write(bot, tmp_path / "site")
    questions = [pair.question[:-2] for pair in PAIRS[:12]]
    expected = bot.retriever.matcher.signals(bot.retriever.encode(questions), 4)
    with visit(tmp_path / "site") as (page, _):
        page.evaluate(OPEN)
        found = [page.evaluate(SIGNAL, question) for question in questions]
    same = [ours.rows.tolist() == theirs["rows"] for ours, theirs in zip(expected, found, strict=True)]
    assert np.mean(same) >= 0.8
    for ours, theirs, alike in zip(expected, found, same, strict=True):
        signals = np.array([theirs["calibration"][name] for name in SIGNALS])
        allowed = np.where([name.startswith("interaction") or name == "small_talk" for name in SIGNALS], 0.5, 0.02)
        assert not alike or (np.abs(signals - ours.calibration) < allowed).all()


@browser_needed
def test_somebody_asks_on_the_page(trained: Run, tmp_path: Path) -> None:
    made = export(str(trained.folder), tmp_path / "site", export_options=ExportOptions(to="web"))
    assert made.verification.compared == len({pair.question for pair in PAIRS})
    assert "vectors" in made.lines()[0]
    assert (tmp_path / "site" / "README.md").read_text(encoding="utf-8").count(str(tmp_path)) == 0
    with visit(tmp_path / "site") as (page, complaints):
        box = page.get_by_label("궁금한 것을 물어보세요")
        expect(page.locator(".examples button")).to_have_count(3)
        box.fill(PAIRS[3].question)
        page.keyboard.press("Enter")
        expect(page.get_by_test_id("answer")).to_have_text(PAIRS[3].answer)
        box.fill("<b>굵게</b>")
        page.get_by_label("보내기").click()
        expect(page.get_by_test_id("answer")).to_have_count(2)
        expect(page.locator(".asked .text").last).to_have_text("<b>굵게</b>")
        grave = [one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
        assert [one["id"] for one in grave] == []
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints == []


def test_an_encoder_that_the_page_computes_otherwise_is_seen(bot: Bot, tmp_path: Path) -> None:
    write(bot, tmp_path / "site")
    assert check(bot, tmp_path / "site").differences == ()
    weights = np.fromfile(tmp_path / "site" / "encoder.bin", np.int8)
    weights[:3_000_000] = weights[:3_000_000][::-1]  # pieces of words, exchanged
    weights.tofile(tmp_path / "site" / "encoder.bin")
    assert check(bot, tmp_path / "site").differences


def test_what_no_browser_can_answer_is_refused(bot: Bot, tmp_path: Path) -> None:
    weights = replace(bot.retriever.weights, generates=True)
    generating = replace(bot, retriever=replace(bot.retriever, weights=weights))
    with pytest.raises(ExportError, match="language model takes part"):
        write(generating, tmp_path / "site")
    assert not (tmp_path / "site").exists()
