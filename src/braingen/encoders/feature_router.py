"""Routing of units to experts: by learned affinities (static), or by activation (published).

B batch, P parent experts, F experts a parent splits into, E = P F experts of the level, U units of
a parent, K input units of an expert.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from braingen.runtime.errors import UserError
from braingen.types import UnitRouting

TokenOrder = Literal["index", "gpu", "value", "native"]
HYSTERESIS = 0.1
"""Smallest gain in logits before a unit moves to another expert (initial spread: 1)."""


class RoutedUnits(NamedTuple):
    """Inputs of the experts of a level."""

    x_EBK: Tensor
    """Chosen units times their weights."""
    routing: tuple[UnitRouting, ...]
    """One per parent."""
    balance: Tensor
    """Load-balancing loss of the level, scalar."""


def expert_width(units: int, experts: int, capacity: float) -> int:
    """K, number of input units of an expert (published: ``int(units // experts * capacity)``).

    Raises
    ------
    UserError
        When that is below 1 or above the number of units.
    """
    width = int(units // experts * capacity)
    if not 1 <= width <= units:
        raise UserError(
            f"{units} units cannot be split among {experts} experts with capacity {capacity}:"
            f" each would get {width}, allowed are 1 to {units}. Choose a larger hidden_dim, fewer"
            " experts or another capacity factor."
        )
    return width


def balance_loss(probabilities_BEU: Tensor) -> Tensor:
    """Imbalance of the routing.

    Mean over experts of (mean over trials and units of the soft probability - 1/E)^2. With several
    parents (P x B x E x U), the mean over parents.

    MoRE-Brain paper eq. 9 with soft probabilities, which have a gradient (docs/deviations.md).
    """
    share_E = probabilities_BEU.float().mean(dim=(-3, -1))
    return ((share_E - 1 / share_E.shape[-1]) ** 2).mean()


def balanced_split(affinity_PFU: Tensor, capacity: float = 1.0) -> Tensor:
    """Split the units of every parent evenly among its experts, by highest affinity.

    With two experts the units are sorted by the difference of affinities and split in the middle,
    which maximises the total affinity. More experts are split recursively. All steps are stable
    sorts of fixed shape, so that results agree on every device and torch.compile applies.
    Permuting the units permutes the result (without ties).

    Parameters
    ----------
    affinity_PFU : Tensor
        Log-probabilities up to a constant per unit.
    capacity : float, optional
        1 gives every unit to exactly one expert when F divides U; above, experts also get the most
        probable units of others; below, only their own most probable units.

    Returns
    -------
    mask_PFU : Tensor
        Bool, True if unit u is an input of expert f; K per expert.
    """
    _, experts, units = affinity_PFU.shape
    share = units // experts
    mask_PFU = torch.zeros_like(affinity_PFU, dtype=torch.bool)

    def halve(low: int, high: int, index_PN: Tensor) -> None:
        if high - low == 1:
            mask_PFU[:, low].scatter_(1, index_PN, True)
            return
        middle = (low + high) // 2
        left_PU, right_PU = (
            affinity_PFU[:, a:b].amax(dim=1) for a, b in ((low, middle), (middle, high))
        )
        margin_PN = (left_PU - right_PU).gather(1, index_PN)
        order_PN = index_PN.gather(1, margin_PN.sort(dim=1, descending=True, stable=True).indices)
        to_left, to_right = (middle - low) * share, (high - middle) * share
        halve(low, middle, order_PN[:, :to_left].sort(dim=1).values)
        halve(middle, high, order_PN[:, order_PN.shape[1] - to_right :].sort(dim=1).values)

    halve(
        0, experts, torch.arange(units, device=affinity_PFU.device).expand(len(affinity_PFU), units)
    )
    if capacity == 1:
        return mask_PFU
    width = expert_width(units, experts, capacity)
    preference_PFU = (
        affinity_PFU.softmax(dim=1) + 2 * mask_PFU
    )  # an expert's own units come first, so that none is left out
    top_PFK = preference_PFU.sort(dim=2, descending=True, stable=True).indices[..., :width]
    return torch.zeros_like(mask_PFU).scatter_(2, top_PFK, True)


class StaticRouter(nn.Module):
    """Static routing by learned affinities: the inputs of an expert are the same in every trial.

    A selected unit is multiplied by its probability times F, so that gradients reach the
    affinities. A unit keeps its input column while it stays with an expert: incoming units take the
    columns of outgoing ones, so that all other columns keep their meaning. The selection is updated
    at every training step and is part of the saved state. A unit moves only for a gain above
    :data:`HYSTERESIS`, so that units near the border do not oscillate.

    Parameters
    ----------
    parents, units, experts : int
        P, U, F.
    capacity : float, optional
        See :func:`balanced_split`.
    activation_term : bool, optional
        Add a learned weight per expert times the unit's activation to the logits of the probability
        that scales the value.
    """

    chosen_PFK: Tensor

    def __init__(
        self,
        parents: int,
        units: int,
        experts: int,
        capacity: float = 1.0,
        activation_term: bool = False,
    ) -> None:
        super().__init__()
        self.capacity = capacity
        self.width = expert_width(units, experts, capacity)
        self.affinity = nn.Parameter(torch.randn(parents, experts, units))
        self.activation_weight = (
            nn.Parameter(torch.zeros(parents, experts)) if activation_term else None
        )
        if self.affinity.is_meta:  # counting parameters: nothing to sort
            chosen_PFK = torch.zeros(parents, experts, self.width, dtype=torch.int64, device="meta")
        else:
            chosen_PFK = self._indices(balanced_split(self.affinity.detach(), capacity))
        self.register_buffer("chosen_PFK", chosen_PFK)

    def _indices(self, mask_PFU: Tensor) -> Tensor:
        """Positions of the K true entries, ascending."""
        return (~mask_PFU).sort(dim=2, stable=True).indices[..., : self.width]

    @torch.no_grad()
    def refresh(self) -> None:
        """Update the selection by the current affinities; units that stay keep their columns."""
        present_PFU = torch.zeros_like(self.affinity).scatter(2, self.chosen_PFK, HYSTERESIS)
        mask_PFU = balanced_split(self.affinity.detach() + present_PFU, self.capacity)
        stays_PFK = mask_PFU.gather(2, self.chosen_PFK)
        comes_PFU = mask_PFU.scatter(2, self.chosen_PFK, False)
        places_PFK = stays_PFK.sort(dim=2, stable=True).indices  # places that are given up, first
        units_PFK = self._indices(comes_PFU)  # units that come, first
        is_new_PFK = torch.arange(self.width, device=mask_PFU.device) < (~stays_PFK).sum(
            dim=2, keepdim=True
        )
        units_PFK = torch.where(is_new_PFK, units_PFK, self.chosen_PFK.gather(2, places_PFK))
        self.chosen_PFK.scatter_(2, places_PFK, units_PFK)

    def forward(self, x_PBU: Tensor, noise_PBUF: Tensor | None = None) -> RoutedUnits:
        """Route units to experts; noise is not used."""
        if self.training and self.affinity.requires_grad:  # a frozen router keeps its selection
            self.refresh()
        chosen_PFK = (
            self.chosen_PFK.clone()
        )  # a later step may refresh before this one's backward pass
        parents, batch, units = x_PBU.shape
        experts = self.affinity.shape[1]
        logits_PFBU = self.affinity[:, :, None]
        if self.activation_weight is not None:
            logits_PFBU = logits_PFBU + self.activation_weight[:, :, None, None] * x_PBU[:, None]
        probability_PFBU = logits_PFBU.float().softmax(
            dim=1
        )  # second B is 1 without an activation term
        index_PFBK = chosen_PFK[:, :, None].expand(-1, -1, probability_PFBU.shape[2], -1)
        gain_PFBK = probability_PFBU.gather(3, index_PFBK).mul(experts).to(x_PBU.dtype)
        columns_J = (
            chosen_PFK + units * torch.arange(parents, device=x_PBU.device)[:, None, None]
        ).flatten()
        picked_BJ = x_PBU.transpose(0, 1).reshape(batch, parents * units).index_select(1, columns_J)
        picked_EBK = picked_BJ.view(batch, parents * experts, self.width).transpose(0, 1)
        routing = tuple(
            UnitRouting(probability.transpose(0, 1), index.transpose(0, 1), gain.transpose(0, 1))
            for probability, index, gain in zip(probability_PFBU, index_PFBK, gain_PFBK)
        )
        balance = balance_loss(probability_PFBU.transpose(1, 2))
        return RoutedUnits(picked_EBK * gain_PFBK.flatten(0, 1), routing, balance)


def most_probable(probability_PBFU: Tensor, width: int, order: TokenOrder) -> Tensor:
    """Most probable units of every expert (expert choice, published router).

    The rank of a unit is its position in the input of the expert, so the order matters; the
    published code leaves it to the library (docs/deviations.md, row 1.3). Ties select the first
    units, as the GPU kernel does.

    Parameters
    ----------
    probability_PBFU : Tensor
        B x F x U per parent.
    width : int
        K.
    order : TokenOrder
        'index', ascending; 'gpu', ascending, but those equal to the K-th largest last (for
        checkpoints of the published implementation, which were trained on GPUs); 'value',
        descending; 'native', the order of top-k on this machine.

    Returns
    -------
    Tensor
        index_PBFK.
    """
    if order == "native":
        return probability_PBFU.topk(width, dim=-1, sorted=False).indices
    values, indices = probability_PBFU.sort(dim=-1, descending=True, stable=True)
    if order == "value":
        return indices[..., :width]
    ascending = indices[..., :width].sort(dim=-1).values
    if order == "index":
        return ascending
    is_last = probability_PBFU.gather(-1, ascending) == values[..., width - 1 : width]
    return ascending.gather(-1, is_last.to(torch.uint8).sort(dim=-1, stable=True).indices)


class ExpertChoiceRouter(nn.Module):
    """The published expert-choice router: per trial, by activation (``routing: expert_choice``).

    All units share the weights.

    Parameters
    ----------
    parents, experts : int
        P, F.
    width : int
        K.
    token_width : int, optional
        Numbers per unit N (1 in every encoder).
    token_order : TokenOrder, optional
        See :func:`most_probable`.
    noise : float, optional
        Standard deviation of what is added to the probabilities in training (published: 0.001).
    """

    def __init__(
        self,
        parents: int,
        experts: int,
        width: int,
        token_width: int = 1,
        token_order: TokenOrder = "index",
        noise: float = 0.001,
    ) -> None:
        super().__init__()
        if token_order not in get_args(TokenOrder):
            raise UserError(
                f"token_order={token_order} is not possible: allowed are"
                f" {', '.join(get_args(TokenOrder))}."
            )
        self.width, self.token_order, self.noise = width, token_order, noise
        self.weight = nn.Parameter(torch.empty(parents, experts, token_width).uniform_(-1e-4, 1e-4))

    def route(
        self, x_PBNU: Tensor, noise_PBUF: Tensor | None = None
    ) -> tuple[Tensor, tuple[UnitRouting, ...]]:
        """Choose units that are N numbers wide.

        Parameters
        ----------
        noise_PBUF : Tensor | None, optional
            Standard normal draws that are scaled and added to the probabilities; without them there
            is no noise.

        Returns
        -------
        picked_PBFNK
            Chosen units, not yet times their weights.
        routing
            One per parent.
        """
        probability_PBFU = torch.einsum("pbnu,pfn->pbfu", x_PBNU, self.weight).softmax(dim=2)
        noisy_PBFU = (
            probability_PBFU
            if noise_PBUF is None
            else probability_PBFU + self.noise * noise_PBUF.mT
        )
        index_PBFK = most_probable(noisy_PBFU.detach(), self.width, self.token_order)
        weight_PBFK = noisy_PBFU.gather(-1, index_PBFK)
        experts, token_width = self.weight.shape[1:]
        units_PBFNU = x_PBNU[:, :, None].expand(-1, -1, experts, -1, -1)
        picked_PBFNK = units_PBFNU.gather(
            -1, index_PBFK[:, :, :, None].expand(-1, -1, -1, token_width, -1)
        )
        routing = tuple(
            UnitRouting(*record) for record in zip(probability_PBFU, index_PBFK, weight_PBFK)
        )
        return picked_PBFNK, routing

    def forward(self, x_PBU: Tensor, noise_PBUF: Tensor | None = None) -> RoutedUnits:
        """Route units to experts; in training, noise is sampled by default."""
        if self.training and noise_PBUF is None:
            parents, batch, units = x_PBU.shape
            noise_PBUF = torch.randn(
                parents, batch, units, self.weight.shape[1], device=x_PBU.device, dtype=x_PBU.dtype
            )
        picked_PBFNK, routing = self.route(x_PBU[:, :, None], noise_PBUF)
        balance = torch.stack([balance_loss(record.probabilities_BEH) for record in routing]).mean()
        weight_PBFK = torch.stack([record.weights_BEK for record in routing])
        return RoutedUnits(
            (picked_PBFNK[:, :, :, 0] * weight_PBFK).transpose(1, 2).flatten(0, 1), routing, balance
        )


Router = StaticRouter | ExpertChoiceRouter
Routing = Literal["static", "expert_choice"]


def make_router(
    kind: Routing,
    parents: int,
    units: int,
    experts: int,
    capacity: float,
    activation_term: bool,
    token_order: TokenOrder,
) -> Router:
    """Build the router of a level.

    Raises
    ------
    UserError
        For an unknown kind.
    """
    if kind == "static":
        return StaticRouter(parents, units, experts, capacity, activation_term)
    if kind == "expert_choice":
        return ExpertChoiceRouter(
            parents, experts, expert_width(units, experts, capacity), token_order=token_order
        )
    raise UserError(
        f"routing={kind} is not possible: take routing=static or routing=expert_choice."
    )
