"""Files of arrays that say more than they hold, or hold something else: a sentence for every kind,
nothing unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
import io
from pathlib import Path
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
from unit.fake_nsd import write_fake_nsd

from braingen.data.captions import load_captions
from braingen.data.trials import read_behav, train_trials
from braingen.data.voxel_file import load_responses
from braingen.evaluation.image_files import load_images
from braingen.runtime.arrays import (
    new_npy,
    read_npy,
    read_npz,
    refuse_more_than_memory,
    whole_numbers,
)
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

OBJECTS = np.array([{}, {}], dtype=object)
AGAIN = "write it again"


def header(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    """The beginning of a .npy file that promises an array."""
    buffer = io.BytesIO()
    promised = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(buffer, promised)
    return buffer.getvalue()


def zipped(path: Path, content: bytes, name: str = "images.npy") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


def promised_hdf5(path: Path, name: str) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset(name, (10**9, 3, 64, 64), "f4", chunks=(100, 3, 64, 64))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "objects": lambda path: np.save(path, OBJECTS, allow_pickle=True),
    "promises more than it has": lambda path: path.write_bytes(header((10**6, 3, 64, 64))),
    "promises more than there is": lambda path: path.write_bytes(header((10**12, 10**6))),
    "negative": lambda path: path.write_bytes(header((-5, 3)) + bytes(999)),
    "header of code": lambda path: path.write_bytes(
        b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').system('x')".ljust(31) + b"\n"
    ),
    "header cut": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8',"),
    "unknown type": lambda path: path.write_bytes(header((2,), "<q9") + bytes(99)),
    "text": lambda path: path.write_text("numbers"),
    "empty": lambda path: path.write_bytes(b""),
    "version 9": lambda path: path.write_bytes(b"\x93NUMPY\x09\x00" + bytes(99)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_npy(tmp_path, name):
    path = tmp_path / "a.npy"
    DAMAGES[name](path)
    with pytest.raises(UserError, match=AGAIN) as caught:
        read_npy(path, AGAIN)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*DAMAGES, "no zip", "cut short", "no array"])
def test_npz(tmp_path, name):
    path, inside = tmp_path / "a.npz", tmp_path / "inside.npy"
    if name in DAMAGES:
        DAMAGES[name](inside)
        zipped(path, inside.read_bytes())
    elif name == "no zip":
        path.write_bytes(b"PK but no zip")
    elif name == "cut short":
        np.savez(path, images=np.zeros((9, 9)))
        path.write_bytes(path.read_bytes()[:-30])
    else:
        zipped(path, b"hello", "hello.npy")
    with pytest.raises(UserError, match=AGAIN):
        read_npz(path, AGAIN)


def test_sound_ones(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(3), y=np.zeros((0, 4)))
    assert read_npy(tmp_path / "a.npy", AGAIN).tolist() == [[0, 1, 2], [3, 4, 5]]
    found = read_npz(tmp_path / "a.npz", AGAIN)
    assert found["x"].tolist() == [0, 1, 2] and found["y"].shape == (0, 4)
    made = new_npy(tmp_path / "b.npy", np.float32, (3, 2))
    made[:] = 1.5
    made.flush()
    assert np.load(tmp_path / "b.npy").tolist() == [[1.5, 1.5]] * 3
    assert new_npy(tmp_path / "c.npy", np.float32, (0, 2)).shape == (0, 2)


def test_a_new_file_has_its_place_at_once(tmp_path, monkeypatch):
    """Filling a sparse file through its map would kill the process when the disk is full."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        new_npy(tmp_path / "b.npy", np.float32, (3, 2))


@pytest.mark.parametrize("ids", [[0.5, 1], [np.nan, 1], ["a", "b"], OBJECTS, [2.0**70, 1]])
def test_ids_are_whole_numbers(ids):
    with pytest.raises(UserError, match="file: image ids"):
        whole_numbers(ids, "file", AGAIN)
    assert whole_numbers([3.0, 1.0], "file", AGAIN).dtype == np.int64


