"""The encoders of a decoder without its backbone: from voxels to the embeddings that are generated
from.

B brains (pictures), R presentations, V voxels, T tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from braingen.encoders.confidence import Closeness, read_features
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.generation.conditioned_unet import DecodedVoxels, PriorOrder, decode_voxels
from braingen.generation.output import Decoded, DecodedEmbeddings, spread_of_presentations
from braingen.generation.sampling import refuse_not_finite_rows, seeded_noise
from braingen.generation.storage import INDEX
from braingen.runtime.errors import UserError
from braingen.runtime.memory import give_back
from braingen.runtime.text_files import read_json
from braingen.types import ExpertStack


@dataclass
class BrainEncoders:
    """Embedding decoders and low-level path, which decode before the backbone is loaded.

    Parameters
    ----------
    image, text : EmbeddingDecoder
        Of the image and the text embedding; the second may be None.
    low_level : LatentEncoder | None, optional
        Path to the coarse image.
    prior_order : PriorOrder, optional
        What the priors are applied to.
    routed : tuple[str, ...], optional
        'image', 'text': whose experts a router mixes later, so that their outputs are kept.
    """

    image: EmbeddingDecoder
    text: EmbeddingDecoder | None
    low_level: LatentEncoder | None = None
    prior_order: PriorOrder = "output"
    routed: tuple[str, ...] = ()

    @classmethod
    def of_folder(cls, folder: Path, whole: bool = True) -> BrainEncoders:
        """The encoders of a saved decoder.

        Parameters
        ----------
        folder : Path
            Of the decoder, on this machine.
        whole : bool, optional
            Load everything; else only what generation needs (:meth:`release`).
        """
        index = read_json(folder / INDEX, "save the decoder again")
        there = {name for name, kind in index.items() if isinstance(kind, list) and any(kind)}
        order: PriorOrder = index.get("prior_order", "output")

        def one(name: str) -> EmbeddingDecoder:
            found = EmbeddingDecoder.from_pretrained(folder / name).eval()
            if not whole:
                found.keep_scale(prior=order == "step")
            return found

        low_level = None
        if whole and "brain_low_level" in there:
            low_level = LatentEncoder.from_pretrained(folder / "brain_low_level").eval()
        return cls(
            one("brain_image"),
            one("brain_text") if "brain_text" in there else None,
            low_level,
            order,
            tuple(name for name in ("image", "text") if f"router_{name}" in there),
        )

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.image.device

    def to(self, device: torch.device | str) -> BrainEncoders:
        """Move them to a device."""
        for part in (self.image, self.text, self.low_level):
            if part is not None:
                part.to(device)
        return self

    def release(self) -> None:
        """Free the memory of the encoders and of the low-level path once everything is decoded.

        What generation needs stays: mean and spread of the embeddings, and the priors where they
        are applied at every step.
        """
        for each in (self.image, self.text):
            if each is not None:
                each.keep_scale(prior=self.prior_order == "step")
        self.low_level = None
        give_back()

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
        """See :meth:`braingen.BrainDecoder.decode_embeddings`."""
        present_BR = (
            torch.ones(voxels_BRV.shape[:2], dtype=torch.bool) if present_BR is None else present_BR
        )
        refuse_half(brain_image=self.image, brain_text=self.text, brain_low_level=self.low_level)

        def one(name: str, embedding_decoder: EmbeddingDecoder) -> DecodedVoxels:
            noise = _prior_noise(embedding_decoder, name, image_ids, seed)
            return decode_voxels(
                embedding_decoder,
                voxels_BRV,
                subject,
                present_BR,
                self.prior_order,
                experts=experts or name in self.routed,
                noise=noise,
            )

        image = one("image", self.image)
        text = None if self.text is None else one("text", self.text)
        for name, found in (("image", image), ("text", text)):
            for values in () if found is None else (*found.stack[:2], found.clip_BTD):
                refuse_not_finite_rows(values, image_ids, f"The decoded {name} embedding")
        latents = None
        if self.low_level is not None:
            latents = self.low_level.latents(voxels_BRV, subject, present_BR)
            refuse_not_finite_rows(latents, image_ids, "The coarse image")
        return DecodedEmbeddings(
            image.stack,
            None if text is None else text.stack,
            image.clip_BTD,
            None if text is None else text.clip_BTD,
            latents,
        )

    def unrouted(self, embeddings: DecodedEmbeddings) -> Decoded:
        """The embeddings of the whole encoders, unrouted."""

        def one(embedding_decoder: EmbeddingDecoder, stack: ExpertStack) -> Tensor:
            output_BTD = stack.output_BTD
            scale = embedding_decoder.scale.to(output_BTD.device)
            last = self.prior_order == "step"
            return scale.in_clip_units(
                embedding_decoder.through_prior(output_BTD) if last else output_BTD
            )

        image_BTD = one(self.image, embeddings.image)
        text_BTD = None
        if self.text is not None and embeddings.text is not None:
            text_BTD = one(self.text, embeddings.text)
        return Decoded(image_BTD, text_BTD, embeddings.image_clip_BTD, embeddings.text_clip_BTD)

    @torch.no_grad()
    def certainty(
        self, voxels_BRV: Tensor, subject: int, present_BR: Tensor, batch_size: int
    ) -> tuple[Tensor | None, Closeness | None]:
        """Standard error of the image embedding over presentations, B (None with one each), and
        how close it is (None without calibration).
        """
        repeated = int(present_BR.sum(1).max()) > 1
        confidence = self.image.confidence
        if not repeated and confidence is None:
            return None, None
        errors, close = [], []
        for start in range(0, len(voxels_BRV), batch_size):
            voxels, present = (x[start : start + batch_size] for x in (voxels_BRV, present_BR))
            each = self.image(voxels.flatten(0, 1), subject).backbone_BTD
            each_BRTD = each.unflatten(0, voxels.shape[:2])
            error_B = spread_of_presentations(each_BRTD, present)
            errors.append(torch.full((len(voxels),), torch.nan) if error_B is None else error_B)
            if confidence is not None:
                present = present.to(each.device)
                read = read_features(each_BRTD, present, self.image.predicted)
                close.append(confidence(read.features_BF, present.sum(1)))
        whole = Closeness(*(torch.cat(x).cpu() for x in zip(*close))) if close else None
        return torch.cat(errors) if repeated else None, whole

    def voxel_count(self, subject: int) -> int:
        """How many voxels a subject has.

        Raises
        ------
        UserError
            When the embedding decoders do not know the subject.
        """
        known = self.image.config.encoder_config["subjects"]
        if str(subject) not in known:
            raise UserError(
                f"This decoder does not know subject {subject}; it was trained with"
                f" {', '.join(known)}."
            )
        return int(known[str(subject)])


def refuse_half(**parts: nn.Module | None) -> None:
    """Refuse encoders and routers that were put in half precision by hand.

    Parameters
    ----------
    **parts : nn.Module | None
        By their names in a decoder.
    """
    for name, part in parts.items():
        if part is not None and part.dtype != torch.float32:
            raise UserError(
                f"decoder.{name} is in {str(part.dtype).removeprefix('torch.')}; encoders,"
                " priors and routers compute in float32, and half precision is the U-Net's:"
                f" undo it with decoder.{name}.to(torch.float32), and use"
                " decoder.to(torch.float16)."
            )


def refuse_level(counts: Mapping[str, Sequence[int]], level: int, name: str) -> None:
    """Refuse a level that an encoder has not.

    Parameters
    ----------
    counts : Mapping[str, Sequence[int]]
        'image', 'text' -> experts of every level, of the encoders that are used.
    name : str
        Of the setting, begins the message.

    Raises
    ------
    UserError
        For the first encoder without that level.
    """
    for encoder, experts in counts.items():
        if len(experts) == 1:
            raise UserError(
                f"{name} = {level} has no effect: the {encoder} encoder has no levels. Leave it"
                " out."
            )
        if not 0 <= level < len(experts):
            raise UserError(
                f"{name} = {level}, but the {encoder} encoder has levels 0 to {len(experts) - 1}."
            )


def _prior_noise(
    embedding_decoder: EmbeddingDecoder, name: str, image_ids: Sequence[int], seed: int
) -> Tensor | None:
    return (
        seeded_noise(image_ids, embedding_decoder.noise_shape, seed, f"prior of {name}")
        if embedding_decoder.noise_shape
        else None
    )
