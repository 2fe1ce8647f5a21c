"""Cross-entropy of answers, for training and for scoring.

The head runs only at positions whose next token is a label. In training the softmax may run over a shortlist of the
vocabulary (Jean et al., 2015, arXiv:1412.2007). In scoring, a question with many candidate answers is encoded once, and
the softmax runs over a part of the vocabulary at a time: 640 labels of Gemma's 262,144 tokens would take 0.7 GB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, pad
from transformers import PreTrainedModel

from daedap.model.prompt import Example, Prompt, round_up
from daedap.model.trainable import SPLITTABLE, trained_upper, unwrap_peft
from daedap.types import Float64Array

_LABEL_MULTIPLE = 32
"""The number of labels is padded to multiples of this, for the same reason as lengths: see prompt.round_up."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded examples without their last token, which is only a label.

    inputs: ids, (rows, length), or hidden states that enter a block, (rows, length, width); row, position: (labels,),
    where the next token is a label; label: ids, (labels,); attention_mask: additive, (rows, 1, length, length), None
    for causal attention; position_ids: (rows, length), None for 0 … length - 1.
    """

    inputs: Tensor
    row: Tensor
    position: Tensor
    label: Tensor
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None


def collate(examples: Sequence[Example], device: torch.device | str) -> Batch:
    """Pad examples to one length and locate their labels.

    Padding is on the right, where causal attention hides it from all real tokens: it needs no mask and may be any id.
    """
    length = 1 + round_up(max(len(example.ids) for example in examples) - 1)
    ids = torch.tensor([example.ids + example.ids[:1] * (length - len(example.ids)) for example in examples])
    row, position = label_positions(examples)
    tensors = (ids[:, :-1], row, position, ids[row, position + 1])
    return Batch(*(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True)
class TokenizedRows:
    """Examples whose batches hold token ids."""

    examples: Sequence[Example]
    device: str

    def batch(self, rows: Sequence[int]) -> Batch:
        """The batch of these rows."""
        return collate([self.examples[row] for row in rows], self.device)


def label_positions(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Row and position of every token that predicts a label, (labels,) each."""
    lengths, starts = torch.tensor([(len(example.ids), example.answer_start) for example in examples]).T
    positions = torch.arange(int(lengths.max()))
    is_label = (positions >= starts[:, None] - 1) & (positions < lengths[:, None] - 1)
    row, position = is_label.nonzero(as_tuple=True)
    return row, position


class AnswerLoss(nn.Module):
    """Maps a batch to −ln p of each label, by a model with or without LoRA, or by its upper blocks alone.

    `first_block`: the lowest block that is run; batches then hold the hidden states that enter it. `shortlist`: sorted
    ids, (tokens,), the only ones in the softmax; labels must be among them. Without gradients and without a shortlist,
    logits are never all in memory.
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, *, first_block: int = 0, shortlist: Tensor | None = None
    ) -> None:
        super().__init__()
        base = unwrap_peft(model)
        self.model = trained_upper(base, first_block, shortlist)
        self.input_name = "inputs_embeds" if first_block else "input_ids"
        self.shortlist = shortlist
        self.layer_types = _layer_types(base)
        self.chunked = shortlist is None and _has_plain_head(base)

    def forward(self, batch: Batch) -> Tensor:
        """(labels,), float32."""
        if self.chunked and not torch.is_grad_enabled():
            return self._forward_in_chunks(batch)
        labels = len(batch.label)
        inputs = self._inputs(batch, batch.row, batch.position)
        logits = self.model(**inputs).logits[0, :labels]
        label = batch.label if self.shortlist is None else torch.searchsorted(self.shortlist, batch.label)
        return cross_entropy(logits.float(), label, reduction="none")

    def _forward_in_chunks(self, batch: Batch) -> Tensor:
        """The same. Answers to one question share the position before their first token, which is computed once."""
        body, head = self.model._modules[self.model.base_model_prefix], self.model.get_output_embeddings()
        distinct, index = torch.stack([batch.row, batch.position]).unique(dim=1, return_inverse=True)
        states: Tensor = cast("nn.Module", body)(**self._inputs(batch, *distinct)).last_hidden_state[0]
        return cross_entropy_in_chunks(cast("nn.Linear", head), states, index, batch.label)

    def _inputs(self, batch: Batch, row: Tensor, position: Tensor) -> dict[str, object]:
        """The model's arguments; the positions are padded to a multiple of 32."""
        padding = (0, round_up(len(row), _LABEL_MULTIPLE) - len(row))
        mask = batch.attention_mask
        return {
            self.input_name: batch.inputs,
            "attention_mask": dict.fromkeys(self.layer_types, mask) if mask is not None and self.layer_types else mask,
            "position_ids": batch.position_ids,
            "use_cache": False,
            "positions": (pad(row, padding), pad(position, padding)),
        }


