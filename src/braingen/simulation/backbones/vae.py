"""The tiny variational autoencoder: an AutoencoderKL of factor 8, as SDXL's."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from braingen.simulation.backbones.training import Losses, train

THUMBNAIL = 8
# luminance, red-green, blue-yellow: plain RGB losses lose green and purple at this size
_OPPONENT = torch.tensor([[0.33, 0.34, 0.33], [0.5, -0.5, 0.0], [-0.25, -0.25, 0.5]])


class _Trained(nn.Module):
    """The autoencoder with an auxiliary head that adds colour to its latents early on."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = AutoencoderKL(
            block_out_channels=(24, 32, 64, 96),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            mid_block_add_attention=False,
            force_upcast=False,
            sample_size=128,
        )
        self.colour_head = nn.Conv2d(4, 3, 1)


def _opponent(images: Tensor) -> Tensor:
    return torch.einsum("oc,bchw->bohw", _OPPONENT, images)


def _gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:, :] - images[..., :-1, :], images[..., :, 1:] - images[..., :, :-1]


def train_vae(
    images_N3HW: np.ndarray, folder: Path, steps: int = 5000, full_size_steps: int = 600
) -> AutoencoderKL:
    """Train on crops, then on whole images; sets ``scaling_factor`` to 1 / sd of the latents."""
    torch.manual_seed(0)
    trained = _Trained()
    side, first_full = images_N3HW.shape[-1], steps - full_size_steps

    def losses_of(step: int, generator: torch.Generator) -> Losses:
        crop, batch = (side // 2, 16) if step < first_full else (side, 4)
        rows = torch.randint(len(images_N3HW), (batch,), generator=generator)
        tops = torch.randint(0, side - crop + 1, (batch, 2), generator=generator)
        cut = [
            images_N3HW[i, :, y : y + crop, x : x + crop]
            for i, (y, x) in zip(rows.tolist(), tops.tolist())
        ]
        truth = torch.from_numpy(np.stack(cut)).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = trained.vae.encode(truth).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            latents = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator)
            output = trained.vae.decode(latents).sample.float()
        difference = output - truth
        gradients = sum((a - b).abs().mean() for a, b in zip(_gradients(output), _gradients(truth)))
        chroma = _opponent(difference)[:, 1:]
        losses = {
            "l1": difference.abs().mean(),
            "mse": difference.square().mean(),
            "edges": 0.5 * gradients,
            "chroma": 0.5 * chroma.abs().mean() + chroma.square().mean(),
            "kl": 2e-5 * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
        }
        early = max(0.0, 1 - 2 * step / steps)
        if early:
            guess = interpolate(
                trained.colour_head(latents), size=(THUMBNAIL, THUMBNAIL), mode="area"
            )
            losses["thumbnail"] = (
                1.5
                * early
                * (guess - adaptive_avg_pool2d(_opponent(truth), THUMBNAIL)).square().mean()
            )
        return losses

    train(trained, losses_of, folder, name="vae", steps=steps, learning_rate=2e-3, ema=0.995)
    vae = trained.vae
    with torch.no_grad():
        sample = torch.from_numpy(images_N3HW[:256]).float() / 127.5 - 1
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in sample.split(16)])
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return vae


def sharpen_decoder(
    vae: AutoencoderKL, images_N3HW: np.ndarray, latents_N4HW: Tensor, folder: Path, steps: int
) -> AutoencoderKL:
    """Train only the decoder on crops of fixed latents: images gain detail, latents stay valid.

    Parameters
    ----------
    latents_N4HW : Tensor
        Scaled latents of the first N images.
    """
    torch.manual_seed(4)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    factor, cut = 8, 8
    positions = latents_N4HW.shape[-1] - cut + 1

    def losses_of(step: int, generator: torch.Generator) -> Losses:
        rows = torch.randint(len(latents_N4HW), (12,), generator=generator)
        corners = torch.randint(0, positions, (len(rows), 2), generator=generator).tolist()
        places = list(zip(rows.tolist(), corners))
        latents = torch.stack(
            [latents_N4HW[i, :, y : y + cut, x : x + cut] for i, (y, x) in places]
        ).float()
        pixels = [
            images_N3HW[i, :, factor * y : factor * (y + cut), factor * x : factor * (x + cut)]
            for i, (y, x) in places
        ]
        truth = torch.from_numpy(np.stack(pixels)).float() / 127.5 - 1
        # sampled latents are not exact either
        latents = latents + 0.05 * torch.randn(latents.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            output = vae.decode(latents / vae.config.scaling_factor).sample.float()
        border = (
            slice(4, -4) if cut < latents_N4HW.shape[-1] else slice(None)
        )  # a crop's border lacks the image's neighbouring pixels
        output, truth = output[..., border, border], truth[..., border, border]
        difference = output - truth
        edges = sum((a - b).abs().mean() for a, b in zip(_gradients(output), _gradients(truth)))
        chroma = _opponent(difference)[:, 1:].abs().mean()
        return {
            "l1": difference.abs().mean(),
            "mse": difference.square().mean(),
            "edges": 0.5 * edges,
            "chroma": 0.5 * chroma,
        }

    train(vae, losses_of, folder, name="decoder", steps=steps, learning_rate=1e-3, ema=0.995)
    return vae
