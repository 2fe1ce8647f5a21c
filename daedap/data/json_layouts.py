"""Pairs in JSON objects: question and answer, conversations, and the layouts of well-known data sets.

Read are {"question": …, "answer": …} under many names, OpenAI's and TRL's messages, ShareGPT, Alpaca, KoAlpaca's texts
with ### headings, numbered turns (HS01, SS01, …), and any of these inside further objects (AI-Hub, KorQuAD).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any

from daedap.data.clean import BadRow, excerpt
from daedap.data.columns import Columns
from daedap.data.conversation import (
    HISTORY,
    Conversation,
    Turn,
    assistant_among,
    pairs_of,
    rendered_turns,
    role_named,
    round_pairs,
)
from daedap.data.headers import has_role, header_role, is_sentence, roles_of
from daedap.data.objects import CONVERSATIONS, are_messages
from daedap.types import Message, Pair, Role

Chooser = Callable[[tuple[str, ...]], Columns | None]
"""Keys of an object → the keys of question and answer, or None."""

_TOOLS = {"tool", "tool_call", "tool_response", "function", "function_call", "function_response"}
_TOOLS |= {"observation", "ipython"}
_ROLE_KEYS = ("role", "from", "speaker", "participantID", "speaker_id", "speakerId", "sender", "화자", "발화자")
_TEXT_KEYS = (
    *("norm_text", "content", "value", "text", "utterance", "message", "sentence", "form", "parts"),
    *("발화", "발화문", "문장", "내용"),
)
_SYSTEM_KEYS = ("system", "system_prompt", "systemPrompt")
_DEPTH = 6
"""Levels of objects inside objects that are searched."""
_PHRASES = ("userSays", "trainingPhrases", "training_phrases", "patterns", "utterances", "examples", "phrases")
_RESPONSES = ("responses", "messages", "response", "answers", "answer")
"""Keys of an intent: the wordings of a question, and its answers."""
_LEGACY_PROMPT = re.compile(r"\s*(?:###|-+>)\s*$")
_LEGACY_END = re.compile(r"\s*(?:END|###)\s*$")
"""Separators of OpenAI's former prompt/completion files."""


def object_pairs(row: Mapping[str, Any], line: int, choose: Chooser, name: str) -> Iterator[Pair | BadRow]:
    """The pairs of one object; `name` is the file's, for conversation ids."""
    label = next((text for key, text in row.items() if has_role(key, "label") and isinstance(text, str)), "")
    pairs = list(_pairs(row, line, choose, Conversation(f"{name}:{line}", label)))
    pairs = pairs or list(_nested(row, line, choose, f"{name}:{line}", _DEPTH))
    yield from pairs or [_no_text(row, line)]


def _no_text(row: Mapping[str, Any], line: int) -> BadRow:
    return BadRow(line, "keys", excerpt(str(dict(row))))


def _pairs(row: Mapping[str, Any], line: int, choose: Chooser, conversation: Conversation) -> Iterator[Pair | BadRow]:
    """The pairs of an object itself, without those of objects in it; nothing when it holds none."""
    messages = conversation_of(row)
    if intent := _intent_texts(row):
        names = (row.get(key) for key in ("intent", "tag", "name", "displayName"))
        label = next((name for name in names if isinstance(name, str)), "")
        yield from (Pair(question, reply, label, line=line) for question in intent[0] for reply in intent[1])
    elif messages is not None:
        system = next((text for key in _SYSTEM_KEYS if isinstance(text := row.get(key), str) and text), "")
        yield from _conversation_pairs(messages, line, conversation, system)
    elif pair := _web_page_pair(row, line):
        yield pair
    elif columns := choose(tuple(row)):
        if columns.rounds:
            values = [as_text(value) or "" for value in row.values()]
            yield from round_pairs(values, columns, line, conversation)
        else:
            yield from _single(row, line, columns)
    elif turns := rendered_turns(row.get("text"), line) or rendered_turns(row.get("prompt"), line):
        yield from pairs_of(turns, conversation)
    elif _maps_questions(row):
        yield from (Pair(question, str(reply), line=line) for question, reply in row.items())


def conversation_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The messages of an object that holds a conversation."""
    if _intent_texts(row):
        return None
    prompt, completion = row.get("prompt"), row.get("completion", row.get("chosen"))
    if completion := _with_roles(completion):
        if isinstance(prompt, str):
            return [{"role": "user", "content": prompt}, *completion]
        if prompt := _with_roles(prompt):
            return prompt + completion
    if contents := _with_roles(row.get("contents")):  # Gemini's
        return contents
    lists = (row[key] for key in CONVERSATIONS if isinstance(row.get(key), list) and row[key])
    return next((value for value in lists if not _are_conversations(value)), None)


def _with_roles(value: Any) -> list[Any]:
    """A list of messages with a role; empty for another value."""
    messages = value if isinstance(value, list) else []
    return messages if messages and isinstance(messages[0], dict) and "role" in messages[0] else []


def _are_conversations(values: Any) -> bool:
    """Whether a value is a list of lists of messages."""
    lists = isinstance(values, list) and bool(values)
    return lists and all(isinstance(value, list) and are_messages(value) for value in values)


def _table_in(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of {"columns": ["질문", "답변"], "data": [["…", "…"], …]}, as pandas and databases write it."""
    lists = {key: value for key, value in row.items() if isinstance(value, list)}
    names = next((lists[key] for key in ("columns", "fields", "header", "headers") if key in lists), [])
    data = next((lists[key] for key in ("data", "rows", "values", "records") if key in lists), [])
    if not (names and all(isinstance(name, str) for name in names)):
        return []
    return [dict(zip(names, one, strict=True)) for one in data if isinstance(one, list) and len(one) == len(names)]


