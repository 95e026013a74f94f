"""Laws of the time routers: weights sum to 1, coarse before fine, gradients through hard choices,
guidance toward the Gaussian.
"""

from __future__ import annotations

import math

import pytest
import torch

from braingen.routing.guidance import kl_guidance, log_gaussian_levels
from braingen.routing.tensors import latent_grid, one_of, time_embedding
from braingen.routing.time.attention import AttentionTimeRouter
from braingen.routing.time.fixed import FixedTimeRouter
from braingen.routing.time.learned import LearnedTimeRouter
from braingen.routing.time.mlp import MLPTimeRouter
from braingen.runtime.errors import UserError

TIMES = torch.tensor([999.0, 750.5, 500.0, 1.0, 0.0])


def learned(**settings) -> list[LearnedTimeRouter]:
    settings = {"embedding_dim": 16, "hidden_dim": 8} | settings
    return [
        MLPTimeRouter(4, num_layers=3, **settings),
        MLPTimeRouter(4, num_layers=1, **settings),
        AttentionTimeRouter(4, **settings),
    ]


def shaken(router: torch.nn.Module) -> torch.nn.Module:
    """With random weights everywhere, as after training."""
    generator = torch.Generator().manual_seed(3)
    for parameter in router.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return router


def test_time_embedding_is_cosines_then_sines():
    ours = time_embedding(torch.tensor([0, 37, 999]), 320)
    frequencies = torch.tensor([10000.0 ** (-i / 160) for i in range(160)], dtype=torch.float64)
    angles = torch.tensor([[0.0], [37.0], [999.0]], dtype=torch.float64) * frequencies
    torch.testing.assert_close(
        ours, torch.cat([angles.cos(), angles.sin()], 1).float(), rtol=0, atol=1e-7
    )


def test_fixed_schedule_goes_from_coarse_to_fine_in_equal_shares():
    levels = FixedTimeRouter(4).level(torch.arange(999, -1, -1))
    assert (levels.diff() >= 0).all()
    assert torch.bincount(levels).tolist() == [249, 250, 250, 251]
    for t in (0, 1, 333, 500.5, 998, 1000, 1200):
        exact = max(0, min(3, math.floor(4 * (1 - t / 1000))))
        assert FixedTimeRouter(4).level(torch.tensor([t])).item() == exact


@pytest.mark.parametrize("kind", range(3))
def test_soft_weights_sum_to_one_and_start_uniform(kind):
    router = learned()[kind]
    assert (router(TIMES).weights_BL == 0.25).all()
    weights = shaken(router)(TIMES).weights_BL
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    assert weights.std(0).max() > 0.01  # it depends on time


@pytest.mark.parametrize("kind", range(3))
def test_hard_choice_is_one_level_and_still_teaches(kind):
    router = shaken(learned(choice="hard")[kind])
    generator = torch.Generator().manual_seed(0)
    routing = router.train()(TIMES, generator=generator)
    assert torch.allclose(
        routing.weights_BL.sort(1).values, torch.tensor([0.0, 0, 0, 1]), atol=1e-6
    )
    (routing.weights_BL * torch.arange(4)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in router.parameters())
    quiet = router.eval()(TIMES)
    assert (quiet.weights_BL.argmax(1) == quiet.probabilities_BL.argmax(1)).all()
    again = router.train()(TIMES, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.weights_BL, routing.weights_BL)


def test_gumbel_samples_follow_the_softmax():
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0])
    drawn = one_of(
        logits.expand(20_000, 4), training=True, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(drawn.mean(0), logits.softmax(0), rtol=0, atol=0.012)


def test_context_changes_the_weights_and_takes_any_size():
    router = shaken(
        AttentionTimeRouter(3, embedding_dim=16, hidden_dim=8, context=True, context_size=4)
    )
    small, large = torch.randn(5, 4, 4, 4), torch.randn(5, 4, 9, 7)
    assert not torch.allclose(router(TIMES, small).weights_BL, router(TIMES, -small).weights_BL)
    assert router(TIMES, large).weights_BL.shape == (5, 3)
    with pytest.raises(UserError, match="latents"):
        router(TIMES)


def test_grid_keeps_its_own_size_and_the_mean():
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(latent_grid(x, 8), x.flatten(2))
    torch.testing.assert_close(latent_grid(x, 4).mean(-1), x.mean((2, 3)), rtol=0, atol=0.1)
    torch.testing.assert_close(
        latent_grid(torch.full((1, 1, 5, 5), 2.0), (3, 7)), torch.full((1, 1, 21), 2.0)
    )


def test_gaussian_moves_from_coarse_to_fine():
    rows = log_gaussian_levels(torch.tensor([1000.0, 500.0, 0.0]), 4).exp()
    torch.testing.assert_close(rows.sum(1), torch.ones(3))
    centre = (rows * torch.arange(4)).sum(1)
    assert centre[0] < centre[1] < centre[2]
    torch.testing.assert_close(centre[1], torch.tensor(1.5))
    assert rows[0].argmax() == 0 and rows[2].argmax() == 3
    torch.testing.assert_close(rows[0, 0] / rows[0, 1], torch.tensor(math.exp(0.5)))


def test_guidance_is_the_kl_divergence():
    target = log_gaussian_levels(TIMES, 4).exp()
    assert kl_guidance(target, TIMES).item() == pytest.approx(0, abs=1e-6)
    p = torch.rand(5, 4).softmax(1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(p), torch.distributions.Categorical(target)
    ).mean()
    torch.testing.assert_close(kl_guidance(p, TIMES), expected)
    one_hot = torch.eye(4)[:1].clone().requires_grad_()
    narrow = kl_guidance(one_hot, torch.zeros(1), sigma=0.1)
    assert narrow.isfinite()


@pytest.mark.parametrize("kind", [0, 2])
@pytest.mark.slow
def test_guidance_alone_teaches_coarse_to_fine(kind):
    torch.manual_seed(0)
    router = learned(embedding_dim=32, hidden_dim=16)[kind]
    optimizer = torch.optim.Adam(router.parameters(), 0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        t = torch.randint(1000, (64,), generator=generator)
        loss = kl_guidance(router(t).probabilities_BL, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    expected_level = (router(torch.tensor([950, 650, 350, 50])).weights_BL * torch.arange(4)).sum(1)
    assert (expected_level.diff() > 0.2).all()


def test_multiplied_prior_is_renormalised_except_as_published():
    for prior, sums in (("multiply", True), ("published", False)):
        router = AttentionTimeRouter(4, embedding_dim=16, hidden_dim=8, level_prior=prior)
        weights = router(TIMES).weights_BL
        assert torch.allclose(weights.sum(1), torch.ones(5)) == sums
    torch.testing.assert_close(
        learned(level_prior="multiply")[2](TIMES).weights_BL, log_gaussian_levels(TIMES, 4).exp()
    )


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="temperature is 0"):
        AttentionTimeRouter(4, temperature=0)
    with pytest.raises(UserError, match="num_layers is 0"):
        MLPTimeRouter(4, num_layers=0)
