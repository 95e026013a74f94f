"""The whole decoder as one diffusers pipeline: voxels in, images out, saved in one folder.

B brains (pictures), R presentations, V voxels, T tokens, D embedding width, N text length, C
cross-attention width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
import numpy as np
from PIL import Image
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from braingen.config.shipped import backbone_folder
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.generation.brain_encoders import BrainEncoders, refuse_half, refuse_level
from braingen.generation.conditioned_unet import (
    PriorOrder,
    RoutingRecorder,
    expert_counts,
    source_of,
)
from braingen.generation.lora import has_lora, is_fused, load_lora
from braingen.generation.output import (
    BrainDecoderOutput,
    Decoded,
    DecodedEmbeddings,
    DecodingUncertainty,
    spread_of_samples,
)
from braingen.generation.sampling import (
    CoarseImage,
    OnStep,
    decode_latents,
    denoise,
    latent_shape,
    seeded_generators,
    seeded_noise,
)
from braingen.generation.storage import INDEX, IP_ADAPTER, LORA, PARTS, StoredPipeline
from braingen.generation.voxel_input import VoxelInput, given_voxels
from braingen.pretrained.hub import quiet
from braingen.pretrained.sdxl import (
    image_embedding_width,
    image_size,
    pooled_width,
    refuse_side,
    vae_factor,
)
from braingen.routing.conditioning import ConditioningForm, ConditioningSource, RoutedConditioning
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.errors import UserError
from braingen.runtime.memory import give_back
from braingen.targets.clip_text import CLIPTextEncoderDual
from braingen.targets.text_form import HasTextForm
from braingen.types import Conditioning, ExpertStack

__all__ = [
    "INDEX",
    "IP_ADAPTER",
    "LORA",
    "PARTS",
    "BrainDecoder",
    "BrainDecoderOutput",
    "Decoded",
    "DecodedEmbeddings",
    "fitting",
    "negative_condition",
    "to_pil",
]
Embeddings = Tensor | ExpertStack | None
"""What :meth:`BrainDecoder.decode_embeddings` returns (standardised units), or B x T x D embeddings
in CLIP's own units.
"""


class BrainDecoder(StoredPipeline):
    """Decodes what a person saw.

    ``BrainDecoder.from_pretrained(folder).decode(voxels, subject=1).images``; a folder, or a
    repository of the hub, ``user/name``.

    Parameters
    ----------
    brain_image, brain_text : EmbeddingDecoder
        Embedding decoders of the image and the text embedding; the second may be None (data without
        captions), and pictures are then generated from the image embedding alone.
    unet : UNet2DConditionModel
        With the IP-Adapter in place.
    vae, scheduler : AutoencoderKL
        As in an SDXL pipeline.
    start_C : Sequence, optional
        Start token in cross-attention columns, zeros where nothing is predicted.
    text_length : int, optional
        Tokens of a prompt.
    text_columns : Sequence, optional
        First and last-but-one column the text embedding decoder predicts.
    router_image, router_text : DiffuseRouter | None, optional
        Trained routers; without them the encoders' outputs condition the U-Net unrouted.
    prior_order : str, optional
        What the priors are applied to (setting ``router.prior_order``); has to be what the routers
        were trained with.
    brain_low_level : LatentEncoder | None, optional
        Low-level path, whose coarse image the denoising starts from.

    Notes
    -----
    Half precision is the U-Net's alone (:mod:`braingen.runtime.precision`), in
    ``from_pretrained(folder, torch_dtype=torch.float16)`` as in ``.to(torch.float16)``.
    Model offload, and slicing and tiling of the autoencoder, work as for any
    pipeline of diffusers.
    """

    model_cpu_offload_seq = "brain_image->brain_text->brain_low_level->unet->vae"
    _optional_components: ClassVar[list[str]] = [
        "brain_text",
        "brain_low_level",
        "router_image",
        "router_text",
    ]

    def __init__(
        self,
        brain_image: EmbeddingDecoder,
        brain_text: EmbeddingDecoder | None,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: KarrasDiffusionSchedulers,
        # of float; diffusers remarks on annotations that are no plain class
        start_C: Sequence = (),
        text_length: int = 77,
        text_columns: Sequence = (0, 0),
        router_image: DiffuseRouter | None = None,
        router_text: DiffuseRouter | None = None,
        prior_order: str = "output",
        brain_low_level: LatentEncoder | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            brain_image=brain_image, brain_text=brain_text, unet=unet, vae=vae, scheduler=scheduler
        )
        self.register_modules(router_image=router_image, router_text=router_text)
        self.register_modules(brain_low_level=brain_low_level)
        form = {
            "start_C": list(start_C),
            "text_length": text_length,
            "text_columns": list(text_columns),
        }
        self.register_to_config(**form, prior_order=prior_order)
        if prior_order == "step":  # the priors are used between the steps, and stay on the device
            self.model_cpu_offload_seq = "brain_low_level->unet->vae"
            self._exclude_from_cpu_offload = ["brain_image", "brain_text"]

    @classmethod
    def assemble(
        cls,
        brain_image: EmbeddingDecoder,
        brain_text: EmbeddingDecoder | None,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        text_encoder: HasTextForm,
        *,
        lora: Path | str | None = None,
        router_image: DiffuseRouter | None = None,
        router_text: DiffuseRouter | None = None,
        prior_order: PriorOrder = "output",
        low_level: LatentEncoder | None = None,
    ) -> BrainDecoder:
        """Put a decoder together.

        Parameters
        ----------
        text_encoder : HasTextForm
            Its start token and widths are used, nothing else.
        lora : Path | str | None, optional
            File or folder of a LoRA to put into the U-Net.
        router_image, router_text, prior_order : DiffuseRouter | None, optional
            See the class.
        low_level : LatentEncoder | None, optional
            See `brain_low_level` of the class.
        """
        form = ConditioningForm.of(
            text_encoder,
            cross_attention_dim=unet.config.cross_attention_dim,
            pooled_dim=pooled_width(unet),
            image_shape=(1, image_embedding_width(unet)),
        )
        if lora is not None:
            load_lora(unet, lora)
        form_config = (form.start_C.tolist(), form.text_length, form.text_columns)
        return cls(
            brain_image,
            brain_text,
            unet,
            vae,
            scheduler,
            *form_config,
            router_image,
            router_text,
            prior_order,
            low_level,
        )

    @property
    def form(self) -> ConditioningForm:
        """The shape of what the U-Net reads."""
        first, last = self.config.text_columns
        start_C = torch.tensor(self.config.start_C)
        image_shape = (1, image_embedding_width(self.unet))
        form = ConditioningForm(
            start_C, self.config.text_length, (first, last), pooled_width(self.unet), image_shape
        )
        return form.to(self._execution_device)

    def to(self, *args: Any, **kwargs: Any) -> BrainDecoder:
        """Move to a device, and change the type of the U-Net; everything else stays float32.

        Parameters
        ----------
        *args, **kwargs
            As for any pipeline of diffusers: a device, a type, or both.
        """
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        dtype = next((each for each in args if isinstance(each, torch.dtype)), dtype)
        rest = [each for each in args if not isinstance(each, torch.dtype)]
        super().to(*rest, **{"silence_dtype_warnings": True, **kwargs})
        if dtype is not None:
            with quiet():  # it remarks on what it keeps in float32, which is nothing
                self.unet.to(dtype)
        return self

    def fuse_lora(self) -> None:
        """Add the LoRA to the U-Net's weights, as ``StableDiffusionXLPipeline.fuse_lora``.

        Each step is faster then, and every level and step still has the LoRA
        (:func:`braingen.generation.lora.merged_lora`). Take it out with :meth:`unfuse_lora` before
        training or saving. Without a LoRA nothing happens.
        """
        if has_lora(self.unet) and not is_fused(self.unet):
            self.unet.fuse_lora()

    def unfuse_lora(self) -> None:
        """Take the LoRA out of the U-Net's weights, which are then as before up to rounding."""
        if is_fused(self.unet):
            self.unet.unfuse_lora()

    def release_encoders(self) -> None:
        """Free the memory of the encoders and of the low-level path once everything is decoded;
        :meth:`generate` goes on.

        Priors stay where they are applied at every step.
        """
        self.brain_low_level = None
        self.encoders.release()

    @property
    def encoders(self) -> BrainEncoders:
        """What decodes voxels, without the backbone."""
        routed = tuple(
            name for name in ("image", "text") if getattr(self, f"router_{name}") is not None
        )
        return BrainEncoders(
            self.brain_image, self.brain_text, self.brain_low_level, self.config.prior_order, routed
        )

    @torch.no_grad()
    def decode_embeddings(
        self,
        voxels_BRV: Tensor,
        subject: int,
        image_ids: Sequence[int],
        seed: int = 0,
        present_BR: Tensor | None = None,
        experts: bool = False,
    ) -> DecodedEmbeddings:
        """Decode voxels to the condition of the U-Net; outputs of an image's presentations are
        averaged before the prior.

        Parameters
        ----------
        voxels_BRV : Tensor
            Z-scored responses, R presentations of each picture.
        subject : int
            Whose voxels.
        image_ids : Sequence[int]
            With the seed they determine the prior's noise.
        present_BR : Tensor | None, optional
            Which presentations there are; all when left out.
        experts : bool, optional
            Keep the output of every expert even where no router needs it.
        """
        return self.encoders.decode_embeddings(
            voxels_BRV, subject, image_ids, seed, present_BR, experts
        )

    def unrouted(self, embeddings: DecodedEmbeddings) -> Decoded:
        """The embeddings of the whole encoders, unrouted."""
        return self.encoders.unrouted(embeddings)

    @torch.no_grad()
    def embed(
        self,
        voxels_BRV: Tensor | np.ndarray,
        subject: int,
        image_ids: Sequence[int],
        seed: int = 0,
        present_BR: Tensor | None = None,
    ) -> Decoded:
        """Decode embeddings in CLIP's units; arrays or tensors as for :meth:`decode_embeddings`."""
        voxels_BRV = torch.as_tensor(voxels_BRV, dtype=torch.float32, device=self._execution_device)
        if voxels_BRV.ndim != 3:
            raise UserError(
                f"voxels_BRV is of shape {tuple(voxels_BRV.shape)}; expected B x R x V (R"
                " presentations of each image), for instance voxels[:, None]; `decode` takes B x V."
            )
        return self.unrouted(
            self.decode_embeddings(voxels_BRV, subject, image_ids, seed, present_BR)
        )

    def sources(
        self, image: Embeddings, text: Embeddings
    ) -> tuple[ConditioningSource | None, ConditioningSource | None]:
        """The condition's source, from decoded embeddings (standardised units) or from known
        embeddings (CLIP's own units).
        """
        order: PriorOrder = self.config.prior_order
        if text is not None and self.brain_text is None:
            raise UserError(
                "This decoder has no text encoder: generate from the image embedding alone,"
                " text=None."
            )
        parts = (
            (image, self.brain_image, self.router_image),
            (text, self.brain_text, self.router_text),
        )
        first, second = (
            None
            if x is None
            else source_of(x, embedding_decoder, router, order, self._execution_device)
            for x, embedding_decoder, router in parts
        )
        return first, second

    @torch.no_grad()
    def generate(
        self,
        image: Embeddings,
        text: Embeddings,
        image_ids: Sequence[int],
        *,
        seed: int = 0,
        steps: int = 30,
        guidance_scale: float = 15.0,
        guidance_end: float = 1.0,
        ip_adapter_scale: float = 1.0,
        size: int = 0,
        level: int | None = None,
        on_step: OnStep | None = None,
        negative: Conditioning | None = None,
        sample: int = 0,
        coarse: CoarseImage | None = None,
    ) -> Tensor:
        """Draw pictures.

        Parameters
        ----------
        image, text : Embeddings
            What :meth:`decode_embeddings` returns, or B x T x D embeddings in CLIP's own units; one
            of the two may be None.
        size : int, optional
            Side in pixels; 0 for the U-Net's own. One that is no multiple of the autoencoder's
            factor is cut out of the next larger.
        steps, guidance_scale, guidance_end : int, optional
            Of the denoising (:func:`braingen.generation.sampling.denoise_from`).
        level : int | None, optional
            Condition on this level of experts only.
        on_step : OnStep | None, optional
            Called after every step with its number, the latents and the condition (see
            :class:`RoutingRecorder`).
        negative : Conditioning | None, optional
            What guidance leads away from, one row (:func:`negative_condition`); nothing at all when
            left out.
        sample : int, optional
            Number of the sample; every sample starts from other noise.
        coarse : CoarseImage | None, optional
            What denoising starts from, part-way; from noise alone when left out.

        Returns
        -------
        images_B3HW : Tensor
            Float32 in [0, 1]. The same id, seed and sample start from the same noise, in whatever
            batch.
        """
        refuse_half(router_image=self.router_image, router_text=self.router_text)
        refuse_side(size, vae_factor(self.vae), "size", multiple=False)
        size = size or image_size(self.unet, self.vae)
        purpose = f"picture {sample}" if sample else "picture"
        shape = latent_shape(self.unet, self.vae, size)
        noise = seeded_noise(image_ids, shape, seed, purpose).to(self._execution_device)
        for processor in self.unet.attn_processors.values():
            if hasattr(processor, "to_k_ip"):
                processor.scale = [ip_adapter_scale] * len(processor.scale)
        form = self.form
        image_source, text_source = self.sources(image, text)
        condition = RoutedConditioning(
            form, image=image_source, text=text_source, negative=negative, level=level
        )
        if coarse is not None:
            coarse = coarse._replace(latents_B4hw=fitting(coarse.latents_B4hw.to(noise), shape))
        latents = denoise(
            self.unet,
            self.scheduler,
            noise,
            condition,
            condition.unconditional,
            size=size,
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_end=guidance_end,
            on_step=on_step,
            generators=seeded_generators(image_ids, seed, f"steps of {purpose}"),
            names=image_ids,
            coarse=coarse,
        )
        images_B3HW = decode_latents(self.vae, latents, image_ids)
        if coarse is not None and coarse.blend:
            blurry_B3HW = decode_latents(self.vae, coarse.latents_B4hw, image_ids)
            images_B3HW = torch.lerp(images_B3HW, blurry_B3HW, coarse.blend)
        cut = (
            images_B3HW.shape[-1] - size
        ) // 2  # of a side that is no multiple of the autoencoder's factor
        return images_B3HW[..., cut : cut + size, cut : cut + size]

    @torch.no_grad()
    def decode(
        self,
        voxels: VoxelInput,
        subject: int,
        *,
        image_ids: Sequence[int] | None = None,
        seed: int = 0,
        num_inference_steps: int = 30,
        guidance_scale: float = 5.0,
        guidance_end: float = 1.0,
        negative_prompt: str = "",
        text_encoders: Path | str | None = None,
        use_image: bool = True,
        use_text: bool = True,
        level: int | None = None,
        ip_adapter_scale: float = 1.0,
        size: int = 0,
        samples: int = 1,
        strength: float = 0.6,
        blend: float = 0.0,
        batch_size: int = 8,
        data_root: Path | str | None = None,
    ) -> BrainDecoderOutput:
        """Decode what a person saw: images, embeddings, captions, routing and uncertainty.

        ``decoder(voxels, subject=1)`` is the same call.

        Parameters
        ----------
        voxels : VoxelInput
            V (one response), B x V (one presentation each) or B x R x V (a row of NaN is a
            presentation that there was not): array, tensor or list, z-scored as in the betas file;
            a file of them (.npy, .npz, HDF5, NIfTI: :mod:`braingen.data.voxel_file`); or a NIfTI
            image of nibabel, x, y, z or x, y, z, B.
        subject : int
            Number the embedding decoders were trained with.
        image_ids : Sequence[int] | None, optional
            Of the images, seeds of their noise; counted from 0 when left out, and taken from a
            file that has them.
        seed : int, optional
            Of the noise, with the image ids.
        num_inference_steps : int, optional
            Denoising steps; 0 generates no images, embeddings and captions only.
        guidance_scale, guidance_end : float, optional
            Of the denoising, see :meth:`generate`.
        negative_prompt : str, optional
            What guidance leads away from; needs text encoders.
        text_encoders : Path | str | None, optional
            Folder or hub name of the backbone whose text encoders read the negative prompt; None
            for the backbone the decoder was trained with.
        use_image, use_text : bool, optional
            Generate from the image embedding, from the text embedding; both by default.
        level : int | None, optional
            Use this level of experts only.
        ip_adapter_scale : float, optional
            Strength of the image embedding.
        size : int, optional
            Side of the images in pixels; 0 for the U-Net's own.
        samples : int, optional
            Images generated from different noise for every decoded image.
        strength, blend : float, optional
            With a low-level path: share of the steps that are run from its coarse image (1: all,
            from noise), and weight of the coarse image in the final one.
        batch_size : int, optional
            Images generated at once; they do not depend on it.
        data_root : Path | str | None, optional
            Data folder with the subject's mask; needed for NIfTI. Its voxels have to be those that
            the decoder was trained with.

        Returns
        -------
        BrainDecoderOutput
            Of a file whose rows share image ids, one image per id, ascending.

        Raises
        ------
        UserError
            When voxels do not fit the subject, ids do not fit the voxels, or a setting cannot be
            met.
        """
        width, known = self.voxel_count(subject), self.facts and self.facts.of_subject(subject)
        for name, value, least in (
            ("num_inference_steps", num_inference_steps, 0),
            ("samples", samples, 1),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise UserError(f"{name} = {value} is not allowed: give {least} or more.")
        with_text = use_text and self.brain_text is not None
        if not (use_image or with_text):
            text = "use_text is off" if self.brain_text is not None else "it has no text encoder"
            raise UserError(
                f"There is no embedding to generate from: use_image is off and {text}. Leave one of"
                " them on."
            )
        if level is not None:
            encoders = (
                ("image", use_image, self.brain_image),
                ("text", with_text, self.brain_text),
            )
            counts = {name: expert_counts(each) for name, used, each in encoders if used}
            refuse_level(counts, level, "level")
        given = given_voxels(voxels, subject, width, image_ids, data_root, known or None)
        settings: dict[str, Any] = {
            "seed": seed,
            "steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_end": guidance_end,
            "ip_adapter_scale": ip_adapter_scale,
            "size": size,
            "level": level,
            "negative": self._negative(negative_prompt, text_encoders),
        }
        voxels_BRV, ids = given.voxels_BRV.to(self._execution_device), given.image_ids
        drawn: list[list[Tensor]] = [[] for _ in range(samples)]
        parts: list[Decoded] = []
        mixed: list[dict[str, Tensor]] = []
        for start in range(0, len(ids), batch_size):
            some, recorder = slice(start, start + batch_size), RoutingRecorder()
            present_BR = given.present_BR[some]
            decoded = self.decode_embeddings(
                voxels_BRV[some], subject, ids[some], seed, present_BR, experts=level is not None
            )
            parts.append(self.unrouted(decoded))
            coarse = (
                None
                if decoded.latents_BChw is None
                else CoarseImage(decoded.latents_BChw, strength, blend)
            )
            for number in range(samples if num_inference_steps else 0):
                drawn[number].append(
                    self.generate(
                        decoded.image if use_image else None,
                        decoded.text if with_text else None,
                        ids[some],
                        **settings,
                        sample=number,
                        on_step=recorder if number == 0 else None,
                        coarse=coarse,
                    ).cpu()
                )
            mixed.append(recorder.tensors())
        errors_B, cosine = self.encoders.certainty(
            voxels_BRV, subject, given.present_BR, batch_size
        )
        self.maybe_free_model_hooks()  # with enable_model_cpu_offload
        routing = {name: torch.cat([part[name] for part in mixed]) for name in mixed[0]}
        columns = zip(Decoded._fields, zip(*parts))
        joined = {name: None if rows[0] is None else torch.cat(rows) for name, rows in columns}
        whole = [torch.cat(each) for each in drawn if each]
        images = [to_pil(images_B3HW) for images_B3HW in whole]
        text_BTD = joined["text_BTD"]
        library = None if text_BTD is None else self.caption_library
        pixels_BHW = spread_of_samples(whole) if len(whole) > 1 else None
        return BrainDecoderOutput(
            images[0] if images else [],
            Decoded(**joined),  # type: ignore[arg-type]
            routing,
            ids,
            None if library is None or text_BTD is None else library.nearest(text_BTD.cpu()),
            None
            if errors_B is None and pixels_BHW is None and cosine is None
            else DecodingUncertainty(errors_B, pixels_BHW, cosine),
            [list(each) for each in zip(*images)] if len(images) > 1 else None,
        )

    __call__ = decode

    def _negative(self, prompt: str, text_encoders: Path | str | None) -> Conditioning | None:
        """The condition of a negative prompt, by the text encoders of the backbone."""
        if not prompt:
            return None
        backbone = text_encoders or (self.facts.backbone if self.facts is not None else "")
        if not backbone:
            raise UserError(
                "A negative prompt needs text encoders, and the decoder does not know which it was"
                " trained with: name the backbone's folder or hub name, text_encoders="
                '"stabilityai/stable-diffusion-xl-base-1.0".'
            )
        return negative_condition(self.form, backbone_folder(str(backbone)), prompt)

    def voxel_count(self, subject: int) -> int:
        """How many voxels a subject has.

        Raises
        ------
        UserError
            When the embedding decoders do not know the subject.
        """
        return self.encoders.voxel_count(subject)


def fitting(latents_B4hw: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Latents resized to another shape of an image, C x h x w."""
    if latents_B4hw.shape[1:] == shape:
        return latents_B4hw
    return interpolate(latents_B4hw, size=shape[1:], mode="bilinear", align_corners=False)


def negative_condition(form: ConditioningForm, path: str, prompt: str) -> Conditioning | None:
    """A negative prompt, encoded by the text encoders in `path`, in the form of the U-Net's
    condition; None for an empty one.
    """
    if not prompt:
        return None
    both = form.text_columns[0] > 0  # the first text encoder has columns as well
    encoder = CLIPTextEncoderDual.from_pretrained(
        path, output="joint" if both else "bigG", dtype=torch.float32
    )
    encoded = encoder.prompt([prompt])
    del encoder
    give_back(collect=True)
    return form.prompt(encoded)


def to_pil(images_B3HW: Tensor) -> list[Image.Image]:
    """Pictures in [0, 1] to Pillow's, rounded to 8 bits."""
    pixels = (images_B3HW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]
