"""Voxel-level routing: shares, subtrees, starts."""

from __future__ import annotations

import pytest
import torch

from braingen.config.encoders import BrainMoEVoxelConfig
from braingen.encoders.base import encoder_class
from braingen.encoders.moe_voxel import BrainMoEVoxel
from braingen.encoders.parameters import (
    adapting_parameters,
    subject_parameters,
    weight_decay_groups,
)
from braingen.encoders.parcels import ParcelMap
from braingen.runtime.errors import UserError

SMALL = {
    "subjects": {1: 40, 3: 33},
    "hidden_dim": 32,
    "n_blocks": 1,
    "clip_emb_dim": 8,
    "head": "linear",
}


def small(**options) -> BrainMoEVoxel:
    torch.manual_seed(0)
    return BrainMoEVoxel(**{**SMALL, **options})


def test_every_voxel_is_shared_out_whole_on_every_level():
    torch.manual_seed(0)
    levels = ParcelMap(40, 36, (2, 2, 3)).shares()
    assert [len(share_EV) for share_EV in levels] == [2, 4, 12]
    for share_EV in levels:
        torch.testing.assert_close(share_EV.sum(0), torch.ones(40))
    for coarse, fine, factor in zip(
        levels, levels[1:], (2, 3)
    ):  # a branch has what its own branches have
        torch.testing.assert_close(fine.unflatten(0, (-1, factor)).sum(1), coarse)


def test_an_expert_reads_the_voxels_of_its_own_subtree_and_no_others():
    model = small().eval()
    parcels = model.parcels(1)
    with torch.no_grad():
        for logits in parcels.branch_logits:
            logits.zero_()
            logits[:, :20] = torch.tensor([60.0, -60.0]).repeat(len(logits) // 2)[
                :, None
            ]  # first half: always the first branch
            logits[:, 20:] = torch.tensor([-60.0, 60.0]).repeat(len(logits) // 2)[:, None]
    voxels = torch.randn(3, 40)
    changed = voxels.clone()
    changed[:, 20:] += 1
    before, after = model(voxels, 1, return_experts=True), model(changed, 1, return_experts=True)
    for level, (a, b) in enumerate(zip(before.expert_backbone, after.expert_backbone)):
        assert torch.equal(a[:, 0], b[:, 0]), level
        assert not torch.allclose(a[:, -1], b[:, -1]), level


def test_every_parameter_learns_and_shapes_are_those_of_a_mixture():
    model = small()
    out = model(torch.randn(6, 33), 3, return_experts=True)
    assert [x.shape[1] for x in out.expert_backbone] == [2, 4, 8, 16]
    torch.testing.assert_close(out.level_backbone_BLTD.mean(1), out.backbone_BTD)
    (out.clip_BTD.square().sum() + out.balance_loss).backward()
    for name, parameter in model.named_parameters():
        if ".linears.1." not in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_new_subject_trains_its_parcels_too_and_they_do_not_decay():
    model = small()
    of_three = subject_parameters(model, [3])
    assert {name.split(".")[-2] for name in of_three} >= {"branch_logits"}
    assert set(adapting_parameters(model, [3])) == set(of_three)
    decayed = {id(parameter) for parameter in weight_decay_groups(model, 0.1)[0]["params"]}
    assert not decayed & {
        id(parameter) for parameter in model.parcels(1).branch_logits.parameters()
    }


def test_parcels_start_with_voxels_that_answer_alike():
    generator = torch.Generator().manual_seed(1)
    group_V = torch.arange(64) % 4  # four groups of voxels, two and two related
    shared, own = torch.randn(300, 2, generator=generator), torch.randn(300, 4, generator=generator)
    responses = (
        shared[:, group_V // 2] * 1.5
        + own[:, group_V]
        + 0.3 * torch.randn(300, 64, generator=generator)
    )
    parcels = ParcelMap(64, 32, (2, 2))
    parcels.init_from(responses)
    coarse, fine = (share_EV.argmax(0) for share_EV in parcels.shares())
    for groups, found, count in ((group_V // 2, coarse, 2), (group_V, fine, 4)):
        assert len({tuple(found[groups == group].tolist()) for group in range(count)}) == count
        assert all(len(found[groups == group].unique()) == 1 for group in range(count))


def test_permuted_voxels_give_permuted_parcels():
    responses, order = (
        torch.randn(50, 40, generator=torch.Generator().manual_seed(0)),
        torch.randperm(40),
    )
    plain, permuted = ParcelMap(40, 32, (2,)), ParcelMap(40, 32, (2,))
    plain.init_from(responses)
    permuted.init_from(responses[:, order])
    a, b = plain.shares()[0].argmax(0)[order], permuted.shares()[0].argmax(0)
    assert torch.equal(a, b) or torch.equal(a, 1 - b)


def test_it_is_reached_from_the_configuration_and_survives_saving(tmp_path):
    settings = BrainMoEVoxelConfig(hidden_dim=32, n_blocks=1)
    model = encoder_class("BrainMoEVoxel")(
        subjects={1: 40}, clip_emb_dim=8, **settings.arguments()
    ).eval()
    model.save_pretrained(tmp_path)
    voxels = torch.randn(2, 40)
    assert torch.equal(
        BrainMoEVoxel.from_pretrained(tmp_path).eval()(voxels, 1).clip_BTD,
        model(voxels, 1).clip_BTD,
    )


def test_units_that_parcels_cannot_share_are_refused():
    with pytest.raises(UserError, match="multiple of 16"):
        small(hidden_dim=40)
