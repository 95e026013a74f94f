"""A new person after training on others: what is taken over, what is trained, and the curve over
sessions.
"""

from __future__ import annotations

import json
from pathlib import Path
import shutil

import pytest
from safetensors.torch import load_file
import torch
from unit.fake_backbone import write_fake_backbone

from braingen.cli import main
from braingen.config import load_config
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.training.encoder_setup import setup

SIZE = [
    "simulation.num_subjects=3",
    "simulation.num_sessions=2",
    "simulation.trials_per_session=60",
    "simulation.num_voxels=100",
]
SMALL = ["encoder.hidden_dim=32", "encoder.n_blocks=1", "prior.depth=1", "loss_image.mse_scale=1"]
OF_A_RUN = [
    "training.num_epochs=2",
    "training.batch_size=20",
    "run.device=cpu",
    "run.tracker=none",
    "evaluation.bootstrap=50",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Data of three people, and a run on two of them in ``others``."""
    folder = tmp_path_factory.mktemp("adapting")
    assert (
        main(["simulate", "--root", str(folder / "data"), *SIZE, "simulation.num_test_images=8"])
        == 0
    )
    write_fake_backbone(folder / "fake", with_clip=True)
    words = ["--root", str(folder / "data"), "--path", str(folder / "fake"), *SMALL, *OF_A_RUN]
    assert (
        main(
            ["train", "image", "--folder", str(folder / "others"), "--multi_subject", "1,2", *words]
        )
        == 0
    )
    return folder


def adapted(place: Path, name: str, *more: str) -> list[str]:
    """A run that starts from the one on others: neither backbone nor architecture nor losses are
    typed again.
    """
    typed = [
        "train",
        "image",
        "--folder",
        str(place / name),
        "--root",
        str(place / "data"),
        "--init_from",
        str(place / "others"),
    ]
    return [*typed, "--subj", "3", "--num_sessions", "1", *OF_A_RUN, *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "image" / "embedding_decoder" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("trained", ["routers", "subject", "all"])
def test_what_is_not_trained_stays_as_it_was(place, trained):
    more = {"routers": ["--train_router_only"], "subject": ["--trained", "subject"], "all": []}[
        trained
    ]
    assert main(adapted(place, trained, *more)) == 0
    before, after = weights(place / "others"), weights(place / trained)
    layer = {"encoder.subject_layer.linears.3.weight", "encoder.subject_layer.linears.3.bias"}
    own = layer | {
        f"linear.{part}.3.{name}"  # ridge regression of the new person
        for part in ("linears", "judged")
        for name in ("weight_RV", "bias_R")
    }
    assert after.keys() - before.keys() == own  # the layers of the others are left behind
    changed = {name for name in after.keys() - own if not torch.equal(before[name], after[name])}
    changed -= {"linear.encoder_weight", "linear.prior_weight"}  # chosen anew on held-out images
    changed = {name for name in changed if not name.startswith("confidence.")}  # found anew there
    routers = {f"encoder.levels.{level}.router.affinity" for level in range(4)}
    choices = {f"encoder.levels.{level}.router.chosen_PFK" for level in range(4)}
    if trained == "all":
        assert len(changed - choices) > len(routers) and {"mean_TD", "spread"}.isdisjoint(changed)
    else:
        assert changed - choices == (routers if trained == "routers" else set())
        assert trained == "routers" or not changed
    mark = json.loads((place / trained / "image" / "finished").read_text())
    counted = sum(
        after[name].numel() for name in layer | (routers if trained == "routers" else set())
    )
    assert mark["trained_parameters"] == (mark["parameters"] if trained == "all" else counted)
    embedding_decoder = EmbeddingDecoder.from_pretrained(
        place / trained / "image" / "embedding_decoder"
    )
    assert list(embedding_decoder.encoder.config.subjects) == ["3"]


def test_architecture_backbone_and_losses_come_from_the_run(place):
    config = load_config(
        None, {"training.init_from": str(place / "others"), "loss_image.clip_scale": "0.5"}
    )
    assert (
        config.encoder.hidden_dim == 32
        and config.prior.depth == 1
        and config.backbone.path == str(place / "fake")
    )
    assert (
        config.loss_image.mse_scale == 1 and config.loss_image.clip_scale == 0.5
    )  # what is typed comes first
    assert config.training.num_epochs == 50  # how it is trained does not
    assert (
        load_config(
            None, {"training.init_from": str(place / "others" / "image")}
        ).encoder.hidden_dim
        == 32
    )


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["encoder.hidden_dim=64"],
            "encoder hidden_dim was 32 in the run that --init_from names and is 64 here",
        ),
        (["prior.depth=2"], "prior depth was 1 in the run that --init_from names and is 2 here"),
        (
            ["--init_from", "nowhere"],
            (
                "--init_from nowhere holds no trained image encoder"
                " (nowhere/image/embedding_decoder is missing)"
            ),
        ),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(place, capsys, more, sentence):
    assert main(adapted(place, "wrong", *more)) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    shutil.rmtree(place / "wrong", ignore_errors=True)


def test_routers_alone_need_experts_from_somewhere(place, capsys):
    words = ["--root", str(place / "data"), "--path", str(place / "fake"), *SMALL, *OF_A_RUN]
    assert (
        main(
            [
                "train",
                "image",
                "--folder",
                str(place / "alone"),
                "--subj",
                "3",
                "--train_router_only",
                *words,
            ]
        )
        == 2
    )
    assert "name a trained run with --init_from RUN" in capsys.readouterr().err


def test_an_adapted_run_goes_on_with_the_run_it_started_from_and_no_other(place, capsys):
    assert main(adapted(place, "once", "--train_router_only")) == 0
    words = ["--root", str(place / "data"), "--path", str(place / "fake"), *SMALL, *OF_A_RUN]
    assert (
        main(
            [
                "train",
                "image",
                "--folder",
                str(place / "others2"),
                "--multi_subject",
                "1,2",
                *words,
                "run.seed=1",
            ]
        )
        == 0
    )
    again = adapted(place, "once", "--train_router_only", "--init_from", str(place / "others2"))
    capsys.readouterr()
    assert main(again) == 2 and "training.init_from was" in capsys.readouterr().err


def test_dropout_may_change_and_training_on_the_same_person_keeps_the_layer(place):
    config = load_config(
        None,
        {
            "training.init_from": str(place / "others"),
            "data.subjects": "1",
            "data.root": str(place / "data"),
        },
    )
    config = config.model_copy(
        update={"encoder": config.encoder.model_copy(update={"dropout": 0.5, "voxel_dropout": 0.1})}
    )
    embedding_decoder = setup(config, "image").embedding_decoder
    name = "encoder.subject_layer.linears.1.weight"
    assert torch.equal(embedding_decoder.state_dict()[name], weights(place / "others")[name])


@pytest.mark.long
def test_the_curve_over_sessions(place, capsys):
    """Resumable: a second start trains and reads nothing, and finds the same."""
    words = [
        "--root",
        str(place / "data"),
        "--path",
        str(place / "fake"),
        *SMALL,
        *OF_A_RUN[1:],
        "--num_epochs",
        "1",
        "--subj",
        "3",
    ]
    words += [
        "--folder",
        str(place / "curve"),
        "--pretrain_on",
        "1,2",
        "--sessions",
        "1,40",
        "adaptation_curve.seeds=0,1",
    ]
    assert main(["adaptation-curve", *words]) == 0
    folder = place / "curve" / "adaptation_curve"
    found = json.loads((folder / "curve.json").read_text())
    places = {(point["way"], point["x"], point["score"]) for point in found["points"]}
    assert {(way, x) for way, x, _ in places} == {
        (way, x) for way in ("routers", "all", "scratch") for x in (1, 2)
    }  # 40 are all there are
    for point in found["points"]:
        assert (
            point["low"] <= point["value"] <= point["high"]
            and point["seeds"] == 2
            and point["between_seeds"] is not None
        )
    assert (
        found["parameters"]["routers"]["share"]
        < found["parameters"]["all"]["share"]
        == found["parameters"]["scratch"]["share"]
        == 1
    )
    assert {(each["first"], each["second"]) for each in found["differences"]} >= {
        ("routers", "scratch"),
        ("routers", "all"),
    }
    table = (folder / "curve.md").read_text()
    assert (
        "simulated" in table
        and "parameters trained" in table
        and table.count("| from scratch |") == 2
    )
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG" and "<svg" in (
        folder / "curve.svg"
    ).read_text()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("embedding_decoder/*")}
    assert main(["adaptation-curve", *words]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("embedding_decoder/*")} == before
    assert json.loads((folder / "curve.json").read_text()) == found
    capsys.readouterr()
    assert main(["adaptation-curve", *words, "--pretrain_on", "1,3"]) == 2
    assert (
        "Subject 3 is the new subject (data.subjects) and among the pretraining ones"
        in capsys.readouterr().err
    )


@pytest.mark.long
def test_the_bottleneck_curve(place):
    words = [
        "--root",
        str(place / "data"),
        "--path",
        str(place / "fake"),
        *SMALL,
        *OF_A_RUN[1:],
        "--num_epochs",
        "1",
        "--subj",
        "1",
    ]
    assert (
        main(
            [
                "bottleneck",
                *words,
                "--folder",
                str(place / "narrow"),
                "--bottleneck_dims",
                "16,32",
                "bottleneck.seeds=0,1",
            ]
        )
        == 0
    )
    folder = place / "narrow" / "bottleneck"
    found = json.loads((folder / "curve.json").read_text())
    assert {point["x"] for point in found["points"]} == {16, 32}
    assert (
        found["levels"].keys() == {"random voxels", "oracle"}
        and found["levels"]["oracle"]["clip_cos"] == 1
    )
    assert found["levels"]["random voxels"].keys() == {point["score"] for point in found["points"]}
    assert (folder / "curve.png").exists() and "| random voxels |" in (
        folder / "curve.md"
    ).read_text()
    for width in (16, 32):
        config = json.loads(
            (folder / f"b{width}-seed0" / "image" / "embedding_decoder" / "config.json").read_text()
        )
        assert config["encoder_config"]["bottleneck_dim"] == width
