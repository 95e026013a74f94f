"""Comparison networks: published layers and shapes, loading from files, and what is said when they
are missing.
"""

from __future__ import annotations

from pathlib import Path
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from braingen.evaluation import features
from braingen.runtime.errors import UserError

IMAGES = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies in this machine's caches plays no part."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(features, "_hugging_face_folder", lambda name: None)


def prepared(side: int) -> Tensor:
    small = interpolate(IMAGES, size=(side, side), mode="bilinear", antialias=False)
    mean, deviation = torch.tensor(features.IMAGENET[0]), torch.tensor(features.IMAGENET[1])
    return (small - mean[:, None, None]) / deviation[:, None, None]


@pytest.mark.parametrize(
    ("name", "width", "parameters"),
    [
        ("alexnet2", 192 * 31 * 31, 330_688),
        ("alexnet5", 256 * 15 * 15, 2_469_696),
        ("inception", 2048, None),
        ("clip", 768, 303_966_208),  # the image tower and the projection of ViT-L/14
        ("effnet_b1", 1280, 6_513_184),
        ("swav", 2048, 23_508_032),
    ],
)
@pytest.mark.slow
def test_published_shapes(name: str, width: int, parameters: int | None) -> None:
    network = features.build(name, "meta")
    assert network.features(IMAGES).shape == (2, width)
    if parameters is not None:
        assert sum(p.numel() for p in network._module.parameters()) == parameters
    assert network.weights is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing")
@pytest.mark.parametrize(
    ("name", "architecture", "layer"),
    [
        ("alexnet2", "alexnet", "features.4"),
        ("alexnet5", "alexnet", "features.11"),
        ("effnet_b1", "efficientnet_b1", "avgpool"),
        ("inception", "inception_v3", "avgpool"),
        ("swav", "resnet50", "avgpool"),
    ],
)
def test_features_are_those_of_the_named_layer(
    name: str, architecture: str, layer: str, tmp_path: Path
) -> None:
    """Random weights, saved as the released file is, against torchvision's own feature
    extractor.
    """
    torch.manual_seed(0)
    options: dict[str, Any] = (
        {"init_weights": False, "transform_input": True} if name == "inception" else {}
    )
    model = getattr(models, architecture)(weights=None, **options).eval()
    recipe = features.recipes()[name]
    state = model.state_dict()
    if (
        name == "swav"
    ):  # the released file: a wrapped model with heads of its own, and no classifier
        state = {
            f"module.{key}": value for key, value in state.items() if not key.startswith("fc.")
        }
        state |= {
            "module.prototypes.weight": torch.zeros(3, 2),
            "module.projection_head.0.weight": torch.zeros(2, 2),
        }
    torch.save(state, tmp_path / recipe.file)
    network = features.load(name, tmp_path)
    with torch.inference_mode():
        expected = create_feature_extractor(model, {layer: "it"})(prepared(recipe.side))[
            "it"
        ].flatten(1)
    torch.testing.assert_close(network.features(IMAGES), expected)
    assert (
        network.weights == features.weights_hash(tmp_path / recipe.file)
        and len(network.weights) == 16
    )


def test_files_are_those_torchvision_releases() -> None:
    for name, released in (
        ("alexnet2", models.AlexNet_Weights.IMAGENET1K_V1),
        ("lpips", models.AlexNet_Weights.IMAGENET1K_V1),
        ("inception", models.Inception_V3_Weights.DEFAULT),
        ("effnet_b1", models.EfficientNet_B1_Weights.DEFAULT),
    ):
        recipe = features.recipes()[name]
        assert released.url.endswith("/" + recipe.file) and released.url in recipe.line


