"""How the experts of one level are mixed.

B batch, E experts of the level, T tokens, D CLIP width, C latent channels, P cells of the latent
grid

Every router is made so that at the start it gives the mean over the experts, exactly the unrouted
level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from braingen.routing.time_router import latent_grid, one_of
from braingen.runtime.errors import UserError


class SpaceRouting(NamedTuple):
    """One level after its experts were mixed."""

    embedding_BTD: Tensor
    """The level's embedding."""
    weights_BET: Tensor
    """Use of every expert: its weight for every token, or (cross-attention) the attention paid to
    its tokens, summing to 1 over E and T.
    """


class SpaceSettings(NamedTuple):
    """What the space router of a level may be built from; each kind takes what it needs."""

    experts: int
    """E."""
    clip_emb_dim: int
    """D."""
    clip_seq_dim: int = 1
    """T."""
    temperature: float = 1.0
    grid: int = 64
    level_output: Literal["mean", "sum"] = "mean"


class SpaceRouter(nn.Module, ABC):
    """Contract of a space router: built from `SpaceSettings`, it mixes the experts of a level.

    A new kind is a subclass with a line in `SPACE_ROUTERS` and its name in ``router.space``
    (config/generation.py).
    """

    reads_experts: ClassVar[bool] = True
    """Whether single experts are needed; else the level's own output does."""
    reads_latents: ClassVar[bool] = False
    """Whether it looks at the noisy latents, on the grid of ``router.space_grid``."""
    use_sums_over_tokens: ClassVar[bool] = False
    """Whether its weights sum to 1 over experts and tokens together; else over the experts of a
    token.
    """

    @abstractmethod
    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix the experts of a level; see `CrossAttentionSpaceRouter.forward`."""


class MeanSpaceRouter(SpaceRouter):
    """No routing: the mean over experts (paper), or their sum (published implementation).

    Parameters
    ----------
    reduce : Literal['mean', 'sum'], optional
        {"mean", "sum"} Which of the two.
    """

    reads_experts = False

    def __init__(self, *, reduce: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        self.reduce = reduce

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix; latents and generator have no influence."""
        number = experts_BETD.shape[1]
        if self.reduce == "mean":
            return SpaceRouting(
                experts_BETD.mean(dim=1), torch.full_like(experts_BETD[..., 0], 1 / number)
            )
        return SpaceRouting(experts_BETD.sum(dim=1), torch.ones_like(experts_BETD[..., 0]))


