"""Voxels somebody brings along: arrays and files in every form, single trials and repeats, and what
is refused.
"""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from unit.fake_nsd import write_fake_nsd

from braingen.data.volumes import VoxelPlaces, save_nifti, save_places
from braingen.data.voxel_file import Responses, load_responses, responses, with_folders_statistics
from braingen.data.zscore import statistics_path
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

WIDTH, SUBJECT = 41, 1
IDS = np.array([30, 7, 30, 12, 7, 30])


@pytest.fixture
def trials_NV() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, WIDTH)).astype(np.float32)


@pytest.fixture
def layout(tmp_path) -> Layout:
    """A data folder with a mask of as many voxels, flattened in F order."""
    layout, _ = write_fake_nsd(tmp_path / "data")
    mask = np.zeros((6, 7, 8), dtype=bool)
    mask.ravel()[np.random.default_rng(1).choice(mask.size, WIDTH, replace=False)] = True
    affine = np.diag([1.8, 1.8, 1.8, 1.0])
    save_places(layout, SUBJECT, VoxelPlaces(mask, "F", affine, "made up"))
    return layout


def places(layout: Layout) -> VoxelPlaces:
    from braingen.data.volumes import load_places

    return load_places(layout, SUBJECT)


def same(read: Responses, voxels_NV: np.ndarray, ids: np.ndarray) -> None:
    np.testing.assert_array_equal(read.voxels_NV, voxels_NV)
    assert read.voxels_NV.dtype == np.float32 and read.image_N.tolist() == ids.tolist()


# --- arrays ---------------------------------------------------------------------------------------


def test_rows_with_one_id_are_presentations_of_a_picture(trials_NV):
    grouped = responses(trials_NV, SUBJECT, WIDTH, IDS).grouped()
    assert grouped.image_N.tolist() == [7, 12, 30]
    assert grouped.rows_NR.tolist() == [[1, 4, -1], [3, -1, -1], [0, 2, 5]]


def test_without_ids_every_row_is_a_picture(trials_NV):
    grouped = responses(trials_NV, SUBJECT, WIDTH).grouped()
    assert grouped.image_N.tolist() == list(range(6)) and grouped.rows_NR.shape == (6, 1)
    same(responses(trials_NV[2], SUBJECT, WIDTH), trials_NV[2:3], np.array([0]))


def test_repeats_may_lie_along_an_axis_of_their_own_and_be_absent(trials_NV):
    given = trials_NV.reshape(2, 3, WIDTH).copy()
    given[1, 1] = np.nan
    read = responses(given, SUBJECT, WIDTH, np.array([9, 4]))
    same(read, trials_NV[[0, 1, 2, 3, 5]], np.array([9, 9, 9, 4, 4]))
    assert read.grouped().rows_NR.tolist() == [[3, 4, -1], [0, 1, 2]]
    given[1] = np.nan
    with pytest.raises(UserError, match=r"no presentation of image 4 \(all NaN\)"):
        responses(given, SUBJECT, WIDTH, np.array([9, 4]))


@pytest.mark.parametrize(
    ("given", "ids", "sentence"),
    [
        (
            np.zeros((2, 15724)),
            None,
            r"15724 voxels \(so many has NSD subject 1\), subject 1 has 41",
        ),
        (np.zeros((2, WIDTH)), np.arange(3), "names 3 pictures, voxels is of 2"),
        (np.zeros((2, WIDTH)), np.array([0.5, 1]), "no whole numbers"),
        (np.full((2, WIDTH), np.inf), None, "inf at row 0, voxel 0"),
        (np.full((2, WIDTH), np.nan), None, "nan at row 0"),
        (np.zeros((1, 1, 2, WIDTH)), None, "expected real numbers"),
        (np.zeros((0, WIDTH)), None, "expected real numbers"),
        (np.array([["a"] * WIDTH]), None, "expected real numbers"),
    ],
)
def test_what_is_no_response_is_refused(given, ids, sentence):
    with pytest.raises(UserError, match=sentence):
        responses(given, SUBJECT, WIDTH, ids)


# --- files ----------------------------------------------------------------------------------------


def test_every_form_of_file_is_read(tmp_path, trials_NV, layout):
    np.save(tmp_path / "plain.npy", trials_NV)
    same(load_responses(tmp_path / "plain.npy", SUBJECT, WIDTH), trials_NV, np.arange(6))
    np.save(tmp_path / "beside.npy", trials_NV.astype(np.float64))
    np.save(tmp_path / "beside_ids.npy", IDS)
    same(load_responses(str(tmp_path / "beside.npy"), SUBJECT, WIDTH), trials_NV, IDS)
    np.savez(tmp_path / "named.npz", voxels=trials_NV, image_ids=IDS)
    same(load_responses(tmp_path / "named.npz", SUBJECT, WIDTH), trials_NV, IDS)
    for name, key in (("a.h5", "voxels"), ("b.hdf5", "betas")):
        with h5py.File(tmp_path / name, "w") as file:
            file[key], file["ids"], file["unrelated"] = trials_NV, IDS, np.zeros((3, 3))
        same(load_responses(tmp_path / name, SUBJECT, WIDTH), trials_NV, IDS)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_volumes_are_read_through_the_subjects_mask(tmp_path, trials_NV, layout, suffix):
    where = places(layout)
    save_nifti(tmp_path / f"many{suffix}", where.to_volume(trials_NV.T), where.affine)
    same(
        load_responses(tmp_path / f"many{suffix}", SUBJECT, WIDTH, layout), trials_NV, np.arange(6)
    )
    np.save(tmp_path / "many_ids.npy", IDS)
    same(load_responses(tmp_path / f"many{suffix}", SUBJECT, WIDTH, layout), trials_NV, IDS)
    where.write(tmp_path / f"one{suffix}", trials_NV[0])
    same(
        load_responses(tmp_path / f"one{suffix}", SUBJECT, WIDTH, layout),
        trials_NV[:1],
        np.array([0]),
    )
    with pytest.raises(UserError, match="name the data folder with the subject's mask"):
        load_responses(tmp_path / f"one{suffix}", SUBJECT, WIDTH)
    shifted = where.affine.copy()
    shifted[0, 3] += 5
    save_nifti(tmp_path / f"shifted{suffix}", where.to_volume(trials_NV[0]), shifted)
    with pytest.raises(UserError, match="it is in another space"):
        load_responses(tmp_path / f"shifted{suffix}", SUBJECT, WIDTH, layout)


