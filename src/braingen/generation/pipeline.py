"""The whole decoder as one diffusers pipeline: voxels in, pictures out, saved in one folder.

B brains (pictures), R presentations, V voxels, T tokens, D embedding width, N text length, C
cross-attention width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
import numpy as np
from PIL import Image
from safetensors.torch import save_file
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from braingen.data.voxel_file import load_responses, responses
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.generation.conditioned_unet import (
    DecodedVoxels,
    PriorOrder,
    RoutingRecorder,
    decode_voxels,
    source_of,
)
from braingen.generation.lora import LORA_FILE, has_lora, is_fused, load_lora, save_lora
from braingen.generation.sampling import (
    CoarseImage,
    OnStep,
    decode_latents,
    denoise,
    latent_shape,
    refuse_not_finite_rows,
    seeded_generators,
    seeded_noise,
)
from braingen.pretrained.hub import quiet
from braingen.pretrained.sdxl import (
    UNREADABLE,
    add_ip_adapter,
    image_embedding_width,
    image_size,
    load_ip_adapter_file,
    pooled_width,
    refuse_side,
    vae_factor,
    without_ip_adapter,
)
from braingen.pretrained.sdxl import ip_adapter_weights as adapter_weights_of
from braingen.routing.conditioning import ConditioningForm, ConditioningSource, RoutedConditioning
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import replaced_parts
from braingen.runtime.memory import give_back
from braingen.runtime.precision import types_of_parts
from braingen.runtime.weights import plain_text, refuse_not_finite
from braingen.targets.clip_text import CLIPTextEncoderDual
from braingen.targets.text_form import HasTextForm
from braingen.types import Conditioning, ExpertStack

IP_ADAPTER = Path("ip_adapter") / "ip-adapter.safetensors"
LORA = "lora"
INDEX = "model_index.json"
PARTS = (
    "brain_image",
    "brain_text",
    "brain_low_level",
    "unet",
    "vae",
    "scheduler",
    "router_image",
    "router_text",
    IP_ADAPTER.parent.name,
    LORA,
)
"""Folders of a saved decoder; there may be other files beside them, such as a README."""
Embeddings = Tensor | ExpertStack | None
"""What :meth:`BrainDecoder.read` gave (standardised units), or B x T x D embeddings in CLIP's own
units.
"""


class DecodedEmbeddings(NamedTuple):
    """What was decoded and conditions the U-Net: embeddings in standardised units,
    after the prior where it comes first.
    """

    image: ExpertStack
    text: ExpertStack | None
    """None where the decoder has no text encoder."""
    image_clip_BTD: Tensor
    """The image encoder's projected output, for retrieval; standardised units."""
    text_clip_BTD: Tensor | None
    latents_BChw: Tensor | None = None
    """VAE latents of the coarse image; None without a low-level path."""


class Decoded(NamedTuple):
    """What was read out of the brain, before anything is drawn."""

    image_BTD: Tensor
    """CLIP image embedding, in CLIP's own units."""
    text_BTD: Tensor | None
    """End-of-sequence state of the text encoder, in its own units; None without a text encoder."""
    image_clip_BTD: Tensor
    """The image encoder's projected output, for retrieval; standardised units."""
    text_clip_BTD: Tensor | None


@dataclass
class BrainDecoderOutput(BaseOutput):
    """Pictures and what they were drawn from."""

    images: list[Image.Image]
    decoded: Decoded
    routing: dict[str, Tensor]
    """How levels and experts were mixed at every step (:class:`RoutingRecorder`); empty without
    routers.
    """
    image_ids: list[int]
    """Of the pictures, in their order."""