class GateSpaceRouter(SpaceRouter):
    """Gates from the mean over experts.

    Parameters
    ----------
    num_exp : int
        E.
    clip_emb_dim : int
        D.
    gate : Literal['softmax', 'sigmoid', 'gumbel'], optional
        {"softmax", "sigmoid", "gumbel"} How scores become weights. gumbel: one expert per token, in
        training a Gumbel sample with a straight-through gradient.
    temperature : float
        Scores are divided by it.
    normalize : bool
        Divide sigmoid gates by their sum, so that the level keeps its scale (published: not).
    """

    def __init__(
        self,
        num_exp: int,
        clip_emb_dim: int,
        *,
        gate: Literal["softmax", "sigmoid", "gumbel"] = "softmax",
        temperature: float = 1.0,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if gate not in ("softmax", "sigmoid", "gumbel"):
            raise UserError(f"gate is {gate!r}; allowed are 'softmax', 'sigmoid' and 'gumbel'")
        self.kind = gate
        self.temperature = temperature
        self.normalize = normalize
        self.gate = nn.Linear(clip_emb_dim, num_exp, bias=False)
        nn.init.constant_(self.gate.weight, 1 / num_exp)  # as published: all experts alike

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix; latents have no influence."""
        scores_BTE = self.gate(experts_BETD.mean(dim=1)) / self.temperature
        if self.kind == "softmax":
            weights_BTE = torch.softmax(scores_BTE, dim=-1)
        elif self.kind == "sigmoid":
            weights_BTE = torch.sigmoid(scores_BTE)
            if self.normalize:
                weights_BTE = weights_BTE / weights_BTE.sum(dim=-1, keepdim=True)
        else:
            weights_BTE = one_of(scores_BTE, training=self.training, generator=generator)
        return _weighted(experts_BETD, weights_BTE.transpose(1, 2))


class WeightSpaceRouter(SpaceRouter):
    """One learned weight per expert and token, or a score per expert from its own embedding.

    Parameters
    ----------
    num_exp : int
        E.
    clip_emb_dim : int
        D.
    clip_seq_dim : int
        T.
    start : Literal['mean', 'ones', 'rand', 'query'], optional
        {"mean", "ones", "rand", "query"} mean: free weights that start at 1/E. ones, rand: free
        weights that start at 1 or standard normal (published). query: softmax over experts of one
        linear score of each expert's token (published).
    temperature : float
        Divides the scores of "query".
    """

    def __init__(
        self,
        num_exp: int,
        clip_emb_dim: int,
        clip_seq_dim: int = 1,
        *,
        start: Literal["mean", "ones", "rand", "query"] = "mean",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if start not in ("mean", "ones", "rand", "query"):
            raise UserError(f"start is {start!r}; allowed are 'mean', 'ones', 'rand' and 'query'")
        self.temperature = temperature
        self.router: nn.Parameter | nn.Linear
        if start == "query":
            # without a bias: it would add the same to every expert's score, which softmax takes out
            # again
            self.router = nn.Linear(clip_emb_dim, 1, bias=False)
            nn.init.zeros_(self.router.weight)
        else:
            shape = (num_exp, clip_seq_dim)
            self.router = nn.Parameter(
                {
                    "mean": torch.full(shape, 1 / num_exp),
                    "ones": torch.ones(shape),
                    "rand": torch.randn(shape),
                }[start]
            )

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix; latents and generator have no influence."""
        if isinstance(self.router, nn.Linear):
            weights_BET = torch.softmax(self.router(experts_BETD)[..., 0] / self.temperature, dim=1)
        else:
            weights_BET = self.router[None].expand(experts_BETD.shape[:3])
        return _weighted(experts_BETD, weights_BET)


class SelfAttentionSpaceRouter(SpaceRouter):
    """Experts weighted by how well their key answers the query of the mean over experts.

    Parameters
    ----------
    clip_emb_dim : int
        D.
    temperature : float
        Scores are divided by it (and by sqrt(D)).
    scale_output : bool
        Multiply the weights by E (published option, for levels that are sums).
    """

    def __init__(
        self, clip_emb_dim: int, *, temperature: float = 1.0, scale_output: bool = False
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.scale_output = scale_output
        self.query_linear = nn.Linear(clip_emb_dim, clip_emb_dim)
        # without a bias, for the same reason as above
        self.key_linear = nn.Linear(clip_emb_dim, clip_emb_dim, bias=False)
        nn.init.zeros_(self.query_linear.weight)
        nn.init.zeros_(self.query_linear.bias)

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix; latents and generator have no influence."""
        query_B1TD = self.query_linear(experts_BETD.mean(dim=1, keepdim=True))
        scores_BET = (query_B1TD * self.key_linear(experts_BETD)).sum(dim=-1)
        weights_BET = torch.softmax(
            scores_BET / (experts_BETD.shape[-1] ** 0.5 * self.temperature), dim=1
        )
        if self.scale_output:
            weights_BET = weights_BET * experts_BETD.shape[1]
        return _weighted(experts_BETD, weights_BET)


class CrossAttentionSpaceRouter(SpaceRouter):
    """Cross-attention from the noisy latents to the experts, added to their mean (the paper's
    router).

    The query is the mean over channels of the projected latents, keys and values are projections of
    all experts' tokens; the attended value is added to every token of the mean over experts. Values
    start at zero (published: random), so that the level starts unrouted.

    Parameters
    ----------
    clip_emb_dim : int
        D.
    grid : int
        Side of the grid to which latents are resized (64 published, which fits 512 px only; here
        any size is resized to it).
    temperature : float
        Scores are divided by it (and by sqrt(D)).
    learned_query : bool
        Have a learned latent image to use where no latents are given.
    """

    reads_latents = True
    use_sums_over_tokens = True

    def __init__(
        self,
        clip_emb_dim: int,
        *,
        grid: int = 64,
        temperature: float = 1.0,
        learned_query: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.temperature = temperature
        self.q_proj = nn.Linear(grid**2, clip_emb_dim, bias=False)
        self.k_proj = nn.Linear(clip_emb_dim, clip_emb_dim, bias=False)
        self.v_proj = nn.Linear(clip_emb_dim, clip_emb_dim, bias=False)
        nn.init.zeros_(self.v_proj.weight)
        self.query = nn.Parameter(torch.randn(1, 1, grid**2)) if learned_query else None

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix.

        Parameters
        ----------
        experts_BETD : Tensor
            The experts of the level.
        latents_BCHW : Tensor, optional
            Noisy latents as the U-Net reads them, of any size; may be left out only with a learned
            query.

        Raises
        ------
        UserError
            If there are neither latents nor a learned query.
        """
        B, E, T, _D = experts_BETD.shape
        if latents_BCHW is not None:
            cells_BP = latent_grid(latents_BCHW, self.grid).mean(
                dim=1
            )  # projecting the mean is the mean of the projections
        elif self.query is not None:
            cells_BP = self.query[:, 0].expand(B, -1)
        else:
            raise UserError(
                "cross-attention between latents and experts needs the latents: give them, or set"
                " learned_query"
            )
        query_BD = self.q_proj(cells_BP.to(self.q_proj.weight.dtype))
        all_BND = experts_BETD.flatten(1, 2)
        scores_BN = (self.k_proj(all_BND) @ query_BD[:, :, None])[..., 0] / (
            query_BD.shape[-1] ** 0.5 * self.temperature
        )
        attention_BN = torch.softmax(scores_BN, dim=-1)
        attended_B1D = attention_BN[:, None] @ self.v_proj(all_BND)
        return SpaceRouting(experts_BETD.mean(dim=1) + attended_B1D, attention_BN.view(B, E, T))


class MixingSpaceRouter(SpaceRouter):
    """Cross-attention from the noisy latents to the experts that says whom to listen to, and adds
    nothing of its own.

    Query and keys as in :class:`CrossAttentionSpaceRouter`; values are what the experts say, so the
    level stays a mixture of its experts. A learned gate says how far it leaves their mean: level =
    mean + gate * (attended - mean). It starts at zero, so that the level starts unrouted. (A
    projected value can be any linear map of the embedding, and learns one that fits the pictures it
    is trained on: docs/routing.md has the comparison.)

    Parameters
    ----------
    clip_emb_dim : int
        D.
    grid : int
        Side of the grid to which latents are resized.
    temperature : float
        Scores are divided by it (and by sqrt(D)).
    """

    reads_latents = True

    def __init__(self, clip_emb_dim: int, *, grid: int = 64, temperature: float = 1.0) -> None:
        super().__init__()
        self.grid = grid
        self.temperature = temperature
        self.q_proj = nn.Linear(grid**2, clip_emb_dim, bias=False)
        self.k_proj = nn.Linear(clip_emb_dim, clip_emb_dim, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        experts_BETD: Tensor,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SpaceRouting:
        """Mix.

        Parameters
        ----------
        experts_BETD : Tensor
            The experts of the level.
        latents_BCHW : Tensor
            Noisy latents as the U-Net reads them, of any size.

        Raises
        ------
        UserError
            If there are no latents.
        """
        if latents_BCHW is None:
            raise UserError("attention between latents and experts needs the latents: give them")
        query_BD = self.q_proj(
            latent_grid(latents_BCHW, self.grid).mean(dim=1).to(self.q_proj.weight.dtype)
        )
        keys_BED = self.k_proj(experts_BETD.mean(dim=2))
        scores_BE = (keys_BED @ query_BD[:, :, None])[..., 0] / (
            query_BD.shape[-1] ** 0.5 * self.temperature
        )
        attention_BE = torch.softmax(scores_BE, dim=-1)
        mean_BTD = experts_BETD.mean(dim=1)
        attended_BTD = (experts_BETD * attention_BE[:, :, None, None]).sum(dim=1)
        use_BE = (1 - self.gate) / experts_BETD.shape[1] + self.gate * attention_BE
        return SpaceRouting(
            mean_BTD + self.gate * (attended_BTD - mean_BTD),
            use_BE[:, :, None].expand(experts_BETD.shape[:3]),
        )


def _weighted(experts_BETD: Tensor, weights_BET: Tensor) -> SpaceRouting:
    return SpaceRouting((experts_BETD * weights_BET[..., None]).sum(dim=1), weights_BET)


def _gate(settings: SpaceSettings, gate: Literal["softmax", "sigmoid", "gumbel"]) -> SpaceRouter:
    return GateSpaceRouter(
        settings.experts, settings.clip_emb_dim, gate=gate, temperature=settings.temperature
    )


def _looking(
    settings: SpaceSettings, kind: type[CrossAttentionSpaceRouter] | type[MixingSpaceRouter]
) -> SpaceRouter:
    return kind(settings.clip_emb_dim, grid=settings.grid, temperature=settings.temperature)


SPACE_ROUTERS: dict[str, Callable[[SpaceSettings], SpaceRouter]] = {
    "off": lambda settings: MeanSpaceRouter(reduce=settings.level_output),
    "gate_softmax": partial(_gate, gate="softmax"),
    "gate_sigmoid": partial(_gate, gate="sigmoid"),
    "gate_gumbel": partial(_gate, gate="gumbel"),
    "weight": lambda settings: WeightSpaceRouter(
        settings.experts,
        settings.clip_emb_dim,
        settings.clip_seq_dim,
        temperature=settings.temperature,
    ),
    "self": lambda settings: SelfAttentionSpaceRouter(
        settings.clip_emb_dim, temperature=settings.temperature
    ),
    "cross": partial(_looking, kind=CrossAttentionSpaceRouter),
    "mix": partial(_looking, kind=MixingSpaceRouter),
}
"""How the space router of a level is built, by the name that stands in ``router.space``."""
