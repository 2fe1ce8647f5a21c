"""daedap (대답): from a file of Korean questions and answers to a chatbot that answers to the point.

import daedap

run = daedap.train("qa.csv", num_train_epochs=5)
bot = daedap.Bot.open(run.folder)
print(bot.reply("오늘 너무 피곤해").text)
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

__all__ = [
    "Bot",
    "DaedapError",
    "Evaluation",
    "Message",
    "Pair",
    "Reply",
    "Run",
    "check",
    "compare",
    "evaluate",
    "pretrain",
    "report",
    "train",
    "tune",
]

if TYPE_CHECKING:
    from collections.abc import Callable

    from daedap.commands.compare import Comparison
    from daedap.commands.pretrain import MadeBase
    from daedap.commands.report import Reported
    from daedap.data.findings import Report
    from daedap.errors import DaedapError
    from daedap.evaluation.evaluate import Evaluation
    from daedap.retrieval.bot import Bot
    from daedap.runs import Run
    from daedap.tuning.result import TuneResult
    from daedap.types import Message, Pair, Reply

    check: Callable[..., Report]
    compare: Callable[..., Comparison]
    evaluate: Callable[..., Evaluation]
    pretrain: Callable[..., MadeBase]
    report: Callable[..., Reported]
    train: Callable[..., Run]
    tune: Callable[..., TuneResult]

_NOUNS = {
    "Bot": "retrieval.bot",
    "DaedapError": "errors",
    "Evaluation": "evaluation.evaluate",
    "Message": "types",
    "Pair": "types",
    "Reply": "types",
    "Run": "runs",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import daedap` costs nothing."""
    if name == "__version__":
        return version("daedap")
    if name in _NOUNS:
        return getattr(import_module(f"daedap.{_NOUNS[name]}"), name)
    if name in __all__:
        from daedap.api import flat

        return flat(getattr(import_module(f"daedap.commands.{name}"), name))
    raise AttributeError(f"module 'daedap' has no attribute '{name}'")
