from __future__ import annotations

import re
from pathlib import Path

import pytest
import toys
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from daedap.errors import BaseError, DataError
from daedap.model.base import Base, load_base
from daedap.model.language_model import TorchModel
from daedap.model.prompt import Prompt, build_prompt
from daedap.model.tokenizer import decode, encode, find_control_ids, load_tokenizer, prefix_ids, save_tokenizer
from daedap.types import Message, Pair

REAL = Path(__file__).parents[2] / "shared" / "data" / "kogpt2"
PAIR = Pair("12시 땡!", "하루가 또 가네요.")
HISTORY = (Message("user", "안녕하세요"), Message("assistant", "좋은 꿈 꾸세요."))
SYSTEM = Message("system", "천천히 말해요.")
CONTROLS = ["</s>", "<usr>", "<sys>", "<|user|>", "<|assistant|>", "<|im_end|>", "<|im_start|>"]
CONTROLS += ["<start_of_turn>", "<end_of_turn>", "<eos>", "<bos>", "<pad>", "<|endoftext|>"]
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
THOUGHT = "<think>\n\n</think>\n\n"
GEMMA = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
# What stands before the answer, for one turn and for a second one, and what ends it.
LAYOUTS = {
    "kogpt2": ("<usr>{}<sys>", "<usr>{}<sys>{}</s><usr>{}<sys>", "</s>"),
    "llama": ("<|user|>{}<|assistant|>", "<|user|>{}<|assistant|>{}</s><|user|>{}<|assistant|>", "</s>"),
    "qwen3": (CHATML + THOUGHT, CHATML + "{}<|im_end|>\n" + CHATML + THOUGHT, "<|im_end|>"),
    "gemma3": ("<bos>" + GEMMA, "<bos>" + GEMMA + "{}<end_of_turn>\n" + GEMMA, "<end_of_turn>"),
}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    name: str = request.param
    return load_base(str(toys.BASES[name](tmp_path_factory.mktemp("bases") / name)))


def read_options(base: Base) -> tuple[str, str, str]:
    return LAYOUTS[Path(base.name).name]


def rendered(base: Base, template: str, *texts: str) -> list[int]:
    """Ids from control tokens and texts that are encoded separately."""
    ids: list[int] = []
    pieces = re.split(r"\{\}", template)
    for piece, text in zip(pieces, [*texts, ""], strict=True):
        ids += base.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
        ids += encode(base.tokenizer, text) if text else []
    return ids


def test_an_example_is_question_answer_and_eos(base: Base) -> None:
    once, _, end = read_options(base)
    example = base.prompt(128).example(PAIR)
    question = rendered(base, once, PAIR.question)
    assert example.ids == rendered(base, once + "{}" + end, PAIR.question, PAIR.answer)
    assert example.answer_start == len(question)
    assert example.ids[: example.answer_start] == question


def test_the_end_token_of_the_template(base: Base) -> None:
    prompt = base.prompt(128)
    assert base.tokenizer.convert_ids_to_tokens(prompt.template.eos_id) == read_options(base)[2]
    assert prompt.example(PAIR).ids[-1] == prompt.template.eos_id


def test_rendering_equals_the_published_template(base: Base) -> None:
    """Compared with the conversation rendered by `apply_chat_template` and encoded as one string."""
    turns = [
        {"role": turn.role, "content": turn.content} for turn in Pair("점심 뭐 먹지", "네", history=HISTORY).messages
    ]
    whole = str(base.tokenizer.apply_chat_template(turns, tokenize=False))
    ids = base.prompt(128).example(Pair("점심 뭐 먹지", "네", history=HISTORY)).ids
    assert str(base.tokenizer.decode(ids)).replace(" ", "") == whole.rstrip().replace(" ", "")


def test_earlier_turns_stand_before_the_question(base: Base) -> None:
    _, twice, end = read_options(base)
    example = base.prompt(128).example(Pair(PAIR.question, PAIR.answer, history=HISTORY))
    before = rendered(base, twice, HISTORY[0].content, HISTORY[1].content, PAIR.question)
    assert example.ids == [*before, *rendered(base, "{}" + end, PAIR.answer)]
    assert example.answer_start == len(before)


