"""Drawing: its options, several processes at one reconstruction, several drawings of a brain; the
encoders have learnt next to nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
import shutil

from integration.processes import shared
import numpy as np
from PIL import Image
import pytest
from safetensors.torch import load_file
import torch
from torch.nn.functional import cosine_similarity
from unit.fake_backbone import write_fake_backbone, write_fake_refiner

from braingen.cli import main
from braingen.config import Config, load_config
from braingen.config.overrides import parse_overrides
from braingen.data.betas import Betas
from braingen.data.trials import test_trials
from braingen.data.volumes import load_places, save_nifti
from braingen.generation.pipeline import BrainDecoder
from braingen.generation.reconstruct import assemble
from braingen.generation.resumable import notes
from braingen.runtime.data_layout import Layout
from braingen.targets.tables import Targets

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
IMAGES = 5
SMALL = [
    "simulation.num_sessions=1",
    "simulation.trials_per_session=60",
    "simulation.num_voxels=200",
    f"--num_test_images={IMAGES}",
]
SMALL += [
    "encoder.hidden_dim=32",
    "encoder.n_blocks=1",
    "prior.depth=1",
    "training.num_epochs=1",
    "training.batch_size=20",
]
SMALL += [
    "generation.steps=2",
    "generation.guidance_scale=2",
    "generation.batch_size=2",
    "run.device=cpu",
    "run.tracker=none",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> list[str]:
    """Words that name a run whose encoders are trained; its folder is the second of them."""
    folder = tmp_path_factory.mktemp("drawing")
    backbone = write_fake_backbone(folder / "backbone", with_clip=True)
    words = [
        "--folder",
        str(folder / "run"),
        "--root",
        str(folder / "data"),
        "--path",
        str(backbone),
        *SMALL,
    ]
    for command in (["simulate"], ["train", "image"], ["train", "text"]):
        assert main([*command, *words]) == 0
    return words


@pytest.fixture
def words(trained, tmp_path) -> list[str]:
    """The same encoders in a run folder of the test's own."""
    for modality in ("image", "text"):
        shutil.copytree(Path(trained[1]) / modality, tmp_path / "run" / modality)
    return ["--folder", str(tmp_path / "run"), *trained[2:]]


def drawn(words: list[str], *more: str) -> dict[str, np.ndarray]:
    """Reconstruct anew and read the pictures, by name."""
    folder = Path(words[1]) / "reconstructions" / "brain"
    shutil.rmtree(folder, ignore_errors=True)
    assert main(["reconstruct", *words, *more]) == 0
    return pictures(folder)


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {
        path.name: np.asarray(Image.open(path).convert("RGB")).astype(int)
        for path in sorted(folder.glob("*.png"))
    }