_VOCABULARY_CHUNK = 8192
"""Logits of one position that fit into a processor's cache."""


def cross_entropy_in_chunks(
    head: nn.Linear, states: Tensor, index: Tensor, label: Tensor, chunk: int = _VOCABULARY_CHUNK
) -> Tensor:
    """−ln p of each label by the softmax of `head`, (labels,), float32, with logits of `chunk` tokens at a time.

    states: (positions, width); index: (labels,), each label's position.
    """
    sums = []
    for start in range(0, head.out_features, chunk):
        tokens = slice(start, start + chunk)
        logits = linear(states, head.weight[tokens], None if head.bias is None else head.bias[tokens])
        sums.append(logits.float().logsumexp(dim=-1))
    own = (states[index].float() * head.weight[label].float()).sum(dim=-1)
    if head.bias is not None:
        own += head.bias[label].float()
    return torch.stack(sums).logsumexp(dim=0)[index] - own


def _has_plain_head(model: PreTrainedModel) -> bool:
    """Whether logits are the head's output, without scaling or capping."""
    config, names = model.config.get_text_config(), ("final_logit_softcapping", "logits_scaling", "logit_scale")
    plain = all(getattr(config, name, None) in (None, 1) for name in names)
    return plain and config.model_type in SPLITTABLE and isinstance(model.get_output_embeddings(), nn.Linear)


def _layer_types(model: PreTrainedModel) -> frozenset[str]:
    """Kinds of layers, for each of which the model takes a mask of its own; empty where all share one."""
    return frozenset(getattr(model.config.get_text_config(), "layer_types", None) or ())


_SINGLE_CHARACTER = re.compile("[가-힣ㄱ-ㅎㅏ-ㅣ!-~…]")
_MAX_SHORTLIST = 0.7
"""Fraction of the vocabulary above which a shortlist saves too little."""


def shortlist(prompt: Prompt, examples: Sequence[Example]) -> Tensor | None:
    """Ids of all answer tokens and of single letters, digits and punctuation, (tokens,), sorted; None: too many.

    Training probabilities are normalised over these ids only: too high by the mass of all others, which is negligible
    for a base that knows Korean. Scoring and generation use the full vocabulary.
    """
    vocabulary = len(prompt.tokenizer)
    answers = {token for example in examples for token in example.ids[example.answer_start :]}
    texts = prompt.tokenizer.backend_tokenizer.decode_batch([[token] for token in range(vocabulary)])
    characters = {token for token, text in enumerate(texts) if _SINGLE_CHARACTER.fullmatch(text.strip())}
    ids = sorted((answers | characters) - (prompt.control_ids - {prompt.template.eos_id}))
    return torch.tensor(ids) if len(ids) < _MAX_SHORTLIST * vocabulary else None


