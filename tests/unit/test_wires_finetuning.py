"""The wires of fine-tuning: every term, flag and selection of its loop reaches what it is meant
for.

Each test fails when a wire is cut: no min-SNR weights, conditions of other pictures, routers
exchanged, the worst checkpoint kept.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import combinations
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from unit.fake_backbone import fake_backbone
from unit.tiny_finetuning import (
    TableTargets,
    latents,
    table,
    text_encoder,
    tiny_embedding_decoder,
    tiny_tuning,
)
from unit.tiny_training import spy, tiny_config, with_a_gap

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.data.trials import hold_out_images, train_trials
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.trained import load_embedding_decoders, modalities
from braingen.generation.conditioned_unet import ConditionedUNet, decode_voxels, expert_counts
from braingen.generation.lora import add_lora, load_lora, lora_parameters, lora_weights
from braingen.generation.trained_modules import finetuned_folder, load_finetuned, save_finetuned
from braingen.routing.conditioning import ConditioningForm
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.routing.guidance import kl_guidance
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.seeds import hash_seed
from braingen.training import diffusion as stage
from braingen.training import diffusion_data, diffusion_step, diffusion_task
from braingen.training.conditioning_augmentation import DecodingError, augmented, mixing_weights
from braingen.training.diffusion_loss import min_snr_weight, offset_noise
from braingen.training.steps import StepLosses
from braingen.types import Conditioning, ExpertStack, Routing, Trials

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
COUNTS = (2, 4)
"""Experts of the tiny encoders' levels."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("wires") / "data"


@pytest.fixture
def tiny(monkeypatch, root, tmp_path):
    """Settings of a tiny fine-tuning, stand-ins in place."""
    return lambda folder=tmp_path / "run", **more: tiny_tuning(monkeypatch, root, folder, **more)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the data -------------------------------------------------------------------------------------


def data_of(
    config: Config, targets: TableTargets, embedding_decoders: Any = None
) -> diffusion_data.DiffusionData:
    embedding_decoders = embedding_decoders or {
        name: tiny_embedding_decoder(name) for name in ("image", "text")
    }
    used = {
        name: deepcopy(each) if isinstance(each, EmbeddingDecoder) else each
        for name, each in embedding_decoders.items()  # their encoders are dropped
    }
    return diffusion_data.diffusion_data(
        config, targets, used, 32, config.finetune.validation_images
    )  # type: ignore[arg-type]


def expected_read(
    config: Config, embedding_decoder: EmbeddingDecoder, trials: Trials, image: int
) -> Tensor:
    """What all experts say of a picture, averaged over its presentations."""
    betas = Betas.of(Layout.of(config.data.root), trials.subject)
    rows = trials.table["trial"][trials.table["image"] == image].to_numpy()
    there = torch.ones(1, len(rows), dtype=torch.bool)
    voxels = torch.from_numpy(betas.rows(rows))[None]
    order = config.router.prior_order
    found = decode_voxels(embedding_decoder, voxels, trials.subject, there, order, experts=True)
    return found.stack.experts_BETD


@pytest.mark.parametrize(
    "more", [{}, {"run__seed": "5", "data__num_sessions": "1", "router__prior_order": "levels"}]
)
@pytest.mark.slow
def test_every_row_holds_the_latents_reads_and_truths_of_its_own_picture(tiny, monkeypatch, more):
    """Of two subjects; a read is of the subject who saw the picture, averaged over its
    presentations, after the prior.
    """
    config, targets = tiny(data__subjects="1,2", **more), TableTargets()
    embedding_decoders = {name: tiny_embedding_decoder(name) for name in ("image", "text")}
    monkeypatch.setattr(
        diffusion_data, "train_trials", lambda *given: with_a_gap(train_trials(*given))
    )
    data = data_of(config, targets, embedding_decoders)
    assert targets.asked[0][1] == 32
    layout = Layout.of(config.data.root)
    seen = {
        subject: with_a_gap(train_trials(layout, subject, config.data.num_sessions))
        for subject in (1, 2)
    }
    splits = {
        subject: hold_out_images(trials, config.data.holdout_share, config.run.seed)
        for subject, trials in seen.items()
    }
    for part, which in ((data.train, 0), (data.held_out, 1)):
        expected = [
            image
            for subject in (1, 2)
            for image in sorted(set(splits[subject][which].table["image"]))
        ]
        assert part.image_N.tolist() == (expected if which == 0 else expected[:3])
        np.testing.assert_array_equal(
            part.latents_of(part.rows).numpy(), latents()[part.image_N].astype(np.float32)
        )
        for row in [*part.rows[::3], *np.flatnonzero(part.image_N == min(seen[1].table["image"]))]:
            image, subject = part.image_N[row], int(part.subject_N[row]) + 1
            trials = splits[subject][which]
            assert image in set(trials.table["image"])
            for name, embedding_decoder in embedding_decoders.items():
                said = expected_read(config, embedding_decoder, trials, int(image))
                torch.testing.assert_close(
                    part.decoded_of(name, np.array([row])), said, rtol=2e-3, atol=5e-3
                )
                torch.testing.assert_close(
                    part.truth[name][row],
                    embedding_decoder.standardised(table(name)[image]),
                    rtol=1e-4,
                    atol=1e-5,
                )
    assert len(data.held_out.truth["image"]) == len(data.held_out.image_N) == 3


@pytest.mark.slow
def test_errors_are_measured_on_all_held_out_pictures_and_on_no_other(tiny):
    config = tiny(data__subjects="1,2", finetune__validation_images="1")
    data, whole = (
        data_of(config, TableTargets()),
        data_of(tiny(data__subjects="1,2", finetune__validation_images="99"), TableTargets()),
    )
    assert len(data.held_out.rows) == 1 < len(whole.held_out.rows)
    for name in ("image", "text"):
        decoded, truth = (
            whole.held_out.decoded_of(name, whole.held_out.rows),
            whole.held_out.truth[name],
        )
        slope_E = (decoded * truth[:, None]).sum((0, 2, 3)) / truth.square().sum()
        torch.testing.assert_close(data.decoding_error[name].slope_E, slope_E, rtol=1e-3, atol=1e-4)
        expected = decoded - slope_E[:, None, None] * truth[:, None]
        torch.testing.assert_close(
            data.decoding_error[name].error_JETD, expected, rtol=1e-3, atol=1e-3
        )


