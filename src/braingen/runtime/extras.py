"""Packages that only some commands need: they come with an extra of the installation, as in ``pip
install braingen[interpret]``.
"""

from __future__ import annotations

from importlib.util import find_spec

from braingen.runtime.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "interpret": ("captum", "nilearn", "sklearn"),
    "track": ("tensorboard",),
    "scores": ("dreamsim", "nltk"),
    "gpu": ("bitsandbytes", "xformers"),
}
"""Extra of pyproject.toml and the modules that come with it."""


def missing(extra: str) -> list[str]:
    """Modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def how_to_install(extra: str) -> str:
    """The line to type, for an installed package and for a checkout."""
    return f"pip install 'braingen[{extra}]' (in a checkout: pip install -e '.[{extra}]')"


def need(extra: str, purpose: str) -> None:
    """Stop in one sentence where an extra is not installed.

    Parameters
    ----------
    purpose : str
        Who needs it, the subject of the sentence.

    Raises
    ------
    UserError
        With what is missing and what to type.
    """
    if absent := missing(extra):
        verb = "is" if len(absent) == 1 else "are"
        raise UserError(
            f"{purpose} needs {' and '.join(absent)}, which {verb} not installed:"
            f" {how_to_install(extra)}."
        )
