"""A process that runs a `braingen` command and kills itself with SIGKILL (or another signal) at a
chosen moment of its work.

Moments are counted where a kill could do harm: before and after every rename that puts a result in
its place, at every optimisation step and at every call of the U-Net. So a test needs no luck to hit
the middle of something, and hits the same middle every time.
"""

from __future__ import annotations

import os
from pathlib import Path
import signal
from typing import Any

from unit.forking import server

NO_RESULTS = {"provenance.json", "timings.json", "config.yaml"}
"""Written anew by every start; a kill there would keep a test from getting anywhere."""


def _work(
    words: list[str], kill_at: int, save_seconds: float, by: signal.Signals, only: str
) -> None:
    from braingen.cli import main
    from braingen.generation import sampling as sample
    from braingen.training import checkpoints, diffusion_task
    from braingen.training import encoder as train

    passed = 0

    def moment() -> None:
        nonlocal passed
        passed += 1
        if passed == kill_at:
            os.kill(os.getpid(), by)

    def counted(module: Any, name: str, after: bool = False) -> None:
        if only and name != only:
            return
        original = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            counts = not (name == "replace" and Path(args[1]).name in NO_RESULTS)
            if counts:
                moment()
            result = original(*args, **kwargs)
            if counts and after:
                moment()
            return result

        setattr(module, name, wrapped)

    counted(os, "replace", after=True)
    counted(train, "step")
    counted(diffusion_task, "step")
    counted(sample, "predict")
    train.SAVE_SECONDS = diffusion_task.SAVE_SECONDS = save_seconds
    checkpoints.LEAST_PAUSE = 0
    raise SystemExit(main(words))


def run(
    words: list[str],
    kill_at: int = 0,
    save_seconds: float = 0.0,
    by: signal.Signals = signal.SIGKILL,
    only: str = "",
) -> int:
    """Run a command in a process of its own.

    Parameters
    ----------
    words : list[str]
        Of the command line, after `braingen`.
    kill_at : int, optional
        Number of the moment at which it dies, counted from 1; 0 for never.
    save_seconds : float, optional
        How often training saves what it takes to continue; 0 after every epoch.
    by : signal.Signals, optional
        The signal.
    only : str, optional
        Count these moments only, for instance 'step'.

    Returns
    -------
    int
        Exit code : -9 where it was killed.
    """
    process = server().Process(target=_work, args=(words, kill_at, save_seconds, by, only))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode
