"""Networks whose features compare images: each has its preprocessing, its layer and its weights.

B batch, H W image size, F features.

Weights are searched in a folder of the user's, then in the usual caches (torch.hub, Hugging Face);
nothing is downloaded here. A network with missing weights is reported with the command that gets
them. `build` makes it with random weights, for tests of shapes and for benchmarks; the metric
table refuses such a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
import hashlib
from pathlib import Path
import pickle
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable
import warnings

import torch
from torch import Tensor, nn

from braingen.evaluation.pixel import resize
from braingen.runtime.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the ImageNet pixels, in [0, 1]."""
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""The same as OpenAI's CLIP was trained with."""
UNIT = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Maps [0, 1] to [-1, 1]."""
NO_CHANGE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

Use = Literal["two_way", "distance", "pair"]


@runtime_checkable
class Features(Protocol):
    """Interface of a network. Optional: ``use`` ("two_way" by default), ``weights`` (a hash)."""

    name: str

    def features(self, images_B3HW: Tensor) -> Tensor:
        """Compute B x F features of images in [0, 1]."""


class MissingWeights(UserError):
    """A network cannot be used because its weights are not on this machine."""

    def __init__(self, name: str, line: str, where: str) -> None:
        super().__init__(f"The weights of {name} are missing ({where}); get them with:  {line}")
        self.name = name
        self.line = line


class FeatureRecipe(NamedTuple):
    """A published comparison network."""

    name: str
    title: str
    """As in the field's tables."""
    use: Use
    """Two-way identification, correlation distance, or a distance between image pairs."""
    side: int
    """Pixels to which images are resized (bilinear, no crop)."""
    pixels: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Mean and standard deviation subtracted from and divided by."""
    file: str
    """File or folder of the weights."""
    line: str
    """Command that downloads them into the usual cache."""
    build: Callable[[], nn.Module]
    """The module with random weights."""
    load: Callable[[nn.Module, Path], nn.Module]
    """Loads the weights of a file into the module, and returns the part that computes features."""


class FeatureNetwork:
    """One comparison network, in evaluation mode.

    Parameters
    ----------
    recipe : FeatureRecipe
        Which one.
    module : nn.Module
        The network, ending where the features are.
    weights : str | None
        Hash of the weight file; None for random weights.
    """

    def __init__(
        self, recipe: FeatureRecipe, module: nn.Module, weights: str | None, device: str = "cpu"
    ) -> None:
        self.recipe = recipe
        self.name = recipe.name
        self.use = recipe.use
        self.weights = weights
        self.device = device
        self._module = module.requires_grad_(False).eval().to(device)

    def _prepared(self, images_B3HW: Tensor) -> Tensor:
        images = resize(images_B3HW.to(self.device), self.recipe.side)
        mean, deviation = (
            images.new_tensor(values)[:, None, None] for values in self.recipe.pixels
        )
        return (images - mean) / deviation

    @torch.inference_mode()
    def features(self, images_B3HW: Tensor) -> Tensor:
        """B x F features of images in [0, 1], of any size."""
        return self._module(self._prepared(images_B3HW)).flatten(1)

    @torch.inference_mode()
    def distance(self, truth_B3HW: Tensor, recons_B3HW: Tensor) -> Tensor:
        """Compute B distances between images; only for ``use`` "pair"."""
        return self._module(self._prepared(truth_B3HW), self._prepared(recons_B3HW)).flatten()


def _read(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def _torchvision(architecture: str, **arguments: Any) -> nn.Module:
    from torchvision import models

    return getattr(models, architecture)(weights=None, **arguments)


def _headless(head: str) -> Callable[[nn.Module, Path | None], nn.Module]:
    """Load a classifier strictly, and drop its head so that it returns pooled features."""

    def load(module: nn.Module, path: Path | None) -> nn.Module:
        if path is not None:
            module.load_state_dict(_read(path))
        setattr(module, head, nn.Identity())
        return module

    return load


def _alexnet(last: int) -> Callable[[nn.Module, Path | None], nn.Module]:
    """AlexNet up to and including ``features.<last>``."""

    def load(module: nn.Module, path: Path | None) -> nn.Module:
        if path is not None:
            module.load_state_dict(_read(path))
        layers: Any = module.features
        return layers[: last + 1]

    return load


def _swav(module: nn.Module, path: Path | None) -> nn.Module:
    """Load SwAV: the checkpoint has unused prototypes and a projection head, and no classifier."""
    if path is not None:
        state = {key.removeprefix("module."): value for key, value in _read(path).items()}
        odd = module.load_state_dict(state, strict=False)
        strange = [
            key
            for key in odd.unexpected_keys
            if not key.startswith(("projection_head", "prototypes"))
        ]
        if set(odd.missing_keys) != {"fc.weight", "fc.bias"} or strange:
            raise UserError(
                f"{path} is not the SwAV ResNet-50: missing {odd.missing_keys[:3]}, unexpected"
                f" {strange[:3]}."
            )
    return _headless("fc")(module, None)


class _ImageEmbedding(nn.Module):
    """CLIP's image embedding as a plain tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        return self.model(pixel_values=pixels_B3HW).image_embeds


