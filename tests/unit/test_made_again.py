"""What a message advises works: files that were removed from a finished run are made again; and
data folders may be read-only.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
import pytest
from safetensors.torch import save_file
import torch

from braingen.config import Config
from braingen.evaluation.feature_store import FeatureStore
from braingen.evaluation.image_pairs import ImageSource
from braingen.evaluation.image_sets import PngImages
from braingen.generation.resumable import open_image, output_files, png_path
from braingen.runtime.distributed import Workers, complete
from braingen.runtime.errors import UserError
from braingen.runtime.files import can_be_written, own_cache
from braingen.runtime.paths import EMBEDDINGS, INDEX, ROUTING
from braingen.runtime.run_folder import Run
from braingen.targets.cache import Cache

IDS = [3, 7]


def finished(folder: Path, routing: bool = False) -> Path:
    """A folder of drawings, finished."""
    with Run.start(folder, {"seed": 0}) as run:
        save_file({"ids": torch.tensor(IDS)}, folder / EMBEDDINGS)
        for image in IDS:
            Image.new("RGB", (4, 4)).save(png_path(folder, image))
        (folder / INDEX).write_text(json.dumps({"images": IDS}), encoding="utf-8")
        if routing:
            save_file({"ids": torch.tensor(IDS)}, folder / ROUTING)
        run.mark_finished({"images": 2, "routing": routing})
    return folder


def still_complete(folder: Path) -> bool:
    workers = Workers(Config.model_validate({"run": {"device": "cpu"}}))
    with Run.start(folder, {"seed": 0}) as run:
        found = complete(workers, run, lambda: output_files(folder, run.summary))
        assert run.finished is found
    return found


def test_a_whole_folder_is_finished(tmp_path, capsys):
    assert still_complete(finished(tmp_path / "run", routing=True)) and not capsys.readouterr().out


@pytest.mark.parametrize("lost", [INDEX, EMBEDDINGS, "000003.png", "000007.png", ROUTING])
def test_what_was_removed_is_made_again(tmp_path, capsys, lost):
    folder = finished(tmp_path / "run", routing=True)
    (folder / lost).unlink()
    assert not still_complete(folder)
    told = capsys.readouterr().out
    assert "is missing, although the run was finished: it is made again" in told
    if lost == ROUTING:  # remembered while drawing
        assert not list(folder.glob("*.png"))
    else:
        assert lost in told


def test_a_folder_without_routers_lacks_no_routing(tmp_path):
    assert still_complete(finished(tmp_path / "run"))


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n cut"])
def test_a_picture_that_is_none_ends_in_a_sentence(tmp_path, content):
    path = png_path(tmp_path, 3)
    if content is not None:
        path.write_bytes(content)
    for read in (
        lambda: PngImages(tmp_path, np.array([3]))[0],
        lambda: open_image(path).__enter__(),
    ):
        with pytest.raises(
            UserError, match=r"000003\.png is (missing|not an image).*again that made the folder"
        ):
            read()


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A folder in which nothing can be made, whoever runs the test: its name is taken by a file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    (tmp_path / "data").touch()
    return tmp_path / "data" / ".braingen"


def test_a_folder_that_cannot_be_written_is_noticed(tmp_path, read_only):
    assert can_be_written(tmp_path / "new" / "folder") and not list(
        (tmp_path / "new" / "folder").iterdir()
    )
    assert not can_be_written(read_only)


def test_features_are_computed_where_the_data_folder_cannot_be_written(read_only):
    class Mean:
        name, weights = "mean", "1"

        def features(self, pictures):
            return pictures.mean((2, 3))

    pictures = ImageSource(
        np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32), np.arange(3), "pictures"
    )
    with FeatureStore(read_only) as store:
        first = np.array(store.features(Mean(), pictures, keep=True))
    assert first.shape == (3, 3) and np.isfinite(first).all()


def test_caches_are_kept_elsewhere_where_the_data_folder_cannot_be_written(tmp_path, read_only):
    calls = []

    def compute(ids):
        calls.append(ids.tolist())
        return torch.from_numpy(ids[:, None].astype(np.float32))

    for _ in range(2):
        cache = Cache(read_only / "targets", "image", {"weights": "x"}, 5, compute)
        np.testing.assert_array_equal(
            cache.of(np.array([1, 4]), np.array([5, 6], dtype=np.uint64)), [[1], [4]]
        )
    assert calls == [[1, 4]] and list(own_cache(read_only / "targets").glob("*.npy"))
    assert own_cache(read_only / "targets").is_relative_to(tmp_path / "own")
