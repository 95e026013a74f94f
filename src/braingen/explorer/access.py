"""Who may read the page: this machine, or whoever has the token.

A page on the internet can make a visitor's browser send requests to this machine, under a name
that it points here (DNS rebinding) or from its own origin. Both are refused by the headers that a
browser always sends.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

LOCAL = "localhost"


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == LOCAL:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_names() -> frozenset[str]:
    """Names of this machine, lower case."""
    name = socket.gethostname().lower()
    return frozenset({LOCAL, name, f"{name}.local"})


class Access(NamedTuple):
    """What a request has to bring."""

    loopback: bool
    """Whether the page is served on a loopback address."""
    token: str
    """Random text that has to be known; empty on a loopback address."""
    names: frozenset[str]
    """Names under which this machine may be addressed, lower case."""

    @classmethod
    def of(cls, host: str, names: tuple[str, ...] = ()) -> Access:
        """Access to a page at an address.

        Parameters
        ----------
        names : tuple[str, ...], optional
            Further names of this machine.
        """
        loopback = is_loopback(host)
        known = frozenset({LOCAL}) if loopback else own_names()
        return cls(
            loopback,
            "" if loopback else secrets.token_urlsafe(32),
            known | {name.lower() for name in names},
        )

    def allows_host(self, header: str) -> bool:
        """Whether a Host header names this machine.

        A rebound name is never a number, so any address as a number is allowed where the page is
        not on a loopback address.
        """
        try:
            host = (urlsplit(f"//{header}").hostname or "").lower()
        except ValueError:
            return False
        if host in self.names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not self.loopback

    def allows_origin(self, origin: str | None, host: str) -> bool:
        """Whether a request comes from the page itself, and not from another site.

        Parameters
        ----------
        origin : str | None
            The Origin header; None where the browser sends none, as for opening a page.
        host : str
            The Host header.
        """
        return origin is None or urlsplit(origin).netloc.lower() == host.lower()

    def allows_token(self, given: str | None) -> bool:
        """Whether the token is right; compared in constant time."""
        if not self.token:
            return True
        return secrets.compare_digest((given or "").encode(), self.token.encode())
