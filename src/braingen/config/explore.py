"""Settings of the explorer in the browser."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from braingen.config.values import NotNegative, Positive, Section


class ExploreConfig(Section):
    """The explorer of trained decoders in the browser (docs/explorer.md)."""

    runs: tuple[str, ...] = ()
    """Run folder to explore, and a second one to compare with; none: the shipped decoder of
    `braingen quickstart`.
    """
    host: str = "127.0.0.1"
    """Address at which the page is served. The default is reached from this machine alone; any
    other address needs the token in the address that is printed.
    """
    port: Annotated[int, Field(ge=0, le=65535)] = 8765
    """Port; 0 for any free one."""
    names: tuple[str, ...] = ()
    """Further names of this machine in the address, such as workstation.example.org. Requests under
    unknown names are refused; this machine's name and addresses as numbers are known.
    """
    open: bool = True
    """Open the page in a browser, where the command runs in a terminal on a desktop; --no-open for
    never.
    """
    preview_steps: NotNegative = 0
    """Denoising steps of an image at first; 0 for the run's own, at most 8 on a CPU. The page says
    how many there were.
    """
    candidates: Annotated[Positive, Field(ge=2, le=16)] = 4
    """Images from different noise, whose spread is shown."""
