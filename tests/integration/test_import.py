"""Published checkpoints in, run folders out: architecture inferred, outputs those of the published
modules, every name accounted for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file
import torch
from torch import Tensor
from unit.published_models import MindEye2, MultiLevel, lively

from braingen.cli import main
from braingen.compat.encoder_settings import capacity_of, encoder_settings
from braingen.compat.import_checkpoint import import_checkpoint, read_weights
from braingen.compat.keys import load_published, published_keys
from braingen.compat.prior import network_state, settings_of
from braingen.config import load_config
from braingen.data.nsd import subject_of_width
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.trained import load_embedding_decoder
from braingen.generation.lora_files import unet_on_meta
from braingen.generation.trained_modules import load_finetuned
from braingen.pretrained.sdxl import unet_config
from braingen.routing.diffuse_router import DiffuseRouter
from braingen.runtime.errors import UserError

DATA = Path(__file__).parents[1] / "parity" / "data"
MANIFEST = {
    case["case"]: case for case in json.loads((DATA / "manifest.json").read_text())["cases"]
}
ENCODER_KINDS = ("BrainEncoder", "BrainMoE", "BrainMoEHier", "BrainMoEMulti")
ENCODER_CASES = [name for name, case in MANIFEST.items() if case["kind"] in ENCODER_KINDS]


def case_tensors(name: str) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {"state": {}, "in": {}, "out": {}}
    for key, value in load_file(DATA / MANIFEST[name]["file"]).items():
        group, _, rest = key.partition("/")
        groups[group][rest] = torch.from_numpy(np.ascontiguousarray(value))
    return groups


def imported(tmp_path: Path, what: str, file: Path, *words: str) -> Path:
    assert (
        main(["import", what, "--checkpoint", str(file), "--folder", str(tmp_path / "run"), *words])
        == 0
    )
    return tmp_path / "run"


def subjects_of(count: int) -> list[str]:
    return ["--subj", ",".join(str(3 + place) for place in range(count))]


@pytest.mark.parametrize("name", ENCODER_CASES)
def test_a_published_state_dict_gives_the_published_outputs(name: str, tmp_path: Path) -> None:
    """Weights and numbers of the published code; nothing but names and shapes tells the
    architecture.
    """
    tensors, made = case_tensors(name), MANIFEST[name]["constructor"]
    torch.save(
        {"model_state_dict": tensors["state"], "epoch": 3, "optimizer_state_dict": {}},
        tmp_path / "best.pth",
    )
    voxels = [
        tensors["in"][f"voxel_{place}"][:, 0] for place in range(len(made["num_voxels_list"]))
    ]
    run = imported(tmp_path, "image", tmp_path / "best.pth", *subjects_of(len(voxels)))
    embedding_decoder = load_embedding_decoder(load_config(None, {"run.folder": str(run)}), "image")
    with torch.no_grad():
        records = [
            embedding_decoder(x_BV, 3 + place, return_experts=True)
            for place, x_BV in enumerate(voxels)
        ]
    backbone, clip = (
        torch.cat([getattr(record, field) for record in records])
        for field in ("backbone_BTD", "clip_BTD")
    )
    order = "" if MANIFEST[name]["kind"] == "BrainEncoder" else "by_gpu_rule/"
    wanted = [tensors["out"][f"{order}{field}"] for field in ("backbone", "clip")]
    if MANIFEST[name]["kind"] == "BrainMoE":  # published outputs are stacked per expert
        wanted = [part.sum(dim=0 if part.shape[0] == made["num_exp"] else 1) for part in wanted]
    tolerance = MANIFEST[name]["tolerance"]
    for ours, theirs in zip((backbone, clip), wanted):
        torch.testing.assert_close(
            ours, theirs.view_as(ours), rtol=10 * tolerance["rtol"], atol=10 * tolerance["atol"]
        )
    report = json.loads((run / "image" / "import.json").read_text())
    assert report["not_read"] == ["epoch", "optimizer_state_dict"]
    assert report["missing"] == report["unexpected"] == report["other_shape"] == []
    for field in (
        "hidden_dim",
        "n_blocks",
        "clip_emb_dim",
        "clip_seq_dim",
        "num_exp",
        "num_exps",
        "num_exp_0",
        "interm_out",
        "meta",
    ):
        if field in made and field in report["encoder"]:
            assert report["encoder"][field] == made[field], field
    for field in ("capacity_factor", "capacity_factor_0"):
        if field in made:
            assert report["encoder"][field] == pytest.approx(made[field])


@pytest.fixture
def mindeye() -> tuple[MindEye2, dict[str, Tensor]]:
    """A small MindEye2 checkpoint: a plainly written encoder, and the prior of a parity case."""
    encoder = lively(MindEye2([20, 27], 24, 2, 4, 40), seed=0)
    prior = {
        f"diffusion_{key}": value
        for key, value in case_tensors("prior_full_4tokens")["state"].items()
    }
    return encoder, encoder.state_dict() | prior  # type: ignore[return-value]


@torch.no_grad()
def test_mindeye2_comes_with_low_level_branch_and_prior(
    mindeye: Any, tmp_path: Path, capsys
) -> None:
    published, state = mindeye
    torch.save(
        {"model_state_dict": {f"module.{key}": value for key, value in state.items()}},
        tmp_path / "last.pth",
    )
    run = imported(tmp_path, "image", tmp_path / "last.pth", "--subj", "2,5")
    assert "BrainEncoder of subject 2 (20 voxels), 5 (27 voxels)" in capsys.readouterr().out
    embedding_decoder = EmbeddingDecoder.from_pretrained(run / "image" / "embedding_decoder").eval()
    for place, subject in enumerate((2, 5)):
        voxels = torch.randn(3, (20, 27)[place], generator=torch.Generator().manual_seed(place))
        out, wanted = embedding_decoder(voxels, subject), published(voxels, place)
        for ours, theirs in zip((out.backbone_BTD, out.clip_BTD, *out.low_level), wanted):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    case = case_tensors("prior_full_4tokens")
    given, name = case["in"], "sample_T15"
    noise = torch.cat([given[f"{name}/initial"][None], given[f"{name}/steps"]]).transpose(0, 1)
    sampled = embedding_decoder.prior.sample(given["condition"], 15, 1.5, noise=noise)
    torch.testing.assert_close(sampled, case["out"][f"{name}_scale1.5"], rtol=1e-3, atol=1e-3)
    assert (
        embedding_decoder.spread == 1
        and not embedding_decoder.mean_TD.any()
        and embedding_decoder.config.prior_use == "sample"
    )
    report = json.loads((run / "image" / "import.json").read_text())
    assert (
        len(report["derived"]) == 13 + 1 and report["prior"]["timesteps"] == 20
    )  # noise tables, and frequencies of the one layer
    assert report["parameters"] == sum(p.numel() for p in published.parameters()) + sum(
        p.numel() for p in embedding_decoder.prior.parameters()
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "sizes",
    [
        {
            "width": 36,
            "blocks": 1,
            "tokens": 2,
            "clip_width": 6,
            "factors": (3, 2),
            "capacities": (1, 1.5),
        },
        {
            "width": 40,
            "blocks": 3,
            "tokens": 1,
            "clip_width": 10,
            "factors": (2, 2, 5),
            "capacities": (1.3, 1, 2),
        },
    ],
)
def test_levels_of_other_shapes_against_a_loop(sizes: dict[str, Any], tmp_path: Path) -> None:
    """Two subjects, several tokens, capacities that do not divide: settings no parity case has."""
    published = lively(MultiLevel(voxels=[11, 17], **sizes), seed=1)
    save_file(published.state_dict(), tmp_path / "weights.safetensors")
    run = imported(tmp_path, "text", tmp_path / "weights.safetensors", "--subj", "1,7")
    embedding_decoder = EmbeddingDecoder.from_pretrained(run / "text" / "embedding_decoder").eval()
    assert embedding_decoder.prior is None
    for place, subject in enumerate((1, 7)):
        voxels = torch.randn(4, (11, 17)[place], generator=torch.Generator().manual_seed(place))
        out = embedding_decoder(voxels, subject)
        for ours, theirs in zip((out.backbone_BTD, out.clip_BTD), published(voxels, place, "gpu")):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["text_joint", "text_joint_early", "text_joint_mid_pool", "text_joint_late", "text_BigG_pool"],
)
def test_text_encoders_too(name: str, tmp_path: Path) -> None:
    """The parity case is a trunk; a subject layer that changes nothing is put before it."""
    from parity.cases import read_case  # weights by formula

    case, tensors = read_case(MANIFEST[name]), case_tensors(name)
    width = MANIFEST[name]["constructor"]["h"]
    state = {f"backbone.{key}": torch.from_numpy(value.copy()) for key, value in case.state.items()}
    state |= {
        "ridge.linears.0.weight": torch.eye(width),
        "ridge.linears.0.bias": torch.zeros(width),
    }
    save_file(state, tmp_path / "text.safetensors")
    run = imported(tmp_path, "text", tmp_path / "text.safetensors")
    out = EmbeddingDecoder.from_pretrained(run / "text" / "embedding_decoder").eval()(
        tensors["in"]["x"][:, 0], 1
    )
    found = {"backbone": out.backbone_BTD, "clip": out.clip_BTD, "pooled": out.pooled_BD}
    for field, wanted in tensors["out"].items():
        torch.testing.assert_close(found[field], wanted, rtol=2e-4, atol=1e-4)


# --- nothing is dropped silently ------------------------------------------------------------------


def test_what_does_not_fit_is_named_and_refused_and_partial_takes_the_rest(
    mindeye: Any, tmp_path: Path, capsys
) -> None:
    published, state = mindeye
    state = dict(state)
    del state["ridge.linears.1.bias"], state["diffusion_prior.net.null_image_embed"]
    with pytest.raises(UserError, match="null_image"):  # this one tells a shape
        settings_of(
            {key: value for key, value in state.items() if key.startswith("diffusion_prior.")}
        )
    state["diffusion_prior.net.null_image_embed"] = torch.zeros(4, 40)
    del state["diffusion_prior.net.causal_transformer.norm.g"]
    state["backbone.mixer_blocks1.1.1.0.bias"] = torch.zeros(5)
    state |= {"backbone.extra": torch.zeros(1), "diffusion_prior.net.extra": torch.zeros(1)}
    torch.save(state, tmp_path / "odd.pth")
    words = [
        "import",
        "image",
        "--checkpoint",
        str(tmp_path / "odd.pth"),
        "--folder",
        str(tmp_path / "run"),
        "--subj",
        "2,5",
    ]
    assert main(words) == 2
    told = capsys.readouterr()
    assert (
        told.err.count("\n") == 1
        and "2 missing" in told.err
        and "2 unexpected" in told.err
        and "1 of another shape" in told.err
    )
    for line in (
        "missing: ridge.linears.1.bias",
        "missing: prior causal_transformer.norm.g",
        "unexpected: backbone.extra",
        "unexpected: diffusion_prior.net.extra",
        "of another shape: backbone.mixer_blocks1.1.1.0.bias: (5,) instead of (24,)",
    ):
        assert line in told.out.splitlines()
    assert not (tmp_path / "run").exists()
    assert main([*words, "--partial"]) == 0
    embedding_decoder = EmbeddingDecoder.from_pretrained(
        tmp_path / "run" / "image" / "embedding_decoder"
    ).eval()
    assert torch.equal(
        embedding_decoder.encoder.subject_layer.linears["2"].bias, published.ridge.linears[0].bias
    )
    assert embedding_decoder.encoder.subject_layer.linears["5"].bias.isfinite().all()
    report = json.loads((tmp_path / "run" / "image" / "import.json").read_text())
    assert report["missing"] == ["ridge.linears.1.bias", "prior causal_transformer.norm.g"]


class Dangerous:
    """A pickle of it would run a command when loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/braingen-was-here", "w"))


def test_files_that_would_run_code_are_refused_unread(tmp_path: Path) -> None:
    torch.save(
        {"model_state_dict": {"w": torch.zeros(1)}, "args": Dangerous()}, tmp_path / "bad.pth"
    )
    with pytest.raises(UserError, match="could run code, so it is not read"):
        read_weights(tmp_path / "bad.pth")
    assert not Path("/tmp/braingen-was-here").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is missing"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"not a checkpoint at all", "is no checkpoint|cannot be read"),
    ],
)
def test_what_is_no_checkpoint_ends_in_one_sentence(
    content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "last.pth").write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_weights(tmp_path / "last.pth")
    assert "\n" not in str(caught.value)


def test_subjects_are_known_by_their_voxels_or_asked_for() -> None:
    def state(*voxels: int) -> dict[str, Tensor]:
        with torch.device("meta"):
            return MindEye2(voxels, 8, 1, 1, 4).state_dict()

    known = encoder_settings(state(14278, 15724), subject_of=subject_of_width).arguments["subjects"]
    assert known == {"2": 14278, "1": 15724}
    with pytest.raises(
        UserError, match=r"30, 40 voxels, which does not tell whose they are.*--subj 1,2"
    ):
        encoder_settings(state(30, 40), subjects=(1,), subject_of=subject_of_width)
    with pytest.raises(UserError, match="no encoder known here"):
        encoder_settings(
            {"ridge.linears.0.weight": torch.zeros(2, 3), "other": torch.zeros(1)}, (1,)
        )


def test_capacities_are_found_whatever_the_division() -> None:
    for units in (7, 16, 41, 1000):
        for experts in (1, 2, 3, 7):
            for width in range(1, units + 1):
                assert int(units // experts * capacity_of(width, units, experts)) == width


# --- full sizes, without allocating ---------------------------------------------------------------


def test_every_key_of_the_published_configuration_at_full_size_has_its_place() -> None:
    keys = json.loads((DATA / "checkpoint_keys.json").read_text())
    plain, bottleneck = keys["encoder"], keys["encoder_bottleneck512_differences"]
    with torch.device("meta"):
        for listed, parameters in (
            (plain["tensors"], plain["parameters"]),
            ([*plain["tensors"], *bottleneck["tensors"]], bottleneck["parameters"]),
        ):
            tensors = {name: shape for name, shape in listed}  # noqa: C416 - later ones replace earlier ones
            state = {name: torch.empty(shape) for name, shape in tensors.items()}
            name, arguments = encoder_settings(state, subject_of=subject_of_width)
            embedding_decoder = EmbeddingDecoder(name, arguments, None)
            assert load_published(embedding_decoder.encoder, state).is_complete
            assert (
                sum(parameter.numel() for parameter in embedding_decoder.parameters()) == parameters
            )
        prior = {name: torch.empty(shape) for name, shape in keys["prior"]["tensors"]}
        del prior["prior.noise_scheduler.betas"]  # values, which meta tensors lack
        embedding_decoder = EmbeddingDecoder(name, arguments, settings_of(prior))
        found = network_state(prior)
        assert (
            not found.unknown
            and found.state.keys()
            == dict(embedding_decoder.prior.network.named_parameters()).keys()
        )
        frequencies = prior[
            "prior.net.causal_transformer.layers.0.0.rotary_emb.freqs"
        ].numel()  # counted as a parameter there
        assert (
            sum(parameter.numel() for parameter in embedding_decoder.prior.parameters())
            + frequencies
            == keys["prior"]["parameters"]
        )


def test_a_full_size_mindeye2_checkpoint_gives_its_configuration() -> None:
    """2,227,294,844 parameters of subject 1, the prior's 259,865,216 among them."""
    with torch.device("meta"):
        state = MindEye2([15724], 4096, 4, 256, 1664).state_dict()
        name, arguments = encoder_settings(state, subject_of=subject_of_width)
        assert (
            name == "BrainEncoder"
            and arguments["low_level"]
            and arguments["subjects"] == {"1": 15724}
        )
        sizes = [
            arguments[field] for field in ("hidden_dim", "n_blocks", "clip_seq_dim", "clip_emb_dim")
        ]
        assert sizes == [4096, 4, 256, 1664]
        embedding_decoder = EmbeddingDecoder(name, arguments, {"dim": 1664, "num_tokens": 256})
        assert published_keys(embedding_decoder.encoder).keys() == state.keys()
    # the published count holds 16 rotary frequencies, which are constants and not stored here
    assert (
        sum(parameter.numel() for parameter in embedding_decoder.parameters()) == 2_227_294_844 - 16
    )
    assert (
        sum(parameter.numel() for parameter in embedding_decoder.prior.parameters())
        == 259_865_216 - 16
    )


# --- stage 2 --------------------------------------------------------------------------------------


def test_routers_and_lora_become_a_finished_finetuning(tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    sizes = {"num_experts": (2, 4), "clip_emb_dim": 6, "time_hidden_dim": 10, "space_grid": 5}
    image, text = (DiffuseRouter(space=space, **sizes) for space in ("off", "cross"))
    for name, router in (("image", image), ("text", text)):
        torch.save(
            {key: torch.randn_like(value) for key, value in router.state_dict().items()},
            tmp_path / f"{name}.pth",
        )
    shapes = {
        name: parameter.shape
        for name, parameter in unet_on_meta(unet_config("tiny")).named_parameters()
    }
    name = next(
        name.removesuffix(".weight") for name in shapes if name.endswith("attn1.to_q.weight")
    )
    outputs, inputs = shapes[f"{name}.weight"]
    lora = {
        f"unet.{name}.lora_A.weight": torch.randn(2, inputs),
        f"unet.{name}.lora_B.weight": torch.randn(outputs, 2),
    }
    save_file(lora, tmp_path / "lora.safetensors")
    words = [
        "import",
        "finetune",
        "--router_image",
        str(tmp_path / "image.pth"),
        "--router_text",
        str(tmp_path / "text.pth"),
    ]
    words += ["--adapter", str(tmp_path / "lora.safetensors"), "--folder", str(tmp_path / "run")]
    assert main([*words, "--exp_factor_list", "2,2"]) == 2
    assert (
        "mixes 2 levels, the encoder settings describe 3 (2, 4, 8 experts)"
        in capsys.readouterr().err
    )
    assert main([*words, "--exp_factor_list", "2"]) == 0
    tuned = load_finetuned(tmp_path / "run" / "finetune" / "best")
    for router, name in ((tuned.router_image, "image"), (tuned.router_text, "text")):
        for key, value in torch.load(tmp_path / f"{name}.pth", weights_only=True).items():
            assert torch.equal(router.state_dict()[key], value)
    assert tuned.router_image.config.space == "off" and tuned.router_text.config.space_grid == 5
    assert tuned.lora is not None
    found = load_tensors(tuned.lora)
    assert found.keys() == lora.keys() and all(
        torch.equal(found[key], value) for key, value in lora.items()
    )


def test_nothing_to_import_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to import"):
        import_checkpoint(load_config(None, {"run.folder": str(tmp_path)}), "finetune")
