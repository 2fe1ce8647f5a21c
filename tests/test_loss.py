from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from daedap.model.base import Base, load_base
from daedap.model.loss import AnswerLoss, collate, cross_entropy_in_chunks, score_answers
from daedap.model.prompt import Example
from daedap.model.trainable import with_lora
from daedap.types import Pair


@pytest.fixture(scope="module", params=list(toys.BASES))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    name: str = request.param
    loaded = load_base(str(toys.BASES[name](tmp_path_factory.mktemp("bases") / name)))
    loaded.model.eval()
    return loaded


@pytest.fixture(scope="module")
def examples(base: Base) -> list[Example]:
    prompt = base.prompt(128)
    return [prompt.example(pair) for pair in toys.PAIRS[:12]]


def reference(base: Base, example: Example) -> Tensor:
    """ln p of each answer token and EOS, from all logits of a single example."""
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([example.ids])).logits[0].float()
    positions = range(example.answer_start, len(example.ids))
    return torch.stack([log_softmax(logits[position - 1], dim=-1)[example.ids[position]] for position in positions])


def mask(examples: list[Example]) -> Tensor:
    """An attention mask without padding and the last token."""
    positions = torch.arange(collate(examples, "cpu").inputs.shape[1])
    return (positions < torch.tensor([[len(example.ids) - 1] for example in examples])).long()


def test_labels_are_answer_and_eos(base: Base, examples: list[Example]) -> None:
    batch = collate(examples, "cpu")
    expected = [number for example in examples for number in example.ids[example.answer_start :]]
    assert batch.label.tolist() == expected
    assert expected.count(base.prompt(128).template.eos_id) == len(examples)
    longest = max(len(example.ids) for example in examples) - 1
    assert batch.inputs.shape == (len(examples), -(-longest // 4) * 4), "few different shapes"


def test_the_loss_is_the_cross_entropy_of_all_logits(base: Base, examples: list[Example]) -> None:
    batch = collate(examples, "cpu")
    labels = torch.full_like(batch.inputs, -100)
    for row, example in enumerate(examples):
        labels[row, example.answer_start - 1 : len(example.ids) - 1] = torch.tensor(example.ids[example.answer_start :])
    with torch.no_grad():
        logits = base.model(input_ids=batch.inputs, attention_mask=mask(examples)).logits.float()
        losses = AnswerLoss(base.model)(batch)
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    torch.testing.assert_close(losses, expected[labels.flatten() != -100], rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_all_logits(base: Base, examples: list[Example]) -> None:
    batch = collate(examples, "cpu")
    weights = [weight for weight in base.model.parameters() if weight.requires_grad]
    ours = torch.autograd.grad(AnswerLoss(base.model)(batch).mean(), weights)
    logits = base.model(input_ids=batch.inputs, attention_mask=mask(examples)).logits
    expected = torch.autograd.grad(cross_entropy(logits[batch.row, batch.position], batch.label), weights)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_padding_does_not_matter(base: Base, examples: list[Example]) -> None:
    together = score_answers(base.model, examples, "cpu")
    alone = np.concatenate([score_answers(base.model, [example], "cpu") for example in examples])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-4)


def test_scores_are_those_computed_by_hand(base: Base, examples: list[Example]) -> None:
    scores = score_answers(base.model, examples, "cpu")
    hand = [reference(base, example) for example in examples]
    np.testing.assert_allclose(scores[:, 0], [float(nats.sum()) / math.log(2) for nats in hand], rtol=1e-4)
    assert scores[:, 1].tolist() == [len(nats) for nats in hand]
    assert (scores[:, 0] < 0).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_answers_have_the_same_scores(base: Base, attention: str) -> None:
    base.model.set_attn_implementation(attention)
    prompt = base.prompt(128)
    questions, answers = [pair.question for pair in toys.PAIRS[:5]], [pair.answer for pair in toys.PAIRS[:30]]
    grouped = [prompt.example(Pair(question, answer)) for question in questions for answer in answers]
    grouped += [prompt.example(toys.PAIRS[7])] + [prompt.example(Pair("심심해", answer)) for answer in answers * 4]
    shared = score_answers(base.model, grouped, "cpu")
    alone = np.concatenate([score_answers(base.model, [example], "cpu") for example in grouped[::7]])
    np.testing.assert_allclose(shared[::7], alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(shared[:, 1], [len(example.ids) - example.answer_start for example in grouped])


def test_answers_within_the_sliding_window_are_packed(tmp_path: Path) -> None:
    base = toys.loaded("gemma3", tmp_path)
    prompt = base.prompt(128)
    examples = [prompt.example(Pair("심심해", pair.answer)) for pair in toys.PAIRS[:8]]
    longest = max(len(example.ids) for example in examples)
    scores, lengths = [], []
    for window in (longest - 1, longest):
        base.model.config.sliding_window = window
        seen: list[int] = []
        handle = base.model.model.layers[0].register_forward_pre_hook(
            lambda _layer, inputs, seen=seen: seen.append(inputs[0].shape[0])
        )
        scores.append(score_answers(base.model, examples, "cpu"))
        handle.remove()
        lengths.append(seen)
    assert lengths == [[8], [1]], "rows: one for each answer where a window would hide a part of the prompt, else one"
    base.model.config.sliding_window = longest
    alone = np.concatenate([score_answers(base.model, [example], "cpu") for example in examples])
    np.testing.assert_allclose(scores[1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_the_vocabulary_in_chunks(*, bias: bool) -> None:
    torch.manual_seed(0)
    head, states = nn.Linear(6, 23, bias=bias), 3 * torch.randn(4, 6)
    index, label = torch.tensor([0, 0, 1, 3, 2, 3]), torch.tensor([0, 22, 7, 8, 20, 21])
    expected = cross_entropy(head(states)[index], label, reduction="none")
    for chunk in (5, 23, 100):
        torch.testing.assert_close(cross_entropy_in_chunks(head, states, index, label, chunk), expected)


def test_more_examples_than_a_batch_keep_their_order(base: Base, examples: list[Example]) -> None:
    many = [examples[i % 12] for i in range(150)]
    scores = score_answers(base.model, many, "cpu")
    np.testing.assert_allclose(scores, score_answers(base.model, examples, "cpu")[np.arange(150) % 12], rtol=1e-4)


def test_only_the_answer_counts(base: Base, examples: list[Example]) -> None:
    example = examples[0]
    later = replace(example, answer_start=len(example.ids) - 1)
    score = score_answers(base.model, [later], "cpu")
    assert score[0, 1] == 1
    assert score[0, 0] == pytest.approx(float(reference(base, example)[-1]) / math.log(2), rel=1e-4)


def test_scoring_leaves_no_dropout_and_no_hook(base: Base, examples: list[Example]) -> None:
    base.model.train()
    first, second = (score_answers(base.model, examples, "cpu") for _ in range(2))
    assert not base.model.training
    np.testing.assert_array_equal(first, second)
    batch = collate(examples, "cpu")
    assert base.model(input_ids=batch.inputs).logits.shape == (*batch.inputs.shape, base.model.config.vocab_size)


def test_an_untrained_adapter_changes_nothing(base: Base, examples: list[Example]) -> None:
    before = score_answers(base.model, examples, "cpu")
    adapted = with_lora(base.model, rank=2, alpha=4, dropout=0.0, layers=None)
    np.testing.assert_allclose(score_answers(adapted, examples, "cpu"), before, rtol=1e-6)
    adapted.unload()
    base.model.requires_grad_(requires_grad=True)
