"""The wires of drawing: what was decoded, and every setting of the sampler, reaches the denoising;
pictures go by image id.

Each test fails when a wire is cut: another subject's voxels, one presentation instead of three,
exchanged routers, an ignored guidance scale, captions of the wrong images.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
import pytest
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor, nn
from unit.fake_backbone import fake_backbone, write_fake_backbone
from unit.tiny_finetuning import TableTargets, table, text_encoder, tiny_embedding_decoder
from unit.tiny_training import spy, tiny_config, with_a_gap

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats, test_trials, train_trials
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.generation import brain_encoders, captions
from braingen.generation import pipeline as diffusion_decoder
from braingen.generation import reconstruct as stage
from braingen.generation import refine as refine_stage
from braingen.generation import resumable as drawing
from braingen.generation.lora import add_lora, lora_parameters, save_lora
from braingen.generation.pipeline import BrainDecoder, Decoded
from braingen.generation.refiner import Refinement, assemble_refiner
from braingen.generation.resumable import GeneratedImage, generate_missing
from braingen.generation.sampling import (
    decode_latents,
    denoise_from,
    refuse_not_finite_rows,
    seeded_noise,
    size_ids,
)
from braingen.generation.trained_modules import FinetunedModules
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.data_layout import Layout
from braingen.runtime.distributed import Workers
from braingen.runtime.errors import UserError
from braingen.runtime.paths import EMBEDDINGS, INDEX, ROUTING, random_folders
from braingen.runtime.run_folder import Run
from braingen.types import Conditioning, ExpertStack, Routing, Trials

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
COUNTS = (2, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("wires") / "data"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_router(seed: int) -> DiffuseRouter:
    torch.manual_seed(seed)
    made = DiffuseRouter(
        num_experts=COUNTS, clip_emb_dim=128, time_hidden_dim=16, space="weight", space_grid=8
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    return made.eval()


def a_decoder(**more: Any) -> BrainDecoder:
    image, text = tiny_embedding_decoder("image"), tiny_embedding_decoder("text")
    return BrainDecoder.assemble(image, text, *fake_backbone(), text_encoder(), **more)


# --- from responses to embeddings -----------------------------------------------------------------


def responses_of(config: Config, decoder: Any, subject: int = 2) -> dict[str, Tensor]:
    layout = Layout.of(config.data.root)
    repeats = group_repeats(with_a_gap(test_trials(layout, subject)))
    return stage.decode_responses(
        config, decoder.encoders, repeats, Betas.of(layout, subject), subject
    )


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.slow
def test_embeddings_are_the_mean_over_an_images_presentations_to_this_subject(
    root, tmp_path, routed
):
    """Image by the image encoder, text by the text encoder; experts along where they are mixed."""
    config = tiny_config(root, tmp_path)
    decoder = a_decoder(**({"router_image": a_router(1)} if routed else {}))
    found = responses_of(config, decoder)
    trials, betas = with_a_gap(test_trials(Layout.of(root), 2)).table, Betas.of(Layout.of(root), 2)
    assert (
        found["ids"].tolist() == [0, 1, 2, 3]
        and ("image_experts" in found) == ("text_experts" in found) == routed
    )
    with torch.no_grad():
        for row, image in enumerate(found["ids"].tolist()):
            rows = trials["trial"][trials["image"] == image].to_numpy()
            assert len(rows) == (3 if image else 2)
            for name, embedding_decoder in (
                ("image", decoder.brain_image),
                ("text", decoder.brain_text),
            ):
                out = embedding_decoder(torch.from_numpy(betas.rows(rows)), 2)
                mean = out.backbone_BTD.mean(0, keepdim=True)
                torch.testing.assert_close(
                    found[name][row], embedding_decoder.embedding(mean)[0], rtol=1e-3, atol=1e-3
                )
                torch.testing.assert_close(
                    found[f"{name}_clip"][row], out.clip_BTD.mean(0), rtol=1e-3, atol=1e-4
                )
                if routed:
                    levels = ExpertStack.of_experts(found[f"{name}_experts"][row : row + 1], COUNTS)
                    whole = embedding_decoder.in_clip_units(levels.output_BTD)[0]
                    torch.testing.assert_close(whole, found[name][row], rtol=1e-2, atol=1e-2)
                    assert levels.experts_BETD.std(1).mean() > 0.01


@pytest.mark.slow
def test_a_single_trial_random_voxels_and_a_level_are_read_when_asked_for(root, tmp_path):
    decoder = a_decoder()
    layout = Layout.of(root)
    plain = tiny_config(root, tmp_path)
    firsts = group_repeats(test_trials(layout, 2)).rows_NR[:, 0]
    single = responses_of(tiny_config(root, tmp_path, generation__repeats="first"), decoder)
    expected = decoder.embed(
        torch.from_numpy(Betas.of(layout, 2).rows(firsts))[:, None], 2, [0, 1, 2, 3]
    )
    torch.testing.assert_close(single["image"], expected.image_BTD, rtol=1e-3, atol=1e-3)
    one, again, other = (
        responses_of(
            tiny_config(root, tmp_path, generation__source="random", run__seed=seed), decoder
        )
        for seed in ("0", "0", "1")
    )
    voxels = seeded_noise([0, 1, 2, 3], (3, 42), 0, "random voxels")
    there = torch.tensor([[True, True, False]] + 3 * [[True] * 3])
    expected = decoder.embed(voxels, 2, [0, 1, 2, 3], present_BR=there)
    torch.testing.assert_close(one["image"], expected.image_BTD, rtol=1e-3, atol=1e-3)
    assert torch.equal(one["image"], again["image"]) and not torch.allclose(
        one["image"], other["image"]
    )
    for found in (one, single):
        assert not torch.allclose(found["image"], responses_of(plain, decoder)["image"], atol=1e-2)
        assert not torch.allclose(
            found["image"][0], found["image"][1], atol=1e-2
        )  # another image, other voxels
    levels = responses_of(tiny_config(root, tmp_path, generation__level="1"), decoder)
    assert levels["image_experts"].shape[1] == levels["text_experts"].shape[1] == sum(COUNTS)


@pytest.mark.slow
def test_responses_on_an_odd_scale_are_told_of_and_random_ones_never_are(
    monkeypatch, caplog, root, tmp_path
):
    looked_at: list[np.ndarray] = []
    monkeypatch.setattr(
        stage,
        "odd_scale",
        lambda rows, name: looked_at.append(rows) or f"an odd scale in {Path(name).name}",
    )
    responses_of(tiny_config(root, tmp_path, generation__source="random"), a_decoder())
    assert not looked_at and not caplog.records
    responses_of(tiny_config(root, tmp_path), a_decoder())
    betas = Betas.of(Layout.of(root), 2)
    used = np.sort(with_a_gap(test_trials(Layout.of(root), 2)).table["trial"].to_numpy())
    np.testing.assert_array_equal(looked_at[0], betas.rows(used))
    assert [record.getMessage() for record in caplog.records] == [
        f"an odd scale in {betas.path.name}"
    ]


def test_priors_are_sampled_with_noise_of_image_seed_and_encoder(root, tmp_path):
    decoder = BrainDecoder.assemble(
        tiny_embedding_decoder("image", prior_use="sample"),
        tiny_embedding_decoder("text", prior_use="sample"),
        *fake_backbone(),
        text_encoder(),
    )
    seeds: list[tuple[Any, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        spy(
            patch,
            brain_encoders,
            "seeded_noise",
            lambda ids, shape, seed, purpose: seeds.append((list(ids), seed, purpose)),
        )
        responses_of(tiny_config(root, tmp_path, run__seed="3"), decoder)
    assert seeds == [([0, 1, 2, 3], 3, "prior of image"), ([0, 1, 2, 3], 3, "prior of text")]


def test_the_ceiling_is_made_of_true_embeddings_and_of_nothing_that_was_measured(root, tmp_path):
    config = tiny_config(root, tmp_path, generation__source="oracle")
    decoder = a_decoder()
    repeats = group_repeats(test_trials(Layout.of(root), 1))
    parts = stage.ReconstructionParts(repeats, None, 1, TableTargets())  # type: ignore[arg-type]
    found = stage.embeddings_of(config, parts, decoder.encoders)
    assert found["ids"].tolist() == repeats.image_N.tolist() and "image_experts" not in found
    for name, embedding_decoder in (("image", decoder.brain_image), ("text", decoder.brain_text)):
        true = table(name)[repeats.image_N]
        torch.testing.assert_close(found[name], true)
        torch.testing.assert_close(found[f"{name}_clip"], embedding_decoder.standardised(true))


def first_images(trials: Trials, count: int) -> Trials:
    images = sorted(set(trials.table["image"]))[:count]
    return trials._replace(table=trials.table[trials.table["image"].isin(images)])


def test_captions_are_those_of_the_training_image_nearest_around_the_mean(
    monkeypatch, root, tmp_path
):
    """Of the first subject, and of the sessions that are used."""
    config = tiny_config(root, tmp_path, data__subjects="2,1", data__num_sessions="1")
    monkeypatch.setattr(
        captions,
        "train_trials",
        lambda layout, subject, sessions: first_images(train_trials(layout, subject), 7 + sessions),
    )
    seen = sorted(set(train_trials(Layout.of(root), 2).table["image"]))[:8]
    known = table("text")[seen].flatten(1)
    mean = known.mean(0)
    wanted = [7, 0, 3]
    asked = (mean + 0.001 * (known[wanted] - mean))[
        :, None
    ]  # the direction from the mean decides, not the size
    found = stage.nearest_captions(config, TableTargets(), asked, np.array([2, 0, 1]))  # type: ignore[arg-type]
    assert found == {str(image): f"caption {seen[row]}" for image, row in zip((2, 0, 1), wanted)}
    # the embedding of a test image finds a training image's caption all the same
    test_caption = stage.nearest_captions(config, TableTargets(), table("text")[:1], np.array([0]))  # type: ignore[arg-type]
    assert int(test_caption["0"].split()[1]) in seen


# --- what is assembled ----------------------------------------------------------------------------


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.slow
def test_a_decoder_is_assembled_of_its_own_encoders_scheduler_and_what_was_tuned(
    monkeypatch, root, tmp_path, tuned
):
    unet = fake_backbone().unet
    add_lora(unet, 2)
    with torch.no_grad():
        for parameter in lora_parameters(unet).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator()))
    save_lora(unet, tmp_path)
    routers = a_router(1), a_router(2)
    loaded: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        stage,
        "load_backbone",
        lambda *given, **more: loaded.append((*given, more)) or fake_backbone(),
    )
    monkeypatch.setattr(
        stage, "load_embedding_decoder", lambda config, name: tiny_embedding_decoder(name)
    )
    monkeypatch.setattr(stage, "modalities", lambda config: ("image", "text"))
    monkeypatch.setattr(stage, "finetuned_folder", lambda config: tmp_path if tuned else None)
    monkeypatch.setattr(stage, "_describe", lambda *_: None)  # of a run, which is none here
    monkeypatch.setattr(
        stage, "load_finetuned", lambda folder: FinetunedModules(folder, *routers, "levels")
    )
    more = {
        "generation__scheduler": "ddim",
        "generation__precision": "float16",
        "generation__memory_format": "channels_last",
        "backbone__path": "somewhere",
        "backbone__ip_adapter": "an adapter",
    }
    decoder = stage.assemble(tiny_config(root, tmp_path, **more), TableTargets())  # type: ignore[arg-type]
    assert loaded == [("somewhere", "an adapter", torch.float16, {})]
    assert type(decoder.scheduler).__name__ == "DDIMScheduler"
    assert decoder.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for name, embedding_decoder in (("image", decoder.brain_image), ("text", decoder.brain_text)):
        assert all(
            torch.equal(p, q)
            for p, q in zip(
                embedding_decoder.parameters(), tiny_embedding_decoder(name).parameters()
            )
        )
    if not tuned:
        assert decoder.router_image is decoder.router_text is None and not lora_parameters(
            decoder.unet
        )
        assert decoder.config.prior_order == "output"
        return
    assert (
        decoder.router_image,
        decoder.router_text,
    ) == routers and decoder.config.prior_order == "levels"
    placed = lora_parameters(decoder.unet)
    assert placed and all(
        torch.equal(placed[name], value) for name, value in lora_parameters(unet).items()
    )


@pytest.mark.parametrize("files", [True, False])
def test_a_decoder_of_other_widths_is_refused(monkeypatch, root, tmp_path, files):
    """Before the backbone is loaded, where its files are on this machine."""
    encoder = {
        "subjects": {"1": 41},
        "clip_seq_dim": 1,
        "clip_emb_dim": 64,
        "hidden_dim": 16,
        "n_blocks": 1,
        "exp_factor_list": [2],
    }
    narrow = EmbeddingDecoder("BrainMoEMulti", encoder, None).eval()

    def load_backbone(*_: Any) -> Any:
        return pytest.fail("loaded first") if files else fake_backbone()

    monkeypatch.setattr(stage, "load_backbone", load_backbone)
    path = write_fake_backbone(tmp_path / "backbone") if files else "somewhere"
    monkeypatch.setattr(
        stage,
        "load_embedding_decoder",
        lambda config, name: narrow if name == "text" else tiny_embedding_decoder(name),
    )
    monkeypatch.setattr(stage, "modalities", lambda config: ("image", "text"))
    monkeypatch.setattr(stage, "finetuned_folder", lambda config: None)
    with pytest.raises(UserError, match="text encoder predicts 1 x 64"):
        stage.assemble(tiny_config(root, tmp_path, backbone__path=str(path)), TableTargets())  # type: ignore[arg-type]


def test_setup_takes_the_test_images_of_the_first_subject(monkeypatch, root, tmp_path):
    monkeypatch.setattr(stage, "Targets", TableTargets)
    monkeypatch.setattr(stage, "modalities", lambda config: ("image", "text"))
    parts = stage.setup(
        tiny_config(root, tmp_path, data__subjects="2,1", generation__num_images="3")
    )
    expected = group_repeats(test_trials(Layout.of(root), 2))
    assert parts.subject == 2 and parts.betas.voxels == 42
    np.testing.assert_array_equal(parts.repeats.image_N, expected.image_N[:3])
    np.testing.assert_array_equal(parts.repeats.rows_NR, expected.rows_NR[:3])
    with pytest.raises(
        UserError, match=r"generation\.steps"
    ):  # more steps than the schedule has times
        stage.setup(tiny_config(root, tmp_path, generation__steps="2000"))


# --- the sampler's settings -----------------------------------------------------------------------


class FakeDecoder:
    """Keeps what it is asked to draw; pictures are of one colour per image id and sample."""

    def __init__(self, best: dict[int, int] | None = None) -> None:
        self.brain_image, self.brain_text = (
            tiny_embedding_decoder("image"),
            tiny_embedding_decoder("text"),
        )
        self.encoders = brain_encoders.BrainEncoders(self.brain_image, self.brain_text)
        self.form = SimpleNamespace()
        self.scheduler = SimpleNamespace(timesteps=torch.tensor([900.0, 100.0]))
        self.unet = fake_backbone().unet
        self.drawn: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.merged: list[bool] = []

    def generate(self, *arguments: Any, **named: Any) -> Tensor:
        self.drawn.append((arguments, named))
        self.merged.append(any(getattr(module, "merged", False) for module in self.unet.modules()))
        shades = [(image * 10 + named["sample"]) / 255 for image in arguments[2]]
        return torch.tensor(shades)[:, None, None, None].expand(-1, 3, 4, 4)


def given(experts: bool = False) -> stage.Embeddings:
    draws = generator(4)
    both = {name: torch.randn(4, 6, 1, 128, generator=draws) for name in ("image", "text")}
    return stage.Embeddings(
        table("image")[:4], table("text")[:4], [5, 3, 9, 8], both if experts else None
    )


def test_drawing_starts_from_the_coarse_images_of_its_own_rows(monkeypatch, root, tmp_path):
    config = tiny_config(root, tmp_path, generation__strength="0.5", generation__blend="0.25")
    decoder, latents = FakeDecoder(), torch.randn(4, 4, 8, 8)
    drawer_of(monkeypatch, config, decoder, given()._replace(latents_NChw=latents))(slice(1, 3))
    ((_, named),) = decoder.drawn
    assert torch.equal(named["coarse"].latents_B4hw, latents[1:3])
    assert (named["coarse"].strength, named["coarse"].blend) == (0.5, 0.25)
    rows = {"image": table("image")[:4], "ids": torch.arange(4)}
    assert stage.embeddings_in({**rows, stage.LATENTS: latents}).latents_NChw is latents
    assert stage.embeddings_in(rows).latents_NChw is None


def drawer_of(
    monkeypatch: pytest.MonkeyPatch,
    config: Config,
    decoder: FakeDecoder,
    read: stage.Embeddings,
    clip: Any = None,
) -> Any:
    monkeypatch.setattr(
        stage, "negative_condition", lambda form, path, prompt: (form, path, prompt)
    )
    monkeypatch.setattr(stage, "backbone_folder", lambda path: f"folder of {path}")
    return stage.image_generator(config, decoder, lambda: clip, read)  # type: ignore[arg-type]


def test_every_setting_of_the_sampler_reaches_the_drawing(monkeypatch, root, tmp_path):
    more = {"steps": "7", "guidance_scale": "3.5", "guidance_end": "0.75"}
    more |= {"ip_adapter_scale": "0.25", "size": "64", "negative_prompt": "a blur", "level": "1"}
    config = tiny_config(
        root,
        tmp_path,
        run__seed="11",
        **{f"generation__{name}": value for name, value in more.items()},
    )
    decoder = FakeDecoder()
    drawn = drawer_of(monkeypatch, config, decoder, given(experts=True))(slice(1, 3))
    ((image, text, ids), named), *rest = decoder.drawn
    assert not rest and ids == [3, 9]
    for name, heard in (("image", image), ("text", text)):
        torch.testing.assert_close(heard.experts_BETD, given(experts=True).experts[name][1:3])
        assert [len(x[0]) for x in heard.by_level] == list(COUNTS)
    named.pop("on_step")
    assert named == {
        "seed": 11,
        "steps": 7,
        "guidance_scale": 3.5,
        "guidance_end": 0.75,
        "ip_adapter_scale": 0.25,
        "size": 64,
        "negative": (decoder.form, f"folder of {config.backbone.path}", "a blur"),
        "sample": 0,
        "level": 1,
        "coarse": None,
    }
    assert [np.asarray(each.image)[0, 0, 0] for each in drawn] == [30, 90]
    drawer_of(monkeypatch, config, decoder, given())(slice(0, 2))  # true embeddings have no levels
    assert decoder.drawn[1][1]["level"] is None


@pytest.mark.slow
def test_how_a_picture_was_routed_stands_beside_it(monkeypatch, root, tmp_path):
    """Of the first drawing, at every step, row by row."""
    levels = torch.tensor([[0.9, 0.1], [0.3, 0.7]])

    class Routed(FakeDecoder):
        def generate(self, *arguments: Any, **named: Any) -> Tensor:
            for step in range(2):
                if named["on_step"] is not None:
                    image, text = (
                        Routing(levels.roll(turn, 1), levels, (levels * (1 + step),), True)
                        for turn in range(2)
                    )
                    named["on_step"](
                        step, levels, Conditioning(levels, levels, levels, image, text)
                    )
            return super().generate(*arguments, **named)

    drawn = drawer_of(monkeypatch, tiny_config(root, tmp_path), Routed(), given())(slice(0, 2))
    for row, each in enumerate(drawn):
        assert each.tensors is not None
        torch.testing.assert_close(each.tensors["image_levels"], levels[row].expand(2, -1))
        torch.testing.assert_close(each.tensors["text_levels"], levels[row].flip(0).expand(2, -1))
        torch.testing.assert_close(
            each.tensors["image_experts"], torch.stack([levels[row], 2 * levels[row]])
        )
        assert each.tensors["times"].tolist() == [900, 100]


@pytest.mark.parametrize(
    ("image", "text"), [("true", "true"), ("true", "false"), ("false", "true")]
)
def test_image_and_text_are_heard_or_left_out_each_by_its_own_switch(
    monkeypatch, root, tmp_path, image, text
):
    decoder = FakeDecoder()
    config = tiny_config(root, tmp_path, generation__use_image=image, generation__use_text=text)
    drawer_of(monkeypatch, config, decoder, given())(slice(0, 2))
    heard = decoder.drawn[0][0][:2]
    for name, wanted, what in zip(("image", "text"), (image, text), heard):
        assert (what is not None) == (wanted == "true")
        if what is not None:
            torch.testing.assert_close(what, table(name)[:2])


def test_of_several_drawings_the_one_nearest_to_the_decoded_embedding_is_kept(
    monkeypatch, root, tmp_path
):
    decoder, read = FakeDecoder(), given()
    wanted = {5: 1, 3: 0, 9: 2, 8: 1}

    def clip(
        pictures: Tensor,
    ) -> (
        Any
    ):  # the wanted sample of an image is seen as its decoded embedding, others as something else
        shades = (pictures[:, 0, 0, 0] * 255).round().int().tolist()
        found = []
        for shade in shades:
            image, sample = divmod(shade, 10)
            row = read.image_N.index(image)
            found.append(
                read.image_NTD[row]
                if sample == wanted[image]
                else read.image_NTD[row] + 30 * (-1) ** row * (1 + sample)
            )
        return SimpleNamespace(target_BTD=torch.stack(found))

    config = tiny_config(root, tmp_path, generation__samples="3")
    drawn = drawer_of(monkeypatch, config, decoder, read, clip)(slice(0, 4))
    assert [named["sample"] for _, named in decoder.drawn] == [0, 1, 2]
    assert [named["on_step"] is not None for _, named in decoder.drawn] == [True, False, False]
    for image, each in zip(read.image_N, drawn):
        assert each.note["sample"] == wanted[image] == int(np.argmax(each.note["similarity"]))
        assert each.note["similarity"][wanted[image]] == pytest.approx(1, abs=1e-3)
        assert np.asarray(each.image)[0, 0, 0] == image * 10 + wanted[image]


def denoised(
    monkeypatch: pytest.MonkeyPatch, decoder: BrainDecoder, *arguments: Any, **named: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the loop is given when a decoder draws."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def denoise(*given: Any, **more: Any) -> Tensor:
        calls.append((given, more))
        return torch.zeros_like(given[2])

    monkeypatch.setattr(diffusion_decoder, "denoise", denoise)
    decoder.generate(*arguments, **named)
    return calls[0]


def test_a_decoder_starts_every_picture_from_its_own_noise_and_hands_the_settings_on(monkeypatch):
    decoder = a_decoder()
    negative = Conditioning(
        torch.ones(1, decoder.form.text_length, 224), torch.zeros(1, 1, 128), torch.ones(1, 128)
    )
    on_step = lambda *_: None  # noqa: E731
    more = {
        "seed": 4,
        "steps": 9,
        "guidance_scale": 2.5,
        "guidance_end": 0.4,
        "ip_adapter_scale": 0.3,
    }
    more |= {"negative": negative, "sample": 2, "on_step": on_step}
    (unet, scheduler, noise, condition, without), named = denoised(
        monkeypatch, decoder, table("image")[:2], table("text")[:2], [12, 7], **more
    )
    assert unet is decoder.unet and scheduler is decoder.scheduler
    torch.testing.assert_close(noise, seeded_noise([12, 7], (4, 8, 8), 4, "picture 2"))
    first = {"seed": 4, "sample": 0}
    (_, _, other, *_), of_first = denoised(
        monkeypatch, decoder, table("image")[:2], table("text")[:2], [12, 7], **first
    )
    torch.testing.assert_close(other, seeded_noise([12, 7], (4, 8, 8), 4, "picture"))
    generators = named.pop("generators")
    assert not {each.initial_seed() for each in generators} & {
        each.initial_seed() for each in of_first["generators"]
    }
    assert (
        named.items()
        >= {
            "size": 32,
            "steps": 9,
            "guidance_scale": 2.5,
            "guidance_end": 0.4,
            "on_step": on_step,
        }.items()
    )
    assert len({each.initial_seed() for each in generators}) == 2
    torch.testing.assert_close(without.tokens_BTC, negative.tokens_BTC.expand(2, -1, -1))
    heard = condition(500, noise)
    torch.testing.assert_close(heard.image_embeds_BTD, table("image")[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        heard.tokens_BTC, decoder.form.text(table("text")[:2]), rtol=1e-4, atol=1e-4
    )
    (*_, nothing), named = denoised(
        monkeypatch, decoder, table("image")[:1], None, [1], size=64, ip_adapter_scale=0.3
    )
    assert not any(x.any() for x in nothing[:3]) and named["size"] == 64
    scales = {
        scale
        for each in decoder.unet.attn_processors.values()
        if hasattr(each, "to_k_ip")
        for scale in each.scale
    }
    assert scales == {0.3}


def test_what_is_heard_while_drawing_is_routed_by_the_routers_of_image_and_text(monkeypatch):
    routers = {"image": a_router(1), "text": a_router(2)}
    decoder = a_decoder(router_image=routers["image"], router_text=routers["text"])
    experts = {
        name: torch.randn(2, 6, 1, 128, generator=generator(seed))
        for name, seed in (("image", 1), ("text", 2))
    }
    read = {name: ExpertStack.of_experts(value, COUNTS) for name, value in experts.items()}
    (_, _, noise, condition, _), _ = denoised(
        monkeypatch, decoder, read["image"], read["text"], [1, 2]
    )
    heard = condition(torch.tensor(300.0), noise)
    embedding_decoders = {"image": decoder.brain_image, "text": decoder.brain_text}
    routed = {
        name: embedding_decoders[name].in_clip_units(
            routers[name](
                experts[name].split(list(COUNTS), 1), torch.full((2,), 300.0), noise
            ).embedding_BTD
        )
        for name in experts
    }
    torch.testing.assert_close(heard.image_embeds_BTD, routed["image"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        heard.tokens_BTC, decoder.form.text(routed["text"]), rtol=1e-4, atol=1e-4
    )
    (_, _, _, alone, _), _ = denoised(
        monkeypatch, decoder, read["image"], read["text"], [1, 2], level=1
    )
    assert alone(300.0, noise).image_routing.level_weights_BL.tolist() == [[0.0, 1.0]] * 2


def test_a_decoder_that_is_called_reads_and_draws_batch_by_batch_with_the_settings_given(
    monkeypatch,
):
    decoder = a_decoder()
    drawn: list[tuple[Any, ...]] = []

    def generate(self: BrainDecoder, image: Any, text: Any, ids: list[int], **named: Any) -> Tensor:
        drawn.append((image, text, ids, named))
        return torch.zeros(len(ids), 3, 4, 4)

    monkeypatch.setattr(BrainDecoder, "generate", generate)
    voxels = torch.randn(5, 41, generator=generator())
    asked = {"seed": 6, "guidance_scale": 2.5, "guidance_end": 0.5}
    out = decoder(
        voxels, 1, image_ids=[4, 9, 2, 7, 5], num_inference_steps=3, batch_size=2, **asked
    )
    assert (
        [ids for _, _, ids, _ in drawn] == [[4, 9], [2, 7], [5]]
        and out.image_ids == [4, 9, 2, 7, 5]
        and len(out.images) == 5
    )
    whole = decoder.decode_embeddings(voxels[:, None], 1, out.image_ids, 6)
    first = 0
    for image, text, ids, named in drawn:
        rows = slice(first, first + len(ids))
        torch.testing.assert_close(
            image.output_BTD, whole.image.output_BTD[rows], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            text.output_BTD, whole.text.output_BTD[rows], rtol=1e-4, atol=1e-4
        )
        assert named.items() >= (asked | {"steps": 3}).items()
        first += len(ids)
    torch.testing.assert_close(
        out.decoded.text_BTD, decoder.unrouted(whole).text_BTD, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("first", "output"), [(0, "bigG"), (96, "joint")])
def test_a_negative_prompt_is_read_by_the_text_encoders_whose_columns_there_are(
    monkeypatch, first, output
):
    loaded: list[tuple[str, dict[str, Any]]] = []

    class Encoder:
        def prompt(self, texts: list[str]) -> Any:
            return SimpleNamespace(
                tokens_BTD=torch.full((1, 4, 8), float(len(texts[0]))), pooled_BD=torch.ones(1, 3)
            )

    def from_pretrained(path: str, **settings: Any) -> Encoder:
        loaded.append((path, settings))
        return Encoder()

    monkeypatch.setattr(
        diffusion_decoder, "CLIPTextEncoderDual", SimpleNamespace(from_pretrained=from_pretrained)
    )
    form = a_decoder().form._replace(
        start_C=torch.zeros(8), text_length=4, text_columns=(first, 8), pooled_dim=3
    )
    assert diffusion_decoder.negative_condition(form, "a folder", "") is None and not loaded
    found = diffusion_decoder.negative_condition(form, "a folder", "a blur")
    assert loaded == [("a folder", {"output": output, "dtype": torch.float32})]
    assert found is not None and (found.tokens_BTC == 6).all() and not found.image_embeds_BTD.any()


def test_pictures_that_became_no_numbers_are_named():
    values = torch.ones(7, 2)
    refuse_not_finite_rows(values, None, "it")
    values[[0, 2, 3, 5, 6]] = torch.nan
    with pytest.raises(UserError, match=r"it of image 10, 12, 13, 15 and 1 more became NaN"):
        refuse_not_finite_rows(values, range(10, 17), "it")
    with pytest.raises(UserError, match=r"image 0, 2, 3, 5 became"):
        refuse_not_finite_rows(values[:6], None, "it")


def test_latents_leave_their_scale_before_the_autoencoder_and_a_picture_is_cut_out_of_the_middle(
    monkeypatch,
):
    decoder = a_decoder()
    asked: list[Tensor] = []
    fresh = decoder.vae.decode
    monkeypatch.setattr(decoder.vae, "decode", lambda x: asked.append(x) or fresh(x))
    latents = torch.randn(1, 4, 8, 8, generator=generator())
    decode_latents(decoder.vae, latents)
    torch.testing.assert_close(asked[0], latents / 0.7)
    whole = torch.arange(32.0).expand(1, 3, 32, 32) / 32
    monkeypatch.setattr(diffusion_decoder, "denoise", lambda *given, **_: given[2])
    monkeypatch.setattr(diffusion_decoder, "decode_latents", lambda *_: whole)
    drawn = decoder.generate(table("image")[:1], None, [1], size=28)
    torch.testing.assert_close(drawn[0, 0, 0], torch.arange(2.0, 30.0) / 32)


class EchoUNet(nn.Module):
    """Answers with what its condition sums to, so that guidance can be reckoned by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        *,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Any],
    ) -> Any:
        self.calls.append({"latents": latents, "t": t, **added_cond_kwargs})
        (image,) = added_cond_kwargs["image_embeds"]
        each = (
            encoder_hidden_states.mean((1, 2))
            + 10 * image.mean((1, 2))
            + 100 * added_cond_kwargs["text_embeds"].mean(1)
        )
        return SimpleNamespace(sample=each[:, None, None, None] + latents)


