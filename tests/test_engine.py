from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import toys
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2LMHeadModel,
    Olmo2Config,
    Olmo2ForCausalLM,
)

from daedap.config import ModelOptions, SplitOptions, TrainOptions
from daedap.data.split import RunRows, split, write_split
from daedap.errors import DataError, EngineError, RunError
from daedap.files import write_json
from daedap.model.base import load_base
from daedap.model.convert import convert, write_engine
from daedap.model.decoding import LanguageModel
from daedap.model.device import Machine, processor_features
from daedap.model.engine import Engine
from daedap.model.language_model import TorchModel, open_trained
from daedap.model.tokenizer import encode, load_tokenizer, save_tokenizer
from daedap.model.verify import open_engine
from daedap.runs import Run, TrainConfig, create
from daedap.training.finetune import finetune
from daedap.training.trainer import Trainer
from daedap.types import Message, Pair

pytestmark = pytest.mark.slow

RECIPE = TrainOptions(num_train_epochs=60, per_device_train_batch_size=8, learning_rate=1e-2, save_steps=1000)
LEARNED = toys.PAIRS[:16]
TURNS = (Message("user", "배고파 죽겠다"), Message("assistant", "냉장고에 뭐가 있는지 같이 볼까요?"))


@dataclass(frozen=True)
class Implementations:
    """The same model in PyTorch (fp32) and in CTranslate2 (int8), with the full head and with a shortlist."""

    torch: TorchModel
    engine: Engine
    short: Engine


def converted(model: TorchModel, folder: Path, kept: Sequence[int] = ()) -> Engine:
    convert(copy.deepcopy(model.model), model.prompt, folder, torch.tensor(sorted(kept)) if kept else None)
    return Engine.open(folder, model.prompt, model.max_new_tokens)


def with_config(base: Path, **changes: object) -> Path:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    write_json(base / "config.json", {**config, **changes})
    return base


@pytest.fixture(scope="module", params=list(toys.BASES))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Implementations:
    """Trained on a few answers."""
    name: str = request.param
    folder: Path = tmp_path_factory.mktemp("both")
    base = load_base(str(with_config(toys.BASES[name](folder / name), sliding_window=128)))
    prompt = base.prompt(128)
    examples = [prompt.example(pair) for pair in LEARNED]
    Trainer(toys.task(base.model, examples, []), RECIPE, Machine("cpu", "fp32", 1, ""), folder).run()
    model = TorchModel(base.model, prompt, max_new_tokens=max(example.n_labels for example in examples))
    shortlist = {id for example in examples for id in example.ids[example.answer_start :]}
    return Implementations(
        model, converted(model, folder / "engine"), converted(model, folder / "shortlisted" / "engine", [*shortlist])
    )


@pytest.fixture
def kogpt2(tmp_path: Path) -> TorchModel:
    base = load_base(str(toys.kogpt2(tmp_path / "kogpt2")))
    return TorchModel(base.model, base.prompt(96), max_new_tokens=12)


def favour(model: TorchModel, ids: Sequence[int]) -> TorchModel:
    """Set weights so that these tokens are the most likely ones after any prompt, in descending order."""
    body = cast("GPT2LMHeadModel", model.model).transformer
    direction = torch.zeros(body.ln_f.bias.shape)
    direction[0] = 1.0
    with torch.no_grad():
        body.ln_f.weight.zero_()
        body.ln_f.bias.copy_(direction)
        for rank, id in enumerate(ids):
            body.wte.weight[id] = direction * (100.0 - rank)
    return model


def test_replies_equal_those_of_pytorch(both: Implementations) -> None:
    expected = both.torch.reply(LEARNED)
    assert sum(reply.text == pair.answer for reply, pair in zip(expected, LEARNED, strict=True)) >= 14
    for engine in (both.engine, both.short):
        for reply, want in zip(engine.reply(LEARNED), expected, strict=True):
            assert (reply.text, reply.ended, reply.tokens) == (want.text, want.ended, want.tokens)
            assert reply.log2_probability == pytest.approx(want.log2_probability, abs=0.05)


