"""Experts computed in parallel: weights stacked over experts, one batched product per layer.

B batch, E experts of a level (1 for a dense model), K input units of an expert, S tokens inside the
published trunk (1 as published), D CLIP width, T CLIP tokens, I in, O out.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from braingen.runtime.errors import UserError

Trunk = Literal["residual", "published"]
Head = Literal["projector", "linear"]


class _StackedProduct(torch.autograd.Function):
    """x W^T + b for every expert.

    Differentiating ``baddbmm`` gives the weight's gradient transposed, and making it contiguous
    takes as long as computing it (CPU, full size: 2.2 times the time of a backward pass). Here it
    is computed in the weight's own layout.
    """

    @staticmethod
    def forward(ctx: Any, x_EBI: Tensor, weight_EOI: Tensor, bias_EO: Tensor) -> Tensor:
        ctx.save_for_backward(x_EBI, weight_EOI)
        return torch.baddbmm(bias_EO[:, None], x_EBI, weight_EOI.mT)

    @staticmethod
    def backward(ctx: Any, grad_EBO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_EBI, weight_EOI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad_EBO, weight_EOI) if needs_x else None,
            torch.bmm(grad_EBO.mT, x_EBI) if needs_weight else None,
            grad_EBO.sum(dim=1) if needs_bias else None,
        )


class StackedLinear(nn.Module):
    """E linear maps, each with its own weights.

    Parameters
    ----------
    experts, in_features, out_features : int
        E, I, O.
    gain : float, optional
        Factor on PyTorch's usual initial weights, for outputs that are summed over experts.
    """

    def __init__(
        self, experts: int, in_features: int, out_features: int, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(experts, out_features))
        bound = gain / math.sqrt(in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x_EBI: Tensor) -> Tensor:
        """Apply the e-th map to the e-th input; any number of axes may stand between E and I."""
        if (
            self.weight.shape[0] == 1
        ):  # a dense model is one expert; a plain product is faster there
            return F.linear(x_EBI[0], self.weight[0], self.bias[0])[None]
        operands: tuple[Tensor, ...] = (x_EBI.flatten(1, -2), self.weight, self.bias)
        device = x_EBI.device.type  # autocast does not know every device: meta has none
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            # autocast does not reach custom autograd functions
            operands = tuple(operand.to(torch.get_autocast_dtype(device)) for operand in operands)
        return _StackedProduct.apply(*operands).view(*x_EBI.shape[:-1], -1)

    def extra_repr(self) -> str:
        experts, out_features, in_features = self.weight.shape
        return f"experts={experts}, in_features={in_features}, out_features={out_features}"


class StackedNorm(nn.Module):
    """E layer norms over the last axis, each with its own gain and bias.

    Parameters
    ----------
    experts, width : int
        E and the size of the last axis.
    """

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(experts, width))
        self.bias = nn.Parameter(torch.zeros(experts, width))

    def forward(self, x_EBI: Tensor) -> Tensor:
        experts, width = self.weight.shape
        if width == 1:  # a single number minus its mean is zero, exactly, and so is the gradient
            return self.bias.view(experts, *([1] * (x_EBI.ndim - 1))).expand_as(x_EBI)
        if experts == 1:
            return F.layer_norm(x_EBI, (width,), self.weight[0], self.bias[0])
        shape = (experts, *([1] * (x_EBI.ndim - 2)), width)
        return torch.addcmul(
            self.bias.view(shape), F.layer_norm(x_EBI, (width,)), self.weight.view(shape)
        )


class Projector(nn.Sequential):
    """E projection heads: three times norm, GELU, linear (MindEye2).

    MoRE-Brain uses twice the CLIP width inside.

    Parameters
    ----------
    experts, width, inner : int
        E, D and the width inside.
    gain : float, optional
        See :class:`StackedLinear`, for the last layer.
    """

    def __init__(self, experts: int, width: int, inner: int, gain: float = 1.0) -> None:
        super().__init__(
            StackedNorm(experts, width), nn.GELU(), StackedLinear(experts, width, inner),
            StackedNorm(experts, inner), nn.GELU(), StackedLinear(experts, inner, inner),
            StackedNorm(experts, inner), nn.GELU(), StackedLinear(experts, inner, width, gain),
        )  # fmt: skip


class MLP(nn.Sequential):
    """E networks: norm, linear, GELU, dropout, linear, of one width (MindEye2 mixer block)."""

    def __init__(self, experts: int, width: int, dropout: float) -> None:
        super().__init__(
            StackedNorm(experts, width),
            StackedLinear(experts, width, width),
            nn.GELU(),
            nn.Dropout(dropout),
            StackedLinear(experts, width, width),
        )


class ResidualTrunk(nn.Module):
    """E residual networks with blocks x + MLP(x).

    The layers are the width blocks of the published trunk, with a residual that makes them
    effective (docs/deviations.md, row 1.7).

    Parameters
    ----------
    experts, width, n_blocks : int
        E, K, number of blocks.
    dropout : float
        Inside a block.
    """

    def __init__(self, experts: int, width: int, n_blocks: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MLP(experts, width, dropout) for _ in range(n_blocks))

    def step(self, place: int, x_EBK: Tensor, before_EBK: Tensor | None = None) -> Tensor:
        """The state after one more block; the residual is the input of the block."""
        return x_EBK + self.blocks[place](x_EBK)

    def states(self, x_EBK: Tensor) -> list[Tensor]:
        """The input, then the state after every block."""
        states = [x_EBK]
        for place in range(len(self.blocks)):
            states.append(self.step(place, states[-1]))
        return states

    def forward(self, x_EBK: Tensor) -> Tensor:
        return self.states(x_EBK)[-1]


class MixerTrunk(nn.Module):
    """E mixer networks with the published wiring (MindEye2; ``trunk: published``).

    Width and token blocks alternate. Each kind adds to the last output *of its own kind*, so with S
    = 1 token (how every published encoder is built) the width blocks never reach the output, and a
    token block, which normalises a single number, adds a constant. Width blocks are therefore left
    out of the computation when S is 1: the result is the same, and 67 M idle parameters of a
    4096-wide MoRE-Brain encoder cost no time.

    Parameters
    ----------
    experts, width, tokens, n_blocks : int
        E, K, S, number of pairs of blocks.
    dropout : float
        Inside a block.
    """

    def __init__(
        self, experts: int, width: int, tokens: int, n_blocks: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.width_blocks = nn.ModuleList(MLP(experts, width, dropout) for _ in range(n_blocks))
        self.token_blocks = nn.ModuleList(MLP(experts, tokens, dropout) for _ in range(n_blocks))

    def step(self, place: int, x_EBK: Tensor, before_EBK: Tensor | None = None) -> Tensor:
        """The state after one more pair of blocks, with one token.

        Parameters
        ----------
        before_EBK : Tensor | None, optional
            What the pair before it returned, which the residual keeps to where `x_EBK` was changed
            on the way.
        """
        return (x_EBK if before_EBK is None else before_EBK) + self.token_blocks[place](
            x_EBK[..., None]
        )[..., 0]

    def states(self, x_EBSK: Tensor) -> list[Tensor]:
        """The input, then the state after every pair of blocks."""
        after_width = after_tokens = x_EBSK
        states = [x_EBSK]
        for width_block, token_block in zip(self.width_blocks, self.token_blocks):
            if self.tokens > 1:
                after_width = width_block(states[-1]) + after_width
            after_tokens = token_block(after_width.mT).mT + after_tokens
            states.append(after_tokens)
        return states

    def forward(self, x_EBK: Tensor) -> Tensor:
        """The published trunk as an expert has it, with one token: E x B x K in and out."""
        return self.states(x_EBK[:, :, None])[-1][:, :, 0]


def make_trunk(
    kind: Trunk, experts: int, width: int, n_blocks: int, dropout: float, tokens: int = 1
) -> ResidualTrunk | MixerTrunk:
    """Build the trunk that a configuration names.

    Raises
    ------
    UserError
        For an unknown kind, or a residual trunk with several tokens.
    """
    if kind == "published":
        return MixerTrunk(experts, width, tokens, n_blocks, dropout)
    if kind != "residual" or tokens != 1:
        raise UserError(
            f"trunk={kind} with {tokens} tokens is not possible: take trunk=residual (1 token) or"
            " trunk=published."
        )
    return ResidualTrunk(experts, width, n_blocks, dropout)


class ExpertHeads(nn.Module):
    """Outputs of every expert: CLIP tokens, and their projection.

    Parameters
    ----------
    experts, width : int
        E, K (times S where the trunk keeps several tokens).
    clip_seq_dim, clip_emb_dim : int
        T, D.
    head : Head
        'projector', or 'linear' for one linear map.
    inner : int
        Width inside the projector.
    gain : float, optional
        See :class:`StackedLinear`.
    """

    def __init__(
        self,
        experts: int,
        width: int,
        clip_seq_dim: int,
        clip_emb_dim: int,
        head: Head,
        inner: int,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        if head not in ("projector", "linear"):
            raise UserError(f"head={head} is not possible: take head=projector or head=linear.")
        self.tokens = clip_seq_dim
        self.backbone = StackedLinear(experts, width, clip_seq_dim * clip_emb_dim, gain)
        self.clip: nn.Module
        if head == "projector":
            self.clip = Projector(experts, clip_emb_dim, inner, gain)
        else:
            self.clip = StackedLinear(experts, clip_emb_dim, clip_emb_dim)

    def forward(self, x_EBK: Tensor) -> tuple[Tensor, Tensor]:
        """Return backbone_EBTD and clip_EBTD."""
        backbone_EBTD = self.backbone(x_EBK).unflatten(-1, (self.tokens, -1))
        return backbone_EBTD, self.clip(backbone_EBTD)