def test_guidance_leads_from_the_condition_without_to_the_given_one():
    """The loop by hand: Euler steps of the guided prediction, conditions asked anew with the scaled
    latents.
    """
    scheduler = fake_backbone().scheduler
    scheduler.set_timesteps(3)
    asked: list[tuple[float, Tensor]] = []

    def condition_at(t: Tensor, latents: Tensor) -> Conditioning:
        asked.append((float(t), latents))
        return Conditioning(
            torch.full((2, 5, 6), 0.3), torch.full((2, 1, 4), 0.2), torch.full((2, 3), 0.1)
        )

    without = Conditioning(
        torch.full((2, 5, 6), 0.01), torch.full((2, 1, 4), 0.02), torch.full((2, 3), 0.03)
    )
    start = torch.randn(2, 4, 2, 2, generator=generator())
    ids, other_ids = size_ids(64, 2, start), size_ids(32, 2, start)
    unet, steps = EchoUNet(), []
    found = denoise_from(
        unet,
        scheduler,
        start,
        scheduler.timesteps,
        condition_at,
        without,
        ids,
        other_ids,
        guidance_scale=4.0,
        on_step=lambda step, latents, condition: steps.append((step, latents)),
    )
    latents = start
    for step, t in enumerate(scheduler.timesteps):
        low, high = scheduler.sigmas[step], scheduler.sigmas[step + 1]
        scaled = latents / (low**2 + 1).sqrt()
        torch.testing.assert_close(asked[step][1], scaled)
        torch.testing.assert_close(unet.calls[step]["latents"], torch.cat([scaled, scaled]))
        assert asked[step][0] == float(t) and float(unet.calls[step]["t"]) == float(t)
        given, bare = (0.3 + 2.0 + 10.0) + scaled, (0.01 + 0.2 + 3.0) + scaled
        latents = latents + (bare + 4.0 * (given - bare)) * (high - low)
        torch.testing.assert_close(steps[step][1], latents, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found, latents, rtol=1e-3, atol=1e-3)
    assert unet.calls[0]["time_ids"][:, 0].tolist() == [32, 32, 64, 64]
    scheduler.set_timesteps(3)
    denoise_from(
        unet,
        scheduler,
        start,
        scheduler.timesteps,
        condition_at,
        without,
        ids,
        other_ids,
        guidance_scale=4.0,
        guidance_end=0.5,
    )
    assert [call["time_ids"][:, 0].tolist() for call in unet.calls[3:]] == [
        [32, 32, 64, 64]
    ] * 2 + [[64, 64]]