@pytest.mark.slow
def test_reads_are_made_anew_when_what_they_are_made_of_changes(monkeypatch, tmp_path):
    """Sessions, the prior's place, the encoder, the responses: nothing that was kept of others is
    taken for the present.
    """
    root = tmp_path / "data"
    versions = {"image": "a"}

    def matches(encoder: EmbeddingDecoder, **more: str) -> None:
        config = tiny_tuning(monkeypatch, root, tmp_path / "run", **more)
        monkeypatch.setattr(
            diffusion_data, "fingerprint_of_files", lambda folder: versions["image"]
        )
        data = data_of(
            config, TableTargets(), {"image": encoder, "text": tiny_embedding_decoder("text")}
        )
        trials = train_trials(Layout.of(root), 1, config.data.num_sessions)
        counts = trials.table["image"].value_counts()
        often = next(row for row in data.train.rows if counts[data.train.image_N[row]] > 1)
        said = expected_read(config, encoder, trials, int(data.train.image_N[often]))
        torch.testing.assert_close(
            data.train.decoded_of("image", np.array([often])), said, rtol=2e-3, atol=5e-3
        )

    first, second = tiny_embedding_decoder("image"), tiny_embedding_decoder("text")
    matches(first, data__num_sessions="1")
    matches(first)
    matches(first, router__prior_order="experts")
    versions["image"] = "b"
    matches(second, router__prior_order="experts")
    with h5py.File(Layout.of(root).betas(1), "r+") as file:
        file["betas"][:] = -file["betas"][:]
    matches(second, router__prior_order="experts")


def test_the_noise_of_sampled_priors_is_of_picture_seed_and_encoder(tiny, monkeypatch):
    asked: list[tuple[Any, ...]] = []
    spy(
        monkeypatch,
        diffusion_data,
        "seeded_noise",
        lambda ids, shape, seed, purpose: asked.append((list(ids), seed, purpose)),
    )
    embedding_decoders = {
        name: tiny_embedding_decoder(name, prior_use="sample") for name in ("image", "text")
    }
    config = tiny(run__seed="3")
    data_of(config, TableTargets(), embedding_decoders)
    images = sorted(set(train_trials(Layout.of(config.data.root), 1).table["image"]))
    assert asked == [(images, 3, "prior of image"), (images, 3, "prior of text")]


# --- the objective --------------------------------------------------------------------------------


class FakeUNet(nn.Module):
    """Stands in for the listening U-Net: keeps what it is given and answers with something that
    depends on it.
    """

    def __init__(self, levels: Tensor | None = None, learned: bool = True) -> None:
        super().__init__()
        self.learned = learned
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.levels_BL = levels
        self.given: list[tuple[Any, ...]] = []
        self.modes: list[bool] = []

    def forward(self, *arguments: Any) -> tuple[Tensor, tuple[Routing, ...]]:
        self.given.append(arguments)
        self.modes.append(self.training)
        noisy_BChw, t_B = arguments[:2]
        if self.levels_BL is None:
            return self.weight * noisy_BChw, ()
        levels_BL = self.levels_BL[: len(t_B)]
        return self.weight * noisy_BChw, tuple(
            Routing(x, x, (), self.learned) for x in (levels_BL, levels_BL.flip(1))
        )


ALPHAS = torch.linspace(0.999, 0.01, 100)


def parts_of(
    config: Config, prediction: str = "epsilon", model: nn.Module | None = None
) -> diffusion_step.DiffusionParts:
    return diffusion_step.DiffusionParts(
        model or FakeUNet(), data_of(config, TableTargets()), ALPHAS, prediction
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["as_held_out", "plain"])
@pytest.mark.parametrize(
    ("prediction", "gamma"), [("epsilon", "1.5"), ("epsilon", "0"), ("v_prediction", "5")]
)
def test_the_denoising_loss_is_what_it_is_by_hand(tiny, prediction, gamma, kind):
    config = tiny(
        finetune__snr_gamma=gamma,
        finetune__conditioning=kind,
        finetune__noise_offset="0.3",
        router__kl_scale="0",
    )
    parts, rows = parts_of(config, prediction), np.array([4, 1, 3])
    chance = generator(5)
    found = diffusion_step.step(parts.model, rows, parts, config, chance)
    assert set(found.terms) == {"denoising"} and found.total == found.terms["denoising"]
    noisy, t_B, image, text, no_image, no_text, passed_on = parts.model.given[0]
    errors = len(parts.data.decoding_error["image"].error_JETD)
    drawn = diffusion_step.draw(config, 3, (4, 8, 8), 100, errors, generator(5))
    clean = torch.from_numpy(latents()[parts.data.train.image_N[rows]].astype(np.float32))
    a = ALPHAS[drawn.t_B].view(-1, 1, 1, 1)
    assert torch.equal(t_B, drawn.t_B) and passed_on is chance
    torch.testing.assert_close(noisy, a.sqrt() * clean + (1 - a).sqrt() * drawn.noise_BChw)
    assert drawn.noise_BChw.mean((2, 3)).std() > 0.2  # shifted per channel
    goal = (
        drawn.noise_BChw
        if prediction == "epsilon"
        else a.sqrt() * drawn.noise_BChw - (1 - a).sqrt() * clean
    )
    error_B = (0.5 * noisy - goal).square().mean((1, 2, 3))
    snr_B = ALPHAS[drawn.t_B] / (1 - ALPHAS[drawn.t_B])
    limit = float(gamma)
    if not limit:
        weight_B = torch.ones(3)
    elif prediction == "epsilon":
        weight_B = snr_B.clamp(max=limit) / snr_B
    else:
        weight_B = snr_B.clamp(max=limit) / (snr_B + 1)
    assert not limit or weight_B.min() < 0.9
    torch.testing.assert_close(found.total, (weight_B * error_B).mean(), rtol=1e-4, atol=1e-6)
    for name, heard in (("image", image), ("text", text)):
        own = parts.data.train.decoded_of(name, rows)
        if kind == "as_held_out":
            own = augmented(
                parts.data.train.truth[name][rows],
                parts.data.decoding_error[name],
                drawn.weights_BJ,
            )
        torch.testing.assert_close(heard, own, rtol=1e-4, atol=1e-4)
    assert not no_image.any() and not no_text.any()


def test_offset_noise_may_be_drawn_from_the_global_generator():
    torch.manual_seed(0)
    shifted = offset_noise(torch.zeros(3, 4, 2, 2), 0.5)
    assert (shifted.std((2, 3)) < 1e-6).all() and shifted.mean((2, 3)).std() > 0.2


@pytest.mark.slow
def test_every_picture_of_a_pass_has_noise_and_a_time_of_its_own(tiny):
    """Noise is standard normal; times are spread over the schedule, and whose is early is left to
    chance.
    """
    passes = [
        diffusion_step.draw(tiny(), 4, (4, 8, 8), 1000, 5, generator(seed)) for seed in range(60)
    ]
    noise, times = (
        torch.stack([each.noise_BChw for each in passes]),
        torch.stack([each.t_B for each in passes]).double(),
    )
    assert abs(noise.mean()) < 0.02 and noise.std().item() == pytest.approx(1, rel=0.03)
    flat = noise.flatten(2)
    assert not torch.isclose(flat[:, 0], flat[:, 1]).all(1).any()
    assert ((times.mean(0) - 500).abs() < 150).all()
    assert (times.sort(1).values.mean(0) - torch.tensor([125, 375, 625, 875])).abs().max() < 50


