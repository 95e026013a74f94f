"""One file per command: its help, the settings it reads, and the call that does the work."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
import pkgutil

from braingen.commands.base import GROUPS, Command


@lru_cache
def all_commands() -> dict[str, Command]:
    """Every command by its name, in the order of the help: each module of this package that has a
    ``COMMAND``.
    """
    modules = [
        import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
    ]
    commands = [module.COMMAND for module in modules if hasattr(module, "COMMAND")]
    return {
        each.name: each
        for each in sorted(commands, key=lambda each: (list(GROUPS).index(each.group), each.place))
    }