# --- pictures on disk -----------------------------------------------------------------------------


def test_pictures_go_by_id_and_only_those_that_are_missing_are_drawn(root, tmp_path):
    ids = [40, 7, 19, 3, 25]
    Image.new("RGB", (2, 2), (1, 1, 1)).save(tmp_path / "000019.png")
    Image.new("RGB", (2, 2), (1, 1, 1)).save(tmp_path / "000003.png")
    Image.new("RGB", (2, 2), (1, 1, 1)).save(
        tmp_path / "000007.png"
    )  # its neighbour is missing, and a batch is drawn whole
    asked = []

    def draw(some: slice) -> list[GeneratedImage]:
        asked.append(ids[some])
        return [
            GeneratedImage(
                Image.new("RGB", (2, 2), (i, i, i)),
                {"of": i},
                {"weights": torch.tensor([float(i)])},
            )
            for i in ids[some]
        ]

    generate_missing(tmp_path, ids, 2, draw, Workers(tiny_config(root, tmp_path)), "")
    assert asked == [[40, 7], [25]]
    for image in (40, 7, 25):
        assert np.asarray(Image.open(drawing.png_path(tmp_path, image)))[0, 0, 0] == image
    assert drawing.notes(tmp_path, ids) == {str(image): {"of": image} for image in (40, 7, 25)}
    generate_missing(
        tmp_path,
        ids,
        1,
        lambda some: pytest.fail("drawn again"),
        Workers(tiny_config(root, tmp_path)),
        "",
    )
    for image in (19, 3):
        save_file({"weights": torch.tensor([float(image)])}, tmp_path / f"{image:06d}.safetensors")
    drawing.gather_tensors(tmp_path, ids, tmp_path / ROUTING)
    found = load_file(tmp_path / ROUTING)
    assert found["ids"].tolist() == ids and found["weights"].flatten().tolist() == ids
    assert not list(tmp_path.glob("0*.safetensors"))
    drawing.gather_tensors(
        tmp_path, ids, tmp_path / ROUTING
    )  # as after a stop: nothing is left to do


