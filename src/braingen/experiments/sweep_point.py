"""One combination of a sweep: its commands, one after the other, in a folder of their own.

    point.json      the settings that are swept, and the commands
    settings.yaml   all settings, for --config
    log.txt         what the commands printed
    result.json     how it ended

``python -m braingen.experiments.sweep_point FOLDER`` runs a combination. Importing this loads no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

from braingen.config.overrides import ENVIRONMENT
from braingen.runtime.files import write_json
from braingen.runtime.preemption import REQUEUE, stoppable
from braingen.runtime.text_files import read_json
from braingen.runtime.untrusted import one_line

POINT, SETTINGS, LOG, RESULT = "point.json", "settings.yaml", "log.txt", "result.json"
FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
_INTERRUPTED = (REQUEUE, 130, -15, -2)
"""Exit codes of a command that continues when it is started again."""
_running: list[subprocess.Popen[bytes]] = []
"""The command that this process has started."""


class PointResult(NamedTuple):
    """How a combination ended."""

    state: str
    """finished, failed or stopped."""
    seconds: float
    """Of all starts together."""
    command: str = ""
    """The one that failed."""
    message: str = ""
    """Its last line."""


def result_of(folder: Path) -> PointResult | None:
    """How a combination ended; None where it has not."""
    path = folder / RESULT
    return PointResult(**read_json(path)) if path.is_file() else None


def run_point(folder: Path, environment: Mapping[str, str] | None = None) -> PointResult:
    """Run the commands of a combination; each continues where it was interrupted.

    Parameters
    ----------
    environment : Mapping[str, str] | None, optional
        Variables besides those of this process.
    """
    point: dict[str, Any] = read_json(folder / POINT)
    before = result_of(folder)
    variables = {**os.environ, **(environment or {})}
    # settings of the environment are in settings.yaml; over it they would undo what is swept
    variables.pop(ENVIRONMENT, None)
    variables.setdefault("WANDB_RUN_GROUP", str(point.get("group", "")))
    started, seconds = time.monotonic(), 0.0 if before is None else before.seconds
    result = PointResult(FINISHED, 0.0)
    (folder / RESULT).unlink(missing_ok=True)
    with open(folder / LOG, "ab") as log:
        for command in point["commands"]:
            start = log.tell()
            words = [*shlex.split(command), "--config", str(folder / SETTINGS)]
            process = subprocess.Popen(
                [sys.executable, "-m", "braingen.cli", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=variables,
                preexec_fn=_ignore_submitit,
            )
            _running.append(process)
            try:
                code = process.wait()
            except BaseException:
                process.terminate()  # as a scheduler does: the work is saved
                process.wait()
                took = round(seconds + time.monotonic() - started, 1)
                write_json(folder / RESULT, PointResult(STOPPED, took, command)._asdict())
                raise
            finally:
                _running.remove(process)
            if code:
                state = STOPPED if code in _INTERRUPTED else FAILED
                result = PointResult(state, 0.0, command, _last_line(folder / LOG, start))
                break
    result = result._replace(seconds=round(seconds + time.monotonic() - started, 1))
    write_json(folder / RESULT, result._asdict())
    return result


def _ignore_submitit() -> None:
    """Leave submitit's signal before the time limit to the job, which then stops the command."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _last_line(log: Path, start: int) -> str:
    """The last line that a command printed, the one that names the error if there is one."""
    with open(log, "rb") as handle:
        handle.seek(start)
        text = handle.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("braingen: ")]
    return one_line((named or lines or ["it printed nothing"])[-1], 500)


class SweepJob:
    """A combination as a job of submitit, which is submitted again at its time limit."""

    def __call__(self, folder: str) -> str:
        """Run the combination in a folder; returns how it ended."""
        return run_point(Path(folder)).state

    def checkpoint(self, folder: str) -> Any:
        """What submitit submits when the job is to continue."""
        from submitit.helpers import DelayedSubmission

        for process in _running:
            process.terminate()  # the work is saved
            process.wait()
        return DelayedSubmission(self, folder)


def main() -> int:
    """Run the combination that is named on the command line."""
    with stoppable():
        return 0 if run_point(Path(sys.argv[1])).state == FINISHED else 1


if __name__ == "__main__":
    sys.exit(main())
