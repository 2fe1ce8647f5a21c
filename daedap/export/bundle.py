"""The whole bot in one folder or .zip, which answers without torch.

    manifest.json              as a run's: format, number, data, sizes of all files; `bundle` says what is in it
    data/dev.jsonl test.jsonl  the rows that the run held out, from which its bot answers, too
    index/                     known pairs, their n-grams and vectors
    encoder/                   the sentence encoder
    engine/                    where it takes part in answering: the language model (model/verify.py)
    lessons.jsonl              lessons in force when it was made, the latest first
    requirements.txt           packages that answering takes
    README.md

Wherever a run's folder can be named, the folder or the .zip of a bundle can be.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import daedap.runs as run_store
from daedap.data.split import HELD_OUT, SPLITS, read_rows, sample_rows
from daedap.errors import ExportError
from daedap.export.common import Difference, Verification, write_card
from daedap.files import write_json, write_lines, write_text
from daedap.i18n import tell, translate
from daedap.model.sentence_encoder import CENTRE, ENCODER_FOLDER, FILES
from daedap.retrieval.bot import Bot
from daedap.retrieval.encoder import BI_ENCODER_FILES
from daedap.retrieval.lessons import LESSONS
from daedap.runs import Run
from daedap.types import Reply

USAGE = """\
```
pip install --no-deps daedap && pip install -r requirements.txt
daedap answer --run FOLDER "안녕하세요"
```"""
_PACKAGES = (
    "charset-normalizer ctranslate2 cyclopts filelock jinja2 numpy openpyxl psutil pyyaml scipy tokenizers usearch"
)
"""What answering imports, in a terminal and for files of questions."""
_GENERATING_PACKAGES = "joblib kiwipiepy kiwipiepy-model scikit-learn threadpoolctl"
"""What a bi-encoder imports besides, where a language model takes part."""
_SERVE_PACKAGES = "alembic fastapi prometheus-client sqlalchemy uvicorn"
"""What `daedap serve` imports besides."""
_QUESTIONS = 1_000
"""Known questions that are compared at most, and twice as many made of them."""
_GENERATED_QUESTIONS = 200
"""Instead, where a language model takes part, which takes twenty times as long."""
_PROGRAM = """
import json, sys, time
from daedap.retrieval.bot import Bot
bot = Bot.open(sys.argv[1])
questions = json.load(sys.stdin)
first = bot.reply(questions[0]).to_json()
seconds = time.time() - float(sys.argv[2])
replies = [first, *(reply.to_json() for reply in bot.reply_many(questions[1:]))]
heavy = [name for name in ("torch", "transformers") if name in sys.modules]
print(json.dumps({"replies": replies, "seconds": seconds, "heavy": heavy}))
"""


@dataclass(frozen=True)
class BundleCheck:
    """A bundle compared with its run."""

    verification: Verification
    seconds: float
    """From the start of a process to its first answer."""


def export_bundle(run: Run, folder: Path) -> BundleCheck:
    """Write a run's bot to a folder and compare it with the run. Raises ExportError."""
    bot = Bot.open(run.folder)
    write(run, bot, folder)
    write_card(run, "bundle", USAGE, folder)
    write_manifest(run, bot, folder)
    return check(run, bot, folder)


def write(run: Run, bot: Bot, folder: Path) -> None:
    """Write everything that a run's bot answers with; the language model, if CTranslate2 computes it."""
    generates = bot.generates and _copy_language_model(bot, folder / "engine")
    left_out = shutil.ignore_patterns("encoder.json", *(() if generates else BI_ENCODER_FILES))
    shutil.copytree(run.folder / "index", folder / "index", ignore=left_out, copy_function=shutil.copyfile)
    if bot.generates and not generates:
        message = "PyTorch computes this bot's language model. A bundle looks up alone: some answers differ."
        tell([translate(message)])
        replace(bot.retriever.weights, generates=False).save(folder / "index" / "weights.json")
    _copy_encoder(run, folder / "encoder")
    for name in HELD_OUT:
        source = run.folder / "data" / f"{name}.jsonl"
        if source.exists():
            _copy(source, folder / "data" / source.name)
    lessons = bot.lessons.lessons if bot.lessons else ()
    write_lines(folder / LESSONS, [asdict(lesson) for lesson in lessons])
    has_bi_encoder = generates and (folder / "index" / "vectors.npz").exists()
    write_text(folder / "requirements.txt", _requirements(_GENERATING_PACKAGES if has_bi_encoder else ""))