def _clip_build() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(  # ViT-L/14 as released by OpenAI
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
            projection_dim=768,
            hidden_act="quick_gelu",
        )
    )


def _clip_load(module: nn.Module, path: Path | None) -> nn.Module:
    if path is not None:
        from transformers import CLIPVisionModelWithProjection

        tower = cast(Any, CLIPVisionModelWithProjection)
        module, loading = tower.from_pretrained(
            path, local_files_only=True, output_loading_info=True
        )
        absent = sorted(loading["missing_keys"])
        if absent:
            raise UserError(
                f"{path} lacks {len(absent)} tensors of CLIP's image tower, e.g. {absent[0]}; get"
                " it again."
            )
    return _ImageEmbedding(module)


def _lpips_build() -> nn.Module:
    # torchmetrics' public class fetches the backbone by itself and from nowhere else, so its inner
    # one is taken; the learned weights of the layers (version 0.1) come with torchmetrics
    from torchmetrics.functional.image.lpips import _LPIPS

    return _LPIPS(net="alex", pnet_rand=True)


def _lpips_load(module: nn.Module, path: Path | None) -> nn.Module:
    """Load AlexNet into LPIPS' five slices: ``slice2.3.weight`` is ``features.3.weight``."""
    if path is not None:
        alexnet = _read(path)
        backbone: Any = module.net
        backbone.load_state_dict(
            {key: alexnet["features." + key.partition(".")[2]] for key in backbone.state_dict()}
        )
    return module


class _DreamSimEmbedding(nn.Module):
    """DreamSim's distance is the cosine of centred embeddings, i.e. their correlation."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        # the package squeezes the batch axis away
        return torch.cat([self.model.embed(one[None]) for one in pixels_B3HW])


_DREAMSIM_PARTS = (
    "dino_vitb16_pretrain.pth",
    "open_clip_vitb16_pretrain.pth.tar",
    "clip_vitb16_pretrain.pth.tar",
    "ensemble_lora",
)


def _dreamsim_build() -> nn.Module:
    raise UserError(
        "DreamSim's package builds it from its weight files only; there is no random one."
    )


def _dreamsim_load(module: nn.Module, path: Path | None) -> nn.Module:
    from dreamsim import dreamsim

    # the ensemble; all its parts were found, so nothing is downloaded
    model, _ = dreamsim(pretrained=True, device="cpu", cache_dir=str(path))
    return _DreamSimEmbedding(model)


def _hub_line(url: str) -> str:
    return f"python -c \"import torch; torch.hub.load_state_dict_from_url('{url}')\""


_TORCHVISION = "https://download.pytorch.org/models/"
_CLIP_NAME = "openai/clip-vit-large-patch14"
_ALEXNET = "alexnet-owt-7be5be79.pth"
_INCEPTION = "inception_v3_google-0cc3c7bd.pth"
_EFFICIENTNET = "efficientnet_b1-c27df63c.pth"
_SWAV = "swav_800ep_pretrain.pth.tar"


@cache
def recipes() -> dict[str, FeatureRecipe]:
    """The networks of docs/scores.md, in the field's column order."""
    get_alexnet = _hub_line(_TORCHVISION + _ALEXNET)
    alexnet = lambda: _torchvision("alexnet")  # noqa: E731
    # with its released weights torchvision's Inception first maps ImageNet-normalised pixels to
    # [-1, 1] itself (transform_input)
    inception = lambda: _torchvision("inception_v3", transform_input=True, init_weights=False)  # noqa: E731
    rows = (
        FeatureRecipe(
            "alexnet2",
            "AlexNet(2)",
            "two_way",
            256,
            IMAGENET,
            _ALEXNET,
            get_alexnet,
            alexnet,
            _alexnet(4),
        ),
        FeatureRecipe(
            "alexnet5",
            "AlexNet(5)",
            "two_way",
            256,
            IMAGENET,
            _ALEXNET,
            get_alexnet,
            alexnet,
            _alexnet(11),
        ),
        FeatureRecipe(
            "inception",
            "Inception",
            "two_way",
            342,
            IMAGENET,
            _INCEPTION,
            _hub_line(_TORCHVISION + _INCEPTION),
            inception,
            _headless("fc"),
        ),
        FeatureRecipe(
            "clip",
            "CLIP",
            "two_way",
            224,
            CLIP,
            "clip-vit-large-patch14",
            f"hf download {_CLIP_NAME} config.json model.safetensors",
            _clip_build,
            _clip_load,
        ),
        FeatureRecipe(
            "effnet_b1",
            "EffNet-B",
            "distance",
            255,
            IMAGENET,
            _EFFICIENTNET,
            _hub_line(_TORCHVISION + _EFFICIENTNET),
            lambda: _torchvision("efficientnet_b1"),
            _headless("classifier"),
        ),
        FeatureRecipe(
            "swav",
            "SwAV",
            "distance",
            224,
            IMAGENET,
            _SWAV,
            _hub_line("https://dl.fbaipublicfiles.com/deepcluster/" + _SWAV),
            lambda: _torchvision("resnet50"),
            _swav,
        ),
        FeatureRecipe(
            "lpips", "LPIPS", "pair", 256, UNIT, _ALEXNET, get_alexnet, _lpips_build, _lpips_load
        ),
        FeatureRecipe(
            "dreamsim",
            "DreamSim",
            "distance",
            224,
            NO_CHANGE,
            "dreamsim",
            'pip install dreamsim && python -c "import os; from dreamsim import dreamsim;'
            " dreamsim(pretrained=True, device='cpu',"
            " cache_dir=os.path.expanduser('~/.cache/dreamsim'))\"",
            _dreamsim_build,
            _dreamsim_load,
        ),
    )
    return {row.name: row for row in rows}


