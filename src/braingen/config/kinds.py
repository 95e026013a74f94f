"""The kinds of routers, one line each.

Settings, help, the summary and the tests over all kinds read these tables: a new kind is one file
with its class and one line here (docs/extending.md). Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple


class RouterKind(NamedTuple):
    """A kind of time or space router."""

    where: str
    """Its class, ``module:Class``; empty for none."""
    learned: bool = True
    """Whether it has weights of its own."""
    latents: Literal["never", "optional", "always"] = "never"
    """Whether it reads the noisy latents: never, optional (where ``router.time_context`` is on), or
    always.
    """
    options: Mapping[str, Any] = MappingProxyType({})
    """Further arguments of the class's ``build``."""


_TIME, _SPACE = "braingen.routing.time", "braingen.routing.space"
TIME_ROUTERS: dict[str, RouterKind] = {
    "off": RouterKind("", learned=False),
    "fixed": RouterKind(f"{_TIME}.fixed:FixedTimeRouter", learned=False),
    "mlp": RouterKind(f"{_TIME}.mlp:MLPTimeRouter"),
    "attention": RouterKind(f"{_TIME}.attention:AttentionTimeRouter", latents="optional"),
}
"""By the name that stands in ``router.time``; off mixes the levels evenly."""
SPACE_ROUTERS: dict[str, RouterKind] = {
    "off": RouterKind(f"{_SPACE}.mean:MeanSpaceRouter", learned=False),
    "gate_softmax": RouterKind(f"{_SPACE}.gate:GateSpaceRouter", options={"gate": "softmax"}),
    "gate_sigmoid": RouterKind(f"{_SPACE}.gate:GateSpaceRouter", options={"gate": "sigmoid"}),
    "gate_gumbel": RouterKind(f"{_SPACE}.gate:GateSpaceRouter", options={"gate": "gumbel"}),
    "weight": RouterKind(f"{_SPACE}.weight:WeightSpaceRouter"),
    "self": RouterKind(f"{_SPACE}.self_attention:SelfAttentionSpaceRouter"),
    "cross": RouterKind(f"{_SPACE}.cross_attention:CrossAttentionSpaceRouter", latents="always"),
    "mix": RouterKind(f"{_SPACE}.mixing:MixingSpaceRouter", latents="always"),
}
"""By the name that stands in ``router.space``; off is the mean over the experts of a level."""


def without_weights(table: Mapping[str, RouterKind]) -> list[str]:
    """The kinds that have no weights of their own."""
    return [name for name, kind in table.items() if not kind.learned]


def reading_latents(table: Mapping[str, RouterKind], when: str) -> list[str]:
    """The kinds that read the noisy latents, optional or always."""
    return [name for name, kind in table.items() if kind.latents == when]
