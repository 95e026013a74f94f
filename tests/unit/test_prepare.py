"""Raw NSD to the working layout and back, on a simulated raw release: the same files, axes and
counting as NSD's.
"""

from __future__ import annotations

import json
from pathlib import Path
import shutil
from typing import NamedTuple

import h5py
import nibabel
import numpy as np
from PIL import Image
import pytest

from braingen.cli import main
from braingen.data import nsd
from braingen.data.betas import Betas
from braingen.data.checks import check_before_training
from braingen.data.prepare import folder as prepare
from braingen.data.prepare import pieces as prepare_pieces
from braingen.data.raw_nsd.release import RawNSD
from braingen.data.stimuli import Stimuli
from braingen.data.trials import behav, test_trials, train_trials
from braingen.data.volumes import load_label_vector, load_places, read_regions
from braingen.data.zscore import Moments, load_statistics, percent_signal, zscored
from braingen.diagnostics import doctor
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.simulation.dataset import write_dataset
from braingen.simulation.folder import Arguments
from braingen.simulation.raw_release import write_raw_release

SUBJECTS, SESSIONS, TRIALS = (1, 2), 4, 20
FORMS = {1: "hdf5", 2: "nii.gz"}


class Prepared(NamedTuple):
    """A simulated folder, the raw release made from it, and what `braingen prepare` made of
    that.
    """

    simulated: Layout
    raw: RawNSD
    layout: Layout


def run(raw: RawNSD, root: Path, *more: str) -> int:
    return main(
        ["prepare", "--scans", str(raw.root), "--data_path", str(root), "--subj", "1,2", *more]
    )


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Prepared:
    base = tmp_path_factory.mktemp("raw")
    sizes = {
        "num_subjects": 2,
        "num_sessions": SESSIONS,
        "trials_per_session": TRIALS,
        "num_voxels": 60,
        "num_test_images": 6,
    }
    simulated = write_dataset(
        base / "simulated", Arguments(**sizes, noise=1, seed=0), workers=1, show_progress=False
    )
    raw = write_raw_release(simulated, base / "raw", FORMS, side=235)
    assert run(raw, base / "prepared") == 0
    return Prepared(simulated, raw, Layout.of(base / "prepared"))


def raw_integers(raw: RawNSD, subject: int, session: int) -> np.ndarray:
    """x, y, z, trials."""
    stem = raw.betas_folder(subject) / f"betas_session{session:02d}"
    if FORMS[subject] == "hdf5":
        with h5py.File(f"{stem}.hdf5") as file:
            return file["betas"][()].transpose(3, 2, 1, 0)
    return np.asanyarray(nibabel.load(f"{stem}.nii.gz").dataobj)


@pytest.mark.slow
def test_everything_but_the_betas_comes_back_bit_for_bit(made):
    for subject in SUBJECTS:
        for session in range(SESSIONS):
            assert (
                made.layout.wds_train(subject, session).read_bytes()
                == made.simulated.wds_train(subject, session).read_bytes()
            )
        assert (
            made.layout.wds_test(subject).read_bytes()
            == made.simulated.wds_test(subject).read_bytes()
        )
        before, after = read_regions(made.simulated, subject), read_regions(made.layout, subject)
        assert list(before) == list(after)
        for name in nsd.REGIONS:
            np.testing.assert_array_equal(before[name], after[name])
        for name in (*nsd.ROI_VOLUMES[1:], *nsd.PRF_VOLUMES):
            name = f"{name}.nii.gz"
            assert (made.layout.volumes(subject) / name).read_bytes() == (
                made.simulated.volumes(subject) / name
            ).read_bytes()
        np.testing.assert_array_equal(
            load_places(made.layout, subject).indices_V3,
            load_places(made.simulated, subject).indices_V3,
        )
    assert made.layout.captions().read_bytes() == made.simulated.captions().read_bytes()


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.slow
def test_raw_integers_come_back_bit_for_bit_from_the_prepared_betas(made, subject):
    """z-scored float32 and the kept statistics give every raw number back, in its voxel and trial
    of the volume.
    """
    betas, statistics, places = (
        Betas.of(made.layout, subject),
        load_statistics(made.layout, subject),
        load_places(made.layout, subject),
    )
    for session in range(1, SESSIONS + 1):
        rows = np.arange(TRIALS) + (session - 1) * TRIALS
        raw = raw_integers(made.raw, subject, session)
        back = np.rint(percent_signal(betas.rows(rows), rows, statistics) * 300).astype(np.int16)
        np.testing.assert_array_equal(places.to_vector(raw), back.T)
        inside = np.where(places.mask[..., None], raw, 0)
        np.testing.assert_array_equal(places.to_volume(back.T), inside)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_betas_are_z_scored_by_session_with_training_trials_alone(made, subject):
    betas = Betas.of(made.layout, subject)
    training, testing = (
        train_trials(made.layout, subject).table,
        test_trials(made.layout, subject).table,
    )
    assert betas.rows_on_disk.dtype == np.float32
    for session in range(SESSIONS):
        rows = training["trial"][training["session"] == session].to_numpy()
        z = betas.rows(rows).astype(np.float64)
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-6)
        raw = (
            load_places(made.layout, subject)
            .to_vector(raw_integers(made.raw, subject, session + 1))
            .T
            / 300
        )
        fitted = raw[rows - session * TRIALS]
        tests = testing["trial"][testing["session"] == session].to_numpy()
        expected = (raw[tests - session * TRIALS] - fitted.mean(axis=0)) / fitted.std(axis=0)
        np.testing.assert_allclose(betas.rows(tests), expected, rtol=1e-5, atol=1e-5)


