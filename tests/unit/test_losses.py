"""Losses against loops over samples, mixing against its definition, and the global batch of two
processes against one.
"""

from __future__ import annotations

from itertools import pairwise
import math
from pathlib import Path

import numpy as np
from parity.published import (
    anneal,
    cosine_matrix,
    row_correlations,
    soft_cont,
    soft_siglip,
    top_k_accuracy,
)
import pytest
from scipy import stats
import torch
from unit.forking import server
from unit.global_batch import global_loss, problem, two_processes

from braingen.encoders.gather import gather_rows
from braingen.encoders.losses import (
    MixDraws,
    choose_mixed,
    draw_mix,
    gather_mix,
    join_mixes,
    mix,
    mixco_nce,
    soft_clip,
    unit_rows,
)
from braingen.runtime.errors import UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(batch: int, seed: int, features: int = 12) -> torch.Tensor:
    return unit_rows(torch.randn(batch, 1, features, generator=generator(seed)))


def entropy_by_hand(logits: torch.Tensor, wanted: torch.Tensor) -> float:
    """Cross entropy of every row in float64, one by one."""
    total = 0.0
    for logit, want in zip(logits.double().tolist(), wanted.double().tolist(), strict=True):
        top = max(logit)
        log_sum = top + math.log(sum(math.exp(x - top) for x in logit))
        total += sum(w * (log_sum - x) for x, w in zip(logit, want, strict=True))
    return total / len(logits)


# mixing


def test_mix_is_the_weighted_mean_of_a_sample_and_its_partner_and_leaves_its_input():
    voxels = torch.randn(6, 3, generator=generator())
    before = voxels.clone()
    draws = draw_mix(6, generator(1))
    mixed = mix(voxels, draws)
    assert torch.equal(voxels, before)
    for i in range(6):
        weight = float(draws.weight_B[i])
        torch.testing.assert_close(
            mixed[i], weight * before[i] + (1 - weight) * before[draws.partner_B[i]]
        )
        assert draws.mixed_B[i] or torch.equal(mixed[i], before[i])
    assert mix(voxels.half(), draws).dtype == torch.float16


def test_draws_are_seeded_and_follow_beta():
    one, two, other = (
        draw_mix(4000, generator(1)),
        draw_mix(4000, generator(1)),
        draw_mix(4000, generator(2)),
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one.weight_B, other.weight_B)
    assert sorted(one.partner_B.tolist()) == list(range(4000))
    assert abs(one.mixed_B.float().mean() - 0.5) < 0.03
    assert (one.weight_B[~one.mixed_B] == 1).all()
    for beta in (0.15, 1.0, 2.0):
        drawn = draw_mix(4000, generator(3), beta=beta, share=1.0).weight_B.double()
        # the ends of Beta(0.15, 0.15) are rounded to 0 and 1 in float32: compared away from them
        inside = drawn[(drawn > 1e-4) & (drawn < 1 - 1e-4)].numpy()
        law = stats.beta(beta, beta)
        low, high = law.cdf(1e-4), law.cdf(1 - 1e-4)
        assert stats.kstest((law.cdf(inside) - low) / (high - low), "uniform").pvalue > 1e-3
        assert abs(len(inside) / 4000 - (high - low)) < 0.03


@pytest.mark.parametrize("beta", [0.0, -1.0, 5.0])
def test_beta_out_of_range_is_refused(beta):
    with pytest.raises(UserError, match="beta"):
        draw_mix(4, generator(), beta=beta)


def test_joined_subjects_keep_their_partners():
    """Mixing the joined batch with the joined draws is mixing every subject by itself."""
    parts = [draw_mix(size, generator(size), share=1.0) for size in (3, 4, 5)]
    targets = [torch.randn(size, 2, generator=generator(10 + size)) for size in (3, 4, 5)]
    apart = torch.cat([mix(target, part) for target, part in zip(targets, parts, strict=True)])
    torch.testing.assert_close(mix(torch.cat(targets), join_mixes(parts)), apart)