def test_processes_share_the_batches_that_are_missing(tmp_path):
    """Each draws its own; what another draws is waited for."""
    asked: list[slice] = []

    class SecondOfTwo:
        main = False
        waited = 0

        def broadcast(self, value: Any) -> Any:
            return value

        def split(self, items: list[Any]) -> list[Any]:
            return items[1::2]

        def wait(self) -> None:
            self.waited += 1

    def draw(some: slice) -> list[GeneratedImage]:
        asked.append(some)
        return [GeneratedImage(Image.new("RGB", (2, 2))) for _ in range(2)]

    workers: Any = SecondOfTwo()
    generate_missing(tmp_path, [8, 6, 4, 2, 9, 7], 2, draw, workers, "")
    assert (
        asked == [slice(2, 4)]
        and sorted(path.stem for path in tmp_path.iterdir()) == ["000002", "000004"]
        and workers.waited == 1
    )


def reconstructed(
    monkeypatch: pytest.MonkeyPatch, config: Config, decoder: FakeDecoder, tuned: Path | None = None
) -> Path:
    """A reconstruction of given embeddings by a decoder that paints one colour per image."""
    found = {
        "ids": torch.tensor([3, 0, 2]),
        "image": table("image")[[3, 0, 2]],
        "text": table("text")[[3, 0, 2]],
    }
    monkeypatch.setattr(
        stage,
        "setup",
        lambda config, decodes: stage.ReconstructionParts(None, None, 1, TableTargets()),
    )  # type: ignore[arg-type]
    monkeypatch.setattr(stage, "load_encoders", lambda *_, **__: decoder.encoders)
    monkeypatch.setattr(stage, "assemble", lambda *_: decoder)
    monkeypatch.setattr(stage, "embeddings_of", lambda *_: found)
    monkeypatch.setattr(stage, "negative_condition", lambda *_: None)
    monkeypatch.setattr(stage, "modalities", lambda config: ("image", "text"))
    monkeypatch.setattr(stage, "finetuned_folder", lambda config: tuned)
    return stage.reconstruct(config)