class BrainDecoder(DiffusionPipeline):
    """Decodes what a person saw.

    ``BrainDecoder.from_pretrained(folder)(voxels, subject=1).images``

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
        """Give back the memory of the encoders once everything is decoded; :meth:`draw` goes on.

        Priors stay where they are applied at every step.
        """
        for embedding_decoder in (self.brain_image, self.brain_text):
            if embedding_decoder is not None:
                embedding_decoder.keep_scale(prior=self.config.prior_order == "step")
        give_back()

    def _refuse_half(self, *names: str) -> None:
        """Refuse encoders and routers that were put in half precision by hand."""
        for name in names:
            part = getattr(self, name)
            if part is not None and part.dtype != torch.float32:
                raise UserError(
                    f"decoder.{name} is in {str(part.dtype).removeprefix('torch.')}; encoders,"
                    " priors and routers compute in float32, and half precision is the U-Net's:"
                    f" undo it with decoder.{name}.to(torch.float32), and use"
                    " decoder.to(torch.float16)."
                )

    @torch.no_grad()
    def read(
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
        present_BR = (
            torch.ones(voxels_BRV.shape[:2], dtype=torch.bool) if present_BR is None else present_BR
        )
        order: PriorOrder = self.config.prior_order
        self._refuse_half("brain_image", "brain_text", "brain_low_level")

        def one(
            name: str, embedding_decoder: EmbeddingDecoder, router: DiffuseRouter | None
        ) -> DecodedVoxels:
            noise = _prior_noise(embedding_decoder, name, image_ids, seed)
            return decode_voxels(
                embedding_decoder,
                voxels_BRV,
                subject,
                present_BR,
                order,
                experts=experts or router is not None,
                noise=noise,
            )

        image = one("image", self.brain_image, self.router_image)
        text = None if self.brain_text is None else one("text", self.brain_text, self.router_text)
        for name, found in (("image", image), ("text", text)):
            for values in () if found is None else (*found.stack[:2], found.clip_BTD):
                refuse_not_finite_rows(values, image_ids, f"The decoded {name} embedding")
        latents = None
        if self.brain_low_level is not None:
            latents = self.brain_low_level.latents(voxels_BRV, subject, present_BR)
            refuse_not_finite_rows(latents, image_ids, "The coarse image")
        return DecodedEmbeddings(
            image.stack,
            None if text is None else text.stack,
            image.clip_BTD,
            None if text is None else text.clip_BTD,
            latents,
        )

    def decoded(self, read: DecodedEmbeddings) -> Decoded:
        """The embeddings of the whole encoders, unrouted."""

        def one(embedding_decoder: EmbeddingDecoder, stack: ExpertStack) -> Tensor:
            output_BTD = stack.output_BTD
            scale = embedding_decoder.scale.to(output_BTD.device)
            last = self.config.prior_order == "step"
            return scale.in_clip_units(
                embedding_decoder.through_prior(output_BTD) if last else output_BTD
            )

        image_BTD = one(self.brain_image, read.image)
        text_BTD = None
        if self.brain_text is not None and read.text is not None:
            text_BTD = one(self.brain_text, read.text)
        return Decoded(image_BTD, text_BTD, read.image_clip_BTD, read.text_clip_BTD)

    @torch.no_grad()
    def embed(
        self,
        voxels_BRV: Tensor,
        subject: int,
        image_ids: Sequence[int],
        seed: int = 0,
        present_BR: Tensor | None = None,
    ) -> Decoded:
        """Read embeddings out of voxels; parameters as for :meth:`read`."""
        return self.decoded(self.read(voxels_BRV, subject, image_ids, seed, present_BR))

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
    def draw(
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
            What :meth:`read` gave, or B x T x D embeddings in CLIP's own units; one of the two may
            be None.
        size : int, optional
            Side in pixels; 0 for the U-Net's own. One that is no multiple of the autoencoder's
            factor is cut out of the next larger.
        steps, guidance_scale, guidance_end : int, optional
            Of the denoising (:func:`braingen.generation.sampling.denoise_from`).
        level : int | None, optional
            Listen to this level of experts only.
        on_step : OnStep | None, optional
            Called after every step with its number, the latents and the condition (see
            :class:`RoutingRecorder`).
        negative : Conditioning | None, optional
            What guidance leads away from, one row (:func:`negative_condition`); nothing at all when
            left out.
        sample : int, optional
            Number of the drawing: another one starts from other noise.
        coarse : CoarseImage | None, optional
            What denoising starts from, part-way; from noise alone when left out.

        Returns
        -------
        images_B3HW : Tensor
            Float32 in [0, 1]. The same id, seed and sample start from the same noise, in whatever
            batch.
        """
        self._refuse_half("router_image", "router_text")
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
    def __call__(
        self,
        voxels: np.ndarray | Tensor | Path | str,
        subject: int,
        *,
        image_ids: Sequence[int] | None = None,
        seed: int = 0,
        num_inference_steps: int = 30,
        guidance_scale: float = 5.0,
        guidance_end: float = 1.0,
        strength: float = 0.6,
        blend: float = 0.0,
        batch_size: int = 8,
        data_root: Path | str | None = None,
    ) -> BrainDecoderOutput:
        """Decode voxels.

        Parameters
        ----------
        voxels : np.ndarray | Tensor | Path | str
            B x V (one presentation each) or B x R x V (a row of NaN is a presentation that there
            was not), z-scored as in the betas file; or a file of them: .npy, .npz, HDF5, NIfTI
            (:mod:`braingen.data.voxel_file`).
        subject : int
            Number the embedding decoders were trained with.
        image_ids : Sequence[int] | None, optional
            Of the pictures, seeds of their noise; counted from 0 when left out, and taken from a
            file that has them.
        num_inference_steps, guidance_scale, guidance_end : int, optional
            Of the denoising, see :meth:`draw`.
        strength, blend : float, optional
            With a low-level path: share of the steps that are run from its coarse image (1: all,
            from noise), and weight of the coarse image in the final one.
        data_root : Path | str | None, optional
            Data folder with the subject's mask; needed for NIfTI.

        Returns
        -------
        BrainDecoderOutput
            Of a file whose rows share image ids, one picture per id, ascending.

        Raises
        ------
        UserError
            When voxels do not fit the subject, or ids do not fit the voxels.
        """
        voxels_BRV, present_BR, ids = self._given(voxels, subject, image_ids, data_root)
        images: list[Image.Image] = []
        parts: list[Decoded] = []
        mixed: list[dict[str, Tensor]] = []
        for start in range(0, len(ids), batch_size):
            some, recorder = slice(start, start + batch_size), RoutingRecorder()
            decoded = self.read(voxels_BRV[some], subject, ids[some], seed, present_BR[some])
            parts.append(self.decoded(decoded))
            settings: dict[str, Any] = {
                "seed": seed,
                "steps": num_inference_steps,
                "on_step": recorder,
            }
            settings |= {"guidance_scale": guidance_scale, "guidance_end": guidance_end}
            coarse = (
                None
                if decoded.latents_BChw is None
                else CoarseImage(decoded.latents_BChw, strength, blend)
            )
            images += to_pil(
                self.draw(decoded.image, decoded.text, ids[some], **settings, coarse=coarse)
            )
            mixed.append(recorder.tensors())
        self.maybe_free_model_hooks()  # with enable_model_cpu_offload
        routing = {name: torch.cat([part[name] for part in mixed]) for name in mixed[0]}
        columns = zip(Decoded._fields, zip(*parts))
        joined = {name: None if rows[0] is None else torch.cat(rows) for name, rows in columns}
        return BrainDecoderOutput(images, Decoded(**joined), routing, ids)  # type: ignore[arg-type]

    def voxel_count(self, subject: int) -> int:
        """How many voxels a subject has.

        Raises
        ------
        UserError
            When the embedding decoders do not know the subject.
        """
        known = self.brain_image.config.encoder_config["subjects"]
        if str(subject) not in known:
            raise UserError(
                f"This decoder does not know subject {subject}; it was trained with"
                f" {', '.join(known)}."
            )
        return int(known[str(subject)])

    def _given(
        self,
        voxels: np.ndarray | Tensor | Path | str,
        subject: int,
        image_ids: Sequence[int] | None,
        data_root: Path | str | None,
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Responses B x R x V, which of them there are, and the pictures' ids."""
        width = self.voxel_count(subject)
        if isinstance(voxels, str | Path):
            if image_ids is not None:
                raise UserError(
                    f"image_ids cannot be given with a file; put them into {voxels}, or beside it"
                    " as NAME_ids.npy."
                )
            read = load_responses(
                voxels, subject, width, Layout.of(data_root) if data_root is not None else None
            )
            repeats = read.grouped()
        else:
            array = (
                voxels.detach().cpu().numpy() if isinstance(voxels, Tensor) else np.asarray(voxels)
            )
            if array.ndim < 2:
                raise UserError(
                    f"voxels are {array.shape}; expected B x V or B x R x V of finite numbers"
                )
            read = responses(array, subject, width)
            repeats = read.grouped()
            if image_ids is not None:  # pictures stay in the order given, whatever their ids
                if len(image_ids) != len(array):
                    raise UserError(
                        f"image_ids names {len(image_ids)} pictures, voxels are of {len(array)};"
                        " give one id for each."
                    )
                repeats = repeats._replace(image_N=np.asarray([int(image) for image in image_ids]))
        present_BR = repeats.rows_NR >= 0
        voxels_BRV = np.zeros((*present_BR.shape, width), dtype=np.float32)
        voxels_BRV[present_BR] = read.rows(repeats.rows_NR[present_BR])
        return (
            torch.from_numpy(voxels_BRV).to(self._execution_device),
            torch.from_numpy(present_BR),
            [int(i) for i in repeats.image_N],
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save everything in one folder; IP-Adapter and LoRA lie in files of their own, as
        everywhere.

        Written beside what is there and put in its place when all is on the disk. Parts that an
        earlier save left and that this decoder has not (LoRA, routers, shards of larger weights)
        go; files that are no part of a decoder stay.

        Raises
        ------
        UserError
            When the LoRA is fused into the U-Net: it would be saved twice.
        """
        if is_fused(self.unet):
            raise UserError(
                "The LoRA is fused into the U-Net (decoder.fuse_lora()) and would be saved twice:"
                " take it out first, decoder.unfuse_lora()."
            )
        folder = Path(save_directory)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault(
                "repo_id", folder.name
            )  # diffusers' default, not the name of the temporary folder
        adapter = {key: value.contiguous() for key, value in adapter_weights_of(self.unet).items()}
        with_adapter = self.unet
        with replaced_parts(
            folder, PARTS, INDEX, keep=kwargs.get("variant") is not None
        ) as temporary:
            self.register_modules(unet=without_ip_adapter(self.unet))
            try:
                super().save_pretrained(temporary, **kwargs)
            finally:
                self.register_modules(unet=with_adapter)
            path = temporary / IP_ADAPTER
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(adapter, path)
            if has_lora(self.unet):
                save_lora(self.unet, temporary / LORA)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> BrainDecoder:
        """Load what :meth:`save_pretrained` wrote; ``torch_dtype`` is the U-Net's."""
        for name in ("torch_dtype", "dtype"):
            if kwargs.get(name) is not None:
                kwargs[name] = types_of_parts(kwargs[name])
        folder = Path(pretrained_model_name_or_path)
        if not (folder / INDEX).is_file():
            raise UserError(
                f"{folder} is not a saved decoder (no {INDEX}); `braingen demo` leaves one in"
                " runs/demo/decoder."
            )
        try:
            decoder: BrainDecoder = super().from_pretrained(folder, **kwargs)
        except UserError:
            raise
        except UNREADABLE as error:
            raise UserError(
                f"{folder} is damaged or no saved decoder ({plain_text(error)}); save it again."
            ) from error
        for name in ("unet", "vae"):  # the others look after themselves
            refuse_not_finite(getattr(decoder, name), folder / name, "save it again")
        add_ip_adapter(decoder.unet, load_ip_adapter_file(str(folder / IP_ADAPTER)))
        if (folder / LORA / LORA_FILE).exists():
            load_lora(decoder.unet, folder / LORA)
        return decoder


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
    return form.prompt(encoder.prompt([prompt]))


def to_pil(images_B3HW: Tensor) -> list[Image.Image]:
    """Pictures in [0, 1] to Pillow's, rounded to 8 bits."""
    pixels = (images_B3HW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def _prior_noise(
    embedding_decoder: EmbeddingDecoder, name: str, image_ids: Sequence[int], seed: int
) -> Tensor | None:
    return (
        seeded_noise(image_ids, embedding_decoder.noise_shape, seed, f"prior of {name}")
        if embedding_decoder.noise_shape
        else None
    )
