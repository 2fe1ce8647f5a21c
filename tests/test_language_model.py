from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch import nn

from daedap.config import TrainOptions
from daedap.errors import DataError
from daedap.model.base import load_base
from daedap.model.device import Machine
from daedap.model.language_model import TorchModel
from daedap.model.tokenizer import encode
from daedap.training.trainer import Trainer
from daedap.types import Message, Pair

RECIPE = TrainOptions(num_train_epochs=60, per_device_train_batch_size=8, learning_rate=1e-2, save_steps=1000)
LEARNED = [*toys.PAIRS[:15], Pair("칭찬해 줘", "정말 잘하고 있어요 😊")]


@pytest.fixture(scope="module", params=list(toys.BASES))
def untrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    name: str = request.param
    base = load_base(str(toys.BASES[name](tmp_path_factory.mktemp("bases") / name)))
    return TorchModel(base.model, base.prompt(96), max_new_tokens=12)


@pytest.fixture(scope="module", params=list(toys.BASES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    """Knows a few answers, more or less."""
    name: str = request.param
    place: Path = tmp_path_factory.mktemp("trained")
    base = load_base(str(toys.BASES[name](place / name)))
    prompt = base.prompt(128)
    examples = [prompt.example(pair) for pair in LEARNED]
    Trainer(toys.task(base.model, examples, []), RECIPE, Machine("cpu", "fp32", 1, ""), place).run()
    return TorchModel(base.model, prompt, max_new_tokens=max(len(ids.ids) - ids.answer_start for ids in examples))


def favour(speaker: TorchModel, wanted: list[int]) -> TorchModel:
    """A head that likes these tokens best, whatever was asked."""
    head = speaker.model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    bias = torch.zeros(head.out_features)
    bias[wanted] = 1000.0
    head.register_forward_hook(lambda _module, _inputs, logits: logits + bias)
    return speaker


@pytest.fixture
def kogpt2(tmp_path: Path) -> TorchModel:
    base = load_base(str(toys.kogpt2(tmp_path / "kogpt2")))
    return TorchModel(base.model, base.prompt(96), max_new_tokens=12)


def test_what_was_learned_is_said_and_ended(trained: TorchModel) -> None:
    spoken = trained.reply(LEARNED)
    assert sum(said.text == pair.answer for said, pair in zip(spoken, LEARNED, strict=True)) >= 14
    assert spoken[-1].text == "정말 잘하고 있어요 😊"
    for said in spoken:
        assert said.ended
        assert said.tokens == len(encode(trained.prompt.tokenizer, said.text)) + 1


def test_a_reply_that_does_not_end_is_cut_at_the_limit(kogpt2: TorchModel) -> None:
    word = encode(kogpt2.prompt.tokenizer, "네")[-1]
    said = favour(kogpt2, [word]).reply(toys.PAIRS[:1])[0]
    assert (said.ended, said.tokens) == (False, 12)
    assert said.text.count("네") == 12


def test_an_answer_may_be_the_end_alone(kogpt2: TorchModel) -> None:
    said = favour(kogpt2, [kogpt2.prompt.template.eos_id]).reply(toys.PAIRS[:1])[0]
    assert (said.text, said.ended, said.tokens) == ("", True, 1)
    assert said.log2_probability == pytest.approx(0, abs=1e-6)


def test_control_tokens_are_never_said(untrained: TorchModel) -> None:
    tokenizer = untrained.prompt.tokenizer
    controls = untrained.prompt.control_ids - {untrained.prompt.template.eos_id}
    spoken = favour(untrained, sorted(controls)).reply(toys.PAIRS[:8])
    names = [str(tokenizer.convert_ids_to_tokens(number)) for number in controls]
    assert len(names) >= 2
    for said in spoken:
        assert not [name for name in names if name in said.text]
        assert said.log2_probability < -100, "something else was said than what the model liked best"


def test_a_face_that_kogpt2_marks_special_can_be_said(kogpt2: TorchModel) -> None:
    face = kogpt2.prompt.tokenizer.convert_tokens_to_ids("😊")
    assert isinstance(face, int)
    assert favour(kogpt2, [face]).reply(toys.PAIRS[:1])[0].text == "😊" * 12


def test_replies_in_a_batch_are_those_given_alone(trained: TorchModel) -> None:
    together = trained.reply(toys.PAIRS)
    alone = [trained.reply([pair])[0] for pair in toys.PAIRS]
    assert [said.text for said in together] == [said.text for said in alone]
    assert [said.tokens for said in together] == [said.tokens for said in alone]
    means = [said.log2_probability for said in together]
    np.testing.assert_allclose(means, [said.log2_probability for said in alone], rtol=1e-3, atol=1e-3)


def test_a_reply_is_as_likely_as_when_it_is_scored(trained: TorchModel) -> None:
    compared = 0
    for pair, said in zip(LEARNED, trained.reply(LEARNED), strict=True):
        bits, labels = trained.log2_probability([replace(pair, answer=said.text)])[0]
        if said.ended and labels == said.tokens:  # else it is spelled with other tokens
            assert bits == pytest.approx(said.log2_probability * said.tokens, rel=1e-3, abs=1e-3)
            compared += 1
    assert compared >= 14


def test_muted_tokens_keep_their_share_of_the_probability(kogpt2: TorchModel) -> None:
    """Half of the mass on a control token: what is said instead has at most the other half."""
    mask = kogpt2.prompt.tokenizer.mask_token_id
    end = kogpt2.prompt.template.eos_id
    assert isinstance(mask, int)
    said = favour(kogpt2, [mask, end]).reply(toys.PAIRS[:1])[0]
    bits, _ = kogpt2.log2_probability([replace(toys.PAIRS[0], answer="")])[0]
    assert said.tokens == 1
    assert said.log2_probability == pytest.approx(bits, rel=1e-4)
    assert said.log2_probability < -0.1


def test_scores_know_their_own_answer(trained: TorchModel) -> None:
    own = trained.log2_probability(LEARNED)
    others = [replace(pair, answer=LEARNED[row - 1].answer) for row, pair in enumerate(LEARNED)]
    wrong = trained.log2_probability(others)
    assert (own[:, 0] / own[:, 1] > wrong[:, 0] / wrong[:, 1]).all()


def test_the_pairs_own_answers_are_not_looked_at(trained: TorchModel) -> None:
    blank = [replace(pair, answer="") for pair in LEARNED]
    assert trained.reply(blank) == trained.reply(LEARNED)


def test_one_long_answer_does_not_forbid_long_questions(kogpt2: TorchModel) -> None:
    """A single long answer among the learned ones makes the longest reply nearly as long as the model's memory."""
    greedy = replace(kogpt2, max_new_tokens=92)
    pair = Pair("길이 막혀 버스를 놓쳤어", "")
    assert len(greedy.prompt.question(pair)) > 96 - 92
    word = encode(kogpt2.prompt.tokenizer, "네")[-1]
    said = favour(greedy, [word]).reply([pair])[0]
    assert said.tokens == 96 - len(greedy.prompt.question(pair))


def test_history_gives_way_to_the_reply(kogpt2: TorchModel) -> None:
    turns = (Message("user", "배고파 죽겠다"), Message("assistant", "냉장고에 뭐가 있는지 같이 볼까요?"))
    pair = Pair("점심 뭐 먹지", "", history=turns * 3)
    alone = len(kogpt2.prompt.question(replace(pair, history=())))
    tight = replace(kogpt2, max_new_tokens=96 - alone)
    assert tight.reply([pair])[0].text == tight.reply([replace(pair, history=())])[0].text
    loose = replace(kogpt2, max_new_tokens=12)
    assert loose.reply([pair])[0].log2_probability != loose.reply([replace(pair, history=())])[0].log2_probability


def test_a_question_longer_than_the_memory_is_told(kogpt2: TorchModel) -> None:
    with pytest.raises(DataError, match="tokens long"):
        kogpt2.reply([Pair("길이 막혀 " * 60, "")])


def test_no_questions_no_replies(kogpt2: TorchModel) -> None:
    assert kogpt2.reply([]) == []
    assert kogpt2.log2_probability([]).shape == (0, 2)