def test_clip_is_the_projected_image_embedding(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
        projection_dim=8,
    )
    text = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=50,
        eos_token_id=2,
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    ).eval()
    model.save_pretrained(tmp_path / "clip-vit-large-patch14")
    network = features.load("clip", tmp_path)
    small = interpolate(IMAGES, size=(224, 224), mode="bilinear", antialias=False)
    mean, deviation = torch.tensor(features.CLIP[0]), torch.tensor(features.CLIP[1])
    pixels = (small - mean[:, None, None]) / deviation[:, None, None]
    with torch.inference_mode():
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(network.features(IMAGES), expected)


@pytest.mark.slow
def test_lpips_is_its_definition(tmp_path: Path) -> None:
    """Squared differences of unit-length AlexNet activations, weighted by the learned 1 x 1 layers
    (Zhang et al. 2018, eq. 1).
    """
    from torchmetrics.functional.image import lpips as module

    torch.manual_seed(0)
    alexnet = models.alexnet(weights=None).eval()
    torch.save(alexnet.state_dict(), tmp_path / features.recipes()["lpips"].file)
    network = features.load("lpips", tmp_path)
    learned = torch.load(
        Path(module.__file__).parent / "lpips_models" / "alex.pth",
        map_location="cpu",
        weights_only=True,
    )
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    expected = torch.zeros(1)
    with torch.inference_mode():
        pair = ((IMAGES * 2 - 1) - shift[:, None, None]) / scale[:, None, None]
        for number, layer in enumerate(alexnet.features[:12]):
            pair = layer(pair)
            if number in (1, 4, 7, 9, 11):
                unit = pair / (pair.square().sum(1, keepdim=True).sqrt() + 1e-8)
                weight = learned[f"lin{(1, 4, 7, 9, 11).index(number)}.model.1.weight"]
                expected += ((unit[:1] - unit[1:]).square() * weight[0]).sum(1).mean()
    torch.testing.assert_close(
        network.distance(IMAGES[:1], IMAGES[1:]), expected, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(network.distance(IMAGES, IMAGES), torch.zeros(2))


def test_missing_weights_are_named_with_the_line_that_gets_them() -> None:
    found, missing = features.load_all()
    assert not found and list(missing) == list(features.recipes())
    for name, sentence in missing.items():
        assert (
            features.recipes()[name].title in sentence and features.recipes()[name].line in sentence
        )
    with pytest.raises(features.MissingWeights, match=r"AlexNet\(2\)"):
        features.load_all(strict=True)
    with pytest.raises(UserError, match="there are alexnet2"):
        features.load("alexnet3")


@pytest.mark.slow
def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    recipe = features.recipes()["effnet_b1"]
    torch.save({"weight": torch.zeros(2)}, tmp_path / recipe.file)
    with pytest.raises(UserError, match="get it again"):
        features.load("effnet_b1", tmp_path)
    (tmp_path / recipe.file).write_bytes(b"not weights")
    with pytest.raises(UserError, match="get it again"):
        features.load("effnet_b1", tmp_path)


def test_dreamsim_is_loaded_only_when_all_of_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its package would download; it must not be asked before every part has been found."""
    asked = []

    class Stand(nn.Module):
        def embed(self, image: Tensor) -> Tensor:
            assert image.shape == (1, 3, 224, 224)
            return image.mean((2, 3))

    def dreamsim(**options: Any) -> tuple[nn.Module, None]:
        asked.append(options)
        return Stand(), None

    package = ModuleType("dreamsim")
    package.dreamsim = dreamsim  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dreamsim", package)
    folder = tmp_path / "dreamsim"
    folder.mkdir()
    for part in features._DREAMSIM_PARTS[:-1]:
        (folder / part).write_bytes(b"x")
    with pytest.raises(features.MissingWeights):
        features.load("dreamsim", tmp_path)
    assert not asked
    (folder / features._DREAMSIM_PARTS[-1]).mkdir()
    network = features.load("dreamsim", tmp_path)
    assert asked[0]["cache_dir"] == str(folder)
    assert network.features(IMAGES).shape == (2, 3)
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(features.MissingWeights, match="not installed"):
        features.load("dreamsim", tmp_path)