def test_what_does_not_fit_is_not_read():
    refuse_more_than_memory(1000, "it", AGAIN)
    with pytest.raises(UserError, match=r"it declares 1,000,000\.0 GB"):
        refuse_more_than_memory(10**15, "it", AGAIN)


# --- the readers of the program ---


def test_pictures_and_their_ids(tmp_path):
    np.save(tmp_path / "p.npy", np.zeros((2, 3, 8, 8), np.float32))
    for ids in (OBJECTS, np.array(["x", "y"]), np.array([0.5, 2])):
        np.save(tmp_path / "p_ids.npy", ids, allow_pickle=True)
        with pytest.raises(UserError, match=r"p_ids\.npy"):
            load_images(tmp_path / "p.npy")
    zipped(tmp_path / "q.npz", header((10**9, 3, 64, 64), "<f4") + bytes(1 << 16))
    with pytest.raises(UserError, match=r"q\.npz.*GB"):
        load_images(tmp_path / "q.npz")
    np.savez(tmp_path / "r.npz", images=np.zeros((2, 3, 8, 8)), ids=np.array(["1", "2"]))
    with pytest.raises(UserError, match="no whole numbers"):
        load_images(tmp_path / "r.npz")


def test_voxels(tmp_path):
    promised_hdf5(tmp_path / "v.h5", "voxels")
    with pytest.raises(UserError, match=r"v\.h5: /voxels declares .* GB"):
        load_responses(tmp_path / "v.h5", 1, 64)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["voxels"] = ["some", "text"]
    with pytest.raises(UserError, match=r"w\.h5: /voxels holds object"):
        load_responses(tmp_path / "w.h5", 1, 64)
    np.save(tmp_path / "x.npy", np.zeros((2, 4)))
    np.save(tmp_path / "x_ids.npy", OBJECTS, allow_pickle=True)
    with pytest.raises(UserError, match=r"x_ids\.npy"):
        load_responses(tmp_path / "x.npy", 1, 4)
    zipped(tmp_path / "y.npz", header((10**12, 4)), "voxels.npy")
    with pytest.raises(UserError, match=r"y\.npz"):
        load_responses(tmp_path / "y.npz", 1, 4)


def tar_with(path: Path, content: bytes, size: int | None = None, link: str = "") -> None:
    member = tarfile.TarInfo("s0.behav.npy")
    member.size = len(content) if size is None else size
    if link:
        member.type, member.linkname = tarfile.SYMTYPE, link
    body = content + bytes(-len(content) % 512)
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + body + bytes(20480))


@pytest.mark.parametrize(
    "arguments",
    [
        (header((10**6, 10**6)),),
        (b"", 2**40),
        (b"", 0, "/etc/hostname"),
        (b"", 0, "s1.behav.npy"),
        (b"hello",),
        (header((1, 17)),),
        (header((1, 17), "|O") + b"\x80\x04N.",),
    ],
)
def test_tars(tmp_path, arguments):
    tar_with(tmp_path / "0.tar", *arguments)
    with pytest.raises(UserError, match=r"0\.tar is damaged at s0\.behav\.npy"):
        read_behav(tmp_path / "0.tar")


@pytest.mark.parametrize("name", DAMAGES)
def test_caches_that_are_none_are_made_again(tmp_path, name):
    layout, _ = write_fake_nsd(tmp_path / "NSD", subjects=[1])
    wanted = train_trials(layout, 1).table
    caches = list((layout.cache() / "trials").glob("*.npz"))
    assert caches
    for path in caches:
        DAMAGES[name](tmp_path / "inside.npy")
        zipped(path, (tmp_path / "inside.npy").read_bytes(), "behav.npy")
    from braingen.data import trials

    trials._read_once.cache_clear()
    assert train_trials(layout, 1).table.equals(wanted)


def test_captions_nested_without_end(tmp_path):
    layout = Layout(tmp_path)
    layout.captions().write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"coco_captions\.json"):
        load_captions(layout)