def test_conditions_are_dropped_as_drawn_image_and_text_apart(tiny):
    config = tiny(
        finetune__drop_image="0.3",
        finetune__drop_text="0.2",
        finetune__drop_both="0.1",
        finetune__train_batch_size="3",
    )
    parts = parts_of(config)
    dropped = np.zeros((0, 2))
    for seed in range(60):
        diffusion_step.step(parts.model, np.array([0, 1, 2]), parts, config, generator(seed))
        no_image, no_text = parts.model.given[-1][4:6]
        dropped = np.concatenate([dropped, torch.stack([no_image, no_text], 1).numpy()])
    image, text = dropped.mean(0)
    assert 0.25 < image < 0.55 and 0.15 < text < 0.45 and image > text
    assert 0 < dropped.all(1).mean() < 0.25


def test_routers_that_learn_are_pulled_toward_coarse_then_fine_and_others_are_not(tiny):
    levels = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    config = tiny(router__kl_scale="0.5", router__kl_sigma="0.7")
    parts = parts_of(config, model=FakeUNet(levels))
    found = diffusion_step.step(parts.model, np.array([0, 1, 2]), parts, config, generator(1))
    t_B = parts.model.given[0][1]
    pulls = [
        kl_guidance(x, t_B, sigma=0.7, num_train_timesteps=100) for x in (levels, levels.flip(1))
    ]
    torch.testing.assert_close(found.terms["guidance"], 0.5 * (pulls[0] + pulls[1]) / 2)
    torch.testing.assert_close(found.total, found.terms["guidance"] + found.terms["denoising"])
    off = parts_of(config, model=FakeUNet(levels, learned=False)), config
    for bare, settings in (off, (parts, tiny(router__kl_scale="0"))):
        assert (
            "guidance"
            not in diffusion_step.step(
                bare.model, np.array([0, 1, 2]), bare, settings, generator(1)
            ).terms
        )


def test_a_validation_hears_held_out_pictures_whole_with_the_same_noise_every_time(
    tiny, monkeypatch
):
    levels = torch.tensor([[0.9, 0.1]]).expand(5, 2)
    config = tiny(finetune__drop_both="1", router__kl_scale="2")
    parts = parts_of(config, model=FakeUNet(levels))
    monkeypatch.setattr(
        diffusion_step, "pieces", lambda count, size: diffusion_data.pieces(count, 2)
    )
    found = diffusion_step.validate(parts, config)
    first, parts.model.given = parts.model.given, []
    assert diffusion_step.validate(parts, config) == found
    assert parts.model.modes and not any(parts.model.modes) and parts.model.training
    held, row, denoising, guidance = parts.data.held_out, 0, 0.0, 0.0
    for once, again in zip(first, parts.model.given, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(once[:6], again[:6]))
        noisy, t_B, image, text, no_image, no_text, _ = once
        assert not no_image.any() and not no_text.any()
        rows = np.arange(row, row + len(t_B))
        torch.testing.assert_close(image, held.decoded_of("image", rows))
        torch.testing.assert_close(text, held.decoded_of("text", rows))
        clean, a = held.latents_of(rows), ALPHAS[t_B].view(-1, 1, 1, 1)
        noise = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        error_B = (0.5 * noisy - noise).square().mean((1, 2, 3))
        denoising += (min_snr_weight(ALPHAS[t_B] / (1 - ALPHAS[t_B]), 1.5) * error_B).sum().item()
        for each in (levels, levels.flip(1)):
            guidance += (
                len(t_B) * kl_guidance(each[: len(t_B)], t_B, num_train_timesteps=100).item()
            )
        row += len(t_B)
    assert row == len(held.rows) and len(first) > 1
    assert found["denoising"] == pytest.approx(denoising / row, rel=1e-3)
    assert found["loss"] == pytest.approx((denoising + guidance) / row, rel=1e-3)


def test_pieces_of_a_validation_and_other_seeds_have_noise_of_their_own(tiny, monkeypatch):
    monkeypatch.setattr(
        diffusion_step, "pieces", lambda count, size: diffusion_data.pieces(count, 1)
    )
    noise: list[Tensor] = []
    fresh = diffusion_step.draw

    def draw(*given: Any) -> diffusion_step.StepDraws:
        drawn = fresh(*given)
        noise.append(drawn.noise_BChw[0])
        return drawn

    monkeypatch.setattr(diffusion_step, "draw", draw)
    for seed in ("0", "4"):
        config = tiny(run__seed=seed)
        diffusion_step.validate(parts_of(config), config)
    assert len(noise) == 6 and not any(
        torch.equal(one, other) for one, other in combinations(noise, 2)
    )


# --- the listening U-Net --------------------------------------------------------------------------


class EchoUNet(nn.Module):
    """Keeps what a U-Net is called with."""

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        *,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Any],
    ) -> Any:
        self.called = {
            "latents": latents,
            "t": t,
            "tokens": encoder_hidden_states,
            **added_cond_kwargs,
        }
        return type("Out", (), {"sample": latents})()


