"""daedap (대답): from a file of Korean questions and answers to a chatbot that answers to the point.

import daedap

run = daedap.train("qa.csv", num_train_epochs=5)
bot = daedap.Bot.open(run.folder)
print(bot.reply("오늘 너무 피곤해").text)
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import daedap` costs nothing."""
    if name == "__version__":
        return version("daedap")
    if not name.startswith("_"):
        from daedap.api import FUNCTIONS, PUBLIC, flat

        if name in PUBLIC:
            return getattr(import_module(f"daedap.{PUBLIC[name]}"), name)
        if name in FUNCTIONS:
            return flat(getattr(import_module(f"daedap.commands.{name}"), name))
    raise AttributeError(f"module 'daedap' has no attribute '{name}'")


def __dir__() -> list[str]:
    from daedap.api import FUNCTIONS, PUBLIC

    return sorted([*PUBLIC, *FUNCTIONS, "__version__"])