def differ(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> int:
    assert first.keys() == second.keys() and len(first) == IMAGES
    return max(np.abs(first[name] - second[name]).max() for name in first)


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.long
def test_two_processes_draw_what_one_draws_and_go_on_where_they_were_stopped(words):
    alone = drawn(words)
    folder = Path(words[1]) / "reconstructions" / "brain"
    index, embeddings = (
        json.loads((folder / "index.json").read_text()),
        load_file(folder / "embeddings.safetensors"),
    )
    shutil.rmtree(folder)
    shared(main, 2, ["reconstruct", *words])
    together = pictures(folder)
    assert differ(alone, together) == 0
    assert json.loads((folder / "index.json").read_text()) == index
    for name, rows in load_file(folder / "embeddings.safetensors").items():
        torch.testing.assert_close(rows, embeddings[name], rtol=0, atol=1e-5)
    # stopped half way: two pictures are missing and the mark is not set
    first, *_, last = sorted(together)
    (folder / "finished").unlink()
    kept = {
        name: (folder / name).stat().st_mtime_ns for name in together if name not in (first, last)
    }
    for name in (first, last):
        (folder / name).unlink()
    shared(main, 2, ["reconstruct", *words])
    assert differ(alone, pictures(folder)) == 0 and (folder / "finished").is_file()
    untouched = [
        name for name, before in kept.items() if (folder / name).stat().st_mtime_ns == before
    ]
    assert untouched == sorted(together)[2:4]  # the batch in between, which had all its pictures


# --- options --------------------------------------------------------------------------------------


def test_every_option_of_the_sampler_is_heard(words):
    plain = drawn(words)
    assert differ(plain, drawn(words)) == 0
    options = [
        ["--scheduler", "ddim"],
        ["--negative_prompt", "a blurry photo"],
        ["--ip_adapter_scale", "0.3"],
        ["generation.steps=3"],
    ]
    options += [["generation.guidance_scale=6"], ["--no-use_image"], ["--no-use_text"]]
    for option in options:
        assert differ(plain, drawn(words, *option)) > 2, option
    assert {picture.shape for picture in drawn(words, "generation.size=64").values()} == {
        (64, 64, 3)
    }


def test_drawing_from_nothing_is_refused_before_anything_is_written(words, capsys):
    assert main(["reconstruct", *words, "--no-use_image", "--no-use_text"]) == 2
    assert "leave one of them on" in capsys.readouterr().err
    assert not list((Path(words[1]) / "reconstructions" / "brain").glob("*.png"))


def test_an_unknown_scheduler_is_named_with_the_known_ones(words, capsys):
    assert main(["reconstruct", *words, "--scheduler", "eular"]) == 2
    assert "eular" in capsys.readouterr().err


# --- several drawings of a brain ------------------------------------------------------------------


def test_the_best_drawing_is_the_one_nearest_to_the_decoded_embedding(words):
    """Recomputed here from single drawings; the pictures that were seen play no part."""
    kept = drawn(words, "--samples", "3")
    folder = Path(words[1]) / "reconstructions" / "brain"
    read = load_file(folder / "embeddings.safetensors")
    config = load_config(*parse_overrides(words))
    targets = Targets(config)
    decoder: BrainDecoder = assemble(config, targets)
    told = json.loads((folder / "index.json").read_text())["samples"]
    assert told == notes(folder, read["ids"].tolist())
    embedding_decoder, different = decoder.brain_image, set()
    for row, image in enumerate(read["ids"].tolist()):
        some = slice(row, row + 1)
        single = [
            decoder.generate(
                read["image"][some],
                read["text"][some],
                [image],
                steps=2,
                guidance_scale=2.0,
                sample=n,
            )
            for n in range(3)
        ]
        said = torch.cat(
            [embedding_decoder.standardised(targets.image_encoder(x).target_BTD) for x in single]
        ).flatten(1)
        cosine = cosine_similarity(
            said, embedding_decoder.standardised(read["image"][some]).flatten(1)
        )
        np.testing.assert_allclose(told[str(image)]["similarity"], cosine.numpy(), atol=1e-3)
        assert told[str(image)]["sample"] == int(cosine.argmax())
        best = (single[int(cosine.argmax())][0] * 255).round().permute(1, 2, 0).numpy().astype(int)
        assert np.abs(best - kept[f"{image:06d}.png"]).max() <= 1
        different.add(told[str(image)]["sample"])
    assert len(different) > 1  # of five brains not all prefer the same drawing


def test_one_drawing_is_the_first_of_several(words):
    one, three = drawn(words), drawn(words, "--samples", "3")
    folder = Path(words[1]) / "reconstructions" / "brain"
    for name, note in notes(folder, [int(name[:6]) for name in three]).items():
        same = np.abs(one[f"{int(name):06d}.png"] - three[f"{int(name):06d}.png"]).max() <= 1
        assert same == (note["sample"] == 0)


# --- refinement -----------------------------------------------------------------------------------


def test_refining_makes_another_folder_of_the_same_form(words, tmp_path):
    before = drawn(words)
    recons = Path(words[1]) / "reconstructions" / "brain"
    more = ["--strength", "0.5", "--steps", "4", "--guidance_scale", "3", "refinement.batch_size=2"]
    assert main(["refine", *words, *more]) == 0
    folder = recons.with_name("brain_refined")
    after = pictures(folder)
    assert differ(before, after) > 2
    for name in ("index.json", "embeddings.safetensors"):
        assert (folder / name).read_bytes() == (recons / name).read_bytes()
    assert (
        load_config(*parse_overrides([*words, *more], "refinement")).refinement.guidance_scale == 3
    )
    # the same bits from two processes, from a folder that was left half done
    (folder / "finished").unlink()
    for name in list(after)[:3]:
        (folder / name).unlink()
    shared(main, 2, ["refine", *words, *more])
    assert differ(after, pictures(folder)) == 0 and (folder / "finished").is_file()
    # the refiner's own classes, and a folder and a start of one's own
    refiner = write_fake_refiner(tmp_path / "refinement")
    own = [
        "--refiner",
        str(refiner),
        "--output",
        str(tmp_path / "other"),
        "--recons",
        str(recons),
        "--denoising_start",
        "0.4",
    ]
    own += ["--strength", "default"]  # which says where to start as well
    assert main(["refine", *words, *more, *own]) == 0
    assert differ(after, pictures(tmp_path / "other")) > 2


def test_refining_says_what_is_missing_and_keeps_to_the_pictures_it_began_with(
    words, capsys, tmp_path
):
    assert main(["refine", *words]) == 2
    assert "run `braingen reconstruct --folder" in capsys.readouterr().err
    drawn(words)
    assert main(["refine", *words, "--strength", "0.5", "--steps", "2"]) == 0
    drawn(words, "generation.guidance_scale=4")
    assert main(["refine", *words, "--strength", "0.5", "--steps", "2"]) == 2
    assert "recons was" in capsys.readouterr().err
    assert (
        main(
            [
                "refine",
                *words,
                "--use_image",
                "--refiner",
                "somewhere",
                "--output",
                str(tmp_path / "other"),
            ]
        )
        == 2
    )
    assert "refiner has none" in capsys.readouterr().err and not (tmp_path / "other").exists()


# --- voxels somebody brings along -----------------------------------------------------------------


def test_a_file_of_voxels_becomes_embeddings_and_pictures(words, tmp_path, capsys):
    """The test images' own responses, as a file with ids: the same embeddings and pictures as those
    of `braingen reconstruct`.
    """
    expected = drawn(words)
    recons = Path(words[1]) / "reconstructions" / "brain"
    config = load_config(*parse_overrides(words))
    layout = Layout.of(config.data.root)
    trials, betas = test_trials(layout, 1).table, Betas.of(layout, 1)
    np.savez(
        tmp_path / "mine.npz",
        voxels=betas.rows(trials["trial"].to_numpy()),
        ids=trials["image"].to_numpy(),
    )
    assert main(["decode", *words, "--voxels", str(tmp_path / "mine.npz")]) == 0
    folder = Path(words[1]) / "decoded" / "mine"
    assert str(folder) in capsys.readouterr().out
    assert differ(expected, pictures(folder)) == 0
    read = load_file(folder / "embeddings.safetensors")
    for name, rows in load_file(recons / "embeddings.safetensors").items():
        torch.testing.assert_close(read[name], rows, rtol=0, atol=1e-5)
    assert json.loads((folder / "index.json").read_text()) == {"images": read["ids"].tolist()}
    # a saved decoder, without the run and the data; single trials as volumes
    assemble(config, Targets(config)).save_pretrained(tmp_path / "decoder")
    places = load_places(layout, 1)
    save_nifti(
        tmp_path / "single.nii.gz", places.to_volume(betas.rows(np.arange(2)).T), places.affine
    )
    alone = [
        "--decoder",
        str(tmp_path / "decoder"),
        "--folder",
        str(tmp_path / "elsewhere"),
        *words[2:],
    ]
    assert (
        main(["decode", *alone, "--voxels", str(tmp_path / "single.nii.gz"), "--samples", "2"]) == 0
    )
    folder = tmp_path / "elsewhere" / "decoded" / "single"
    assert sorted(path.name for path in folder.glob("*.png")) == ["000000.png", "000001.png"]
    assert set(json.loads((folder / "index.json").read_text())["samples"]) == {"0", "1"}
    # embeddings only, of the npz, with no data folder at all
    bare = [
        *alone,
        "--root",
        str(tmp_path / "nowhere"),
        "--voxels",
        str(tmp_path / "mine.npz"),
        "--no-generate",
    ]
    assert main(["decode", *bare, "--output", str(tmp_path / "bare")]) == 0
    assert not list((tmp_path / "bare").glob("*.png"))
    torch.testing.assert_close(
        load_file(tmp_path / "bare" / "embeddings.safetensors")["image"],
        read["image"],
        rtol=0,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "--voxels FILE"),
        (["--voxels", "gone.npy"], "gone.npy is missing"),
        (["--voxels", "there.txt"], "there.txt ends in '.txt'"),
        (["--voxels", "there.npy", "--subj", "7"], "does not know subject 7"),
        (["--voxels", "there.npy", "--random_fmri"], "generation.source = random has no meaning"),
        (["--voxels", "there.npy", "--decoder", "no_decoder"], "no_decoder is not a saved decoder"),
    ],
)
def test_what_cannot_be_decoded_is_said_before_anything_is_written(
    words, capsys, monkeypatch, tmp_path, more, sentence
):
    np.save(tmp_path / "there.npy", np.zeros(3))
    monkeypatch.chdir(tmp_path)
    assert main(["decode", *words, *more]) == 2
    assert sentence in capsys.readouterr().err
    assert not (Path(words[1]) / "decoded").exists()


@pytest.mark.parametrize("path", ["gone.npy", "there.txt"])
def test_a_wrong_path_of_voxels_is_told_before_the_decoder_is_loaded(
    capsys, monkeypatch, tmp_path, path
):
    loaded: list[Config] = []
    monkeypatch.setattr(
        "braingen.generation.decode.read_encoders", lambda config, *_, **__: loaded.append(config)
    )
    assert main(["decode", "--folder", str(tmp_path), "--voxels", str(tmp_path / path)]) == 2
    assert path in capsys.readouterr().err and not loaded
