"""What llama_cpp.mjs compares llama.cpp with: a run's tokens of texts, and its greedy answers, as JSON.

python bench/llama_cpp.py runs/0001 > expected.json
"""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

from daedap.data.reader import built_in_pairs
from daedap.data.split import SPLITS, read_rows
from daedap.export.common import pick_questions, trained_answers
from daedap.model.decoding import DecodingRules
from daedap.model.language_model import open_trained
from daedap.runs import Run
from daedap.types import Pair

TEXTS, ANSWERS = 6_000, 50
HARD = (" 앞에 빈칸", "  빈칸 둘 ", "▁밑줄▁", "줄\n바꿈\t탭", "뷁 😊 👩‍👩‍👧 漢字 Ωß", "<0x41>", "ㅋㅋㅋ ㅠㅠ")


def main() -> None:
    """Write the document to standard output."""
    run = Run(Path(sys.argv[1]))
    model = open_trained(run)
    prompt = model.prompt
    rules = DecodingRules(prompt, model.max_new_tokens)
    pairs = [*(pair for name in SPLITS for pair in read_rows(run.folder, name)), *built_in_pairs()]
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.question, pair.answer)))[:TEXTS]
    questions = pick_questions(run, rules, ANSWERS)
    controls = [token.content for token in prompt.tokenizer.added_tokens_decoder.values()]
    typed = [text for token in controls for text in (token, f"{token} 라고 {token}{token}", f"<{token}")]
    document = {
        "texts": [{"text": text, "ids": prompt.question(Pair(text, ""), 10**9)} for text in (*texts, *HARD)],
        "decomposed": [unicodedata.normalize("NFD", text) for text in texts[:100]],
        "typed": [
            {"text": text, "controls": len(prompt.template.opening + prompt.template.assistant)} for text in typed
        ],
        "controls": sorted(prompt.control_ids),
        "answers": [
            {"text": question, "answer": [id for id in answer.tokens if id != prompt.template.eos_id]}
            for question, answer in zip(questions, trained_answers(model, rules, questions), strict=True)
        ],
        "end": prompt.template.eos_id,
        "longest": model.max_new_tokens,
        "context": prompt.max_length,
    }
    json.dump(document, sys.stdout, ensure_ascii=False)


if __name__ == "__main__":
    main()
