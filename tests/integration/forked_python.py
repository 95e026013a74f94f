"""A `python` for shells that does not start anew: what it is to run runs in a process forked from a
server that has the libraries loaded already.

The process has the words, the folder, the environment and the outputs of the one that was typed,
and gives its exit code. What it saves are the seconds in which an interpreter imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
import runpy
import socket
import sys
import tempfile
import threading

from integration.processes import server

CLIENT = """#!{python} -IS
import json, os, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect({address!r})
here = [os.getpid(), sys.argv[1:], os.getcwd(), dict(os.environ)]
asked.sendall(json.dumps(here).encode() + b"\\n")
sys.exit(int(asked.makefile().readline()))
"""


def _be_python(client: int, words: list[str], folder: str, environment: dict[str, str]) -> None:
    for number in (1, 2):
        os.dup2(os.open(f"/proc/{client}/fd/{number}", os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2)
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
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


def _serve(listening: socket.socket) -> None:
    context = server()
    while True:
        try:
            asked, _ = listening.accept()
        except OSError:  # closed: nothing is typed any more
            return
        with asked:
            process = context.Process(
                target=_be_python, args=json.loads(asked.makefile().readline())
            )
            process.start()
            process.join()
            asked.sendall(b"%d\n" % (process.exitcode or 0))


@contextmanager
def forked_python(folder: Path) -> Iterator[Path]:
    """Put `python` and `python3` into a folder for the commands typed within the block, one at a
    time.
    """
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
