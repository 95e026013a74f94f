"""The whole decoder as one diffusers pipeline: voxels in, pictures out, saved in one folder.

B brains (pictures), R presentations, V voxels, T tokens, D embedding width, N text length, C cross-attention width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import AutoencoderKL, DiffusionPipeline, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.utils import BaseOutput
import numpy as np
from PIL import Image
from safetensors.torch import save_file
import torch
from torch import Tensor

from braingen.brain.reader import BrainReader
from braingen.clip.text_target import CLIPTextEncoderDual
from braingen.data.batches import average_repeats
from braingen.diffusion.sample import decode_latents, denoise, latent_shape, seeded_noise
from braingen.diffusion.sdxl import (
    add_ip_adapter,
    image_embedding_width,
    load_ip_adapter_file,
    picture_size,
    pooled_width,
    without_ip_adapter,
)
from braingen.diffusion.sdxl import ip_adapter_weights as adapter_weights_of
from braingen.errors import UserError
from braingen.records import ExpertEmbeddings
from braingen.routing.conditioning import ConditioningForm, RoutedConditioning, Source, map_embeddings, through_prior

IP_ADAPTER = Path("ip_adapter") / "ip-adapter.safetensors"


class Decoded(NamedTuple):
    """What was read out of the brain, before anything is drawn."""

    image_BTD: Tensor
    """CLIP image embedding, in CLIP's own units."""
    text_BTD: Tensor
    """End-of-sequence state of the text encoder, in its own units."""
    image_clip_BTD: Tensor
    """The image encoder's projected output, for retrieval; standardised units."""
    text_clip_BTD: Tensor


@dataclass
class BrainDecoderOutput(BaseOutput):
    """Pictures and what they were drawn from."""

    images: list[Image.Image]
    decoded: Decoded


