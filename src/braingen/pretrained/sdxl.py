"""Load U-Net, VAE, scheduler and IP-Adapter in the layout of an SDXL pipeline.

The shipped tiny backbones, a local copy of Stable Diffusion XL and a hub name share one code path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from diffusers import AutoencoderKL, ModelMixin, SchedulerMixin, UNet2DConditionModel
from diffusers.schedulers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
import torch
from torch import Tensor

from braingen.config.shipped import backbone_folder
from braingen.pretrained.hub import is_hub_name, local_copy, located, quiet, whole_folder
from braingen.pretrained.weight_files import chosen_files, files_in
from braingen.runtime.console import reported
from braingen.runtime.errors import UserError
from braingen.runtime.weights import first_line, plain_text, read_tensors, refuse_not_finite

Model = TypeVar("Model", bound=ModelMixin)
IP_ADAPTER_FILE = "sdxl_models/ip-adapter_sdxl.safetensors"
"""Where h94/IP-Adapter keeps the adapter made for ViT-bigG/14."""

SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
"""Schedulers by the names of ``generation.scheduler``."""

PIXELS_AT_ONCE = 2 * 512**2
"""Pixels that the autoencoder encodes or decodes at once, so that its memory does not grow with the
batch; a single image may have more.
"""

NO_ADAPTER = "none"
"""Value of ``backbone.ip_adapter``: encoders are trained and scored, without generating images."""
PROJECTION = {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}
"""What every plain IP-Adapter has under ``image_proj``."""
UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    AttributeError,
    SafetensorError,
)
"""Errors of diffusers for damaged model files."""


class Backbone(NamedTuple):
    """The frozen models that generate images."""

    unet: UNet2DConditionModel
    """With the IP-Adapter added, unless it is none."""
    vae: AutoencoderKL
    """None where it was not asked for."""
    scheduler: SchedulerMixin


def load_backbone(
    path: str, ip_adapter: str = "", dtype: torch.dtype = torch.float32, with_vae: bool = True
) -> Backbone:
    """Load U-Net, VAE, scheduler and IP-Adapter, frozen and in eval mode.

    Parameters
    ----------
    path : str
        'tiny', a folder in the layout of an SDXL pipeline, or a hub name.
    ip_adapter : str, optional
        A safetensors file, or a folder or hub name that holds IP_ADAPTER_FILE; empty for
        ``<path>/ip_adapter``.
    dtype : torch.dtype, optional
        Of the U-Net; the VAE is float32, since Stable Diffusion XL's overflows in float16.
    with_vae : bool, optional
        Load the VAE too.

    Raises
    ------
    UserError
        When a part is missing, with what to type.
    """
    backbone = load_plain(path, dtype, with_vae=with_vae)
    add_ip_adapter(
        backbone.unet,
        load_ip_adapter_file(ip_adapter or str(Path(backbone_folder(path)) / "ip_adapter")),
    )
    backbone.unet.requires_grad_(False).eval()
    return backbone


def load_plain(
    path: str,
    dtype: torch.dtype = torch.float32,
    setting: str = "backbone.path",
    with_vae: bool = True,
) -> Backbone:
    """Load U-Net, VAE and scheduler without an IP-Adapter, frozen.

    Parameters
    ----------
    path, dtype, with_vae : str
        As for :func:`load_backbone`.
    setting : str, optional
        Name of the setting, for messages.
    """
    folder = backbone_folder(path)
    try:
        unet = _load_whole(UNet2DConditionModel, folder, "unet", dtype)
        vae = None
        if with_vae:
            vae = _load_vae(folder, torch.float32).requires_grad_(False).eval()
        scheduler = EulerDiscreteScheduler.from_pretrained(whole_folder(folder, "scheduler"))
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"{setting} = {path!r} does not hold an SDXL pipeline (unet/, vae/, scheduler/):"
            f" {plain_text(error)} Use {setting}=tiny, a folder written by save_pretrained, or a"
            " hub name such as stabilityai/stable-diffusion-xl-base-1.0."
        ) from error
    return Backbone(unet.requires_grad_(False).eval(), vae, scheduler)  # type: ignore[arg-type]


def load_vae(path: str, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """Load only the autoencoder, frozen and in eval mode.

    Raises
    ------
    UserError
        When it is missing or incomplete.
    """
    try:
        return _load_vae(backbone_folder(path), dtype).requires_grad_(False).eval()
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"backbone.path = {path!r} does not hold a VAE (vae/): {plain_text(error)} Use"
            " backbone.path=tiny, a folder written by save_pretrained, or a hub name such as"
            " stabilityai/stable-diffusion-xl-base-1.0."
        ) from error


def own_size(path: str, local_files_only: bool = False) -> int:
    """Side in pixels of the images that a backbone was trained on, from its configurations.

    Parameters
    ----------
    path : str
        As for :func:`load_backbone`.
    local_files_only : bool, optional
        Do not request files from the hub.

    Raises
    ------
    UserError
        When the configurations are not available.
    """
    try:
        unet = part_config(UNet2DConditionModel, path, "unet", local_files_only)
        vae = part_config(AutoencoderKL, path, "vae", local_files_only)
        return int(unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"backbone.path = {path!r} does not hold the configurations of an SDXL pipeline (unet/,"
            f" vae/): {plain_text(error)} Use backbone.path=tiny, a folder written by"
            " save_pretrained, or a hub name such as stabilityai/stable-diffusion-xl-base-1.0."
        ) from error


def load_scheduler(path: str, setting: str = "backbone.path") -> SchedulerMixin:
    """Load only the scheduler of a backbone.

    Raises
    ------
    UserError
        When it is not there.
    """
    try:
        return EulerDiscreteScheduler.from_pretrained(
            whole_folder(backbone_folder(path), "scheduler")
        )
    except UNREADABLE as error:
        raise UserError(
            f"{setting} = {path!r} does not hold the scheduler of an SDXL pipeline (scheduler/):"
            f" {plain_text(error)} Use {setting}=tiny, a folder written by save_pretrained, or a"
            " hub name."
        ) from error


def refuse_steps(steps: int, scheduler: SchedulerMixin, setting: str = "steps") -> None:
    """Refuse more denoising steps than the noise schedule has times.

    Raises
    ------
    UserError
        With the largest number.
    """
    most = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= most:
        raise UserError(
            f"{setting} = {steps}, but the noise schedule has {most} times: give 1 to {most}."
        )


def refuse_side(side: int, factor: int, setting: str, multiple: bool = True) -> None:
    """Refuse an image side that the autoencoder does not support.

    Parameters
    ----------
    side : int
        In pixels; 0, the U-Net's own, is always allowed.
    factor : int
        Pixels per latent.
    setting : str
        Name of the setting, for the message.
    multiple : bool, optional
        Whether it has to be a multiple of the factor; generated images are cropped otherwise.

    Raises
    ------
    UserError
        With what is allowed.
    """
    if not side or (side >= factor and not (multiple and side % factor)):
        return
    near = max(factor, round(side / factor) * factor)
    allowed = f"a multiple of {factor}" if multiple else f"{factor} or more"
    raise UserError(
        f"{setting} = {side} pixels, and the autoencoder turns {factor} x {factor} pixels into one"
        f" latent: give {allowed}, such as {near}."
    )


def part_config(
    part: type[ModelMixin], path: str, subfolder: str, local_files_only: bool = False
) -> dict[str, Any]:
    """Read the configuration of a backbone's part, without what the hub's library remarks.

    Parameters
    ----------
    part : type[ModelMixin]
        Its class.
    path : str
        As for :func:`load_backbone`.
    subfolder : str
        Of the part.
    local_files_only : bool, optional
        Do not request files from the hub.

    Raises
    ------
    OSError, ValueError
        When it is not available, or no configuration.
    """
    folder, hub = located(backbone_folder(path))
    with quiet():
        return part.load_config(
            folder, subfolder=subfolder, local_files_only=local_files_only, **hub
        )


def unet_config(path: str) -> dict[str, Any]:
    """Load the configuration of a backbone's U-Net; empty where it is not on this machine."""
    try:
        return part_config(UNet2DConditionModel, path, "unet", local_files_only=True)
    except UNREADABLE:
        return {}