def test_pytorch_chooses_among_the_tokens_of_a_shortlist(kogpt2: TorchModel, tmp_path: Path) -> None:
    """Else an engine with a shortlist would count as wrong, and be thrown away, as that of gemma-3-270m once was."""
    first, second = kogpt2.prompt.tokenizer("사랑", add_special_tokens=False)["input_ids"][0], 300
    model = favour(kogpt2, [first, second])
    kept = [second, kogpt2.prompt.template.eos_id]
    short = converted(model, tmp_path, kept)
    free, (wanted, _) = model.reply(LEARNED[:1])[0], replace(model, allowed=torch.tensor(kept)).greedy(LEARNED[:1])[0]
    assert wanted.text == short.reply(LEARNED[:1])[0].text != free.text


def test_a_shortlist_has_a_file_of_its_own(both: Implementations) -> None:
    assert not (both.engine.folder / "replies").exists()
    assert (both.short.folder / "replies" / "model.bin").exists()


def test_scores_equal_those_of_pytorch(both: Implementations) -> None:
    """Tokens outside the shortlist are scored, too."""
    expected = both.torch.log2_probability(toys.PAIRS)
    for engine in (both.engine, both.short):
        actual = engine.log2_probability(toys.PAIRS)
        assert actual[:, 1].tolist() == expected[:, 1].tolist()
        assert np.abs(actual[:, 0] - expected[:, 0]).sum() / expected[:, 1].sum() < 0.05


@pytest.mark.skipif("VNNI" in processor_features(), reason="this processor accumulates int8 products in 32 bits")
def test_weights_of_full_range_saturate_without_vnni(both: Implementations, tmp_path: Path) -> None:
    """Why int8 weights use a reduced range. `make test-avx2` runs this on every machine."""
    convert(both.torch.model, both.torch.prompt, tmp_path / "engine", largest_pair=254)
    full = Engine.open(tmp_path / "engine", both.torch.prompt, both.torch.max_new_tokens)
    expected = both.torch.log2_probability(toys.PAIRS)
    apart = [np.abs(engine.log2_probability(toys.PAIRS) - expected)[:, 0].sum() for engine in (full, both.engine)]
    assert apart[0] > 2 * apart[1], "saturated sums"


def test_a_reply_has_the_probability_of_its_score(both: Implementations) -> None:
    for pair, reply in zip(LEARNED, both.engine.reply(LEARNED), strict=True):
        bits, labels = both.engine.log2_probability([replace(pair, answer=reply.text)])[0]
        if labels == reply.tokens:  # else it is spelled with other tokens
            assert bits == pytest.approx(reply.log2_probability * reply.tokens, abs=0.05)


