"""Experts that are groups of voxels with the same tuning, the same in every person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score
import torch
from torch.nn.functional import normalize
from unit.tiny_training import TableTargets, spy, tiny_config

from braingen.config import Config
from braingen.encoders.base import VoxelTuning
from braingen.encoders.moe_regions import BrainMoERegions, RegionAttention
from braingen.encoders.region_groups import joined_levels, spherical_groups
from braingen.runtime.errors import UserError
from braingen.training import encoder as stage
from braingen.training import encoder_setup, voxel_tuning

K, GROUPS = 6, 4


def planted(
    voxels: int, seed: int, centres_GK: torch.Tensor | None = None
) -> tuple[VoxelTuning, torch.Tensor, torch.Tensor]:
    """Voxels around planted directions of the shared space, and which one."""
    draws = torch.Generator().manual_seed(seed)
    if centres_GK is None:
        centres_GK = torch.linalg.qr(torch.randn(K, K, generator=draws)).Q[:GROUPS]
    group_V = torch.randint(0, GROUPS, (voxels,), generator=draws)
    tuned_VK = centres_GK[group_V] + 0.1 * torch.randn(voxels, K, generator=draws)
    strength_V1 = 0.5 + torch.rand(voxels, 1, generator=draws)
    return VoxelTuning(tuned_VK * strength_V1, torch.ones(voxels)), group_V, centres_GK


def encoder(voxels: dict[int, int], **more: object) -> BrainMoERegions:
    torch.manual_seed(0)
    settings = {"hidden_dim": 16, "n_blocks": 1, "heads": 2, "clip_emb_dim": 5, "tuning_dim": K}
    return BrainMoERegions(voxels, **{**settings, "groups": (2, GROUPS), "dropout": 0.0, **more})


def test_the_same_group_of_two_people_has_the_same_tuning():
    first, group_V, centres = planted(60, 1)
    second, group_W, _ = planted(45, 2, centres)
    model = encoder({1: 60, 2: 45})
    model.init_from_tuning({1: first, 2: second})
    own = [model.voxel_shares(torch.zeros(1, 1), s)[-1].share_EV.argmax(0) for s in (1, 2)]
    truth, found = torch.cat([group_V, group_W]), torch.cat(own)
    assert adjusted_mutual_info_score(truth, found) == pytest.approx(1)


def test_a_new_persons_voxels_fall_into_known_groups():
    first, group_V, centres = planted(60, 1)
    known = encoder({1: 60})
    known.init_from_tuning({1: first})
    of_first = known.leaf_shares(1).argmax(0)
    second, group_W, _ = planted(30, 7, centres)
    new = encoder({2: 30})
    new.load_state_dict(
        {n: v for n, v in known.state_dict().items() if "subject_layer" not in n}, strict=False
    )
    new.voxels(2).take(second)
    of_second = new.leaf_shares(2).argmax(0)
    name = {int(planted_group): int(found) for planted_group, found in zip(group_V, of_first)}
    assert [name[int(each)] for each in group_W] == of_second.tolist()


def test_levels_are_unions_of_the_finest_groups():
    model = encoder({1: 60}, groups=(2, 3, GROUPS))
    model.init_from_tuning({1: planted(60, 1)[0]})
    share = [each.share_EV for each in model.voxel_shares(torch.zeros(1, 1), 1)]
    for level in share:
        torch.testing.assert_close(level.sum(0), torch.ones(60))
    member = model.membership_NG[1:].split([2, 3, GROUPS])
    for level in member:
        assert torch.equal(level.sum(0), torch.ones(GROUPS)) and (level.sum(1) > 0).all()
    for coarse in member[0]:  # nested
        assert any(torch.equal(coarse * fine, fine) for fine in member[1])


@pytest.mark.parametrize("counts", [(1, 2, 3, 6), (5, 6)])
def test_groups_at_equal_distances_still_give_every_expert_some(counts):
    """Centres at right angles to each other: all merge at one height."""
    for count, group_G in zip(counts, joined_levels(torch.eye(6), counts)):
        assert sorted(set(group_G.tolist())) == list(range(count))


def test_an_estimate_is_the_posterior_mean_of_a_linear_model_with_independent_noise():
    tuning, _, _ = planted(40, 3)
    tuning = tuning._replace(precision_V=torch.linspace(0.5, 3, 40))
    model = encoder({1: 40}).eval()
    model.init_from_tuning({1: tuning})
    model.log_temper.data.zero_()
    voxels = torch.randn(7, 40)
    found = model.estimates(voxels, 1)[:, 0]
    weight, precision = tuning.weight_VK, torch.diag(tuning.precision_V)
    expected = torch.linalg.solve(
        torch.eye(K) + weight.T @ precision @ weight, weight.T @ precision @ voxels.T
    ).T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_estimates_do_not_depend_on_how_finely_a_brain_is_sampled():
    """Every voxel twice with half the precision says the same as once."""
    tuning, _, _ = planted(40, 3)
    twice = VoxelTuning(tuning.weight_VK.repeat(2, 1), tuning.precision_V.repeat(2) / 2)
    model = encoder({1: 40, 2: 80}).eval()
    model.init_from_tuning({1: tuning, 2: twice})
    voxels = torch.randn(3, 40)
    torch.testing.assert_close(
        model.estimates(voxels, 1), model.estimates(voxels.repeat(1, 2), 2), rtol=1e-4, atol=1e-5
    )


def test_outputs_of_experts_add_up_to_their_level_and_levels_average():
    model = encoder({1: 40}, clip_seq_dim=3).eval()
    model.init_from_tuning({1: planted(40, 3)[0]})
    out = model(torch.randn(2, 40), 1, return_experts=True)
    for level, (backbone, clip) in enumerate(zip(out.expert_backbone, out.expert_clip)):
        torch.testing.assert_close(backbone.sum(1), out.level_backbone_BLTD[:, level])
        torch.testing.assert_close(clip.sum(1), out.level_clip_BLTD[:, level])
    torch.testing.assert_close(out.backbone_BTD, out.level_backbone_BLTD.mean(1))
    assert out.backbone_BTD.shape == (2, 3, 5)


def test_every_parameter_learns():
    model = encoder({1: 40})
    model.init_from_tuning({1: planted(40, 3)[0]})
    out = model(torch.randn(8, 40), 1)
    (out.backbone_BTD.square().sum() + out.clip_BTD.square().sum()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_groups_do_not_depend_on_voxels_without_signal():
    tuning, group_V, _ = planted(80, 5)
    noise_VK = normalize(torch.randn(300, K, generator=torch.Generator().manual_seed(6)), dim=1)
    directions = torch.cat([normalize(tuning.weight_VK, dim=1), noise_VK])
    weight = torch.cat([torch.ones(80), torch.full((300,), 1e-12)])
    centres = spherical_groups(directions, weight, GROUPS)
    found = (directions[:80] @ centres.T).argmax(1)
    assert adjusted_mutual_info_score(group_V, found) == pytest.approx(1)
    assert torch.equal(centres, spherical_groups(directions, weight, GROUPS))
    assert [len(set(level.tolist())) for level in joined_levels(centres, (2, GROUPS))] == [2, 4]


@pytest.mark.parametrize("seed", range(3))
def test_levels_are_found_in_the_tuning_of_voxels_with_signal(seed):
    draws = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(K, K, generator=draws)).Q
    order = torch.randperm(GROUPS, generator=draws)
    pairs = normalize(torch.stack([axes[g // 2] + 0.8 * axes[2 + g] for g in order]), dim=1)
    tuning, group_V, _ = planted(80, seed, pairs)
    noise_VK = 1e-6 * torch.randn(400, K, generator=draws)
    model = encoder({1: 480})
    model.init_from_tuning(
        {1: VoxelTuning(torch.cat([tuning.weight_VK, noise_VK]), torch.ones(480))}
    )
    coarse, fine = (
        share.share_EV.argmax(0)[:80] for share in model.voxel_shares(torch.zeros(1, 1), 1)
    )
    assert adjusted_mutual_info_score(group_V, fine) > 0.9
    assert adjusted_mutual_info_score(order[group_V] // 2, coarse) > 0.9


def test_a_centre_is_the_mean_by_the_fourth_root_of_signal():
    directions = normalize(torch.tensor([[1.0, 0.2, 0.0], [0.2, 1.0, 0.1]]), dim=1)
    (centre,) = spherical_groups(directions, torch.tensor([16.0, 1.0]), 1)
    torch.testing.assert_close(centre, normalize(2 * directions[0] + directions[1], dim=0))


def test_a_level_has_its_bias_once():
    attention = RegionAttention(8, 2, 3, 5)
    for parameter in attention.value.parameters():
        torch.nn.init.zeros_(parameter)
    out_BETD = attention(torch.randn(2, 4, 8))
    torch.testing.assert_close(out_BETD.sum(1), attention.out.bias.expand(2, 3, 5))


def test_training_does_not_move_voxels_to_other_groups():
    model = encoder({1: 40})
    model.init_from_tuning({1: planted(40, 3)[0]})
    before = model.leaf_shares(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.randn(8, 40), 1).backbone_BTD.square().sum().backward()
    weight = model.voxels(1).weight.clone()
    optimizer.step()
    assert not torch.equal(weight, model.voxels(1).weight)
    assert torch.equal(before, model.leaf_shares(1))


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(UserError, match="hidden_dim=15 cannot be shared by 2 heads"):
        encoder({1: 40}, hidden_dim=15)


# --- in training ----------------------------------------------------------------------------------


class Spaces:
    """Stands in for the frozen image network: features from a table."""

    bands = ("one", "two")

    def __init__(self, *_: object) -> None:
        self.table = np.random.default_rng(3).normal(size=(24, 8)).astype(np.float32)

    def of_ids(self, image_N: np.ndarray) -> dict[str, np.ndarray]:
        return {"one": self.table[image_N, :5], "two": self.table[image_N, 5:]}


@pytest.fixture
def tables(monkeypatch) -> None:
    monkeypatch.setattr(encoder_setup, "Targets", TableTargets)
    monkeypatch.setattr(voxel_tuning, "FeatureSpaces", Spaces)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("regions") / "data"


def config_of(root: Path, folder: Path, **more: str) -> Config:
    regions = {"model": "BrainMoERegions", "groups": "2,3", "heads": "2", "tuning_dim": "4"}
    return tiny_config(root, folder, **{f"encoder__{n}": v for n, v in regions.items()}, **more)


def test_training_starts_from_encoding_models_of_the_trials_that_are_trained_on(
    tables, monkeypatch, root, tmp_path
):
    seen: list[set[int]] = []
    spy(
        monkeypatch,
        voxel_tuning,
        "average_responses",
        lambda trials, _: seen.append(set(trials.table["image"])),
    )
    config = config_of(root, tmp_path)
    parts = encoder_setup.setup(config, "image")
    ((kept, held),) = encoder_setup.splits_of(config)
    assert seen == [set(kept.table["image"])] and not seen[0] & set(held.table["image"])
    tuned = parts.embedding_decoder.encoder.voxels(1)
    assert parts.space_KP.shape == (4, 8) and (tuned.log_precision != 0).any()


@pytest.mark.slow
def test_a_new_person_lives_in_the_space_of_the_people_before(tables, root, tmp_path):
    first = stage.train(config_of(root, tmp_path / "first"), "image")
    before = encoder_setup.setup(config_of(root, tmp_path / "again"), "image")
    config = config_of(
        root,
        tmp_path / "second",
        training__init_from=str(first),
        training__trained="subject",
        data__subjects="2",
    )
    parts = encoder_setup.setup(config, "image")
    np.testing.assert_allclose(parts.space_KP, before.space_KP, rtol=1e-5)
    encoder = parts.embedding_decoder.encoder
    saved = stage.EmbeddingDecoder.from_pretrained(first / "embedding_decoder").encoder
    torch.testing.assert_close(encoder.centres_GK, saved.centres_GK)
    torch.testing.assert_close(encoder.membership_NG, saved.membership_NG)
    trained = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"subject_layer.linears.2.weight", "subject_layer.linears.2.log_precision"}
    assert (encoder.voxels(2).log_precision != 0).any()
