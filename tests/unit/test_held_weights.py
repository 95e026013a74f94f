"""The weights that stages hold at once are those of `doctor`'s table, whichever settings load more;
what is loaded for a table, a prompt or a decoding goes before the next model comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
import gc
from pathlib import Path
from typing import Any
from weakref import WeakSet

from diffusers import ModelMixin, UNet2DConditionModel
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel
from unit.fake_backbone import POOLED_WIDTH, fake_backbone, write_fake_backbone, write_fake_refiner
from unit.test_wires_drawing import a_router
from unit.tiny_finetuning import TableTargets, text_encoder, tiny_embedding_decoder, tiny_tuning
from unit.tiny_training import tiny_config

from braingen.config import Config
from braingen.diagnostics import precompute
from braingen.diagnostics.needs import STAGES, StageNeed, numbers_of
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.generation import decode, reconstruct, refine
from braingen.generation.brain_encoders import BrainEncoders
from braingen.generation.refiner import Refinement, refine_images
from braingen.generation.trained_modules import NOT_FINETUNED
from braingen.runtime.paths import EMBEDDINGS
from braingen.targets.clip_image import CLIPImageEncoder
from braingen.targets.tables import Targets
from braingen.training import diffusion, diffusion_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]  # the filter: of diffusers' scheduler


class Held:
    """The most that modules of a block held at any call of a whole model."""

    def __init__(self) -> None:
        self.modules: WeakSet[nn.Module] = WeakSet()
        self.most = 0

    def now(self) -> int:
        """Bytes of the weights that are there."""
        found: dict[int, int] = {}
        for module in list(self.modules):
            for own in (module.__dict__["_parameters"], module.__dict__["_buffers"]):
                for x in own.values():
                    if x is not None and not x.is_meta:
                        found[x.data_ptr()] = x.numel() * x.element_size()
        return sum(found.values())


@contextmanager
def held() -> Iterator[Held]:
    """Watch the modules that are made or copied within the block."""
    found, made, copied = Held(), nn.Module.__init__, nn.Module.__setstate__

    def init(self: nn.Module, *given: Any, **named: Any) -> None:
        made(self, *given, **named)
        found.modules.add(self)

    def setstate(self: nn.Module, state: Any) -> None:
        copied(self, state)
        found.modules.add(self)

    def look(module: nn.Module, _: Any) -> None:
        if isinstance(module, ModelMixin | PreTrainedModel):
            found.most = max(found.most, found.now())

    hook = register_module_forward_pre_hook(look)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "__init__", init)
        patch.setattr(nn.Module, "__setstate__", setstate)
        try:
            yield found
        finally:
            hook.remove()


def assert_counted(found: Held, need: StageNeed) -> None:
    """Nothing is held that is not counted, and nothing is counted that is not held."""
    weights = sum(need.weights.values())
    assert found.most <= 1.02 * need.total, (found.most, need)
    assert weights <= 1.02 * found.most, (found.most, need)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("held") / "data"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return write_fake_backbone(tmp_path_factory.mktemp("held") / "backbone", with_clip=True)


class WithCLIP(TableTargets):
    """The embedding of generated images by the backbone's own CLIP."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.path = config.backbone.path

    @property
    def image_encoder(self) -> CLIPImageEncoder:
        self.kept = getattr(self, "kept", None) or CLIPImageEncoder.from_pretrained(
            self.path, dtype=torch.float32
        )
        return self.kept


def both_encoders() -> tuple[int, int]:
    """Parameters of both encoders with their priors, and of the priors."""
    models = [tiny_embedding_decoder(name) for name in ("image", "text")]
    return count(models), count(model.prior for model in models)


def count(models: Iterable[Any]) -> int:
    return sum(p.numel() for model in models for p in model.parameters())


