"""The one error that is shown to a user as a sentence, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something a person can put right: the message says what was wrong, its value, what is allowed and what to type."""


def reason(error: BaseException) -> str:
    """Text of an error on one line, to be quoted in a sentence."""
    return " ".join(str(error).split())