class BrainDecoder(DiffusionPipeline):
    """Decodes what a person saw.

    ``BrainDecoder.from_pretrained(folder)(voxels, subject=1).images``

    Parameters
    ----------
    brain_image, brain_text : readers of the image and the text embedding
    unet : with the IP-Adapter in place
    vae, scheduler : as in an SDXL pipeline
    start_C : start token in cross-attention columns, zeros where nothing is predicted
    text_length : tokens of a prompt
    text_columns : first and last-but-one column the text reader predicts
    """

    model_cpu_offload_seq = "brain_image->brain_text->unet->vae"

    def __init__(
        self,
        brain_image: BrainReader,
        brain_text: BrainReader,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: EulerDiscreteScheduler,
        start_C: Sequence = (),  # of float; diffusers remarks on annotations that are no plain class
        text_length: int = 77,
        text_columns: Sequence = (0, 0),
    ) -> None:
        super().__init__()
        self.register_modules(brain_image=brain_image, brain_text=brain_text, unet=unet, vae=vae, scheduler=scheduler)
        self.register_to_config(start_C=list(start_C), text_length=text_length, text_columns=list(text_columns))

    @classmethod
    def assemble(
        cls,
        brain_image: BrainReader,
        brain_text: BrainReader,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: EulerDiscreteScheduler,
        text_encoder: CLIPTextEncoderDual,
    ) -> BrainDecoder:
        """Put a decoder together; the text encoder is only asked for its start token and widths."""
        form = ConditioningForm.of(
            text_encoder,
            cross_attention_dim=unet.config.cross_attention_dim,
            pooled_dim=pooled_width(unet),
            image_shape=(1, image_embedding_width(unet)),
        )
        return cls(brain_image, brain_text, unet, vae, scheduler, form.start_C.tolist(), form.text_length, form.text_columns)

    @property
    def form(self) -> ConditioningForm:
        """The shape of what the U-Net reads."""
        first, last = self.config.text_columns
        start_C = torch.tensor(self.config.start_C)
        image_shape = (1, image_embedding_width(self.unet))
        form = ConditioningForm(start_C, self.config.text_length, (first, last), pooled_width(self.unet), image_shape)
        return form.to(self.unet.device, self.unet.dtype)

    @torch.no_grad()
    def embed(self, voxels_BRV: Tensor, subject: int, image_ids: Sequence[int], seed: int = 0, present_BR: Tensor | None = None) -> Decoded:
        """Read embeddings out of voxels; outputs of an image's presentations are averaged before the prior.

        Parameters
        ----------
        voxels_BRV : z-scored responses, R presentations of each picture
        subject : whose voxels
        image_ids : with the seed they determine the prior's noise
        present_BR : which presentations there are; all when left out
        """
        present_BR = torch.ones(voxels_BRV.shape[:2], dtype=torch.bool) if present_BR is None else present_BR
        image, text = (
            _read(reader, name, voxels_BRV, present_BR, subject, image_ids, seed)
            for name, reader in (("image", self.brain_image), ("text", self.brain_text))
        )
        return Decoded(image.backbone_BTD, text.backbone_BTD, image.clip_BTD, text.clip_BTD)

    @torch.no_grad()
    def draw(
        self,
        image_BTD: Tensor | None,
        text_BTD: Tensor | None,
        image_ids: Sequence[int],
        *,
        seed: int = 0,
        steps: int = 30,
        guidance_scale: float = 15.0,
        ip_adapter_scale: float = 1.0,
        size: int = 0,
    ) -> Tensor:
        """Draw pictures from embeddings in CLIP's own units; one of the two may be None.

        Returns
        -------
        images_B3HW : float32 in [0, 1]. The same id and seed start from the same noise, in whatever batch.
        """
        size = size or picture_size(self.unet, self.vae)
        noise = seeded_noise(image_ids, latent_shape(self.unet, self.vae, size), seed, "picture").to(self.unet.device, self.unet.dtype)
        for processor in self.unet.attn_processors.values():
            if hasattr(processor, "to_k_ip"):
                processor.scale = [ip_adapter_scale] * len(processor.scale)
        form = self.form
        condition = RoutedConditioning(form, image=_source(image_BTD, form), text=_source(text_BTD, form))
        latents = denoise(
            self.unet,
            self.scheduler,
            noise,
            condition,
            form.empty(len(noise)),
            size=size,
            steps=steps,
            guidance_scale=guidance_scale,
        )
        return decode_latents(self.vae, latents)

    @torch.no_grad()
    def __call__(
        self,
        voxels: np.ndarray | Tensor,
        subject: int,
        *,
        image_ids: Sequence[int] | None = None,
        seed: int = 0,
        num_inference_steps: int = 30,
        guidance_scale: float = 5.0,
        batch_size: int = 8,
    ) -> BrainDecoderOutput:
        """Decode voxels.

        Parameters
        ----------
        voxels : B x V (one presentation each) or B x R x V, z-scored as in the betas file
        subject : number the readers were trained with
        image_ids : seeds of the pictures, 0 to B - 1 when left out
        num_inference_steps, guidance_scale : of the denoising

        Raises
        ------
        UserError
            When voxels do not fit the subject, or ids do not fit the voxels.
        """
        given = torch.as_tensor(voxels, dtype=torch.float32, device=self.brain_image.device)
        if given.ndim not in (2, 3) or not given.numel() or not torch.isfinite(given).all():
            raise UserError(f"voxels are {tuple(given.shape)}; expected B x V or B x R x V of finite numbers")
        given = given[:, None] if given.ndim == 2 else given
        ids = list(range(len(given))) if image_ids is None else [int(i) for i in image_ids]
        if len(ids) != len(given):
            raise UserError(f"image_ids names {len(ids)} pictures, voxels are of {len(given)}; give one id for each.")
        images: list[Image.Image] = []
        parts: list[Decoded] = []
        for start in range(0, len(given), batch_size):
            some = slice(start, start + batch_size)
            parts.append(self.embed(given[some], subject, ids[some], seed))
            drawn = self.draw(
                parts[-1].image_BTD, parts[-1].text_BTD, ids[some], seed=seed, steps=num_inference_steps, guidance_scale=guidance_scale
            )
            images += to_pil(drawn)
        return BrainDecoderOutput(images, Decoded(*(torch.cat(column) for column in zip(*parts))))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save everything in one folder; the IP-Adapter lies in a file of its own, as everywhere."""
        adapter = {key: value.contiguous() for key, value in adapter_weights_of(self.unet).items()}
        with_adapter = self.unet
        self.register_modules(unet=without_ip_adapter(self.unet))
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.register_modules(unet=with_adapter)
        path = Path(save_directory) / IP_ADAPTER
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(adapter, path)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> BrainDecoder:
        """Load what :meth:`save_pretrained` wrote."""
        folder = Path(pretrained_model_name_or_path)
        if not (folder / "model_index.json").is_file():
            raise UserError(f"{folder} is not a saved decoder (no model_index.json); `braingen demo` leaves one in runs/demo/decoder.")
        decoder: BrainDecoder = super().from_pretrained(folder, **kwargs)
        add_ip_adapter(decoder.unet, load_ip_adapter_file(str(folder / IP_ADAPTER)))
        return decoder


def to_pil(images_B3HW: Tensor) -> list[Image.Image]:
    """Pictures in [0, 1] to Pillow's, rounded to 8 bits."""
    pixels = (images_B3HW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def _read(
    reader: BrainReader, name: str, voxels_BRV: Tensor, present_BR: Tensor, subject: int, image_ids: Sequence[int], seed: int
) -> ExpertEmbeddings:
    """Encoder outputs averaged over presentations, then through the prior; the backbone output in CLIP's own units."""
    count, repeats = voxels_BRV.shape[:2]
    each = reader(voxels_BRV.flatten(0, 1), subject)
    mean = map_embeddings(each, lambda x: average_repeats(x.unflatten(0, (count, repeats)), present_BR.to(x.device)))
    shape = reader.noise_shape
    noise = seeded_noise(image_ids, shape, seed, f"prior of {name}").to(voxels_BRV) if shape else None
    return through_prior(mean, lambda x: reader.embedding(x, noise), of="output")


def _source(embedding_BTD: Tensor | None, form: ConditioningForm) -> Source | None:
    if embedding_BTD is None:
        return None
    whole = embedding_BTD.to(form.start_C)
    nothing = whole.new_zeros(())
    return Source(ExpertEmbeddings(whole, whole, whole[:, None], whole[:, None], (), (), (), nothing))