@pytest.mark.slow
def test_a_reconstruction_keeps_pictures_embeddings_and_captions_by_image_id(
    monkeypatch, root, tmp_path
):
    config = tiny_config(root, tmp_path, generation__batch_size="2")
    decoder = FakeDecoder()
    add_lora(decoder.unet, 2)
    folder = reconstructed(monkeypatch, config, decoder)
    assert [arguments[2] for arguments, _ in decoder.drawn] == [[3, 0], [2]] and all(decoder.merged)
    assert not any(
        getattr(module, "merged", False) for module in decoder.unet.modules()
    )  # taken out again
    for (image, text, ids), _ in decoder.drawn:
        torch.testing.assert_close(image, table("image")[ids])
        torch.testing.assert_close(text, table("text")[ids])
    for image in (3, 0, 2):
        assert np.asarray(Image.open(folder / f"{image:06d}.png"))[0, 0, 0] == image * 10
    assert load_file(folder / EMBEDDINGS)["ids"].tolist() == [3, 0, 2]
    index = json.loads((folder / INDEX).read_text())
    expected = stage.nearest_captions(
        config, TableTargets(), table("text")[[3, 0, 2]], np.array([3, 0, 2])
    )  # type: ignore[arg-type]
    assert index["images"] == [3, 0, 2] and index["captions"] == expected
    kept = Run(folder).config
    assert (
        kept["generation"]["batch_size"] == 2
        and kept["seed"] == 0
        and kept["data"]["subjects"] == [1]
    )
    assert Run(folder).summary["images"] == 3
    again = FakeDecoder()
    reconstructed(monkeypatch, config, again)
    assert not again.drawn
    with pytest.raises(
        UserError, match=r"generation\.steps"
    ):  # pictures of other settings are not passed off as theirs
        reconstructed(
            monkeypatch,
            tiny_config(root, tmp_path, generation__batch_size="2", generation__steps="9"),
            again,
        )