def _copy_language_model(bot: Bot, folder: Path) -> bool:
    """Write the language model, if CTranslate2 computes it; PyTorch does where that gives other answers."""
    from daedap.model.engine import Engine

    if not isinstance(bot.language_model, Engine):
        return False
    from daedap.model.verify import save_language_model

    save_language_model(bot.language_model, folder)
    return True


def write_manifest(run: Run, bot: Bot, folder: Path) -> None:
    """Write the manifest, last: it lists all other files."""
    manifest, data = run.manifest, dict(run.manifest["data"])
    data["file"] = Path(data["file"]).name  # not where it lies on this machine
    kept = {name: manifest[name] for name in ("format", "number", "finished", "daedap", "base", "headline")}
    contents = {"pairs": len(bot.retriever.index.pairs), "lessons": len(bot.lessons.lessons) if bot.lessons else 0}
    write_json(folder / "manifest.json", {**kept, "bundle": contents, "data": data, "files": run_store.sizes(folder)})


def check(run: Run, bot: Bot, bundle: Path) -> BundleCheck:
    """Ask the bundle in a process of its own, and compare its replies with the bot's.

    Raises ExportError when it does not answer, or when it loaded torch or transformers.
    """
    questions = _questions(run, _GENERATED_QUESTIONS if bot.generates else _QUESTIONS)
    expected = [bot.reply(questions[0]), *bot.reply_many(questions[1:])]
    answered = _ask(bundle, questions)
    if answered["heavy"]:
        raise ExportError(
            "The bundle loaded {names} to answer.", "Please report this.", names=", ".join(answered["heavy"])
        )
    differences = [
        Difference(reply.question, reply.text, str(answer["answer"]))
        for reply, answer in zip(expected, answered["replies"], strict=True)
        if not _same(reply, answer)
    ]
    return BundleCheck(Verification(len(questions), tuple(differences)), float(answered["seconds"]))


def compress(folder: Path, archive: Path) -> None:
    """Write a folder's files into a .zip, the manifest first; the same files give the same bytes."""
    paths = sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name != "manifest.json"
    )
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in paths:
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with path.open("rb") as source, file.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _copy_encoder(run: Run, folder: Path) -> None:
    """The encoder that the index was made with: the built-in one, or a converted one from the cache beside the runs."""
    made_by = json.loads((run.folder / "index" / "encoder.json").read_text(encoding="utf-8"))
    source = run.folder.parent / "cache" / "encoders" / made_by["digest"] if made_by["name"] else ENCODER_FOLDER
    for name in (*FILES, CENTRE, "MODEL_CARD.md"):
        if (source / name).is_file():
            _copy(source / name, folder / name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _requirements(more: str) -> str:
    """The versions that the bundle was compared with its run with."""
    pinned = [f"{name}=={version(name)}\n" for name in f"{_PACKAGES} {more}".split()]
    head = f"# pip install --no-deps daedap=={version('daedap')} && pip install -r requirements.txt\n"
    return "".join([head, f"# for daedap serve also: pip install {_SERVE_PACKAGES}\n", *pinned])


def _questions(run: Run, count: int) -> list[str]:
    """Known questions, `count` at most; the same less a word, decided by similarity; and halves of two, unlike any."""
    known = list(dict.fromkeys(pair.question for name in SPLITS for pair in read_rows(run.folder, name)))
    some = sample_rows(known, count, seed=0)
    words = [question.split() for question in some]
    shorter = [" ".join(each[:-1] or each * 2) for each in words]
    halves = zip(words, [*words[1:], *words[:1]], strict=True)
    mixed = [" ".join([*one[: len(one) // 2], *other[len(other) // 2 :]]) for one, other in halves]
    return [*some, *shorter, *mixed, "안녕하세요", "asdf qwer 1234"]


def _ask(bundle: Path, questions: Sequence[str]) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "DAEDAP_DB"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(bundle), str(time.time())],
        input=json.dumps(list(questions)),
        env={**environment, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ExportError("The bundle does not answer ({error}).", "Please report this.", error=error)
    return json.loads(done.stdout.strip().splitlines()[-1])


def _same(reply: Reply, answer: dict[str, Any]) -> bool:
    ours = reply.to_json()
    return all(ours[name] == answer[name] for name in ("question", "answer", "source", "suggestions"))
