from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import daedap
from daedap.cli import run as cli
from daedap.commands.pretrain import MadeBase
from daedap.config import ArchitectureOptions, PretrainOptions
from daedap.data.corpus import Document
from daedap.errors import BaseError, RunError, SettingsError
from daedap.files import digest, write_json
from daedap.model.base import SMALL, load_base, random_init_model
from daedap.model.device import Machine, require_compiler
from daedap.model.prompt import Prompt, build_prompt
from daedap.model.tokenizer import decode, encode, train_tokenizer
from daedap.runs import Run
from daedap.training.pretrain import Corpus, Pretrainer, encode_documents, next_token_loss, optimizers, total_bits
from daedap.types import Message, Pair

pytestmark = pytest.mark.slow

ROLES = ("<|user|>", "<|assistant|>")
CPU = Machine("cpu", "fp32", 1, "")
TINY = ["--hidden-size", "32", "--intermediate-size", "64", "--num-hidden-layers", "1", "--num-attention-heads", "2"]
TINY += ["--vocab-size", "1024", "--block-size", "32", "--per-device-train-batch-size", "2", "--precision", "fp32"]
SHAPE = ArchitectureOptions(
    vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
)
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "글.txt"
    groups = ["\n".join(toys.TEXTS[start : start + 8]) for start in range(0, len(toys.TEXTS), 8)]
    file.write_text("\n\n".join(groups), encoding="utf-8")
    return file