@pytest.mark.slow
def test_a_reconstruction_that_was_stopped_goes_on_with_the_embeddings_it_had(
    monkeypatch, root, tmp_path
):
    config = tiny_config(root, tmp_path, generation__batch_size="1")

    class Stopping(FakeDecoder):
        def generate(self, *arguments: Any, **named: Any) -> Tensor:
            if self.drawn:
                raise KeyboardInterrupt
            return super().generate(*arguments, **named)

    with pytest.raises(KeyboardInterrupt):
        reconstructed(monkeypatch, config, Stopping())
    decoder = FakeDecoder()
    with monkeypatch.context() as patch:
        patch.setattr(stage, "save_file", lambda *_: pytest.fail("read again"))
        reconstructed(patch, config, decoder)
    assert [arguments[2] for arguments, _ in decoder.drawn] == [[0], [2]]


@pytest.mark.slow
def test_pictures_of_other_seeds_encoders_backbones_and_fine_tunings_are_refused(
    monkeypatch, root, tmp_path
):
    config = tiny_config(root, tmp_path)
    versions = {"embedding_decoder": "a", "tiny": "a", "best": "a"}
    monkeypatch.setattr(stage, "fingerprint_of_files", lambda path: versions[Path(path).name])
    monkeypatch.setattr(stage, "backbone_key", lambda path, dtype: versions[Path(path).name])
    monkeypatch.setattr(stage, "backbone_folder", lambda path: path)

    def again(config: Config) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(stage, "load_finetuned", lambda folder: None)
            return reconstructed(patch, config, FakeDecoder(), tmp_path / "finetune" / "best")

    folder = again(config)
    assert again(config) == folder
    with pytest.raises(UserError, match="seed"):
        again(tiny_config(root, tmp_path, run__seed="1"))
    with pytest.raises(UserError, match="unet_type"):  # begun on a GPU, continued on a CPU
        monkeypatch.setattr(stage, "generation_type", lambda config: torch.float16)
        again(config)
    monkeypatch.setattr(stage, "generation_type", lambda config: torch.float32)
    for part, what in (
        ("embedding_decoder", "embedding_decoders"),
        ("tiny", "weights"),
        ("best", "finetuned"),
    ):
        versions[part] = "b"
        with pytest.raises(UserError, match=what):
            again(config)
        versions[part] = "a"


