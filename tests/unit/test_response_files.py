"""`decode` reads every form that `prepare` reads, at the columns of the data folder."""

from __future__ import annotations

import importlib
from pathlib import Path
import pkgutil
import re

import nibabel
import numpy as np
import pytest
from scipy.io import savemat
from unit.fake_forms import FORMS as WRITERS
from unit.fake_forms import volume
from unit.fake_scans import FakeScans, write_fake_scans

from braingen.cli import main
from braingen.data.betas import Betas
from braingen.data.ingest import forms
from braingen.data.places import kept_columns
from braingen.data.voxel_file import load_responses, with_folders_statistics
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError


def prepared(fake: FakeScans, *more: str) -> Layout:
    root = fake.root.parent / "data"
    assert main(["prepare", "--scans", str(fake.root), "--data_path", str(root), *more]) == 0
    return Layout.of(root)


@pytest.fixture
def fake(tmp_path: Path) -> FakeScans:
    return write_fake_scans(tmp_path / "scans", subjects=("01",), sessions=1)


def decoded(layout: Layout, path: Path) -> np.ndarray:
    """The rows that `decode` takes from a file, in the unit of the file."""
    width = Betas.of(layout, 1).voxels
    return load_responses(path, 1, width, layout, zscored=False).voxels_NV


def as_responses(fake: FakeScans) -> Path:
    return next(path for path in fake.root.rglob("*_betas.*"))


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.slow
def test_what_was_prepared_is_decoded_from_the_same_file(fake, writer):
    response = fake.responses["01"][0]
    response[3, 2] = np.nan  # a voxel that the folder leaves out
    writer(fake, as_responses(fake), response)
    layout = prepared(fake, "--no-captions")
    paths = sorted(fake.root.rglob("*_betas.*"))
    kept = np.arange(response.shape[1]) != 2
    if len(paths) > 1:  # a file per trial is decoded trial by trial
        by_number = sorted(paths, key=lambda path: int(re.findall(r"trial(\d+)", path.name)[0]))
        found = np.concatenate([decoded(layout, path) for path in by_number])
    elif writer.__name__ in ("as_npz", "as_other_dataset"):
        return  # under other names than `voxels`: which array is meant, decode cannot know
    else:
        found = decoded(layout, paths[0])
    np.testing.assert_allclose(found, response[:, kept], rtol=1e-5, atol=1e-5)
    again = with_folders_statistics(
        load_responses(paths[0], 1, int(kept.sum()), layout, zscored=False), layout, 1
    )
    expected = Betas.of(layout, 1).rows(np.arange(len(again.voxels_NV)))
    if len(paths) == 1:
        np.testing.assert_allclose(again.voxels_NV, expected, atol=1e-4)


def surface(fake: FakeScans, form: str) -> list[np.ndarray]:
    """Responses of 10 vertices a hemisphere instead of the volume; one of the right is dead."""
    stem = fake.root / "sub-01" / "ses-1" / "func" / "sub-01_ses-1_task-look"
    as_responses(fake).unlink()
    for path in fake.root.rglob("*_mask.nii.gz"):
        path.unlink()
    both = [np.random.default_rng(seed).normal(size=(12, 10)).astype(np.float32) for seed in (0, 1)]
    both[1][:, 4] = 1
    for side, response in zip("LR", both):
        name = f"{stem.name}_hemi-{side}_betas"
        if form == "gifti":
            arrays = [nibabel.gifti.GiftiDataArray(row, "NIFTI_INTENT_NONE") for row in response]
            image = nibabel.gifti.GiftiImage(darrays=arrays)
            nibabel.save(image, stem.with_name(f"{name}.func.gii"))
        else:
            block = np.ascontiguousarray(response.T).reshape(10, 1, 1, 12)
            nibabel.save(nibabel.MGHImage(block, np.eye(4)), stem.with_name(f"{name}.mgz"))
    return both


@pytest.mark.parametrize("form", ["gifti", "mgh"])
def test_hemispheres_are_joined_and_put_on_the_vertices_of_the_folder(fake, form, tmp_path):
    both = surface(fake, form)
    layout = prepared(fake, "--no-captions")
    left, right = sorted(fake.root.rglob("*_betas.*"))
    whole = np.delete(np.concatenate(both, axis=1), 14, axis=1)
    for path in (left, right):
        np.testing.assert_allclose(decoded(layout, path), whole, atol=1e-5)
    right.rename(tmp_path / right.name)
    with pytest.raises(UserError, match=f"put the other one beside it, as {right.name}"):
        decoded(layout, left)


