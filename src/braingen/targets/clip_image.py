"""Image targets of the encoders: CLIP embeddings of the seen image.

B batch, H W image size, S side of CLIP's input, P tokens (patches), D CLIP width
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import (
    CLIPConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from transformers.utils import cached_file

from braingen.pretrained.hub import local_copy, located
from braingen.pretrained.loading import HUB_OPTIONS, load_config, load_frozen, subfolder_of
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json
from braingen.runtime.text_files import read_json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Pixel statistics of every released CLIP, OpenCLIP's ViT-bigG/14 included."""

Output = Literal["pooled", "tokens", "both"]


class ImageTarget(NamedTuple):
    """CLIP embeddings of a batch of images."""

    pooled_BD: Tensor | None
    """Embedding of the class token (after CLIP's last layer norm); None for output "tokens"."""
    tokens_BPD: Tensor | None
    """Embeddings of the patches in raster order, without the class token; None for "pooled"."""

    @property
    def target_BTD(self) -> Tensor:
        """Target of the encoder: pooled embedding as one token, then patch tokens."""
        parts = ([] if self.pooled_BD is None else [self.pooled_BD[:, None]]) + (
            [] if self.tokens_BPD is None else [self.tokens_BPD]
        )
        return torch.cat(parts, dim=1)


def vision_config(path: str | Path, subfolder: str | None = None, **hub) -> CLIPVisionConfig:
    """Load the configuration of the image tower; parameters as `CLIPImageEncoder.from_pretrained`.

    Raises
    ------
    UserError
        If there is none.
    """
    subfolder = subfolder_of(path, "image_encoder") if subfolder is None else subfolder
    config = load_config(path, subfolder=subfolder, **hub)
    if isinstance(config, CLIPConfig):
        vision = cast(CLIPVisionConfig, config.vision_config)
        # only the outer value is right in the configuration of a whole CLIP model
        vision.projection_dim = cast(int, config.projection_dim)
        return vision
    if isinstance(config, CLIPVisionConfig):
        return config
    raise UserError(
        f"'{path}/{subfolder}' holds a model of type {config.model_type!r}; allowed are CLIP models"
        " with an image tower (types 'clip' and 'clip_vision_model')"
    )