def test_pictures_of_every_subject_are_drawn_each_in_its_own_folder(monkeypatch, root, tmp_path):
    seen: list[tuple[tuple[int, ...], Path]] = []
    monkeypatch.setattr(
        stage,
        "reconstruct_into",
        lambda config, folder: seen.append((config.data.subjects, folder)) or folder,
    )
    config = tiny_config(root, tmp_path, data__subjects="2,1")
    assert stage.reconstruct(config) == tmp_path
    assert seen == [((n,), tmp_path / f"subj0{n}" / "reconstructions" / "brain") for n in (2, 1)]


def test_every_draw_of_random_voxels_has_a_seed_and_a_folder_of_its_own(
    monkeypatch, root, tmp_path
):
    seen: list[tuple[int, Path]] = []
    monkeypatch.setattr(
        stage,
        "reconstruct_into",
        lambda config, folder: seen.append((config.run.seed, folder)) or folder,
    )
    config = tiny_config(root, tmp_path, generation__source="random", generation__random_draws="3")
    assert stage.reconstruct(config) == random_folders(config)[0]
    assert [folder for _, folder in seen] == random_folders(config) and len(
        {seed for seed, _ in seen}
    ) == 3
    assert seen[0][0] == config.run.seed


# --- refinement -----------------------------------------------------------------------------------


