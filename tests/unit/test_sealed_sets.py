"""NSD-synthetic and NSD-imagery: read as they lie beside the raw release, and never trained on."""

from __future__ import annotations

import json
from pathlib import Path
import shutil
from typing import NamedTuple

import numpy as np
import pytest
from unit.fake_raw import CUES, SealedTruth, add_sealed_sets, write_fake_raw

from braingen.cli import main
from braingen.commands import all_commands
from braingen.config import load_config
from braingen.data import nsd
from braingen.data.betas import Betas
from braingen.data.checks import check_before_training
from braingen.data.pictures import fit_picture
from braingen.data.prepare import images
from braingen.data.raw_nsd.release import RawNSD
from braingen.data.raw_nsd.test_sets import NSDSynthetic
from braingen.data.sealed import SEALED_SETS, is_sealed, training_root
from braingen.data.sealed_runs import at_test_set, at_training_data
from braingen.data.stimuli import Stimuli
from braingen.data.trials import group_repeats, test_trials, train_trials
from braingen.data.volumes import load_places, read_regions
from braingen.data.voxel_file import load_responses
from braingen.data.zscore import load_statistics, percent_signal
from braingen.evaluation import evaluate as evaluation
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.training.diffusion import finetune
from braingen.training.encoder import train

FIRST = {"visA": 0, "imgA_1": 144, "visB": 192, "imgB_1": 336, "imgA_2": 576, "imgB_2": 624}
"""First row of the betas of every run with pictures."""


SIDE = 16
"""Of the pictures that are written."""


class Made(NamedTuple):
    raw: RawNSD
    truth: SealedTruth
    root: Path
    """Of the data folder."""

    def layout(self, name: str) -> Layout:
        return Layout.of(self.root / "test_sets" / name)


def prepare(raw: RawNSD, root: Path, name: str) -> int:
    return main(
        [
            "prepare",
            "--scans",
            str(raw.root),
            "--data_path",
            str(root),
            "--test_set",
            name,
            "--kind",
            "nsd",
        ]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    base = tmp_path_factory.mktemp("sealed")
    raw = write_fake_raw(base)
    truth = add_sealed_sets(raw, 1)
    with pytest.MonkeyPatch.context() as patch:  # 732 pictures of full size take seconds
        patch.setattr(images, "PICTURE_SIDE", SIDE)
        for name in SEALED_SETS:
            assert prepare(raw, base / "data", name) == 0
    return Made(raw, truth, base / "data")


def raw_integers(layout: Layout) -> np.ndarray:
    """V x T: what the release holds, got back from z-scored betas and the numbers kept with
    them.
    """
    betas, rows = Betas.of(layout, 1), np.arange(Betas.of(layout, 1).trials)
    return (
        np.rint(percent_signal(betas.rows(rows), rows, load_statistics(layout, 1)) * 300)
        .astype(np.int16)
        .T
    )


@pytest.mark.slow
def test_responses_of_nsd_synthetic_are_those_of_the_file_in_the_order_of_its_trials(made):
    layout = made.layout("nsdsynthetic")
    expected = load_places(layout, 1).to_vector(made.truth.synthetic_xyzT)
    np.testing.assert_array_equal(raw_integers(layout), expected)
    table = test_trials(layout, 1).table
    np.testing.assert_array_equal(table["trial"], np.arange(744))
    np.testing.assert_array_equal(
        table["image"], made.truth.synthetic_T
    )  # subject 1's own pictures follow the shared ones


@pytest.mark.slow
def test_pictures_of_nsd_synthetic_are_shared_ones_and_sixty_four_of_every_subject(made):
    stimuli = Stimuli(made.layout("nsdsynthetic"))
    assert len(stimuli) == 220 + 8 * 64 and stimuli.data_name == "NSD-synthetic"
    for image, (part, place) in {
        0: (0, 0),
        219: (0, 219),
        220: (1, 0),
        283: (1, 63),
        284: (2, 0),
        731: (8, 63),
    }.items():
        expected = fit_picture(made.truth.pictures[part][place], SIDE).astype(np.float32) / 255
        np.testing.assert_allclose(stimuli.images(np.array([image]))[0], expected, atol=1e-3)


def test_colours_of_another_subject_have_ids_of_their_own(tmp_path):
    raw = write_fake_raw(tmp_path)
    shutil.copytree(raw.data(1).parent, raw.data(3).parent)
    truth = add_sealed_sets(raw, 3)
    image = NSDSynthetic(raw.root, raw.version, "nsdgeneral", "C").trials(3, 0)[:, nsd.IMAGE]
    own = truth.synthetic_T >= 220
    np.testing.assert_array_equal(image, truth.synthetic_T + own * 2 * 64)


@pytest.mark.slow
def test_nifti_files_are_read_as_hdf5_files_are(made, tmp_path):
    raw = write_fake_raw(tmp_path)
    add_sealed_sets(raw, 1, "nii.gz")
    assert prepare(raw, tmp_path / "data", "nsdimagery_vision") == 0
    layout = Layout.of(tmp_path / "data" / "test_sets" / "nsdimagery_vision")
    np.testing.assert_array_equal(
        raw_integers(layout), raw_integers(made.layout("nsdimagery_vision"))
    )


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("nsdimagery_vision", ["visA", "visB"]),
        ("nsdimagery_imagery", ["imgA_1", "imgB_1", "imgA_2", "imgB_2"]),
    ],
)
def test_imagery_is_read_from_the_rows_of_its_runs_with_the_pictures_of_the_cues(made, name, runs):
    layout = made.layout(name)
    rows = np.concatenate([FIRST[run] + np.arange(48) for run in runs])
    expected = load_places(layout, 1).to_vector(made.truth.imagery_xyzT)[:, rows]
    np.testing.assert_array_equal(raw_integers(layout), expected)
    letters = [cue for run in runs for cue in made.truth.cues[run]]
    known = CUES["A"] + CUES["B"]
    np.testing.assert_array_equal(
        test_trials(layout, 1).table["image"], [known.index(letter) for letter in letters]
    )
    stimuli = Stimuli(layout)
    assert len(stimuli) == 12
    for image, letter in enumerate(known):
        expected_picture = (
            fit_picture(made.truth.imagery_pictures[letter], SIDE).astype(np.float32) / 255
        )
        np.testing.assert_allclose(
            stimuli.images(np.array([image]))[0], expected_picture, atol=1e-3
        )