def test_gathered_draws_keep_their_partners():
    parts = [draw_mix(4, generator(seed), share=1.0) for seed in range(3)]
    fields = {id(parts[0][i]): torch.cat([part[i] for part in parts]) for i in range(3)}
    gathered = gather_mix(parts[0], lambda x: fields[id(x)])
    assert all(torch.equal(a, b) for a, b in zip(gathered, join_mixes(parts), strict=True))


def test_wrong_number_of_draws_is_refused():
    with pytest.raises(UserError, match="3 rows"):
        mix(torch.zeros(3, 2), draw_mix(4, generator()))


# contrastive losses


def test_mixco_nce_against_a_loop():
    preds, targets, temperature = rows(7, 0), rows(7, 1), 0.05
    draws = MixDraws(
        torch.tensor([1, 0, 2, 3, 6, 4, 5]),
        torch.tensor([0.3, 0.9, 0.4, 1.0, 0.6, 1.0, 0.2]),
        torch.ones(7, dtype=torch.bool),
    )
    wanted = torch.zeros(7, 7)
    for i in range(7):
        wanted[i, i] += draws.weight_B[i]
        wanted[i, draws.partner_B[i]] += 1 - draws.weight_B[i]
    torch.testing.assert_close(wanted.sum(1), torch.ones(7))
    logits = preds @ targets.T / temperature
    forth, back = entropy_by_hand(logits, wanted), entropy_by_hand(logits.T, wanted.T)
    assert float(mixco_nce(preds, targets, temperature, draws)) == pytest.approx(
        (forth + back) / 2, rel=1e-4
    )
    assert float(mixco_nce(preds, targets, temperature, draws, both_ways=False)) == pytest.approx(
        forth, rel=1e-4
    )


def test_a_sample_that_is_its_own_partner_counts_fully():
    preds, targets = rows(5, 0), rows(5, 1)
    own = choose_mixed(
        torch.arange(5),
        torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]),
        torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]),
    )
    plain = mixco_nce(preds, targets, 0.1)
    torch.testing.assert_close(mixco_nce(preds, targets, 0.1, own), plain)
    assert mixco_nce(preds, targets, 0.1, own, own_partner="published") < plain
    unmixed = own._replace(weight_B=torch.ones(5))
    assert mixco_nce(preds, targets, 0.1, unmixed, own_partner="published") == 0


def test_unmixed_batch_is_plain_cross_entropy():
    preds, targets = rows(6, 0), rows(6, 1)
    draws = MixDraws(
        torch.randperm(6, generator=generator()), torch.ones(6), torch.zeros(6, dtype=torch.bool)
    )
    logits = preds @ targets.T / 0.03
    right = torch.arange(6)
    expected = (
        torch.nn.functional.cross_entropy(logits, right)
        + torch.nn.functional.cross_entropy(logits.T, right)
    ) / 2
    torch.testing.assert_close(mixco_nce(preds, targets, 0.03, draws), expected)
    torch.testing.assert_close(mixco_nce(preds, targets, 0.03), expected)


def test_soft_losses_against_a_loop():
    preds, targets, augmented = rows(6, 0), rows(6, 1), rows(6, 2)
    logits, labels = preds @ targets.T / 0.05, targets @ targets.T / 0.05
    expected = (
        entropy_by_hand(logits, labels.softmax(1)) + entropy_by_hand(logits.T, labels.softmax(1))
    ) / 2
    assert float(soft_clip(preds, targets, 0.05)) == pytest.approx(expected, rel=1e-4)
    logits, labels = preds @ augmented.T / 0.05, targets @ augmented.T / 0.05
    expected = (
        entropy_by_hand(logits, labels.softmax(1)) + entropy_by_hand(logits.T, labels.T.softmax(1))
    ) / 2
    assert float(soft_cont(preds, targets, augmented, 0.05)) == pytest.approx(expected, rel=1e-4)
    total = 0.0
    for i in range(6):
        for j in range(6):
            label = 1.0 if i == j else float(targets[i] @ targets[j]) - 1
            for a, b in ((i, j), (j, i)):
                total += (
                    math.log1p(math.exp(-label * (10 * float(preds[a] @ targets[b]) - 10))) / 6 / 2
                )
    assert float(soft_siglip(preds, targets, math.log(10), -10.0)) == pytest.approx(total, rel=1e-4)


