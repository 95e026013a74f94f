"""Routers: every unit once, permutations, places that stay, the published choice."""

from __future__ import annotations

import itertools

from parity.published import published_balance
import pytest
import torch

from braingen.encoders.feature_router import (
    HYSTERESIS,
    ExpertChoiceRouter,
    StaticRouter,
    balance_loss,
    balanced_split,
    expert_width,
    most_probable,
)
from braingen.runtime.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("units", "experts"), [(12, 2), (12, 3), (40, 8), (4096, 16), (30, 5)])
def test_every_unit_is_used_exactly_once(units: int, experts: int) -> None:
    mask_PFU = balanced_split(torch.randn(3, experts, units, generator=seeded()))
    assert (mask_PFU.sum(dim=1) == 1).all()
    assert (mask_PFU.sum(dim=2) == units // experts).all()


@pytest.mark.parametrize(("units", "experts"), [(13, 2), (14, 3), (9, 4)])
def test_without_an_even_share_some_units_are_left_over(units: int, experts: int) -> None:
    mask_PFU = balanced_split(torch.randn(2, experts, units, generator=seeded()))
    assert (mask_PFU.sum(dim=1) <= 1).all()
    assert (mask_PFU.sum(dim=2) == units // experts).all()


@pytest.mark.parametrize("experts", [2, 3, 4])
@pytest.mark.parametrize("capacity", [0.5, 1.0, 1.5])
def test_permuting_units_permutes_the_choice(experts: int, capacity: float) -> None:
    affinity_PFU = torch.randn(2, experts, 24, generator=seeded())
    order = torch.randperm(24, generator=seeded(1))
    mask_PFU = balanced_split(affinity_PFU, capacity)
    assert torch.equal(balanced_split(affinity_PFU[..., order], capacity), mask_PFU[..., order])


@pytest.mark.parametrize("experts", [2, 3, 8])
def test_permuting_units_permutes_what_the_published_router_chooses(experts: int) -> None:
    """As sets: the order inside an expert follows the units' places."""
    router = ExpertChoiceRouter(2, experts, 24 // experts)
    router.weight.data.normal_(generator=seeded())
    x_PBU, order = (
        torch.randn(2, 3, 24, generator=seeded()),
        torch.randperm(24, generator=seeded(1)),
    )

    def chosen(x_PBU: torch.Tensor) -> torch.Tensor:
        _, routing = router.eval().route(x_PBU[:, :, None])
        return torch.stack(
            [
                torch.zeros(3, experts, 24, dtype=torch.bool).scatter_(2, record.chosen_BEK, True)
                for record in routing
            ]
        )

    assert torch.equal(chosen(x_PBU[..., order]), chosen(x_PBU)[..., order])


@pytest.mark.parametrize("capacity", [0.5, 1.5, 2.0])
def test_capacity_sets_the_number_of_units(capacity: float) -> None:
    mask_PFU = balanced_split(torch.randn(2, 4, 24, generator=seeded()), capacity)
    assert (mask_PFU.sum(dim=2) == int(6 * capacity)).all()
    if capacity > 1:
        assert mask_PFU.any(dim=1).all()


def test_two_experts_are_shared_out_in_the_best_even_way() -> None:
    """Against all even splits of eight units."""
    affinity_FU = torch.randn(2, 8, generator=seeded())
    mask_FU = balanced_split(affinity_FU[None])[0]
    splits = itertools.combinations(range(8), 4)
    best = max(
        float(
            affinity_FU[0, list(left)].sum()
            + affinity_FU[1, [u for u in range(8) if u not in left]].sum()
        )
        for left in splits
    )
    assert float(affinity_FU[mask_FU].sum()) == pytest.approx(best, rel=1e-5)


def test_more_experts_come_close_to_the_best_assignment() -> None:
    """Against scipy's optimal assignment, each expert standing there once per place."""
    optimize = pytest.importorskip("scipy.optimize")
    affinity_FU = torch.randn(4, 64, generator=seeded())
    places = affinity_FU.repeat_interleave(16, dim=0).numpy()
    best = places[optimize.linear_sum_assignment(places, maximize=True)].sum()
    ours = float(affinity_FU[balanced_split(affinity_FU[None])[0]].sum())
    assert 0.9 * best < ours <= best + 1e-4


def test_the_same_units_in_every_trial_and_in_index_order() -> None:
    router = StaticRouter(2, 16, 2).eval()
    first, second = (router(torch.randn(2, 5, 16)) for _ in range(2))
    for one, other in zip(first.routing, second.routing):
        assert torch.equal(one.chosen_BEK, other.chosen_BEK)
        assert torch.equal(one.chosen_BEK, one.chosen_BEK.sort(dim=-1).values)


def test_router_equals_the_loop() -> None:
    router = StaticRouter(2, 16, 4).eval()
    x_PBU = torch.randn(2, 5, 16)
    routed = router(x_PBU)
    probability_PFU = router.affinity.softmax(dim=1)
    for parent in range(2):
        for expert in range(4):
            units = router.chosen_PFK[parent, expert]
            expected_BK = x_PBU[parent][:, units] * probability_PFU[parent, expert, units] * 4
            torch.testing.assert_close(routed.x_EBK[4 * parent + expert], expected_BK)


def test_probabilities_sum_to_one() -> None:
    for router in (
        StaticRouter(2, 16, 4),
        StaticRouter(2, 16, 4, activation_term=True),
        ExpertChoiceRouter(2, 4, 4),
    ):
        for record in router(torch.randn(2, 5, 16)).routing:
            torch.testing.assert_close(
                record.probabilities_BEH.sum(dim=1), torch.ones_like(record.probabilities_BEH[:, 0])
            )


def test_units_that_stay_keep_their_places() -> None:
    router = StaticRouter(1, 40, 4).train()
    before_FK = router.chosen_PFK[0].clone()
    with torch.no_grad():
        router.affinity += 0.7 * torch.randn(1, 4, 40, generator=seeded())
    router.refresh()
    after_FK = router.chosen_PFK[0]
    assert sorted(after_FK.flatten().tolist()) == list(range(40))
    moved = after_FK != before_FK
    assert 0 < moved.sum() < 30
    for expert in range(4):
        stayed = set(before_FK[expert].tolist()) & set(after_FK[expert].tolist())
        assert stayed == set(after_FK[expert][~moved[expert]].tolist())


def test_a_small_change_moves_no_unit() -> None:
    router = StaticRouter(1, 40, 2)
    before = router.chosen_PFK.clone()
    with torch.no_grad():
        router.affinity += (HYSTERESIS / 2) * (torch.rand(1, 2, 40, generator=seeded()) - 0.5)
    router.refresh()
    assert torch.equal(router.chosen_PFK, before)


def test_two_steps_before_one_backward_pass() -> None:
    """As with several subjects: a refresh between forward and backward must not disturb."""
    router = StaticRouter(1, 16, 2).train()
    batches = torch.randn(2, 1, 3, 16, generator=torch.Generator().manual_seed(0))
    gradients = [
        torch.autograd.grad(router(x_1BH).x_EBK.sum(), router.affinity)[0] for x_1BH in batches
    ]
    sum(router(x_1BH).x_EBK.sum() for x_1BH in batches).backward()
    assert router.affinity.grad is not None and router.affinity.grad.abs().sum() > 0
    torch.testing.assert_close(router.affinity.grad, gradients[0] + gradients[1])


def test_refresh_without_a_change_changes_nothing() -> None:
    router = StaticRouter(2, 16, 2, capacity=1.5)
    before = router.chosen_PFK.clone()
    router.refresh()
    assert torch.equal(router.chosen_PFK, before)


def test_gradients_reach_affinities_and_balance_is_zero_only_when_even() -> None:
    router = StaticRouter(1, 16, 2)
    routed = router(torch.randn(1, 5, 16))
    routed.x_EBK.pow(2).sum().backward()
    assert (router.affinity.grad != 0).all()
    even = torch.full((1, 2, 16), 0.5)
    assert balance_loss(even) == 0
    uneven = torch.tensor([0.9, 0.1]).view(1, 2, 1).expand(1, 2, 16).clone().requires_grad_()
    loss = balance_loss(uneven)
    loss.backward()
    assert (
        loss.item() == pytest.approx(0.16, rel=1e-5)
        and uneven.grad is not None
        and uneven.grad.abs().sum() > 0
    )


def test_published_choice_takes_the_most_probable_units() -> None:
    probability = torch.rand(1, 5, 3, 20, generator=seeded())
    best = probability.topk(7, dim=-1).indices
    for order in ("index", "gpu", "value", "native"):
        index = most_probable(probability, 7, order)  # type: ignore[arg-type]
        assert torch.equal(index.sort(dim=-1).values, best.sort(dim=-1).values)


def test_orders_of_the_published_choice() -> None:
    probability = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7]).view(1, 1, 1, 5)
    assert most_probable(probability, 3, "index").flatten().tolist() == [1, 3, 4]
    assert most_probable(probability, 3, "value").flatten().tolist() == [1, 4, 3]
    assert most_probable(probability, 3, "gpu").flatten().tolist() == [1, 4, 3]
    ties = torch.tensor([0.5, 0.9, 0.5, 0.5]).view(1, 1, 1, 4)
    assert most_probable(ties, 3, "gpu").flatten().tolist() == [1, 0, 2]


def test_given_noise_is_used_and_training_draws_its_own() -> None:
    router = ExpertChoiceRouter(1, 2, 4, noise=1.0)
    x_PBU, noise_PBUF = torch.randn(1, 3, 8), torch.randn(1, 3, 8, 2)
    router.eval()
    assert torch.equal(router(x_PBU, noise_PBUF).x_EBK, router(x_PBU, noise_PBUF).x_EBK)
    assert torch.equal(router(x_PBU).x_EBK, router(x_PBU).x_EBK)
    router.train()
    assert not torch.equal(router(x_PBU).x_EBK, router(x_PBU).x_EBK)


def test_published_balance_cannot_tell_balanced_from_collapsed() -> None:
    """docs/deviations.md, row 1.6: disjoint choices and all experts choosing alike give one
    figure.
    """
    balanced = torch.arange(8).view(1, 2, 4)
    collapsed = torch.arange(4).expand(1, 2, 4)
    assert published_balance(balanced, 8) == published_balance(collapsed, 8)


def test_impossible_shares_are_refused() -> None:
    with pytest.raises(UserError, match=r"8 units.*16 experts"):
        expert_width(8, 16, 1.0)
    with pytest.raises(UserError, match="capacity 3"):
        expert_width(8, 2, 3.0)