def _recipe(name: str) -> FeatureRecipe:
    if name not in recipes():
        raise UserError(f"There is no network {name!r}; there are {', '.join(recipes())}.")
    return recipes()[name]


def find_weights(name: str, folder: Path | str | None = None) -> Path:
    """Find the weights of a network: in ``folder``, else in the usual cache.

    Raises
    ------
    MissingWeights
        With the line that gets them.
    """
    recipe = _recipe(name)
    places = [] if folder is None else [Path(folder) / recipe.file]
    if name == "clip":
        cached = _hugging_face_folder(_CLIP_NAME)
        places += [] if cached is None else [cached]
    elif name == "dreamsim":
        places.append(Path.home() / ".cache" / "dreamsim")
        places = [
            place for place in places if all((place / part).exists() for part in _DREAMSIM_PARTS)
        ]
    else:
        places.append(Path(torch.hub.get_dir()) / "checkpoints" / recipe.file)
    for place in places:
        if place.exists():
            return place
    raise MissingWeights(
        recipe.title, recipe.line, f"no {recipe.file} in {folder or 'the usual cache'}"
    )


def _hugging_face_folder(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def weights_hash(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a weight file, or of all weight files of a folder."""
    files = (
        [path]
        if path.is_file()
        else sorted(
            f for f in path.rglob("*") if f.suffix in (".safetensors", ".bin", ".pth", ".tar")
        )
    )
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as handle:
            while chunk := handle.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def load(name: str, folder: Path | str | None = None, device: str = "cpu") -> FeatureNetwork:
    """Load a published network with its weights.

    Raises
    ------
    MissingWeights
        When they, or the package the network is from, are not on this machine.
    """
    recipe = _recipe(name)
    path = find_weights(name, folder)
    try:
        module = recipe.load(
            nn.Identity() if name in ("clip", "dreamsim") else recipe.build(), path
        )
    except ModuleNotFoundError as error:
        raise MissingWeights(
            recipe.title, recipe.line, f"the package {error.name} is not installed"
        ) from error
    except (RuntimeError, KeyError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} does not hold the weights of {recipe.title}; delete it and get it again with: "
            f" {recipe.line}"
        ) from error
    return FeatureNetwork(recipe, module, weights_hash(path), device)


def build(name: str, device: str = "cpu") -> FeatureNetwork:
    """Build a network with *random* weights, for shape tests and benchmarks, never for scores."""
    recipe = _recipe(name)
    with torch.device(device):
        module = recipe.load(recipe.build(), None)  # type: ignore[arg-type]
    return FeatureNetwork(recipe, module, None, device)


def on_meta(name: str) -> nn.Module | None:
    """The part of a network that computes features, without memory; None for one that cannot be
    built without its weights.

    Raises
    ------
    ModuleNotFoundError
        When the package that the network is from is not installed.
    """
    recipe = _recipe(name)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LPIPS has some weights beside its code, not used here
        try:
            module = recipe.load(recipe.build(), None)  # type: ignore[arg-type]
            return module.to("meta").eval().requires_grad_(False)
        except UserError:
            return None


def load_all(
    names: Iterable[str] | None = None,
    folder: Path | str | None = None,
    device: str = "cpu",
    strict: bool = False,
) -> tuple[list[FeatureNetwork], dict[str, str]]:
    """Load the networks whose weights are available.

    Returns
    -------
    tuple[list[FeatureNetwork], dict[str, str]]
        The networks, and for each missing one how to get it. With ``strict`` the first missing one
        raises.
    """
    found, missing = [], {}
    for name in recipes() if names is None else names:
        try:
            found.append(load(name, folder, device))
        except MissingWeights as error:
            if strict:
                raise
            missing[name] = str(error)
    return found, missing