def test_refining_hears_every_pictures_own_text_with_the_settings_of_the_refiner(
    monkeypatch, root, tmp_path
):
    recons = tmp_path / "reconstructions" / "brain"
    recons.mkdir(parents=True)
    order, rows = [9, 4, 6], [4, 6, 9]  # of the index, and of the embeddings
    for image in order:
        picture = Image.new("RGB", (8, 8), (image, 2 * image, 3 * image))
        (picture.convert("RGBA") if image == 4 else picture).save(
            recons / f"{image:06d}.png"
        )  # somebody opened and saved one
    save_file(
        {"ids": torch.tensor(rows), "text": table("text")[rows], "image": table("image")[rows]},
        recons / EMBEDDINGS,
    )
    (recons / INDEX).write_text(json.dumps({"images": order}))
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def refine_images(*given: Any, **more: Any) -> Tensor:
        calls.append((given, more))
        return 1 - given[1]

    monkeypatch.setattr(refine_stage, "refine_images", refine_images)
    monkeypatch.setattr(refine_stage, "setup", lambda config: "the refiner")
    more = {
        "strength": "0.6",
        "steps": "9",
        "guidance_scale": "3",
        "use_image": "true",
        "size": "16",
        "batch_size": "2",
    }
    more |= {"aesthetic_score": "3.5", "negative_aesthetic_score": "1.5"}
    config = tiny_config(
        root,
        tmp_path,
        run__seed="8",
        **{f"refinement__{name}": value for name, value in more.items()},
    )
    folder = refine_stage.refine(config)
    assert [ids for (_, _, _, ids, _), _ in calls] == [[9, 4], [6]]
    for (refiner, pictures, text, ids, how), named in calls:
        assert refiner == "the refiner" and isinstance(how, Refinement)
        assert (how.strength, how.steps, how.guidance_scale) == (0.6, 9, 3.0)
        assert (how.aesthetic_score, how.negative_aesthetic_score, how.denoising_start) == (
            3.5,
            1.5,
            None,
        )
        assert named["seed"] == 8 and named["size"] == 16
        torch.testing.assert_close(text, table("text")[ids])
        torch.testing.assert_close(named["image_BTD"], table("image")[ids])
        shades = torch.tensor([[i, 2 * i, 3 * i] for i in ids]) / 255
        torch.testing.assert_close(pictures, shades[:, :, None, None].expand(-1, -1, 8, 8))
    for image in order:
        assert np.asarray(Image.open(folder / f"{image:06d}.png"))[0, 0].tolist() == [
            255 - image,
            255 - 2 * image,
            255 - 3 * image,
        ]
    assert (
        load_file(folder / EMBEDDINGS)["ids"].tolist() == rows
        and json.loads((folder / INDEX).read_text())["images"] == order
    )
    assert refine_stage.refined_is_there(config)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(recons / "000004.png")
    with pytest.raises(
        UserError, match="recons"
    ):  # refined pictures of others are not passed off as theirs
        refine_stage.refine(config)


def test_without_a_text_embedding_images_are_refined_by_the_decoded_image_alone(
    monkeypatch, root, tmp_path
):
    recons = tmp_path / "reconstructions" / "brain"
    recons.mkdir(parents=True)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(recons / "000004.png")
    save_file({"ids": torch.tensor([4]), "image": table("image")[[4]]}, recons / EMBEDDINGS)
    (recons / INDEX).write_text(json.dumps({"images": [4]}))
    calls: list[tuple[Any, Any]] = []

    def refine_images(refiner: Any, images: Tensor, text: Any, *_: Any, **named: Any) -> Tensor:
        calls.append((text, named["image_BTD"]))
        return images

    monkeypatch.setattr(refine_stage, "refine_images", refine_images)
    monkeypatch.setattr(refine_stage, "setup", lambda config: "the refiner")
    with pytest.raises(UserError, match="without a text embedding"):
        refine_stage.refine(tiny_config(root, tmp_path))
    refine_stage.refine(tiny_config(root, tmp_path, refinement__use_image="true"))
    ((text, image),) = calls
    assert text is None
    torch.testing.assert_close(image, table("image")[[4]])


@pytest.mark.parametrize("use_image", ["true", "false"])
@pytest.mark.slow
def test_a_refiner_is_loaded_as_configured(monkeypatch, root, tmp_path, use_image):
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    texts = text_encoder()
    backbone = fake_backbone()

    def load_refiner(*given: Any, **more: Any) -> Any:
        asked.append((given, more))
        return assemble_refiner(backbone.unet, backbone.vae, backbone.scheduler, texts, texts)

    monkeypatch.setattr(refine_stage, "load_refiner", load_refiner)
    monkeypatch.setattr(refine_stage, "backbone_folder", lambda path: f"folder of {path}")
    more = {
        "refinement__scheduler": "ddim",
        "refinement__negative_prompt": "a blur",
        "refinement__use_image": use_image,
    }
    more |= {"backbone__text_output": "joint", "generation__precision": "bfloat16"}
    refiner = refine_stage.setup(tiny_config(root, tmp_path, backbone__path="somewhere", **more))
    adapter = "folder of somewhere/ip_adapter" if use_image == "true" else None
    assert asked == [
        (
            ("somewhere",),
            {
                "text_output": "joint",
                "ip_adapter": adapter,
                "negative_prompt": "a blur",
                "dtype": torch.bfloat16,
            },
        )
    ]
    assert type(refiner.scheduler).__name__ == "DDIMScheduler"
    if use_image == "false":
        refine_stage.setup(
            tiny_config(root, tmp_path, backbone__path="somewhere", backbone__refiner="its refiner")
        )
        assert asked[-1][0] == ("its refiner",)


def test_decoded_embeddings_are_named_after_their_encoders():
    assert Decoded._fields == (
        "image_BTD",
        "text_BTD",
        "image_clip_BTD",
        "text_clip_BTD",
    )  # `decode_responses` goes by this order
