"""Malformed data: each way of being wrong ends in its one sentence, naming the file, before any
training.
"""

from __future__ import annotations

import json
from pathlib import Path
import re
import shutil

import h5py
import numpy as np
import pytest
from unit.fake_nsd import FakeSubject, write_betas, write_fake_nsd, write_images, write_tar
from unit.test_volumes import places_of

from braingen.data.checks import all_checks, check_before_training
from braingen.data.nsd import SIMULATED_ATTRIBUTE, VOXELS
from braingen.data.volumes import VoxelPlaces, save_places
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError


class Broken:
    """A data folder with helpers to break it."""

    def __init__(self, root: Path, written: dict[int, FakeSubject]) -> None:
        self.layout, self.written = Layout.of(root), written
        self.betas = {subject: part.betas.copy() for subject, part in self.written.items()}

    def put_betas(self, subject: int, betas: np.ndarray) -> None:
        write_betas(self.layout.betas(subject), betas)

    def cut(self, path: Path, share: float = 0.5) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    def edit_images(self, edit) -> None:
        with h5py.File(self.layout.images()) as file:
            images = file["images"][()]
        write_images(self.layout.images(), edit(images))

    def edit_captions(self, edit) -> None:
        captions = json.loads(self.layout.captions().read_text())
        edit(captions)
        self.layout.captions().write_text(json.dumps(captions))

    def edit_masks(self, edit) -> None:
        with h5py.File(self.layout.masks(), "a") as file:
            edit(file)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_fake_nsd(tmp_path_factory.mktemp("sound"), images=20)


@pytest.fixture
def data(sound, tmp_path):
    layout, written = sound
    return Broken(shutil.copytree(layout.root, tmp_path / "NSD"), written)


def test_sound_data_pass(data):
    assert check_before_training(data.layout, [1, 2]) == []
    findings = all_checks(data.layout, [1, 2])
    assert not [finding for finding in findings if finding.level == "error"]
    ok = [(finding.subject, finding.what) for finding in findings if finding.level == "ok"]
    assert set(ok) == {(s, w) for s in (1, 2) for w in ("trials", "test", "betas", "masks")} | {
        (None, w) for w in ("root", "images", "captions")
    }


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = b"<!DOCTYPE html><html><body>Access denied</body></html>"


def a_mask_of(width: int) -> VoxelPlaces:
    mask = np.zeros((4, 4, 5), dtype=bool)
    mask.ravel()[:width] = True
    return places_of("C")._replace(mask=mask)


def row_to(value, rows=slice(None), voxels=slice(None)):
    def change(data: Broken) -> None:
        betas = data.betas[1]
        betas[rows, voxels] = value
        data.put_betas(1, betas)

    return change


def drop_mask(name: str):
    return lambda data: data.edit_masks(lambda file: file.__delitem__(name))


def set_mask(name: str, value: np.ndarray):
    def edit(file):
        del file[name]
        file[name] = value

    return lambda data: data.edit_masks(edit)


