"""The weights that stages hold at once are those of `doctor`'s table, whichever settings load more;
what is loaded for a table, a prompt or a decoding goes before the next model comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from weakref import WeakSet

from diffusers import ModelMixin
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel
from unit.fake_backbone import POOLED_WIDTH, fake_backbone, write_fake_backbone, write_fake_refiner
from unit.tiny_finetuning import TableTargets, text_encoder, tiny_embedding_decoder, tiny_tuning
from unit.tiny_training import tiny_config

from braingen.config import Config
from braingen.diagnostics import precompute
from braingen.diagnostics.needs import STAGES, StageNeed, numbers_of
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.generation import reconstruct, refine
from braingen.generation.refiner import Refinement, refine_images
from braingen.generation.trained_modules import NOT_FINETUNED
from braingen.runtime import run_folder
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


def encoders() -> tuple[int, int]:
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
        decoded = reconstruct.embeddings_of(config, parts)
        parts.decoder.release_encoders()
        before, found.most = found.most, 0
        generate = reconstruct.image_generator(
            config,
            parts.decoder,
            lambda: parts.targets.image_encoder,
            reconstruct.embeddings_in(decoded),
        )
        generate(slice(0, 1))
    both, priors = encoders()
    assert_counted(found, STAGES["generate"](config, 0, priors))  # with everything decoded
    found.most = max(found.most, before)
    assert_counted(found, STAGES["generate"](config, both, priors))


def test_a_reconstruction_taken_up_again_holds_no_encoder(monkeypatch, root, tmp_path, backbone):
    """Everything is decoded: the backbone is loaded after the encoders were dropped."""
    config = drawing(monkeypatch, root, tmp_path, backbone)
    plain, loads = reconstruct.load_backbone, []
    with held() as found:

        def load_backbone(*given: Any) -> Any:
            loads.append(found.now())
            return plain(*given)

        monkeypatch.setattr(reconstruct, "load_backbone", load_backbone)
        decoder = reconstruct.setup(config, decoded=True).decoder
        assert loads[0] < 4 * encoders()[0] / 10
    first = reconstruct.setup(config)
    decoded = reconstruct.embeddings_of(config, first)
    first.decoder.release_encoders()
    rows = reconstruct.embeddings_in(decoded)

    def drawn(by: Any) -> Any:
        make = reconstruct.image_generator(config, by, lambda: pytest.fail("no CLIP"), rows)
        return [each.image.tobytes() for each in make(slice(0, 2))]

    assert drawn(decoder) == drawn(first.decoder)


@pytest.mark.parametrize("there", [True, False])
def test_encoders_are_loaded_for_a_reconstruction_that_has_to_decode(
    monkeypatch, root, tmp_path, backbone, there
):
    config, asked = drawing(monkeypatch, root, tmp_path, backbone), []

    class Stop(Exception):
        pass

    def setup(config: Config, decoded: bool = False) -> Any:
        asked.append(decoded)
        raise Stop

    monkeypatch.setattr(reconstruct, "setup", setup)
    monkeypatch.setattr(reconstruct, "fingerprint_of_files", lambda path: "made")
    folder = tmp_path / "images"
    if there:
        monkeypatch.setattr(run_folder.Run, "__enter__", run_folder.Run.__enter__)
        plain = reconstruct.complete

        def complete(*given: Any) -> bool:
            (folder / EMBEDDINGS).write_bytes(b"decoded")
            return plain(*given)

        monkeypatch.setattr(reconstruct, "complete", complete)
    with pytest.raises(Stop):
        reconstruct.reconstruct_into(config, folder)
    assert asked == [there]


def test_a_decoder_without_its_encoders_can_be_moved_and_has_no_low_level_path(
    monkeypatch, root, tmp_path, backbone
):
    config = drawing(monkeypatch, root, tmp_path, backbone)
    coarse = LatentEncoder({"2": 6}, side=8, hidden_dim=8, n_blocks=1, features=8)
    monkeypatch.setattr(reconstruct, "uses_low_level", lambda config: True)
    monkeypatch.setattr(reconstruct, "load_latent_encoder", lambda config: deepcopy(coarse))
    assert reconstruct.assemble(config, WithCLIP(config)).brain_low_level is not None  # type: ignore[arg-type]
    decoder = reconstruct.assemble(config, WithCLIP(config), decoded=True)  # type: ignore[arg-type]
    assert decoder.brain_low_level is None
    decoder = reconstruct.assemble(config, WithCLIP(config))  # type: ignore[arg-type]
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
    both, priors = encoders()
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