def test_what_is_no_file_of_voxels_is_refused_in_a_sentence(tmp_path, trials_NV):
    np.savez(tmp_path / "other.npz", pictures=np.zeros((2, 3)))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "table.csv").write_text("1,2")
    for name, sentence in {
        "other.npz": r"holds no voxels .* it holds pictures \(2, 3\)",
        "cut.npy": "cannot be read as .npy",
        "cut.npz": "cannot be read as .npz",
        "cut.h5": "cannot be read as .h5",
        "table.csv": "ends in '.csv'; allowed are .*.npy",
        "nothing.npy": "is missing",
    }.items():
        with pytest.raises(UserError, match=sentence) as caught:
            load_responses(tmp_path / name, SUBJECT, WIDTH)
        assert "\n" not in str(caught.value)


# --- scale ----------------------------------------------------------------------------------------

NOISE = np.random.default_rng(3).standard_normal((60, WIDTH))
ODD = {
    "raw integers": (NOISE * 150 + 700).astype(np.int16),
    "zeros": np.zeros((60, WIDTH)),
    "percent signal change": NOISE * 4 + 1.5,
    "ten times": NOISE * 10,
    "a tenth": NOISE / 10,
    "one value": np.full((60, WIDTH), 0.1),
    "probabilities": np.abs(NOISE) / 4 + 0.5,
    "a row of zeros": np.where(np.arange(60)[:, None] == 0, 0, NOISE),
}


@pytest.mark.parametrize("rows", [1, 3, 60])
@pytest.mark.parametrize("name", ODD)
def test_responses_that_are_not_z_scored_are_warned_of(tmp_path, caplog, layout, name, rows):
    voxels = ODD[name][:rows]
    responses(voxels, SUBJECT, WIDTH)
    assert "z-scored" in caplog.text and "standard deviation" in caplog.text
    for ending in (".npy", ".npz", ".h5", ".nii.gz"):
        caplog.clear()
        path = tmp_path / f"given{ending}"
        if ending == ".npy":
            np.save(path, voxels)
        elif ending == ".npz":
            np.savez(path, voxels=voxels)
        elif ending == ".h5":
            with h5py.File(path, "w") as file:
                file["voxels"] = voxels
        else:
            places(layout).write(path, np.asarray(voxels, dtype=np.float32).T)
        load_responses(path, SUBJECT, WIDTH, layout)
        assert f"given{ending}: " in caplog.text and "z-scored" in caplog.text


@pytest.mark.parametrize("rows", [1, 3, 60])
def test_z_scored_responses_and_their_averages_are_taken_without_a_word(caplog, rows):
    for voxels in (NOISE, NOISE / np.sqrt(3), NOISE * 1.5, NOISE.reshape(20, 3, WIDTH)):
        responses(voxels[:rows], SUBJECT, WIDTH)
    assert not caplog.text


def test_numbers_that_float32_cannot_hold_are_refused():
    with pytest.raises(UserError, match="has inf at row 0"):
        responses(np.full((1, WIDTH), 1e300), SUBJECT, WIDTH)


# --- units ----------------------------------------------------------------------------------------


def test_the_folders_mean_and_spread_bring_them_back(layout, caplog):
    z_NV = np.random.default_rng(3).standard_normal((40, WIDTH)).astype(np.float32)
    mean_SV, sd_SV = np.full((2, WIDTH), 300.0), np.full((2, WIDTH), 50.0)
    np.savez(
        statistics_path(layout, SUBJECT),
        mean_SV=mean_SV,
        sd_SV=sd_SV,
        session_T=np.zeros(4, np.int16),
    )
    given = with_folders_statistics(
        responses(z_NV * 50 + 300, SUBJECT, WIDTH, zscored=False), layout, SUBJECT
    )
    np.testing.assert_allclose(given.voxels_NV, z_NV, atol=1e-5)
    assert not caplog.records
    responses(z_NV * 50 + 300, SUBJECT, WIDTH)
    assert "decode.zscore=folder" in caplog.text
    with pytest.raises(UserError, match=f"have 9 voxels, .* keeps mean and spread of {WIDTH}"):
        with_folders_statistics(responses(z_NV[:, :9], SUBJECT, 9), layout, SUBJECT)
