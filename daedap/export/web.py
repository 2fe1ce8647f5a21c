"""The bot as a static web page, which answers in the browser: nothing is sent anywhere, and no server computes.

    index.html page.js …    the page and the bot's arithmetic in plain JavaScript (browser/), without a build step
    page.json               what the page says
    bot.json                known pairs, lessons, courtesies, weights, and what lies where in the other files
    encoder.bin             the sentence encoder's weights, int8, as CTranslate2 has them
    tokenizer.json          its tokenizer
    index.bin               sentence vectors in half precision, rarities of n-grams, the interaction model
    tokens/                 token vectors of known pairs, int8, in files of 100 pairs: read when first needed

Any web server for files will do, GitHub Pages for instance. Only looking up is done there: a bot whose language model
takes part in answering, or that knows more pairs than a browser should load, is refused.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, softmax

import daedap.retrieval.distress as rules
from daedap.errors import ExportError
from daedap.export.common import Difference, Verification, write_card
from daedap.files import write_json
from daedap.i18n import translate_to
from daedap.model.sentence_encoder import ENCODER_FOLDER
from daedap.retrieval.bot import Bot
from daedap.retrieval.courtesies import LONGEST, phrases
from daedap.retrieval.distress import DistressHelp
from daedap.retrieval.interaction import InteractionModel
from daedap.retrieval.lexical import CharTfidf
from daedap.retrieval.matcher import AnswerMatcher
from daedap.runs import Run
from daedap.types import Evidence, Lesson, Pair

FORMAT = 1
MOST_PAIRS = 5_000
"""Whose vectors, 15 MB, and n-grams a browser can hold and compare within a moment."""
USAGE = """\
```
python -m http.server --directory FOLDER     # to try it: http://127.0.0.1:8000
```"""
_PAGE = Path(__file__).parent / "browser"
_STATIC = Path(__file__).parent.parent / "serve" / "static"
_SHARED = ("daedap.css", "icon.svg", "theme.js")
"""Files of the chat page that this page uses, too."""
_PART = 100
_NAMES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32}
"""CTranslate2's number of each type of numbers."""
_LARGEST = 127.0
_CHECKED, _ALIKE = 200, 0.99
"""Known questions whose vectors are compared, and the cosine from which on they differ by rounding alone."""
_FIXED = {"activation": 3, "embeddings_merge": 1, "pre_norm": 0, "scale_embeddings": 0, "multi_query_attention": 0}
"""CTranslate2's numbers: GELU, added embeddings, normalization after each part, as in BERT."""


def export_web(run: Run, folder: Path) -> Verification:
    """Write a run's bot as a web page, and compare the encoder that it reads with the bot's. Raises ExportError."""
    bot = Bot.open(run.folder)
    write(bot, folder)
    write_card(run, "web", USAGE, folder)
    return check(bot, folder)


