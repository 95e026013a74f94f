"""Train the tiny SDXL U-Net and its IP-Adapter on image, text, both or no conditions."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
import numpy as np
import torch
from torch import Tensor, nn

from braingen.generation.attention import use_attention
from braingen.pretrained.sdxl import add_ip_adapter
from braingen.simulation.backbones.clip import TinyCLIP, clip_pixels
from braingen.simulation.backbones.corpus import Corpus
from braingen.simulation.backbones.training import Losses, train

IMAGE_TOKENS = 4
"""Tokens the IP-Adapter makes of one image embedding, as h94/IP-Adapter for SDXL."""
SNR_LIMIT = 5.0
SHARES = {"both": 0.42, "image": 0.30, "text": 0.18}
"""Shares of the conditions; the rest has none."""
PUBLISHED_TEXT_SHARE = 0.5
"""Share of the texts that are the start token and one repeated vector, as a decoder gives them."""


class Conditions(NamedTuple):
    """Outputs of frozen models, once per image."""

    latents_N4HW: Tensor
    """Scaled VAE latents, float16."""
    image_ND: Tensor
    """CLIP image embeddings."""
    caption_of_N5: Tensor
    """Rows of the two tables below for each image's captions."""
    text_UTC: Tensor
    """Cross-attention tokens of every distinct caption, float16: penultimate states of both
    encoders side by side.
    """
    pooled_UD: Tensor
    end_N: Tensor
    """End-of-sequence penultimate state of the second encoder, mean of captions (N x C2)."""
    start_C: Tensor
    """Penultimate state of the second encoder's start token."""


def scheduler() -> EulerDiscreteScheduler:
    """SDXL's noise schedule, predicting velocity; sampling begins at its last, noisiest time.

    SDXL's own spacing of the times ("leading") begins few steps at a time where a fifth of the
    signal is left, and spends the last of them where none of the noise is (Lin et al. 2024).
    """
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )


def new_unet(
    sample_size: int, cross_attention_dim: int, pooled_dim: int, image_dim: int
) -> UNet2DConditionModel:
    """An SDXL-shaped U-Net with a fresh IP-Adapter, all random."""
    time_width = 32
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=(80, 160, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1,
        layers_per_block=1,
        attention_head_dim=(2, 5, 6),  # SDXL's name for the number of heads
        cross_attention_dim=cross_attention_dim,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=6 * time_width + pooled_dim,
        norm_num_groups=16,
    )
    tokens, norm = (
        nn.Linear(image_dim, IMAGE_TOKENS * cross_attention_dim),
        nn.LayerNorm(cross_attention_dim),
    )
    weights = {
        f"image_proj.proj.{key}": value.detach() for key, value in tokens.state_dict().items()
    }
    weights |= {
        f"image_proj.norm.{key}": value.detach() for key, value in norm.state_dict().items()
    }
    modules = dict(unet.named_modules())
    cross = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    for order, name in enumerate(
        cross
    ):  # the adapter's files number cross-attentions 1, 3, 5 ... in the order of attn_processors
        for part in ("to_k_ip", "to_v_ip"):
            fresh = nn.Linear(cross_attention_dim, modules[name].inner_dim, bias=False)
            weights[f"ip_adapter.{2 * order + 1}.{part}.weight"] = fresh.weight.detach()
    add_ip_adapter(unet, weights)
    return unet


@torch.inference_mode()
def _encode_pictures(
    images_N3HW: np.ndarray, vae: AutoencoderKL, clip: TinyCLIP
) -> tuple[Tensor, Tensor]:
    latents, embeddings = [], []
    for start in range(0, len(images_N3HW), 50):
        images = torch.from_numpy(np.array(images_N3HW[start : start + 50])).float() / 255
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(
                (vae.encode(images * 2 - 1).latent_dist.mean * vae.config.scaling_factor).half()
            )
        embeddings.append(clip.image(pixel_values=clip_pixels(images)).image_embeds)
    return torch.cat(latents), torch.cat(embeddings)


