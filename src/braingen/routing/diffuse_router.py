"""Time and space routing together: all experts' embeddings become one condition per denoising step.

B batch, L levels, E experts of a level, T tokens, D CLIP width
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
import torch
from torch import Tensor, nn

from braingen.routing.base import (
    Choice,
    LevelPrior,
    SpaceSettings,
    TimeRouting,
    TimeSettings,
    space_router,
    time_router,
)
from braingen.runtime.errors import UserError
from braingen.runtime.weights import load_whole, plain_text
from braingen.types import Routing


class Routed(NamedTuple):
    """One embedding out of many."""

    embedding_BTD: Tensor
    """Condition of the diffusion model at this step."""
    routing: Routing
    """How it was mixed."""


class DiffuseRouter(ModelMixin, ConfigMixin):
    """Mixes experts within each level (space) and levels with each other (time).

    Off, and at its initial weights (gumbel gates and the fixed schedule excepted), it gives exactly
    the unrouted result: the mean over levels of the mean over experts.

    Parameters
    ----------
    num_experts : sequence of int
        E of every level, coarse to fine.
    clip_emb_dim : int
        D.
    clip_seq_dim : int
        T; only "weight" has parameters per token.
    time : str
        A key of `TIME_ROUTERS` (config/kinds.py); off mixes levels evenly.
    time_choice : Choice, optional
        Weighted sum over levels, or one level per sample.
    time_hidden_dim, time_embedding_dim, time_layers, time_temperature : int, optional
        Sizes of the learned time routers; layers: "mlp" only.
    time_context : bool
        Let the attention router see the latents.
    time_context_size : int
        Side of the grid it sees them on.
    time_prior : LevelPrior, optional
        Gaussian that multiplies the time router's probabilities.
    time_prior_sigma : float
        Its width, in levels.
    space : str
        A key of `SPACE_ROUTERS` (config/kinds.py): the space router of every level.
    space_temperature : float
        Divides its scores.
    space_grid : int
        Side of the grid on which "cross" and "mix" see the latents (64 published; the latents' own
        side at the usual image size is best).
    level_output : Literal['mean', 'sum'], optional
        What a level is when space is off: mean over its experts (paper) or their
        sum (published implementation). It has to be what the encoder was trained with.
    num_train_timesteps : int
        Length of the diffusion schedule.

    Raises
    ------
    UserError
        For a kind of router that does not exist.
    """

    @register_to_config
    def __init__(
        self,
        *,
        num_experts: Sequence[int] = (2, 4, 8, 16),
        clip_emb_dim: int = 1280,
        clip_seq_dim: int = 1,
        time: str = "attention",
        time_choice: Choice = "soft",
        time_hidden_dim: int = 768,
        time_embedding_dim: int = 320,
        time_layers: int = 3,
        time_temperature: float = 1.0,
        time_context: bool = False,
        time_context_size: int = 64,
        time_prior: LevelPrior = "none",
        time_prior_sigma: float = 1.0,
        space: str = "mix",
        space_temperature: float = 1.0,
        space_grid: int = 64,
        level_output: Literal["mean", "sum"] = "mean",
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        levels = len(num_experts)
        self.expert_counts = tuple(num_experts)
        settings = TimeSettings(
            levels,
            hidden_dim=time_hidden_dim,
            embedding_dim=time_embedding_dim,
            layers=time_layers,
            temperature=time_temperature,
            choice=time_choice,
            context=time_context,
            context_size=time_context_size,
            level_prior=time_prior,
            prior_sigma=time_prior_sigma,
            num_train_timesteps=num_train_timesteps,
        )
        self.time_router = time_router(time, settings)
        self.space_routers = nn.ModuleList(
            space_router(
                space,
                SpaceSettings(
                    number,
                    clip_emb_dim,
                    clip_seq_dim,
                    temperature=space_temperature,
                    grid=space_grid,
                    level_output=level_output,
                ),
            )
            for number in num_experts
        )
        # diffusers asks every part of a pipeline for its type and device, and a fixed schedule
        # alone has nothing else to answer with
        self.register_buffer("nothing", torch.zeros(1), persistent=False)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> DiffuseRouter:
        """Load what ``save_pretrained`` wrote; a router without parameters (time and space off or
        fixed) is its config alone.
        """
        again = "fine-tune or import it again"
        try:
            settings = cls.load_config(
                pretrained_model_name_or_path, subfolder=kwargs.get("subfolder")
            )
            with torch.device("meta"):
                bare = not cls.from_config(settings).state_dict()
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise UserError(
                f"{pretrained_model_name_or_path} holds no diffusion router ({plain_text(error)});"
                f" {again}."
            ) from error
        if bare:
            return cast(DiffuseRouter, cls.from_config(settings)).eval()
        return cast(
            DiffuseRouter,
            load_whole(super().from_pretrained, pretrained_model_name_or_path, again, **kwargs),
        )

    @property
    def reads_experts(self) -> bool:
        """Whether single experts are needed; without a space router the levels' own outputs do."""
        return any(router.reads_experts for router in self.space_routers)

    def forward(
        self,
        experts: Sequence[Tensor],
        t_B: Tensor,
        latents_BCHW: Tensor | None = None,
        *,
        level: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """Route.

        Parameters
        ----------
        experts : sequence of Tensor
            Per level, B x E x T x D.
        t_B : Tensor
            Diffusion times on the training scale.
        latents_BCHW : Tensor, optional
            Noisy latents as the U-Net reads them, of any size; needed by "cross" and "mix" and by a
            time router with context.
        level : int, optional
            Condition on this level only, whatever the time router chooses.
        generator : torch.Generator | None, optional
            torch.Generator, optional Source of the noise of hard choices in training.

        Returns
        -------
        Routed

        Raises
        ------
        UserError
            If levels or experts are not as many as the router was built for.
        """
        given, built = [x.shape[1] for x in experts], list(self.expert_counts)
        if len(given) != len(built) or (self.reads_experts and given != built):
            raise UserError(
                f"the router was built for levels of {built} experts and got {given}; build it for"
                " the encoder's layout"
            )
        times = None
        if level is not None:
            only_BL = experts[0].new_zeros(len(experts[0]), len(built))
            only_BL[:, level] = 1
            times = TimeRouting(only_BL, only_BL)
        elif self.time_router is not None:
            times = self.time_router(t_B, latents_BCHW, generator)
        learned = level is None and self.time_router is not None and self.time_router.learned
        routed = self.mix(experts, times, latents_BCHW, generator)
        return routed._replace(routing=routed.routing._replace(levels_are_learned=learned))

    def mix(
        self,
        experts: Sequence[Tensor],
        times: TimeRouting | None,
        latents_BCHW: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """Mix experts and levels with given weights of the levels; without any, evenly."""
        mixed = [
            router(x_BETD, latents_BCHW, generator)
            for router, x_BETD in zip(self.space_routers, experts)
        ]
        levels_BLTD = torch.stack([level.embedding_BTD for level in mixed], dim=1)
        if times is None:
            even_BL = torch.full_like(levels_BLTD[:, :, 0, 0], 1 / len(mixed))
            times = TimeRouting(even_BL, even_BL)
            embedding_BTD = levels_BLTD.mean(
                dim=1
            )  # the very sum an encoder makes, to the last bit
        else:
            embedding_BTD = (levels_BLTD * times.weights_BL[:, :, None, None]).sum(dim=1)
        # attention runs over all tokens of all experts, weights are per token: both become one
        # number per expert
        use = tuple(
            (torch.sum if router.use_sums_over_tokens else torch.mean)(level.weights_BET, dim=-1)  # type: ignore[operator]
            for router, level in zip(self.space_routers, mixed)
        )
        return Routed(embedding_BTD, Routing(times.weights_BL, times.probabilities_BL, use))


def from_published(
    state: dict[str, Tensor], *, context_as_key: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of a published diffusion router (or of a stand-alone time or space router) under this
    package's keys.

    The names are the same; parameters that cannot have any influence are left out and returned by
    name, so that an importer can list them: biases that shift all experts' scores alike, and (with
    `context_as_key`) a projection of the latents that is added to every level's key; and the norm
    of an MLP router with one layer.

    Parameters
    ----------
    state : dict
        State dict with the published keys.
    context_as_key : bool
        The published setting of that name.

    Returns
    -------
    dict, list of str
        Weights for ``load_state_dict(strict=True)``, and the keys without influence.
    """
    idle = ("key_linear.bias", "router.bias") + (
        ("context_proj.weight", "context_proj.bias") if context_as_key else ()
    )
    if not any(key.endswith("layers.1.weight") for key in state):
        idle += (
            "layer_norm.weight",
            "layer_norm.bias",
        )  # the norm of layers after the first, where there are none
    return {key: value for key, value in state.items() if not key.endswith(idle)}, [
        key for key in state if key.endswith(idle)
    ]
