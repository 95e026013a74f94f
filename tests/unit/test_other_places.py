"""Own scans that tell of another picture, place or person than is meant: told, or refused."""

from __future__ import annotations

from pathlib import Path
import re
import shutil
import subprocess
import sys

import h5py
import nibabel
import numpy as np
import pandas as pd
from PIL import Image
import pytest
import scipy.io
from unit.fake_scans import AFFINE, NAMES, FakeScans, save, write_fake_scans
from unit.test_field_slips import events, refused, run, same

from braingen.data.ingest.identity import Identity
from braingen.data.ingest.stimuli import OwnStimuli


@pytest.fixture
def fake(tmp_path: Path) -> FakeScans:
    return write_fake_scans(tmp_path / "scans", subjects=("01",))


@pytest.mark.parametrize("written", ["stimuli/{}", "{}", "upper", "stem"])
@pytest.mark.slow
def test_a_list_of_test_pictures_may_write_them_differently(fake, written):
    events(fake, lambda table: table.drop(columns="split"))
    names = [
        {"upper": name.upper(), "stem": name.removesuffix(".png")}.get(written)
        or written.format(name)
        for name in NAMES[:3]
    ]
    (fake.root / "tests.txt").write_text("\n".join(names), encoding="utf-8")
    assert run(fake, "--test_images", str(fake.root / "tests.txt")) == 0
    pictures = Identity(fake.root.parent / "data").pictures
    assert {name for name, known in pictures.items() if known.side == "test"} == set(NAMES[:3])


@pytest.mark.slow
def test_listed_pictures_that_nobody_was_shown_are_told(fake, capsys):
    events(fake, lambda table: table.drop(columns="split"))
    Image.fromarray(np.full((9, 9, 3), 3, np.uint8)).save(fake.root / "stimuli" / "never.png")
    tests = fake.root / "tests.txt"
    tests.write_text("never.png\n", encoding="utf-8")
    assert "No event shows a picture of" in refused(fake, capsys, "--test_images", str(tests))
    tests.write_text(f"never.png\n{NAMES[0]}\n", encoding="utf-8")
    assert run(fake, "--test_images", str(tests)) == 0
    assert "tests.txt lists 1 pictures that no event shows (never.png)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["c8", [("R", "u1"), ("G", "u1"), ("B", "u1")]])
@pytest.mark.parametrize("name", ["betas", "mask"])
def test_volumes_of_no_real_numbers_are_refused(fake, capsys, name, kind):
    for path in fake.root.rglob(f"*_{name}.nii.gz"):
        shape = nibabel.load(path).shape
        nibabel.save(nibabel.Nifti1Image(np.zeros(shape, kind), AFFINE), path)
    assert "real numbers were expected" in refused(fake, capsys)


@pytest.mark.slow
def test_a_header_with_two_places_is_told(fake, capsys):
    for path in fake.root.rglob("*_betas.nii.gz"):
        image = nibabel.load(path)
        other = nibabel.Nifti1Image(np.asarray(image.dataobj), AFFINE)
        other.set_sform(AFFINE, 1)
        other.set_qform(np.diag([-2.0, 2, 2, 1]), 1)
        nibabel.save(other, path)
    assert run(fake) == 0
    said = capsys.readouterr().out
    assert "its sform is taken" in said and "mm apart, axis x is flipped" in said
    same(fake)


@pytest.mark.parametrize("form", ["v5", "v7.3"])
@pytest.mark.slow
def test_the_line_that_converts_a_matlab_file_names_its_variable(fake, capsys, form):
    for path in fake.root.rglob("*_betas.nii.gz"):
        there = path.with_name("TYPED_FITHRF_GLMDENOISE_RR.mat")
        volume = np.asarray(nibabel.load(path).dataobj)
        if form == "v5":
            scipy.io.savemat(there, {"R2": np.zeros((50, 60, 40)), "modelmd": volume})
        else:
            with h5py.File(there, "w") as file:
                file["R2"], file["modelmd"] = np.zeros((40, 60, 50)), volume.T
        path.unlink()
    line = re.search(r'python -c "(.*?)" \(', refused(fake, capsys))
    for path in list(fake.root.rglob("*.mat")):
        subprocess.run([sys.executable, "-c", line[1]], cwd=path.parent, check=True)
    assert run(fake) == 0
    same(fake)