@torch.inference_mode()
def encode_conditions(data: Corpus, vae: AutoencoderKL, clip: TinyCLIP, folder: Path) -> Conditions:
    """Compute all frozen outputs, or load them; images are saved in pieces of 1000."""
    folder.mkdir(parents=True, exist_ok=True)
    latents, embeddings = [], []
    for start in range(0, len(data.images_N3HW), 1000):
        path = folder / f"pictures_{start:06d}.pt"
        if not path.exists():
            torch.save(
                _encode_pictures(data.images_N3HW[start : start + 1000], vae, clip),
                path.with_suffix(".tmp"),
            )
            path.with_suffix(".tmp").replace(path)
        piece = torch.load(path, weights_only=True)
        latents.append(piece[0])
        embeddings.append(piece[1])
    distinct = sorted({text for five in data.captions for text in five})
    row = {text: i for i, text in enumerate(distinct)}
    caption_of = torch.tensor([[row[text] for text in five] for five in data.captions])
    tokens, pooled, ends = [], [], []
    for start in range(0, len(distinct), 500):
        batch = clip.tokenizer(
            distinct[start : start + 500],
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        first = clip.text_1(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[
            -2
        ]
        second = clip.text_2(input_ids=batch["input_ids"], output_hidden_states=True)
        states = second.hidden_states[-2]
        end = (batch["input_ids"] == clip.tokenizer.eos_token_id).int().argmax(1)
        tokens.append(torch.cat([first, states], -1).half())
        pooled.append(second.text_embeds)
        ends.append(states[torch.arange(len(states)), end])
        start_state = states[0, 0]
    end_N = torch.cat(ends)[caption_of].mean(1)
    return Conditions(
        torch.cat(latents),
        torch.cat(embeddings),
        caption_of,
        torch.cat(tokens),
        torch.cat(pooled),
        end_N,
        start_state,
    )


class _Batch(NamedTuple):
    latents_B4HW: Tensor
    text_BTC: Tensor
    pooled_BD: Tensor
    image_BD: Tensor


def _draw(conditions: Conditions, batch: int, generator: torch.Generator) -> _Batch:
    """Sample a batch whose conditions are kept or dropped by SHARES; dropped ones are zeros."""

    def uniform() -> Tensor:
        return torch.rand(batch, generator=generator)

    rows = torch.randint(len(conditions.latents_N4HW), (batch,), generator=generator)
    image = conditions.image_ND[rows]
    shaky = (uniform() < 0.25) * uniform() * 0.4  # decoded embeddings are never exact
    image = image + shaky[:, None] * conditions.image_ND.std(0) * torch.randn(
        image.shape, generator=generator
    )
    caption = conditions.caption_of_N5[rows, torch.randint(5, (batch,), generator=generator)]
    text, pooled = conditions.text_UTC[caption].float(), conditions.pooled_UD[caption]
    width_2 = conditions.start_C.shape[0]
    published = torch.zeros_like(text)
    published[:, 0, -width_2:] = conditions.start_C
    published[:, 1:, -width_2:] = conditions.end_N[rows][:, None]
    as_published = uniform() < PUBLISHED_TEXT_SHARE
    text = torch.where(as_published[:, None, None], published, text)
    pooled = pooled * (~as_published & (uniform() < 0.5))[:, None]
    kind = uniform()
    with_image = kind < SHARES["both"] + SHARES["image"]
    with_text = (kind < SHARES["both"]) | (~with_image & (kind < sum(SHARES.values())))
    return _Batch(
        conditions.latents_N4HW[rows].float(),
        text * with_text[:, None, None],
        pooled * with_text[:, None],
        image * with_image[:, None],
    )


def train_unet(
    conditions: Conditions,
    folder: Path,
    side: int,
    steps: int,
    first: UNet2DConditionModel | None = None,
    batch: int = 32,
    rate: float = 1e-3,
) -> UNet2DConditionModel:
    """Train the U-Net and its IP-Adapter together.

    Under several processes each samples its own batch of ``batch`` images, and
    gradients are averaged.

    Parameters
    ----------
    first : UNet2DConditionModel | None, optional
        U-Net with an IP-Adapter to start from; random weights by default.
    """
    torch.manual_seed(3)
    latent_side = conditions.latents_N4HW.shape[-1]
    unet = first or new_unet(
        latent_side,
        conditions.text_UTC.shape[-1],
        conditions.pooled_UD.shape[-1],
        conditions.image_ND.shape[-1],
    )
    use_attention(unet, "plain")
    alphas = scheduler().alphas_cumprod
    time_ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32).expand(batch, -1)

    def losses_of(step: int, generator: torch.Generator) -> Losses:
        sample = _draw(conditions, batch, generator)
        # stratified times: every batch covers the whole range of noise
        times = (
            (torch.arange(batch) + torch.rand(batch, generator=generator)) * (len(alphas) / batch)
        ).long()
        alpha = alphas[times].view(-1, 1, 1, 1)
        noise = torch.randn(sample.latents_B4HW.shape, generator=generator)
        noisy = alpha.sqrt() * sample.latents_B4HW + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * sample.latents_B4HW
        with torch.autocast("cpu", torch.bfloat16):
            guess = unet(
                noisy,
                times,
                encoder_hidden_states=sample.text_BTC,
                added_cond_kwargs={
                    "text_embeds": sample.pooled_BD,
                    "time_ids": time_ids,
                    "image_embeds": [sample.image_BD[:, None]],
                },
            ).sample
        # an error of the clean image counts min(SNR + 1, limit) times, so that the noisy end, which
        # determines shapes, keeps its weight
        snr = alpha / (1 - alpha)
        weight = (snr + 1).clamp(max=SNR_LIMIT) / (snr + 1)
        return {"velocity": (weight * (guess.float() - velocity).square()).mean()}

    train(
        unet,
        losses_of,
        folder,
        name="unet",
        steps=steps,
        learning_rate=rate,
        ema=0.999,
        weight_decay=0.01,
    )
    return unet