_BATCH_SIZE = 64
_PACKABLE = frozenset({"gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "gemma3_text", "exaone4", "smollm3"})
"""Architectures that accept any 4-D attention mask where all layers have attention. With the others, the prompt is
encoded with every answer."""


@torch.inference_mode()
def score_answers(
    model: PreTrainedModel | PeftModel, examples: Sequence[Example], device: torch.device | str
) -> Float64Array:
    """Per example: the sum of log2 p over its answer and EOS, and their number. (examples, 2), float64.

    In evaluation mode, over the full vocabulary.
    """
    model.eval()
    loss, scores = AnswerLoss(model), np.zeros((len(examples), 2))
    packable = _is_packable(unwrap_peft(model), max((len(example.ids) for example in examples), default=0))
    groups = _group_by_prompt(examples) if packable else [[row] for row in range(len(examples))]
    for batch_groups in _group_batches(groups, examples):
        rows = [row for group in batch_groups for row in group]
        if len(rows) == len(batch_groups):
            batch = collate([examples[row] for row in rows], device)
            label_rows = np.asarray(rows)[batch.row.cpu().numpy()]
        else:
            batch = _collate_packed([[examples[row] for row in group] for group in batch_groups], device)
            label_rows = np.repeat(rows, [examples[row].n_labels for row in rows])
        nats = loss(batch).double().cpu().numpy()
        np.add.at(scores, (label_rows, 0), -nats / np.log(2))
        np.add.at(scores, (label_rows, 1), 1)
    return scores


def _is_packable(model: PreTrainedModel, longest: int) -> bool:
    """Whether examples of at most so many ids may share their prompt. A packed mask leaves out sliding windows."""
    kinds, window = _layer_types(model), getattr(model.config.get_text_config(), "sliding_window", None)
    within = "sliding_attention" not in kinds or (window is not None and longest <= window)
    return model.config.model_type in _PACKABLE and kinds <= {"full_attention", "sliding_attention"} and within


def _group_by_prompt(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of examples with the same prompt, which are scored in one packed row: at most `_BATCH_SIZE` each."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, example in enumerate(examples):
        by_prompt.setdefault(tuple(example.ids[: example.answer_start]), []).append(row)
    step = _BATCH_SIZE
    return [rows[start : start + step] for rows in by_prompt.values() for start in range(0, len(rows), step)]


def _group_batches(groups: Sequence[list[int]], examples: Sequence[Example]) -> Iterator[list[list[int]]]:
    """Groups of similar length in batches of at most `_BATCH_SIZE` examples."""
    batch, held = list[list[int]](), 0
    for group in sorted(groups, key=lambda group: sum(len(examples[row].ids) for row in group)):
        if held + len(group) > _BATCH_SIZE and batch:
            yield batch
            batch, held = [], 0
        batch.append(group)
        held += len(group)
    if batch:
        yield batch


def _collate_packed(groups: Sequence[Sequence[Example]], device: torch.device | str) -> Batch:
    """One row per group: the prompt once, then all answers; each attends to the prompt and itself only.

    Position ids of every answer continue from the prompt's, as if it followed the prompt directly.
    """
    packed = [_pack(group) for group in groups]
    ids = _right_padded([row.ids for row in packed], 0)
    position_ids = _right_padded([row.position_ids for row in packed], 0)
    attention_mask = _attention_mask(_right_padded([row.segments for row in packed], -1))
    row = torch.tensor([index for index, row in enumerate(packed) for _ in row.labels])
    position = torch.tensor([position for row in packed for position in row.label_positions])
    label = torch.tensor([label for row in packed for label in row.labels])
    return Batch(*(tensor.to(device) for tensor in (ids, row, position, label, attention_mask, position_ids)))


class _PackedRow(NamedTuple):
    """Per token: id, position id, and segment (0: the prompt, else the number of the answer). Per label as in Batch."""

    ids: list[int]
    position_ids: list[int]
    segments: list[int]
    label_positions: list[int]
    labels: list[int]


def _pack(group: Sequence[Example]) -> _PackedRow:
    start = group[0].answer_start
    packed = _PackedRow(group[0].ids[:start], list(range(start)), [0] * start, [], [])
    for segment, example in enumerate(group, 1):
        labels = example.ids[start:]  # the last one, EOS, is never an input
        packed.label_positions.extend((start - 1, *range(len(packed.ids), len(packed.ids) + len(labels) - 1)))
        packed.labels.extend(labels)
        packed.ids.extend(labels[:-1])
        packed.position_ids.extend(range(start, start + len(labels) - 1))
        packed.segments.extend([segment] * (len(labels) - 1))
    return packed


def _right_padded(rows: Sequence[list[int]], padding: int) -> Tensor:
    length = round_up(max(map(len, rows)))
    return torch.tensor([row + [padding] * (length - len(row)) for row in rows])


def _attention_mask(segments: Tensor) -> Tensor:
    """(rows, 1, length, length), float32: 0 where a token attends, else the lowest float.

    From (rows, length) segments: a token attends to earlier tokens of the prompt and of its own segment. The mask is
    additive because eager attention would add a boolean one as zeros and ones.
    """
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    visible = (causal & ((key == 0) | (key == query)))[:, None]
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