def test_grayordinates_below_the_cortex_keep_their_place(fake):
    response = np.random.default_rng(0).normal(size=(12, 9)).astype(np.float32)
    response[2, 7] = np.nan
    brain = nibabel.cifti2.BrainModelAxis.from_surface([0, 2, 3], 5, "CortexLeft")
    brain += nibabel.cifti2.BrainModelAxis.from_surface([1, 4], 5, "CortexRight")
    below = np.ones((2, 2, 1))
    brain += nibabel.cifti2.BrainModelAxis.from_mask(below, "thalamus_left", np.eye(4))
    rows = nibabel.cifti2.ScalarAxis([str(k) for k in range(12)])
    path = as_responses(fake)
    path.unlink()
    for mask in fake.root.rglob("*_mask.nii.gz"):
        mask.unlink()
    path = path.with_name("sub-01_ses-1_task-look_betas.dscalar.nii")
    nibabel.save(nibabel.Cifti2Image(response, header=(rows, brain)), path)
    layout = prepared(fake, "--no-captions")
    np.testing.assert_allclose(decoded(layout, path), np.delete(response, 7, axis=1), atol=1e-6)


@pytest.mark.slow
def test_what_does_not_fit_the_folder_is_refused(fake, tmp_path):
    path = as_responses(fake)
    layout = prepared(fake, "--no-captions")
    other = tmp_path / "x_hemi-L.func.gii"
    arrays = [nibabel.gifti.GiftiDataArray(np.zeros(7, np.float32), "NIFTI_INTENT_NONE")]
    nibabel.save(nibabel.gifti.GiftiImage(darrays=arrays), other)
    savemat(tmp_path / "x.mat", {"betas": np.zeros(3)})
    np.save(tmp_path / "xyzt.npy", volume(fake, fake.responses["01"][0])[1:])
    for name, sentence in {
        other.name: "has 7 voxels, subject 1 has",
        "x.mat": "is a Matlab file",
        "xyzt.npy": r"they have shape \(4, 6, 4\) and \(5, 6, 4\); resample",
    }.items():
        with pytest.raises(UserError, match=sentence):
            decoded(layout, tmp_path / name)
    with pytest.raises(UserError, match="name the data folder of subject 1"):
        load_responses(other, 1, 7)
    assert load_responses(path, 1, Betas.of(layout, 1).voxels, layout, zscored=False).voxels


def test_columns_that_are_left_out_are_known_again(fake):
    response = fake.responses["01"][0]
    response[:, 5] = 0  # no signal
    path = as_responses(fake)
    path.unlink()
    np.save(path.with_name("sub-01_ses-1_task-look_betas.npy"), response)
    for mask in fake.root.rglob("*_mask.nii.gz"):
        mask.unlink()
    cortex = np.arange(response.shape[1]) > 1
    np.save(fake.root / "cortex.npy", cortex)
    layout = prepared(fake, "--no-captions", "--mask", str(fake.root / "cortex.npy"))
    cortex[5] = False
    kept = kept_columns(layout, 1, response.shape[1])
    assert kept is not None and kept.tolist() == np.flatnonzero(cortex).tolist()
    found = decoded(layout, path.with_name("sub-01_ses-1_task-look_betas.npy"))
    np.testing.assert_allclose(found, response[:, cortex], atol=1e-5)


def test_units_are_compared_with_those_of_training(fake, caplog):
    layout = prepared(fake, "--no-captions", "--zscore", "none")
    path, width = as_responses(fake), Betas.of(layout, 1).voxels
    load_responses(path, 1, width, layout)
    assert not caplog.text  # the unit of the scans, in which the encoder is trained
    np.save(fake.root / "z.npy", np.random.default_rng(0).normal(size=(30, width)) * 30 + 500)
    load_responses(fake.root / "z.npy", 1, width, layout)
    assert "in units of the betas the encoder was trained with, which were not z-scored" in (
        caplog.text
    )


def test_every_reader_stands_in_the_registry():
    named = {form.where for form in forms.FORMS.values()}
    read_by_content = {"bdpy:read_bdpy", "volumes:read_single_maps", "arrays:read_npz"}
    for module in pkgutil.iter_modules(forms.__path__):
        loaded = importlib.import_module(f"{forms.__name__}.{module.name}")
        for name in vars(loaded):
            where = f"{loaded.__name__}:{name}"
            own = name.startswith("read_") and vars(loaded)[name].__module__ == loaded.__name__
            known = f"{module.name}:{name}" in read_by_content or where in named
            assert not own or known, f"{where} is in no line of FORMS"
    for title in forms.FORMS:
        assert callable(forms.reader_of(title))


def test_a_line_that_names_no_reader_is_an_error(monkeypatch):
    monkeypatch.setitem(forms.FORMS, "new", forms.Form((".new",), "braingen.nothing:read_new"))
    with pytest.raises(UserError, match=r"names braingen\.nothing:read_new, which does not exist"):
        forms.reader_of("new")