def drawing(monkeypatch: Any, root: Path, folder: Path, backbone: Path, **more: str) -> Config:
    """Settings of a reconstruction with stand-ins for what is trained."""
    text_encoder()  # kept by the stand-ins: there before
    order = more.get("router__prior_order", "output")
    monkeypatch.setattr(reconstruct, "Targets", WithCLIP)
    monkeypatch.setattr(
        reconstruct, "load_embedding_decoder", lambda _, name: tiny_embedding_decoder(name)
    )
    monkeypatch.setattr(reconstruct, "modalities", lambda config: ("image", "text"))
    monkeypatch.setattr(reconstruct, "finetuned_folder", lambda config: folder)
    tuned = NOT_FINETUNED._replace(prior_order=order)
    monkeypatch.setattr(reconstruct, "load_finetuned", lambda folder: tuned)
    monkeypatch.setattr(reconstruct, "_describe", lambda *_: None)
    given = {"backbone__path": str(backbone), "generation__steps": "1", "data__subjects": "2"}
    return tiny_config(root, folder, **(given | more))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"router__prior_order": "step"},
        {"generation__samples": "2"},
        {"generation__negative_prompt": "blurry"},
        {"generation__negative_prompt": "blurry", "router__prior_order": "step"},
    ],
)
def test_generating_holds_what_is_counted(monkeypatch, root, tmp_path, backbone, more):
    config = drawing(monkeypatch, root, tmp_path, backbone, **more)
    with held() as found:
        parts = reconstruct.setup(config)
        encoders = reconstruct.load_encoders(config, parts.targets)
        decoded = reconstruct.embeddings_of(config, parts, encoders)
        encoders.release()
        before, found.most = found.most, 0
        generate = reconstruct.image_generator(
            config,
            reconstruct.assemble(config, parts.targets, encoders),
            lambda: parts.targets.image_encoder,
            reconstruct.embeddings_in(decoded),
        )
        generate(slice(0, 1))
    both, priors = both_encoders()
    assert_counted(found, STAGES["generate"](config, 0, priors))  # with everything decoded
    assert before == pytest.approx(4 * both, rel=0.02)
    large = 10**9  # encoders that are the peak: counted alone, not beside the U-Net
    assert sum(STAGES["generate"](config, large, priors).weights.values()) == 4 * large
    found.most = max(found.most, before)
    assert_counted(found, STAGES["generate"](config, both, priors))


def test_encoders_dropped_as_they_are_loaded_draw_the_same(monkeypatch, root, tmp_path, backbone):
    """As in a reconstruction that is taken up again: everything is decoded."""
    config = drawing(monkeypatch, root, tmp_path, backbone)
    parts = reconstruct.setup(config)
    with held() as found:
        dropped = reconstruct.load_encoders(config, parts.targets, whole=False)
        assert found.now() < 4 * both_encoders()[0] / 10
    whole = reconstruct.load_encoders(config, parts.targets)
    decoded = reconstruct.embeddings_of(config, parts, whole)
    whole.release()
    rows = reconstruct.embeddings_in(decoded)

    def drawn(encoders: Any) -> Any:
        by = reconstruct.assemble(config, parts.targets, encoders)
        make = reconstruct.image_generator(config, by, lambda: pytest.fail("no CLIP"), rows)
        return [each.image.tobytes() for each in make(slice(0, 2))]

    assert drawn(dropped) == drawn(whole)


class Moments:
    """What is held when embeddings are decoded, when the U-Net is loaded, and when it is run."""

    def __init__(self, monkeypatch: Any, found: Held) -> None:
        self.loads: list[int] = []
        self.decodings: list[int] = []
        self.drawings: list[int] = []
        drawing = UNet2DConditionModel.forward
        plain, decoding = UNet2DConditionModel.from_pretrained, BrainEncoders.decode_embeddings

        def from_pretrained(*given: Any, **more: Any) -> Any:
            self.loads.append(found.now())
            return plain(*given, **more)

        def decode_embeddings(*given: Any, **more: Any) -> Any:
            self.decodings.append(found.now())
            return decoding(*given, **more)

        def predict(*given: Any, **more: Any) -> Any:
            self.drawings.append(found.now())
            return drawing(*given, **more)

        monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", from_pretrained)
        monkeypatch.setattr(UNet2DConditionModel, "forward", predict)
        monkeypatch.setattr(BrainEncoders, "decode_embeddings", decode_embeddings)


