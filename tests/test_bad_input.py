"""What goes wrong for users: each time one clear line, exit code 1, no traceback, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PAIRS, daedap_process, write_csv

from daedap.cli import run as cli
from daedap.config import SplitOptions
from daedap.data.split import split
from daedap.runs import Run
from daedap.types import Pair

pytestmark = pytest.mark.slow

Output = pytest.CaptureFixture[str]
HEADER_AND = "질문,답변\n"
FILES: dict[str, tuple[bytes, str, str]] = {
    "missing": (b"", "a.csv doesn't exist.", "Check the name and the folder."),
    "folder": (b"", "a.csv is a folder.", "Give one file of pairs in it."),
    "empty": (b"", "a.csv is empty.", "Write one question and answer per line."),
    "blank": (b" \n\n", "a.csv is empty.", "Write one question and answer per line."),
    "separator": (b"sep=,\n", "a.csv is empty.", "Write one question and answer per line."),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "a.csv is not a text file but PNG.", "Save it as CSV"),
    "binary": (b"a,b\n" + bytes(64), "a.csv, line 2: a NUL byte", "Save it again as CSV"),
    "header": (HEADER_AND.encode(), "a.csv holds only a header.", "Add one question and answer per line below it."),
    "one column": (
        "안녕\n반가워\n".encode(),
        "a.csv has only one column (안녕)",
        "Separate them with a comma or a tab",
    ),
    "useless": (
        (HEADER_AND + "안녕,\n,네\n").encode(),
        "none of the 2 rows is usable; first, line 2: empty answer",
        "See all findings with daedap check.",
    ),
    "mixed": (
        (HEADER_AND + "안녕하세요,반가워요\n" * 9).encode() + "다른 파일에서,옮겨 왔어요\n".encode("cp949"),
        "a.csv, line 11: this line is CP949, the others are UTF-8",
        "Convert the parts to UTF-8 before you join them",
    ),
}


def refused(capsys: Output, *arguments: object) -> str:
    """The one line that a refused command says."""
    capsys.readouterr()
    assert cli([str(argument) for argument in arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    lines = [line for line in output.err.splitlines() if "step/s" not in line]
    assert len(lines) == 1, output.err
    assert lines[0].startswith("daedap: ")
    return lines[0]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("command", ["check", "train"])
def test_files(tmp_path: Path, capsys: Output, command: str, kind: str) -> None:
    content, what, remedy = FILES[kind]
    file = tmp_path / "a.csv"
    if kind == "folder":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes(content)
    if (command, kind) == ("check", "useless"):
        pytest.skip("check tells all findings: tests/test_commands.py")
    runs = ["--runs", tmp_path / "runs"] if command == "train" else []
    message = refused(capsys, command, file, *runs)
    assert str(file) in message
    assert what in message
    assert remedy in message
    assert [path.name for path in tmp_path.iterdir()] == ([] if kind == "missing" else ["a.csv"])
    assert not file.is_file() or file.read_bytes() == content


def test_a_near_name_is_suggested(tmp_path: Path, capsys: Output) -> None:
    write_csv(tmp_path / "chatbot_data.csv")
    message = refused(capsys, "train", tmp_path / "chatbot_dat.csv", "--runs", tmp_path / "runs")
    assert f"Did you mean {tmp_path / 'chatbot_data.csv'}?" in message


def test_a_wrong_column_name_suggests_near_ones(qa: Path, tmp_path: Path, capsys: Output) -> None:
    message = refused(capsys, "train", qa, "--label-column", "labels", "--runs", tmp_path / "runs")
    assert "no column labels; its columns are Q, A, label. Did you mean label?" in message
    assert not (tmp_path / "runs").exists()


def test_a_single_row_that_falls_to_the_test_side(tmp_path: Path, capsys: Output) -> None:
    rows = (Pair(f"{n}번째 질문", "네, 그래요.") for n in range(999))
    lone = next(pair for pair in rows if split([pair], SplitOptions()).assignments != ["train"])
    message = refused(capsys, "train", write_csv(tmp_path / "a.csv", [lone]), "--runs", tmp_path / "runs")
    assert "1 usable row(s), none of which is left to train on. Add rows, or keep none apart" in message
    assert not (tmp_path / "runs").exists()


def test_a_single_row_is_enough(tmp_path: Path, capsys: Output) -> None:
    file, runs = write_csv(tmp_path / "a.csv", PAIRS[:1]), tmp_path / "runs"
    options = ["--num-train-epochs", "1", "--precision", "fp32", "--dev-size", "0", "--test-size", "0"]
    assert cli(["train", str(file), "--runs", str(runs), *options]) == 0
    assert cli(["answer", PAIRS[0].question, "--runs", str(runs)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == PAIRS[0].answer
    message = refused(capsys, "evaluate", "--runs", runs)
    assert "--data" in message


def test_rows_that_are_all_too_long_are_looked_up(tmp_path: Path, capsys: Output) -> None:
    pairs = [replace(pair, answer=f"{pair.answer} {'자세한 것은 물어봐 주세요. ' * 9}".strip()) for pair in PAIRS[:2]]
    file, runs = write_csv(tmp_path / "a.csv", pairs), str(tmp_path / "runs")
    assert cli(["check", str(file), "--base", "fresh", "--max-length", "32"]) == 0
    options = ["--num-train-epochs", "1", "--precision", "fp32", "--max-length", "32"]
    assert cli(["train", str(file), "--runs", runs, *options, "--base", "fresh"]) == 0
    assert cli(["answer", pairs[1].question, "--runs", runs]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == pairs[1].answer


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--fraction", "2"], "--fraction 2.0"),
        (["--test-size", "nan"], "--test-size nan"),
        (["--dev-size", "40", "--test-size", "40"], "all 80 rows"),
        (["--learning-rate", "5"], "--learning-rate 5.0"),
        (["--num-train-epochs", "0"], "--num-train-epochs 0"),
        (["--layers", "99"], "--layers 99"),
        (["--method", "lora", "--base", "fresh"], "--method lora needs a base"),
        (["--speaker", "엄마"], "엄마"),
    ],
)
def test_settings_that_can_not_be(qa: Path, tmp_path: Path, capsys: Output, options: list[str], named: str) -> None:
    runs = tmp_path / "runs"
    message = refused(capsys, "train", qa, "--runs", runs, *options)
    assert named in message
    assert not runs.exists() or not list(runs.iterdir())


# ---- bases ----


def no_weights(folder: Path) -> str:
    import toys

    (toys.llama(folder) / "model.safetensors").unlink()
    return "no weights (model.safetensors or pytorch_model.bin). Copy the model's weights into the folder."


def not_a_model(folder: Path) -> str:
    folder.mkdir()
    shutil.copy(__file__, folder)
    return "its tokenizer can't be loaded"


def cut_weights(folder: Path) -> str:
    import toys

    weights = toys.llama(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return "its weights can't be loaded"


def foreign_tokenizer(folder: Path) -> str:
    """English alone: every Hangul letter is unknown to it."""
    import toys
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "</s>", "<usr>", "<sys>"], show_progress=False)
    tokenizer.train_from_iterator(["a language model of plain English text"], trainer)
    tokenizer.save(str(toys.kogpt2(folder) / "tokenizer.json"))
    return "its tokenizer garbles Korean"


def small_vocabulary(folder: Path) -> str:
    import toys
    from transformers import LlamaConfig, LlamaForCausalLM

    toys.llama(folder)
    small = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(small).save_pretrained(folder)
    return "but the model only 64 embeddings. Tokenizer and model do not belong together"


@pytest.mark.parametrize("make", [no_weights, not_a_model, cut_weights, foreign_tokenizer, small_vocabulary])
def test_bases(qa: Path, tmp_path: Path, capsys: Output, make: Callable[[Path], str]) -> None:
    expected = make(tmp_path / "base")
    before = sorted(path.name for path in (tmp_path / "base").iterdir())
    message = refused(capsys, "train", qa, "--base", tmp_path / "base", "--runs", tmp_path / "runs")
    assert expected in message
    assert str(tmp_path / "base") in message
    assert not (tmp_path / "runs").exists()
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == before


def test_a_base_that_is_no_name(qa: Path, tmp_path: Path, capsys: Output) -> None:
    message = refused(capsys, "train", qa, "--base", "없는 폴더", "--runs", tmp_path / "runs")
    assert "없는 폴더: neither a folder nor a name on the hub" in message


def test_the_hub_can_not_be_reached(qa: Path, tmp_path: Path) -> None:
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
    process = daedap_process("train", str(qa), "--base", "skt/kogpt2-base-v2", folder=tmp_path, **closed)
    assert (process.returncode, process.stdout) == (1, "")
    assert "skt/kogpt2-base-v2: can't be downloaded from the hub" in process.stderr.splitlines()[-1]
    assert process.stderr.endswith("Download it elsewhere and give its folder: --base FOLDER\n")
    assert len(process.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


# ---- runs, disks ----


def test_a_file_in_place_of_the_runs(qa: Path, tmp_path: Path, capsys: Output) -> None:
    file = tmp_path / "runs"
    file.write_text("파일", encoding="utf-8")
    message = refused(capsys, "train", qa, "--runs", file)
    assert f"{file}: can't be written" in message
    assert "Choose another folder with --runs." in message
    assert file.read_text(encoding="utf-8") == "파일"


@pytest.mark.parametrize("command", [["answer", "안녕"], ["chat"], ["evaluate"]])
def test_runs_that_are_not_there(trained: Run, tmp_path: Path, capsys: Output, command: list[str]) -> None:
    assert "no complete run yet. Make one: daedap train FILE" in refused(capsys, *command, "--runs", tmp_path)
    message = refused(capsys, *command, "--run", "12", "--runs", trained.folder.parent)
    assert "0012: no such run. Runs in" in message
    assert message.endswith("See them with: daedap runs")


def test_a_damaged_run(trained: Run, tmp_path: Path, capsys: Output) -> None:
    shutil.copytree(trained.folder, tmp_path / "0001")
    weights = tmp_path / "0001" / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    message = refused(capsys, "answer", "안녕", "--runs", tmp_path)
    assert f"{weights}: 1,000 bytes instead of {len(whole):,}: the run is damaged." in message
    weights.write_bytes(whole)
    engine = tmp_path / "0001" / "engine" / "model.bin"
    engine.write_bytes(bytes(engine.stat().st_size))  # the size is right, the content isn't
    asked = ("answer", "모르는 질문", "--fallback", "off", "--samples", 8, "--runs", tmp_path)
    assert "weights can't be read" in refused(capsys, *asked)


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "image"])
def test_questions_that_can_not_be_read(trained: Run, tmp_path: Path, capsys: Output, kind: str) -> None:
    file, out = tmp_path / "q.txt", tmp_path / "a.jsonl"
    if kind == "folder":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes(FILES[kind][0])
    message = refused(capsys, "answer", "--in", file, "--out", out, "--runs", trained.folder.parent)
    assert str(file) in message
    assert not out.exists()


def test_answers_have_a_place_of_their_own(trained: Run, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "q.txt").write_text(PAIRS[0].question, encoding="utf-8")
    asked = ["answer", "--in", tmp_path / "q.txt", "--runs", trained.folder.parent]
    assert "this is the file of questions" in refused(capsys, *asked, "--out", tmp_path / "q.txt")
    assert "this is a folder" in refused(capsys, *asked, "--out", tmp_path)
    assert "Give a question, or both" in refused(capsys, *asked)
    assert "--rows 0" in refused(capsys, "evaluate", "--rows", 0, "--runs", trained.folder.parent)
    assert (tmp_path / "q.txt").read_text(encoding="utf-8") == PAIRS[0].question


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from daedap.cli import run
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="no limit on the size of files")
@pytest.mark.parametrize("space", [1_000, 4_000_000])
def test_a_full_disk(qa: Path, tmp_path: Path, space: int) -> None:
    """The disk ends while the rows are written, or the first checkpoint."""
    options = ["--num-train-epochs", "1", "--precision", "fp32", "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "-c", FULL, str(space), "train", str(qa), *options]
    process = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=120)
    assert (process.returncode, process.stdout) == (1, "")
    assert "Traceback" not in process.stderr
    message = process.stderr.splitlines()[-1]
    assert message.endswith("no space left to write. Free some space or choose another folder with --runs.")
    assert list((tmp_path / "runs").iterdir()) == []


def test_two_trainings_at_once(qa: Path, tmp_path: Path) -> None:
    options = ["--num-train-epochs", "1", "--precision", "fp32", "--no-evaluate", "--json"]
    command = [sys.executable, "-m", "daedap", "train", str(qa), *options]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted(json.loads(out)["number"] for out, _ in outputs) == [1, 2]
    for number in (1, 2):
        Run(tmp_path / "runs" / f"{number:04d}").check_files()
