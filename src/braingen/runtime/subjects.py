"""Apply a function to every subject of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from braingen.config import Config
from braingen.runtime.console import console
from braingen.runtime.paths import subject_configs


def each_subject(config: Config, work: Callable[[Config], Path]) -> Path:
    """Call a function for every subject's configuration.

    Returns
    -------
    Path
        Return value for a single subject, else the run folder.
    """
    configs = subject_configs(config)
    if len(configs) == 1:
        return work(configs[0])
    terminal = console()
    for one in configs:
        path = work(one)
        terminal.print(f"Subject {one.data.subjects[0]}: {path}", soft_wrap=True, markup=False)
    return config.run.folder