@pytest.mark.parametrize(
    ("stage", "by"), [("reconstruct", "run"), ("decode", "run"), ("decode", "saved decoder")]
)
def test_no_unet_is_loaded_while_the_encoders_are_there(
    monkeypatch, root, tmp_path, backbone, stage, by
):
    """The whole commands: decoding holds the encoders alone, and they are gone before the U-Net
    is loaded. Taken up again, nothing is decoded and nothing but the scale is loaded first.
    """
    config = drawing(monkeypatch, root, tmp_path / "run", backbone, generation__num_images="2")
    for module in (reconstruct, decode):
        monkeypatch.setattr(module, "fingerprint_of_files", lambda path: "made")
    if stage == "decode":
        monkeypatch.setattr(decode, "Targets", WithCLIP)
        monkeypatch.setattr(decode, "modalities", lambda config: ("image", "text"))
        monkeypatch.setattr(decode, "finetuned_folder", lambda config: None)
        np.save(tmp_path / "voxels.npy", np.random.default_rng(0).normal(size=(2, 42)))
        given = {"voxels": str(tmp_path / "voxels.npy"), "output": str(tmp_path / "images")}
        if by == "saved decoder":
            targets: Any = WithCLIP(config)
            reconstruct.assemble(config, targets).save_pretrained(
                tmp_path / "saved", captions=False
            )
            given["decoder"] = str(tmp_path / "saved")
        config = config.model_copy(update={"decode": config.decode.model_copy(update=given)})
    run = {
        "reconstruct": lambda: reconstruct.reconstruct_into(config, tmp_path / "images"),
        "decode": lambda: decode.decode(config),
    }[stage]
    gc.collect()
    with held() as found, monkeypatch.context() as patch:
        moments = Moments(patch, found)
        folder = run()
    both, _ = both_encoders()
    assert moments.decodings == [pytest.approx(4 * both, rel=0.02)]
    assert len(moments.loads) == 1 and moments.loads[0] < 4 * both / 10
    alone = sum(STAGES["generate"](config, 0).weights.values())
    assert 0.98 * alone < max(moments.drawings) < alone + 4 * both / 10
    pictures = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert len(pictures) == 2
    for path in folder.glob("*.png"):
        path.unlink()
    with held() as found, monkeypatch.context() as patch:
        moments = Moments(patch, found)
        run()
    assert not moments.decodings and len(moments.loads) == 1 and moments.loads[0] < 4 * both / 10
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == pictures


@pytest.mark.parametrize("names", [("image",), ("image", "text"), ()])
def test_a_run_keeps_the_experts_that_its_routers_mix(monkeypatch, root, tmp_path, backbone, names):
    config = drawing(monkeypatch, root, tmp_path, backbone)
    routers = {f"router_{name}": a_router(1) for name in names}
    tuned = NOT_FINETUNED._replace(**routers, prior_order="levels")
    monkeypatch.setattr(reconstruct, "load_finetuned", lambda folder: tuned)
    parts = reconstruct.setup(config)
    encoders = reconstruct.load_encoders(config, parts.targets)
    assert (encoders.routed, encoders.prior_order) == (names, "levels")
    found = reconstruct.embeddings_of(config, parts, encoders)
    assert ("image_experts" in found) == bool(names)