def write(bot: Bot, folder: Path) -> None:
    """Write page and bot. Raises ExportError for a bot that can't answer in a browser."""
    _refuse(bot)
    folder.mkdir(parents=True, exist_ok=True)
    for source in (*sorted(_PAGE.iterdir()), *(_STATIC / name for name in _SHARED)):
        if source.is_file():
            shutil.copyfile(source, folder / source.name)
    tokenizer = json.loads((ENCODER_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    encoder, index = _Tensors("encoder.bin"), _Tensors("index.bin")
    for name, values in read_weights(ENCODER_FOLDER / "model.bin"):
        encoder.add(f"encoder/{name}", values)
    data = _bot_data(bot, folder, index)
    data["tensors"] = {**encoder.save(folder), **index.save(folder)}
    write_json(folder / "bot.json", data)
    pairs = bot.retriever.index.pairs
    examples = [pair.question for pair in pairs[:: max(1, len(pairs) // 3)][:3]]
    page = {"name": "daedap", "language": data["language"], "texts": data["texts"], "examples": examples}
    write_json(folder / "page.json", page)


def _refuse(bot: Bot) -> None:
    """Raise ExportError for a bot that can't answer in a browser."""
    pairs, encoder = len(bot.retriever.index.pairs), bot.retriever.encoder
    if bot.generates:
        raise ExportError("The language model takes part in this bot's answers.", "Export it with --to bundle.")
    if not encoder.built_in:
        raise ExportError("The page can compute the built-in sentence encoder alone.", "Export it with --to bundle.")
    if pairs > MOST_PAIRS:
        raise ExportError(
            "{pairs:,} pairs are too many for a browser, which should load {most:,} at most.",
            "Export it with --to bundle.",
            pairs=pairs,
            most=MOST_PAIRS,
        )


def _bot_data(bot: Bot, folder: Path, index: _Tensors) -> dict[str, Any]:
    """What `bot.json` holds, but for the places of the tensors."""
    matcher, book, help = bot.retriever.matcher, bot.lessons, bot._distress_help
    korean, options = bot.speaks_korean, bot.answer_options
    lessons = book.lessons if book else ()
    interaction = InteractionModel.default()
    for name, values in interaction.weights.items():
        index.add(f"interaction/{name}", np.atleast_1d(values).astype(np.float32))
    index.add("matcher/direction", matcher._small_talk_direction)
    index.add("distress/questions", help.vectors.astype(np.float16))
    ngrams = {"questions": matcher.index.ngrams, "answers": matcher._answer_tfidf, "distress": help.index.ngrams}
    similar = book._matcher if book else None
    return {
        "format": FORMAT,
        "language": "ko" if korean else "en",
        "longest": bot.retriever.encoder.settings.max_length,
        "options": {"direct": options.direct_answer_threshold, "suggestion": options.suggestion_threshold},
        "texts": _page_texts(korean),
        "matcher": {
            "viewWeights": matcher.view_weights.tolist(),
            "answerShare": matcher._answer_share,
            "weights": {name: getattr(matcher.weights, name) for name in ("interaction", "signals", "intercept")},
        },
        "ngrams": {name: _add_ngrams(index, name, tfidf) for name, tfidf in ngrams.items()},
        "known": _add_pairs(index, "known", matcher, folder),
        "lessons": _add_pairs(index, "lessons", similar, folder) if similar else {"pairs": []},
        "taught": [[lesson.question, lesson.answer] for lesson in lessons],
        "distress": _distress(help),
        "courtesies": _courtesies(bot),
    }


def _page_texts(korean: bool) -> dict[str, str]:
    """What the page says, by the names that it uses."""
    return {
        "unsure": translate_to(korean, "I am not sure that I understand. Did you mean one of these?"),
        "fallback": translate_to(korean, "I didn't quite understand. Could you say it another way?"),
        "notice": translate_to(korean, "An AI answers. It can be wrong."),
        "welcome": translate_to(korean, "What would you like to know?"),
        "placeholder": translate_to(korean, "Ask something"),
        "send": translate_to(korean, "Send"),
        "loading": translate_to(korean, "Loading the bot"),
        "failed": translate_to(korean, "The bot can't be loaded. Please open the page again."),
        "private": translate_to(korean, "Your questions are answered in your browser and sent nowhere."),
        "source": translate_to(korean, "Answer to"),
    }


def _distress(help: DistressHelp) -> dict[str, Any]:
    pairs = help.index.pairs
    return {
        "pairs": _texts(pairs),
        "comforts": [rules._mentions_suicide(pair.question) for pair in pairs],
        "distress": rules._DISTRESS.pattern,
        "ambiguous": rules._AMBIGUOUS.pattern,
        "threshold": rules._THRESHOLD,
    }


def _courtesies(bot: Bot) -> dict[str, Any]:
    """Phrases, and for each kind its reply: of a lesson, of a known pair, else the built-in one."""
    data, language = phrases(), "ko" if bot.speaks_korean else "en"
    lessons, known = bot.lessons._by_courtesy if bot.lessons else {}, bot._own_courtesies

    def text(own: Lesson | Evidence | None) -> list[str] | None:
        return [own.question, own.answer] if own else None

    kinds = [
        {
            "name": kind["name"],
            "phrases": kind["phrases"],
            "lesson": text(lessons.get(kind["name"])),
            "known": text(known.get(kind["name"])),
            "builtIn": [kind["question"], kind[language]],
        }
        for kind in data["kinds"]
    ]
    return {"longest": LONGEST, "fillers": data["fillers"], "kinds": kinds}


def _texts(pairs: Sequence[Pair]) -> list[list[str]]:
    return [[pair.question, pair.answer] for pair in pairs]


def _add_ngrams(index: _Tensors, name: str, tfidf: CharTfidf) -> float:
    """Rarities of the n-grams that occur; returned is that of all others, which is the highest."""
    other = tfidf.idf.max()
    columns = np.flatnonzero(tfidf.idf < other)
    index.add(f"ngrams/{name}/columns", columns.astype(np.int32))
    index.add(f"ngrams/{name}/values", tfidf.idf[columns])
    return float(other)


def _add_pairs(index: _Tensors, name: str, matcher: AnswerMatcher, folder: Path) -> dict[str, Any]:
    """Vectors of pairs and of their tokens; returned are the pairs, which answers are equal, and the tokens of each."""
    pairs = matcher.index.pairs
    index.add(f"{name}/questions", np.asarray(matcher.questions, np.float16))
    index.add(f"{name}/answers", np.asarray(matcher.answers, np.float16))
    counts: list[tuple[int, int]] = []
    (folder / "tokens").mkdir(exist_ok=True)
    for start in range(0, len(pairs), _PART):
        part = pairs[start : start + _PART]
        tokens = matcher.encoder.encode_tokens([text for pair in part for text in (pair.question, pair.answer)])
        counts += [(len(one), len(other)) for one, other in zip(tokens[::2], tokens[1::2], strict=True)]
        every = np.concatenate(tokens)
        scales = (np.abs(every).max(axis=1) / _LARGEST).astype(np.float32)
        rounded = np.rint(every / scales[:, None]).astype(np.int8)
        (folder / "tokens" / f"{name}-{start // _PART}.bin").write_bytes(rounded.tobytes() + scales.tobytes())
    return {"pairs": _texts(pairs), "groups": matcher._answer_groups.tolist(), "counts": counts, "part": _PART}


@dataclass
class _Tensors:
    """Arrays of numbers, to be written into one file."""

    file: str
    places: dict[str, Any] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Add one, beginning at a multiple of 4 bytes, as browsers ask for."""
        octets = np.ascontiguousarray(values).tobytes()
        octets += bytes(-len(octets) % 4)
        place = {"type": values.dtype.name, "offset": self.size, "shape": list(values.shape)}
        self.places[name] = {"file": self.file, **place}
        self.parts.append(octets)
        self.size += len(octets)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the file; returned is what lies where in it."""
        (folder / self.file).write_bytes(b"".join(self.parts))
        return self.places


def read_weights(file: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """The names and values of an encoder in CTranslate2's model.bin, little-endian: version, name of the specification,
    revision, then for each variable its name, dimensions, type and bytes.

    Raises ExportError for an architecture that the page does not compute.
    """
    octets = BytesIO(file.read_bytes())

    def number(code: str) -> int:
        return int(struct.unpack(f"<{code}", octets.read(struct.calcsize(code)))[0])

    def text() -> str:
        return octets.read(number("H"))[:-1].decode()

    number("I"), text(), number("I")
    for _ in range(number("I")):
        name, shape = text().removeprefix("encoder/"), [number("I") for _ in range(number("B"))]
        kind, size = _NAMES[number("B")], number("I")
        values = np.frombuffer(octets.read(size), kind).reshape(shape)
        if name in _FIXED and values.item() != _FIXED[name]:
            raise ExportError(
                "The sentence encoder's {name} is {value}: the page can't compute that.",
                "Export it with --to bundle.",
                name=name,
                value=values.item(),
            )
        yield name, np.atleast_1d(values)


def check(bot: Bot, folder: Path) -> Verification:
    """Compare the sentence vectors that the page's files give with the bot's, which decide nearly every answer."""
    texts = list(dict.fromkeys(pair.question for pair in bot.retriever.index.pairs))[:_CHECKED]
    encoder = bot.retriever.encoder
    vectors = _vectors(folder, [encoder.tokenizer.encode(text).ids for text in texts])
    cosines = np.einsum("tw,tw->t", vectors, encoder.encode(texts))
    far = [(text, cosine) for text, cosine in zip(texts, cosines.tolist(), strict=True) if not cosine >= _ALIKE]
    return Verification(len(texts), tuple(Difference(text, "1.00", f"{cosine:.2f}") for text, cosine in far))


def _vectors(folder: Path, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """(texts, width): sentence vectors by the files of a page, as encoder.js computes them but for int8 inputs."""
    places = json.loads((folder / "bot.json").read_text(encoding="utf-8"))["tensors"]
    octets = (folder / "encoder.bin").read_bytes()

    def tensor(name: str) -> NDArray[Any]:
        place = places[f"encoder/{name}"]
        return np.asarray(np.ndarray(place["shape"], place["type"], octets, place["offset"]))

    def matrix(name: str) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = tensor(f"{name}/weight") / tensor(f"{name}/weight_scale")[:, None]
        return scaled

    def linear(inputs: NDArray[Any], name: str) -> NDArray[Any]:
        return np.asarray(inputs @ matrix(name).T + tensor(f"{name}/bias"))

    def normalized(states: NDArray[Any], name: str) -> NDArray[Any]:
        centred = states - states.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True))
        return np.asarray(centred / deviation * tensor(f"{name}/gamma") + tensor(f"{name}/beta"))

    def attention(states: NDArray[Any], name: str) -> NDArray[Any]:
        heads, count = int(tensor("num_heads")[0]), len(states)
        query, key, value = linear(states, f"{name}/linear_0").reshape(count, 3, heads, -1).transpose(1, 2, 0, 3)
        shares = softmax(query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1]), axis=2)
        return linear((shares @ value).transpose(1, 0, 2).reshape(count, -1), f"{name}/linear_1")

    layers = range(sum(name.endswith("ffn/linear_0/weight") for name in places))
    vectors = []
    for ids in texts:
        pieces = matrix("embeddings_0")[list(ids)] + matrix("embeddings_1")[0]
        states = normalized(pieces + tensor("position_encodings/encodings")[: len(ids)], "layernorm_embedding")
        for layer in (f"layer_{n}" for n in layers):
            states = normalized(
                states + attention(states, f"{layer}/self_attention"), f"{layer}/self_attention/layer_norm"
            )
            inner = linear(states, f"{layer}/ffn/linear_0")
            inner = inner * ndtr(inner)  # GELU
            states = normalized(states + linear(inner, f"{layer}/ffn/linear_1"), f"{layer}/ffn/layer_norm")
        vectors.append(states.sum(axis=0) / np.linalg.norm(states.sum(axis=0)))
    return np.stack(vectors)
