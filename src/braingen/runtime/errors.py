"""The one error that is shown to a user as a sentence, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something a person can put right: the message says what was wrong, its value, what is allowed
    and what to type.
    """


def reason(error: BaseException) -> str:
    """Text of an error on one line, or its kind where it has none, to be quoted in a sentence."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def as_sentence(start: str, instead: str) -> Iterator[None]:
    """Turn errors of a reader into "<start> (<reason>); <instead>."; a UserError stays as it is.

    Readers of damaged files fail in many ways, so that every exception is taken except lack of
    memory.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{start} ({reason(error)}); {instead}.") from error
