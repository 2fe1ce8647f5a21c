"""The chat page and the admin page, in a real Chromium against the real server process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
from conftest import PAIRS

import daedap
import daedap.runs as run_store
from daedap.files import write_json
from daedap.runs import Run

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright  # noqa: E402

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
STATIC = Path(daedap.__file__).parent / "serve" / "static"
PASSWORD = "열려라 참깨"
ATTACK = "<img src=x onerror=\"document.title='들켰다'\"><script>document.title='들켰다'</script>"
PHONE, DESKTOP = (390, 844), (1280, 800)

expect.set_options(timeout=30_000)  # a machine may be busy; nothing here waits for longer than it must
browser_needed = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: apt-get install chromium")


@dataclass(frozen=True)
class Visit:
    """A page of the server in a browser of its own: its cookies, and what its console said."""

    page: Page
    url: str
    complaints: list[str]

    def ask(self, question: str) -> Locator:
        """Type a question, and wait for its answer."""
        answers = self.page.get_by_test_id("answer")
        before = answers.count()
        self.page.get_by_label("질문", exact=True).fill(question)
        self.page.keyboard.press("Enter")
        expect(answers).to_have_count(before + 1)
        expect(self.page.locator("details.origin")).to_have_count(before + 1)  # the reply is complete
        return answers.last

    def log_in(self) -> None:
        """Open the admin page."""
        self.page.goto(f"{self.url}/admin")
        self.page.get_by_label("비밀번호").fill(PASSWORD)
        self.page.keyboard.press("Enter")
        expect(self.page.get_by_role("link", name="한눈에")).to_be_visible()

    def violations(self) -> list[str]:
        """What axe finds serious or critical on the page as it is now."""
        found = Axe().run(self.page).response
        assert found["passes"], "axe has looked at nothing"
        grave = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        return [f"{one['id']}: {node['html']}" for one in grave for node in one["nodes"]]


@pytest.fixture(scope="module")
def url(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of two runs; the second adds something to every answer."""
    runs = tmp_path_factory.mktemp("served")
    for number in (1, 2):
        copy_run(trained, runs / f"{number:04d}", number, suffix="" if number == 1 else " 힘내요!")
    environment = {name: value for name, value in os.environ.items() if name != "DAEDAP_LANG"}
    options = ["--runs", str(runs), "--port", "0", "--owner-password", PASSWORD, "--name", "마음상담소"]
    process = subprocess.Popen(
        [sys.executable, "-m", "daedap", "serve", *options],
        env={**environment, "LC_ALL": "en_US.UTF-8", "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stderr
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if received := re.search(r"http://\S+", line):
                wait_until_ready(received[0], process)
                yield received[0]
                break
        else:
            pytest.fail("".join(lines))
    finally:
        process.terminate()
        process.communicate(timeout=30)


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        with suppress(OSError), urlopen(f"{url}/ready") as response:
            assert response.status == 200
            return
        if process.poll() is not None:
            pytest.fail(process.stderr.read() if process.stderr else "the server has ended")
        time.sleep(0.1)
    pytest.fail("the server is not ready after a minute")


def copy_run(run: Run, folder: Path, number: int, suffix: str) -> None:
    shutil.copytree(run.folder, folder)
    for name in ("index/pairs.jsonl", "data/dev.jsonl", "data/test.jsonl"):  # a bot answers from the held-out rows, too
        rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({**row, "answer": row["answer"] + suffix}, ensure_ascii=False) + "\n" for row in rows]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    (folder / "manifest.json").unlink()
    write_json(folder / "manifest.json", {**run.manifest, "number": number, "files": run_store.sizes(folder)})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(url: str, browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens the page as somebody who was never there before. At the end, no page has complained in its console."""
    visits: list[Visit] = []

    def open_page(size: tuple[int, int] = DESKTOP, locale: str = "ko-KR", colours: str = "light") -> Visit:
        context = browser.new_context(
            locale=locale,
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if colours == "dark" else "light",
            reduced_motion="reduce",
        )
        context.set_default_timeout(30_000)
        page, complaints = context.new_page(), list[str]()
        visits.append(Visit(page, url, complaints))
        page.on("console", lambda message: complaints.extend([message.text] * (message.type == "error")))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        expect(page.get_by_role("list", name=re.compile("질문 예시|Examples")).get_by_role("button")).to_have_count(4)
        return visits[-1]

    yield open_page
    for each in visits:
        each.page.context.close()
    assert [text for each in visits for text in each.complaints] == []


# ---- the files ----


def scripts() -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")}


def test_every_text_has_its_korean() -> None:
    words = scripts()["words.js"]
    korean = re.findall(r'^  "((?:[^"\\]|\\.)*)": "(.+)",$', words, re.MULTILINE)
    used = {text for source in scripts().values() for text in re.findall(r'\bt\(\s*"((?:[^"\\]|\\.)*)"', source)}
    assert used == {text for text, _ in korean}
    for text, received in korean:
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", received)), text
        assert re.search("[가-힣]", received) or text == "{count} steps", text


def test_nothing_is_loaded_from_elsewhere_and_no_text_becomes_markup() -> None:
    files = {path: path.read_text(encoding="utf-8") for path in STATIC.rglob("*.*")}
    imports = {name for text in files.values() for name in re.findall(r'from "(.+?)"', text)}
    assert imports <= {f"./{path.relative_to(STATIC).as_posix()}" for path in files}
    for path, text in files.items():
        own = text.replace("http://www.w3.org", "")
        if path.parent == STATIC:
            assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|dangerouslySet", text), path
            assert not re.search(r"(src|href)=\"?(https?:)?//|@import|url\(", own), path
        if path.suffix == ".html":
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", text), "forbidden by the policy of the server"


def test_the_wheel_holds_the_page() -> None:
    settings = (STATIC.parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'packages = ["daedap"]' in settings  # all its files, unless git ignores them
    ignored = ["git", "check-ignore", *map(str, STATIC.rglob("*.*"))]
    assert subprocess.run(ignored, cwd=STATIC, capture_output=True, text=True, check=False).stdout == ""


# ---- the page ----


@browser_needed
def test_ask_and_see_where_the_answer_came_from(visit: Callable[..., Visit]) -> None:
    here = visit()
    pair = PAIRS[9]
    expect(here.page.get_by_text("AI가 답해요.")).to_be_visible()
    answer = here.ask(pair.question)
    expect(answer).to_have_text(f"{pair.answer} 힘내요!")
    expect(here.page.get_by_role("status")).to_have_text(f"{pair.answer} 힘내요!")  # received once, when it is complete
    origin = here.page.locator("details.origin")
    expect(origin.locator("dl")).to_be_hidden()
    origin.locator("summary").click()
    expect(origin.locator("dl")).to_contain_text(pair.question)
    expect(origin.locator("dl")).to_contain_text("학습 결과 2번")
    expect(here.page.get_by_role("navigation", name="지난 대화")).to_contain_text(pair.question)
    here.page.reload()
    expect(here.page.get_by_test_id("answer")).to_have_text(f"{pair.answer} 힘내요!")


@browser_needed
def test_the_answer_streams(visit: Callable[..., Visit]) -> None:
    here = visit()
    asked = """async question => {
        const { ask } = await import("/static/api.js");
        const events = [];
        const reply = await ask({ question }, undefined, (name, data) => events.push([name, data.text]));
        return [events, reply.answer];
    }"""
    events, answer = here.page.evaluate(asked, PAIRS[3].question)
    assert [name for name, _ in events] == ["start", *["text"] * (len(events) - 2), "done"]
    assert len(events) > 3
    assert "".join(text for name, text in events if name == "text") == answer == f"{PAIRS[3].answer} 힘내요!"


@browser_needed
def test_a_script_in_a_question_is_text(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.ask(ATTACK)
    expect(here.page.locator(".asked .text")).to_have_text(ATTACK)
    assert here.page.title() == "마음상담소"
    assert here.page.locator(".turn img, .turn script").count() == 0
    here.ask("https://example.com/배송?a=1 에서 봤는데요")
    expect(here.page.locator(".asked a")).to_have_attribute("href", "https://example.com/배송?a=1")
    expect(here.page.locator(".asked a")).to_have_attribute("rel", re.compile("noopener"))


@browser_needed
def test_a_visitors_correction_waits_and_the_owners_acts(visit: Callable[..., Visit]) -> None:
    question, right = "화분에 물은 언제 줘야 하나요", "흙이 마르면 듬뿍 주세요."
    guest = visit(PHONE)
    guest.ask(question)
    correct(guest, right)
    expect(guest.page.get_by_text("관리자가 확인하면")).to_be_visible()
    expect(guest.ask(question)).not_to_have_text(right)
    owner = visit()
    owner.log_in()
    owner.page.get_by_role("link", name="고친 답").click()
    card = owner.page.get_by_role("listitem").filter(has_text=question)
    expect(card).to_contain_text(right)
    owner.page.keyboard.press("a")
    expect(owner.page.get_by_text("기다리는 제안이 없어요.")).to_be_visible()
    expect(guest.ask(question)).to_have_text(right)
    expect(guest.page.locator("details.origin").last).to_contain_text("고쳐 준 답")
    owner.page.get_by_role("button", name="쓰는 중").click()
    expect(owner.page.get_by_role("listitem").filter(has_text=question)).to_contain_text("1 번 쓰임")
    owner.page.goto(owner.url)
    owner.ask("창문은 몇 번 닦아요")
    correct(owner, "한 달에 한 번이요.", scope="이 질문에만")
    owner.page.get_by_role("button", name="다시 물어보기").click()
    expect(owner.page.get_by_test_id("answer").last).to_have_text("한 달에 한 번이요.")


def correct(here: Visit, right: str, scope: str = "비슷한 질문에도") -> None:
    """Thumbs down opens the editor; what the lesson will answer is shown before it is sent."""
    here.page.get_by_role("button", name="아쉬운 답이에요").last.click()
    answer = here.page.get_by_label("올바른 답")
    expect(answer).to_be_focused()
    answer.fill(right)
    here.page.get_by_role("radio", name=scope).check()
    expect(here.page.locator(".preview h3")).to_be_visible()
    here.page.keyboard.press("Control+Enter")


@browser_needed
def test_the_queue_by_keys(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.ask("기린은 목이 왜 길어요")
    here.ask("해왕성은 몇 번째 행성이에요")
    here.log_in()
    here.page.get_by_role("link", name="못 알아들은 질문").click()
    cards = here.page.locator(".card")
    card = cards.filter(has_text="기린은")
    expect(card).to_be_visible()
    card.focus()
    here.page.keyboard.press("e")
    expect(here.page.get_by_label("올바른 답")).to_be_focused()
    here.page.keyboard.type("높은 잎을 먹으려고요.")
    here.page.keyboard.press("Control+Enter")
    expect(here.page.get_by_text("배웠어요: “기린은 목이 왜 길어요”")).to_be_visible()
    expect(card).to_have_count(0)
    cards.filter(has_text="해왕성").focus()
    here.page.keyboard.press("r")
    expect(cards.filter(has_text="해왕성")).to_have_count(0)


@browser_needed
def test_two_runs_are_compared_blindly(visit: Callable[..., Visit]) -> None:
    here = visit()
    page = here.page
    page.get_by_role("button", name="비교").click()
    for wins in (1, 2):
        page.get_by_label("질문", exact=True).fill(PAIRS[5 + wins].question)
        page.keyboard.press("Enter")
        choice = page.get_by_role("group", name="어느 답이 나은가요?")
        expect(choice).to_be_focused()
        shown = page.locator(".turn").last.locator(".candidate")
        assert "학습 결과" not in " ".join(shown.all_inner_texts())
        page.keyboard.press("1" if shown.first.inner_text().endswith("힘내요!") else "2")
        expect(shown.filter(has_text="고른 답")).to_contain_text("학습 결과 2번")
        expect(page.get_by_test_id("tally")).to_contain_text(f"학습 결과 2번 {wins}")
        expect(page.get_by_test_id("tally")).to_contain_text("학습 결과 1번 0")


@browser_needed
def test_keyboard_alone(visit: Callable[..., Visit]) -> None:
    here = visit(PHONE)
    page = here.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="질문 칸으로 가기")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("첫 줄")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("둘째 줄")
    expect(page.get_by_label("질문", exact=True)).to_have_value("첫 줄\n둘째 줄")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("answer")).to_have_count(1)
    expect(page.get_by_label("질문", exact=True)).to_be_focused()
    tab_to(page, page.get_by_role("button", name="아쉬운 답이에요"), key="Shift+Tab")
    page.keyboard.press("Space")
    expect(page.get_by_label("올바른 답")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_label("올바른 답")).to_have_count(0)
    expect(page.get_by_role("button", name="답 고치기")).to_be_focused()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    expect(page.get_by_label("질문", exact=True)).to_be_focused()
    tab_to(page, page.get_by_role("button", name="대화", exact=True).first, key="Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("complementary").get_by_role("button", name="새 대화")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("complementary")).to_be_hidden()


def tab_to(page: Page, target: Locator, key: str) -> None:
    for _ in range(30):
        page.keyboard.press(key)
        if target.evaluate("element => element === document.activeElement"):
            return
    pytest.fail("not reached by the keyboard")


@browser_needed
@pytest.mark.parametrize(("size", "colours"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_the_page_is_accessible(visit: Callable[..., Visit], size: tuple[int, int], colours: str) -> None:
    here = visit(size, colours=colours)
    assert here.violations() == []
    here.ask(PAIRS[0].question)
    here.page.locator("details.origin summary").click()
    here.page.get_by_role("button", name="아쉬운 답이에요").click()
    here.page.get_by_label("올바른 답").fill("다른 답이에요.")
    expect(here.page.locator(".preview h3")).to_be_visible()
    assert here.violations() == []
    assert here.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"


@browser_needed
def test_the_admin_page_is_accessible(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.ask("토성의 고리는 무엇으로 되어 있나요")
    here.log_in()
    for name in ("한눈에", "못 알아들은 질문", "고친 답", "대화", "기록", "학습 결과"):
        here.page.get_by_role("navigation").get_by_role("link", name=name).click()
        expect(here.page.get_by_role("heading", level=1)).to_be_visible()
        expect(here.page.locator(".typing")).to_have_count(0)
        assert here.violations() == []
    here.page.get_by_role("button", name="학습 결과 2번").click()
    expect(here.page.get_by_role("img", name="손실")).to_be_visible()
    assert here.violations() == []
    here.page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    here.page.get_by_role("navigation").get_by_role("link", name="기록").click()
    log = here.page.locator("table.log")
    expect(log).to_contain_text("로그인")
    assert here.violations() == []
    assert log.evaluate("table => table.scrollWidth <= table.parentElement.clientWidth"), "its details can be read"


@browser_needed
def test_the_report_opens_from_the_admin_page(visit: Callable[..., Visit]) -> None:
    here = visit((1200, 800))
    here.page.goto(f"{here.url}/admin/runs/2/report")
    expect(here.page).to_have_url(f"{here.url}/admin")  # a visitor is led to the login
    here.log_in()
    here.page.goto(f"{here.url}/admin#runs")
    here.page.reload()
    here.page.get_by_role("button", name="학습 결과 2번").click()
    with here.page.expect_popup() as opened:
        here.page.get_by_role("link", name="전체 보고서").click()
    report = Visit(opened.value, here.url, here.complaints)
    report.page.on("console", lambda message: here.complaints.append(message.text))
    expect(report.page.get_by_role("heading", level=1)).to_have_text("학습 결과 2번")  # as the file, not as the locale
    assert report.violations() == []
    sticks_out = "[...document.querySelectorAll('.scroll')].some(part => part.scrollWidth > part.clientWidth)"
    assert not report.page.evaluate(sticks_out), "all columns of the scores are there"
    report.page.set_viewport_size({"width": 390, "height": 844})
    assert report.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@browser_needed
def test_english_dark_and_offline(visit: Callable[..., Visit]) -> None:
    here = visit(locale="en-GB", colours="dark")
    page = here.page
    expect(page.get_by_text("An AI answers.")).to_be_visible()
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(background) != dark
    page.reload()
    assert page.evaluate(background) != dark, "the choice is kept"
    expect(page.get_by_role("list", name="Examples")).to_be_visible()
    page.context.set_offline(True)
    expect(page.get_by_text("You are offline.")).to_be_visible()
    page.get_by_label("Your question").fill("hello")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.context.set_offline(False)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


@browser_needed
def test_a_failure_can_be_tried_again(visit: Callable[..., Visit]) -> None:
    here = visit()
    busy = json.dumps({"error": {"message": "", "type": "", "param": None, "code": "too_busy"}})
    refuse = {"status": 429, "body": busy, "headers": {"Retry-After": "7", "Content-Type": "application/json"}}
    here.page.route("**/api/ask", lambda route: route.fulfill(**refuse), times=1)
    here.page.get_by_label("질문", exact=True).fill(PAIRS[4].question)
    here.page.keyboard.press("Enter")
    expect(here.page.get_by_role("alert")).to_contain_text("7초 뒤에")
    here.page.get_by_role("button", name="다시 시도").click()
    expect(here.page.get_by_test_id("answer")).to_have_text(f"{PAIRS[4].answer} 힘내요!")
    here.complaints.clear()  # the browser's own note on the 429


@browser_needed
def test_conversations_can_be_deleted(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.ask(PAIRS[1].question)
    past = here.page.get_by_role("navigation", name="지난 대화")
    past.get_by_role("button", name="지우기").click()
    past.get_by_role("button", name="지우기", exact=True).click()
    expect(past.get_by_role("button")).to_have_count(0)
    expect(here.page.get_by_text("무엇이 궁금하세요?")).to_be_visible()