def a_router(seed: int) -> DiffuseRouter:
    """A router whose weights are no longer those of the start, so that it prefers some levels and
    experts.
    """
    torch.manual_seed(seed)
    made = DiffuseRouter(
        num_experts=COUNTS, clip_emb_dim=128, time_hidden_dim=16, space="weight", space_grid=8
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    return made.eval()


def form_of() -> ConditioningForm:
    return ConditioningForm.of(
        text_encoder(), cross_attention_dim=224, pooled_dim=128, image_shape=(1, 128)
    )


@pytest.mark.parametrize("routed", [("image", "text"), ("image",), ("text",), ()])
def test_image_and_text_are_routed_by_their_own_routers_and_decoded_by_their_own_encoders(routed):
    embedding_decoders = {name: tiny_embedding_decoder(name) for name in ("image", "text")}
    routers = {name: a_router(seed) for name, seed in (("image", 1), ("text", 2)) if name in routed}
    counts = dict.fromkeys(embedding_decoders, COUNTS)
    unet = EchoUNet()
    model = ConditionedUNet(
        unet, form_of(), embedding_decoders, dict(routers), counts, "output", 32
    )  # type: ignore[arg-type]
    draws = generator()
    decoded = {name: torch.randn(3, 6, 1, 128, generator=draws) for name in embedding_decoders}
    noisy, t_B = torch.randn(3, 4, 8, 8, generator=draws), torch.tensor([900, 500, 20])
    drop_image, drop_text = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    _, routings = model(noisy, t_B, decoded["image"], decoded["text"], drop_image, drop_text, None)
    assert len(routings) == len(routed)

    def heard(name: str) -> Tensor:
        experts = decoded[name].split(list(COUNTS), dim=1)
        if name in routed:
            mixed = routers[name](experts, t_B, noisy)
            mine = routings[routed.index(name)].level_weights_BL
            torch.testing.assert_close(mine, mixed.routing.level_weights_BL)
            return embedding_decoders[name].in_clip_units(mixed.embedding_BTD)
        return embedding_decoders[name].in_clip_units(
            torch.stack([x.mean(1) for x in experts]).mean(0)
        )

    image, text = heard("image"), heard("text")
    image[0] = 0
    torch.testing.assert_close(unet.called["image_embeds"][0], image, rtol=1e-4, atol=1e-4)
    tokens = form_of().text(text)
    tokens[1] = 0
    torch.testing.assert_close(unet.called["tokens"], tokens, rtol=1e-4, atol=1e-4)
    assert not unet.called["text_embeds"].any() and unet.called["text_embeds"].shape == (3, 128)
    assert unet.called["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 3
    assert torch.equal(unet.called["t"], t_B) and torch.equal(unet.called["latents"], noisy)


def test_a_prior_at_every_step_stands_after_the_router_and_passes_gradients_to_it():
    embedding_decoders = {name: tiny_embedding_decoder(name) for name in ("image", "text")}
    routers = {"image": a_router(1), "text": a_router(2)}
    unet = EchoUNet()
    model = ConditionedUNet(
        unet,
        form_of(),
        embedding_decoders,
        dict(routers),
        dict.fromkeys(embedding_decoders, COUNTS),
        "step",
        32,
    )  # type: ignore[arg-type]
    decoded = torch.randn(2, 6, 1, 128, generator=generator())
    noisy, t_B, nothing = (
        torch.zeros(2, 4, 8, 8),
        torch.tensor([10, 990]),
        torch.zeros(2, dtype=torch.bool),
    )
    model(noisy, t_B, decoded, decoded, nothing, nothing, None)
    embedding_decoder = embedding_decoders["image"]
    routed = routers["image"](decoded.split(list(COUNTS), dim=1), t_B, noisy).embedding_BTD
    (heard,) = unet.called["image_embeds"]
    torch.testing.assert_close(
        heard,
        embedding_decoder.in_clip_units(embedding_decoder.through_prior(routed)),
        rtol=1e-4,
        atol=1e-4,
    )
    gradients = torch.autograd.grad(
        heard.square().sum(), list(routers["image"].parameters()), allow_unused=True
    )
    assert sum(gradient is not None and gradient.abs().max() > 0 for gradient in gradients) > 3


@pytest.mark.slow
def test_encoders_of_image_and_text_may_have_other_experts():
    embedding_decoders = {name: tiny_embedding_decoder(name) for name in ("image", "text")}
    for embedding_decoder in (embedding_decoders["image"], embedding_decoders["image"].train()):
        training = embedding_decoder.training
        assert expert_counts(embedding_decoder) == COUNTS and embedding_decoder.training == training
    model = ConditionedUNet(
        EchoUNet(),
        form_of(),
        embedding_decoders,
        {},
        {"image": COUNTS, "text": (1, 3)},
        "output",
        32,
    )  # type: ignore[arg-type]
    text = torch.randn(2, 4, 1, 128, generator=generator())
    nothing = torch.zeros(2, dtype=torch.bool)
    model(
        torch.zeros(2, 4, 8, 8),
        torch.tensor([1, 2]),
        torch.zeros(2, 6, 1, 128),
        text,
        nothing,
        nothing,
        None,
    )
    heard = embedding_decoders["text"].in_clip_units((text[:, 0] + text[:, 1:].mean(1)) / 2)
    torch.testing.assert_close(
        model.unet.called["tokens"], form_of().text(heard), rtol=1e-4, atol=1e-4
    )


def test_what_a_prior_of_every_step_is_to_take_is_read_before_it():
    embedding_decoder, draws = tiny_embedding_decoder("image"), generator(4)
    voxels, there = (
        torch.randn(2, 3, 41, generator=draws),
        torch.tensor([[True, True, False], [True] * 3]),
    )
    found = decode_voxels(embedding_decoder, voxels, 1, there, "step", experts=True).stack
    for row, count in enumerate((2, 3)):
        said = embedding_decoder(voxels[row, :count], 1, return_experts=True)
        torch.testing.assert_close(
            found.output_BTD[row], said.backbone_BTD.mean(0), rtol=1e-4, atol=1e-4
        )
        for level, experts_BETD in enumerate(
            found.by_level
        ):  # shares of a sum become estimates of the whole
            share = said.expert_backbone[level].mean(0) * (
                COUNTS[level] if embedding_decoder.encoder.config.level_combine == "sum" else 1
            )
            torch.testing.assert_close(experts_BETD[row], share, rtol=1e-4, atol=1e-4)
    after = decode_voxels(embedding_decoder, voxels, 1, there, "output", experts=True).stack
    torch.testing.assert_close(
        after.output_BTD, embedding_decoder.through_prior(found.output_BTD), rtol=1e-4, atol=1e-4
    )


def test_hard_choices_of_a_pass_are_drawn_from_its_own_generator():
    embedding_decoders = {name: tiny_embedding_decoder(name) for name in ("image", "text")}
    router = DiffuseRouter(
        num_experts=COUNTS, clip_emb_dim=128, time_hidden_dim=16, time_choice="hard", space="off"
    )
    model = ConditionedUNet(
        EchoUNet(),
        form_of(),
        embedding_decoders,
        {"image": router},
        dict.fromkeys(embedding_decoders, COUNTS),
        "output",
        32,
    )  # type: ignore[arg-type]
    decoded, nothing = (
        torch.randn(16, 6, 1, 128, generator=generator()),
        torch.zeros(16, dtype=torch.bool),
    )

    def chosen(seed: int, elsewhere: int) -> Tensor:
        torch.manual_seed(elsewhere)
        _, (routing,) = model.train()(
            torch.zeros(16, 4, 8, 8),
            torch.full((16,), 500),
            decoded,
            None,
            nothing,
            nothing,
            generator(seed),
        )
        return routing.level_weights_BL.argmax(1)

    assert torch.equal(chosen(1, 0), chosen(1, 5)) and not torch.equal(chosen(1, 0), chosen(2, 0))


def dense_embedding_decoder(tokens: int = 1) -> EmbeddingDecoder:
    torch.manual_seed(0)
    encoder = {
        "subjects": {"1": 41},
        "clip_seq_dim": tokens,
        "clip_emb_dim": 128,
        "hidden_dim": 16,
        "n_blocks": 1,
    }
    return EmbeddingDecoder("BrainEncoder", encoder, None).eval()


def test_levels_are_means_of_their_own_experts_and_the_output_is_the_mean_of_levels():
    experts = torch.arange(6.0)[None, :, None, None].expand(2, 6, 1, 3)
    found = ExpertStack.of_experts(experts, COUNTS)
    assert [x.shape[1] for x in found.by_level] == list(COUNTS)
    assert found.levels_BLTD[0, :, 0, 0].tolist() == [0.5, 3.5] and (found.output_BTD == 2).all()


def test_nothing_of_a_dropped_condition_is_left():
    whole = Conditioning(torch.ones(3, 4, 5), torch.ones(3, 1, 6), torch.ones(3, 7))
    image_B, text_B = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    found = form_of().dropped(whole, image_B=image_B, text_B=text_B)
    assert found.image_embeds_BTD.flatten(1).sum(1).tolist() == [0, 6, 6]
    assert found.tokens_BTC.flatten(1).sum(1).tolist() == [20, 0, 20] and found.pooled_BD.sum(
        1
    ).tolist() == [7, 0, 7]


def test_unsure_reads_are_the_shrunken_truth_plus_mixed_errors():
    draws = generator()
    truth, errors, weights = (
        torch.randn(*shape, generator=draws) for shape in ((2, 1, 4), (5, 3, 1, 4), (2, 5))
    )
    found = augmented(truth, DecodingError(torch.tensor([0.5, 0.25, 1.0]), errors), weights)
    for row in range(2):
        for expert, slope in enumerate((0.5, 0.25, 1.0)):
            mixed = sum(weights[row, j] * errors[j, expert] for j in range(5))
            torch.testing.assert_close(found[row, expert], slope * truth[row] + mixed)


def test_a_lora_adapts_the_attention_and_the_feed_forward_maps_and_not_the_adapter():
    unet = fake_backbone().unet
    add_lora(unet, 2)
    parts = {
        name.partition(".lora_")[0].partition("transformer_blocks.")[2].partition(".")[2]
        for name in lora_parameters(unet)
    }
    maps = {
        f"{attention}.{name}"
        for attention in ("attn1", "attn2")
        for name in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert parts == maps | {"ff.net.0.proj", "ff.net.2"}


# --- setup ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_setup_builds_the_routers_and_the_lora_that_are_asked_for(tiny):
    parts = stage.setup(
        tiny(router__route_text="false", lora__rank="3", router__prior_order="levels")
    )
    assert (
        set(parts.model.routers) == {"image"}
        and parts.model.order == "levels"
        and parts.model.size == 32
    )
    assert {
        value.shape[0] for name, value in lora_weights(parts.model.unet).items() if "lora_A" in name
    } == {3}
    assert (
        parts.model.counts
        == {"image": COUNTS, "text": COUNTS}
        == {name: expert_counts(tiny_embedding_decoder(name)) for name in ("image", "text")}
    )
    assert parts.model.form.image_shape == (1, 128) and parts.model.form.pooled_dim == 128
    assert expert_counts(dense_embedding_decoder()) == (1,)
    assert expert_counts(dense_embedding_decoder(tokens=2)) == (1,)
    out = dense_embedding_decoder()(torch.zeros(2, 41), 1)
    assert torch.equal(out.stack.experts_BETD, out.level_backbone_BLTD)
    router = parts.model.routers["image"]
    assert router.expert_counts == COUNTS and router.config.num_train_timesteps == 1000
    assert (
        router.config.time == "attention"
        and router.config.space == "mix"
        and router.config.space_grid == 8
    )
    assert parts.prediction_type == "epsilon" and torch.equal(
        parts.alphas_cumprod, fake_backbone().scheduler.alphas_cumprod
    )
    none = stage.setup(tiny(router__route_image="false", router__time="fixed"))
    assert set(none.model.routers) == {"text"} and none.model.routers["text"].config.time == "fixed"
    again, other = (stage.setup(tiny(run__seed=seed)).model for seed in ("0", "7"))
    for mine, yours, same in ((none.model, again, True), (again, other, False)):
        first, second = (lora_weights(model.unet) for model in (mine, yours))
        assert (
            all(torch.equal(first[name], second[name]) for name in first if "lora_A" in name)
            == same
        )


@pytest.mark.slow
def test_setup_follows_every_setting_of_routers_and_backbone(tiny, monkeypatch):
    more = {
        "time_choice": "hard",
        "time_context": "true",
        "time_hidden_dim": "24",
        "space": "cross",
        "space_grid": "4",
    }
    tune = {
        "resolution": "64",
        "attention": "sdpa",
        "gradient_checkpointing": "true",
        "validation_images": "1",
    }
    settings = {f"router__{name}": value for name, value in more.items()} | {
        f"finetune__{name}": value for name, value in tune.items()
    }
    config = tiny(**settings, backbone__ip_adapter="somewhere")
    asked: list[tuple[Any, ...]] = []

    def load_backbone(*given: Any, **named: Any) -> Any:
        asked.append((*given, named))
        backbone = fake_backbone()
        return backbone._replace(
            scheduler=type(backbone.scheduler).from_config(
                backbone.scheduler.config, prediction_type="v_prediction"
            )
        )

    monkeypatch.setattr(stage, "load_backbone", load_backbone)
    monkeypatch.setattr(stage, "refuse_incompatible", lambda config: None)
    sides: list[int] = []
    spy(monkeypatch, TableTargets, "latents", lambda self, images, size: sides.append(size))
    parts = stage.setup(config)
    assert sides == [64] and len(parts.data.held_out.rows) == 1
    assert asked == [(config.backbone.path, "somewhere", torch.float32, {"with_vae": False})]
    assert parts.prediction_type == "v_prediction" and parts.model.size == 64
    built = parts.model.routers["text"].config
    expected = {
        "time_choice": "hard",
        "time_context": True,
        "time_hidden_dim": 24,
        "space": "cross",
        "space_grid": 4,
    }
    assert {name: built[name] for name in expected} == expected and built["time_context_size"] == 4
    assert parts.model.unet.is_gradient_checkpointing
    assert {type(each).__name__ for each in parts.model.unet.attn_processors.values()} == {
        "AttnProcessor2_0",
        "IPAdapterAttnProcessor2_0",
    }
    plain = stage.setup(tiny(finetune__attention="plain", finetune__resolution="64"))
    assert (
        not plain.model.unet.is_gradient_checkpointing
        and plain.model.routers["text"].config.space_grid == 16
    )
    assert {type(each).__name__ for each in plain.model.unet.attn_processors.values()} == {
        "AttnProcessor",
        "IPAdapterAttnProcessor",
    }


def test_what_cannot_be_tuned_is_refused(tiny, monkeypatch):
    """Nothing to train; a prior at every step that no gradient passes; an encoder of other
    embeddings than the U-Net takes.
    """
    nothing = {"lora__rank": "0", "router__time": "off", "router__space": "off"}
    with pytest.raises(UserError, match="leave nothing to train"):
        stage.setup(tiny(**nothing))
    config = tiny(router__prior_order="step")
    sampled = {name: tiny_embedding_decoder(name, prior_use="sample") for name in ("image", "text")}
    monkeypatch.setattr(stage, "load_embedding_decoders", lambda config: sampled)
    with pytest.raises(UserError, match="prior_order = step"):
        stage.setup(config)
    narrow = {
        "subjects": {"1": 41},
        "clip_seq_dim": 1,
        "clip_emb_dim": 64,
        "hidden_dim": 16,
        "n_blocks": 1,
        "exp_factor_list": [2],
    }
    narrow_embedding_decoder = EmbeddingDecoder("BrainMoEMulti", narrow, None).eval()
    monkeypatch.setattr(
        stage,
        "load_embedding_decoders",
        lambda config: {"image": narrow_embedding_decoder, "text": tiny_embedding_decoder("text")},
    )
    with pytest.raises(UserError, match="image encoder predicts 1 x 64"):
        stage.setup(config)


@pytest.mark.slow
def test_routers_start_as_the_seed_says(tiny):
    def started(seed: str) -> list[Tensor]:
        torch.manual_seed(int(torch.initial_seed()) + 1)  # whatever was drawn before
        return [
            p
            for p in stage.setup(tiny(run__seed=seed)).model.routers.parameters()
            if p.ndim > 1 and p.std() > 0
        ]

    one, again, other = started("0"), started("0"), started("7")
    assert (
        one
        and all(torch.equal(a, b) for a, b in zip(one, again))
        and not any(torch.equal(a, b) for a, b in zip(one, other))
    )


@pytest.mark.slow
def test_a_checkpoint_brings_back_the_lora_the_routers_and_the_order_of_the_prior(tmp_path):
    unet, routers = fake_backbone().unet, {"image": a_router(1), "text": a_router(2)}
    save_finetuned(tmp_path / "bare", unet, {"text": routers["text"]}, "experts")
    bare = load_finetuned(tmp_path / "bare")
    assert bare.lora is bare.router_image is None and bare.prior_order == "experts"
    add_lora(unet, 2)
    save_finetuned(tmp_path / "whole", unet, routers, "levels")
    whole = load_finetuned(tmp_path / "whole")
    assert whole.lora.is_file() and whole.prior_order == "levels"
    for found, router in (
        (whole.router_image, routers["image"]),
        (whole.router_text, routers["text"]),
        (bare.router_text, routers["text"]),
    ):
        assert not found.training and all(
            torch.equal(p, q) for p, q in zip(found.parameters(), router.parameters(), strict=True)
        )


def a_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("a: 1")
    (folder / "finished").write_text("{}")
    (folder / "metrics.jsonl").write_text("")


def test_what_was_tuned_is_used_as_the_setting_says(tiny, root, tmp_path):
    """auto: when there is a fine-tuning; no: never; yes: there has to be one. The best checkpoint,
    not the last.
    """
    settings = {
        name: tiny_config(root, tmp_path / "run", generation__finetuned=name)
        for name in ("auto", "yes", "no")
    }
    assert finetuned_folder(settings["auto"]) is None and finetuned_folder(settings["no"]) is None
    with pytest.raises(UserError, match="braingen finetune"):
        finetuned_folder(settings["yes"])
    a_run(tmp_path / "run" / "finetune")
    best = tmp_path / "run" / "finetune" / "best"
    assert (
        finetuned_folder(settings["auto"]) == finetuned_folder(settings["yes"]) == best
        and finetuned_folder(settings["no"]) is None
    )
    (tmp_path / "run" / "finetune" / "finished").unlink()
    with pytest.raises(UserError, match="not finished"):
        finetuned_folder(settings["auto"])


def test_the_encoders_of_image_and_text_come_from_their_own_runs_frozen(root, tmp_path):
    config = tiny_config(root, tmp_path / "run")
    for name in ("image", "text"):
        a_run(tmp_path / "run" / name)
        tiny_embedding_decoder(name).requires_grad_(True).train().save_pretrained(
            tmp_path / "run" / name / "embedding_decoder"
        )
    found = load_embedding_decoders(config)
    assert list(found) == ["image", "text"]
    for name, embedding_decoder in found.items():
        assert not embedding_decoder.training and not any(
            p.requires_grad for p in embedding_decoder.parameters()
        )
        assert all(
            torch.equal(p, q)
            for p, q in zip(
                embedding_decoder.parameters(),
                tiny_embedding_decoder(name).parameters(),
                strict=True,
            )
        )
    (tmp_path / "run" / "text" / "finished").unlink()
    with pytest.raises(UserError, match="not finished"):
        load_embedding_decoders(config)


def test_text_is_decoded_where_it_is_wanted_and_captions_are_there_or_an_encoder_is(tmp_path):
    wanted, unwanted = (
        tiny_config(tmp_path / "data", tmp_path / "run", generation__use_text=use)
        for use in ("true", "false")
    )
    assert modalities(wanted) == ("image", "text") and modalities(unwanted) == ("image",)
    Layout.of(wanted.data.root).captions().unlink()
    assert modalities(wanted) == ("image",)
    (tmp_path / "run" / "text" / "embedding_decoder").mkdir(parents=True)
    assert modalities(wanted) == modalities(unwanted) == ("image", "text")


# --- the loop -------------------------------------------------------------------------------------


class Tuning(NamedTuple):
    config: Config
    folder: Path
    rows: list[list[int]]
    """Of every pass."""
    seeds: list[int]
    rates: list[tuple[float, float]]
    """Of LoRA and routers, at every update."""
    gradients: list[float]
    states: list[dict[str, Tensor]]
    """What is trained, at every validation."""
    before: dict[str, Tensor]


def tuned(
    monkeypatch: pytest.MonkeyPatch, config: Config, found: list[dict[str, float]] | None = None
) -> Tuning:
    """Run a fine-tuning, recorded; `found`: what its validations are made to find."""
    seen = Tuning(config, config.run.folder / "finetune", [], [], [], [], [], {})
    fresh = diffusion_task.optimizer_of

    def optimizer_of(model: ConditionedUNet, config: Config) -> torch.optim.Optimizer:
        optimizer = fresh(model, config)
        seen.before.update({name: p.detach().clone() for name, p in model.named_parameters()})
        lora = {id(p) for name, p in model.named_parameters() if ".lora_" in name}

        def before_update(*_: Any) -> None:
            of = {id(group["params"][0]) in lora: group["lr"] for group in optimizer.param_groups}
            seen.rates.append((of[True], of[False]))
            gradients = [
                p.grad
                for group in optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            seen.gradients.append(
                torch.stack([gradient.norm() for gradient in gradients]).norm().item()
            )

        optimizer.register_step_pre_hook(before_update)
        return optimizer

    def before_step(
        model: nn.Module, rows: np.ndarray, parts: Any, config: Config, chance: torch.Generator
    ) -> None:
        assert model.training
        seen.rows.append(rows.tolist())
        seen.seeds.append(chance.initial_seed())

    def before_validation(parts: diffusion_step.DiffusionParts, config: Config) -> None:
        seen.states.append({name: p.detach().clone() for name, p in parts.model.named_parameters()})

    monkeypatch.setattr(diffusion_task, "optimizer_of", optimizer_of)
    if found is not None:
        wanted = iter(found)
        monkeypatch.setattr(diffusion_task, "validate", lambda parts, config: next(wanted))
    spy(monkeypatch, diffusion_task, "step", before_step)
    spy(monkeypatch, diffusion_task, "validate", before_validation)
    monkeypatch.setattr(stage, "fingerprint_of_files", lambda folder: str(folder))
    stage.finetune(config)
    return seen


def is_of(checkpoint: Path, state: dict[str, Tensor]) -> bool:
    """Whether a checkpoint holds the LoRA and the routers of a state."""
    unet = fake_backbone().unet
    load_lora(unet, checkpoint)
    loaded = load_finetuned(checkpoint)
    kept = {f"unet.{name}": p for name, p in lora_parameters(unet).items()}
    for kind, router in (("image", loaded.router_image), ("text", loaded.router_text)):
        kept |= {f"routers.{kind}.{name}": p for name, p in router.named_parameters()}
    assert kept.keys() == {
        name for name in state if ".lora_" in name or name.startswith("routers.")
    }
    return all(torch.equal(p, state[name]) for name, p in kept.items())


@pytest.mark.parametrize(
    ("denoising", "loss", "best"),
    [
        (
            [0.5, 0.3, 0.4, 0.6],
            [0.9, 0.8, 0.7, 0.6],
            1,
        ),  # the objective goes on falling, for its guidance
        (
            [0.5, 0.6, 0.7, 0.8],
            [0.9, 0.8, 0.7, 0.6],
            0,
        ),  # training made denoising worse: the start is kept
        ([0.5, 0.4, 0.3, 0.2], [0.5, 0.6, 0.7, 0.8], 3),
        ([0.5, 0.4, 0.4, 0.4], [0.5, 0.4, 0.3, 0.2], 1),  # of equals the first
    ],
)
@pytest.mark.slow
def test_the_checkpoint_of_the_lowest_held_out_denoising_loss_is_kept_whatever_the_guidance(
    tiny, monkeypatch, denoising, loss, best
):
    found = [{"loss": whole, "denoising": part} for whole, part in zip(loss, denoising)]
    seen = tuned(
        monkeypatch,
        tiny(finetune__learning_rate="0.01", finetune__router_learning_rate="0.01"),
        found,
    )
    assert [is_of(seen.folder / "best", state) for state in seen.states] == [
        number == best for number in range(4)
    ]
    assert is_of(seen.folder / "last", seen.states[-1])
    told = json.loads((seen.folder / "finished").read_text())
    assert told["best_validation_denoising"] == denoising[best]
    records = [
        json.loads(line) for line in (seen.folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["validation/denoising"] for record in records] == denoising
    assert [record["validation/loss"] for record in records] == loss


@pytest.mark.slow
def test_passes_go_through_the_rows_with_chances_of_their_own_and_rates_warm_up(tiny, monkeypatch):
    more = {
        "gradient_accumulation_steps": "2",
        "lr_warmup_steps": "2",
        "learning_rate": "0.004",
        "router_learning_rate": "0.02",
    }
    more |= {"lr_scheduler": "cosine", "max_train_steps": "4", "validation_steps": "2"}
    config = tiny(
        **{f"finetune__{name}": value for name, value in more.items()},
        run__seed="6",
        router__prior_order="levels",
    )
    seen = tuned(monkeypatch, config)
    rows = diffusion_data.StepRows(len(data_of(config, TableTargets()).train.rows), 3, 6)
    assert seen.rows == [rows.of(number).tolist() for number in range(8)]
    assert seen.seeds == [hash_seed(6, "pass of 0", number) for number in range(8)]
    assert (
        load_finetuned(seen.folder / "best").prior_order
        == load_finetuned(seen.folder / "last").prior_order
        == "levels"
    )
    assert [lora for lora, _ in seen.rates] == pytest.approx([0.002, 0.004, 0.004, 0.002])
    assert [routers for _, routers in seen.rates] == pytest.approx([0.01, 0.02, 0.02, 0.01])
    assert len(seen.states) == 3  # at the start, after two updates, at the end


class Second:
    """The second of two processes, as far as rows and chances go."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.process_index, self.num_processes = 1, 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


@pytest.mark.slow
def test_every_process_has_rows_and_chances_of_its_own(tiny, monkeypatch):
    fresh = stage.accelerator_of
    monkeypatch.setattr(stage, "accelerator_of", lambda *given: Second(fresh(*given)))
    config = tiny()
    seen = tuned(monkeypatch, config, [{"loss": 1.0, "denoising": 1.0}] * 4)
    rows = diffusion_data.StepRows(len(data_of(config, TableTargets()).train.rows), 3, 0, 1, 2)
    assert seen.rows == [rows.of(number).tolist() for number in range(3)]
    assert (
        not set(seen.seeds) & {hash_seed(0, "pass of 0", number) for number in range(3)}
        and len(set(seen.seeds)) == 3
    )


@pytest.mark.slow
def test_what_is_logged_is_the_mean_since_the_last_validation_and_the_end_is_validated(
    tiny, monkeypatch
):
    values = iter(range(1, 100))

    def step(model: nn.Module, *_: Any) -> StepLosses:
        weight = next(p for name, p in model.named_parameters() if name.startswith("routers."))
        return StepLosses.of({"denoising": 0 * weight.sum() + next(values)})

    monkeypatch.setattr(diffusion_task, "step", step)
    config = tiny(
        finetune__max_train_steps="5",
        finetune__validation_steps="2",
        finetune__gradient_accumulation_steps="2",
    )
    seen = tuned(monkeypatch, config, [{"loss": 1.0, "denoising": 1.0}] * 4)
    records = [
        json.loads(line) for line in (seen.folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["step"] for record in records] == [0, 2, 4, 5]
    assert [record.get("train/denoising") for record in records] == [None, 2.5, 6.5, 9.5]


@pytest.mark.slow
def test_a_finished_fine_tuning_is_left_alone_and_one_of_other_settings_refused(tiny, monkeypatch):
    """The data, encoders, backbone, routers, LoRA, settings and seed: none may change under
    a run.
    """
    found = [{"loss": 1.0, "denoising": 1.0}] * 2
    few = {"finetune__max_train_steps": "1"}
    folder = tuned(monkeypatch, tiny(**few), found).folder
    monkeypatch.setattr(stage, "fit", lambda *_: pytest.fail("tuned again"))
    monkeypatch.setattr(stage, "setup", lambda *_: pytest.fail("set up again"))
    assert stage.finetune(tiny(**few)) == folder
    changes = {
        "data.num_sessions": "1",
        "router.space": "weight",
        "lora.rank": "3",
        "finetune.learning_rate": "0.5",
    }
    for name, value in changes.items():
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            stage.finetune(tiny(**few, **{name.replace(".", "__"): value}))
    with pytest.raises(UserError, match="seed"):
        stage.finetune(tiny(**few, run__seed="4"))
    for part, what in (("embedding_decoder", "embedding_decoders"), ("backbone", "weights")):
        for name in ("fingerprint_of_files", "backbone_key"):
            monkeypatch.setattr(
                stage,
                name,
                lambda folder, *_, part=part: f"{folder}{' now' * (Path(folder).name == part)}",
            )
        with pytest.raises(UserError, match=what):
            stage.finetune(tiny(**few))


@pytest.mark.parametrize(
    ("place", "told"),
    [("step", "in step 2 of 3: denoising nan"), ("validate", "at step 0: validation/loss nan")],
)
@pytest.mark.slow
def test_a_fine_tuning_of_no_numbers_ends_as_no_success(tiny, monkeypatch, place, told):
    calls = iter(range(1, 100))

    def step(model: nn.Module, *_: Any) -> StepLosses:
        weight = next(p for name, p in model.named_parameters() if name.startswith("routers."))
        return StepLosses.of({"denoising": weight.sum() * (math.nan if next(calls) == 2 else 0.0)})

    if place == "step":
        monkeypatch.setattr(diffusion_task, "step", step)
    found = [{"loss": 1.0 if place == "step" else math.nan, "denoising": 1.0}] * 4
    config = tiny()
    with pytest.raises(UserError, match=told):
        tuned(monkeypatch, config, found)
    assert not (config.run.folder / "finetune" / "finished").exists()


@pytest.mark.slow
def test_lora_and_routers_learn_and_nothing_else_does(tiny, monkeypatch):
    config = tiny(
        finetune__learning_rate="0.01",
        finetune__router_learning_rate="0.01",
        finetune__adam_weight_decay="0",
    )
    seen = tuned(monkeypatch, config)
    moved = {
        name for name, value in seen.before.items() if not torch.equal(seen.states[-1][name], value)
    }
    trained = {name for name in seen.before if ".lora_" in name or name.startswith("routers.")}
    assert moved <= trained and trained - moved == set()
    assert {name.split(".")[1] for name in moved if name.startswith("routers.")} == {
        "image",
        "text",
    }


@pytest.mark.slow
def test_gradients_are_averaged_over_the_passes_of_an_update_and_clipped(
    tiny, monkeypatch, tmp_path
):
    values = iter(range(1, 100))

    def step(model: nn.Module, *_: Any) -> StepLosses:
        weight = next(p for name, p in model.named_parameters() if name.startswith("routers."))
        return StepLosses.of({"denoising": next(values) * weight.flatten()[0]})

    monkeypatch.setattr(diffusion_task, "step", step)
    found = [{"loss": 1.0, "denoising": 1.0}] * 4
    more = {"finetune__gradient_accumulation_steps": "3"}
    with monkeypatch.context() as patch:
        assert tuned(
            patch, tiny(finetune__clip_norm="1e9", **more), found
        ).gradients == pytest.approx([2, 5, 8], rel=1e-4)
    config = tiny(tmp_path / "clipped", finetune__clip_norm="0.25", **more)
    assert tuned(monkeypatch, config, found).gradients == pytest.approx([0.25] * 3, rel=1e-3)


@pytest.mark.slow
def test_weights_of_matrices_decay_and_others_do_not(tiny):
    config = tiny(
        finetune__adam_weight_decay="0.5",
        finetune__learning_rate="0.25",
        finetune__router_learning_rate="0.125",
    )
    model = stage.setup(config).model
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in diffusion_task.optimizer_of(model, config).param_groups
        for p in group["params"]
    }
    for name, parameter in diffusion_task.trained_parameters(model).items():
        assert found.pop(name) == (
            0.125 if name.startswith("routers.") else 0.25,
            0.5 if parameter.ndim > 1 else 0.0,
        )
    assert not found


@pytest.mark.parametrize("averaging", [True, False])
@pytest.mark.slow
def test_averaged_weights_are_validated_and_saved_and_trained_ones_go_on(
    tiny, monkeypatch, averaging
):
    more = {"use_ema": "true", "ema_decay": "0.9"} if averaging else {}
    more |= {"learning_rate": "0.01", "router_learning_rate": "0.01"}
    found = [{"loss": 1.0, "denoising": value} for value in (0.4, 0.3, 0.2, 0.1)]
    states: list[dict[str, Tensor]] = []
    with monkeypatch.context() as patch:
        spy(
            patch,
            diffusion_task.DiffusionTask,
            "updated",
            lambda self: states.append({k: p.detach().clone() for k, p in self.parameters.items()}),
        )
        seen = tuned(
            patch, tiny(**{f"finetune__{name}": value for name, value in more.items()}), found
        )
    mean = {name: seen.before[name].clone() for name in states[0]}
    for number, state in enumerate(states):
        # diffusers' EMAModel starts as the weights after the first update
        rate = 1 - min(0.9, (1 + number) / (10 + number)) if averaging and number else 1.0
        mean = {name: value + rate * (state[name] - value) for name, value in mean.items()}
    assert any(not torch.allclose(mean[name], states[-1][name]) for name in mean) == averaging
    for name, value in mean.items():
        torch.testing.assert_close(seen.states[-1][name], value, rtol=1e-4, atol=1e-6)
    assert is_of(seen.folder / "best", seen.states[-1]) and is_of(
        seen.folder / "last", seen.states[-1]
    )


def test_weights_of_the_mixed_errors_are_those_of_the_pass():
    """Image and text errors of a picture are mixed with the same weights, drawn anew for every
    picture.
    """
    weights_BJ = mixing_weights(400, 9, generator())
    assert weights_BJ.square().sum(1).mean().item() == pytest.approx(
        1, rel=0.15
    ) and not torch.equal(weights_BJ[0], weights_BJ[1])