def log(run: Path, event: str) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def model_of(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_a_base_is_pretrained_and_fine_tuned(texts: Path, tmp_path: Path, capsys: Output) -> None:
    options = ["--max-steps", "30", "--eval-steps", "10", "--dev-size", "0.1", "--warmup-steps", "2"]
    assert cli(["pretrain", str(texts), *TINY, *options, "--runs", str(tmp_path)]) == 0
    folder = tmp_path / "bases" / "0001"
    output = capsys.readouterr().out
    assert f"Use it: daedap train FILE --base {folder / 'model'}" in output
    manifest = Run(folder).manifest
    assert (manifest["step"], manifest["tokens"]) == (30, 30 * 2 * 32)
    assert manifest["files"]["model/model.safetensors"]
    assert manifest["texts"] == [{"file": str(texts), "times": 1, "sha256": digest(texts)}]
    dev = log(folder, "dev")
    assert [line["step"] for line in dev] == [10, 20, 30, 30]
    assert dev[-1]["bits_per_character"] == manifest["bits_per_character"] < dev[0]["bits_per_character"]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert (model.config.model_type, model.config.max_position_embeddings) == ("llama", 32)
    assert tokenizer.decode(tokenizer("오늘 ☃", add_special_tokens=False)["input_ids"]) == "오늘 ☃"
    assert {len(tokenizer(role, add_special_tokens=False)["input_ids"]) for role in ROLES} == {1}
    assert {weight.dtype for weight in load_file(folder / "model" / "model.safetensors").values()} == {torch.float16}
    rows = folder / "qa.csv"
    rows.write_text("Q,A\n" + "".join(f"{pair.question},{pair.answer}\n" for pair in toys.PAIRS[:20]), encoding="utf-8")
    run = daedap.train(rows, base=folder / "model", num_train_epochs=1, evaluate=False, runs=tmp_path)
    assert (run.manifest["method"], run.manifest["learning_rate"]) == ("full", 1e-3)
    assert run.manifest["base"]["licence"] == "other"
    with pytest.raises(BaseError, match=r"not a base.*0001.model"):
        load_base(str(folder))


@pytest.mark.parametrize("make_base", [toys.kogpt2, toys.qwen3])
def test_pretraining_continues_from_a_base(
    texts: Path, tmp_path: Path, capsys: Output, make_base: Callable[[Path], Path]
) -> None:
    base = make_base(tmp_path / "base")
    options = ["--dev-size", "0.1", "--warmup-steps", "2", "--learning-rate", "2e-3", *TINY[-6:]]
    words = ["pretrain", str(texts), "--base", str(base), *options, "--max-steps", "12", "--runs", str(tmp_path)]
    assert cli([*words, "--eval-steps", "1"]) == 0
    folder = tmp_path / "bases" / "0001"
    bits = [line["bits_per_character"] for line in log(folder, "dev")]
    assert bits[-1] < bits[0]
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(folder / "model")
    assert before.get_vocab().items() >= after.get_vocab().items()
    assert Run(folder).manifest["base"]["digest"] == load_base(str(base)).digest
    assert cli([*words, "--vocab-size", "2048"]) == 1
    assert "has its own shape and tokenizer. Leave the options of the shape out." in capsys.readouterr().err
    assert cli(["pretrain", str(texts), "--base", str(base), "--block-size", "4096", "--runs", str(tmp_path)]) == 1
    assert "places. Try" in capsys.readouterr().err


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Raise KeyboardInterrupt in the backward pass of this step."""
    backward: Any = torch.Tensor.backward
    calls = itertools.count(1)

    def interrupted(self: torch.Tensor, *arguments: Any, **keywords: Any) -> None:
        if next(calls) == step:
            raise KeyboardInterrupt
        backward(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", interrupted)
        yield


@pytest.mark.parametrize("optim", ["muon", "adamw_torch"])
def test_interrupted_and_resumed_it_gives_the_same_bytes(texts: Path, tmp_path: Path, optim: str) -> None:
    command = ["pretrain", str(texts), *TINY, "--max-steps", "40", "--save-steps", "4", "--eval-steps", "8"]
    command += ["--dev-size", "0.1", "--logging-steps", "1", "--optim", optim, "--runs"]
    assert cli([*command, str(tmp_path / "whole")]) == 0
    with interrupted_at(27):
        assert cli([*command, str(tmp_path / "killed")]) == 130
    whole, again = (tmp_path / name / "bases" / "0001" for name in ("whole", "killed"))
    assert sorted(path.name for path in (again / "checkpoints").iterdir()) == ["step-000020", "step-000024"]
    assert cli(["pretrain", "--resume", "--runs", str(tmp_path / "killed")]) == 0
    assert Run(whole).manifest["sizes"]["train"]["tokens"] < 26 * 64, "it was interrupted in its second pass"
    assert model_of(whole) == model_of(again)
    for event, steps in (("train", list(range(1, 41))), ("dev", [8, 16, 24, 32, 40, 40])):
        assert [line["step"] for line in log(again, event)] == steps
    figures = [[line["loss"] for line in log(folder, "train")] for folder in (whole, again)]
    assert figures[0] == figures[1]


def test_the_budget_ends_it(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(toys.TEXTS, 1000)
    corpus = Corpus(np.random.default_rng(0).integers(6, len(tokenizer), 500).astype(np.uint32), np.array([0]), 500)
    options = PretrainOptions(
        budget=timedelta(seconds=200),
        logging_steps=1,
        warmup_steps=2,
        num_train_epochs=1000,
        block_size=16,
        per_device_train_batch_size=2,
    )
    ticks = itertools.count()
    model = random_init_model(tokenizer, 1, SHAPE, max_positions=16)
    pretrainer = Pretrainer(model, options, CPU, tmp_path, clock=lambda: float(next(ticks)))
    assert 200 <= pretrainer.run(corpus, None).seconds <= 210
    rates = [line["learning_rate"] for line in log(tmp_path, "train")]
    assert max(rates) == 8e-3
    assert rates[-1] < 0.05 * max(rates), "the learning rate decays to 0 as the budget ends"


def test_passes_are_limited(texts: Path, tmp_path: Path) -> None:
    assert cli(["pretrain", str(texts), *TINY, "--num-train-epochs", "2", "--runs", str(tmp_path)]) == 0
    manifest = Run(tmp_path / "bases" / "0001").manifest
    assert manifest["step"] == 2 * (manifest["sizes"]["train"]["tokens"] - 1) // 32 // 2 // 2 * 2


def test_a_base_that_got_worse_is_reported(tmp_path: Path) -> None:
    run = Run(tmp_path / "0001")
    run.folder.mkdir()
    figures = {"number": 1, "tokens": 5, "seconds": 60, "bits_per_character": 4.2, "best_bits": 4.0, "best_step": 70}
    write_json(run.folder / "manifest.json", figures)
    assert "It was better at step 70: 4.000." in MadeBase(run).lines()[2]
    write_json(run.folder / "manifest.json", figures | {"bits_per_character": 4.0})
    assert len(MadeBase(run).lines()) == 3


def test_a_file_named_twice_counts_twice(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(texts.parent)
    for name, files in (("once", [str(texts)]), ("twice", [str(texts), f"./{texts.name}"])):
        words = ["pretrain", *files, *TINY, "--max-steps", "1", "--dev-size", "0.2", "--runs", str(tmp_path / name)]
        assert cli(words) == 0
    once, twice = (
        Run(tmp_path / name / "bases" / "0001").document("config.json")["sizes"] for name in ("once", "twice")
    )
    assert twice["train"]["characters"] == 2 * once["train"]["characters"]
    assert twice["dev"]["characters"] == once["dev"]["characters"]


def test_from_python(texts: Path, tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    schedule: dict[str, Any] = {
        "block_size": 32,
        "per_device_train_batch_size": 2,
        "budget": "10m",
        "num_train_epochs": 1,
    }
    files: Any
    for number, files in enumerate((str(texts), [texts, str(texts)]), 1):
        made = daedap.pretrain(files, runs=str(tmp_path), vocab_size=1024, **shape, **schedule)
        assert made.model == tmp_path / "bases" / f"000{number}" / "model"
        assert made.run.document("config.json")["schedule"]["budget"] == 600


def test_bases_are_listed_separately(texts: Path, tmp_path: Path, capsys: Output) -> None:
    assert cli(["pretrain", str(texts), *TINY, "--max-steps", "1", "--runs", str(tmp_path)]) == 0
    capsys.readouterr()
    assert cli(["runs", "--runs", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert str(tmp_path / "bases" / "0001" / "model") in listed
    assert cli(["runs", "--runs", str(tmp_path), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["runs"], output["bases"][0]["step"]) == ([], 1)


def test_each_command_resumes_its_own_runs(texts: Path, tmp_path: Path, capsys: Output) -> None:
    with interrupted_at(1):
        assert cli(["pretrain", str(texts), *TINY, "--runs", str(tmp_path)]) == 130
    assert "daedap pretrain --resume" in capsys.readouterr().err
    folder = tmp_path / "bases" / "0001"
    assert cli(["train", "--resume", str(folder)]) == 1
    assert f"was begun by daedap pretrain. Go on with it: daedap pretrain --resume {folder}" in capsys.readouterr().err
    assert cli(["pretrain", str(texts), "--resume", str(folder), "--runs", str(tmp_path)]) == 1
    assert "--resume continues with the run's own file" in capsys.readouterr().err


def test_interrupted_before_training_it_leaves_nothing(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stopped)
    assert cli(["pretrain", str(texts), *TINY, "--runs", str(tmp_path)]) == 130
    assert list((tmp_path / "bases").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "output"),
    [
        ([], "No file of texts is given. Name at least one: daedap pretrain texts.txt"),
        (["없다.txt"], "없다.txt"),
        (["글.txt", "--block-size", "4096"], "one step takes 65,537"),
        (["글.txt", "--budget", "0s"], "--budget"),
        (["글.txt", "--vocab-size", "100"], "--vocab-size 100: must be at least 1024"),
        (["글.txt", "--hidden-size", "50", "--num-attention-heads", "3"], "Make it a multiple of 6."),
        (["글.txt", "--dev-size", "0.9"], "--dev-size 0.9: must lie between 0 and 0.5"),
        (["글.txt", "--max-steps", "0"], "--max-steps 0: must be at least 1."),
        (["글.txt", "--max-steps", "9", "--budget", "1h"], "--budget and --max-steps both say how long to train."),
        (["글.txt", "--weight-decay", "-1"], "--weight-decay -1.0: must not be negative."),
        (["글.txt", "--device", "mps"], "--device mps: not available"),
        (["글.txt", "."], "is a folder"),
        (["--resume"], "no interrupted run. Start one: daedap pretrain FILE"),
    ],
)
def test_mistakes_are_reported(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output, words: list[str], output: str
) -> None:
    monkeypatch.chdir(texts.parent)
    assert cli(["pretrain", *words, "--runs", str(tmp_path / "runs")]) == 1
    error_output = capsys.readouterr().err
    assert error_output.startswith("daedap: ")
    assert output in error_output
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
    assert not list((tmp_path / "runs").rglob("00*")), "nothing is left behind"


def test_the_learning_rate_schedule() -> None:
    schedule = PretrainOptions(learning_rate=0.01, warmup_steps=10, decay_ratio=0.5)
    rates = [schedule.rate(step, step / 100) for step in (0, 4, 9, 50, 75, 100)]
    assert rates == pytest.approx([0.001, 0.005, 0.01, 0.01, 0.005, 0.0])


def test_muon_takes_the_matrices_and_adamw_the_rest() -> None:
    model = random_init_model(train_tokenizer(toys.TEXTS, 1000), 1, SHAPE)
    adamw, muon = optimizers(model, PretrainOptions())
    sizes = [sum(weight.numel() for group in each.param_groups for weight in group["params"]) for each in (adamw, muon)]
    assert sum(sizes) == model.num_parameters()
    assert isinstance(muon, torch.optim.Muon)
    assert sizes[1] == 4 * 32 * 32 + 3 * 32 * 64
    (alone,) = optimizers(model, PretrainOptions(optim="adamw_torch"))
    assert [group["weight_decay"] for group in alone.param_groups] == [0.0, 0.1]


def test_bits_are_those_of_a_plain_forward_pass() -> None:
    tokenizer = train_tokenizer(toys.TEXTS, 1000)
    model = random_init_model(tokenizer, 1, SHAPE).eval()
    ids = np.random.default_rng(0).integers(6, len(tokenizer), 50)
    corpus = Corpus(ids.astype(np.uint32), np.array([0]), 50)
    bits = total_bits(model, next_token_loss(model, CPU, compiled=False), corpus, rows=2, length=16)
    nats = 0.0
    for start in range(0, 49, 16):
        block = torch.from_numpy(ids[start : start + 17])
        with torch.no_grad():
            logs = model(input_ids=block[None, :-1]).logits[0].log_softmax(-1)
        nats -= float(logs[torch.arange(len(block) - 1), block[1:]].sum())
    assert bits == pytest.approx(nats / math.log(2), rel=1e-5)


def test_compiled_and_plain_agree() -> None:
    try:
        require_compiler()
    except SettingsError as error:
        pytest.skip(str(error))
    tokenizer = train_tokenizer(toys.TEXTS, 1000)
    model = random_init_model(tokenizer, 1, SHAPE)
    batch = torch.randint(6, len(tokenizer), (2, 17))
    plain, compiled = (next_token_loss(model, CPU, compiled=compiled)(batch) for compiled in (False, True))
    assert compiled.item() == pytest.approx(plain.item(), rel=1e-5)


def test_defaults_make_a_base_of_fourteen_million_weights() -> None:
    tokenizer = train_tokenizer(toys.TEXTS, 1000)
    shape = ArchitectureOptions()
    layers = shape.num_hidden_layers * (4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size)
    assert 13.5e6 < layers + shape.vocab_size * shape.hidden_size < 14.5e6
    assert random_init_model(tokenizer, 1, SMALL).config.num_hidden_layers == 4
    assert PretrainOptions().seconds == 7200
    assert PretrainOptions(budget=timedelta(minutes=5)).seconds == 300
    assert PretrainOptions(max_steps=10).seconds == math.inf


def test_a_loss_that_is_nan_ends_training(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(toys.TEXTS, 1000)
    corpus = Corpus(np.full(500, 7, np.uint32), np.array([0]), 500)
    model = random_init_model(tokenizer, 1, SHAPE, max_positions=16)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    before = model.lm_head.weight.clone()
    options = PretrainOptions(max_steps=3, block_size=16, per_device_train_batch_size=2)
    with pytest.raises(SettingsError, match=r"Loss or gradient norm became NaN or infinite at step 1\."):
        Pretrainer(model, options, CPU, tmp_path).run(corpus, None)
    assert torch.equal(model.lm_head.weight, before)
    assert not (tmp_path / "checkpoints").exists()


def test_settings_are_checked() -> None:
    with pytest.raises(SettingsError, match="--learning-rate 2"):
        PretrainOptions(learning_rate=2)
    with pytest.raises(SettingsError, match="--decay-ratio"):
        PretrainOptions(decay_ratio=1.5)


# ---- tokenized documents -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return build_prompt(train_tokenizer(toys.TEXTS, 1000), 0)


def test_plain_texts_have_bos_and_eos(prompt: Prompt) -> None:
    corpus = encode_documents([Document(("배고파", "</s> 졸려")), Document(("잘 자",))], prompt)
    first, second, third = (encode(prompt.tokenizer, text) for text in ("배고파", "</s> 졸려", "잘 자"))
    begin, end = prompt.tokenizer.bos_token_id, prompt.template.eos_id
    assert corpus.ids.tolist() == [begin, *first, end, *second, end, begin, *third, end]
    assert corpus.starts.tolist() == [0, 1 + len(first) + 1 + len(second) + 1]
    assert corpus.characters == len("배고파</s> 졸려잘 자")
    assert end not in second, "typed control tokens stay text"


def test_dialogues_are_rendered_as_in_fine_tuning(prompt: Prompt) -> None:
    corpus = encode_documents([Document(("안녕", "반가워요", "뭐 해?", "놀아요"), dialogue=True)], prompt)
    pair = Pair("뭐 해?", "놀아요", history=(Message("user", "안녕"), Message("assistant", "반가워요")))
    all_batches = build_prompt(prompt.tokenizer, 100).example(pair)
    assert corpus.ids.tolist() == all_batches.ids


def test_every_id_but_the_first_is_a_label_once() -> None:
    corpus = Corpus(np.arange(1, 24, dtype=np.uint32), np.array([0]), 23)
    blocks = np.concatenate(list(corpus.in_order(4, rows=2)))
    assert blocks.shape == (6, 5)
    targets = blocks[:, 1:].ravel()
    assert targets[targets > 0].tolist() == list(range(2, 24))
    assert blocks[1:, 0].tolist() == blocks[:-1, -1].tolist()


def test_the_seed_decides_the_order() -> None:
    starts = np.array([0, 7, 9, 20])
    corpus = Corpus(np.arange(40, dtype=np.uint32), starts, 40)
    first, again, other = (np.stack(list(corpus.batches(5, 2, (1, seed)))) for seed in (1, 1, 2))
    assert first.shape == (corpus.steps(5, 2), 2, 6) == (3, 2, 6)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    many = [block for seed in range(5) for batch in corpus.batches(5, 2, (1, seed)) for block in batch.tolist()]
    inside = [(a, b) for block in many for a, b in pairwise(block) if b != a + 1]
    assert inside
    assert {b for _, b in inside} <= set(starts.tolist()), "documents are joined at their boundaries only"


def test_batches_can_start_in_the_middle() -> None:
    corpus = Corpus(np.arange(200, dtype=np.uint16), np.array([0, 50, 90]), 200)
    all_batches, rest = list(corpus.batches(5, 4, (7, 0))), list(corpus.batches(5, 4, (7, 0), first=6))
    assert len(all_batches) == 9
    np.testing.assert_array_equal(np.stack(all_batches[6:]), np.stack(rest))


def test_a_saved_corpus_is_read_back(tmp_path: Path, prompt: Prompt) -> None:
    corpus = encode_documents([Document(tuple(toys.TEXTS))], prompt)
    corpus.save(tmp_path / "train.npz")
    again = Corpus.load(tmp_path / "train.npz")
    assert np.array_equal(again.ids, corpus.ids)
    assert (
        again.sizes() == corpus.sizes() == {"documents": 1, "tokens": len(corpus.ids), "characters": corpus.characters}
    )
    text = decode(prompt.tokenizer, [number for number in again.ids.tolist() if number not in prompt.control_ids])
    assert text.startswith(toys.TEXTS[0])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", None])
def test_a_damaged_file_is_reported(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "train.npz").write_bytes(content)
    with pytest.raises(RunError, match=r"train\.npz: the encoded texts can't be read"):
        Corpus.load(tmp_path / "train.npz")