def test_history_is_truncated_by_turns(base: Base) -> None:
    long = Pair(PAIR.question, PAIR.answer, history=HISTORY * 20)
    once, twice, _ = read_options(base)
    two = base.prompt(128).example(Pair(PAIR.question, PAIR.answer, history=HISTORY))
    one = base.prompt(128).example(PAIR)
    assert base.prompt(len(two.ids)).example(long) == two
    assert base.prompt(len(two.ids) - 1).example(long) == one
    assert base.prompt(len(one.ids)).example(long) == one
    for length in range(len(one.ids), 128, 7):
        ids = base.prompt(length).example(long).ids
        assert len(ids) <= length
        assert ids[: len(rendered(base, once[: once.index("{}")]))] == rendered(base, twice[: twice.index("{}")])


def test_a_system_turn_is_folded_into_the_question(base: Base) -> None:
    folded = base.prompt(128).question(Pair(PAIR.question, PAIR.answer, history=(SYSTEM,)))
    assert folded == base.prompt(128).question(Pair(f"{SYSTEM.content}\n{PAIR.question}", ""))


def test_turns_of_one_speaker_are_joined_and_a_greeting_dropped(base: Base) -> None:
    turns = (Message("assistant", "안녕하세요"), *HISTORY, Message("assistant", "고마워요"), Message("user", "심심해"))
    joined = (HISTORY[0], Message("assistant", f"{HISTORY[1].content}\n고마워요"))
    prompt = base.prompt(128)
    assert prompt.question(Pair("배고파", "", history=turns)) == prompt.question(
        Pair("심심해\n배고파", "", history=joined)
    )


def test_history_is_dropped_before_the_question(base: Base) -> None:
    pair = Pair(PAIR.question, PAIR.answer, history=(SYSTEM, Message("user", "길이 막혀 " * 20)))
    short = base.prompt(len(base.prompt(128).example(PAIR).ids))
    assert short.fits(pair)
    assert short.example(pair) == base.prompt(128).example(PAIR)


def test_a_long_question_loses_its_beginning(base: Base) -> None:
    whole = base.prompt(128).example(PAIR)
    length = len(whole.ids)
    assert base.prompt(length).fits(PAIR)
    tight = base.prompt(length - 2)
    assert not tight.fits(PAIR)
    cut, begin = tight.example(PAIR), len(tight.template.opening)
    assert cut.ids == whole.ids[:begin] + whole.ids[begin + 2 :]
    assert cut.n_labels == whole.n_labels
    with pytest.raises(DataError):
        base.prompt(whole.n_labels).example(PAIR)


def test_a_pair_that_is_too_long_is_shortened_to_sentences(base: Base) -> None:
    prompt = base.prompt(64)
    answer = "길이 막혀요. " * 40
    short = prompt.shortened(Pair(PAIR.question, answer, history=HISTORY))
    assert prompt.fits(short)
    assert not short.history
    assert short.question == PAIR.question
    assert answer.startswith(short.answer)
    assert short.answer.endswith("막혀요.")
    assert prompt.fits(prompt.shortened(Pair("길이막혀" * 400, "네")))
    assert prompt.shortened(PAIR) == PAIR


def test_a_question_that_is_too_long_is_reported(base: Base) -> None:
    with pytest.raises(DataError, match="--max-length"):
        base.prompt(64).question(Pair("길이 막혀 " * 40, ""))


@pytest.mark.parametrize("typed", CONTROLS)
def test_typed_control_tokens_never_become_control_ids(base: Base, typed: str) -> None:
    prompt, controls = base.prompt(256), find_control_ids(base.tokenizer) - {base.tokenizer.unk_token_id}
    plain = [number for number in prompt.example(PAIR).ids if number in controls]
    example = prompt.example(Pair(f"{PAIR.question} {typed}{typed}", f"{typed} {PAIR.answer}{typed}"))
    assert [number for number in example.ids if number in controls] == plain
    assert decode(base.tokenizer, example.ids[example.answer_start : -1]).count(typed) == 2


def test_training_scoring_and_generation_share_the_prefix(base: Base) -> None:
    model = TorchModel(base.model, base.prompt(96), max_new_tokens=24)
    for pair in [*toys.PAIRS[:20], Pair(PAIR.question, PAIR.answer, history=HISTORY)]:
        example = model.prompt.example(pair)
        assert example.ids[: example.answer_start] == model.prompt.question(pair, max_ids=96 - 24)


def test_the_length_is_limited_by_the_base(base: Base) -> None:
    assert base.prompt(100_000).max_length == 128