def test_pictures_that_matlab_wrote_do_not_lie_on_their_side(fake, capsys):
    with h5py.File(fake.root / "stimuli" / "all.hdf5", "w") as file:
        file["all"] = np.zeros((12, 3, 30, 20), np.uint8)
        file["all"].attrs["MATLAB_class"] = np.bytes_("uint8")
    events(fake, lambda t: t.assign(stim_file=t.stim_file.map(row_of, na_action="ignore")))
    assert "written by Matlab, whose HDF5 has its axes in reverse" in refused(fake, capsys)


def row_of(name: str) -> str:
    return f"all.hdf5#{NAMES.index(name)}"


@pytest.mark.parametrize("kind", [np.float32, np.uint16, np.int64, np.uint8])
def test_a_dark_picture_of_an_array_stays_dark(tmp_path, kind):
    pictures = np.full((3, 8, 9, 3), 200, np.uint8)
    pictures[1] = 1
    (tmp_path / "stimuli").mkdir()
    np.save(tmp_path / "stimuli" / "all.npy", pictures.astype(kind))
    stimuli = OwnStimuli(tmp_path, None, "grey")
    rows = stimuli.find({f"all.npy#{row}": tmp_path / "events.tsv" for row in range(3)})
    assert [int(stimuli.load(row).picture_HW3.max()) for row in rows] == [200, 1, 200]


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
@pytest.mark.slow
def test_pictures_of_other_colours_are_told(fake, capsys, mode):
    picture = Image.open(fake.root / "stimuli" / NAMES[0])
    other = picture.convert("CMYK") if mode == "CMYK" else Image.merge("LAB", picture.split())
    other.save(fake.root / "stimuli" / "other.tif")
    events(fake, lambda table: table.replace(NAMES[0], "other.tif"))
    assert run(fake) == 0
    assert "1 pictures are CMYK, LAB, YCbCr or HSV" in capsys.readouterr().out


def beside(fake: FakeScans, form: str, order: np.ndarray, **arrays: list[np.ndarray]) -> None:
    """Responses in an order, with vectors of the same order and one that says nothing."""
    for session, path in enumerate(sorted(fake.root.rglob("*_betas.nii.gz"))):
        stem, found = path.name.removesuffix(".nii.gz"), fake.responses["01"][session][order]
        vectors = {name: values[session][order] for name, values in arrays.items()}
        there = path.with_name(f"{stem}.{form}")
        if form == "npz":
            np.savez(there, betas=found, quality=np.zeros(12), **vectors)
        else:
            with h5py.File(there, "w") as file:
                file["betas"], file["quality"] = found, np.zeros(12)
                for name, values in vectors.items():
                    file[name] = values.astype(object if values.dtype.kind == "U" else values.dtype)
        path.unlink()


@pytest.mark.parametrize("form", ["npz", "hdf5"])
@pytest.mark.parametrize("name", ["stim_file", "image_ids"])
@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.slow
def test_an_order_of_trials_beside_the_responses_counts(fake, capsys, form, name, sound):
    shown = [np.array(order) for order in fake.shown["01"]]
    if name == "image_ids":  # every picture once a session: only both sessions contradict
        shown = [np.array([NAMES.index(each) for each in order]) for order in shown]
    order = np.arange(12) if sound else np.random.default_rng(0).permutation(12)
    beside(fake, form, order, **{name: shown})
    if sound:
        assert run(fake) == 0
        said = capsys.readouterr().out
        assert "its own order of conditions agrees with the events" in said
        assert "arrays beside `betas` that are not used: quality" in said
        same(fake)
    else:
        found = refused(fake, capsys)
        assert re.search(rf"\(`{name}` of the file\) contradict the pictures of the events", found)


