from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from conftest import PAIRS, daedap_process

from daedap.cli import _LIST_OPTIONS, _completed
from daedap.cli import run as cli
from daedap.commands.chat import Talk
from daedap.config import BenchOptions, EvalOptions, ModelOptions, ReadOptions, TrainOptions, TuneOptions
from daedap.retrieval.bot import Bot
from daedap.runs import Run
from daedap.serve.options import ServeOptions

pytestmark = pytest.mark.slow

Output = pytest.CaptureFixture[str]
HANGUL = re.compile("[가-힣]")
HEAVY = {"torch", "transformers", "sklearn", "scipy", "numpy", "peft", "accelerate"}
IMPORTED = """
import sys
from daedap.cli import run
code = run(sys.argv[1:])
print(code, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def imported(*arguments: str, folder: Path) -> set[str]:
    """Top packages that a command has loaded by its end."""
    process = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments], cwd=folder, capture_output=True, encoding="utf-8", check=True
    )
    code, *modules = process.stderr.splitlines()[-1].split()
    assert code == "0", process.stderr
    return set(modules)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["runs", "--help"]])
def test_help_loads_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    modules = imported(*arguments, folder=tmp_path)
    assert "cyclopts" in modules
    assert not modules & (HEAVY - {"numpy"} if arguments[:1] == ["runs"] else HEAVY)


def test_light_commands_load_no_torch(tmp_path: Path, trained: Run, qa: Path) -> None:
    runs = ["--runs", str(trained.folder.parent)]
    report = ["report", *runs, "--out", str(tmp_path / "report.html")]
    light = (["runs", *runs], ["check", str(qa)], ["answer", PAIRS[0].question, *runs], report, ["tune", "--help"])
    for command in light:
        assert not imported(*command, folder=tmp_path) & {"torch", "transformers", "peft"}


def test_help_names_every_command_and_option(capsys: Output) -> None:
    assert cli(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(name in page for name in ("check", "train", "answer", "chat", "evaluate", "runs", "--json"))
    assert cli(["train", "--help"]) == 0
    page = capsys.readouterr().out
    options = (
        "--base --method --layers --fraction --num-train-epochs --learning-rate --seed --resume --runs --report-to"
    )
    assert all(option in page for option in options.split())


def test_help_in_korean(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_LANG", "ko")
    assert cli(["train", "--help"]) == 0
    assert len(HANGUL.findall(capsys.readouterr().out)) > 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frob"], "frob: 그런 명령은 없습니다. 있는 명령: check, train,"),
        (["chek", "a.csv"], "chek: 그런 명령은 없습니다. 혹시 check?"),
        (["train", "qa.csv", "--nope", "1"], "--nope: 그런 옵션은 없습니다. daedap train --help"),
        (["train", "qa.csv", "--seeds", "1"], "--seeds: 그런 옵션은 없습니다. 혹시 --seed?"),
        (["train", "qa.csv", "--num-train-epochs", "many"], "--num-train-epochs many: 정수가 아닙니다."),
        (["train", "qa.csv", "--dropout", "x"], "--dropout x: 수가 아닙니다."),
        (["train", "qa.csv", "--budget", "soon"], "--budget soon: 시간이 아닙니다."),
        (["train", "qa.csv", "--method", "magic"], "--method magic: lora, full 중에서 고르세요."),
        (["train", "--num-train-epochs"], "--num-train-epochs 뒤에 값이 있어야 합니다."),
        (["train", "--seed", "1", "--seed", "2"], "--seed: 두 번 주었습니다."),
        (["check"], "FILE이(가) 빠졌습니다: daedap check FILE"),
        (["check", "a.csv", "b.csv"], "b.csv: 단어가 남습니다."),
        (["answer", "안녕", "--rows", "3"], "--rows: 그런 옵션은 없습니다."),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(arguments) == 2
    english = capsys.readouterr()
    assert english.out == "" and english.err.startswith("daedap: ") and english.err.count("\n") == 1
    assert not HANGUL.search(english.err.replace("안녕", ""))
    monkeypatch.setenv("DAEDAP_LANG", "ko")
    assert cli(arguments) == 2
    assert capsys.readouterr().err.startswith(f"daedap: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["주차", "되나요"],
        ["--runs", "{runs}", "주차", "되나요"],
        ["주차", "--runs", "{runs}", "되나요"],
        ["--", "주차 되나요", "--runs", "{runs}"],
        ["--", "주차", "되나요"],
    ],
)
def test_a_question_needs_no_quotes(words: list[str], trained: Run, capsys: Output) -> None:
    runs = str(trained.folder.parent)
    given = [word.format(runs=runs) for word in words]
    assert cli(["answer", *given, *([] if "--runs" in given else ["--runs", runs]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["question"] == "주차 되나요"


def test_a_question_may_begin_with_a_hyphen(trained: Run, capsys: Output) -> None:
    for words in (["-1도 되나요?"], ["--", "-1도 되나요?"], ["-1도", "되나요?"]):
        assert cli(["answer", *words, "--runs", str(trained.folder.parent), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["question"] == "-1도 되나요?"


def test_the_remedy_for_columns_is_the_same_command(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "내 파일.csv"
    path.write_text("코너,글쓴이,글귀,글월\n배송,김철수,언제 오나요?,내일 와요.\n", encoding="utf-8")
    words = ["train", str(path), "--seed", "7", "--question-column", "글쓴이", "--runs", str(tmp_path / "r")]
    for command, given in (("check", words[:2]), ("train", words)):
        assert cli([command, *given[1:]]) == 1
        message = capsys.readouterr().err
        repeated = shlex.split(message.rpartition(": ")[2])
        assert repeated[:3] == ["daedap", command, str(path)]
        assert repeated[-4::2] == ["--question-column", "--answer-column"]
        assert "글쓴이" not in repeated and repeated[3:-4] == [word for word in given[2:] if word in repeated[3:-4]]


@pytest.mark.parametrize(
    "words", [["--augment", "typo,spacing"], ["--augment=typo,spacing"], ["--augment", "typo"] * 2]
)
def test_values_of_a_list_are_joined_by_commas(words: list[str]) -> None:
    completed = _completed(["train", "qa.csv", *words, "--seed", "1"])
    assert completed[:4] == ["train", "qa.csv", "--augment", "typo"]
    assert completed[4:] == ["--augment", "typo" if len(words) == 4 else "spacing", "--seed", "1"]


def test_every_list_option_is_split_at_commas() -> None:
    options = [ServeOptions, TrainOptions, BenchOptions, ModelOptions, ReadOptions, TuneOptions, EvalOptions]
    lists = {
        f"--{name.replace('_', '-')}"
        for each in options
        for name, kind in get_type_hints(each).items()
        if {tuple, list, Sequence} & {get_origin(each) for each in (kind, *get_args(kind))}
    }
    assert lists == _LIST_OPTIONS


def test_exit_codes_of_the_program(tmp_path: Path, qa: Path) -> None:
    assert daedap_process("check", str(qa), folder=tmp_path).returncode == 0
    mistaken = daedap_process("check", "없는파일.csv", folder=tmp_path)
    assert (mistaken.returncode, mistaken.stdout) == (1, "")
    assert mistaken.stderr == "daedap: 없는파일.csv doesn't exist. Check the name and the folder.\n"
    wrong = daedap_process("check", "--frob", folder=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_messages_in_korean(tmp_path: Path) -> None:
    message = daedap_process("check", "qa.csv", folder=tmp_path, DAEDAP_LANG="ko").stderr
    assert HANGUL.search(message)
    assert "qa.csv" in message
    posix = {"DAEDAP_LANG": "", "LC_ALL": "ko_KR.UTF-8"}
    assert daedap_process("check", "qa.csv", folder=tmp_path, **posix).stderr == message


def test_the_folder_of_runs(tmp_path: Path, trained: Run) -> None:
    runs = str(trained.folder.parent)
    listed = daedap_process("runs", "--json", folder=tmp_path, DAEDAP_RUNS=runs)
    assert [entry["number"] for entry in json.loads(listed.stdout)["runs"]] == [1]
    given = daedap_process("runs", "--json", "--runs", str(tmp_path), folder=tmp_path, DAEDAP_RUNS=runs)
    assert json.loads(given.stdout)["runs"] == []
    (tmp_path / "runs").symlink_to(runs)
    assert json.loads(daedap_process("runs", "--json", folder=tmp_path).stdout)["runs"][0]["number"] == 1


def test_resume_without_a_value_is_the_latest(tmp_path: Path, capsys: Output) -> None:
    runs = str(tmp_path)
    for words in (["--resume", "--runs", runs], ["--runs", runs, "--resume"], ["--resume=latest", "--runs", runs]):
        assert cli(["train", *words]) == 1
        assert capsys.readouterr().err == f"daedap: {runs}: no interrupted run. Start one: daedap train FILE\n"
    assert cli(["train", "--resume", "7", "--runs", runs]) == 1
    assert "0007: no such run" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough(tmp_path: Path, qa: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "daedap", "check", str(qa)]
    process = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, check=False, encoding="utf-8")
    os.close(write)
    assert (process.returncode, process.stderr) == (0, "")


# ---- chat: a conversation through a pipe, and at a terminal ----


def verdicts(run: Run) -> list[dict[str, Any]]:
    lines = (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] in ("good", "bad")]


@pytest.fixture
def own(trained: Run, tmp_path: Path) -> Run:
    """A copy of the trained run, to be written into."""
    shutil.copytree(trained.folder, tmp_path / "runs" / "0001")
    return Run(tmp_path / "runs" / "0001")


def piped(own: Run, lines: bytes) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "daedap", "chat", "--runs", str(own.folder.parent)]
    variables = {**os.environ, "DAEDAP_LANG": "en", "PYTHONUTF8": "1"}
    process = subprocess.run(command, input=lines, env=variables, capture_output=True, check=False, timeout=60)
    return process.returncode, process.stdout.decode(), process.stderr.decode()


def test_chat_through_a_pipe(own: Run) -> None:
    typed = ["/good", PAIRS[0].question, "/good", "", PAIRS[9].question, "/bad", "/what", "/quit", "never read"]
    code, out, err = piped(own, "\n".join(typed).encode())
    assert (code, err) == (0, "")
    assert out.replace("> ", "").splitlines() == [
        "Run 1. /good and /bad judge the last answer; 종료, 끝, exit or quit end the chat.",
        "Nothing has been answered yet.",
        PAIRS[0].answer,
        "Noted.",
        PAIRS[9].answer,
        "Noted.",
        "Commands: /good /bad /teach ANSWER /quit",
    ]
    good, bad = verdicts(own)
    assert (good["event"], good["question"], good["answer"]) == ("good", PAIRS[0].question, PAIRS[0].answer)
    assert (bad["event"], bad["source"], bad["evidence"]["question"]) == ("bad", "retrieved", PAIRS[9].question)
    assert good["time"] <= bad["time"]
    own.check_files()


def test_chat_ends_with_its_input(own: Run) -> None:
    code, out, err = piped(own, PAIRS[1].question.encode())
    assert (code, err) == (0, "")
    assert PAIRS[1].answer in out
    assert verdicts(own) == []


@pytest.mark.parametrize("word", ["종료", "끝", "exit", "Quit", "/quit"])
def test_words_that_end_a_chat(trained: Run, word: str) -> None:
    talk = Talk(Bot.from_run(trained, held_out=True))
    assert talk.take("/good") and not talk.take(word)


def test_chat_with_a_closed_input_ends_quietly(trained: Run) -> None:
    command = [sys.executable, "-m", "daedap", "chat", "--runs", str(trained.folder.parent)]
    process = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command],
        capture_output=True,
        check=False,
        env={**os.environ, "DAEDAP_LANG": "en"},
    )
    assert (process.returncode, process.stderr) == (0, b"")


def test_chat_survives_what_it_can_not_answer(own: Run) -> None:
    """Bytes that are no UTF-8, and a question longer than the model."""
    too_long = "끝없이 이어지는 이야기를 ".encode() * 100
    code, out, err = piped(own, b"\n".join([b"\xbe\xc8\xb3\xe7", too_long, PAIRS[1].question.encode(), b"/good"]))
    assert (code, err) == (0, "")
    assert "잘 이해하지 못했어요" in out or "혹시 이 질문인가요?" in out
    assert PAIRS[1].answer in out
    assert out.count("\n> ") == 5, "every line was answered"
    assert [event["question"] for event in verdicts(own)] == [PAIRS[1].question]


class Terminal:
    """A chat at a terminal."""

    def __init__(self, own: Run) -> None:
        import pty  # not on Windows

        self.master, side = pty.openpty()
        variables = {**os.environ, "DAEDAP_LANG": "en", "PYTHONUTF8": "1", "TERM": "dumb"}
        command = [sys.executable, "-m", "daedap", "chat", "--runs", str(own.folder.parent)]
        # In the background a shell lets the tests ignore Ctrl-C, and what they start would too.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, env=variables, start_new_session=True
        )
        signal.signal(signal.SIGINT, before)
        os.close(side)
        self.shown = b""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until the screen shows a text; what comes after it is for the next time."""
        end = time.monotonic() + 60
        while text.encode() not in self.shown:
            assert time.monotonic() < end, f"{text!r} is not in {self.shown.decode()!r}"
            self.read(1)
        self.shown = self.shown.partition(text.encode())[2]

    def read(self, seconds: float) -> None:
        ready, _, _ = select.select([self.master], [], [], seconds)
        with contextlib.suppress(OSError):  # Linux says so when the other side is closed
            self.shown += os.read(self.master, 4096) if ready else b""

    def end(self, signals: Sequence[signal.Signals] = ()) -> tuple[int | None, str]:
        """The exit code, and what was shown last."""
        end = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < end:
            for number in () if self.shown else signals:  # again: Python may miss one just before it waits for a line
                self.process.send_signal(number)
            self.read(1)
        self.read(0)
        return self.process.returncode, self.shown.decode()

    def close(self) -> None:
        self.process.kill()  # nothing, when it has ended
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(own: Run) -> Iterator[Terminal]:
    if os.name == "nt":
        pytest.skip("no pseudo-terminals")
    terminal = Terminal(own)
    yield terminal
    terminal.close()


def test_chat_at_a_terminal(terminal: Terminal, own: Run) -> None:
    terminal.wait_for("> ")
    terminal.type(PAIRS[0].question + "\n")
    terminal.wait_for(PAIRS[0].answer)
    terminal.wait_for("> ")
    terminal.type("/good\n")
    terminal.wait_for("Noted.")
    terminal.type("/quit\n")
    code, shown = terminal.end()
    assert code == 0
    assert "Traceback" not in shown
    assert [event["event"] for event in verdicts(own)] == ["good"]


@pytest.mark.parametrize("key", ["interrupt", "end of input"])
def test_chat_ends_at_ctrl_c_and_ctrl_d(terminal: Terminal, key: str) -> None:
    terminal.wait_for("> ")
    if key == "end of input":
        terminal.type("\x04")
    code, shown = terminal.end([signal.SIGINT] if key == "interrupt" else [])
    assert code == 0
    assert shown.replace("^C", "").strip() == ""
