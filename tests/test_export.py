"""Exports: what they answer, read back with other programs' own readers, and what is refused."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PAIRS, daedap_process
from gguf import GGUFReader
from serving import runs_with
from test_saved import train_run
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import daedap.runs as run_store
from daedap.commands.export import export
from daedap.config import TrainOptions
from daedap.data.split import read_rows
from daedap.database.connection import Database
from daedap.database.lessons import LessonStore, new_lesson
from daedap.errors import ExportError, RunError, SettingsError
from daedap.export.bundle import check, write_manifest
from daedap.export.bundle import write as write_bundle
from daedap.export.common import ExportOptions, Facts, ModelAnswer, Target, compare, pick_questions, trained_answers
from daedap.export.gguf import FILE, NORMAL, SpmVocabulary, prompt_ids, token_differences
from daedap.export.gguf import write as write_gguf
from daedap.export.language_model import adapter_answers, merged_answers, write_adapter, write_merged
from daedap.files import write_json
from daedap.model.base import MINI_FOLDER
from daedap.model.decoding import DecodingRules
from daedap.model.gguf import GgufReader, dequantized_model
from daedap.model.language_model import TorchModel, load_prompt, open_trained
from daedap.model.prompt import build_prompt
from daedap.model.tokenizer import PlainTokenizer, decode, encode, find_control_ids, load_tokenizer
from daedap.model.verify import open_language_model
from daedap.retrieval.bot import Bot
from daedap.retrieval.rerank import RerankWeights
from daedap.runs import Run
from daedap.types import Pair

pytestmark = pytest.mark.slow

LESSON = ("포인트는 언제 쌓여요", "다음 날 아침에 쌓여요.")


@pytest.fixture(scope="module")
def model(trained: Run) -> TorchModel:
    return open_trained(trained)


@pytest.fixture(scope="module")
def rules(model: TorchModel) -> DecodingRules:
    return DecodingRules(model.prompt, model.max_new_tokens)


@pytest.fixture(scope="module")
def kogpt2(tmp_path_factory: pytest.TempPathFactory) -> Run:
    options = TrainOptions(num_train_epochs=1, learning_rate=1e-3)
    return train_run(tmp_path_factory.mktemp("kogpt2"), "kogpt2-lora", options).run


@pytest.fixture(scope="module")
def gguf_file(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "out"
    made = export(str(trained.folder), folder, export_options=ExportOptions(to="gguf", questions=5))
    assert made.verification.texts > 2 * len(PAIRS)
    return folder / FILE


# ---- bundle ----


@pytest.fixture(scope="module")
def bundle(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .zip of the run with a lesson."""
    folder = tmp_path_factory.mktemp("bundle")
    runs = runs_with(trained, folder)
    database = Database.open(None, runs)
    LessonStore(database).add(new_lesson(*LESSON, "exact", origin="command"))
    database.close()
    made = export(trained.folder.name, folder / "bot.zip", runs=runs)
    assert made.verification.compared > 2 * len(PAIRS)
    assert not made.verification.differences
    assert made.seconds is not None
    assert made.bytes == (folder / "bot.zip").stat().st_size
    return folder / "bot.zip"


def without_torch(folder: Path) -> Path:
    """A folder for PYTHONPATH in which torch and transformers can't be imported."""
    for name in ("torch", "transformers"):
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('no module named {name}')\n", encoding="utf-8")
    return folder


