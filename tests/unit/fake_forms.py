"""The same responses of own scans in the forms that labs have."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel
import numpy as np
from unit.fake_scans import AFFINE, FakeScans


def volume(fake: FakeScans, response_TV: np.ndarray, outside: float = 0) -> np.ndarray:
    found = np.full((*fake.mask.shape, len(response_TV)), outside, np.float32)
    found[fake.mask] = response_TV.T
    return found


def nifti(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> None:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def renamed(path: Path, ending: str, entity: str = "") -> Path:
    """Beside a file, with another ending and a further entity; the file itself is gone."""
    path.unlink()
    return path.with_name(path.name.partition("_betas.")[0] + entity + ending)


def as_nifti2(fake: FakeScans, path: Path, response: np.ndarray) -> None:
    nibabel.save(
        nibabel.Nifti2Image(volume(fake, response), AFFINE), renamed(path, "_betas.nii.gz")
    )


def as_xyzt(fake: FakeScans, path: Path, response: np.ndarray) -> None:
    np.save(renamed(path, "_betas.npy"), volume(fake, response))


def as_txyz(fake: FakeScans, path: Path, response: np.ndarray) -> None:
    np.save(renamed(path, "_betas.npy"), np.moveaxis(volume(fake, response), -1, 0))


def as_glmsingle_npy(fake: FakeScans, path: Path, response: np.ndarray) -> None:
    found = {
        "betasmd": volume(fake, response, np.nan),
        "R2": fake.mask.astype(np.float32),
        "pcnum": 2,
        "pcregressors": [np.ones(3)],
    }
    np.save(renamed(path, "_betas.npy"), found, allow_pickle=True)


def as_glmsingle_hdf5(fake: FakeScans, path: Path, response: np.ndarray) -> None:
    with h5py.File(renamed(path, "_betas.hdf5"), "w") as file:
        file["betasmd"], file["R2"], file["meanvol"] = (
            volume(fake, response, np.nan),
            fake.mask * 1.0,
            fake.mask * 1.0,
        )


def as_other_dataset(fake: FakeScans, path: Path, response: np.ndarray) -> None:
    with h5py.File(renamed(path, "_betas.h5"), "w") as file:
        file["group/responses"], file["numbers"] = response, np.arange(7)


def as_npz(fake: FakeScans, path: Path, response: np.ndarray) -> None:
    np.savez(renamed(path, "_betas.npz"), found=response, other=np.arange(3))


def as_single_maps(fake: FakeScans, path: Path, response: np.ndarray) -> None:
    path.unlink()
    for trial, values in enumerate(
        volume(fake, response).transpose(3, 0, 1, 2), start=1
    ):  # 1, 2, ..., 10: not the order of text
        nifti(values, path.with_name(path.name.replace("_betas", f"_desc-trial{trial}_betas")))


def as_bdpy(fake: FakeScans, path: Path, response: np.ndarray) -> None:
    voxels = response.shape[1]
    with h5py.File(renamed(path, "_betas.h5"), "w") as file:
        file["dataset"] = np.concatenate(
            [np.ones((len(response), 1)), response, np.arange(len(response))[:, None]], axis=1
        )
        nan = np.full(voxels, np.nan)
        group = file.create_group("metadata")
        group["key"] = np.array([b"Run", b"VoxelData", b"Label", b"ROI_V1"])
        roi = np.r_[np.nan, np.arange(voxels) < 3, np.nan]
        group["value"] = np.stack(
            [
                np.r_[1, nan, np.nan],
                np.r_[np.nan, np.ones(voxels), np.nan],
                np.r_[np.nan, nan, 1],
                roi,
            ]
        )


FORMS = [
    as_nifti2,
    as_xyzt,
    as_txyz,
    as_glmsingle_npy,
    as_glmsingle_hdf5,
    as_other_dataset,
    as_npz,
    as_single_maps,
    as_bdpy,
]
