"""What a user can mend. Each message says what is wrong, where (file, line, value), and what to do next."""

from __future__ import annotations

from daedap.i18n import translate


class DaedapError(Exception):
    """A user's mistake or bad input: one clear line, exit code 1, no traceback.

    `what` and `remedy` are `str.format` templates filled from `fields` and told in the user's language.
    """

    def __init__(self, what: str, remedy: str = "", /, **fields: object) -> None:
        super().__init__(" ".join(translate(part, **fields) for part in (what, remedy) if part))


class DataError(DaedapError):
    """A file of pairs that can't be read, or holds nothing to learn from."""


class ColumnsError(DataError):
    """A table whose columns the user must choose. The field `command` begins the command line in its remedy."""

    def __init__(self, what: str, remedy: str = "", /, **fields: object) -> None:
        self._parts, self._fields = (what, remedy), fields
        super().__init__(what, remedy, **fields)

    def with_command(self, command: str) -> ColumnsError:
        """The same refusal, with another command line to repeat."""
        return ColumnsError(*self._parts, **{**self._fields, "command": command})


class BaseError(DaedapError):
    """A base model that can't be had, or that failed its self-test."""


class EngineError(DaedapError):
    """A model that CTranslate2 can't compute."""


class EncoderError(DaedapError):
    """A sentence encoder that can't be had, or is of a kind that is not supported."""


class RunError(DaedapError):
    """A run that is unknown, unfinished, damaged or busy."""


class SettingsError(DaedapError):
    """Options that contradict each other or the data."""


class ExportError(DaedapError):
    """A run that can't be exported to a target, or answers differently there."""


class StorageError(DaedapError):
    """A folder that can't be written, or a full disk."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, at most 200 characters; without a message, the error's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