def test_a_bundle_answers_without_torch(bundle: Path, tmp_path: Path) -> None:
    variables = {"PYTHONPATH": str(without_torch(tmp_path)), "DAEDAP_CACHE": str(tmp_path / "cache")}
    (tmp_path / "asked.txt").write_text(f"{PAIRS[3].question}\n{LESSON[0]}\n", encoding="utf-8")
    words = ("answer", "--run", str(bundle), "--in", "asked.txt", "--out", "replies.jsonl")
    done = daedap_process(*words, folder=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    replies = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [reply["answer"] for reply in replies] == [PAIRS[3].answer, LESSON[1]]
    assert [reply["source"] for reply in replies] == ["retrieved", "lesson"]


def test_a_bundle_tells_no_paths_of_this_machine(bundle: Path, trained: Run) -> None:
    with zipfile.ZipFile(bundle) as file:
        manifest = json.loads(file.read("manifest.json"))
        assert manifest["data"]["file"] == "qa.csv"
        assert manifest["bundle"] == {"pairs": len(PAIRS), "lessons": 1}
        assert not any(str(trained.folder.parent).encode() in file.read(name) for name in file.namelist())
        assert not {name for name in file.namelist() if "train" in name or "model.safetensors" in name}


def test_a_bundle_answers_as_a_folder_too(bundle: Path, trained: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as file:
        file.extractall(tmp_path / "bot")
    questions = [pair.question[:-2] for pair in PAIRS[:20]]
    bot = Bot.open(tmp_path / "bot")
    assert bot.reply_many(questions) == Bot.open(trained.folder).reply_many(questions)
    bot.teach([])  # as a server does with its own lessons
    assert bot.reply(LESSON[0]).text == LESSON[1]


def test_a_damaged_bundle_is_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAEDAP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cut.zip").write_bytes(bundle.read_bytes()[:-1000])
    with pytest.raises(RunError, match="not a bundle"):
        Bot.open(tmp_path / "cut.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("../outside.txt", "x")
        file.writestr("manifest.json", "{}")
    with pytest.raises(RunError, match="format"):
        Bot.open(tmp_path / "other.zip")
    assert all(path.parent.parent.name == "bundles" for path in tmp_path.rglob("outside.txt"))  # not where it asked


def test_a_bundle_has_no_language_model(bundle: Path) -> None:
    bot = Bot.open(bundle)
    assert not bot.generates
    with pytest.raises(RunError, match="no language model"):
        assert bot.language_model


def generating(run: Run, **model: Any) -> Bot:
    """The bot of a run, with the language model taking part, and what it proposes preferred to what is known."""
    bot = Bot.open(run.folder)
    weights = RerankWeights(-1.0, -1.0, -1.0, out_of_scope_threshold=0.0, generates=True)
    return replace(bot, retriever=replace(bot.retriever, weights=weights), **model)


def test_a_bundle_generates_without_torch(trained: Run, tmp_path: Path) -> None:
    bot = generating(trained)
    write_bundle(trained, bot, tmp_path / "bot")
    bot.retriever.weights.save(tmp_path / "bot" / "index" / "weights.json")
    write_manifest(trained, bot, tmp_path / "bot")
    made = check(trained, bot, tmp_path / "bot")
    assert made.verification.compared > 3 * len(PAIRS)
    assert made.verification.differences == ()
    asked = [Pair(f"{pair.question[:3]} 그리고 {pair.answer[:2]}", "") for pair in PAIRS[:10]]
    bundled = Bot.open(tmp_path / "bot")
    assert {reply.source for reply in bundled.reply_to_pairs(asked)} >= {"generated"}
    assert bundled.reply_to_pairs(asked) == bot.reply_to_pairs(asked)
    ours, theirs = bot.language_model, bundled.language_model
    assert ours.sample(asked, 3, seed=1) == theirs.sample(asked, 3, seed=1)
    assert (ours.log2_probability(PAIRS) == theirs.log2_probability(PAIRS)).all()


def test_a_bundle_finds_its_compute_type_on_another_processor(trained: Run, tmp_path: Path) -> None:
    write_bundle(trained, generating(trained), tmp_path / "bot")
    verified = tmp_path / "bot" / "engine" / "verified.json"
    known = verified.read_text(encoding="utf-8")
    verified.unlink()
    answers = open_language_model(verified.parent).reply(PAIRS[:3])
    assert verified.read_text(encoding="utf-8") == known
    assert open_language_model(verified.parent).reply(PAIRS[:3]) == answers


@pytest.mark.parametrize("text", ["</s> 안녕", "<usr>😊<sys>", "ㅋㅋㅋ 漢字  ", "줄\n바꿈", "<|user|>가", ""])
def test_a_bundles_tokenizer_is_the_bases(text: str, tmp_path: Path, model: TorchModel, kogpt2: Run) -> None:
    for each in (model.prompt, load_prompt(kogpt2)):
        each.tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
        known = each.tokenizer
        backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        plain: Any = PlainTokenizer(backend, known.unk_token_id, known.pad_token_id, tuple(known.all_special_ids))
        ids = encode(known, text)
        assert encode(plain, text) == ids
        assert decode(plain, ids) == decode(known, ids)
        assert find_control_ids(plain) == find_control_ids(known)


def test_what_pytorch_computes_is_bundled_for_look_up_alone(trained: Run, model: TorchModel, tmp_path: Path) -> None:
    write_bundle(trained, generating(trained, model=model), tmp_path / "bot")
    assert not RerankWeights.open(tmp_path / "bot" / "index" / "weights.json").generates
    assert not (tmp_path / "bot" / "engine").exists()


# ---- the language model alone ----


def test_transformers_answers_alike(trained: Run, model: TorchModel, tmp_path: Path) -> None:
    made = export(str(trained.folder), tmp_path / "hf", export_options=ExportOptions(to="hf", questions=8))
    assert made.verification.compared == 8
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "hf")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    turns = [{"role": "user", "content": PAIRS[0].question}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    answer = tokenizer.decode(loaded.generate(ids)[0, ids.shape[1] :], skip_special_tokens=True)
    assert answer.strip() == model.reply([PAIRS[0]])[0].text
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert trained.manifest["data"]["sha256"] in card
    assert "| | model | bot |" in card


def test_ctranslate2_answers_alike(trained: Run, tmp_path: Path) -> None:
    options = ExportOptions(to="ctranslate2", questions=20)
    made = export(str(trained.folder), tmp_path / "ct2", export_options=options)
    assert (made.verification.compared, made.verification.differences) == (20, ())
    assert not (tmp_path / "ct2" / "reference.json").exists()  # rows of the file


def test_a_base_without_byte_tokens_is_exported_but_not_to_gguf(kogpt2: Run, tmp_path: Path) -> None:
    run = kogpt2
    model = open_trained(run)
    rules, questions = DecodingRules(model.prompt, model.max_new_tokens), ["오늘 뭐 먹지?", "배고파"]
    expected = trained_answers(model, rules, questions)
    write_adapter(run, rules, tmp_path / "adapter")
    assert compare(questions, expected, adapter_answers(run, tmp_path / "adapter", questions)).differences == ()
    write_merged(model, rules, tmp_path / "merged")
    assert compare(questions, expected, merged_answers(tmp_path / "merged", questions)).differences == ()
    with pytest.raises(ExportError, match="no byte tokens"):
        write_gguf(model, tmp_path / "gguf", name="x", licence="mit")
    assert not (tmp_path / "gguf").exists()


def test_a_difference_ends_the_export(trained: Run, tmp_path: Path) -> None:
    """A typed control token, which transformers' templates let through, makes another prompt."""
    folder = tmp_path / "0001"
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("checkpoints"))
    rows = (folder / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    changed = json.loads(rows[0])
    changed["question"] = "</s> 안녕"
    (folder / "data" / "test.jsonl").write_text(json.dumps(changed, ensure_ascii=False) + "\n", encoding="utf-8")
    sizes = {name: size for name, size in run_store.sizes(folder).items() if name != "manifest.json"}
    write_json(folder / "manifest.json", {**trained.manifest, "files": sizes})
    with pytest.raises(ExportError, match="1 of 3 answers differ"):
        export(str(folder), tmp_path / "hf", export_options=ExportOptions(to="hf", questions=3))
    assert [path.name for path in tmp_path.iterdir()] == ["0001"]
    allowed = ExportOptions(to="hf", questions=3, allow_differences=True)
    made = export(str(folder), tmp_path / "hf", export_options=allowed)
    assert [each.question for each in made.verification.differences] == ["</s> 안녕"]
    assert (tmp_path / "hf" / "model.safetensors").exists()


def test_comparison_sees_prompt_tokens_and_text() -> None:
    one = ModelAnswer((1, 2), (3,), "가")
    others = [ModelAnswer((1,), (3,), "가"), ModelAnswer((1, 2), (4,), "가"), ModelAnswer((1, 2), (3,), "나"), one]
    found = compare(["a", "b", "c", "d"], [one] * 4, others)
    assert [each.question for each in found.differences] == ["a", "b", "c"]


# ---- GGUF ----


def test_the_written_file_is_read_by_the_gguf_package(gguf_file: Path, model: TorchModel) -> None:
    fields = {name: field.contents() for name, field in GGUFReader(gguf_file).fields.items()}
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.ggml.eos_token_id"] == model.prompt.template.eos_id
    scores, tokens = fields["tokenizer.ggml.scores"], fields["tokenizer.ggml.tokens"]
    ranked = [score for score in scores if score < 0]
    assert len(set(ranked)) == len(ranked) > 0
    assert len(tokens) == model.model.config.vocab_size
    assert 'PARAMETER stop "</s>"' in (gguf_file.parent / "Modelfile").read_text(encoding="utf-8")


def test_the_written_weights_give_the_same_logits(gguf_file: Path, model: TorchModel) -> None:
    read = dequantized_model(GgufReader.open(gguf_file))
    ids = torch.tensor([model.prompt.question(PAIRS[0])])
    with torch.inference_mode():
        np.testing.assert_allclose(read(ids).logits, model.model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("text", [" 앞에 빈칸", "▁밑줄", "뷁 😊 漢字", "<0x41>", "줄\n바꿈", "ㅋㅋ  ㅠㅠ "])
def test_llama_cpp_reads_what_the_model_learned(gguf_file: Path, model: TorchModel, text: str) -> None:
    assert prompt_ids(GgufReader.open(gguf_file), [text])[0] == model.prompt.question(Pair(text, ""))


@pytest.mark.parametrize("typed", ["</s>", "<|user|>가", "<<s>s> <|assistant|></s>"])
def test_no_typed_control_token_reaches_llama_cpp(gguf_file: Path, model: TorchModel, typed: str) -> None:
    ids = prompt_ids(GgufReader.open(gguf_file), [typed])[0]
    template = model.prompt.template
    assert [id for id in ids if id in model.prompt.control_ids] == [*template.opening, *template.assistant]


def test_tokens_of_another_tokenizer_are_seen(gguf_file: Path, rules: DecodingRules) -> None:
    texts = [pair.question for pair in PAIRS]
    other = DecodingRules(build_prompt(load_tokenizer(MINI_FOLDER), 256), 6)
    assert token_differences(gguf_file.parent, rules, texts) == []
    assert len(token_differences(gguf_file.parent, other, texts)) > len(texts)


def test_merges_follow_the_scores() -> None:
    vocabulary = SpmVocabulary(["▁", "a", "b", "ab", "ba", "▁a"], [0, 0, 0, -2, -1, -3], [NORMAL] * 6)
    assert vocabulary.tokenize("aba") == [5, 4]  # ▁ a b a: "ba" first, then "▁a"
    assert vocabulary.tokenize("ab") == [0, 3]


# ---- what is message and refused ----


def facts(licence: str = "mit", personal: int = 0, scores: dict[str, Any] | None = None) -> Facts:
    return Facts("some/base", licence, {}, personal, scores or {}, 20)


@pytest.mark.parametrize("target", ["hf", "ctranslate2", "gguf"])
def test_the_model_alone_is_called_that(target: Target) -> None:
    assert "language model alone" in facts().warnings(target)[0]
    assert facts().warnings("bundle") == []


def test_scores_of_model_and_bot_stand_beside_each_other(trained: Run) -> None:
    assert "% of the test questions, the bot for" in Facts.of(trained).warnings("gguf")[0]


def test_licence_and_personal_data_are_warned_of() -> None:
    warned = facts("cc-by-nc-sa-4.0", personal=3).warnings("hf")
    assert any("non-commercial" in one for one in warned)
    assert any("3 rows" in one for one in warned)
    assert len(facts("apache-2.0").warnings("hf")) == 1
    assert len(facts("cc-by-nc-sa-4.0", personal=3).warnings("bundle")) == 1  # holds no base


def test_refusals(trained: Run, bundle: Path, tmp_path: Path) -> None:
    run = str(trained.folder)
    with pytest.raises(SettingsError, match="exists already"):
        export(run, tmp_path)
    with pytest.raises(SettingsError, match="makes a folder"):
        export(run, tmp_path / "x.zip", export_options=ExportOptions(to="hf"))
    with pytest.raises(SettingsError, match="--adapter goes with"):
        ExportOptions(to="gguf", adapter=True)
    with pytest.raises(ExportError, match="no adapter"):
        export(run, tmp_path / "a", export_options=ExportOptions(to="hf", adapter=True))
    with pytest.raises(SettingsError, match="bundle already"):
        export(str(bundle), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_questions_are_held_out_ones_first(trained: Run, rules: DecodingRules) -> None:
    held_out = {pair.question for name in ("dev", "test") for pair in read_rows(trained.folder, name)}
    assert set(pick_questions(trained, rules, len(held_out))) == held_out
    assert len(pick_questions(trained, rules, 30)) == 30