MALFORMED = {
    # the folder
    "no folder": (
        lambda d: setattr(d, "layout", Layout.of(d.layout.root / "none")),
        r"data folder .*none does not exist; name yours with --data_path",
    ),
    "folder is a file": (
        lambda d: setattr(d, "layout", Layout.of(d.layout.captions())),
        "is a file",
    ),
    # tars
    "tar cut short": (lambda d: d.cut(d.layout.wds_train(1, 1)), r"train/1\.tar is cut short"),
    "tar empty": (lambda d: d.layout.wds_train(1, 0).write_bytes(b""), r"0\.tar is empty"),
    "tar is an LFS pointer": (
        lambda d: d.layout.wds_train(1, 0).write_bytes(LFS),
        "Git-LFS pointer",
    ),
    "tar is a web page": (lambda d: d.layout.wds_train(1, 0).write_bytes(HTML), "web page"),
    "tar is noise": (
        lambda d: d.layout.wds_train(1, 0).write_bytes(b"\1" * 4096 + b"\0" * 1024),
        "is damaged",
    ),
    "tar without samples": (
        lambda d: d.layout.wds_train(1, 0).write_bytes(b"\0" * 10240),
        "holds no sample",
    ),
    "session missing": (
        lambda d: d.layout.wds_train(1, 0).unlink(),
        "session 0 of 2 missing .* has session 1",
    ),
    "all sessions missing": (
        lambda d: [p.unlink() for p in d.layout.wds_train(1, 0).parent.glob("*")],
        "no training trials of subject 1",
    ),
    "tars of another subject": (
        lambda d: write_tar(d.layout.wds_train(1, 0), 2, d.written[1].train[:9]),
        "trials of subject 2, subject 1",
    ),
    "trial twice": (
        lambda d: write_tar(d.layout.wds_train(1, 1), 1, d.written[1].train[:9]),
        "occurs twice",
    ),
    "negative image id": (
        lambda d: write_tar(d.layout.wds_train(1, 0), 1, np.array([[0, 0, -1]])),
        "sample 0 has image -1",
    ),
    "test tar cut short": (lambda d: d.cut(d.layout.wds_test(1)), r"new_test/0\.tar is cut short"),
    "test tar of another subject": (
        lambda d: write_tar(d.layout.wds_test(1), 2, d.written[1].test),
        "trials of subject 2, subject 1",
    ),
    "test images in training": (
        lambda d: write_tar(d.layout.wds_test(1), 1, d.written[1].train[:3]),
        "both in the training and the test tars",
    ),
    # betas
    "betas missing": (
        lambda d: d.layout.betas(1).unlink(),
        "betas_all_subj01_fp32_renorm.hdf5 is missing",
    ),
    "betas half downloaded": (lambda d: d.cut(d.layout.betas(1)), "still being downloaded"),
    "betas one byte": (
        lambda d: d.layout.betas(1).write_bytes(b"\x89"),
        "cannot be opened as HDF5",
    ),
    "betas an LFS pointer": (lambda d: d.layout.betas(1).write_bytes(LFS), "Git-LFS pointer"),
    "betas a web page": (lambda d: d.layout.betas(1).write_bytes(HTML), "web page"),
    "betas a folder": (
        lambda d: (d.layout.betas(1).unlink(), d.layout.betas(1).mkdir()),
        "is a folder",
    ),
    "betas a dead link": (
        lambda d: (d.layout.betas(1).unlink(), d.layout.betas(1).symlink_to("/nowhere")),
        "is a link to /nowhere",
    ),
    "betas of another subject": (
        lambda d: d.put_betas(1, d.betas[2]),
        "42 voxels, the width of subj02; subject 1 has 41",
    ),
    "betas of an unknown width": (
        lambda d: d.put_betas(1, d.betas[1][:, :7]),
        "has 7 voxels; subject 1 has 41",
    ),
    "betas transposed": (lambda d: d.put_betas(1, d.betas[1].T), "has 72 voxels; subject 1 has 41"),
    "betas with too few rows": (
        lambda d: d.put_betas(1, d.betas[1][:50]),
        "has 50 rows, the tars name trials up to 71",
    ),
    "betas as integers": (
        lambda d: d.put_betas(1, (d.betas[1] * 300).astype(np.int16)),
        "int16, z-scored floating point was expected",
    ),
    "betas without the dataset": (
        lambda d: write_images(d.layout.betas(1), d.betas[1]),
        "no dataset `betas`",
    ),
    "betas of no trials": (lambda d: d.put_betas(1, d.betas[1][:0]), r"shape \(0, 41\)"),
    "betas of three axes": (lambda d: d.put_betas(1, d.betas[1][None]), r"shape \(1, 72, 41\)"),
    "NaN voxel": (
        row_to(np.nan, voxels=5),
        r"1 of 41 voxels \(5\) are NaN or infinite in 72 of the trials used",
    ),
    "NaN trial": (row_to(np.nan, rows=7), r"in 1 of the trials used \(7\)"),
    "infinite value": (row_to(np.inf, rows=7, voxels=3), r"voxels \(3\) are NaN or infinite"),
    "rows never written": (
        row_to(0, rows=slice(60, None)),
        r"12 of the trials used \(60-64, \.\.\.\) are 0 in every voxel",
    ),
    "constant voxels": (
        row_to(1.5, voxels=slice(0, 6)),
        r"6 of 41 voxels \(0-4, \.\.\.\) have the same value",
    ),
    # masks
    "masks damaged": (
        lambda d: d.cut(d.layout.masks(), 0.3),
        r"brain_region_masks\.hdf5 cannot be opened",
    ),
    "masks without the subject": (drop_mask("subj01"), "no group subj01, only subj02"),
    "masks of different lengths": (
        set_mask("subj01/V1", np.zeros(9, dtype=bool)),
        "different lengths .*V1 9",
    ),
    "masks of numbers": (set_mask("subj01/V1", np.arange(41)), "boolean vector was expected"),
    "masks without a region": (
        lambda d: d.edit_masks(lambda f: [f["subj01"].__delitem__(k) for k in list(f["subj01"])]),
        "no region at all",
    ),
    # images
    "images missing": (
        lambda d: d.layout.images().unlink(),
        r"coco_images_224_float16\.hdf5 is missing",
    ),
    "images half downloaded": (lambda d: d.cut(d.layout.images()), "still being downloaded"),
    "images an LFS pointer": (lambda d: d.layout.images().write_bytes(LFS), "Git-LFS pointer"),
    "images in bytes": (
        lambda d: d.edit_images(lambda x: (x * 255).astype(np.uint8)),
        "uint8, floating point",
    ),
    "images up to 255": (
        lambda d: d.edit_images(lambda x: x * 255),
        r"has values from .* to 25\d.*, \[0, 1\] was expected",
    ),
    "images from -1": (lambda d: d.edit_images(lambda x: x * 2 - 1), "has values from -"),
    "images with NaN": (
        lambda d: d.edit_images(
            lambda x: np.where(np.arange(len(x))[:, None, None, None] == 9, np.nan, x)
        ),
        "image 9 has values from nan",
    ),
    "images channels last": (
        lambda d: d.edit_images(lambda x: x.transpose(0, 2, 3, 1)),
        r"shape \(44, 8, 8, 3\)",
    ),
    "fewer images than ids": (
        lambda d: d.edit_images(lambda x: x[:30]),
        "has 30 images, the tars name ids up to 43",
    ),
    # captions
    "captions missing": (lambda d: d.layout.captions().unlink(), r"coco_captions\.json is missing"),
    "captions cut short": (lambda d: d.cut(d.layout.captions()), "not JSON or cut short"),
    "captions an LFS pointer": (lambda d: d.layout.captions().write_bytes(LFS), "Git-LFS pointer"),
    "caption missing": (
        lambda d: d.edit_captions(lambda c: c.pop("7")),
        r"no caption for 1 of the 44 images used \(7\)",
    ),
    "caption empty": (
        lambda d: d.edit_captions(lambda c: c.update({"7": ["", " "]})),
        r"no caption for 1 of the 44 images used \(7\)",
    ),
    "captions not lists": (
        lambda d: d.edit_captions(lambda c: c.update({"7": "a dog"})),
        'entry "7" is not a list',
    ),
    # volumes
    "volume of another subject": (
        lambda d: save_places(d.layout, 1, a_mask_of(42)),
        "a mask of 42 voxels, the width of subj02, the betas have 41",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_data_end_in_one_sentence(data, name):
    breaking, words = MALFORMED[name]
    breaking(data)
    with pytest.raises(UserError, match=words) as caught:
        check_before_training(data.layout, [1, 2])
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    assert "Traceback" not in sentence and "object at 0x" not in sentence
    found = [finding for finding in all_checks(data.layout, [1, 2]) if finding.level == "error"]
    assert found[0].sentence == sentence
    if "folder" not in name and name != "masks damaged":
        assert {finding.subject for finding in found} <= {
            1,
            None,
        }  # the other subject is not blamed


@pytest.mark.parametrize(
    ("name", "breaking", "words"),
    [
        (
            "test trials missing",
            lambda d: d.layout.wds_test(1).unlink(),
            r"new_test/0\.tar is missing",
        ),
        ("masks missing", lambda d: d.layout.masks().unlink(), "masks.hdf5 is missing"),
        ("areas overlap", set_mask("subj01/V1", np.ones(41, dtype=bool)), "V1 to V4 overlap"),
        (
            "early is no union",
            set_mask("subj01/early_vis", np.zeros(41, dtype=bool)),
            "not the union",
        ),
        (
            "raw betas",
            lambda d: d.put_betas(1, d.betas[1] * 7 + 3),
            "mean .* standard deviation 6.8",
        ),
        (
            "order unknown",
            lambda d: d.layout.volumes(1).mkdir(parents=True),
            "Maps of subject 1 cannot be put into the volume",
        ),
    ],
)
def test_what_does_not_prevent_training_is_a_warning(data, caplog, name, breaking, words):
    breaking(data)
    warnings = check_before_training(data.layout, [1])
    assert any(re.search(words, finding.sentence) for finding in warnings)
    assert re.search(words, caplog.text)


def test_a_dead_voxel_among_many_is_a_warning(tmp_path):
    layout, written = write_fake_nsd(tmp_path, subjects=[1], voxels=200)
    betas = written[1].betas
    betas[:, 17] = 0
    write_betas(layout.betas(1), betas)
    assert any(
        "(17) have the same value" in finding.sentence
        for finding in check_before_training(layout, [1])
    )


def test_bad_rows_that_no_trial_uses_do_not_matter(data):
    data.put_betas(
        1,
        np.concatenate(
            [data.betas[1], np.full((3, 41), np.nan, np.float32), np.zeros((3, 41), np.float32)]
        ),
    )
    assert check_before_training(data.layout, [1]) == []


def test_sessions_that_fit_are_offered(data):
    last = data.written[1].train
    first_of_second = int(last[last[:, 0] == 1, 1].min())
    tests = data.written[1].test
    write_tar(data.layout.wds_test(1), 1, tests[tests[:, 0] == 0])
    data.put_betas(1, data.betas[1][:first_of_second])
    with pytest.raises(UserError, match="--num_sessions 1"):
        check_before_training(data.layout, [1])
    check_before_training(data.layout, [1], num_sessions=1)


def test_the_width_of_an_nsd_subject_is_known_without_masks(data):
    data.layout.masks().unlink()
    betas = np.random.default_rng(0).standard_normal((72, VOXELS[8])).astype(np.float32)
    data.put_betas(1, betas)
    with pytest.raises(
        UserError, match="14386 voxels, the width of NSD's subj08; subject 1 has 15724"
    ):
        check_before_training(data.layout, [1])


def test_captions_are_asked_for_only_where_needed(data):
    data.layout.captions().unlink()
    check_before_training(data.layout, [1], captions=False)


def test_unknown_subjects_and_sessions(data):
    with pytest.raises(UserError, match="no training trials of subject 5"):
        check_before_training(data.layout, [1, 5])
    with pytest.raises(UserError, match="no subject 0"):
        check_before_training(data.layout, [0])
    warnings = check_before_training(data.layout, [1], num_sessions=7)
    assert [each.sentence for each in warnings] == [
        "Subject 1 was scanned in 2 sessions, fewer than --num_sessions 7: all are used."
    ]
    with h5py.File(data.layout.images(), "r+") as file:
        del file["images"].attrs[SIMULATED_ATTRIBUTE]
    with pytest.raises(UserError, match="session 2-6 of 7 missing"):
        check_before_training(data.layout, [1], num_sessions=7)


def test_voxels_with_a_place_in_the_volume_are_reported(data):
    without = [finding for finding in all_checks(data.layout, [1]) if finding.what == "volumes"]
    save_places(data.layout, 1, a_mask_of(41))
    with_places = [finding for finding in all_checks(data.layout, [1]) if finding.what == "volumes"]
    assert [finding.level for finding in without + with_places] == ["note", "ok"]
