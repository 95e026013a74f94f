"""Never below ridge: ridge regression inside an embedding decoder, and how much of encoder and
prior is used beside it.
"""

from __future__ import annotations

from pathlib import Path
import re

import numpy as np
import pytest
import torch

import braingen
from braingen.encoders import linear_readout
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.linear_readout import (
    RIDGE_ALONE,
    LinearReadout,
    OutputWeights,
    all_weights,
    best_weights,
    choose_weights,
    grid_key,
)
from braingen.encoders.ridge import fit_ridge
from braingen.interpret.experts import expert_outputs_of
from braingen.interpret.readout import decode
from braingen.runtime.errors import UserError
from braingen.training.encoder import choose_by_folds

TOKENS, WIDTH, VOXELS = 1, 6, 9


def decoder(model: str = "BrainEncoder", prior: bool = True, **encoder: object) -> EmbeddingDecoder:
    torch.manual_seed(0)
    return EmbeddingDecoder(
        model,
        {
            "subjects": {"1": VOXELS}, "clip_seq_dim": TOKENS, "clip_emb_dim": WIDTH,
            "hidden_dim": 8, "n_blocks": 1, "dropout": 0.0, **encoder,
        },
        {"dim": WIDTH, "num_tokens": TOKENS, "depth": 1, "dim_head": 3, "timesteps": 10}
        if prior
        else None,
        linear_config={"rank": TOKENS * WIDTH},
    )  # fmt: skip


