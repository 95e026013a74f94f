"""Anybody's own scans under BIDS-style names: the right response beside the right picture, in the
right voxel, in the working layout.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
from nilearn.interfaces.bids import parse_bids_filename
import numpy as np
from PIL import Image
import pytest
from unit.fake_scans import NAMES, write_fake_scans

from braingen.cli import main
from braingen.data.betas import Betas
from braingen.data.checks import check_before_training
from braingen.data.ingest.names import entities_of
from braingen.data.places import ColumnPlaces, load_any_places
from braingen.data.stimuli import Stimuli
from braingen.data.trials import test_trials, train_trials
from braingen.data.volumes import ALIGNED, MNI, load_places, read_regions
from braingen.data.zscore import load_statistics, percent_signal
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError


def run(scans: Path, root: Path, *more: str) -> Layout:
    assert main(["prepare", "--scans", str(scans), "--data_path", str(root), *more]) == 0
    return Layout.of(root)


@pytest.mark.parametrize("form", ["nii.gz", "npy", "hdf5"])
@pytest.mark.slow
def test_every_response_stands_beside_its_picture(tmp_path, form):
    fake = write_fake_scans(tmp_path / "scans", form=form)
    layout = run(fake.root, tmp_path / "NSD", "--subj", "1,2")
    assert len(check_before_training(layout, [1, 2])) == 0
    for subject, label in ((1, "01"), (2, "02")):
        betas, statistics = Betas.of(layout, subject), load_statistics(layout, subject)
        rows = np.arange(betas.trials)
        back = percent_signal(betas.rows(rows), rows, statistics)
        np.testing.assert_allclose(
            back, np.concatenate(fake.responses[label]), rtol=1e-5, atol=1e-5
        )
        shown = [name for order in fake.shown[label] for name in order]
        for trials, testing in (
            (train_trials(layout, subject), False),
            (test_trials(layout, subject), True),
        ):
            names = [sorted(NAMES)[image] for image in trials.table["image"]]
            assert names == [name for name in shown if (name in NAMES[:3]) is testing]
            assert [shown[row] for row in trials.table["trial"]] == names
            assert (trials.table["session"] == trials.table["trial"] // len(NAMES)).all()
    places = load_places(layout, 1)
    np.testing.assert_array_equal(places.mask, fake.mask)
    regions = read_regions(layout, 1)
    assert regions["nsd_general"].all() and regions["V1"].any() and not regions["V2"].any()
    np.testing.assert_array_equal(regions["early_vis"], regions["V1"])
    np.testing.assert_array_equal(regions["higher_vis"], ~regions["V1"])


@pytest.mark.slow
def test_a_mask_in_mni_space_is_still_known_to_be_there(tmp_path):
    fake = write_fake_scans(tmp_path / "scans")
    path = fake.root / "sub-01" / "sub-01_mask.nii.gz"
    image = nibabel.load(path)
    image.set_sform(image.affine, code=MNI)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    layout = run(fake.root, tmp_path / "NSD", "--subj", "1,2")
    assert [load_places(layout, subject).space for subject in (1, 2)] == [MNI, ALIGNED]


@pytest.mark.slow
def test_pictures_and_captions_are_those_the_events_name(tmp_path):
    fake = write_fake_scans(tmp_path / "scans")
    layout = run(fake.root, tmp_path / "NSD")
    stimuli, captions = Stimuli(layout), json.loads(layout.captions().read_text())
    for image, name in enumerate(sorted(NAMES)):
        square = (
            Image.open(fake.root / "stimuli" / name)
            .crop((5, 0, 25, 20))
            .resize((224, 224), Image.Resampling.BICUBIC)
        )
        np.testing.assert_array_equal(
            np.rint(stimuli.images(np.array([image]))[0] * 255),
            np.asarray(square).transpose(2, 0, 1),
        )
        assert captions[str(image)] == [f"this is {name}", "a picture"]


@pytest.mark.slow
def test_tables_call_them_own_scans(tmp_path):
    layout = run(write_fake_scans(tmp_path / "scans").root, tmp_path / "NSD")
    assert Stimuli(layout).data_name == "own scans"
    layout.prepared().write_text("{")
    with pytest.raises(UserError, match="is not a manifest"):
        _ = Stimuli(layout).data_name
    layout.prepared().unlink()
    assert Stimuli(layout).data_name == "NSD"


@pytest.mark.slow
def test_test_pictures_may_be_listed_or_drawn(tmp_path):
    fake = write_fake_scans(tmp_path / "scans")
    (tmp_path / "tests.txt").write_text("\n".join(NAMES[5:7]) + "\n")
    layout = run(fake.root, tmp_path / "listed", "--test_images", str(tmp_path / "tests.txt"))
    assert set(test_trials(layout, 1).table["image"]) == {
        sorted(NAMES).index(name) for name in NAMES[5:7]
    }
    for table in fake.root.rglob("*_events.tsv"):
        table.write_text(
            "\n".join(line.rpartition("\t")[0] for line in table.read_text().splitlines()) + "\n"
        )
    drawn = [
        set(
            test_trials(run(fake.root, tmp_path / str(share), "--test_share", str(share)), 1).table[
                "image"
            ]
        )
        for share in (0.2, 0.5)
    ]
    assert [len(found) for found in drawn] == [3, 6] and drawn[0] < drawn[1]


@pytest.mark.slow
def test_arrays_need_no_mask(tmp_path):
    fake = write_fake_scans(tmp_path / "scans", form="npy")
    for mask in fake.root.rglob("*_mask.nii.gz"):
        mask.unlink()
    layout = run(fake.root, tmp_path / "NSD")
    assert load_any_places(layout, 1) == ColumnPlaces(
        fake.responses["01"][0].shape[1], "own scans in scans"
    )
    assert list(read_regions(layout, 1)) == ["nsd_general"]
    rows = np.arange(5)
    back = percent_signal(Betas.of(layout, 1).rows(rows), rows, load_statistics(layout, 1))
    np.testing.assert_allclose(back, fake.responses["01"][0][:5], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_labels_that_are_no_numbers_are_numbered_in_their_order(tmp_path):
    fake = write_fake_scans(tmp_path / "scans", subjects=("anna", "berta"), form="npy")
    layout = run(fake.root, tmp_path / "NSD", "--subj", "2")
    rows = np.arange(5)
    back = percent_signal(Betas.of(layout, 2).rows(rows), rows, load_statistics(layout, 2))
    np.testing.assert_allclose(back, fake.responses["berta"][0][:5], rtol=1e-5, atol=1e-5)


def test_entities_are_read_as_bids_writes_them():
    path = Path("sub-01/ses-nsd10/func/sub-01_ses-nsd10_task-look_run-2_betas.nii.gz")
    assert entities_of(path) == {"sub": "01", "ses": "nsd10", "task": "look", "run": "2"}


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_ses-nsd10_task-look_acq-1p8mm_dir-AP_run-02_betas.nii.gz",
        "sub-AB_task-a+b_hemi-L_space-fsaverage5_den-10k_desc-trial001_betas.func.gii",
        "sub-101_ses-pre_run-1_events.tsv",
    ],
)
def test_entities_are_those_of_nilearns_reader(name):
    found = parse_bids_filename(name)
    if "entities" not in found:
        pytest.skip("this version of nilearn names its entities otherwise")
    assert entities_of(Path(name)) == found["entities"]