@pytest.mark.slow
def test_conditions_none_of_which_repeats_are_not_said_to_agree(fake, capsys):
    codes = [np.arange(12), np.arange(12)]
    beside(fake, "npz", np.random.default_rng(0).permutation(12), condition=codes)
    assert run(fake) == 0
    said = capsys.readouterr().out
    assert "`condition` of the file cannot be compared with the events: none repeats" in said
    assert "agrees with the events" not in said


@pytest.mark.slow
def test_arrays_masked_each_by_its_own_mask_are_refused(fake, capsys):
    whole = fake.root / "sub-01" / "sub-01_mask.nii.gz"
    for session, path in enumerate(sorted(fake.root.rglob("*_betas.nii.gz")), start=1):
        name = path.name.replace(".nii.gz", ".npy")
        save(path.with_name(name), fake.responses["01"][session - 1], fake.mask)
        path.unlink()
        own = np.roll(fake.mask, session - 1, axis=0).astype(np.uint8)
        there = path.with_name(f"sub-01_ses-{session}_mask.nii.gz")
        nibabel.save(nibabel.Nifti1Image(own, AFFINE), there)
    shutil.move(whole, fake.root.parent / "whole.nii.gz")
    assert "a column would be another voxel in other files" in refused(fake, capsys)
    assert run(fake, "--mask", str(fake.root.parent / "whole.nii.gz")) == 0
    same(fake)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("TYPEA_ONOFF.npy", "TYPEA has one map for all trials"),
        ("beta_0001.nii", "these are SPM's maps; where each is one trial"),
        ("cope1.nii.gz", "these are FSL's maps"),
        ("LSS.look+orig.HEAD", "3dAFNItoNIFTI"),
    ],
)
def test_maps_of_other_programs_are_named(fake, capsys, name, told):
    for path in fake.root.rglob("*_betas.nii.gz"):
        path.rename(path.with_name(name))
    assert told in refused(fake, capsys)


@pytest.mark.parametrize("name", ["Sub-02", "SUB-02", "sub02", "subject_2", "Subj 2"])
def test_a_person_whose_folder_is_named_otherwise_is_not_taken_for_another(fake, capsys, name):
    """Without a label its sessions would be further sessions of the only subject."""
    for path in sorted((fake.root / "sub-01").rglob("*_ses-2_*")):
        there = Path(str(path).replace("sub-01", name, 1)).with_name(
            path.name.replace("sub-01_", "")
        )
        there.parent.mkdir(parents=True, exist_ok=True)
        path.rename(there)
    assert re.search(r"seems to be of subject 0?2 .* rename it", refused(fake, capsys))


@pytest.mark.parametrize("name", ["sub01", "subject1"])
@pytest.mark.slow
def test_the_same_person_under_another_name_is_known(fake, name):
    for path in sorted(fake.root.rglob("*_betas.nii.gz")):
        there = fake.root / "glm" / name / path.name.replace("sub-01_", "")
        there.parent.mkdir(parents=True, exist_ok=True)
        path.rename(there)
    assert run(fake) == 0
    same(fake)


@pytest.mark.slow
def test_runs_whose_times_are_not_in_the_order_of_their_labels_are_told(fake, capsys):
    runs = {1: "10:00:00", 2: "09:00:00"}
    lines = [
        f"func/sub-01_ses-1_task-look_run-{k}_bold.nii.gz\t2024-01-01T{t}" for k, t in runs.items()
    ]
    there = fake.root / "sub-01" / "ses-1" / "sub-01_ses-1_scans.tsv"
    there.write_text("\n".join(["filename\tacq_time", *lines]) + "\n", encoding="utf-8")
    assert run(fake) == 0
    assert "are taken in the order of acquisition" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["session", "run"])
def test_a_trial_table_with_an_empty_session_or_run_is_refused(fake, capsys, column):
    rows = [
        {"subject": "01", "session": k + 1, "run": 1, "image": name}
        for k, order in enumerate(fake.shown["01"])
        for name in order
    ]
    for path in fake.root.rglob("*_events.tsv"):
        path.unlink()
    table = pd.DataFrame(rows).astype("object")
    table.loc[3, column] = None
    table.to_csv(fake.root / "trials.csv", index=False)
    assert f"{column} is empty in line 5 (1 such)" in refused(fake, capsys)
