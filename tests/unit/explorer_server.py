"""A running explorer, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import http.client
import json
import threading
import time
from typing import Any, NamedTuple

import uvicorn

from braingen.explorer.access import Access
from braingen.explorer.app import application
from braingen.explorer.serve import bound
from braingen.explorer.session import Session


class Reply(NamedTuple):
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Served(NamedTuple):
    """Where the explorer is."""

    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> Reply:
        """One request; headers are written with underscores for dashes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            named.setdefault("Content-Type", "application/json")
        connection.request(method or ("GET" if body is None else "POST"), path, data, named)
        answer = connection.getresponse()
        reply = Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        connection.close()
        return reply


@contextmanager
def served(session: Session, access: Access | None = None) -> Iterator[Served]:
    """Serve a session on a free port of this machine until the end of the block."""
    listener = bound("127.0.0.1", 0)
    app = application(session, access or Access.of("127.0.0.1"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < until and thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    try:
        yield Served(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
