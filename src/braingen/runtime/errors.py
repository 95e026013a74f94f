"""The error that is shown as one message, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error that the user can correct, with the fault, its value and what to type."""


def reason(error: BaseException) -> str:
    """Text of an error on one line, or its kind where it has none, to be quoted in a sentence."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def as_sentence(start: str, instead: str) -> Iterator[None]:
    """Turn errors of file readers into "<start> (<reason>); <instead>."; a UserError passes.

    Readers raise many kinds of errors on damaged files, so every exception but a lack of memory is
    caught.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{start} ({reason(error)}); {instead}.") from error