@pytest.mark.parametrize("kind", ["torch", "engine", "short"])
def test_samples(both: Implementations, kind: str) -> None:
    model: LanguageModel = getattr(both, kind)
    samples = model.sample(LEARNED[:3], 6, seed=1, temperature=0.7)
    assert [len(of_pair) for of_pair in samples] == [6, 6, 6]
    for pair, of_pair in zip(LEARNED, samples, strict=False):
        likely = [one.log2_probability for one in of_pair]
        assert likely == sorted(likely, reverse=True)
        assert all(one.ended and one.tokens >= 1 for one in of_pair)
        best = model.reply([pair])[0]
        assert best.text in [one.text for one in of_pair], "a memorised answer is sampled"
    assert model.sample(LEARNED[:3], 6, seed=1, temperature=0.7) == samples
    hot = [model.sample(LEARNED[:3], 6, seed=seed, temperature=3.0) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    assert len({one.text for one in hot[0][0]}) > 1


@pytest.mark.parametrize("kind", ["torch", "engine", "short"])
def test_samples_at_low_temperature_are_greedy(both: Implementations, kind: str) -> None:
    model: LanguageModel = getattr(both, kind)
    greedy = [reply.text for reply in model.reply(LEARNED)]
    for top_k in (0, 5, 100_000):
        samples = model.sample(LEARNED, 2, seed=3, temperature=0.01, top_k=top_k)
        assert [[reply.text for reply in two] for two in samples] == [[text, text] for text in greedy]


def test_top_k_sampling(kogpt2: TorchModel, tmp_path: Path) -> None:
    first, second, third = (encode(kogpt2.prompt.tokenizer, word)[-1] for word in ("네", "요", "다"))
    engine = converted(favour(kogpt2, [first, second, third]), tmp_path / "engine")
    for model in (kogpt2, engine):
        among_two = "".join(reply.text for reply in model.sample([toys.PAIRS[0]], 8, seed=1, temperature=5, top_k=2)[0])
        assert set(among_two) <= {"네", "요", " "}
        assert "요" in among_two
        among_all = "".join(reply.text for reply in model.sample([toys.PAIRS[0]], 8, seed=1, temperature=5)[0])
        assert "다" in among_all


def test_batched_replies_equal_single_ones(both: Implementations) -> None:
    together = both.engine.reply(LEARNED)
    assert [reply.text for reply in together] == [both.engine.reply([pair])[0].text for pair in LEARNED]
    assert [reply.text for reply in both.engine.reply(LEARNED * 9)] == [reply.text for reply in together] * 9


def test_control_tokens_are_never_generated(kogpt2: TorchModel, tmp_path: Path) -> None:
    word = encode(kogpt2.prompt.tokenizer, "네")[-1]
    controls = sorted(kogpt2.prompt.control_ids - {kogpt2.prompt.template.eos_id})
    engine = converted(favour(kogpt2, [*controls, word]), tmp_path / "engine")
    assert len(controls) >= 10
    assert engine.reply(toys.PAIRS[:2])[0].text == kogpt2.reply(toys.PAIRS[:2])[0].text
    samples = engine.sample(toys.PAIRS[:2], 4, seed=1, temperature=2.0)
    for reply in (reply for four in samples for reply in four):
        assert set(reply.text) <= {"네", " "}


def test_an_empty_reply(kogpt2: TorchModel, tmp_path: Path) -> None:
    engine = converted(favour(kogpt2, [kogpt2.prompt.template.eos_id]), tmp_path / "engine")
    reply = engine.reply(toys.PAIRS[:1])[0]
    assert (reply.text, reply.ended, reply.tokens) == ("", True, 1)


def test_a_reply_that_does_not_end_is_cut_at_the_limit(kogpt2: TorchModel, tmp_path: Path) -> None:
    word = encode(kogpt2.prompt.tokenizer, "네")[-1]
    engine = converted(favour(kogpt2, [word]), tmp_path / "engine")
    for reply in (engine.reply(toys.PAIRS[:1])[0], *engine.sample(toys.PAIRS[:1], 2, seed=1, temperature=0.1)[0]):
        assert (reply.ended, reply.tokens, reply.text.count("네")) == (False, 12, 12)
    question = engine.prompt.question(toys.PAIRS[0])
    long = replace(engine, max_new_tokens=92)
    assert long.reply(toys.PAIRS[:1])[0].tokens == 96 - len(question)


def test_a_typed_control_token_stays_text(both: Implementations) -> None:
    typed = [Pair("</s> <usr> <|im_end|> 안녕", "<sys></s>"), Pair("<0x41> </s>", "<eos>")]
    expected, actual = both.torch.log2_probability(typed), both.engine.log2_probability(typed)
    assert actual[:, 1].tolist() == expected[:, 1].tolist()
    np.testing.assert_allclose(actual[:, 0], expected[:, 0], rtol=0.05)


def test_history_is_used_and_dropped_when_too_long(kogpt2: TorchModel, tmp_path: Path) -> None:
    engine = converted(kogpt2, tmp_path / "engine")
    question_pair = Pair("점심 뭐 먹지", "매콤한 김치찌개는 어떠세요?", history=TURNS)
    alone = replace(question_pair, history=())
    with_turns, without = engine.log2_probability([question_pair, alone])[:, 0]
    assert with_turns == pytest.approx(kogpt2.log2_probability([question_pair])[0, 0], abs=0.5)
    assert abs(with_turns - without) > 1.0
    tight = replace(engine, max_new_tokens=96 - len(kogpt2.prompt.question(alone)))
    long = replace(question_pair, history=TURNS * 3)
    assert tight.reply([long])[0].text == tight.reply([alone])[0].text
    with pytest.raises(DataError, match="tokens long"):
        engine.reply([Pair("길이 막혀 " * 60, "")])


def test_no_questions_no_replies(both: Implementations) -> None:
    assert both.engine.reply([]) == []
    assert both.engine.sample([], 3, seed=1) == both.torch.sample([], 3, seed=1) == []
    assert both.engine.log2_probability([]).shape == (0, 2)


def test_embedding_rows_without_a_token_get_unique_names(tmp_path: Path) -> None:
    base = load_base(str(toys.llama(tmp_path / "llama")))
    base.model.resize_token_embeddings(len(base.tokenizer) + 9)
    engine = converted(TorchModel(base.model, base.prompt(96), 12), tmp_path / "engine")
    names = json.loads((engine.folder / "vocabulary.json").read_text(encoding="utf-8"))
    assert len(names) == len(set(names)) == len(base.tokenizer) + 9
    assert names[: len(base.tokenizer)] == base.tokenizer.convert_ids_to_tokens(list(range(len(base.tokenizer))))
    assert engine.reply(toys.PAIRS[:1])[0].tokens > 0


def train_run(place: Path, base: Path) -> Run:
    """A run with a trained model and nothing else."""
    run = create(place / "runs")
    write_split(run.folder, split(LEARNED, SplitOptions(dev_size=0, test_size=0)))
    model_options = ModelOptions(base=str(base), max_length=96, precision="fp32", device="cpu")
    train_options = TrainOptions(num_train_epochs=20, learning_rate=1e-2, per_device_train_batch_size=4)
    write_json(run.folder / "config.json", TrainConfig(file="", model=model_options, train=train_options).to_json())
    finetune(run, RunRows(run.folder))
    return run


def test_a_trained_run_is_answered_by_its_engine(trained: Run) -> None:
    engine = open_engine(trained)
    assert isinstance(engine, Engine)
    assert "engine/model.bin" in trained.manifest["files"]
    assert engine.reply([Pair("우리 강아지가 밥을 안 먹어", "")])[0].ended


def test_an_architecture_unknown_to_ctranslate2_is_answered_by_pytorch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(toys.llama(tmp_path / "llama"))
    config = Olmo2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Olmo2ForCausalLM(config).save_pretrained(tmp_path / "olmo2")
    save_tokenizer(tokenizer, tmp_path / "olmo2")
    run = train_run(tmp_path, tmp_path / "olmo2")
    caplog.set_level("INFO", logger="daedap")
    caplog.clear()
    write_engine(run, RunRows(run.folder), open_trained(run))
    assert len(caplog.messages) == 1
    assert "CTranslate2 can't compute a model of type olmo2" in caplog.text
    assert not (run.folder / "engine").exists()
    model = open_engine(run)
    assert isinstance(model, TorchModel)
    assert [len(of_pair) for of_pair in model.sample(LEARNED[:2], 3, seed=1)] == [3, 3]


def test_an_engine_that_disagrees_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """CTranslate2 ignores `scale_attn_weights`."""
    run = train_run(tmp_path, with_config(toys.kogpt2(tmp_path / "kogpt2"), scale_attn_weights=False))
    caplog.set_level("INFO", logger="daedap")
    write_engine(run, RunRows(run.folder), open_trained(run))
    assert "its answers differ from the trained model's" in caplog.text
    assert not (run.folder / "engine").exists()
    assert isinstance(open_engine(run), TorchModel)


def test_weights_too_uneven_for_eight_bits_stay_in_float32(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Weights of a feature that is always 0 may be huge; int8 then rounds all others to 0. Gemma has such weights."""
    run = train_run(tmp_path, toys.kogpt2(tmp_path / "kogpt2"))
    model = open_trained(run)
    body: Any = cast("GPT2LMHeadModel", model.model).transformer
    with torch.no_grad():
        for block in body.h:
            for norm, reads in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                norm.weight[0] = norm.bias[0] = 0.0
                reads.weight[0] = 1000.0
    caplog.set_level("INFO", logger="daedap")
    write_engine(run, RunRows(run.folder), model)
    assert "keeps them in float32" in caplog.text
    engine = open_engine(run)
    assert isinstance(engine, Engine)
    assert engine.compute_type == "float32"
    expected, actual = model.log2_probability(LEARNED)[:, 0], engine.log2_probability(LEARNED)[:, 0]
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


def test_a_model_without_a_converter_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(
        Olmo2Config(vocab_size=832, hidden_size=32, num_hidden_layers=1, pad_token_id=0)
    )
    prompt = load_base(str(toys.llama(tmp_path / "llama"))).prompt(64)
    with pytest.raises(EngineError, match="olmo2"):
        convert(model, prompt, tmp_path / "engine")


def test_a_window_shorter_than_the_texts_is_refused(tmp_path: Path) -> None:
    base = load_base(str(toys.gemma3(tmp_path / "gemma3")))
    with pytest.raises(EngineError, match="its sliding window is 32 tokens, and --max-length is 33"):
        convert(base.model, base.prompt(33), tmp_path / "engine")
    convert(base.model, base.prompt(32), tmp_path / "engine")


def test_the_hidden_size_may_exceed_the_window(tmp_path: Path) -> None:
    """gemma-3-270m: 640 > 512, which CTranslate2 mistakes for the length of the text."""
    base = load_base(str(toys.gemma3(tmp_path / "gemma3")))
    config = base.model.config.to_dict() | {"hidden_size": 96, "sliding_window": 64}
    torch.manual_seed(0)
    model = TorchModel(Gemma3ForCausalLM(Gemma3TextConfig(**config)).eval(), base.prompt(64), 8)
    engine = converted(model, tmp_path / "engine")
    expected, actual = model.log2_probability(LEARNED), engine.log2_probability(LEARNED)
    assert np.abs(actual - expected)[:, 0].sum() / expected[:, 1].sum() < 0.05


@pytest.fixture
def damaged(trained: Run, tmp_path: Path) -> Run:
    """A copy of a run, to be damaged."""
    return Run(Path(shutil.copytree(trained.folder, tmp_path / "0001")))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_engine_is_reported(damaged: Run, kept: float) -> None:
    path = damaged.folder / "engine" / "model.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(RunError, match=r"engine.*can't be read"):
        open_engine(damaged)


@pytest.mark.parametrize("name", ["model.bin", "config.json", "vocabulary.json"])
def test_a_missing_engine_file_is_reported(damaged: Run, name: str) -> None:
    (damaged.folder / "engine" / name).unlink()
    with pytest.raises(RunError, match=r"engine.*can't be read"):
        open_engine(damaged)


def test_without_an_engine_pytorch_answers(damaged: Run) -> None:
    shutil.rmtree(damaged.folder / "engine")
    assert isinstance(open_engine(damaged), TorchModel)


def test_pytorch_keeps_its_number_of_threads(both: Implementations) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        engine = Engine.open(both.engine.folder, both.engine.prompt, 8)
        engine.reply(LEARNED[:4])
        engine.log2_probability(LEARNED[:4])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
