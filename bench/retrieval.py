"""How often the right answer is found: the bot's look-up beside n-grams, the sentence encoder alone, and a teacher.

    python bench/retrieval.py --trades                          # the held-out FAQs of data/faq
    python bench/retrieval.py --faq FOLDER                      # faq.csv, paraphrases.csv, out_of_scope.csv
    python bench/retrieval.py --pairs PAIRS --paraphrases FILE  # as for daedap evaluate
    python bench/retrieval.py --hits PAIRS [--run RUN]          # Hits@1/20; a run adds its bot's ranking
    python bench/retrieval.py --parakqc paraKQC_v1.txt          # github.com/warnikchow/paraKQC (CC BY-SA 4.0)

`--teacher FOLDER` adds another encoder, converted by bench/sentence_encoder/convert.py. Nothing is trained: the bot is
built from the pairs, without a language model. paraKQC: ten lines a set; the first is known, the others are asked.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sentence_encoder.texts import is_held_out, trade_number

from daedap.config import AnswerOptions, SplitOptions
from daedap.data.doctor import load
from daedap.data.reader import built_in_pairs
from daedap.data.split import split
from daedap.evaluation.evaluate_run import own_test_rows
from daedap.evaluation.faq import FaqReply, LookUp, LookUpScores, baselines, evaluate_faq, look_up_scores
from daedap.evaluation.metrics import gold_ranks
from daedap.evaluation.question_files import EvalQuestion, read_out_of_scope, read_paraphrases
from daedap.evaluation.testset import candidates
from daedap.model.sentence_encoder import SentenceEncoder, built_in_encoder
from daedap.retrieval.bot import Bot
from daedap.retrieval.hybrid import HybridRetriever
from daedap.retrieval.lexical import LexicalIndex, LexicalKnn
from daedap.runs import Run, find
from daedap.types import Pair

TRADES = Path(__file__).parent.parent / "data" / "faq"
KINDS = ("words", "casual", "messy", "long")
NAMES = {
    "bot": "the bot's look-up",
    "ngrams": "character 1-4-grams, question + answer",
    "encoder_questions": "sentence encoder, question",
    "encoder": "sentence encoder, question + answer",
    "teacher_questions": "teacher, question",
    "teacher": "teacher, question + answer",
}


@dataclass(frozen=True)
class Exam:
    """Known pairs, and questions about them."""

    known: Sequence[Pair]
    paraphrases: Sequence[EvalQuestion]
    out_of_scope: Sequence[EvalQuestion] = ()

    @property
    def questions(self) -> list[EvalQuestion]:
        """All of them, in the order of the look-ups."""
        return [*self.paraphrases, *self.out_of_scope]


def read_trade(path: Path) -> Exam:
    """One file of data/faq."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    faq = [row for row in rows if "question" in row]
    return Exam(
        [Pair(row["question"], row["answer"]) for row in faq],
        [EvalQuestion(row[kind], (row["answer"],), kind) for row in faq for kind in KINDS],
        [EvalQuestion(row["out_of_scope"], (), row["kind"]) for row in rows if "out_of_scope" in row],
    )


def read_folder(folder: Path) -> Exam:
    """faq.csv with its paraphrases and questions out of scope."""
    pairs = load(folder / "faq.csv").pairs
    return Exam(
        pairs, read_paraphrases(folder / "paraphrases.csv", pairs), read_out_of_scope(folder / "out_of_scope.csv")
    )


