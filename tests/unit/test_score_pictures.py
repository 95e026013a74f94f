"""Reconstructions in the forms people keep them: all give the same pictures for the same
image ids.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import save_file
import torch

from braingen.evaluation.image_files import load_images
from braingen.evaluation.image_pairs import match
from braingen.runtime.errors import UserError

BYTES = np.random.default_rng(0).integers(0, 256, (4, 3, 20, 20), dtype=np.uint8)
IDS = np.array([7, 3, 120, 55])
FLOATS = (BYTES / 255).astype(np.float32)


def write(kind: str, folder: Path) -> Path:
    path = folder / f"recons.{kind}"
    if kind == "png":
        path.mkdir()
        for image, picture in zip(IDS, BYTES):
            Image.fromarray(picture.transpose(1, 2, 0)).save(path / f"{image:06d}.png")
        (path / "index.json").write_text("{}")
    elif kind == "pt":
        torch.save({"all_recons": torch.tensor(FLOATS), "ids": torch.tensor(IDS)}, path)
    elif kind == "npy":
        np.save(path, FLOATS)
        np.save(folder / "recons_ids.npy", IDS)
    elif kind == "npz":
        np.savez(path, images=FLOATS.transpose(0, 2, 3, 1), ids=IDS)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file["images"], file["ids"] = BYTES, IDS
    else:
        save_file({"images": FLOATS, "ids": IDS}, path)
    return path


@pytest.mark.parametrize("kind", ["png", "pt", "npy", "npz", "h5", "safetensors"])
def test_every_form_gives_the_same_pictures(kind: str, tmp_path: Path) -> None:
    loaded = load_images(write(kind, tmp_path))
    matched = match(FLOATS, IDS, *loaded)
    np.testing.assert_allclose(matched.recons, FLOATS[np.argsort(IDS)], atol=1e-6)
    assert matched.image_N.tolist() == sorted(IDS.tolist())


def test_mindeye2s_file_has_no_ids(tmp_path: Path) -> None:
    path = tmp_path / "final_subj01_all_recons.pt"
    torch.save(torch.tensor(FLOATS), path)
    with pytest.raises(UserError, match="images without image ids; write the ids"):
        load_images(path)
    assert load_images(path, IDS).image_N.tolist() == IDS.tolist()


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no PNGs"):
        load_images(tmp_path)
    folder = write("png", tmp_path)
    (folder / "7.png").write_bytes((folder / "000007.png").read_bytes())
    with pytest.raises(UserError, match="image 7 more than once"):
        load_images(folder)
    (folder / "7.png").unlink()
    (folder / "000003.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"000003\.png cannot be read"):
        match(FLOATS, IDS, *load_images(folder))
    (folder / "best.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"best\.png"):
        load_images(folder)
    np.savez(tmp_path / "other.npz", voxels=np.zeros((3, 4)))
    with pytest.raises(UserError, match=r"voxels \(3, 4\)"):
        load_images(tmp_path / "other.npz")
    (tmp_path / "broken.npy").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"cannot be read as \.npy"):
        load_images(tmp_path / "broken.npy")
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"'\.jpg'"):
        load_images(tmp_path / "a.jpg")
