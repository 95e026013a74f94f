"""Encoder targets: frozen CLIP embeddings of images and captions, from the cache or computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
import hashlib

from diffusers import AutoencoderKL
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.data.captions import Captions, load_captions
from braingen.data.stimuli import Stimuli
from braingen.pretrained.hub import model_key, whole_folder
from braingen.pretrained.loading import subfolder_of
from braingen.pretrained.sdxl import encode_modes, load_vae
from braingen.pretrained.tiny import check_backbone
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.fingerprints import digest_of_texts, fingerprint_of_files
from braingen.runtime.memory import give_back
from braingen.targets.cache import Cache
from braingen.targets.clip_image import CLIPImageEncoder
from braingen.targets.clip_text import FOLDERS, PARTS, CLIPTextEncoderDual
from braingen.targets.text_form import TextForm, cached_text_form


class Targets:
    """True embeddings by image id.

    Parameters
    ----------
    config : Config
        Determines data and backbone.
    """

    def __init__(self, config: Config) -> None:
        check_backbone(config)
        self._choice = config.backbone
        layout = Layout.of(config.data.root)
        self.stimuli = Stimuli(layout)
        self._layout = layout
        self._folder = layout.cache() / "targets"
        self._backbone = backbone_folder(config.backbone.path)
        self.image_path = config.backbone.image_encoder or self._backbone
        self._device = device_of(config)
        self._image_encoder: CLIPImageEncoder | None = None
        self._text_encoder: CLIPTextEncoderDual | None = None
        self._vae: AutoencoderKL | None = None

    @cached_property
    def captions(self) -> Captions:
        """The images' captions; loaded on first use, since own scans may have none."""
        return load_captions(self._layout)

    @property
    def image_key(self) -> str:
        """Fingerprint of the image encoder's weights."""
        return model_key(
            self.image_path, subfolder_of(self.image_path, "image_encoder"), "transformers"
        )

    @property
    def image_encoder(self) -> CLIPImageEncoder:
        """The frozen CLIP whose image embeddings are decoded."""
        if self._image_encoder is None:
            self._image_encoder = CLIPImageEncoder.from_pretrained(
                self.image_path,
                output=self._choice.image_output,
                projected=self._choice.image_projected,
                dtype=torch.float32,
            ).to(self._device)
        return self._image_encoder

    @property
    def text_encoder(self) -> CLIPTextEncoderDual:
        """The frozen text encoders whose states are decoded."""
        if self._text_encoder is None:
            self._text_encoder = CLIPTextEncoderDual.from_pretrained(
                self._backbone,
                output=self._choice.text_output,
                tokens=self._choice.text_tokens,
                dtype=torch.float32,
            ).to(self._device)
        return self._text_encoder

    @property
    def text_form(self) -> TextForm:
        """Start token and widths of the text encoders; they are loaded only the first time."""

        def made() -> TextForm:
            with self._only_for_this():
                return TextForm.of(self.text_encoder)

        which = f"{self._text_weights()} {self._choice.text_output}"
        key = hashlib.sha256(which.encode()).hexdigest()[:16]
        return cached_text_form(self._folder, key, made)

    @contextmanager
    def _only_for_this(self) -> Iterator[None]:
        """Give back the models that are loaded within the block; others stay."""
        before = self._image_encoder, self._text_encoder, self._vae
        try:
            yield
        finally:
            loaded = (self._image_encoder, self._text_encoder, self._vae) != before
            self._image_encoder, self._text_encoder, self._vae = before
            if loaded:
                give_back(collect=True)

    def free(self) -> None:
        """Give back the memory of the frozen models; they are loaded again if they are needed."""
        self._image_encoder = self._text_encoder = self._vae = None
        give_back(collect=True)

    @property
    def vae(self) -> AutoencoderKL:
        """The frozen autoencoder of the diffusion model."""
        if self._vae is None:
            self._vae = load_vae(self._choice.path).to(self._device)
        return self._vae

    def image(self, image_ids: np.ndarray) -> Tensor:
        """CLIP embeddings of images: N x T x D."""
        with self._only_for_this():
            rows = self.image_cache().of(image_ids, self.stimuli.digests(image_ids))
        return torch.from_numpy(rows)

    def image_cache(self) -> Cache:
        """The table of CLIP image embeddings; of simulated scenes without pictures, of what stands
        in their place.
        """

        if not self.stimuli.has_pictures:
            return Cache(
                self._folder,
                "image_embedding",
                {"features": "simulated scenes"},
                len(self.stimuli),
                lambda ids: torch.from_numpy(self.stimuli.features("embedding", ids))[:, None],
            )

        def compute(ids: np.ndarray) -> Tensor:
            return self.image_encoder(
                torch.from_numpy(self.stimuli.images(ids)).to(self._device)
            ).target_BTD

        output = (
            f"{self._choice.image_output},"
            f" {'projected' if self._choice.image_projected else 'not projected'}"
        )
        key = {"weights": self.image_key, "output": output}
        return Cache(self._folder, "image_embedding", key, len(self.stimuli), compute)

    def text(self, image_ids: np.ndarray) -> Tensor:
        """Text encoders' states, averaged over each image's captions: N x T x D."""
        with self._only_for_this():
            rows = self.text_cache().of(image_ids, self.text_digests(image_ids))
        return torch.from_numpy(rows)

    def text_digests(self, image_ids: np.ndarray) -> np.ndarray:
        """Digests of every image's captions."""
        return digest_of_texts(self.captions[i] for i in image_ids)

    def text_cache(self) -> Cache:
        """The table of text encoders' states."""

        def compute(ids: np.ndarray) -> Tensor:
            return self.text_encoder([self.captions[i] for i in ids])

        which = {"eos": "end of sequence", "all": "all tokens"}[self._choice.text_tokens]
        key = {
            "weights": self._text_weights(),
            "output": f"{self._choice.text_output} {which}, mean of captions",
        }
        return Cache(self._folder, "text_embedding", key, len(self.stimuli), compute)

    def _text_weights(self) -> str:
        keys = []
        for model, tokenizer in (FOLDERS[name] for name in PARTS[self._choice.text_output]):
            keys.append(model_key(self._backbone, model, "transformers"))
            keys.append(fingerprint_of_files(whole_folder(self._backbone, tokenizer)))
        return "/".join(keys)

    def latents(self, image_ids: np.ndarray, size: int) -> np.ndarray:
        """Return the memory-mapped table of VAE latents at a size, with the rows of some filled.

        Parameters
        ----------
        image_ids : np.ndarray
            The images that will be used.
        size : int
            Side in pixels; images of another side are resized bicubically.

        Returns
        -------
        np.ndarray
            Images of the data folder x C x h x w, float16: the mean of the encoder's Gaussian,
            scaled by the VAE's factor.
        """
        digests = self.stimuli.digests(image_ids)
        with self._only_for_this():
            return self.latents_cache(size).table(image_ids, digests, batch=16)

    def latents_cache(self, size: int) -> Cache:
        """The table of VAE latents at a size."""

        @torch.no_grad()
        def compute(ids: np.ndarray) -> Tensor:
            images = torch.from_numpy(self.stimuli.images(ids)).to(self._device)
            if images.shape[-1] != size:
                images = interpolate(
                    images, size=(size, size), mode="bicubic", antialias=True, align_corners=False
                ).clamp(0, 1)
            return encode_modes(self.vae, images)

        key = {"weights": model_key(self._backbone, "vae", "diffusers"), "size": str(size)}
        return Cache(
            self._folder.parent / "latents", "latents", key, len(self.stimuli), compute, np.float16
        )

    def text_widths(self, modality: str) -> tuple[int, ...]:
        """Widths of the text encoders, in the order of the target's columns; empty for images."""
        if modality != "text":
            return ()
        with self._only_for_this():
            return tuple(self.text_encoder.widths.values())

    def table(self, modality: str, image_ids: np.ndarray) -> np.ndarray:
        """Return the memory-mapped targets of all images, with the rows of some filled."""
        with self._only_for_this():
            if modality == "image":
                return self.image_cache().table(image_ids, self.stimuli.digests(image_ids))
            return self.text_cache().table(image_ids, self.text_digests(image_ids))

    def of(self, modality: str, image_ids: np.ndarray) -> Tensor:
        """Targets of the image or the text encoder."""
        return self.image(image_ids) if modality == "image" else self.text(image_ids)