@pytest.mark.parametrize("name", SEALED_SETS)
def test_responses_are_z_scored_over_the_set_itself_in_the_mask_of_nsd(made, name):
    layout = made.layout(name)
    betas = Betas.of(layout, 1)
    z = betas.rows(np.arange(betas.trials)).astype(np.float64)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-6)
    np.testing.assert_array_equal(load_places(layout, 1).mask, made.raw.places(1).mask)
    assert {"V1", "early_vis", "nsd_general"} <= set(read_regions(layout, 1))


def test_all_presentations_of_a_sealed_set_are_used(made):
    for name, most in (("nsdimagery_vision", 8), ("nsdimagery_imagery", 16)):
        repeats = group_repeats(test_trials(made.layout(name), 1))
        assert repeats.rows_NR.shape == (12, most) and (repeats.rows_NR >= 0).all()


def test_the_betas_file_of_a_set_can_be_decoded_like_any_file(made):
    layout = made.layout("nsdimagery_imagery")
    betas = Betas.of(layout, 1)
    found = load_responses(layout.betas(1), 1, betas.voxels)
    np.testing.assert_array_equal(found.voxels_NV, betas.rows(np.arange(192)))


def test_a_second_call_does_nothing(made, capsys):
    assert prepare(made.raw, made.root, "nsdsynthetic") == 0
    assert "nothing was done" in capsys.readouterr().out


@pytest.mark.parametrize("name", SEALED_SETS)
def test_a_sealed_set_has_no_training_trials_and_says_so(made, name):
    layout = made.layout(name)
    assert is_sealed(layout) and json.loads(layout.prepared().read_text())["sealed"] is True
    assert training_root(layout.root) == made.root and not list(
        layout.root.glob("wds/subj01/train/*")
    )
    for refused in (
        lambda: train_trials(layout, 1),
        lambda: check_before_training(layout, [1], captions=False),
    ):
        with pytest.raises(
            UserError, match=r"is a sealed test set: .* nothing is trained or chosen on it"
        ):
            refused()


@pytest.mark.parametrize(
    "command",
    sorted(
        name
        for name, each in all_commands().items()
        if not each.takes_test_sets and name != "config"
    ),
)
def test_other_commands_refuse_a_sealed_set(command, capsys):
    choice = all_commands()[command].choices[:1]
    assert main([command, *choice, "data.test_set=nsdsynthetic"]) == 2
    assert f"braingen {command} does not take it" in capsys.readouterr().err


def test_training_refuses_a_sealed_set_from_python_too(tmp_path):
    config = load_config(None, {"data.test_set": "nsdsynthetic", "run.folder": str(tmp_path)})
    for refused in (lambda: train(config, "image"), lambda: finetune(config)):
        with pytest.raises(UserError, match="is a sealed test set"):
            refused()
    assert not list(tmp_path.iterdir())


