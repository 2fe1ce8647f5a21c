"""The student before it learns: some layers of the teacher, half of their inner neurons, a short vocabulary.

    python bench/sentence_encoder/student.py TEACHER OUT --prefix "query: " --corpus CORPUS --never FILE.csv …

The vocabulary is the teacher's (a unigram model), cut down to the pieces that Korean texts use most, with all single
syllables among them; ㅋㅋ and its like, and a piece for each byte, are added, so that no text is lost. Letters are
lower-cased. The inner neurons kept are those that add most to their layer's output on the same texts. `--layers`
without numbers makes a static model: embeddings, their norm and the mean over tokens.
"""

from __future__ import annotations

import json
import random
import re
import sys
import unicodedata
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bert import Bert
from texts import Forbidden, dialogue_pairs, read_starter, sentences, training_trades
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from daedap.korean.text import compatibility_jamo

POSITIONS = 128
LETTERS = [chr(code) for code in range(0x3131, 0x3164)]
"""Compatibility jamo, as people type them: ㅋ, ㅠ."""
EMOTION = ["ㅋㅋ", "ㅎㅎ", "ㅠㅠ", "ㅜㅜ"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SINGLE = re.compile(r"▁?[가-힣!-~]")
"""Pieces that are kept whenever a text has them."""


def piece_counts(teacher: Tokenizer, texts: Sequence[str], weight: int) -> Counter[int]:
    """How often the teacher's tokenizer uses each piece."""
    lowered = [compatibility_jamo(text).lower() for text in texts]
    counts = Counter(number for one in teacher.encode_batch_fast(lowered) for number in one.ids)
    return Counter({number: weight * count for number, count in counts.items()})


def chosen_pieces(teacher: Tokenizer, counts: Counter[int], size: int) -> list[tuple[str, float, int]]:
    """Piece, score and the row of its embedding; bytes and letters take the unknown piece's."""
    unigram = json.loads(teacher.to_str())["model"]
    scores = dict(unigram["vocab"])
    unknown = unigram["unk_id"]
    added = [*BYTES, *(one for one in (*EMOTION, *LETTERS) if one not in scores)]
    singles = [number for number in counts if SINGLE.fullmatch(teacher.id_to_token(number))]
    common = [number for number, _ in counts.most_common()]
    room = size - len(SPECIAL) - len(added)
    ordered = list(dict.fromkeys([*singles, *common]))
    kept = [number for number in ordered if teacher.id_to_token(number) not in SPECIAL][:room]
    low = min(scores.values())
    pieces = [(name, scores[name], teacher.token_to_id(name)) for name in SPECIAL]
    pieces += [(name, low - 5 if name in BYTES else low + 5 * len(name), unknown) for name in added]
    return pieces + [(name, scores[name], number) for number in kept if (name := teacher.id_to_token(number))]


def tokenizer_of(pieces: Sequence[tuple[str, float, int]]) -> Tokenizer:
    """A unigram tokenizer that spells unknown letters in bytes: `<s>` in front, nothing behind."""
    names = [name for name, _, _ in pieces]
    unigram = models.Unigram([piece[:2] for piece in pieces], unk_id=names.index("<unk>"), byte_fallback=True)
    made = Tokenizer(unigram)
    conjoining = {unicodedata.normalize("NFKC", letter): letter for letter in LETTERS}
    made.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            *(normalizers.Replace(jamo, letter) for jamo, letter in conjoining.items() if len(jamo) == 1),
            normalizers.Lowercase(),
            *(normalizers.Replace(Regex(f"{one[0]}{{3,}}"), one) for one in EMOTION),
            normalizers.Replace(Regex(r"\s+"), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", names.index("<s>"))])
    return made


def student_of(teacher: Any, layers: Sequence[int], inner: Tensor, rows: Sequence[int], padding: int) -> BertModel:
    """The teacher's layers of these numbers, inner neurons (layers, kept) and rows of the embedding."""
    config = BertConfig(
        **{name: getattr(teacher.config, name) for name in ("hidden_size", "num_attention_heads", "layer_norm_eps")},
        vocab_size=len(rows),
        num_hidden_layers=len(layers),
        intermediate_size=inner.shape[1],
        max_position_embeddings=POSITIONS,
        pad_token_id=padding,
    )
    student = BertModel(config, add_pooling_layer=False)
    source, target = teacher.embeddings, student.embeddings
    target.load_state_dict(
        source.state_dict()
        | {
            "word_embeddings.weight": source.word_embeddings.weight[torch.tensor(rows)],
            "position_embeddings.weight": source.position_embeddings.weight[:POSITIONS],
            "token_type_embeddings.weight": source.token_type_embeddings.weight[: config.type_vocab_size],
        },
        strict=False,
    )
    for number, kept, layer in zip(layers, inner, student.encoder.layer, strict=True):
        state = teacher.encoder.layer[number].state_dict()
        for name in ("intermediate.dense.weight", "intermediate.dense.bias"):
            state[name] = state[name][kept]
        state["output.dense.weight"] = state["output.dense.weight"][:, kept]
        layer.load_state_dict(state)
    return student


@torch.inference_mode()
def strongest(teacher: Bert, layers: Sequence[int], texts: Sequence[str], count: int) -> Tensor:
    """(layers, count): numbers of the inner neurons that add most to their layer's output on the texts."""
    power = {number: torch.zeros(teacher.model.config.intermediate_size) for number in layers}

    def heard(number: int) -> Any:
        def hear(_: nn.Module, __: Any, states: Tensor) -> None:
            power[number] += states.square().sum((0, 1))

        return hear

    for number in layers:
        teacher.model.encoder.layer[number].intermediate.register_forward_hook(heard(number))
    teacher.vectors(texts)
    kept = []
    for number in layers:
        lengths = teacher.model.encoder.layer[number].output.dense.weight.square().sum(0)
        kept.append((power[number] * lengths).topk(count).indices.sort().values)
    return torch.stack(kept) if kept else torch.zeros(0, 1, dtype=torch.long)


def main(options: Namespace) -> None:
    """Choose pieces, layers and neurons, and write the student."""
    torch.set_flush_denormal(True)
    forbidden = Forbidden(options.never)
    faq = [text for trade in training_trades(options.faq, forbidden) for text in trade.texts]
    talk = [text for pair in dialogue_pairs(options.corpus, forbidden) for text in pair]
    starter = [text for side in read_starter() for text in forbidden.without(side)]
    plain = sentences(options.corpus, forbidden, 150_000, options.seed)
    teacher = Bert.open(options.teacher, options.prefix)
    counts = Counter[int]()
    for texts, weight in ((plain, 1), (faq, 20), (talk, 3), (starter, 10)):
        counts += piece_counts(teacher.tokenizer, texts, weight)
    pieces = chosen_pieces(teacher.tokenizer, counts, options.pieces)
    some = random.Random(options.seed).sample([*plain, *faq, *faq], 1_500)
    inner = strongest(teacher, options.layers, some, options.inner)
    padding = [name for name, _, _ in pieces].index("<pad>")
    student = student_of(teacher.model, options.layers, inner, [row for _, _, row in pieces], padding)
    made = Bert(student, tokenizer_of(pieces))
    made.save(options.out)
    mean = [sum(map(len, one.tokens(some))) / len(some) for one in (teacher, made)]
    print(f"{len(pieces)} pieces, {student.num_parameters():,} weights; {mean[0]:.1f} tokens become {mean[1]:.1f}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--faq", type=Path, default=Path(__file__).parents[2] / "data" / "faq")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--never", type=Path, nargs="*", default=[], help="CSV files of evaluation")
    parser.add_argument("--layers", type=int, nargs="*", default=[0, 4, 8, 11])
    parser.add_argument("--inner", type=int, default=768, help="inner neurons of a layer")
    parser.add_argument("--pieces", type=int, default=10_240)
    parser.add_argument("--seed", type=int, default=42)
    main(parser.parse_args(sys.argv[1:]))
