from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import toys
from conftest import PAIRS, write_csv

import daedap
import daedap.runs as run_store
from daedap.cli import run as cli
from daedap.config import SplitOptions
from daedap.data.split import read_rows
from daedap.errors import DataError, RunError, SettingsError
from daedap.files import digest
from daedap.model.base import load_base
from daedap.runs import Run
from daedap.types import Pair

pytestmark = pytest.mark.slow

Output = pytest.CaptureFixture[str]
QUICK: dict[str, Any] = {"base": "fresh", "num_train_epochs": 1, "precision": "fp32", "evaluate": False}
NEEDED = {
    "config.json",
    "state.json",
    "training.json",
    "manifest.json",
    "log.jsonl",
    "data",
    "checkpoints",
    "model",
    "index",
}


def message(capsys: Output, *arguments: object) -> Any:
    """The one JSON document that a command prints."""
    capsys.readouterr()
    assert cli([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_manifest_says_what_the_run_is(trained: Run, qa: Path) -> None:
    manifest = trained.manifest
    assert (manifest["number"], manifest["parent"], manifest["daedap"]) == (1, None, daedap.__version__)
    assert {"torch", "transformers", "peft"} <= manifest["libraries"].keys()
    data = manifest["data"]
    assert (data["sha256"], data["encoding"], data["rows"]) == (digest(qa), "utf-8", 80)
    assert data["train"] + data["dev"] + data["test"] == data["usable"] == 80
    assert data["leak"]["questions"] == 0
    assert manifest["base"]["name"] == "fresh"
    assert len(manifest["base"]["digest"]) == 64
    assert manifest["base"]["licence"]
    assert manifest["machine"]["precision"] == "fp32"
    assert manifest["training"]["epochs"] == 6
    assert all(seconds >= 0 for seconds in manifest["seconds"].values())
    assert manifest["peak_memory_bytes"] > 50e6
    assert 0 <= manifest["headline"]["hits_at_1"] <= 1


def test_the_run_folder_is_whole(trained: Run) -> None:
    assert {path.name for path in trained.folder.iterdir()} >= NEEDED | {"evaluation"}
    trained.check_files()
    assert trained.config.train.learning_rate == 3e-3
    assert trained.config.split == SplitOptions(dev_size=0.1, test_size=0.15)
    sides = [pair for side in ("train", "dev", "test") for pair in read_rows(trained.folder, side)]
    assert sorted(pair.line for pair in sides) == list(range(2, 82))
    lines = (trained.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["step"] for event in events if event["event"] == "train"] == [10, 20, 30, 40, 50, 54]
    assert [event["epoch"] for event in events if event["event"] == "dev"] == [1, 2, 3, 4, 5, 6]
    evaluation = {path.name for path in (trained.folder / "evaluation").iterdir()}
    assert evaluation == {"scores.json", "rows.jsonl", "table.txt", "summary.txt"}


def test_the_next_run_leaves_the_first_as_it_was(qa: Path, tmp_path: Path) -> None:
    first = daedap.train(str(qa), runs=str(tmp_path / "runs"), **QUICK)
    before = contents(first.folder)
    second = daedap.train(qa, runs=tmp_path / "runs", **QUICK)
    assert (first.number, second.number) == (1, 2)
    assert contents(first.folder) == before
    model, again = (contents(run.folder / "model") for run in (first, second))
    assert model == again, "the same file, settings and seed give the same bytes"
    daedap.train(qa, runs=tmp_path / "runs", **QUICK | {"fraction": 0.25, "seed": 7})
    assert contents(first.folder) == before
    data = run_store.find("3", tmp_path / "runs").manifest["data"]
    assert data["train"] == pytest.approx(0.25 * (data["train"] + data["unused"]), abs=1)
    rows = read_rows(tmp_path / "runs" / "0003", "train")
    assert {pair.id for pair in rows} < {pair.id for pair in read_rows(first.folder, "train")}


def test_random_split_says_how_much_leaks(tmp_path: Path, capsys: Output, caplog: pytest.LogCaptureFixture) -> None:
    doubled = [*PAIRS, *(type(pair)(f"{pair.question}!!", f"{pair.answer} 맞아요.") for pair in PAIRS)]
    file, runs = write_csv(tmp_path / "qa.csv", doubled), tmp_path / "runs"
    options = ["--split", "random", "--test-size", "0.3", "--dev-size", "0", "--num-train-epochs", "1", "--no-evaluate"]
    found = message(capsys, "train", file, "--runs", runs, *options)["data"]
    assert (found["test"], found["train"], found["dev"]) == (48, 112, 0)
    assert 0.4 < found["leak"]["questions"] < 0.9
    line = next(message for message in caplog.messages if "training rows" in message)
    assert line.startswith("112 training rows, 0 dev rows to decide when to stop, 48 test rows for the scores;")
    assert f"{found['leak']['questions']:.1%} of the test questions" in line


def unfinished(trained: Run, runs: Path) -> Run:
    """As if it had been stopped after its last checkpoint."""
    folder = runs / "0001"
    shutil.copytree(trained.folder, folder)
    for name in ("manifest.json", "training.json"):
        (folder / name).unlink()
    for name in ("model", "index", "evaluation"):
        shutil.rmtree(folder / name)
    return Run(folder)


def test_an_interrupted_run_goes_on(trained: Run, tmp_path: Path, capsys: Output) -> None:
    run = unfinished(trained, tmp_path)
    assert message(capsys, "runs", "--runs", tmp_path)["runs"][0]["state"] == "interrupted"
    assert cli(["answer", "안녕", "--runs", str(tmp_path)]) == 1
    assert cli(["train", "--resume", "--runs", str(tmp_path)]) == 0
    assert contents(run.folder / "model") == contents(trained.folder / "model")
    assert run.manifest["training"]["steps"] == trained.manifest["training"]["steps"]
    assert run.manifest["headline"]["bpc"] == trained.manifest["headline"]["bpc"]
    with pytest.raises(RunError, match="is complete; there is nothing to resume"):
        daedap.train(resume=1, runs=tmp_path)
    with pytest.raises(RunError, match="no interrupted run"):
        daedap.train(resume="latest", runs=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0001"]


def test_a_run_without_its_rows_can_not_go_on(trained: Run, tmp_path: Path) -> None:
    run = unfinished(trained, tmp_path)
    (run.folder / "data" / "train.jsonl").unlink()
    with pytest.raises(RunError, match=r"train\.jsonl"):
        daedap.train(resume=run.folder, runs=tmp_path)
    assert run.folder.exists()


def test_answer_one_question(trained: Run, capsys: Output) -> None:
    asked = [PAIRS[0].question, "--runs", str(trained.folder.parent)]
    assert cli(["answer", *asked]) == 0
    assert capsys.readouterr().out == f"{PAIRS[0].answer}\n"
    document = message(capsys, "answer", *asked)
    assert document.keys() == {"question", "answer", "source", "score", "evidence", "suggestions"}
    assert (document["answer"], document["source"]) == (PAIRS[0].answer, "retrieved")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_answer_a_file_of_questions(trained: Run, tmp_path: Path, capsys: Output, encoding: str) -> None:
    questions = [PAIRS[9].question, "  양자역학을 설명해 봐 ", "", PAIRS[2].question]
    file, out = tmp_path / "q.txt", tmp_path / "새 폴더" / "a.jsonl"
    file.write_bytes("\r\n".join(questions).encode(encoding))
    files = ["--in", file, "--out", out]
    document = message(capsys, "answer", "--run", 1, "--runs", trained.folder.parent, *files)
    assert sum(document["replies"].values()) == 3
    assert document["replies"]["retrieved"] == 2
    replies = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [reply["question"] for reply in replies] == [question.strip() for question in questions if question]
    assert [replies[0]["answer"], replies[2]["answer"]] == [PAIRS[9].answer, PAIRS[2].answer]
    keys = {"question", "answer", "source", "score", "evidence", "suggestions"}
    assert all(reply.keys() == keys for reply in replies)


def test_evaluate_own_rows_and_a_file(trained: Run, qa: Path, capsys: Output) -> None:
    runs = trained.folder.parent
    own = message(capsys, "evaluate", "--runs", runs)
    assert own["pairs"] == trained.manifest["data"]["test"]
    assert own["scores"].keys() == {"bot", "model", "base", "retrieval", "human"}
    assert own["scores"]["model"]["all"]["bpc"]["value"] == pytest.approx(trained.manifest["headline"]["bpc"])
    other = message(capsys, "evaluate", "--data", qa, "--rows", 20, "--runs", runs)
    assert (other["pairs"], other["candidates"]) == (80, 20)
    assert cli(["evaluate", "--runs", str(runs)]) == 0
    assert "bits per character" in capsys.readouterr().out
    python = daedap.evaluate(run=1, data=str(qa), rows=20, runs=str(runs))
    assert python.scores["model"]["all"]["bpc"].value == pytest.approx(other["scores"]["model"]["all"]["bpc"]["value"])


def test_paraphrases_questions_out_of_scope_and_disturbed_questions(
    trained: Run, tmp_path: Path, capsys: Output
) -> None:
    held_out = read_rows(trained.folder, "test")[0]
    shutil.copytree(trained.folder, tmp_path / "runs" / "0001")
    file, outside, runs = tmp_path / "paraphrases.csv", tmp_path / "outside.csv", tmp_path / "runs"
    rows = [f"{held_out.question}??,{held_out.answer},same", "양자역학을 설명해 봐,양자는 알갱이예요.,far"]
    file.write_text("\n".join(["question,answers,kind", *rows, ""]), encoding="utf-8")
    outside.write_text("question,kind\n주식 살까?,near\n안녕하세요,chat\n", encoding="utf-8")
    options = ("--paraphrases", file, "--out-of-scope", outside, "--runs", runs)
    document = message(capsys, "evaluate", "--rows", 5, "--disturbed", *options)
    faq = document["faq"]
    assert [reply["outcome"] == "right" for reply in faq["replies"]] == [True, False, False, False], "held-out rows too"
    assert {kind: scores["right"]["value"] for kind, scores in faq["paraphrases"].items()} == {
        "all": 0.5,
        "same": 1,
        "far": 0,
    }
    assert document["disturbed"].keys() == {"typo", "spacing", "particles", "polite", "casual", "laughter"}
    spacing = document["disturbed"]["spacing"]
    assert spacing["rows"] == min(5, document["pairs"])
    assert -1 <= spacing["difference"]["value"] <= 1
    page = daedap.report(1, runs=runs).file.read_text(encoding="utf-8")
    assert page.index('<section id="scores">') < page.index('<section id="faq">') < page.index('<section id="samples">')
    assert "Wrong among the answered (%)" in page, "the risk-coverage curve"
    assert cli(["evaluate", "--paraphrases", str(tmp_path / "no.csv"), "--runs", str(runs)]) == 1


def test_list_of_runs(trained: Run, tmp_path: Path, capsys: Output) -> None:
    shutil.copytree(trained.folder, tmp_path / "0001")
    (tmp_path / "0002").mkdir()
    shutil.copytree(trained.folder, tmp_path / "0003")
    (tmp_path / "0003" / "manifest.json").write_text("{", encoding="utf-8")
    entries = message(capsys, "runs", "--runs", tmp_path)["runs"]
    assert [entry["state"] for entry in entries] == ["complete", "interrupted", "damaged"]
    assert entries[0]["headline"] == trained.manifest["headline"]
    assert cli(["runs", "--runs", str(tmp_path)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "state", "parent"]
    assert [row.split()[:2] for row in rows] == [["1", "complete"], ["2", "interrupted"], ["3", "damaged"]]
    assert f"{trained.manifest['headline']['hits_at_1']:.3f}" in rows[0]


def test_check(qa: Path, tmp_path: Path, capsys: Output) -> None:
    before = qa.read_bytes()
    document = message(capsys, "check", qa)
    assert (document["rows"], document["usable"], document["near_duplicates"]) == (80, 80, 0)
    assert qa.read_bytes() == before
    assert daedap.check(file=str(qa)).to_json() == document
    useless = tmp_path / "a.csv"
    useless.write_text("Q,A\n안녕,\n,\n", encoding="utf-8")
    assert cli(["check", str(useless)]) == 1
    assert "0 usable" in capsys.readouterr().out
    assert cli(["check", str(useless), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["usable"] == 0


@pytest.mark.skipif(not find_spec("tensorboard"), reason="tensorboard is an extra")
def test_curves_go_to_tensorboard(qa: Path, tmp_path: Path) -> None:
    run = daedap.train(qa, runs=tmp_path, report_to="tensorboard", logging_steps=1, **QUICK)
    assert list(run.folder.rglob("events.out.tfevents.*"))


def test_a_tracker_that_is_not_there(qa: Path, tmp_path: Path) -> None:
    trackers = ("wandb", "mlflow", "comet_ml", "trackio")
    missing = next((name for name in trackers if not find_spec(name)), None)
    if missing is None:
        pytest.skip("every tracker is installed")
    chosen: Any = missing
    with pytest.raises(SettingsError, match=f"pip install {missing}"):
        daedap.train(qa, runs=tmp_path, report_to=chosen, **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_unknown_options_are_python_errors(qa: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="epochs"):
        daedap.train(qa, runs=tmp_path, epochs=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        daedap.check(qa, qa, qa)  # type: ignore[call-arg, arg-type]


def test_rows_that_just_fit_are_ranked_against_longer_answers(tmp_path: Path) -> None:
    """A question is scored with the answers of other rows, too, and both together may be too long."""
    base = str(toys.kogpt2(tmp_path / "base"))
    prompt = load_base(base).prompt(64)
    long = "시장에 갔다가 "
    while len(prompt.example(Pair(long, "네")).ids) < 48:
        long += "시장에 갔다가 "
    rows = [Pair(f"{pair.question[:4]} {long}", "네", "") for pair in PAIRS[:40]]
    rows += [Pair(pair.question[:4], f"{pair.answer[:4]} {long}", "") for pair in PAIRS[40:]]
    with pytest.raises(DataError):
        prompt.question(rows[0], max_ids=64 - len(prompt.example(rows[-1]).ids))
    options: dict[str, Any] = {
        "dev_size": 0.2,
        "test_size": 0.2,
        "num_train_epochs": 1,
        "precision": "fp32",
        "max_length": 64,
    }
    run = daedap.train(write_csv(tmp_path / "qa.csv", rows), base=base, runs=tmp_path / "runs", **options)
    assert run.complete
    assert run.manifest["rows"]["too_long"] == 0
    assert daedap.Bot.open(run.folder).reply(f"어제 {long}").text


def test_resume_takes_no_other_options(trained: Run, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "0001")
    (tmp_path / "0001" / "manifest.json").unlink()
    for option in ({"budget": "10m"}, {"lora_r": 3}, {"test_size": 0.3}, {"from_": 2}):
        (name,) = option
        message = "--from 2" if name == "from_" else f"--{name.replace('_', '-')}"
        with pytest.raises(SettingsError, match=f"not with {message}"):
            daedap.train(resume=1, runs=tmp_path, **option)


def test_scores_of_some_rows_say_so(trained: Run, capsys: Output) -> None:
    assert cli(["evaluate", "--run", str(trained.folder), "--rows", "5"]) == 0
    tests = trained.manifest["data"]["test"]
    assert (
        f"Ranked and answered: 5 rows. Bits per character and question gain: {tests} rows." in capsys.readouterr().out
    )
    assert cli(["evaluate", "--run", str(trained.folder)]) == 0
    assert "Ranked and answered" not in capsys.readouterr().out


def test_a_run_scored_later_has_its_headline_too(trained: Run, tmp_path: Path, capsys: Output) -> None:
    shutil.copytree(trained.folder, tmp_path / "0001")
    run = Run(tmp_path / "0001")
    before = run.manifest["headline"]
    manifest = {**run.manifest, "headline": {}}
    (run.folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert run.headline == before
    (listed,) = message(capsys, "runs", "--runs", tmp_path)["runs"]
    assert listed["headline"] == before
    shutil.rmtree(run.folder / "evaluation")
    assert run.headline == {}