def pixels_per_latent(path: str, local_files_only: bool = False) -> int:
    """Pixels per latent along a side, from the autoencoder's configuration.

    Raises
    ------
    UserError
        When it is not available.
    """
    try:
        vae = part_config(AutoencoderKL, path, "vae", local_files_only)
        return int(2 ** (len(vae["block_out_channels"]) - 1))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"backbone.path = {path!r} does not hold the configuration of an autoencoder (vae/):"
            f" {plain_text(error)} Use backbone.path=tiny, a folder written by save_pretrained, or"
            " a hub name such as stabilityai/stable-diffusion-xl-base-1.0."
        ) from error


def scheduler_named(name: str, own: SchedulerMixin) -> SchedulerMixin:
    """Build a scheduler by name, with the model's noise schedule; "default" returns the model's."""
    if name == "default":
        return own
    if name not in SCHEDULERS:
        raise UserError(
            f"generation.scheduler = {name!r} is not known; allowed are default,"
            f" {', '.join(SCHEDULERS)}."
        )
    with quiet():  # settings that the other class lacks are ignored
        return SCHEDULERS[name].from_config(own.config)


def _load_whole(cls: type[Model], folder: str, name: str, dtype: torch.dtype) -> Model:
    """Load a model and refuse missing weights, which diffusers initialises at random."""
    folder, hub = located(local_copy(folder, name, "diffusers", half=dtype != torch.float32))
    options: dict[str, Any] = dict(hub)
    place = Path(folder) / name
    chosen = chosen_files(files_in(place), "diffusers", half=dtype != torch.float32)
    if chosen is not None:
        options |= {"variant": chosen.variant, "use_safetensors": chosen.use_safetensors}
    files = [place / each for each in chosen.weights] if chosen is not None else []
    with quiet(), reported(name, files):
        model, info = cls.from_pretrained(
            folder, subfolder=name, torch_dtype=dtype, output_loading_info=True, **options
        )
    if info["missing_keys"]:
        raise ValueError(
            f"{name}/ lacks {len(info['missing_keys'])} of its weights (first:"
            f" {sorted(info['missing_keys'])[0]})."
        )
    refuse_not_finite(model, f"{folder}/{name}", "get it again")
    return model