def _conversation_pairs(
    messages: Sequence[Any], line: int, conversation: Conversation, system: str
) -> Iterator[Pair | BadRow]:
    """Nothing is taken from a conversation with an unreadable message: the following ones may refer to it."""
    speakers = (_speaker(message) for message in messages if isinstance(message, dict) and not _is_tool(message))
    names = [name for name in dict.fromkeys(speakers) if name and role_named(name) is None]
    assistant = assistant_among(names) if names else None
    if len(names) > 1 and assistant is None:
        yield BadRow(line, "turns", excerpt(str(messages)))
        return
    turns: list[Turn] = [("system", system, line)] if system else []
    tools = []
    for number, message in enumerate(messages):
        if (read := _turns(message, assistant, number, line)) is None:
            yield BadRow(line, "turns", excerpt(str(message)))
            return
        turns += read
        tools += [] if read else [message]
    pairs = list(pairs_of(turns, conversation))
    if not pairs:
        yield BadRow(line, "turns", excerpt(str(messages)))
    elif tools:
        yield BadRow(line, "tool", excerpt(str(tools[0])))
    yield from pairs


def _turns(message: Any, assistant: str | None, number: int, line: int) -> list[Turn] | None:
    """Role and text of a message, none of a call of a tool or its result; None when it can't be read.

    Without a role, messages alternate between user and assistant.
    """
    alternating: Role = "assistant" if number % 2 else "user"
    if isinstance(message, str):
        return [(alternating, message, line)]
    if both := _question_and_answer(message):
        return [("user", both[0], line), ("assistant", both[1], line)]
    if not isinstance(message, dict):
        return None
    if _is_tool(message):
        return []
    name, text = _speaker(message), next((as_text(message[key]) for key in _TEXT_KEYS if key in message), None)
    other: Role = "assistant" if name == assistant else "user"
    role = alternating if name is None else role_named(name) or (other if assistant else None)
    return [(role, text, line)] if role and text is not None else None


def _question_and_answer(message: Any) -> tuple[str, str] | None:
    """Both sides of an exchange that is written as one element: ["주차?", "네"] or {"input": …, "output": …}."""
    if _is_exchange(message):
        return message[0], message[1]
    if not isinstance(message, dict) or _speaker(message) is not None:
        return None
    sides = [(header_role(key), as_text(value)) for key, value in message.items()]
    both = {role.role: text for role, text in sides if role and text}
    return (both["question"], both["answer"]) if {"question", "answer"} <= both.keys() else None


def _speaker(message: Mapping[str, Any]) -> str | None:
    name = next((message[key] for key in _ROLE_KEYS if message.get(key) is not None), None)
    return str(name) if isinstance(name, str | int) else None


def _is_tool(message: Mapping[str, Any]) -> bool:
    name = (_speaker(message) or "").strip().casefold()
    calls = message.get("tool_calls") or message.get("function_call")
    return name in _TOOLS or bool(calls and not as_text(message.get("content")))


def _single(row: Mapping[str, Any], line: int, columns: Columns) -> Iterator[Pair | BadRow]:
    if both := _parallel(row[columns.question.name], row[columns.answer.name]):
        yield from (Pair(question, reply, line=line) for question, reply in both)
        return
    questions, answers = _texts(row[columns.question.name]), _texts(row[columns.answer.name])
    for column in columns.alternatives:
        questions += [text for text in _texts(row.get(column.name)) if text]
    label = as_text(row[columns.label.name]) if columns.label else ""
    if not questions or not answers:
        yield _no_text(row, line)
    subject = as_text(row.get("input")) if columns.question.name == "instruction" else ""
    history = _history(row)
    for question, answer in product(questions, answers):
        prompt = _LEGACY_PROMPT.sub("", question)
        reply = _LEGACY_END.sub("", answer).strip() if prompt != question else answer
        # what the instruction is about, in Alpaca's layout
        yield Pair(f"{prompt}\n{subject}" if subject else prompt, reply, label or "", history, line)