def test_a_run_scores_a_set_in_a_folder_of_its_own_with_its_encoders(made, tmp_path):
    given = {
        "data.root": str(made.root),
        "run.folder": str(tmp_path / "run"),
        "data.test_set": "nsdimagery_vision",
    }
    config = at_test_set(load_config(None, given))
    assert config.data.root == made.layout("nsdimagery_vision").root
    assert config.run.folder == tmp_path / "run" / "nsdimagery_vision"
    assert (
        config.run.image == tmp_path / "run" / "image"
        and config.run.finetune == tmp_path / "run" / "finetune"
    )
    assert at_test_set(config) == config and at_training_data(config).data.root == made.root
    with pytest.raises(UserError, match=r"There is no sealed test set .* --test_set nsdsynthetic"):
        at_test_set(
            load_config(None, {"data.root": str(tmp_path), "data.test_set": "nsdsynthetic"})
        )


def test_given_pictures_are_scored_against_the_set_too(made, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate_images", lambda config: config.data.root)
    given = {
        "data.root": str(made.root),
        "run.folder": str(tmp_path),
        "evaluation.all_recons_path": str(tmp_path / "recons.pt"),
    }
    config = load_config(None, given | {"data.test_set": "nsdimagery_imagery"})
    assert evaluation.evaluate(config) == made.layout("nsdimagery_imagery").root


@pytest.mark.parametrize(("key", "value"), [("flattening", "F"), ("mask_sha256", "0")])
def test_a_set_of_other_voxels_than_the_data_folder_is_refused(made, tmp_path, key, value):
    beside = made.layout("nsdimagery_vision").volumes(1) / "order.json"
    given = {
        "data.root": str(made.root),
        "run.folder": str(tmp_path / "run"),
        "data.test_set": "nsdimagery_vision",
    }
    order = Layout.of(made.root).volumes(1) / "order.json"
    order.parent.mkdir(parents=True)
    try:
        order.write_text(beside.read_text())
        at_test_set(load_config(None, given))
        order.write_text(json.dumps(json.loads(beside.read_text()) | {key: value}))
        with pytest.raises(UserError, match=rf"different voxels \({key}\)"):
            at_test_set(load_config(None, given))
    finally:
        shutil.rmtree(order.parent)


@pytest.mark.parametrize(
    ("name", "broken", "sentence"),
    [
        (
            "nsdsynthetic",
            "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat",
            "nsdsynthetic_expdesign.mat",
        ),
        (
            "nsdsynthetic",
            "nsddata_stimuli/stimuli/nsdsynthetic/nsdsynthetic_colorstimuli_subj08.hdf5",
            "colorstimuli_subj08",
        ),
        (
            "nsdimagery_vision",
            "nsddata/bdata/nsdimagery/nsdimagery_subj01_visB.tsv",
            "subj01_visB.tsv",
        ),
        (
            "nsdimagery_vision",
            "nsddata/experiments/nsdimagery/rawtargetimages/setB/shared0413_nsd30857.png",
            "no shared0413",
        ),
    ],
)
def test_a_missing_file_is_named(tmp_path, capsys, name, broken, sentence):
    raw = write_fake_raw(tmp_path)
    add_sealed_sets(raw, 1)
    (raw.root / broken).unlink()
    assert prepare(raw, tmp_path / "data", name) == 2
    told = capsys.readouterr().err
    assert sentence in told and "NSD's bucket" in told


def test_an_unknown_cue_and_a_cut_file_are_refused(tmp_path, capsys):
    raw = write_fake_raw(tmp_path)
    add_sealed_sets(raw, 1)
    table = raw.root / "nsddata" / "bdata" / "nsdimagery" / "nsdimagery_subj01_visA.tsv"
    text = table.read_text()
    table.write_text(text.replace("\tH\t", "\tQ\t"))
    assert prepare(raw, tmp_path / "data", "nsdimagery_vision") == 2
    assert "48 trials, among them 'Q', which is no cue of a picture" in capsys.readouterr().err
    table.write_text("".join(text.splitlines(keepends=True)[:-1]))
    assert prepare(raw, tmp_path / "data", "nsdimagery_vision") == 2
    assert "visA.tsv has 47 trials" in capsys.readouterr().err


def test_own_scans_and_surfaces_have_no_such_set(tmp_path, capsys):
    raw = write_fake_raw(tmp_path)
    words = [
        "prepare",
        "--scans",
        str(raw.root),
        "--data_path",
        str(tmp_path / "data"),
        "--test_set",
        "nsdsynthetic",
    ]
    assert main([*words, "--space", "fsaverage"]) == 2
    assert "volumes of 1.8 mm only" in capsys.readouterr().err
    assert main([*words, "--kind", "own"]) == 2
    assert "is a set of NSD" in capsys.readouterr().err
