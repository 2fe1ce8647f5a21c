from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback_hub import hub_environment, serve_hub
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from toys import PAIRS, TEXTS
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

import daedap
from daedap.errors import EncoderError
from daedap.model.encoder_conversion import open_encoder
from daedap.model.sentence_encoder import SentenceEncoder
from daedap.retrieval.hybrid import HybridRetriever

pytestmark = pytest.mark.slow

ASKED = ["배송은 언제 와요?", "오늘 기분이 너무 좋아", "점심 뭐 먹지", "", "환불은요? " * 40]
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
}
KINDS: dict[str, Any] = {
    "bert": (BertConfig, BertModel),
    "roberta": (RobertaConfig, RobertaModel),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel),
}


def toy(folder: Path, kind: str = "bert", pooling: str | None = "mean_tokens", **files: Any) -> Path:
    """A random encoder in the layout of sentence-transformers; `files`: more JSON files by stem."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer, trained.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
    )
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=trained, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config, model = KINDS[kind]
    model(config(vocab_size=trained.get_vocab_size(), **SHAPE)).save_pretrained(folder)
    if pooling:
        modes = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "max_tokens")}
        parts = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        modules = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in parts.items()]
        write(folder / "modules.json", modules)
        write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 64, **modes})
    for name, content in files.items():
        write(folder / f"{name}.json", content)
    return folder


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def by_transformers(folder: Path, texts: list[str], pooling: str = "mean") -> NDArray[np.float32]:
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)
    vectors = []
    for text in texts:
        with torch.inference_mode():
            states = model(**tokenizer(text, truncation=True, max_length=62, return_tensors="pt")).last_hidden_state[0]
        vector = states[0] if pooling == "cls" else states.mean(dim=0)
        vectors.append((vector / vector.norm()).numpy())
    return np.stack(vectors)


def uncentred(encoder: SentenceEncoder) -> SentenceEncoder:
    return SentenceEncoder(encoder.model, encoder.tokenizer, encoder.settings, 1)


@pytest.mark.parametrize(
    ("kind", "pooling"), [("bert", "mean"), ("bert", "cls"), ("roberta", "mean"), ("xlm-roberta", "cls")]
)
def test_vectors_are_those_of_transformers(kind: str, pooling: str, tmp_path: Path) -> None:
    mode = "cls_token" if pooling == "cls" else "mean_tokens"
    folder = toy(tmp_path / "toy", kind, mode, sentence_bert_config={"max_seq_length": 62})
    encoder = open_encoder(str(folder), tmp_path / "cache")
    cosines = (uncentred(encoder).encode(ASKED) * by_transformers(folder, ASKED, pooling)).sum(axis=1)
    assert cosines.min() > 0.98
    assert encoder.settings.pooling == pooling
    assert encoder.settings.name == str(folder)


def test_the_common_part_of_all_vectors_is_taken_away(tmp_path: Path) -> None:
    encoder = open_encoder(str(toy(tmp_path / "toy")), tmp_path / "cache")
    raw, centred = (one.encode(TEXTS).mean(axis=0) for one in (uncentred(encoder), encoder))
    assert np.linalg.norm(centred) < 0.7 * np.linalg.norm(raw)


def test_an_encoder_is_converted_once(tmp_path: Path) -> None:
    folder, cache = toy(tmp_path / "toy"), tmp_path / "cache"
    first = open_encoder(str(folder), cache)
    [converted] = (cache / "encoders").iterdir()
    assert converted.name == first.settings.digest
    written = (converted / "model.bin").stat().st_mtime_ns
    shutil.copytree(folder, tmp_path / "copy")
    assert open_encoder(str(tmp_path / "copy"), cache).settings == first.settings
    shutil.rmtree(folder)
    again = open_encoder(str(folder), cache, first.settings.digest)
    assert (again.encode(ASKED) == first.encode(ASKED)).all()
    assert (converted / "model.bin").stat().st_mtime_ns == written


def test_a_changed_encoder_is_refused_where_the_old_one_is_needed(tmp_path: Path) -> None:
    old = open_encoder(str(toy(tmp_path / "toy")), tmp_path / "cache").settings.digest
    write(tmp_path / "toy" / "sentence_bert_config.json", {"max_seq_length": 8})
    with pytest.raises(EncoderError, match="has changed"):
        open_encoder(str(tmp_path / "toy"), tmp_path / "other cache", old)


@pytest.mark.parametrize(
    ("files", "prefix"),
    [
        ({"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": None}, "query: "),
        ({"prompts": {"STS": "같은 뜻: "}, "default_prompt_name": "STS"}, "같은 뜻: "),
        ({"prompts": {"passage": "passage: "}}, ""),
        ({}, ""),
    ],
)
def test_the_prefix_is_read(files: dict[str, Any], prefix: str, tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", config_sentence_transformers=files)
    encoder = open_encoder(str(folder), tmp_path / "cache")
    assert encoder.settings.prefix == prefix
    cosines = (uncentred(encoder).encode(["안녕"]) * by_transformers(folder, [prefix + "안녕"])).sum(axis=1)
    assert cosines[0] > 0.98


def test_the_prefix_of_e5_stands_in_its_card(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy")
    (folder / "README.md").write_text('Each input text should start with "query: " or "passage: ".', encoding="utf-8")
    assert open_encoder(str(folder), tmp_path / "cache").settings.prefix == "query: "


@pytest.mark.parametrize(("kind", "message", "length"), [("bert", 512, 66), ("roberta", 512, 64), ("bert", 20, 20)])
def test_texts_are_cut_where_the_encoder_ends(kind: str, message: int, length: int, tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", kind, sentence_bert_config={"max_seq_length": message})
    encoder = open_encoder(str(folder), tmp_path / "cache")
    assert encoder.settings.max_length == length
    assert len(encoder.tokenizer.encode("환불은요? " * 400).ids) == length
    assert np.isfinite(encoder.encode(["환불은요? " * 400])).all()


def test_lower_case(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", sentence_bert_config={"max_seq_length": 64, "do_lower_case": True})
    one, other = open_encoder(str(folder), tmp_path / "cache").encode(["A/S 되나요?", "a/s 되나요?"])
    assert one @ other == pytest.approx(1, abs=1e-4)


def test_a_plain_bert_is_pooled_by_the_mean(tmp_path: Path) -> None:
    assert open_encoder(str(toy(tmp_path / "toy", pooling=None)), tmp_path / "cache").settings.pooling == "mean"


def test_what_is_not_supported_is_told(tmp_path: Path) -> None:
    cases = {
        "pooling is max_tokens": toy(tmp_path / "max", pooling="max_tokens"),
        "has a part Dense": toy(tmp_path / "dense", modules=[{"path": "2_Dense", "type": "st.models.Dense"}]),
        "architecture is distilbert": toy(tmp_path / "distil"),
    }
    DistilBertModel(DistilBertConfig(vocab_size=600, dim=32, hidden_dim=64, n_layers=1, n_heads=2)).save_pretrained(
        tmp_path / "distil"
    )
    for reason, folder in cases.items():
        with pytest.raises(EncoderError, match=f"{reason}.*BERT, RoBERTa and XLM-R"):
            open_encoder(str(folder), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"no config\.json"),
        ("model.safetensors", "weights can't be loaded"),
        ("tokenizer.json", "tokenizer can't be loaded"),
    ],
)
def test_what_is_missing_is_told(name: str, message: str, tmp_path: Path) -> None:
    (toy(tmp_path / "toy") / name).unlink()
    with pytest.raises(EncoderError, match=message):
        open_encoder(str(tmp_path / "toy"), tmp_path / "cache")


@pytest.mark.parametrize("name", ["없는 폴더", "e5", "a/b/c"])
def test_neither_folder_nor_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderError, match="--encoder"):
        open_encoder(name, tmp_path / "cache")


def test_an_encoder_of_the_hub(tmp_path: Path) -> None:
    folder = toy(tmp_path / "hub" / "toy" / "encoder")
    (folder / "pytorch_model.bin").write_bytes(b"never asked for")
    opening = (
        "import sys; from pathlib import Path; from daedap.model.encoder_conversion import open_encoder\n"
        "from daedap.errors import EncoderError\n"
        "for name in sys.argv[2:]:\n"
        "    try: print(open_encoder(name, Path(sys.argv[1])).settings.digest)\n"
        "    except EncoderError as error: print(error)"
    )
    command = [sys.executable, "-c", opening, str(tmp_path / "cache"), "toy/encoder", "toy/nothing"]
    with serve_hub(tmp_path / "hub") as hub:
        environment = hub_environment(hub.address, tmp_path / "hf")
        online = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True).stdout
    offline = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True).stdout
    assert online.splitlines()[0] == open_encoder(str(folder), tmp_path / "cache").settings.digest
    assert online.splitlines()[0] == offline.splitlines()[0]
    for said in (online, offline):
        assert "toy/nothing: can't be downloaded from the hub" in said.splitlines()[1]
    assert not [request for request in hub.requests_seen if "pytorch_model.bin" in request and "resolve" in request]


def test_an_index_is_opened_with_the_encoder_that_it_was_made_with(tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", toy(tmp_path / "toy")
    encoder = open_encoder(str(folder), runs / "cache")
    index = runs / "0001" / "index"
    index.mkdir(parents=True)
    HybridRetriever.build(PAIRS, encoder).save(index)
    shutil.rmtree(runs / "cache")
    again = HybridRetriever.open(index)
    assert again.encoder.settings == encoder.settings
    assert again.matcher.questions.shape == (len(PAIRS), 64)
    assert again.matcher.match(again.encode([PAIRS[3].question]))[0].rows[0] == 3
    shutil.rmtree(runs / "cache")
    write(folder / "sentence_bert_config.json", {"max_seq_length": 8})
    with pytest.raises(EncoderError, match="has changed"):
        HybridRetriever.open(index)


def test_an_encoder_that_is_not_supported_ends_a_training_before_it_begins(qa: Path, tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", pooling="max_tokens")
    with pytest.raises(EncoderError, match="pooling is max_tokens"):
        daedap.train(qa, base="fresh", encoder=str(folder), runs=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*"))