@pytest.mark.parametrize("whole", [True, False])
def test_a_saved_decoder_is_decoded_by_its_own_order_routers_and_low_level_path(
    monkeypatch, root, tmp_path, backbone, whole
):
    """Its encoders, loaded alone, decode as the whole decoder does."""
    config = drawing(monkeypatch, root, tmp_path, backbone)
    tuned = NOT_FINETUNED._replace(router_text=a_router(1), prior_order="step")
    monkeypatch.setattr(reconstruct, "load_finetuned", lambda folder: tuned)
    coarse = LatentEncoder({"2": 42}, side=8, hidden_dim=8, n_blocks=1, features=8).eval()
    monkeypatch.setattr(reconstruct, "uses_low_level", lambda config: True)
    monkeypatch.setattr(reconstruct, "load_latent_encoder", lambda config: coarse)
    decoder = reconstruct.assemble(config, WithCLIP(config))  # type: ignore[arg-type]
    decoder.save_pretrained(tmp_path / "saved", captions=False)
    found = BrainEncoders.of_folder(tmp_path / "saved", whole)
    assert (found.prior_order, found.routed) == ("step", ("text",))
    assert (found.low_level is not None) == whole
    if whole:
        voxels = torch.randn(2, 3, 42, generator=torch.Generator().manual_seed(0))
        mine, theirs = (x.decode_embeddings(voxels, 2, [4, 5]) for x in (found, decoder))
        for name in ("image_clip_BTD", "text_clip_BTD", "latents_BChw"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name))
    else:  # the priors stay: they are applied at every step
        prior = next(iter(found.image.prior.parameters()))
        assert not prior.is_meta and next(iter(found.image.encoder.parameters())).is_meta


def test_decoding_without_images_loads_no_unet(monkeypatch, root, tmp_path, backbone):
    config = drawing(monkeypatch, root, tmp_path / "run", backbone)
    monkeypatch.setattr(decode, "Targets", WithCLIP)
    monkeypatch.setattr(decode, "modalities", lambda config: ("image", "text"))
    monkeypatch.setattr(decode, "finetuned_folder", lambda config: None)
    monkeypatch.setattr(decode, "fingerprint_of_files", lambda path: "made")
    monkeypatch.setattr(decode, "load_decoder", lambda *_: pytest.fail("loaded"))
    np.save(tmp_path / "voxels.npy", np.random.default_rng(0).normal(size=(2, 42)))
    given = {
        "voxels": str(tmp_path / "voxels.npy"),
        "output": str(tmp_path / "images"),
        "generate": False,
    }
    decode.decode(config.model_copy(update={"decode": config.decode.model_copy(update=given)}))
    assert (tmp_path / "images" / EMBEDDINGS).is_file()


@pytest.mark.parametrize(
    ("more", "whole", "low_level"),
    [
        ({}, True, True),
        ({"generation__source": "random"}, True, True),
        ({"generation__source": "oracle"}, False, True),
        ({"generation__decode_by": "encoding_model"}, False, True),
    ],
)
def test_encoders_are_loaded_whole_where_they_read_voxels(
    monkeypatch, root, tmp_path, backbone, more, whole, low_level
):
    config, asked = drawing(monkeypatch, root, tmp_path, backbone, **more), []

    class Stop(Exception):
        pass

    def load(config: Config, targets: Any, *given: Any, **named: Any) -> Any:
        asked.append((*given, named["low_level"]))
        raise Stop

    monkeypatch.setattr(reconstruct, "load_encoders", load)
    monkeypatch.setattr(reconstruct, "fingerprint_of_files", lambda path: "made")
    with pytest.raises(Stop):
        reconstruct.reconstruct_into(config, tmp_path / "images")
    assert asked == [(whole, low_level)]
    assert ("encoders" in STAGES["generate"](config, 10**9).weights) == whole


def test_a_decoder_without_its_encoders_can_be_moved_and_has_no_low_level_path(
    monkeypatch, root, tmp_path, backbone
):
    config = drawing(monkeypatch, root, tmp_path, backbone)
    coarse = LatentEncoder({"2": 6}, side=8, hidden_dim=8, n_blocks=1, features=8)
    monkeypatch.setattr(reconstruct, "uses_low_level", lambda config: True)
    monkeypatch.setattr(reconstruct, "load_latent_encoder", lambda config: deepcopy(coarse))
    targets: Any = WithCLIP(config)
    assert reconstruct.assemble(config, targets).brain_low_level is not None
    encoders = reconstruct.load_encoders(config, targets, whole=False, low_level=False)
    assert encoders.low_level is None
    encoders = reconstruct.load_encoders(config, targets, whole=False)
    assert encoders.low_level is not None  # of responses that an encoding model decodes
    encoders.release()
    assert reconstruct.assemble(config, targets, encoders).brain_low_level is None
    decoder = reconstruct.assemble(config, targets)
    decoder.release_encoders()
    assert decoder.brain_low_level is None
    decoder.to("cpu", torch.bfloat16)
    assert decoder.brain_image.mean_TD.dtype == torch.float32 and decoder.device.type == "cpu"


