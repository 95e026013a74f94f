"""The fine-tuning objective against diffusers' schedulers and against what min-SNR
weighting means.
"""

from __future__ import annotations

from diffusers import DDPMScheduler, EulerDiscreteScheduler
import pytest
import torch

from braingen.runtime.errors import UserError
from braingen.training.diffusion_loss import (
    denoising_loss,
    min_snr_weight,
    noisy_latents,
    offset_noise,
    prediction_target,
    signal_to_noise,
)

SDXL = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
TIMES = torch.tensor([0, 10, 250, 500, 999])


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, 3, 3, generator=generator), torch.randn(
        5, 4, 3, 3, generator=generator
    )


def test_noise_and_targets_are_the_schedulers(pair):
    latents, noise = pair
    scheduler = DDPMScheduler(**SDXL)
    table = scheduler.alphas_cumprod
    torch.testing.assert_close(
        noisy_latents(table, latents, noise, TIMES), scheduler.add_noise(latents, noise, TIMES)
    )
    velocity = scheduler.get_velocity(latents, noise, TIMES)
    torch.testing.assert_close(
        prediction_target(table, latents, noise, TIMES, "v_prediction"), velocity
    )
    assert prediction_target(table, latents, noise, TIMES) is noise


def test_noisy_latents_are_what_the_unet_reads_while_sampling(pair):
    latents, noise = pair
    euler = EulerDiscreteScheduler(**SDXL, timestep_spacing="trailing")
    euler.set_timesteps(1000)
    for t in (999, 400, 3):
        at = (euler.timesteps == t).nonzero().item()
        scaled = euler.scale_model_input(latents + euler.sigmas[at] * noise, euler.timesteps[at])
        euler._step_index = None
        ours = noisy_latents(euler.alphas_cumprod, latents, noise, torch.full((5,), t))
        torch.testing.assert_close(scaled, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [1.5, 5.0])
def test_weighted_error_is_the_pictures_error_up_to_the_limit(prediction, gamma, pair):
    latents, noise = (x.double() for x in pair)
    table = DDPMScheduler(**SDXL).alphas_cumprod.double()
    alpha = table[TIMES].view(-1, 1, 1, 1)
    noisy = noisy_latents(table, latents, noise, TIMES)
    target = prediction_target(table, latents, noise, TIMES, prediction)
    guess = target + 0.1 * torch.randn(
        target.shape, generator=torch.Generator().manual_seed(1), dtype=target.dtype
    )
    if prediction == "epsilon":
        picture = (noisy - (1 - alpha).sqrt() * guess) / alpha.sqrt()
    else:
        picture = alpha.sqrt() * noisy - (1 - alpha).sqrt() * guess
    snr = signal_to_noise(table, TIMES)
    expected = snr.clamp(max=gamma) * (picture - latents).square().flatten(1).mean(1)
    ours = denoising_loss(guess, target, min_snr_weight(snr, gamma, prediction))
    torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-7)


def test_no_weighting_and_pure_noise():
    assert min_snr_weight(torch.tensor([0.0, 3.0]), None).tolist() == [1, 1]
    assert min_snr_weight(torch.tensor([0.0, 3.0]), 1.5).tolist() == [1, 0.5]
    assert min_snr_weight(torch.tensor([0.0, 3.0]), 1.5, "v_prediction").tolist() == [0, 0.375]


def test_noise_offset_shifts_channels():
    noise = torch.randn(2000, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert offset_noise(noise, 0.0) is noise
    shifted = offset_noise(noise, 0.5, torch.Generator().manual_seed(1))
    difference = shifted - noise
    torch.testing.assert_close(
        difference, difference[..., :1, :1].expand_as(difference), rtol=0, atol=1e-5
    )
    assert difference.std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(shifted, offset_noise(noise, 0.5, torch.Generator().manual_seed(1)))


def test_settings_that_cannot_be_are_refused(pair):
    with pytest.raises(UserError, match="snr_gamma is 0"):
        min_snr_weight(torch.ones(1), 0)
    with pytest.raises(UserError, match="'sample'"):
        min_snr_weight(torch.ones(1), 1.5, "sample")
    with pytest.raises(UserError, match="'sample'"):
        prediction_target(torch.ones(1), *pair, torch.zeros(5, dtype=torch.long), "sample")