def planted(trials: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Responses, targets and image ids; every image twice."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(trials // 2), 2)
    target = rng.normal(size=(trials // 2, WIDTH))[image]
    voxels = target @ rng.normal(size=(WIDTH, VOXELS)) + rng.normal(size=(trials, VOXELS))
    return voxels.astype(np.float32), target.astype(np.float32), image


def test_with_weight_zero_a_decoder_is_ridge_regression():
    voxels, target, image = planted()
    whole = decoder().eval()
    whole.linear.set_basis(torch.from_numpy(target)[:, None])
    ridge, few = fit_ridge(voxels, target, image), fit_ridge(voxels[:20], target[:20], image[:20])
    whole.linear.take(1, ridge)
    whole.linear.take(1, few, without_held_out=True)
    whole.linear.choose(RIDGE_ALONE)
    seen = torch.from_numpy(voxels)
    out = whole(seen, 1, return_experts=True)
    expected = torch.from_numpy(ridge.predict(voxels))
    torch.testing.assert_close(out.backbone_BTD[:, 0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.clip_BTD[:, 0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.through_prior(out.backbone_BTD), out.backbone_BTD)
    with whole.without_held_out():
        unseen = whole(seen, 1).backbone_BTD[:, 0]
    torch.testing.assert_close(unseen, torch.from_numpy(few.predict(voxels)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole(seen, 1).backbone_BTD, out.backbone_BTD)


def test_with_weight_one_and_in_training_it_is_encoder_and_prior():
    whole = decoder()
    torch.nn.init.normal_(whole.linear.linears["1"].weight_RV)
    whole.linear.set_basis(torch.zeros(1, TOKENS, WIDTH))
    x = torch.randn(3, VOXELS)
    alone = whole.encoder.eval()(x, 1).backbone_BTD
    assert torch.equal(whole.eval()(x, 1).backbone_BTD, alone)
    torch.testing.assert_close(whole.through_prior(alone), whole.prior.predict(alone))
    whole.linear.choose(RIDGE_ALONE)
    assert not torch.allclose(whole(x, 1).backbone_BTD, alone)
    whole.train()
    torch.testing.assert_close(whole(x, 1).backbone_BTD, whole.encoder(x, 1).backbone_BTD)


def test_what_is_interpreted_is_what_is_decoded():
    whole, x = decoder().eval(), torch.randn(3, VOXELS)
    torch.nn.init.normal_(whole.linear.linears["1"].weight_RV)
    whole.linear.set_basis(torch.zeros(1, TOKENS, WIDTH))
    for weights in (RIDGE_ALONE, OutputWeights(0.5, 0.5), OutputWeights()):
        whole.linear.choose(weights)
        with torch.no_grad():
            expected = whole.through_prior(whole(x, 1).backbone_BTD).flatten(1)
        (found,) = expert_outputs_of(whole, x.numpy(), 1)
        torch.testing.assert_close(found.whole_NF, expected)
        torch.testing.assert_close(decode(whole, x, 1).detach(), expected)


def test_only_training_and_the_decoder_itself_call_the_prior():
    """Everything else goes through the decoder, which knows how much of the prior is used."""
    package = Path(braingen.__file__).parent
    calls = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if re.search(r"\bprior\.(predict|sample|forward)\b", path.read_text(encoding="utf-8"))
    }
    assert calls == {"encoders", "training"}


def test_a_wide_target_is_predicted_along_its_principal_components():
    target = torch.randn(30, 4, 5, generator=torch.Generator().manual_seed(0))
    target[:, :, 3:] = target[:, :, :2]  # 12 dimensions of 20
    readout = LinearReadout({1: VOXELS}, 12, 4, 5)
    readout.set_basis(target)
    centred = target - target.mean(0)
    torch.testing.assert_close(readout.expand(readout.components(centred)), centred)
    exact = torch.linalg.svd(centred.flatten(1), full_matrices=False).Vh[:12]
    torch.testing.assert_close(  # in the order of their variance
        (readout.basis_RTD.flatten(1) * exact).sum(1).abs(), torch.ones(12), rtol=0, atol=1e-3
    )
    few = LinearReadout({1: VOXELS}, 12, 4, 5)
    few.set_basis(target[:5])  # fewer images than directions: the others stay empty
    assert (few.basis_RTD.flatten(1).norm(dim=1) > 0.5).sum() == 4  # the mean takes one


MIXTURES = {
    "sum": ("BrainMoEMulti", {"num_exp_0": 2, "exp_factor_list": [2], "level_combine": "sum"}),
    "mean": ("BrainMoEMulti", {"num_exp_0": 2, "exp_factor_list": [2], "level_combine": "mean"}),
    "learned": ("BrainMoEHier", {"num_exps": [2, 3]}),
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_levels_keep_all_of_ridge_and_their_experts_as_estimates_have_it_in_the_mean(kind):
    model, settings = MIXTURES[kind]
    whole = decoder(model, head="linear", **settings).eval()
    for name, value in whole.encoder.named_parameters():
        if name.startswith("mix"):
            torch.nn.init.normal_(value)
    torch.nn.init.normal_(whole.linear.linears["1"].weight_RV)
    whole.linear.set_basis(torch.zeros(1, TOKENS, WIDTH))
    x = torch.randn(3, VOXELS)
    alone = whole.encoder(x, 1, return_experts=True)
    for weights in (RIDGE_ALONE, OutputWeights(0.5, 1.0)):
        whole.linear.choose(weights)
        out = whole(x, 1, return_experts=True)
        ridge = (1 - weights.encoder) * whole.linear(x, 1)[:, None]
        levels = ridge + weights.encoder * alone.level_backbone_BLTD
        torch.testing.assert_close(out.level_backbone_BLTD, levels)
        torch.testing.assert_close(out.backbone_BTD, levels.mean(1))
        estimates = whole.encoder.as_estimates(out.stack)
        torch.testing.assert_close(estimates.levels_BLTD, levels, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prior_use", ["predict", "sample"])
def test_the_deterministic_output_uses_as_much_of_the_prior_as_was_chosen(prior_use):
    whole = decoder().eval()
    whole.register_to_config(prior_use=prior_use)
    backbone = torch.randn(3, TOKENS, WIDTH)
    prior = whole.prior.predict(backbone)
    for weight in (0.0, 0.5, 1.0):
        whole.linear.choose(OutputWeights(1.0, weight))
        torch.testing.assert_close(whole.predicted(backbone), backbone.lerp(prior, weight))


def test_principal_components_are_those_of_images_spread_over_the_table(monkeypatch):
    monkeypatch.setattr(linear_readout, "BASIS_IMAGES", 4)
    target = torch.randn(11, 2, 5, generator=torch.Generator().manual_seed(0))
    found, expected = (LinearReadout({1: VOXELS}, 2, 2, 5) for _ in range(2))
    found.set_basis(target)
    monkeypatch.undo()
    expected.set_basis(target[[0, 3, 6, 9]])
    torch.testing.assert_close(found.basis_RTD, expected.basis_RTD)


def chosen(ridge: torch.Tensor, encoder: torch.Tensor, truth: torch.Tensor) -> OutputWeights:
    return choose_weights(ridge[:, None], encoder[:, None], truth[:, None], None)[0]


def test_an_encoder_that_brings_nothing_is_not_used():
    draws = torch.Generator().manual_seed(0)
    truth = torch.randn(60, WIDTH, generator=draws)
    ridge = truth + torch.randn(60, WIDTH, generator=draws)
    noise = torch.randn(60, WIDTH, generator=draws)
    assert chosen(ridge, noise, truth) == RIDGE_ALONE
    assert chosen(ridge, truth, truth).encoder == 1
    assert chosen(ridge, ridge + 4 * (truth - ridge), truth).encoder == 0.25
    assert chosen(ridge, ridge, truth) == RIDGE_ALONE
    both = chosen(ridge, truth + noise, truth)  # two readings with errors of their own
    assert 0 < both.encoder < 1


def test_a_prior_that_costs_identification_is_not_used():
    draws = torch.Generator().manual_seed(0)
    truth = torch.randn(50, 1, WIDTH, generator=draws)
    near = truth + 0.3 * torch.randn(50, 1, WIDTH, generator=draws)
    found, grid = choose_weights(near, near, truth, lambda x: torch.ones_like(x))
    assert found == RIDGE_ALONE
    assert set(grid) == {grid_key(weights) for weights in all_weights()}
    assert choose_weights(near, near, truth, lambda x: truth)[0].prior == 1


def test_one_lucky_image_is_not_enough():
    cosine = {weights: np.full(20, 0.5) for weights in all_weights()}
    cosine[OutputWeights(1.0, 1.0)] = np.full(20, 0.49)
    cosine[OutputWeights(1.0, 1.0)][0] = 1.0
    assert best_weights(cosine) == RIDGE_ALONE
    cosine[OutputWeights(1.0, 1.0)] = np.linspace(0.51, 0.53, 20)
    assert best_weights(cosine) == OutputWeights(1.0, 1.0)


def test_folds_choose_epoch_and_weights_together():
    whole = OutputWeights(1.0, 0.0)
    cosines = {}
    for epoch, gain in ((1, 0.0), (2, 0.1), (3, 0.05)):
        cosines[epoch, grid_key(RIDGE_ALONE)] = [0.5, 0.6]
        cosines[epoch, grid_key(whole)] = [0.5 + gain, 0.6 + gain + 0.01]
        cosines[epoch, "validation/cosine"] = [0.9, 0.9]
    found = choose_by_folds(cosines, [10, 10])
    assert found.epoch == 2 and found.weights == whole
    for epoch in (1, 2, 3):
        cosines[epoch, grid_key(whole)] = [0.3, 0.75]
    assert choose_by_folds(cosines, [10, 10]).weights == RIDGE_ALONE
    without = {(e, "validation/cosine"): [0.1 * e, 0.2] for e in (1, 2)}
    assert choose_by_folds(without, [5, 5]) == (2, None)


def test_a_subject_without_ridge_is_refused():
    with pytest.raises(UserError, match=r"no linear read-out of subject 2; .* 1\."):
        LinearReadout({1: VOXELS}, 2, TOKENS, WIDTH)(torch.zeros(1, VOXELS), 2)


def test_a_saved_decoder_keeps_what_was_chosen(tmp_path):
    whole = decoder()
    torch.nn.init.normal_(whole.linear.linears["1"].weight_RV)
    whole.linear.set_basis(torch.zeros(1, TOKENS, WIDTH))
    whole.linear.choose(OutputWeights(0.25, 0.5))
    whole.save_pretrained(tmp_path / "saved")
    again = EmbeddingDecoder.from_pretrained(tmp_path / "saved").eval()
    assert again.linear.weights == OutputWeights(0.25, 0.5)
    x = torch.randn(2, VOXELS)
    torch.testing.assert_close(again(x, 1).backbone_BTD, whole.eval()(x, 1).backbone_BTD)


def test_without_its_maps_a_decoder_still_applies_as_much_of_the_prior_as_was_chosen():
    """Denoising by steps of the prior calls it after the encoder's memory is given back."""
    model = decoder().eval()
    assert model.linear is not None
    model.linear.choose(OutputWeights(0.5, 0.25))
    backbone = torch.randn(2, *model.mean_TD.shape, generator=torch.Generator().manual_seed(0))
    before = model.predicted(backbone)
    assert not torch.equal(before, backbone)
    model.keep_scale(prior=True)
    assert all(each.is_meta for each in model.linear.linears.parameters()) and all(
        each.is_meta for each in model.linear.linears.buffers()
    )
    assert torch.equal(model.predicted(backbone), before)
