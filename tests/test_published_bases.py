"""End-to-end checks of small random copies of popular bases, listed in docs/bases.md."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import published
import pytest
import torch
import toys
from peft import PeftModel
from published import CONFIGS, TOKENIZERS
from torch.nn import Embedding
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedModel

from daedap.errors import EngineError
from daedap.files import write_json
from daedap.model.base import Base, load_base
from daedap.model.convert import convert
from daedap.model.engine import Engine
from daedap.model.language_model import TorchModel
from daedap.model.loss import AnswerLoss, collate, score_answers
from daedap.model.prompt import Example, Prompt
from daedap.model.tokenizer import encode, load_tokenizer, prefix_ids, save_tokenizer
from daedap.model.trainable import SPLITTABLE, frozen_lower, with_lora
from daedap.model.verify import Reference
from daedap.types import Message, Pair

pytestmark = pytest.mark.slow

UNKNOWN = {"LGAI-EXAONE/EXAONE-4.0-1.2B", "LiquidAI/LFM2-350M", "HuggingFaceTB/SmolLM3-3B"}
"""CTranslate2 has no converter for their architectures."""
PAIRS = toys.PAIRS[:6]
SHARED = [Pair(question.question, answer.answer) for question in PAIRS[:2] for answer in PAIRS]
"""Two questions with six answers each."""
HISTORY = (Message("user", "안녕하세요?"), Message("assistant", "좋은 꿈 꾸세요."))


@dataclass(frozen=True)
class Copy:
    """A small copy, loaded once; `model()` copies it for tests that change it."""

    name: str
    folder: Path
    base: Base

    @property
    def prompt(self) -> Prompt:
        return self.base.prompt(200)

    def model(self) -> PreTrainedModel:
        return copy.deepcopy(self.base.model)


@pytest.fixture(scope="module", params=list(CONFIGS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    folder = published.copy_of(request.param, tmp_path_factory.mktemp("copies") / "base")
    return Copy(request.param, folder, load_base(str(folder)))


def test_the_copy_has_the_published_proportions(base: Copy) -> None:
    """The self-test has already passed while loading."""
    original, ours = CONFIGS[base.name], base.base.model.config
    assert (ours.model_type, base.base.model.dtype) == (original["model_type"], torch.float32)
    assert bool(ours.tie_word_embeddings) == original.get("tie_word_embeddings", True)
    if "num_key_value_heads" in original:
        heads = original["num_attention_heads"] // original["num_key_value_heads"]
        assert ours.num_attention_heads // ours.num_key_value_heads == heads
        widths = [one["num_attention_heads"] * one.get("head_dim", 0) for one in (original, ours.to_dict())]
        assert widths[0] * ours.hidden_size == widths[1] * original["hidden_size"]
    assert cast("Embedding", base.base.model.get_input_embeddings()).num_embeddings > len(base.base.tokenizer)
    longest = max(len(base.prompt.example(pair).ids) for pair in PAIRS)
    assert longest > max(published.WINDOW, published.SCALED_FROM)


def test_the_prompt_begins_with_the_prefix(base: Copy) -> None:
    traits, tokenizer, opening = TOKENIZERS[base.name], base.base.tokenizer, base.prompt.template.opening
    prefix = [tokenizer.bos_token_id] if traits.adds_bos else []
    assert prefix_ids(tokenizer) == prefix
    if traits.template:  # it decides alone
        prefix = [tokenizer.bos_token_id] if "{{ bos_token }}" in traits.template else []
    assert opening[: len(prefix)] == prefix
    if traits.bos != "<|im_start|>":  # SmolLM2's begins every turn, too
        assert opening.count(cast("int", tokenizer.bos_token_id)) == len(prefix)
    cut = base.base.prompt(len(opening) + 24).example(Pair("길이 막혀 " * 9, "네", history=HISTORY * 3))
    assert cut.ids[: len(opening)] == opening


def test_transformers_renders_the_same(base: Copy, tmp_path: Path) -> None:
    """With the saved tokenizer, loaded by `AutoTokenizer`."""
    save_tokenizer(base.prompt.tokenizer, tmp_path)
    loaded, reopened = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert reopened.chat_template == base.prompt.tokenizer.chat_template
    for pair in [*toys.PAIRS, Pair("심심해", "저랑 놀아요.", history=HISTORY)]:
        if any(token in pair.question for token in loaded.get_added_vocab()):
            continue  # KoGPT2 marks ㅠㅠ special; daedap encodes it as text
        question = base.prompt.question(pair)
        assert Base("", base.base.model, reopened, "", "").prompt(200).question(pair) == question
        turns = [{"role": turn.role, "content": turn.content} for turn in pair.messages[:-1]]
        rendered = loaded.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        if TOKENIZERS[base.name].template == toys.QWEN3_TEMPLATE:  # the generation prompt leaves thinking open
            rendered += loaded("<think>\n\n</think>\n\n", add_special_tokens=False)["input_ids"]
        assert rendered == question


def log2_probability(model: PreTrainedModel, example: Example) -> float:
    """log2 p of one answer by transformers."""
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([example.ids])).logits[0, example.answer_start - 1 : -1]
    nats = cross_entropy(logits.double(), torch.tensor(example.ids[example.answer_start :]), reduction="sum")
    return -float(nats) / float(np.log(2))


def test_scores_equal_those_of_single_pairs(base: Copy) -> None:
    examples = [base.prompt.example(pair) for pair in [*SHARED, Pair("심심해", "저랑 놀아요.", history=HISTORY)]]
    scores = score_answers(base.base.model, examples, "cpu")
    assert scores[:, 0] == pytest.approx([log2_probability(base.base.model, example) for example in examples], rel=1e-4)


def test_lower_and_upper_blocks_compute_the_whole_model(base: Copy) -> None:
    assert base.base.model.config.model_type in SPLITTABLE
    batch = collate([base.prompt.example(pair) for pair in PAIRS], "cpu")
    model = base.base.model.eval()
    with torch.no_grad():
        logits = model(input_ids=batch.inputs).logits[batch.row, batch.position]
        expected_loss = cross_entropy(logits, batch.label, reduction="none")
        torch.testing.assert_close(AnswerLoss(model)(batch), expected_loss)
        for lowest in range(1, model.config.num_hidden_layers):
            states = frozen_lower(model, lowest)(batch.inputs)
            upper = AnswerLoss(model, first_block=lowest)(type(batch)(states, batch.row, batch.position, batch.label))
            torch.testing.assert_close(upper, expected_loss)


def test_an_adapter_is_trained_and_loaded(base: Copy, tmp_path: Path) -> None:
    """LoRA on the two top layers: a few steps, saved, loaded and merged as for a run."""
    examples = [base.prompt.example(pair) for pair in PAIRS]
    adapted = with_lora(base.model(), rank=4, alpha=8, dropout=0.0, layers=2)
    blocks = {name.split(".lora_")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
    linear = 4 if CONFIGS[base.name]["model_type"] in ("gpt2", "gpt_neox") else 5
    assert len(blocks) >= 2 * linear
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer, loss, batch = torch.optim.AdamW(trained, lr=2e-2), AnswerLoss(adapted), collate(examples, "cpu")
    before = loss(batch).mean().item()
    for _ in range(8):
        optimizer.zero_grad()
        loss(batch).mean().backward()
        optimizer.step()
    assert loss(batch).mean().item() < 0.9 * before
    adapted.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(load_base(str(base.folder)).model, str(tmp_path)).merge_and_unload()
    assert score_answers(again, examples, "cpu") == pytest.approx(score_answers(adapted, examples, "cpu"), rel=1e-4)


def test_it_answers_greedily(base: Copy) -> None:
    """Generation with key-value cache and padding equals repeated forward passes."""
    model = TorchModel(base.base.model, base.prompt, max_new_tokens=6)
    replies = model.reply([PAIRS[0], Pair("심심해", "", history=HISTORY)])  # of unequal length
    assert model.reply(PAIRS[:1])[0].text == replies[0].text
    ids, suppressed = base.prompt.question(PAIRS[0]), torch.tensor(model._rules.suppressed_ids)
    words = list[int]()
    while len(words) < 6 and (not words or words[-1] != base.prompt.template.eos_id):
        with torch.no_grad():
            logits = base.base.model(input_ids=torch.tensor([ids + words])).logits[0, -1]
        logits[suppressed] = -torch.inf
        words.append(int(logits.argmax()))
    assert replies[0].tokens == len(words)
    assert model._rules.to_generation(words, [0.0] * len(words)).text == replies[0].text


def converted(base: Copy, folder: Path) -> tuple[TorchModel, Engine]:
    prompt = base.base.prompt(128)
    model = TorchModel(base.base.model, prompt, max_new_tokens=6)
    convert(base.model(), prompt, folder)
    return model, Engine.open(folder, prompt, 6)


def test_its_engine_agrees_or_is_refused(base: Copy, tmp_path: Path) -> None:
    if base.name in UNKNOWN:
        with pytest.raises(EngineError, match=CONFIGS[base.name]["model_type"]):
            converted(base, tmp_path)
        return
    model, engine = converted(with_wide_window(base, tmp_path / "wide"), tmp_path / "engine")
    expected, actual = model.log2_probability(SHARED), engine.log2_probability(SHARED)
    assert actual[:, 1].tolist() == expected[:, 1].tolist()
    bits_per_token = np.abs(actual - expected)[:, 0].sum() / expected[:, 1].sum()
    assert bits_per_token < 0.1
    assert Reference.of(model, SHARED).compare(engine).close


def with_wide_window(base: Copy, folder: Path) -> Copy:
    """With a window longer than the texts, like the published ones: shorter ones are refused."""
    if not CONFIGS[base.name].get("sliding_window"):
        return base
    with pytest.raises(EngineError, match="its sliding window is"):
        converted(base, folder / "engine")
    published.copy_of(base.name, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, "sliding_window": 200})
    return Copy(base.name, folder, load_base(str(folder)))


def test_control_tokens_stay_text(base: Copy) -> None:
    typed = "".join(base.base.tokenizer.all_special_tokens)
    assert not base.prompt.control_ids & set(encode(base.base.tokenizer, typed))
