"""Optional packages of some commands, installed as extras: ``pip install braingen[interpret]``."""

from __future__ import annotations

from importlib.util import find_spec

from braingen.runtime.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "interpret": ("captum", "nilearn", "sklearn"),
    "explore": ("fastapi", "uvicorn"),
    "track": ("tensorboard",),
    "scores": ("dreamsim", "nltk"),
    "parquet": ("pyarrow",),
    "sweep": ("optuna",),
    "slurm": ("submitit",),
    "gpu": ("bitsandbytes", "xformers"),
}
"""Extra of pyproject.toml and its modules."""


def missing(extra: str) -> list[str]:
    """Return the modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def how_to_install(extra: str) -> str:
    """Return the install command, for an installed package and for a checkout."""
    return f"pip install 'braingen[{extra}]' (in a checkout: pip install -e '.[{extra}]')"


def need(extra: str, purpose: str) -> None:
    """Refuse to continue without the modules of an extra.

    Parameters
    ----------
    purpose : str
        The feature that needs it; subject of the message.

    Raises
    ------
    UserError
        With the missing modules and the install command.
    """
    if absent := missing(extra):
        verb = "is" if len(absent) == 1 else "are"
        raise UserError(
            f"{purpose} needs {' and '.join(absent)}, which {verb} not installed:"
            f" {how_to_install(extra)}."
        )