def test_soft_clip_is_smallest_at_the_targets_themselves():
    targets = rows(6, 1)
    best = targets.clone().requires_grad_()
    loss = soft_clip(best, targets, 0.1)
    (gradient,) = torch.autograd.grad(loss, best)
    # a step along the sphere can change the loss by its tangential gradient only
    tangent = gradient - (gradient * targets).sum(1, keepdim=True) * targets
    assert tangent.norm() < 1e-5
    assert all(soft_clip(rows(6, seed), targets, 0.1) > loss for seed in range(2, 6))


def test_losses_are_float32_under_autocast_and_tiny_temperatures():
    preds, targets = rows(6, 0), rows(6, 1)
    exact = soft_clip(preds, targets, 0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(soft_clip(preds, targets, 0.02), exact)
    assert torch.isfinite(mixco_nce(preds, targets, 1e-4))


def test_shapes_and_names_are_checked():
    with pytest.raises(UserError, match="unit_rows"):
        soft_clip(torch.zeros(3, 1, 4), torch.zeros(3, 1, 4), 0.1)
    with pytest.raises(UserError, match=r"\(3, 4\) and \(2, 4\)"):
        mixco_nce(torch.zeros(3, 4), torch.zeros(2, 4), 0.1)
    with pytest.raises(UserError, match="own_partner"):
        mixco_nce(torch.zeros(3, 4), torch.zeros(3, 4), 0.1, own_partner="lost")


def test_unit_rows_flatten_tokens():
    embedding = torch.randn(3, 2, 5, generator=generator()).half()
    flat = unit_rows(embedding)
    assert flat.shape == (3, 10) and flat.dtype == torch.float32
    torch.testing.assert_close(flat.norm(dim=1), torch.ones(3))


def test_anneal():
    values = anneal(0.02, 0.0375, 9)
    assert values[0] == 0.02 and values[-1] == pytest.approx(0.0375)
    assert values[4] == pytest.approx((0.02 + 0.0375) / 2)
    assert all(a < b for a, b in pairwise(values))
    assert anneal(0.02, 0.0375, 1) == [0.02] and anneal(0.02, 0.0375, 0) == []


# similarities


def test_similarities_against_numpy():
    left, right = (
        torch.randn(5, 2, 7, generator=generator(1)),
        torch.randn(4, 2, 7, generator=generator(2)),
    )
    a, b = left.flatten(1).double().numpy(), right.flatten(1).double().numpy()
    np.testing.assert_allclose(row_correlations(left, right), np.corrcoef(a, b)[:5, 5:], atol=1e-5)
    a, b = (
        a / np.linalg.norm(a, axis=1, keepdims=True),
        b / np.linalg.norm(b, axis=1, keepdims=True),
    )
    np.testing.assert_allclose(cosine_matrix(left, right), a @ b.T, atol=1e-5)
    np.testing.assert_allclose(
        cosine_matrix(left, right, centre=True), (a - a.mean(0)) @ (b - b.mean(0)).T, atol=1e-5
    )


def test_top_k():
    similarities = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    labels = torch.tensor([2, 0])
    assert [float(top_k_accuracy(similarities, labels, k)) for k in (1, 2, 3, 50)] == [0.5, 1, 1, 1]
    with pytest.raises(ValueError, match="at least 1"):
        top_k_accuracy(similarities, labels, 0)


# two processes


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_the_global_batch(tmp_path: Path):
    # forked from this one, which has computed gradients, a process can wait for ever
    how = server().get_start_method()
    torch.multiprocessing.start_processes(two_processes, (str(tmp_path),), 2, start_method=how)
    model, voxels, targets, draws = problem(2)
    loss = global_loss(model, voxels.flatten(0, 1), targets.flatten(0, 1), join_mixes(draws))
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], loss.detach())
        torch.testing.assert_close(found["weight"], model.weight.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["bias"], model.bias.grad, rtol=1e-4, atol=1e-5)


def test_gather_is_nothing_in_one_process():
    x = torch.randn(3, 2)
    assert gather_rows(x) is x
