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
from daedap.model.language_model import CachedScorer, TorchModel
from daedap.model.tokenizer import encode
from daedap.training.trainer import Trainer
from daedap.types import Message, Pair

pytestmark = pytest.mark.slow

RECIPE = TrainOptions(num_train_epochs=60, per_device_train_batch_size=8, learning_rate=1e-2, save_steps=1000)
LEARNED = [*toys.PAIRS[:15], Pair("칭찬해 줘", "정말 잘하고 있어요 😊")]


@pytest.fixture(scope="module", params=list(toys.BASES))
def untrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    name: str = request.param
    base = load_base(str(toys.BASES[name](tmp_path_factory.mktemp("bases") / name)))
    return TorchModel(base.model, base.prompt(96), max_new_tokens=12)


@pytest.fixture(scope="module", params=list(toys.BASES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    """Trained on a few answers."""
    name: str = request.param
    folder: Path = tmp_path_factory.mktemp("trained")
    base = load_base(str(toys.BASES[name](folder / name)))
    prompt = base.prompt(128)
    examples = [prompt.example(pair) for pair in LEARNED]
    Trainer(toys.task(base.model, examples, []), RECIPE, Machine("cpu", "fp32", 1, ""), folder).run()
    return TorchModel(base.model, prompt, max_new_tokens=max(example.n_labels for example in examples))


def favour(model: TorchModel, ids: list[int]) -> TorchModel:
    """Bias the head so that these tokens are the most likely ones after any prompt."""
    head = model.model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    bias = torch.zeros(head.out_features)
    bias[ids] = 1000.0
    head.bias = nn.Parameter(bias)
    return model


@pytest.fixture
def kogpt2(tmp_path: Path) -> TorchModel:
    base = load_base(str(toys.kogpt2(tmp_path / "kogpt2")))
    return TorchModel(base.model, base.prompt(96), max_new_tokens=12)


def test_memorised_answers_are_generated_and_ended(trained: TorchModel) -> None:
    replies = trained.reply(LEARNED)
    assert sum(reply.text == pair.answer for reply, pair in zip(replies, LEARNED, strict=True)) >= 14
    assert replies[-1].text == "정말 잘하고 있어요 😊"
    for reply in replies:
        assert reply.ended
        assert reply.tokens == len(encode(trained.prompt.tokenizer, reply.text)) + 1


def test_a_reply_that_does_not_end_is_cut_at_the_limit(kogpt2: TorchModel) -> None:
    word = encode(kogpt2.prompt.tokenizer, "네")[-1]
    reply = favour(kogpt2, [word]).reply(toys.PAIRS[:1])[0]
    assert (reply.ended, reply.tokens) == (False, 12)
    assert reply.text.count("네") == 12


def test_an_empty_reply(kogpt2: TorchModel) -> None:
    reply = favour(kogpt2, [kogpt2.prompt.template.eos_id]).reply(toys.PAIRS[:1])[0]
    assert (reply.text, reply.ended, reply.tokens) == ("", True, 1)
    assert reply.log2_probability == pytest.approx(0, abs=1e-6)


def test_control_tokens_are_never_generated(untrained: TorchModel) -> None:
    tokenizer = untrained.prompt.tokenizer
    controls = untrained.prompt.control_ids - {untrained.prompt.template.eos_id}
    replies = favour(untrained, sorted(controls)).reply(toys.PAIRS[:8])
    names = [str(tokenizer.convert_ids_to_tokens(number)) for number in controls]
    assert len(names) >= 2
    for reply in replies:
        assert not [name for name in names if name in reply.text]
        assert reply.log2_probability < -100, "the most likely tokens are suppressed"


def test_an_emoji_that_kogpt2_marks_special_can_be_generated(kogpt2: TorchModel) -> None:
    face = kogpt2.prompt.tokenizer.convert_tokens_to_ids("😊")
    assert isinstance(face, int)
    assert favour(kogpt2, [face]).reply(toys.PAIRS[:1])[0].text == "😊" * 12


def test_batched_replies_equal_single_ones(trained: TorchModel) -> None:
    together = trained.reply(toys.PAIRS)
    alone = [trained.reply([pair])[0] for pair in toys.PAIRS]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert [reply.tokens for reply in together] == [reply.tokens for reply in alone]
    means = [reply.log2_probability for reply in together]
    np.testing.assert_allclose(means, [reply.log2_probability for reply in alone], rtol=1e-3, atol=1e-3)


def test_a_reply_has_the_probability_of_its_score(trained: TorchModel) -> None:
    compared = 0
    for pair, reply in zip(LEARNED, trained.reply(LEARNED), strict=True):
        bits, labels = trained.log2_probability([replace(pair, answer=reply.text)])[0]
        if reply.ended and labels == reply.tokens:  # else it is spelled with other tokens
            assert bits == pytest.approx(reply.log2_probability * reply.tokens, rel=1e-3, abs=1e-3)
            compared += 1
    assert compared >= 14


def test_the_margin_is_the_smallest_lead(trained: TorchModel) -> None:
    reply, margin = trained.greedy(LEARNED[:1])[0]
    example = trained.prompt.example(replace(LEARNED[0], answer=reply.text))
    assert example.n_labels == reply.tokens
    with torch.no_grad():
        logits = trained.model(input_ids=torch.tensor([example.ids])).logits[0, example.answer_start - 1 : -1]
    logits[:, sorted(trained.prompt.control_ids - {trained.prompt.template.eos_id})] = -torch.inf
    best = logits.topk(2, dim=1).values
    assert margin == pytest.approx(float((best[:, 0] - best[:, 1]).min()), rel=1e-3)


def test_sampled_replies_have_the_probability_of_their_scores(trained: TorchModel) -> None:
    pair, compared = LEARNED[1], 0
    for reply in trained.sample([pair], 4, seed=0, temperature=2.0, top_k=5)[0]:
        bits, labels = trained.log2_probability([replace(pair, answer=reply.text)])[0]
        if reply.ended and labels == reply.tokens:  # else it is spelled with other tokens
            assert bits == pytest.approx(reply.log2_probability * reply.tokens, rel=1e-3, abs=1e-3)
            compared += 1
    assert compared


def test_suppressed_tokens_keep_their_probability(kogpt2: TorchModel) -> None:
    """With half of the mass on a suppressed token, EOS has at most the other half."""
    mask = kogpt2.prompt.tokenizer.mask_token_id
    end = kogpt2.prompt.template.eos_id
    assert isinstance(mask, int)
    reply = favour(kogpt2, [mask, end]).reply(toys.PAIRS[:1])[0]
    bits, _ = kogpt2.log2_probability([replace(toys.PAIRS[0], answer="")])[0]
    assert reply.tokens == 1
    assert reply.log2_probability == pytest.approx(bits, rel=1e-4)
    assert reply.log2_probability < -0.1


def test_own_answers_score_higher(trained: TorchModel) -> None:
    own = trained.log2_probability(LEARNED)
    others = [replace(pair, answer=LEARNED[row - 1].answer) for row, pair in enumerate(LEARNED)]
    wrong = trained.log2_probability(others)
    assert (own[:, 0] / own[:, 1] > wrong[:, 0] / wrong[:, 1]).all()


def test_replies_do_not_depend_on_the_pairs_answers(trained: TorchModel) -> None:
    blank = [replace(pair, answer="") for pair in LEARNED]
    assert trained.reply(blank) == trained.reply(LEARNED)


def test_one_long_answer_does_not_forbid_long_questions(kogpt2: TorchModel) -> None:
    """A single long training answer makes `max_new_tokens` nearly as large as `max_length`."""
    greedy = replace(kogpt2, max_new_tokens=92)
    pair = Pair("길이 막혀 버스를 놓쳤어", "")
    assert len(greedy.prompt.question(pair)) > 96 - 92
    word = encode(kogpt2.prompt.tokenizer, "네")[-1]
    reply = favour(greedy, [word]).reply([pair])[0]
    assert reply.tokens == 96 - len(greedy.prompt.question(pair))


def test_history_gives_way_to_the_reply(kogpt2: TorchModel) -> None:
    turns = (Message("user", "배고파 죽겠다"), Message("assistant", "냉장고에 뭐가 있는지 같이 볼까요?"))
    pair = Pair("점심 뭐 먹지", "", history=turns * 3)
    alone = len(kogpt2.prompt.question(replace(pair, history=())))
    tight = replace(kogpt2, max_new_tokens=96 - alone)
    assert tight.reply([pair])[0].text == tight.reply([replace(pair, history=())])[0].text
    loose = replace(kogpt2, max_new_tokens=12)
    assert loose.reply([pair])[0].log2_probability != loose.reply([replace(pair, history=())])[0].log2_probability


def test_a_question_that_is_too_long_is_reported(kogpt2: TorchModel) -> None:
    with pytest.raises(DataError, match="tokens long"):
        kogpt2.reply([Pair("길이 막혀 " * 60, "")])


def test_no_questions_no_replies(kogpt2: TorchModel) -> None:
    assert kogpt2.reply([]) == []
    assert kogpt2.log2_probability([]).shape == (0, 2)


def test_a_pair_is_scored_once(kogpt2: TorchModel) -> None:
    scored, pairs = CachedScorer(kogpt2), [toys.PAIRS[0], toys.PAIRS[1], replace(toys.PAIRS[0], label="다른 이름표")]
    np.testing.assert_allclose(scored.log2_probability(pairs), kogpt2.log2_probability(pairs), rtol=1e-6)
    assert len(scored.known) == 2, "labels do not matter for scoring"
    scored.known.update(dict.fromkeys(scored.known, (-1.0, 2.0)))
    assert scored.log2_probability(pairs).tolist() == [[-1.0, 2.0]] * 3
    assert scored.log2_probability([]).shape == (0, 2)