def encode_modes(vae: AutoencoderKL, images_B3HW: Tensor) -> Tensor:
    """Encode images in [0, 1] to scaled latents, B x 4 x h x w: the mode of the distribution.

    In slices of :data:`PIXELS_AT_ONCE`.
    """
    x_B3HW = images_B3HW.to(vae.device, vae.dtype) * 2 - 1
    count = max(1, PIXELS_AT_ONCE // images_B3HW.shape[-1] ** 2)
    modes = [vae.encode(some_B3HW).latent_dist.mode() for some_B3HW in x_B3HW.split(count)]
    return torch.cat(modes).float() * vae.config.scaling_factor


def _load_vae(folder: str, dtype: torch.dtype) -> AutoencoderKL:
    """Load the autoencoder with channels last: on a CPU the tiny one is 1.5 to 2 times faster."""
    return _load_whole(AutoencoderKL, folder, "vae", dtype).to(memory_format=torch.channels_last)


def load_ip_adapter_file(source: str) -> dict[str, Tensor]:
    """Read an IP-Adapter (keys ``image_proj.*``, ``ip_adapter.*``) from a file, folder or hub."""
    if source == NO_ADAPTER:
        raise UserError(
            f"backbone.ip_adapter={NO_ADAPTER} trains encoders without generating images: to"
            " generate or fine-tune, name an IP-Adapter that takes their image embedding."
        )
    path = Path(source)
    again = "get it again, or set backbone.ip_adapter=h94/IP-Adapter"
    for candidate in (path, path / "ip-adapter.safetensors", path / IP_ADAPTER_FILE):
        if candidate.is_file():  # older .bin files nest the two parts as dictionaries
            with reported("IP-Adapter", [candidate]):
                return read_tensors(candidate, again)
    if not is_hub_name(source):
        raise UserError(
            f"There is no IP-Adapter in {source}: expected a .safetensors or .bin file or a folder"
            f" with {IP_ADAPTER_FILE}. Set backbone.ip_adapter=h94/IP-Adapter, or the path of your"
            " copy."
        )
    try:
        name, hub = located(source)
        fetched = Path(hf_hub_download(name, IP_ADAPTER_FILE, **hub))
        with reported("IP-Adapter", [fetched]):
            return read_tensors(fetched, again)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"The IP-Adapter {source} could not be downloaded: {first_line(error)} Without network"
            f" access copy {IP_ADAPTER_FILE} here and give its path: backbone.ip_adapter=PATH."
        ) from error


