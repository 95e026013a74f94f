"""Work shared by several processes that are told of each other as ``accelerate launch`` does it,
without its seconds of start-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import os
import socket
from typing import Any

import torch
from unit.forking import server


def shared(
    work: Callable[..., int], processes: int, *arguments: Any, codes: Sequence[int] | None = None
) -> None:
    """Run something in several processes at once.

    Parameters
    ----------
    work : Callable[..., int]
        Importable; its return value is the exit code.
    codes : Sequence[int] | None, optional
        Exit codes that are expected; 0 where not given.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = server()
    threads = torch.get_num_threads()
    started = [
        context.Process(target=_one_of, args=(rank, processes, port, threads, work, arguments))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == list(codes or [0] * processes)


def _one_of(
    rank: int,
    world: int,
    port: int,
    threads: int,
    work: Callable[..., int],
    arguments: Sequence[Any],
) -> None:
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(threads)
    raise SystemExit(work(*arguments))