def _parallel(questions: object, answers: object) -> list[tuple[str, str]] | None:
    """Whole columns in one object, as pandas writes them: lists of one length, or objects with the same row numbers."""
    if isinstance(questions, dict) and isinstance(answers, dict):
        same = questions.keys() == answers.keys() and all(str(key).isdecimal() for key in questions)
        questions, answers = (list(questions.values()), list(answers.values())) if same else ([], [])
    if not (isinstance(questions, list) and isinstance(answers, list) and len(questions) == len(answers) > 1):
        return None
    texts = [(as_text(question), as_text(answer)) for question, answer in zip(questions, answers, strict=True)]
    return [(question, answer) for question, answer in texts if question is not None and answer is not None]


def _history(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The exchanges before an instruction: [["question", "answer"], …], in LLaMA-Factory's layout."""
    exchanges = row.get("history")
    if not isinstance(exchanges, list) or not all(map(_is_exchange, exchanges)):
        return ()
    turns = [(Message("user", question), Message("assistant", answer)) for question, answer in exchanges]
    return tuple(chain(*turns))[-HISTORY:]


def _is_exchange(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _web_page_pair(row: Mapping[str, Any], line: int) -> Pair | None:
    """The pair of a question in schema.org's FAQPage, as web pages carry it for search engines."""
    question, accepted = row.get("name", row.get("text")), row.get("acceptedAnswer")
    reply = as_text(accepted[0] if isinstance(accepted, list) and accepted else accepted)
    return Pair(question, reply, line=line) if isinstance(question, str) and accepted and reply else None


def _maps_questions(row: Mapping[str, Any]) -> bool:
    """Whether an object maps questions to answers: {"주차 되나요?": "네", …}."""
    texts = all(isinstance(value, str) for value in row.values())
    return texts and bool(row) and sum(is_sentence(key) for key in row) > 0.6 * len(row)


def _intent_texts(row: Mapping[str, Any]) -> tuple[list[str], list[str]] | None:
    """The wordings and the answers of an intent: of Dialogflow, or of a chatbot tutorial's intents.json."""
    phrases, responses = (
        next((texts for key in keys if isinstance(row.get(key), list) and (texts := _intent_list(row[key]))), [])
        for keys in (_PHRASES, _RESPONSES)
    )
    return (phrases, responses) if phrases and responses else None


def _intent_list(values: Sequence[Any]) -> list[str]:
    """Texts; Dialogflow splits a wording into parts and keeps the variants of an answer in `speech` or `text`."""
    texts: list[str] = []
    for value in values:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict) and _speaker(value) is None:
            parts = value.get("data", value.get("parts"))
            inner = next((value[key] for key in ("messages", "speech", "text") if key in value), None)
            if isinstance(parts, list):
                texts.append("".join(str(part.get("text", "")) for part in parts if isinstance(part, dict)))
            elif inner is not None:
                texts += _intent_list(inner if isinstance(inner, list) else [inner])
    return [text for text in texts if text.strip()]


def _nested(row: Mapping[str, Any], line: int, choose: Chooser, name: str, depth: int) -> Iterator[Pair | BadRow]:
    """The pairs of the objects inside an object: AI-Hub's and KorQuAD's layouts."""
    inner: list[tuple[Any, bool]] = []
    for value in row.values():
        inner += [(one, True) for one in value] if isinstance(value, list) else [(value, False)]
    inner += [(one, True) for one in _table_in(row)]
    inner += [({"messages": one}, True) for value in row.values() if _are_conversations(value) for one in value]
    for number, (value, is_listed) in enumerate(each for each in inner if isinstance(each[0], dict)):
        conversation, roles = Conversation(f"{name}.{number}"), roles_of(value)
        # In a list of objects, title and content are a pair as well.
        is_pair = "answer" in roles or (is_listed and {"title", "content"} <= roles)
        clear = choose if is_pair else (lambda _: None)
        pairs = [pair for pair in _pairs(value, line, clear, conversation) if isinstance(pair, Pair)]
        if pairs:
            yield from pairs
        elif depth:
            yield from _nested(value, line, choose, f"{name}.{number}", depth - 1)


def _texts(value: object) -> list[str]:
    """A value as texts: a list of strings is several wordings; nothing when it is no text."""
    several = value if isinstance(value, list) else []
    if several and all(isinstance(one, str) for one in several):
        return list(filter(str.strip, several))
    objects = (one for one in several if isinstance(one, dict))
    answers = (next((text for key, text in one.items() if has_role(key, "answer")), "") for one in objects)
    if texts := list(filter(None, map(as_text, answers))):
        return texts  # of objects such as {"answer": …, "votes": 3}
    text = as_text(value)
    return [] if text is None else [text]


def as_text(value: object) -> str | None:
    """A value as text: null is empty, OpenAI's content parts are joined; None for other lists and objects."""
    if value is None:
        return ""
    if isinstance(value, list):
        parts = [as_text(part) for part in value if isinstance(part, dict) and part.get("type", "text") == "text"]
        return "\n".join(dict.fromkeys(text for text in parts if text)) or None
    if isinstance(value, dict):
        return next((as_text(value[key]) for key in _TEXT_KEYS if isinstance(value.get(key), str)), None)
    return str(value) if isinstance(value, str | int | float) else None
