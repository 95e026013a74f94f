"""Stacked experts against the loop over experts, which is the independent answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from braingen.encoders.experts import (
    ExpertHeads,
    MixerTrunk,
    Projector,
    ResidualTrunk,
    StackedLinear,
    StackedNorm,
    make_trunk,
)
from braingen.runtime.errors import UserError

EXPERTS, BATCH, WIDTH = 3, 5, 8


@pytest.fixture
def x_EBK() -> torch.Tensor:
    return torch.randn(EXPERTS, BATCH, WIDTH, generator=torch.Generator().manual_seed(0))


def shake(module: nn.Module) -> nn.Module:
    """Non-trivial gains and biases, so that a swapped expert is noticed."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def apply_alone(module: nn.Module, x: torch.Tensor, expert: int) -> torch.Tensor:
    """One expert's path through a sequence of layers, by torch's own functions."""
    for layer in module:
        if isinstance(layer, StackedLinear):
            x = F.linear(x, layer.weight[expert], layer.bias[expert])
        elif isinstance(layer, StackedNorm):
            x = F.layer_norm(x, (x.shape[-1],), layer.weight[expert], layer.bias[expert])
        else:
            x = layer(x)
    return x


@pytest.mark.parametrize("shape", [(EXPERTS, BATCH, WIDTH), (EXPERTS, BATCH, 2, WIDTH)])
def test_linear_and_norm_equal_the_loop(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for layer in (StackedLinear(EXPERTS, WIDTH, 6), StackedNorm(EXPERTS, WIDTH)):
        shake(layer)
        torch.testing.assert_close(
            layer(x), torch.stack([apply_alone([layer], x[e], e) for e in range(EXPERTS)])
        )  # type: ignore[arg-type]


def test_gradients_equal_the_loop(x_EBK: torch.Tensor) -> None:
    projector = shake(Projector(EXPERTS, WIDTH, 12))
    weights = list(projector.parameters())
    batched = torch.autograd.grad(projector(x_EBK).pow(2).sum(), weights)
    looped = torch.autograd.grad(
        sum(apply_alone(projector, x_EBK[e], e).pow(2).sum() for e in range(EXPERTS)), weights
    )
    for ours, theirs in zip(batched, looped):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_numerical_gradients() -> None:
    layer = StackedLinear(2, 3, 4).double()
    x_EBI = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, weight, bias: torch.func.functional_call(
            layer, {"weight": weight, "bias": bias}, x
        ),
        (x_EBI, layer.weight, layer.bias),
    )


def test_mixed_precision(x_EBK: torch.Tensor) -> None:
    """bfloat16 products, float32 gradients of the weights."""
    layer = StackedLinear(EXPERTS, WIDTH, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x_EBK.requires_grad_())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), layer(x_EBK), rtol=0.02, atol=0.02)


def test_residual_trunk_equals_the_loop(x_EBK: torch.Tensor) -> None:
    trunk = shake(ResidualTrunk(EXPERTS, WIDTH, 2, 0.5))
    out_EBK = trunk(x_EBK)
    for expert in range(EXPERTS):
        x = x_EBK[expert]
        for block in trunk.blocks:
            x = x + apply_alone(block, x, expert)
        torch.testing.assert_close(out_EBK[expert], x)


def test_published_trunk_with_one_token_adds_one_number(x_EBK: torch.Tensor) -> None:
    """docs/deviations.md, row 1.7."""
    trunk = shake(MixerTrunk(EXPERTS, WIDTH, 1, 3, 0.15))
    added_EBK = trunk(x_EBK) - x_EBK
    assert added_EBK.flatten(1).std(dim=1).max() < 1e-6
    assert added_EBK[:, 0, 0].abs().min() > 0.01


def test_idle_width_blocks_are_left_out_without_a_difference(x_EBK: torch.Tensor) -> None:
    trunk = shake(MixerTrunk(EXPERTS, WIDTH, 1, 2, 0.15))
    after_width = after_tokens = state = x_EBK
    for width_block, token_block in zip(trunk.width_blocks, trunk.token_blocks):
        after_width = width_block(state) + after_width
        state = after_tokens = token_block(after_width[..., None])[..., 0] + after_tokens
    torch.testing.assert_close(trunk(x_EBK), state)


def test_published_trunk_with_several_tokens_works() -> None:
    trunk = shake(MixerTrunk(1, WIDTH, 3, 2, 0.15))
    x_EBSK = torch.randn(1, BATCH, 3, WIDTH, requires_grad=True)
    trunk.states(x_EBSK)[-1].sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in trunk.parameters()
    )


def test_heads_have_tokens_and_widths(x_EBK: torch.Tensor) -> None:
    for head in ("projector", "linear"):
        backbone, clip = ExpertHeads(EXPERTS, WIDTH, 4, 6, head, 12)(x_EBK)  # type: ignore[arg-type]
        assert backbone.shape == clip.shape == (EXPERTS, BATCH, 4, 6)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(UserError, match="trunk=deep"):
        make_trunk("deep", 1, 4, 1, 0.0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="head=mlp"):
        ExpertHeads(1, 4, 1, 4, "mlp", 8)  # type: ignore[arg-type]