@pytest.mark.parametrize(
    ("with_refiner", "more"),
    [
        (True, {}),
        (False, {}),
        (False, {"refinement__use_image": "true"}),
        (False, {"refinement__negative_prompt": "blurry"}),
        (False, {"backbone__text_output": "joint", "refinement__negative_prompt": "blurry"}),
    ],
)
def test_refining_holds_what_is_counted(root, tmp_path, backbone, with_refiner, more):
    given = {"backbone__path": str(backbone), "generation__low_level": "no"}
    if with_refiner:
        given["backbone__refiner"] = str(write_fake_refiner(tmp_path / "refiner"))
    config = tiny_config(root, tmp_path, **(given | more))
    with held() as found:
        refiner = refine.setup(config)
        first, last = refiner.form.text_columns
        image = torch.rand(1, 1, POOLED_WIDTH) if config.refinement.use_image else None
        refine_images(
            refiner,
            torch.rand(1, 3, 32, 32),
            torch.randn(1, 1, last - first),
            [0],
            Refinement(steps=2, strength=0.5, guidance_scale=2.0),
            image_BTD=image,
        )
    assert_counted(found, STAGES["refine"](config, 0))


@pytest.mark.parametrize(
    "more", [{}, {"lora__rank": "0"}, {"router__prior_order": "step", "lora__rank": "4"}]
)
def test_fine_tuning_holds_what_is_counted(monkeypatch, root, tmp_path, more):
    config = tiny_tuning(monkeypatch, root, tmp_path / "run", **more)
    monkeypatch.setattr(
        diffusion,
        "load_embedding_decoders",
        lambda config: {name: tiny_embedding_decoder(name) for name in ("image", "text")},
    )
    text_encoder(), fake_backbone()  # kept by the stand-ins: there before
    with held() as found:
        parts = diffusion.setup(config)
        before, found.most = found.most, 0
        rows, generator = parts.data.train.rows[:1], torch.Generator().manual_seed(0)
        diffusion_step.step(parts.model, rows, parts, config, generator)
    both, priors = both_encoders()
    assert before <= 1.02 * STAGES["fine-tune"](config, both, priors).total
    need = STAGES["fine-tune"](config, 0, priors)  # the moment of a step
    own = need.weights["lora"] // 4  # of 16 bytes 12 are gradients and moments
    routers = 4 * count(parts.model.routers.values())  # small, and not counted by doctor
    weights = sum({**need.weights, "lora": own, "routers": routers}.values())
    assert found.most == pytest.approx(weights, rel=0.02)


def test_tables_are_computed_by_one_model_after_the_other(root, tmp_path, backbone):
    more = {"backbone__path": str(backbone), "finetune__resolution": "16"}
    config = tiny_config(root, tmp_path, **more)
    with held() as found:
        precompute.cache(config)
    assert_counted(found, STAGES["compute targets"](config, 0))
    parts = ("image_encoder", "text_encoder_2", "vae")
    assert found.most == pytest.approx(
        max(4 * numbers_of(config)[part] for part in parts), rel=0.02
    )


def test_a_table_gives_back_the_model_that_it_loaded_and_no_other(root, tmp_path, backbone):
    more = {"backbone__path": str(backbone), "backbone__text_tokens": "all"}
    targets = Targets(tiny_config(root, tmp_path, **more))
    ids = precompute.used_images(tiny_config(root, tmp_path), targets)[:2]
    asked = targets.text_encoder
    assert targets.of("image", ids).shape[0] == targets.of("text", ids).shape[0] == 2
    assert targets.latents(ids, 24)[ids].any() and targets.table("image", ids)[ids].any()
    assert targets._image_encoder is targets._vae is None and targets._text_encoder is asked
    targets.free()
    assert targets.text_widths("text") and targets._text_encoder is None
