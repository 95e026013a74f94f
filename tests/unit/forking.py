"""Processes that do not start anew: they are forked from a server that has the libraries loaded but
has computed nothing, which saves the seconds in which an interpreter imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import json
import multiprocessing
import os
from pathlib import Path
import runpy
import socket
import subprocess
import sys
import tempfile
import threading

from braingen.runtime.parallel import context_of

PRELOADED = [
    "braingen.training.encoder",
    "braingen.training.diffusion",
    "braingen.generation.reconstruct",
    "braingen.generation.refine",
    "braingen.evaluation.evaluate",
    "braingen.report.write",
    "braingen.experiments.adaptation_curve",
    "braingen.simulation.backbones.build",
    "braingen.demo.flow",
]


def server() -> multiprocessing.context.BaseContext:
    """The server; all tests of a process share the one that is started first."""
    return context_of(PRELOADED)


CLIENT = """#!{python} -IS
import json, os, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect({address!r})
here = [f"/proc/{{os.getpid()}}/fd/", sys.argv[1:], os.getcwd(), dict(os.environ)]
asked.sendall(json.dumps([*here, sys.argv[0]]).encode() + b"\\n")
sys.exit(int(asked.makefile().readline()))
"""


def _be_python(
    outputs: str,
    words: list[str],
    folder: str,
    environment: dict[str, str],
    executable: str = "",
    package: str = "",
) -> None:
    """What `python` does with its words, in a folder and an environment.

    Parameters
    ----------
    outputs : str
        Path of the outputs 1 and 2, without their number.
    executable : str, optional
        What starts further ones.
    package : str, optional
        Folder from which braingen is imported anew.
    """
    for number in (1, 2):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        os.dup2(os.open(f"{outputs}{number}", flags), number)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2)
    )
    sys.executable = executable or sys.executable
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    if package:
        for name in [name for name in sys.modules if name.partition(".")[0] == "braingen"]:
            del sys.modules[name]
        sys.path[:0] = [package]
    words = words[words[0] == "-u" :]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path[:0] = [str(Path(words[0]).resolve().parent)]
        runpy.run_path(words[0], run_name="__main__")


def _answer(asked: socket.socket) -> None:
    with asked:
        words = json.loads(asked.makefile(encoding="utf-8").readline())
        process = server().Process(target=_be_python, args=words)
        process.start()
        process.join()
        asked.sendall(b"%d\n" % (process.exitcode or 0))


def _serve(listening: socket.socket) -> None:
    while True:
        try:
            asked, _ = listening.accept()
        except OSError:  # closed: nothing is typed any more
            return
        threading.Thread(target=_answer, args=(asked,), daemon=True).start()


@contextmanager
def forked_python(folder: Path) -> Iterator[Path]:
    """Put `python` and `python3` into a folder, for what is started within the block."""
    folder.mkdir(parents=True, exist_ok=True)
    # a socket's path may be of a hundred characters at most
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listening:
        address = str(Path(short) / "asked")
        listening.bind(address)
        listening.listen()
        thread = threading.Thread(target=_serve, args=(listening,), daemon=True)
        thread.start()
        for name in ("python", "python3"):
            (folder / name).write_text(CLIENT.format(python=sys.executable, address=address))
            (folder / name).chmod(0o755)
        try:
            yield folder
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def run_with_package(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the package that lies in a folder, which is also where it runs and the home."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as kept:
        words = ["-c", code]
        given = (f"{kept}/", words, str(folder), environment, "", str(folder))
        process = server().Process(target=_be_python, args=given)
        process.start()
        process.join()
        assert process.exitcode is not None
        out, error = (Path(kept, str(number)).read_text(encoding="utf-8") for number in (1, 2))
    return subprocess.CompletedProcess(words, process.exitcode, out, error)
