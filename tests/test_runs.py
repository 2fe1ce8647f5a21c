from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import daedap.runs as run_store
from daedap.errors import RunError, StorageError
from daedap.files import digest, new_folder, remove_folder, write_json, write_lines, write_text
from daedap.runs import Run, TrainConfig, scratch_folder


def script(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONUTF8": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def finished(runs: Path, hits: float | None = None) -> Run:
    """A run that is complete as far as its folder tells."""
    run = run_store.create(runs)
    write_text(run.folder / "model" / "weights", "무게" * 100)
    write_json(run.folder / "config.json", TrainConfig(file="qa.csv").to_json())
    headline = {} if hits is None else {"hits_at_1": hits}
    manifest = {
        "format": run_store.FORMAT,
        "number": run.number,
        "headline": headline,
        "files": run_store.sizes(run.folder),
    }
    write_json(run.folder / "manifest.json", manifest)
    return run


def test_numbers_go_up_and_none_is_taken_twice(tmp_path: Path) -> None:
    runs = tmp_path / "깊은" / "곳"
    assert [run_store.create(runs).folder.name for _ in range(3)] == ["0001", "0002", "0003"]
    (runs / "0002").rmdir()
    (runs / "0041").mkdir()
    (runs / "메모.txt").touch()
    (runs / "²").mkdir()
    assert run_store.create(runs).number == 42
    assert [run.number for run in run_store.list_runs(runs)] == [1, 3, 41, 42]


def test_ten_thousandth_run(tmp_path: Path) -> None:
    (tmp_path / "9999").mkdir()
    assert run_store.create(tmp_path).folder.name == "10000"
    assert run_store.list_runs(tmp_path)[-1].number == 10000
    assert finished(tmp_path) == run_store.find("10001", tmp_path)


def test_processes_that_create_at_once_get_different_numbers(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from daedap.runs import create
        print("ready", flush=True)
        input()
        print(*(create(Path(sys.argv[1])).number for _ in range(50)))
    """
    processes = [script(code, tmp_path) for _ in range(2)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    numbers = [int(number) for output in outputs for number in output.split()]
    assert sorted(numbers) == list(range(1, 101))


def test_find_by_number_folder_latest_and_best(tmp_path: Path) -> None:
    first, second, third = (finished(tmp_path, hits) for hits in (0.3, 0.5, None))
    run_store.create(tmp_path)  # unfinished: neither latest nor best
    assert run_store.find("1", tmp_path) == run_store.find("0001", tmp_path) == first
    assert run_store.find(str(second.folder), Path("elsewhere")) == second
    assert run_store.find("latest", tmp_path) == third
    assert run_store.find("best", tmp_path) == second
    assert finished(tmp_path, 0.5) == run_store.find("best", tmp_path), "the later run among equals"


def test_unknown_runs_are_told_with_what_there_is(tmp_path: Path) -> None:
    finished(tmp_path)
    with pytest.raises(RunError, match=r"0007: no such run\. Runs in .*: 1\."):
        run_store.find("7", tmp_path)
    with pytest.raises(RunError, match="없는 것"):
        run_store.find("없는 것", tmp_path)
    for name in ("latest", "best"):
        with pytest.raises(RunError, match="no complete run yet"):
            run_store.find(name, tmp_path / "nowhere")


def test_damaged_runs_are_refused(tmp_path: Path) -> None:
    cut, lost, no_manifest, broken, other = (finished(tmp_path) for _ in range(5))
    weights = cut.folder / "model" / "weights"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RunError, match=r"weights: 100 bytes instead of 600: the run is damaged"):
        run_store.find("1", tmp_path)
    (lost.folder / "model" / "weights").unlink()
    with pytest.raises(RunError, match="0 bytes instead of 600"):
        run_store.find("2", tmp_path)
    (no_manifest.folder / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"no manifest\.json.*--resume"):
        run_store.find("3", tmp_path)
    for text in ("{", "", "[1]", "null"):
        (broken.folder / "manifest.json").write_text(text, encoding="utf-8")
        with pytest.raises(RunError, match=r"manifest\.json can't be read"):
            run_store.find("4", tmp_path)
    (other.folder / "manifest.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(RunError, match=r"manifest\.json can't be read"):
        run_store.find("5", tmp_path)


def test_interrupted_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no interrupted run"):
        run_store.interrupted("latest", tmp_path)
    complete, older, newer, empty = finished(tmp_path), *(run_store.create(tmp_path) for _ in range(3))
    for run in (older, newer):
        write_json(run.folder / "config.json", TrainConfig(file="qa.csv").to_json())
    assert run_store.interrupted("latest", tmp_path) == newer
    assert run_store.interrupted("2", tmp_path) == run_store.interrupted(str(older.folder), tmp_path) == older
    with pytest.raises(RunError, match="is complete; there is nothing to resume"):
        run_store.interrupted(str(complete.folder), tmp_path)
    with pytest.raises(RunError, match="no such run"):
        run_store.interrupted("9", tmp_path)
    with pytest.raises(RunError, match=r"config\.json.*Train again"):
        _ = run_store.interrupted(str(empty.folder), tmp_path).config


def test_another_process_is_refused_while_one_trains(tmp_path: Path) -> None:
    run = run_store.create(tmp_path)
    code = """
        import sys
        from pathlib import Path
        from daedap.runs import Run
        with Run(Path(sys.argv[1])).locked():
            print("locked", flush=True)
            input()
    """
    process = script(code, run.folder)
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(RunError, match="another process is training this run"), run.locked():
        pass
    assert run.busy
    process.kill()  # as when the machine runs out of memory
    process.communicate()
    assert not run.busy
    with run.locked():
        pass


def test_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt), new_folder(path) as folder:
        (folder / "a").write_text("반쪽", encoding="utf-8")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with new_folder(path) as folder:
        (folder / "a").write_text("하나", encoding="utf-8")
        assert not path.exists()
    with pytest.raises(ValueError, match="안 됨"), new_folder(path) as folder:
        (folder / "a").write_text("둘", encoding="utf-8")
        raise ValueError("안 됨")
    assert (path / "a").read_text(encoding="utf-8") == "하나"
    with new_folder(path) as folder:
        (folder / "b").write_text("셋", encoding="utf-8")
    assert [file.name for file in path.iterdir()] == ["b"]
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "manifest.json"
    write_json(path, {"이름": "대답"})
    with pytest.raises(TypeError):
        write_json(path, {"이름": object()})
    with pytest.raises(TypeError):
        write_lines(path, [{"하나": 1}, {"둘": object()}])
    assert json.loads(path.read_text(encoding="utf-8")) == {"이름": "대답"}
    write_lines(path, [{"하나": 1}, {"둘": 2}])
    assert path.read_text(encoding="utf-8") == '{"하나": 1}\n{"둘": 2}\n'
    assert [file.name for file in path.parent.iterdir()] == ["manifest.json"]


def test_a_file_name_in_another_encoding_can_be_written_down(tmp_path: Path) -> None:
    name = os.fsdecode("질문.csv".encode("cp949"))
    write_json(tmp_path / "config.json", TrainConfig(file=name).to_json())
    assert Run(tmp_path).config.file.startswith("?")


@pytest.mark.parametrize("work", ["create", "write", "folder", "note"])
def test_a_file_in_place_of_a_folder(tmp_path: Path, work: str) -> None:
    file = tmp_path / "runs"
    file.write_text("파일", encoding="utf-8")
    with pytest.raises(StorageError, match=r"runs.*can't be written.*another folder"):
        if work == "create":
            run_store.create(file)
        elif work == "write":
            write_text(file / "0001" / "a.txt", "글")
        elif work == "note":
            Run(file).note("good")
        else:
            with new_folder(file / "index"):
                pass
    assert file.read_text(encoding="utf-8") == "파일"


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="out"):
        write_text(tmp_path / "out", "글")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="can't be written"):
            run_store.create(tmp_path)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(os.name == "nt", reason="no limit on the size of files")
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from pathlib import Path
        from daedap.errors import StorageError
        from daedap.files import new_folder, write_text
        path = Path(sys.argv[1])
        write_text(path / "a.txt", "전")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write_text(path / "a.txt", "후" * 10_000)
        except StorageError as error:
            print(error)
        try:
            with new_folder(path / "model") as folder:
                (folder / "weights").write_bytes(bytes(20_000))
        except StorageError as error:
            print(error)
        try:
            from safetensors.numpy import save_file
            import numpy
            with new_folder(path / "model") as folder:
                save_file({"a": numpy.zeros(20_000)}, folder / "weights")
        except StorageError as error:
            print(error)
    """
    output, errors = script(code, tmp_path).communicate(timeout=60)
    assert errors == ""
    assert [line.partition(": ")[2].partition(".")[0] for line in output.splitlines()] == ["no space left to write"] * 3
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"a.txt": "전"}


def test_notes_are_appended(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.note("good", question="안녕", score=0.5)
    run.note("bad", question="\udcff")
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {"event": "good", "question": "안녕", "score": 0.5}
    assert json.loads(lines[1])["event"] == "bad"


@pytest.mark.parametrize("half", ["{", '{"event": "train", "los'])
def test_a_note_after_one_that_was_cut_short(tmp_path: Path, half: str) -> None:
    run = Run(tmp_path)
    (tmp_path / "log.jsonl").write_text(half, encoding="utf-8")
    run.note("good")
    with (tmp_path / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(half)
    run.note("bad", question="어제는?")
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["good", "bad"]


def dead() -> int:
    """The number of a process that is no more."""
    process = script("")
    process.communicate()
    return process.pid


def test_files_of_killed_processes_go_with_the_next_one(tmp_path: Path) -> None:
    mine = f".report.html.{socket.gethostname()}"
    living, elsewhere = f"{mine}.{os.getppid()}.tmp", f".report.html.elsewhere.{dead()}.tmp"
    for name in (f"{mine}.{dead()}.tmp", f".a[1].states.{socket.gethostname()}.{dead()}.tmp", living, elsewhere):
        (tmp_path / name).write_text("반쪽", encoding="utf-8")
    write_text(tmp_path / "다른 것.html", "온쪽")
    assert {path.name for path in tmp_path.iterdir()} == {living, elsewhere, "다른 것.html"}


def test_who_locks_a_run_clears_what_was_left(tmp_path: Path) -> None:
    run = finished(tmp_path)
    before = run_store.sizes(run.folder)
    (run.folder / ".model.tmp").mkdir()
    for name in (".model.tmp/weights", ".manifest.json.elsewhere.1.tmp", "model/.weights.elsewhere.1.tmp"):
        (run.folder / name).write_text("반쪽", encoding="utf-8")
    with run.locked():
        assert run_store.sizes(run.folder) == before
    assert not list(run.folder.rglob(".*.tmp"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may delete everywhere")
def test_a_folder_that_is_half_deleted_no_longer_bears_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "step-000200"
    (folder / "locked").mkdir(parents=True)
    (folder / "locked" / "weights").touch()
    (folder / "locked").chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            remove_folder(folder)
        assert [path.name for path in tmp_path.iterdir()] == [".step-000200.old.tmp"]
    finally:
        next(tmp_path.glob("*/locked")).chmod(0o700)


def test_sizes_leave_out_what_grows(tmp_path: Path) -> None:
    run = finished(tmp_path)
    run.note("good")
    with run.locked():
        pass
    assert run_store.sizes(run.folder).keys() == {"model/weights", "config.json", "manifest.json"}
    run.check_files()


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_full_disk_in_a_scratch_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no space left"), scratch_folder(tmp_path / "runs", "bench-") as folder:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "model.bin"))
    assert not (tmp_path / "runs").exists()
