"""The low-level path: latents from voxels, and denoising that starts from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from unit.fake_backbone import fake_backbone
from unit.test_decoder import FEW, VOXELS, decoder_of, pixels, voxels
from unit.tiny_training import IMAGES, TableTargets, spy, tiny_config

from braingen.data.trials import test_trials
from braingen.encoders.latent_encoder import LatentEncoder, grid_of
from braingen.encoders.trained import load_latent_encoder
from braingen.generation import reconstruct
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.sampling import (
    CoarseImage,
    decode_latents,
    denoise,
    first_step,
    seeded_noise,
)
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.run_folder import Run
from braingen.training import low_level

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
SIDE = 14


class LatentTargets(TableTargets):
    """Latents from a table, by image id."""

    sides: ClassVar[list[int]] = []

    def latents(self, image_ids: np.ndarray, size: int) -> np.ndarray:
        self.sides.append(size)
        table = np.full((IMAGES, 4, SIDE, SIDE), np.nan, dtype=np.float16)
        rows = np.random.default_rng(5).standard_normal((IMAGES, 4, SIDE, SIDE)) * 2 + 3
        table[image_ids] = rows[image_ids]
        return table


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("low") / "data"


@pytest.fixture
def config(monkeypatch, root, tmp_path):
    monkeypatch.setattr(low_level, "Targets", LatentTargets)
    more = {"low_level__hidden_dim": "16", "low_level__features": "4", "low_level__n_blocks": "1"}
    more |= {"low_level__num_epochs": "2"}
    return lambda **other: tiny_config(root, tmp_path, **{**more, **other})


@pytest.mark.parametrize(("side", "grid"), [(64, 8), (16, 8), (28, 7), (96, 12), (7, 7), (13, 13)])
def test_the_map_of_features_is_scaled_up_to_the_latents(side, grid):
    assert grid_of(side) == grid
    model = LatentEncoder({1: 10}, 4, side, hidden_dim=8, n_blocks=1, features=4)
    assert model(torch.randn(3, 10), 1).shape == (3, 4, side, side)


def test_latents_are_those_of_the_mean_response_in_the_vaes_units():
    model = LatentEncoder({1: 10, 4: 6}, 4, 8, hidden_dim=8, features=4).eval()
    model.set_scale(5 + 3 * np.random.randn(50, 4, 8, 8), np.arange(50))
    assert model.spread.item() == pytest.approx(3, rel=0.05)
    voxels_BRV = torch.randn(2, 3, 6)
    voxels_BRV[1, 2] = torch.nan  # a presentation that there was not
    present_BR = torch.tensor([[True, True, True], [True, True, False]])
    found = model.latents(voxels_BRV, 4, present_BR)
    mean_BV = torch.stack([voxels_BRV[0].mean(0), voxels_BRV[1, :2].mean(0)])
    with torch.no_grad():
        expected = model(mean_BV, 4) * model.spread + model.mean_Chw
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.standardised(found), model(mean_BV, 4).detach())


def test_mean_and_spread_are_those_of_the_training_images_together():
    """More than are read at once, the last block smaller; others of the table have no part."""
    table = (5 + 3 * np.random.randn(200, 4, 8, 8)).astype(np.float16)
    rows = np.arange(1, 200, 2)
    table[::2] = 1000
    model = LatentEncoder({1: 10}, 4, 8, hidden_dim=8, features=4)
    model.set_scale(table, rows)
    used = torch.from_numpy(table[rows]).double()
    torch.testing.assert_close(model.mean_Chw, used.mean(0).float())
    assert model.spread.item() == pytest.approx((used - used.mean(0)).std().item(), rel=1e-6)


@pytest.mark.slow
def test_it_learns_from_kept_images_and_is_judged_by_held_out_ones(config, monkeypatch, tmp_path):
    given = config(low_level__num_epochs="4", data__subjects="1,2")
    seen: list[int] = []
    spy(
        monkeypatch,
        low_level.LowLevelTask,
        "losses",
        lambda self, batch, epoch, number: seen.extend(
            image for part in batch for image in part.image_B.tolist()
        ),
    )
    parts = low_level.setup(given)
    held = {int(i) for trials, _ in parts.held_out for i in trials.table["image"]}
    folder = low_level.train_low_level(given)
    assert held and set(seen) and not held & set(seen)
    test = test_trials(Layout.of(given.data.root), 1).table["image"]
    assert not set(test) & (held | set(seen))
    run = Run(folder)
    explained = [record["validation/explained"] for record in run.metrics]
    assert run.finished and run.summary["best_validation_explained"] == max(explained)
    kept = load_latent_encoder(given)
    assert kept is not None
    # the best epoch is what was kept, measured anew
    again = parts._replace(encoder=kept)
    assert low_level.explained(again) == pytest.approx(max(explained), abs=1e-4)
    trained_on = sorted(set(seen))
    rows = LatentTargets(given).latents(np.array(trained_on), 0)[trained_on].astype(np.float32)
    torch.testing.assert_close(kept.mean_Chw, torch.from_numpy(rows.mean(0)))


def test_what_is_explained_is_one_for_the_truth_and_zero_for_the_mean(config, monkeypatch):
    parts = low_level.setup(config())
    truth = {
        image: parts.latents[image].astype(np.float32)
        for trials, _ in parts.held_out
        for image in trials.table["image"]
    }

    def knowing(scale: float) -> Any:
        def latents(self: LatentEncoder, voxels_BRV: Tensor, subject: int, present_BR: Tensor):
            rows = torch.stack([torch.from_numpy(truth[int(image)]) for image in shown])
            return self.mean_Chw + scale * (rows - self.mean_Chw)

        return latents

    shown = sorted(truth)  # one subject, one batch
    monkeypatch.setattr(LatentEncoder, "latents", knowing(1.0))
    assert low_level.explained(parts) == pytest.approx(1, abs=1e-5)
    monkeypatch.setattr(LatentEncoder, "latents", knowing(0.0))
    assert low_level.explained(parts) == pytest.approx(0, abs=1e-5)
    monkeypatch.setattr(LatentEncoder, "latents", knowing(0.5))
    assert low_level.explained(parts) == pytest.approx(0.75, abs=1e-5)


def test_ways_of_training_that_it_has_not_are_refused(config, tmp_path):
    for name, value in (("trained", "subject"), ("init_from", str(tmp_path))):
        with pytest.raises(UserError, match=rf"training\.{name} = .* is not possible"):
            low_level.train_low_level(config(**{f"training__{name}": value}))
    with pytest.raises(UserError, match=r"training\.checkpoint = folds is not possible"):
        low_level.train_low_level(config(training__checkpoint="folds"))
    with pytest.raises(UserError, match=r"low_level\.resolution"):
        low_level.train_low_level(config(low_level__resolution="3"))
    assert not (tmp_path / "low_level" / "finished").exists()


def test_the_size_of_the_images_is_the_u_nets_or_the_one_that_is_set(config):
    LatentTargets.sides.clear()
    low_level.setup(config())
    low_level.setup(config(low_level__resolution="64"))
    assert LatentTargets.sides == [128, 64]


# --- denoising from it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "strength", "first"), [(5, 0.4, 3), (10, 0.3, 7), (4, 1, 0), (5, 0.1, 4), (1, 0.6, 0)]
)
def test_the_last_share_of_the_steps_is_run(steps, strength, first):
    assert first_step(steps, strength) == first


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.slow
def test_denoising_starts_from_the_coarse_image_with_the_noise_of_its_first_time(strength):
    backbone = fake_backbone()
    decoder = decoder_of()
    shape = (backbone.unet.config.in_channels, 16, 16)
    noise, coarse = seeded_noise([1, 2], shape, 0, "test"), torch.randn(2, *shape)
    image, text = decoder.sources(
        torch.zeros(2, 1, decoder.brain_image.mean_TD.shape[1]),
        torch.zeros(2, 1, decoder.brain_text.mean_TD.shape[1]),
    )
    from braingen.routing.conditioning import RoutedConditioning

    condition = RoutedConditioning(decoder.form, image=image, text=text)
    times: list[float] = []
    inputs: list[Tensor] = []

    def at(t: Tensor, latents: Tensor) -> Any:
        times.append(float(t))
        inputs.append(latents.clone())
        return condition(t, latents)

    denoise(
        backbone.unet,
        backbone.scheduler,
        noise,
        at,
        condition.unconditional,
        size=32,
        steps=4,
        guidance_scale=1.0,
        coarse=CoarseImage(coarse, strength),
    )
    scheduler = fake_backbone().scheduler
    scheduler.set_timesteps(4)
    run = scheduler.timesteps[4 - int(4 * strength) :]
    assert times == run.tolist()
    start = (
        noise * scheduler.init_noise_sigma
        if strength == 1
        else scheduler.add_noise(coarse, noise, run[:1].expand(2))
    )
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(4 - len(run))
    torch.testing.assert_close(inputs[0], scheduler.scale_model_input(start, run[0]))


def with_low_level() -> BrainDecoder:
    decoder = decoder_of()
    torch.manual_seed(3)
    model = LatentEncoder(VOXELS, 4, 8, hidden_dim=8, features=4, n_blocks=1).eval()
    model.set_scale(np.random.randn(20, 4, 8, 8), np.arange(20))
    decoder.register_modules(brain_low_level=model)
    return decoder


@pytest.mark.slow
def test_a_decoder_with_a_low_level_path_starts_from_it_and_is_saved_whole(tmp_path):
    decoder = with_low_level()
    given = {"subject": 1, "image_ids": [8, 9], **FEW}
    out = pixels(decoder(voxels(2), **given, strength=0.5).images)
    decoder.save_pretrained(tmp_path)
    again = BrainDecoder.from_pretrained(tmp_path)
    assert np.abs(pixels(again(voxels(2), **given, strength=0.5).images) - out).max() <= 1
    plain = pixels(decoder_of()(voxels(2), **given).images)
    assert np.abs(plain - out).max() > 10
    assert np.abs(pixels(decoder(voxels(2), **given, strength=1.0).images) - plain).max() <= 1
    decoder_of().save_pretrained(tmp_path)  # over the other one
    assert BrainDecoder.from_pretrained(tmp_path).brain_low_level is None


@pytest.mark.slow
def test_the_coarse_image_is_blended_in_by_its_weight():
    decoder = with_low_level()
    read = decoder.decode_embeddings(torch.from_numpy(voxels(2, repeats=1)), 1, [1, 2])

    def drawn(blend: float) -> Tensor:
        coarse = CoarseImage(read.latents_BChw, 0.5, blend)
        return decoder.generate(read.image, read.text, [1, 2], steps=2, coarse=coarse)

    blurry = decode_latents(decoder.vae, read.latents_BChw)
    torch.testing.assert_close(drawn(1.0), blurry, atol=1e-5, rtol=0)
    torch.testing.assert_close(drawn(0.25), 0.75 * drawn(0.0) + 0.25 * blurry, atol=1e-5, rtol=0)


def test_latents_of_another_size_are_resized():
    decoder = with_low_level()
    read = decoder.decode_embeddings(torch.from_numpy(voxels(1, repeats=1)), 1, [1])
    coarse = CoarseImage(read.latents_BChw, 0.5)
    images = decoder.generate(read.image, read.text, [1], steps=2, size=48, coarse=coarse)
    assert images.shape[-2:] == (48, 48)


@pytest.mark.parametrize(
    ("more", "trained", "used"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"low_level": "no"}, True, False),
        ({"source": "oracle"}, True, False),
        ({"source": "random"}, True, True),
        ({"level": "1"}, True, False),
        ({"source": "low_level"}, True, True),
        ({"low_level": "yes"}, False, None),
        ({"source": "low_level"}, False, None),
    ],
)
def test_which_images_start_from_it(config, tmp_path, more, trained, used):
    given = config(**{f"generation__{name}": value for name, value in more.items()})
    if trained:
        (tmp_path / "low_level" / "latent_encoder").mkdir(parents=True)
    if used is None:
        with pytest.raises(UserError, match=r"no trained low-level path in .*train low_level"):
            reconstruct.uses_low_level(given)
    else:
        assert reconstruct.uses_low_level(given) is used


def test_strength_and_blend_without_a_low_level_path_have_no_effect_and_are_refused(config):
    for name, value in (("strength", "0.5"), ("blend", "0.5")):
        with pytest.raises(UserError, match=rf"generation\.{name} = .* has no effect"):
            config(**{f"generation__{name}": value, "generation__low_level": "no"})