def test_without_a_template_or_roles_plain_text_is_used(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(toys.llama(tmp_path))
    tokenizer.chat_template = None
    prompt = build_prompt(tokenizer, 96)
    ids = prompt.example(PAIR).ids
    text = str(tokenizer.decode(ids)).replace(" ", "")
    assert text == "질문:\n12시땡!답변:\n하루가또가네요.</s>"


def bos_by(way: str, tmp_path: Path, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that prepends a token: by a flag, by its post-processor, or together with an EOS at the end."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=toys.gemma3_tokenizer(),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template=template,
        **({"add_bos_token": True} if way == "flag" else {}),
    )
    single = {"file": ["<bos>", "$A"], "end": ["<bos>", "$A", "<eos>"], "two": ["<bos>", "<unk>", "$A"]}.get(way)
    if single:
        tokens = [(name, tokenizer.convert_tokens_to_ids(name)) for name in single if name != "$A"]
        post = processors.TemplateProcessing(single=single, pair=[*single, "$B"], special_tokens=tokens)
        tokenizer.backend_tokenizer.post_processor = post
    save_tokenizer(tokenizer, tmp_path)
    return load_tokenizer(tmp_path)


@pytest.mark.parametrize("way", ["flag", "file", "end", "two", "none"])
def test_without_a_template_a_prompt_begins_with_the_prefix(tmp_path: Path, way: str) -> None:
    tokenizer = bos_by(way, tmp_path / "base")
    front = {"two": [2, 3], "none": []}.get(way, [2])
    prompt = build_prompt(tokenizer, 96)
    assert prefix_ids(tokenizer) == front
    ids = prompt.example(Pair(PAIR.question, PAIR.answer, history=HISTORY)).ids
    assert ids[: len(front)] == front
    assert (ids.count(2), ids.count(1)) == (len(front[:1]), 2)  # each answer ends, and nothing else does
    least = len(prompt.example(PAIR).ids) - 2
    cut = build_prompt(tokenizer, least).example(PAIR).ids
    assert cut[: len(prompt.template.opening)] == prompt.template.opening
    save_tokenizer(tokenizer, tmp_path / "run")
    reopened = load_tokenizer(tmp_path / "run")
    assert reopened.chat_template == tokenizer.chat_template
    assert build_prompt(reopened, 96).example(PAIR) == prompt.example(PAIR)


@pytest.mark.parametrize("way", ["flag", "file", "end", "none"])
def test_a_chat_template_decides_how_a_prompt_begins(tmp_path: Path, way: str) -> None:
    for template, times in ((toys.GEMMA3_TEMPLATE, 1), (toys.GEMMA3_TEMPLATE.replace("{{ bos_token }}", ""), 0)):
        assert build_prompt(bos_by(way, tmp_path, template), 96).example(PAIR).ids.count(2) == times


def test_todays_date_is_replaced(tmp_path: Path) -> None:
    clock = "<start_of_turn>{{ strftime_now('%d %b %Y') }}<end_of_turn>"
    tokenizer = bos_by("file", tmp_path, clock + toys.GEMMA3_TEMPLATE)
    opening = build_prompt(tokenizer, 96).template.opening
    assert "26 Jul 2024" in str(tokenizer.decode(opening))
    assert "strftime_now" not in str(tokenizer.chat_template)


@pytest.mark.parametrize("template", ["{{ raise_exception('안 돼요') }}", "{{ messages[0].content }}", "{% if %}"])
def test_an_unusable_template_is_refused(tmp_path: Path, template: str) -> None:
    tokenizer = load_tokenizer(toys.llama(tmp_path))
    tokenizer.chat_template = template
    with pytest.raises(BaseError, match="chat template"):
        build_prompt(tokenizer, 96)


def test_a_missing_eos_token_is_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=toys.kogpt2_tokenizer(toys.TEXTS))
    tokenizer.chat_template = "{% for message in messages %}말: {{ message.content }}\n{% endfor %}"
    with pytest.raises(BaseError, match="end token"):
        build_prompt(tokenizer, 96)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"KoGPT2's own tokenizer is not there: {REAL}")
def test_the_published_prompt_of_kogpt2() -> None:
    prompt: Prompt = build_prompt(load_tokenizer(REAL), 64)
    example = prompt.example(PAIR)
    assert example.ids == [2, 9349, 7888, 739, 7318, 376, 4, 12557, 6824, 9108, 9028, 7098, 25856, 1]
    assert example.answer_start == 7