def read_sets(path: Path) -> Exam:
    """paraKQC: the first sentence of each ten is known, its set is the answer."""
    texts = [line.rsplit("\t", 1)[-1].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    sets = [texts[start : start + 10] for start in range(0, len(texts), 10)]
    return Exam(
        [Pair(each[0], f"{number}번") for number, each in enumerate(sets)],
        [EvalQuestion(text, (f"{number}번",)) for number, each in enumerate(sets) for text in each[1:]],
    )


def score(name: str, exams: Sequence[Exam], teacher: SentenceEncoder | None) -> None:
    """Print two tables over all exams: if nothing were refused, and what the bot does by default."""
    look_ups: dict[str, list[LookUp]] = {}
    replies: list[FaqReply] = []
    for exam in exams:
        bot = Bot(Run(Path()), HybridRetriever.build(exam.known), AnswerOptions(samples=0))
        result = evaluate_faq(bot, exam.known, exam.paraphrases, exam.out_of_scope)
        replies += result.replies
        found = dict(result.look_ups)
        if teacher:
            texts = [question.question for question in exam.questions]
            others = baselines(exam.known, texts, teacher)
            found |= {"teacher": others["encoder"], "teacher_questions": others["encoder_questions"]}
        for system, look_up in found.items():
            look_ups.setdefault(system, []).append(look_up)
    questions = [question for exam in exams for question in exam.questions]
    print(f"\n{name}: {sum(len(exam.paraphrases) for exam in exams):,} paraphrases, ", end="")
    print(f"{sum(len(exam.out_of_scope) for exam in exams):,} questions out of scope\n")
    tables = {system: look_up_scores(_joined(several), questions) for system, several in look_ups.items()}
    print_table(tables)
    inside = np.array([bool(reply.question.answers) for reply in replies])
    rates = {
        "right": [reply.right for reply in replies],
        "right or suggested": [reply.right or reply.suggested for reply in replies],
        "wrong": [reply.known and not reply.right for reply in replies],
    }
    shown = [f"{rate} {100 * np.array(values)[inside].mean():.1f} %" for rate, values in rates.items()]
    known = np.array([reply.known for reply in replies])
    if not inside.all():
        kinds = dict.fromkeys(reply.question.kind for reply in replies if not reply.question.answers)
        by_kind = [
            f"{kind} {100 * np.mean([one.known for one in replies if one.question.kind == kind]):.1f}" for kind in kinds
        ]
        shown.append(f"out of scope answered {100 * known[~inside].mean():.1f} % ({', '.join(by_kind)})")
    print(f"\nBy default the bot: {', '.join(shown)}.")


def _joined(several: Sequence[LookUp]) -> LookUp:
    answers = tuple(answer for one in several for answer in one.answers)
    return LookUp(answers, np.concatenate([one.scores for one in several]))


def print_table(tables: dict[str, LookUpScores]) -> None:
    """First row right if nothing were refused, and AUROC, as Markdown."""
    kinds = list(tables["bot"].right)
    print(f"| never refusing | {' | '.join(kinds)} | AUROC right or not | in or out of scope |")
    print("|---|" + "---:|" * (len(kinds) + 2))
    for system, scores in tables.items():
        cells = [f"{100 * scores.right[kind].value:.1f}" for kind in kinds]
        cells += ["-" if value is None else f"{value:.3f}" for value in (scores.auroc_right, scores.auroc_scope)]
        print(f"| {NAMES[system]} | {' | '.join(cells)} |")


def hits(file: Path, run: Run | None, teacher: SentenceEncoder | None) -> None:
    """Hits@1/20 on the default test rows of a file, or on those of a run; unseen: the answer is not in training."""
    everything = split(load(file).pairs, SplitOptions())
    test = own_test_rows(run).pairs if run else everything.rows("test")
    bot = Bot.from_run(run, held_out=False) if run else None
    index = bot.retriever.index if bot else LexicalIndex.build(everything.rows("train"))
    offered, questions = candidates(test), [pair.question for pair in test]
    seen = {pair.answer for pair in index.pairs}
    unseen = np.array([pair.answer not in seen for pair in test])
    print(f"\n{file.name}: {len(test):,} test rows, {unseen.sum():,} of them with an unseen answer\n")
    print(f"| right of {len(offered[0])}, first (%) | all | unseen answers |\n|---|---:|---:|")
    scores = {"answers to similar questions, n-grams": LexicalKnn(index).scores(questions, offered)}
    for name, encoder in (("sentence encoder", built_in_encoder()), ("teacher", teacher)):
        if encoder:
            vectors = encoder.encode([text for texts in offered for text in texts]).reshape(
                len(test), len(offered[0]), -1
            )
            scores[f"{name}: question and answer"] = np.einsum("qw,qcw->qc", encoder.encode(questions), vectors)
    if bot:
        scores["the bot's score"] = bot.score_candidates(test, offered)
    for name, values in scores.items():
        first = gold_ranks(np.asarray(values, np.float64)) <= 1
        print(f"| {name} | {100 * first.mean():.1f} | {100 * first[unseen].mean():.1f} |")


def main(options: Namespace) -> None:
    """Print what was asked for."""
    teacher = SentenceEncoder.open(options.teacher) if options.teacher else None
    if options.trades:
        trades = [path for path in sorted(TRADES.glob("*.jsonl")) if is_held_out(trade_number(path))]
        score("held-out trades", [read_trade(path) for path in trades], teacher)
    if options.faq:
        score(options.faq.name, [read_folder(options.faq)], teacher)
    if options.paraphrases:
        pairs = load(options.pairs).pairs if options.pairs else built_in_pairs()
        score(options.paraphrases.name, [Exam(pairs, read_paraphrases(options.paraphrases, pairs))], teacher)
    if options.hits:
        hits(options.hits, find(str(options.run), Path()) if options.run else None, teacher)
    if options.parakqc:
        score("paraKQC", [read_sets(options.parakqc)], teacher)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trades", action="store_true")
    parser.add_argument("--faq", type=Path, metavar="FOLDER")
    parser.add_argument("--pairs", type=Path, help="by default the built-in pairs")
    parser.add_argument("--paraphrases", type=Path, metavar="FILE")
    parser.add_argument("--hits", type=Path, metavar="PAIRS")
    parser.add_argument("--run", type=Path, help="folder of a run that was trained on these pairs")
    parser.add_argument("--parakqc", type=Path, metavar="FILE")
    parser.add_argument("--teacher", type=Path, metavar="FOLDER")
    main(parser.parse_args())