def target_shape(
    vision: CLIPVisionConfig, output: Output = "pooled", projected: bool = True
) -> tuple[int, int]:
    """Tokens T and width D of the image target, by the configuration of the tower."""
    patches = (vision.image_size // vision.patch_size) ** 2  # type: ignore[operator]
    tokens = {"pooled": 1, "tokens": patches, "both": patches + 1}[output]
    return tokens, vision.projection_dim if projected else vision.hidden_size


class CLIPImageEncoder(nn.Module):
    """Frozen CLIP image encoder with preprocessing in torch.

    Parameters
    ----------
    model : CLIPVisionModelWithProjection | CLIPVisionModel
        The tower. Projection needs CLIPVisionModelWithProjection.
    output : Output, optional
        The class token's embedding (the paper's target: ViT-bigG/14, 1280), the patches'
        (MindEye2's target: 256 x 1664, not projected), or both.
    projected : bool
        Apply CLIP's projection to its shared space. Pooled: to the class token after the last layer
        norm; tokens: last layer norm and projection are applied to every patch. Otherwise the
        pooled embedding is after the last layer norm, and tokens are the last hidden state before
        it (OpenCLIP's tokens, MindEye2's convention).
    image_mean, image_std : sequence of 3 floats
        Pixel statistics.

    Notes
    -----
    Preprocessing: the shorter side is resized to the model's input size (bicubic, antialiased,
    clamped to [0, 1] as an 8-bit image would be), then the centre is cropped. An image that has
    this size is not resampled.
    """

    mean_311: Tensor
    std_311: Tensor

    def __init__(
        self,
        model: CLIPVisionModelWithProjection | CLIPVisionModel,
        *,
        output: Output = "pooled",
        projected: bool = True,
        image_mean: tuple[float, ...] = CLIP_MEAN,
        image_std: tuple[float, ...] = CLIP_STD,
    ) -> None:
        super().__init__()
        if output not in ("pooled", "tokens", "both"):
            raise UserError(f"output is {output!r}; allowed are 'pooled', 'tokens' and 'both'")
        if projected and not isinstance(model, CLIPVisionModelWithProjection):
            raise UserError(
                "a projected embedding needs a CLIPVisionModelWithProjection, not a"
                f" {type(model).__name__}"
            )
        self.model = model.requires_grad_(False).eval()
        self.output = output
        self.projected = projected
        self.register_buffer("mean_311", torch.tensor(image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_311", torch.tensor(image_std).view(3, 1, 1), persistent=False)

    @classmethod
    def on_meta(
        cls, vision: CLIPVisionConfig, *, output: Output = "pooled", projected: bool = True
    ) -> CLIPImageEncoder:
        """Build the encoder on the meta device: its sizes, without weights or memory."""
        with torch.device("meta"):
            return cls(
                (CLIPVisionModelWithProjection if projected else CLIPVisionModel)(vision),
                output=output,
                projected=projected,
            )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        output: Output = "pooled",
        projected: bool = True,
        subfolder: str | None = None,
        **kwargs,
    ) -> CLIPImageEncoder:
        """Load from a local folder or a hub name holding a CLIPModel or a CLIP vision model.

        Parameters
        ----------
        path : str or Path
            For example ``laion/CLIP-ViT-bigG-14-laion2B-39B-b160k``,
            ``openai/clip-vit-large-patch14``, or a folder.
        output, projected : Output, optional
            As for the class.
        subfolder : str, optional
            Folder inside it; found automatically where a local folder holds ``image_encoder/``.
        **kwargs
            For transformers' ``from_pretrained``: dtype, revision, local_files_only ...

        Raises
        ------
        UserError
            If it cannot be loaded, or weights are missing, left over or of another shape.
        """
        subfolder = subfolder_of(path, "image_encoder") if subfolder is None else subfolder
        hub = {key: value for key, value in kwargs.items() if key in HUB_OPTIONS}
        if not hub:
            path = local_copy(str(path), subfolder, "transformers")
        path, revision = located(str(path))
        hub, kwargs = revision | hub, revision | kwargs
        vision = vision_config(path, subfolder, **hub)
        tower: type[CLIPVisionModelWithProjection] | type[CLIPVisionModel] = (
            CLIPVisionModelWithProjection if projected else CLIPVisionModel
        )
        model = load_frozen(
            tower,
            path,
            subfolder=subfolder,
            config=vision,
            allowed_extra=("text_model.", "text_projection.", "logit_scale")
            + (() if projected else ("visual_projection.",)),
            **kwargs,
        )
        file = cached_file(
            str(path),
            "preprocessor_config.json",
            subfolder=subfolder,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub,
        )
        pixels = read_json(Path(file)) if file else {}
        return cls(
            model,
            output=output,
            projected=projected,
            image_mean=tuple(pixels.get("image_mean", CLIP_MEAN)),
            image_std=tuple(pixels.get("image_std", CLIP_STD)),
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tower and pixel statistics to ``image_encoder/`` for `from_pretrained`.

        `output` and `projected` are not saved; they are arguments of `from_pretrained`.
        """
        inside = Path(folder) / "image_encoder"
        self.model.save_pretrained(inside)
        pixels = {
            "image_mean": self.mean_311.flatten().tolist(),
            "image_std": self.std_311.flatten().tolist(),
        }
        write_json(inside / "preprocessor_config.json", pixels)

    @property
    def size(self) -> int:
        """Side of the model's input, pixels."""
        return self.model.config.image_size

    @property
    def clip_emb_dim(self) -> int:
        """Width D of the embeddings."""
        return target_shape(self.model.config, self.output, self.projected)[1]

    @property
    def clip_seq_dim(self) -> int:
        """Number T of tokens in `ImageTarget.target_BTD`."""
        return target_shape(self.model.config, self.output, self.projected)[0]

    def preprocess(self, images_B3HW: Tensor) -> Tensor:
        """Convert images in [0, 1] of any size to the model's normalised pixels.

        Parameters
        ----------
        images_B3HW : Tensor
            RGB, floating point, in [0, 1].

        Returns
        -------
        Tensor
            B x 3 x S x S, float32.

        Raises
        ------
        UserError
            If the images are not B x 3 x H x W, not floating point, or leave [0, 1].
        """
        if images_B3HW.ndim != 4 or images_B3HW.shape[1] != 3:
            raise UserError(
                f"images have shape {tuple(images_B3HW.shape)}; allowed is B x 3 x H x W"
            )
        if not images_B3HW.is_floating_point():
            raise UserError(
                f"images are {images_B3HW.dtype}; allowed is floating point in [0, 1]: divide"
                " bytes by 255"
            )
        x_B3HW = images_B3HW.to(self.mean_311.device, torch.float32)
        low, high = (float(x) for x in torch.aminmax(x_B3HW)) if x_B3HW.numel() else (0.0, 1.0)
        # float16 files may overshoot by rounding; NaN is refused here too
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise UserError(f"images have values from {low:g} to {high:g}; allowed is [0, 1]")
        height, width = x_B3HW.shape[-2:]
        scale = self.size / min(height, width)
        resized = (max(self.size, round(height * scale)), max(self.size, round(width * scale)))
        if resized != (height, width):
            x_B3HW = interpolate(
                x_B3HW, size=resized, mode="bicubic", antialias=True, align_corners=False
            )
        top, left = (resized[0] - self.size) // 2, (resized[1] - self.size) // 2
        x_B3SS = x_B3HW[:, :, top : top + self.size, left : left + self.size].clamp(0, 1)
        return (x_B3SS - self.mean_311) / self.std_311

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> ImageTarget:
        """Embed images.

        Parameters
        ----------
        images_B3HW : Tensor
            RGB in [0, 1], any size.

        Returns
        -------
        ImageTarget
            In the model's type.
        """
        pixels = self.preprocess(images_B3HW).to(self.model.dtype)
        out = self.model(pixel_values=pixels)
        pooled_BD = tokens_BPD = None
        if self.output != "tokens":
            pooled_BD = (
                out.image_embeds if self.projected else self._class_token(out.last_hidden_state)
            )
        if self.output != "pooled":
            tokens_BPD = out.last_hidden_state[:, 1:]
            if self.projected:
                tokens_BPD = self.model.visual_projection(
                    self.model.vision_model.post_layernorm(tokens_BPD)
                )
        return ImageTarget(pooled_BD, tokens_BPD)

    @torch.no_grad()
    def hidden_states(self, images_B3HW: Tensor) -> tuple[Tensor, ...]:
        """States after the patch embedding and after every block, B x (1 + P) x W each; the class
        token is the first.
        """
        pixels = self.preprocess(images_B3HW).to(self.model.dtype)
        return self.model(pixel_values=pixels, output_hidden_states=True).hidden_states

    def _class_token(self, hidden_BPW: Tensor) -> Tensor:
        """Class token after the last layer norm; only one kind of tower has a `vision_model`."""
        tower = (
            self.model.vision_model
            if isinstance(self.model, CLIPVisionModelWithProjection)
            else self.model
        )
        return tower.post_layernorm(hidden_BPW[:, 0])
