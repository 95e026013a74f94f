"""Voxel vectors and volumes: every voxel returns to its place, bit for bit."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from braingen.data.nsd import VOXELS
from braingen.data.volumes import (
    VoxelPlaces,
    find_order,
    load_label_vector,
    load_places,
    read_regions,
    save_nifti,
    save_order,
    save_places,
)
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

AFFINE = np.array([[1.8, 0, 0, -70], [0, 1.8, 0, -90], [0, 0, 1.8, -60], [0, 0, 0, 1.0]])


def places_of(order: str, seed: int = 0, shape=(7, 6, 5), share: float = 0.4) -> VoxelPlaces:
    return VoxelPlaces(np.random.default_rng(seed).random(shape) < share, order, AFFINE, "test")


@pytest.mark.parametrize("order", ["C", "F"])
def test_flattening_is_that_of_numpy(order):
    places = places_of(order)
    volume = np.random.default_rng(1).random(places.mask.shape)
    assert np.array_equal(
        places.to_vector(volume), volume.ravel(order=order)[places.mask.ravel(order=order)]
    )


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint8, np.int32, bool])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_written_and_read_back_is_the_same_bits(tmp_path, order, dtype, ending):
    places = places_of(order)
    values = (np.random.default_rng(2).standard_normal(places.voxels) * 50).astype(dtype)
    if dtype == np.float32:
        values[:4] = np.nan, np.inf, -0.0, 1e-42
    places.write(tmp_path / f"map{ending}", values, fill=0)
    back = places.read(tmp_path / f"map{ending}")
    assert back.astype(dtype).tobytes() == values.tobytes()


def test_a_map_of_every_voxels_number_returns_each_to_its_place():
    for subject, order in [(1, "C"), (2, "F")]:
        mask = np.zeros((30, 31, 32), dtype=bool)
        mask.ravel()[np.random.default_rng(subject).permutation(mask.size)[: VOXELS[subject]]] = (
            True
        )
        places = VoxelPlaces(mask, order, AFFINE, "")
        number = np.arange(places.voxels)
        volume = places.to_volume(number, fill=-1)
        assert np.array_equal(places.to_vector(volume), number)
        assert (volume >= 0).sum() == VOXELS[subject]
        assert np.array_equal(volume[tuple(places.indices_V3.T)], number)


def test_positions_follow_the_affine():
    places = places_of("F")
    one = places.indices_V3[3]
    assert np.allclose(places.millimetres_V3[3], (AFFINE @ [*one, 1])[:3])


def test_several_maps_at_once(tmp_path):
    places = places_of("C")
    values = np.random.default_rng(0).random((places.voxels, 3)).astype(np.float32)
    places.write(tmp_path / "maps.nii.gz", values)
    assert np.array_equal(places.read(tmp_path / "maps.nii.gz"), values)


def test_equal_volumes_give_equal_files(tmp_path):
    places = places_of("C")
    for name in ("a.nii.gz", "b.nii.gz"):
        places.write(tmp_path / name, np.ones(places.voxels, dtype=np.float32))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize("order", ["C", "F"])
def test_order_is_kept_with_the_data(tmp_path, order):
    layout, places = Layout(tmp_path), places_of(order)
    save_places(layout, 3, places)
    back = load_places(layout, 3)
    assert (
        back.order == order
        and np.array_equal(back.mask, places.mask)
        and np.allclose(back.affine, AFFINE)
    )


def write_regions(layout: Layout, subject: int, places: VoxelPlaces, areas: np.ndarray) -> None:
    save_nifti(layout.volumes(subject) / "nsdgeneral.nii.gz", places.mask, AFFINE)
    save_nifti(layout.volumes(subject) / "prf-visualrois.nii.gz", areas.astype(np.int16), AFFINE)
    labels = places.to_vector(areas)
    with h5py.File(layout.masks(), "w") as file:
        for name, wanted in (("V1", (1, 2)), ("V2", (3, 4)), ("V3", (5, 6)), ("V4", (7,))):
            file[f"subj{subject:02d}/{name}"] = np.isin(labels, wanted)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_unstated_order_is_found_by_the_region_masks(tmp_path, order):
    layout, places = Layout(tmp_path), places_of(order)
    write_regions(layout, 1, places, np.random.default_rng(3).integers(0, 8, places.mask.shape))
    assert load_places(layout, 1).order == order
    assert load_label_vector(layout, 1, "prf-visualrois").max() == 7


def test_an_order_that_cannot_be_told_is_not_guessed(tmp_path):
    layout, places = Layout(tmp_path), places_of("C")
    write_regions(layout, 1, places, np.full(places.mask.shape, 9))
    with pytest.raises(UserError, match="both orders"):
        find_order(layout, 1)
    areas = np.random.default_rng(3).integers(0, 8, places.mask.shape)
    write_regions(layout, 1, places, areas)
    save_nifti(
        layout.volumes(1) / "prf-visualrois.nii.gz",
        np.roll(areas, 1, axis=0).astype(np.int16),
        AFFINE,
    )
    with pytest.raises(UserError, match="neither order"):
        find_order(layout, 1)


def test_an_exchanged_mask_is_noticed(tmp_path):
    layout, places = Layout(tmp_path), places_of("C")
    save_places(layout, 1, places)
    save_nifti(layout.volumes(1) / "nsdgeneral.nii.gz", places_of("C", seed=5).mask, AFFINE)
    with pytest.raises(UserError, match="is not the mask"):
        load_places(layout, 1)


def test_wrong_sizes_and_spaces_are_refused(tmp_path):
    places = places_of("C")
    with pytest.raises(UserError, match="width of NSD subject 5"):
        places.to_volume(np.zeros(VOXELS[5]))
    with pytest.raises(UserError, match="functional space"):
        places.to_vector(np.zeros((3, 3, 3)))
    save_nifti(
        tmp_path / "moved.nii.gz",
        np.zeros(places.mask.shape, dtype=np.float32),
        AFFINE @ np.diag([2, 2, 2, 1]),
    )
    with pytest.raises(UserError, match="another affine"):
        places.read(tmp_path / "moved.nii.gz")


def test_damaged_files_end_in_a_sentence(tmp_path):
    layout, places = Layout(tmp_path), places_of("C")
    with pytest.raises(UserError, match="is missing"):
        load_places(layout, 1)
    save_places(layout, 1, places)
    path = layout.volumes(1) / "nsdgeneral.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="not a readable NIfTI"):
        load_places(layout, 1)
    save_places(layout, 1, places)
    (layout.volumes(1) / "order.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_places(layout, 1)
    save_order(layout, 1, places._replace(order="Z"))
    with pytest.raises(UserError, match='"Z"'):
        load_places(layout, 1)


def test_regions_are_read_by_name(tmp_path):
    layout = Layout(tmp_path)
    with h5py.File(layout.masks(), "w") as file:
        file["subj02/V1"] = np.array([True, False])
        file["subj03/V1"] = np.array([0.5, 2.0])
    assert read_regions(layout, 2)["V1"].tolist() == [True, False]
    with pytest.raises(UserError, match="no group subj01, only subj02, subj03"):
        read_regions(layout, 1)
    with pytest.raises(UserError, match="no region V9"):
        read_regions(layout, 2, ["V9"])
    with pytest.raises(UserError, match="boolean vector was expected"):
        read_regions(layout, 3)
