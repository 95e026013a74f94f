"""`braingen explore`: load the runs, serve the page, open the browser."""

from __future__ import annotations

from contextlib import ExitStack
import os
from pathlib import Path
import socket
import threading
import webbrowser

import uvicorn

from braingen.config import Config
from braingen.demo.quickstart import interactive_desktop
from braingen.explorer.access import Access
from braingen.explorer.app import application
from braingen.explorer.explored_run import ExploredRun
from braingen.explorer.session import Session
from braingen.explorer.shipped import shipped_run
from braingen.explorer.trained import trained_run
from braingen.generation.lora import merged_lora
from braingen.runtime.console import console as new_console
from braingen.runtime.errors import UserError
from braingen.runtime.preemption import Stopped

MOST_RUNS = 2


def explore(config: Config) -> None:
    """Serve the explorer until it is stopped with Ctrl-C.

    Raises
    ------
    UserError
        When a run cannot be loaded, more than two are named, or the address is not free.
    """
    console, settings = new_console(), config.explore
    if len(settings.runs) > MOST_RUNS:
        raise UserError(
            f"{len(settings.runs)} runs were given; the explorer compares two at most:"
            " braingen explore RUN RUN."
        )
    with ExitStack() as stack:
        listener = stack.enter_context(bound(settings.host, settings.port))  # before slow loading
        console.print("Loading the decoder (seconds).")
        session = Session(load_runs(config), settings.candidates)
        for run in session.runs:
            stack.enter_context(merged_lora(run.decoder.unet))
        access = Access.of(settings.host, settings.names)
        address = address_of(settings.host, listener.getsockname()[1], access)
        console.print("The explorer is at")
        print(address, flush=True)
        if not access.loopback:
            console.print(
                "Whoever has this address can use it; it is not encrypted. An ssh tunnel to"
                " 127.0.0.1 is safer."
            )
        console.print("Ctrl-C stops it.")
        if settings.open and interactive_desktop():
            threading.Timer(0.5, webbrowser.open, (address,)).start()
        server = uvicorn.Server(
            uvicorn.Config(application(session, access), log_level="warning", access_log=False)
        )
        try:
            server.run(sockets=[listener])
        except (KeyboardInterrupt, Stopped):
            console.print("Stopped.")


def load_runs(config: Config) -> list[ExploredRun]:
    """The runs that are named, or the shipped decoder."""
    steps = config.explore.preview_steps
    if not config.explore.runs:
        return [shipped_run(config, steps)]
    folders = [Path(name).expanduser() for name in config.explore.runs]
    if len(folders) == MOST_RUNS and folders[0].resolve() == folders[1].resolve():
        raise UserError(f"{folders[0]} was given twice: name two different runs, or one.")
    return [trained_run(folder, config, steps) for folder in folders]


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises
    ------
    UserError
        When the address is not one of this machine, or is in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserError(
            f"The page cannot be served at {host}, port {port} ({error.strerror or error}): choose"
            " another port with --port, 0 for any free one, or the address 127.0.0.1 with --host."
        ) from error
    return listener


def address_of(host: str, port: int, access: Access) -> str:
    """What is typed into the browser."""
    named = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    named = f"[{named}]" if ":" in named else named
    return f"http://{named}:{port}/" + (f"?token={access.token}" if access.token else "")
