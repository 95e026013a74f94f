"""A multilayer perceptron on the time embedding.

B batch, L levels, F width of the time embedding, H hidden width
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu

from braingen.routing.base import TimeSettings
from braingen.routing.time.learned import LearnedTimeRouter
from braingen.runtime.errors import UserError


class MLPTimeRouter(LearnedTimeRouter):
    """Multilayer perceptron on the time embedding.

    First a linear map and GELU; each further layer adds a linear map of the layer norm (one norm,
    shared by all layers); then a linear map to L. That last one starts at zero, so routing starts
    uniform: exactly the unrouted result.

    Parameters
    ----------
    levels : int
        L.
    hidden_dim : int
        H.
    num_layers : int
        Layers before the last, at least 1.
    **shared
        As for `LearnedTimeRouter`.
    """

    def __init__(
        self, levels: int, *, hidden_dim: int = 768, num_layers: int = 3, **shared
    ) -> None:
        super().__init__(levels, **shared)
        if num_layers < 1:
            raise UserError(f"num_layers is {num_layers}; the router needs at least 1")
        widths = [self.embedding_dim] + [hidden_dim] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.Linear(width, hidden_dim) for width in widths)
        # a norm that no layer reads would be a parameter without gradient
        self.layer_norm = nn.LayerNorm(hidden_dim) if num_layers > 1 else None
        self.output_layer = nn.Linear(hidden_dim, levels)
        nn.init.zeros_(self.output_layer.weight)
        nn.init.zeros_(self.output_layer.bias)

    @classmethod
    def build(cls, settings: TimeSettings, **options: Any) -> MLPTimeRouter:
        """A fresh router."""
        return cls(
            settings.levels,
            hidden_dim=settings.hidden_dim,
            num_layers=settings.layers,
            **cls.shared(settings),
        )

    def logits(self, embedding_BF: Tensor, latents_BCHW: Tensor | None = None) -> Tensor:
        """Score of every level, B x L, temperature included."""
        x_BH = gelu(self.layers[0](embedding_BF))
        for layer in list(self.layers)[1:]:
            assert self.layer_norm is not None
            x_BH = x_BH + layer(self.layer_norm(x_BH))
        return self.output_layer(x_BH) / self.temperature