def test_responses_are_the_simulated_ones_up_to_rounding(made):
    """Simulated betas are z-scored the same way, so a baseline and a scale per voxel drop out
    again.
    """
    for subject in SUBJECTS:
        rows = np.arange(SESSIONS * TRIALS)
        np.testing.assert_allclose(
            Betas.of(made.layout, subject).rows(rows),
            Betas.of(made.simulated, subject).rows(rows),
            atol=0.02,
        )


def z_scored(
    response: np.ndarray, test: np.ndarray, block: int = 7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z-scores, mean and spread, from responses that come in blocks of trials."""
    moments = Moments(response.shape[1])
    for first in range(0, len(response), block):
        moments.add(response[first : first + block], test[first : first + block])
    return (zscored(response, *moments.statistics()), *moments.statistics())


@pytest.mark.parametrize("offset", [0, 1e6])
def test_mean_and_spread_do_not_depend_on_the_blocks(offset):
    rng = np.random.default_rng(1)
    response, test = rng.normal(offset, 2, (40, 6)), rng.random(40) < 0.3
    for block in (1, 7, 40):
        _, mean, sd = z_scored(response, test, block)
        np.testing.assert_allclose(mean, response[~test].mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(sd, response[~test].std(axis=0), rtol=1e-6)
    halves = [Moments(6), Moments(6)]
    for half, rows in zip(halves, (slice(0, 15), slice(15, None))):
        half.add(response[rows], test[rows])
    merged = halves[0].merged(halves[1])
    np.testing.assert_allclose(merged.statistics()[0], response[~test].mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(merged.statistics()[1], response[~test].std(axis=0), rtol=1e-6)
    assert merged.trials == 40 and merged.training == (~test).sum()


def test_changed_test_trials_change_no_training_trial():
    rng = np.random.default_rng(0)
    response, test = rng.normal(3, 2, (40, 6)), rng.random(40) < 0.3
    before, _, _ = z_scored(response, test)
    after, _, _ = z_scored(np.where(test[:, None], response * 9 - 4, response), test)
    np.testing.assert_array_equal(before[~test], after[~test])
    assert (before[test] != after[test]).any()


def test_a_voxel_that_never_changes_stays_at_zero():
    response = np.full((9, 1), 0.1) + np.zeros((9, 2))
    z, mean, sd = z_scored(response, np.arange(9) < 2)
    assert (z == 0).all() and (sd == 1).all() and (mean == 0.1).all()


def test_pictures_are_those_of_the_release(made):
    stimuli = Stimuli(made.layout)
    with h5py.File(made.raw.stimuli) as file:
        bricks = file["imgBrick"][()]
    assert (
        len(stimuli) == len(bricks) and stimuli.rows.dtype == np.float16 and not stimuli.simulated
    )
    for image in (0, 7, len(bricks) - 1):
        expected = np.asarray(
            Image.fromarray(bricks[image]).resize((224, 224), Image.Resampling.BICUBIC)
        ).transpose(2, 0, 1)
        np.testing.assert_array_equal(np.rint(stimuli.images(np.array([image]))[0] * 255), expected)


def test_the_prepared_folder_passes_every_check_of_training(made):
    assert check_before_training(made.layout, SUBJECTS) == []


def test_a_map_for_every_voxel_returns_to_the_same_voxels(made, tmp_path):
    for subject in SUBJECTS:
        places = load_places(made.layout, subject)
        values = np.random.default_rng(subject).standard_normal(places.voxels).astype(np.float32)
        places.write(tmp_path / "map.nii.gz", values)
        np.testing.assert_array_equal(places.read(tmp_path / "map.nii.gz"), values)


def test_tables_count_pictures_from_zero_and_mark_shared_ones(made):
    table = behav(made.layout, 1, made.layout.wds_test(1))
    assert set(table[:, 16]) == {1} and set(table[:, 0]) == set(range(6))
    assert (behav(made.layout, 1, made.layout.wds_train(1, 0))[:, 16] == 0).all()


# --- any region, either order ---------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "order"), [("prf-visualrois:1,2", "C"), ("floc-faces", "F")])
@pytest.mark.slow
def test_any_region_can_be_the_mask_in_either_order(made, tmp_path, mask, order):
    assert run(made.raw, tmp_path, "--mask", mask, "--order", order) == 0
    layout = Layout.of(tmp_path)
    for subject in SUBJECTS:
        places = load_places(layout, subject)
        assert places.order == order and mask.partition(":")[0] in places.source
        name, _, labels = mask.partition(":")
        volume = np.asanyarray(
            nibabel.load(made.raw.data(subject) / "roi" / f"{name}.nii.gz").dataobj
        )
        np.testing.assert_array_equal(
            places.mask, np.isin(volume, [1, 2]) if labels else volume > 0
        )
        betas, statistics = Betas.of(layout, subject), load_statistics(layout, subject)
        assert betas.voxels == places.mask.sum()
        back = np.rint(percent_signal(betas.rows(np.arange(5)), np.arange(5), statistics) * 300)
        flat = raw_integers(made.raw, subject, 1)[..., :5].reshape(-1, 5, order=order)[
            places.mask.ravel(order=order)
        ]
        np.testing.assert_array_equal(back.T, flat)
        np.testing.assert_array_equal(
            load_label_vector(layout, subject, name) > 0, np.ones(betas.voxels) > 0
        )
        regions = read_regions(layout, subject)
        if labels:
            assert (
                regions["V1"].all()
                and regions["early_vis"].all()
                and not regions["higher_vis"].any()
            )
    assert check_before_training(layout, SUBJECTS) == []


# --- stopped and started --------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".braingen" not in p.parts
    }


@pytest.mark.parametrize("after", [1, 5, 8])
@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(
    made, tmp_path, monkeypatch, after
):
    finish, calls = prepare_pieces.Marks.finish, []

    def counted(self, name, *rest):
        if len(calls) >= after:
            raise KeyboardInterrupt
        calls.append(name)
        return finish(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_pieces.Marks, "finish", counted)
        assert run(made.raw, tmp_path) == 130
    again: list[str] = []
    monkeypatch.setattr(
        prepare_pieces.Marks,
        "finish",
        lambda self, name, *rest: again.append(name) or finish(self, name, *rest),
    )
    assert run(made.raw, tmp_path) == 0
    pieces = 2 * SESSIONS + -(-made.raw.pictures.number // 100)
    assert len(again) == pieces - after  # what was finished is not made again
    assert content(tmp_path) == content(made.layout.root)


def test_a_finished_folder_is_left_alone(made, tmp_path, monkeypatch):
    shutil.copytree(made.layout.root, tmp_path / "copy")
    monkeypatch.setattr(prepare, "write_subject", lambda *_: pytest.fail("written again"))
    before = content(tmp_path / "copy")
    assert run(made.raw, tmp_path / "copy") == 0
    assert content(tmp_path / "copy") == before


@pytest.mark.slow
def test_subjects_may_be_added(made, tmp_path):
    words = ["prepare", "--scans", str(made.raw.root), "--data_path", str(tmp_path)]
    assert main([*words, "--subj", "2"]) == 0
    assert list(h5py.File(made.layout.masks())) == ["subj01", "subj02"]
    assert main([*words, "--subj", "1"]) == 0
    mine, theirs = content(tmp_path), content(made.layout.root)
    assert set(mine) == set(theirs)
    different = [name for name in mine if mine[name] != theirs[name]]
    assert different in ([], ["prepared.json"])  # in another order


def test_checksums_are_those_of_the_files(made):
    manifest = json.loads((made.layout.root / "prepared.json").read_text())
    assert Stimuli(made.layout).data_name == manifest["data"] == "NSD"
    found = manifest["subjects"]["1"]["sha256"]
    assert {
        "betas_all_subj01_fp32_renorm.hdf5",
        "wds/subj01/train/0.tar",
        "wds/subj01/new_test/0.tar",
        "volumes/subj01/order.json",
    } <= set(found)
    for name, digest in found.items():
        assert prepare.sha256_of(made.layout.root / name) == digest


def test_the_doctor_compares_checksums(made, tmp_path):
    layout = Layout.of(shutil.copytree(made.layout.root, tmp_path / "copy"))
    (sound,) = doctor._checksums(layout, layout.prepared())
    assert sound.level == "ok"
    with open(layout.wds_train(2, 1), "r+b") as file:
        file.seek(700)
        file.write(b"!")
    layout.captions().unlink()
    (wrong,) = doctor._checksums(layout, layout.prepared())
    assert (
        wrong.level == "error"
        and "wds/subj02/train/1.tar, coco_captions.json differ" in wrong.sentence
    )


def test_what_the_disk_lost_is_noticed_before_the_file_gets_its_name(made, tmp_path, monkeypatch):
    publish = prepare_pieces.verify

    def spoil(array, parts, path):
        if "betas" in path.name:
            array.map(writable=True)[3, 2] += 1
        publish(array, parts, path)

    monkeypatch.setattr(prepare_pieces, "verify", spoil)
    with pytest.raises(
        UserError, match=r"session01 of .*betas_all_subj01.* is not on the disk as it was written"
    ):
        prepare.prepare(made.raw, tmp_path, [1], {})
    assert not Layout.of(tmp_path).betas(1).exists()


@pytest.mark.slow
def test_fewer_sessions(made, tmp_path):
    assert run(made.raw, tmp_path, "--num_sessions", "2") == 0
    layout = Layout.of(tmp_path)
    assert Betas.of(layout, 2).trials == 2 * TRIALS
    np.testing.assert_array_equal(
        Betas.of(layout, 2).rows(np.arange(9)), Betas.of(made.layout, 2).rows(np.arange(9))
    )
