"""Rows of the betas file in any order, from any kind of HDF5 storage, and what is wrong
with them.
"""

from __future__ import annotations

import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
from unit.fake_nsd import write_betas

from braingen.data import betas as betas_module
from braingen.data.betas import Betas, report_voxels
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

STORAGE = {
    "contiguous": {},
    "chunked": {"chunks": (7, 5)},
    "compressed": {"chunks": (9, 23), "compression": "gzip"},
}
ORDERS = {
    "unsorted": [5, 0, 59, 17],
    "duplicates": [3, 3, 2, 3],
    "run": [10, 11, 12, 13],
    "none": [],
    "one": [58],
    "backwards": list(range(59, -1, -1)),
}


@pytest.fixture
def array():
    return np.random.default_rng(0).standard_normal((60, 23)).astype(np.float32)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("storage", STORAGE)
def test_rows_are_those_of_the_array(tmp_path, array, storage, order, in_memory):
    write_betas(tmp_path / "b.hdf5", array, **STORAGE[storage])
    betas = Betas(tmp_path / "b.hdf5", in_memory)
    rows = np.array(ORDERS[order], dtype=np.int64)
    found = betas.rows(rows)
    assert found.dtype == np.float32 and np.array_equal(found, array[rows])
    assert betas.rows_on_disk.mapped == (storage == "contiguous")
    found[:] = 0  # a copy: writing into a batch must not reach the data
    assert np.array_equal(betas.rows(rows), array[rows])


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
def test_any_floating_point_becomes_float32(tmp_path, array, dtype):
    write_betas(tmp_path / "b.hdf5", array.astype(dtype))
    found = Betas(tmp_path / "b.hdf5").rows(np.array([4, 1]))
    assert found.dtype == np.dtype(np.float32)
    assert np.array_equal(found, array[[4, 1]].astype(dtype).astype(np.float32))


@pytest.mark.parametrize("storage", STORAGE)
def test_whole_load_and_blocks(tmp_path, array, storage):
    write_betas(tmp_path / "b.hdf5", array, **STORAGE[storage])
    betas = Betas(tmp_path / "b.hdf5")
    assert np.array_equal(betas.tensor().numpy(), array)
    blocks = list(betas.rows_on_disk.blocks(size=500))
    assert len(blocks) > 3 and [first for first, _ in blocks] == sorted(
        first for first, _ in blocks
    )
    assert np.array_equal(np.concatenate([block for _, block in blocks]), array)


def _rows_in_worker(betas: Betas, rows: list[int]) -> np.ndarray:
    return betas.rows(np.array(rows))


@pytest.mark.parametrize("storage", STORAGE)
def test_workers_open_the_file_for_themselves(tmp_path, array, storage):
    write_betas(tmp_path / "b.hdf5", array, **STORAGE[storage])
    betas = Betas(tmp_path / "b.hdf5")
    betas.rows(np.array([1]))
    assert len(pickle.dumps(betas)) < 2000  # the address travels, not the data
    with multiprocessing.get_context("fork").Pool(2) as pool:
        parts = pool.starmap(_rows_in_worker, [(betas, [k, 0]) for k in range(20)])
    assert all(np.array_equal(part, array[[k, 0]]) for k, part in enumerate(parts))


def test_batches_of_a_large_file_take_no_anonymous_memory(tmp_path):
    path = tmp_path / "large.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("betas", (20000, 2000), np.float32)  # 160 MB
        data[::1000] = 1.0
    betas = Betas(path)

    def anonymous() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    try:
        before = anonymous()
    except (OSError, StopIteration):
        pytest.skip("this system does not tell anonymous memory apart")
    rng = np.random.default_rng(0)
    for _ in range(200):
        betas.rows(rng.integers(0, 20000, 64))
    assert anonymous() - before < 20_000  # kB; the rows read add up to 100 MB


@pytest.mark.parametrize("rows", [[60], [0, -1], [3, 1000]])
def test_rows_outside_the_file_are_named(tmp_path, array, rows):
    write_betas(tmp_path / "b.hdf5", array)
    with pytest.raises(UserError, match=rf"row {rows[-1]} was asked for, `betas` has rows 0-59"):
        Betas(tmp_path / "b.hdf5").rows(np.array(rows))


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, array, storage, share):
    path = tmp_path / "b.hdf5"
    write_betas(path, np.tile(array, (20, 1)), **STORAGE[storage])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError) as caught:
        Betas(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_content_is_called_what_it_is(tmp_path, array):
    path = tmp_path / "b.hdf5"
    for content, words in [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"\n <!doctype HTML>", "web page"),
        (b"PK\x03\x04" * 50, "cannot be opened as HDF5"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            Betas(path)
    with h5py.File(path, "w") as file:
        file["voxels"] = array
    with pytest.raises(UserError, match=r"has no dataset `betas`.*`voxels`"):
        Betas(path)
    write_betas(path, (array * 300).astype(np.int16))
    with pytest.raises(UserError, match=r"int16.*braingen prepare"):
        Betas(path)
    write_betas(path, array[0])
    with pytest.raises(UserError, match=r"shape \(23,\)"):
        Betas(path)
    with pytest.raises(UserError, match="is missing"):
        Betas(tmp_path / "other.hdf5")
    with pytest.raises(UserError, match="is a folder"):
        Betas(tmp_path)


@pytest.mark.parametrize("storage", STORAGE)
def test_bad_voxels_and_trials_are_found(tmp_path, array, storage, monkeypatch):
    array[7, 3] = np.nan
    array[50, 4] = np.inf
    array[:, 11] = 2.5
    array[58:] = 0
    array[58:, 11] = 2.5
    array[59] = 0
    write_betas(tmp_path / "b.hdf5", array, **STORAGE[storage])
    layout = Layout(tmp_path)
    report = report_voxels(Betas(tmp_path / "b.hdf5"), layout)
    assert np.flatnonzero(report.not_finite_V).tolist() == [3, 4]
    assert np.flatnonzero(report.not_finite_N).tolist() == [7, 50]
    assert np.flatnonzero(report.zero_N).tolist() == [59]
    assert not report.constant_V.any()  # the zero row broke it
    array[59, 11] = 2.5
    write_betas(tmp_path / "b.hdf5", array, **STORAGE[storage])
    again = report_voxels(Betas(tmp_path / "b.hdf5"), layout)  # noticed that the file changed
    assert np.flatnonzero(again.constant_V).tolist() == [11] and not again.zero_N.any()
    monkeypatch.setattr(
        betas_module.HDF5Rows, "blocks", lambda self: pytest.fail("looked through again")
    )
    kept = report_voxels(Betas(tmp_path / "b.hdf5"), layout)
    assert all(np.array_equal(a, b) for a, b in zip(kept, again))