def add_ip_adapter(unet: UNet2DConditionModel, weights: dict[str, Tensor]) -> None:
    """Add an IP-Adapter to a U-Net that has none (U-Nets cannot be built with one).

    Raises
    ------
    UserError
        When the weights are not of an IP-Adapter, or of one made for another U-Net or another kind
        of image embedding.
    """
    refuse_not_finite(weights, "The IP-Adapter", "get it again")
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in weights.items():
        group, _, name = key.partition(".")
        if group not in parts:
            raise UserError(
                f"{key} is not a key of an IP-Adapter file (image_proj.* or ip_adapter.*)"
            )
        parts[group][name] = value.to(unet.dtype)
    try:
        if lacking := PROJECTION - parts["image_proj"].keys():  # it would leave them out
            raise KeyError(f"image_proj.{min(lacking)}")
        with quiet():  # it casts the U-Net to its own type, and warns of that
            # the loader of StableDiffusionXLPipeline.load_ip_adapter, without the rest of a
            # pipeline; it takes these tensors as they are, and makes none of its own first
            unet._load_ip_adapter_weights([parts], low_cpu_mem_usage=True)
        image_embedding_width(unet)
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"This IP-Adapter does not fit the U-Net ({' '.join(str(error).split())[:300]}): give"
            f" the plain one that was made for it (for SDXL h94/IP-Adapter's {IP_ADAPTER_FILE}; not"
            " a 'plus' or 'face' one)."
        ) from error


def ip_adapter_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return the weights of a U-Net's IP-Adapter, under the keys of h94/IP-Adapter's files."""
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    weights = {
        f"image_proj.proj.{key}": value
        for key, value in projection.image_embeds.state_dict().items()
    }
    weights |= {
        f"image_proj.norm.{key}": value for key, value in projection.norm.state_dict().items()
    }
    cross = [processor for name, processor in unet.attn_processors.items() if "attn2" in name]
    # the files number cross-attentions 1, 3, 5 ... in the order of attn_processors
    for order, processor in enumerate(cross):
        weights[f"ip_adapter.{2 * order + 1}.to_k_ip.weight"] = processor.to_k_ip[0].weight
        weights[f"ip_adapter.{2 * order + 1}.to_v_ip.weight"] = processor.to_v_ip[0].weight
    return {key: value.detach() for key, value in weights.items()}


def without_ip_adapter(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a plain U-Net that shares the weights of one with an IP-Adapter or unmerged LoRA."""
    with torch.device("meta"):
        plain = UNet2DConditionModel.from_config({**unet.config, "encoder_hid_dim_type": None})
    named = ((plain_key(key), value) for key, value in unet.state_dict().items())
    own = {
        key: value
        for key, value in named
        if key and "encoder_hid_proj" not in key and "_ip." not in key
    }
    plain.load_state_dict(own, assign=True)
    return plain


def image_embedding_width(unet: UNet2DConditionModel) -> int:
    """Width D of the image embedding that the IP-Adapter takes."""
    return unet.encoder_hid_proj.image_projection_layers[0].image_embeds.in_features


def pooled_width(unet: UNet2DConditionModel) -> int:
    """Width of the pooled text embedding of a base model's U-Net, which has six time ids."""
    return unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim


def image_size(unet: UNet2DConditionModel, vae: AutoencoderKL) -> int:
    """Side in pixels of the images that a U-Net was trained on."""
    return int(unet.config.sample_size * vae_factor(vae))


def vae_factor(vae: AutoencoderKL) -> int:
    """Pixels per latent along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def plain_key(key: str) -> str | None:
    """Strip peft's part from a key of a U-Net with a LoRA; None for the LoRA's own keys."""
    return None if ".lora_" in key else key.replace(".base_layer.", ".")
