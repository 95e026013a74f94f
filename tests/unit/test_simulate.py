"""The writer of simulated data: the layout of NSD, the truth beside it, the same bytes
every time.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import tarfile
import time

import nibabel
import numpy as np
import pytest

from braingen.config import Config
from braingen.data import nsd
from braingen.data.betas import Betas, report_voxels
from braingen.data.captions import load_captions
from braingen.data.stimuli import Stimuli
from braingen.data.trials import behav, group_repeats, test_trials, train_trials
from braingen.data.volumes import find_order, load_label_vector, load_places, read_regions
from braingen.encoders.ridge import average_repeats, fit_ridge
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.simulation import dataset, pictures, scenes, semantics
from braingen.simulation.backbones.corpus import CORPUS_SEED
from braingen.simulation.cortex import FLOC_AREAS, VISUAL_AREAS
from braingen.simulation.dataset import bytes_needed, simulate, write_dataset
from braingen.simulation.folder import Arguments, manifest_path
from braingen.simulation.presentations import behaviour, make_design

SIZE = {
    "num_subjects": 2,
    "num_sessions": 3,
    "trials_per_session": 150,
    "num_voxels": 400,
    "num_test_images": 30,
    "noise": 1.0,
    "seed": 5,
}
pytestmark = pytest.mark.slow  # a small data set is made in full
TINY = {
    "num_subjects": 1,
    "num_sessions": 2,
    "trials_per_session": 24,
    "num_voxels": 60,
    "num_test_images": 3,
    "noise": 1.0,
    "seed": 1,
}
COLUMN = {name: index for index, name in enumerate(nsd.BEHAV_COLUMNS)}


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "sim"
    return write_dataset(root, Arguments(**SIZE), show_progress=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder made by one process, without interruption."""
    return write_dataset(
        tmp_path_factory.mktemp("tiny") / "sim", Arguments(**TINY), workers=1, show_progress=False
    ).root


def _content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.long
def test_our_embedding_decoders_read_it_and_every_image_is_shown_three_times(layout):
    shown: dict[int, set[int]] = {}
    for subject in (1, 2):
        train, test = train_trials(layout, subject), test_trials(layout, subject)
        assert len(train.table) == 360 and len(test.table) == 90
        rows = np.sort(np.concatenate([train.table["trial"], test.table["trial"]]))
        np.testing.assert_array_equal(rows, np.arange(450))
        for trials in (train, test):
            assert (group_repeats(trials).rows_NR >= 0).all() and group_repeats(
                trials
            ).rows_NR.shape[1] == 3
            np.testing.assert_array_equal(trials.table["session"], trials.table["trial"] // 150)
        assert set(test.table["image"]) == set(range(30))
        shown[subject] = set(train.table["image"])
        betas = Betas.of(layout, subject)
        assert (betas.trials, betas.voxels) == (
            450,
            len(np.load(layout.truth(subject))["area"]),
        ) and betas.rows_on_disk.mapped
        report = report_voxels(betas)
        assert not any(found.any() for found in report)
    assert not shown[1] & shown[2] and len(shown[1]) == 120
    stimuli = Stimuli(layout)
    assert len(stimuli) == 30 + 240 == len(load_captions(layout)) and stimuli.simulated
    assert stimuli.rows.dtype == np.float16 and stimuli.rows.mapped
    assert Betas.of(layout, 1).voxels == 400 != Betas.of(layout, 2).voxels


def test_training_trials_are_z_scored_per_session_and_test_trials_with_them(layout):
    table, betas = train_trials(layout, 1).table, Betas.of(layout, 1)
    for session in range(3):
        rows = betas.rows(table["trial"][table["session"] == session].to_numpy()).astype(np.float64)
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(rows.std(0), 1, atol=1e-3)
    test = test_trials(layout, 1).table
    rows = betas.rows(test["trial"][test["session"] == 0].to_numpy())
    assert np.abs(rows.mean(0)).max() > 0.05  # these had no say in the mean


def test_the_samples_hold_what_the_columns_promise(layout):
    with tarfile.open(layout.wds_train(1, 1)) as tar:
        names = tar.getnames()
        assert [name.split(".", 1)[1] for name in names[:4]] == [
            "behav.npy",
            "past_behav.npy",
            "future_behav.npy",
            "olds_behav.npy",
        ]
        sample = {
            name.split(".", 1)[1]: np.load(io.BytesIO(tar.extractfile(name).read()))
            for name in names[80:84]
        }
    assert [array.shape for array in sample.values()] == [(1, 17), (15, 17), (15, 17), (3, 17)]
    assert {array.dtype for array in sample.values()} == {np.dtype(np.float64)}
    own, past, future, olds = sample.values()
    row, image = own[0, COLUMN["global_trial"]], own[0, COLUMN["image"]]
    assert names[80] == f"sample{int(row):09d}.behav.npy"
    kept = past[:, 0] >= 0
    np.testing.assert_array_equal(
        past[kept, COLUMN["global_trial"]], row - 1 - np.arange(kept.sum())
    )
    np.testing.assert_array_equal(future[:, COLUMN["global_trial"]], row + 1 + np.arange(15))
    assert (past[kept, COLUMN["session"]] == own[0, COLUMN["session"]]).all() and (
        past[~kept] == -1
    ).all()
    assert (
        (olds[:2, COLUMN["image"]] == image).all()
        and (olds[2] == -1).all()
        and row not in olds[:, COLUMN["global_trial"]]
    )
    table = behav(layout, 1, layout.wds_test(1))
    assert (table[:, COLUMN["is_shared1000"]] == 1).all() and (own[0, COLUMN["is_shared1000"]]) == 0
    older = behav(layout, 1, layout.wds_test(1, "test"))
    assert 0 < len(older) < len(table) and older[:, COLUMN["session"]].max() == 2


def test_masks_volumes_and_truth_agree(layout):
    for subject in (1, 2):
        truth, places, regions = (
            np.load(layout.truth(subject)),
            load_places(layout, subject),
            read_regions(layout, subject),
        )
        area = truth["area"]
        assert set(regions) == set(nsd.REGIONS) and regions["nsd_general"].all()
        assert find_order(layout, subject).order == places.order == "C"
        np.testing.assert_array_equal(places.indices_V3, truth["voxel_index"])
        for name, labels in nsd.VISUAL_ROI_LABELS.items():
            np.testing.assert_array_equal(
                np.isin(load_label_vector(layout, subject, "prf-visualrois"), labels), regions[name]
            )
        early = np.isin(area, VISUAL_AREAS)
        np.testing.assert_array_equal(regions["early_vis"], early)
        np.testing.assert_array_equal(regions["higher_vis"], ~early)
        assert sum(regions[name].astype(int) for name in ("V1", "V2", "V3", "V4")).max() == 1
        for name, areas in FLOC_AREAS.items():
            labels = load_label_vector(layout, subject, name)
            np.testing.assert_array_equal(labels > 0, np.isin(area, areas))
            assert all(
                (area[labels == number] == wanted).all()
                for number, wanted in enumerate(areas, start=1)
            )
        for name in nsd.PRF_VOLUMES:
            np.testing.assert_array_equal(load_label_vector(layout, subject, name), truth[name])
        volume = nibabel.load(layout.volumes(subject) / "prf-visualrois.nii.gz")
        assert (
            np.diag(volume.affine)[:3] == pytest.approx(1.8)
            and (np.asarray(volume.dataobj)[~places.mask] == -1).all()
        )


def test_the_noise_ceiling_estimated_from_repeats_is_the_planted_one(layout):
    train, test, betas = (
        train_trials(layout, 1).table,
        test_trials(layout, 1).table,
        Betas.of(layout, 1),
    )
    responses, images = betas.rows(np.arange(450)), np.empty(450, dtype=int)
    for table in (train, test):
        images[table["trial"]] = table["image"]
    repeated = responses[np.argsort(images, kind="stable")].reshape(150, 3, -1)
    noise = repeated.var(axis=1, ddof=1).mean(axis=0)
    estimated = np.sqrt(np.maximum(responses.var(axis=0) - noise, 0) / noise)
    truth = np.load(layout.truth(1))
    early = np.isin(truth["area"], VISUAL_AREAS)
    for inside in (early, ~early):
        assert np.median(estimated[inside]) == pytest.approx(
            np.median(truth["snr"][inside]), rel=0.15
        )
    assert np.corrcoef(estimated, truth["snr"])[0, 1] > 0.9
    explainable = estimated**2 / (estimated**2 + 1 / 3)
    assert 0.25 < np.median(explainable) < 0.42


def test_the_noise_free_test_responses_are_those_behind_the_trials(layout):
    truth, test, betas = np.load(layout.truth(2)), test_trials(layout, 2).table, Betas.of(layout, 2)
    average, ids = average_repeats(betas.rows(test["trial"].to_numpy()), test["image"].to_numpy())
    np.testing.assert_array_equal(ids, truth["test_image"])
    signal = truth["test_signal"]
    correlation = ((average - average.mean(0)) * (signal - signal.mean(0))).mean(0) / (
        average.std(0) * signal.std(0)
    )
    expected = truth["snr"] / np.sqrt(truth["snr"] ** 2 + 1 / 3)
    assert correlation.mean() == pytest.approx(expected.mean(), abs=0.06)
    share = truth["label_share"]
    assert (share >= 0).all() and (share <= 1).all()
    places = np.isin(truth["area"], FLOC_AREAS["floc-places"])
    background = list(truth["labels"]).index("background")
    assert np.median(share[places, background]) > 0.5 > np.median(share[~places, background])


def test_voxels_tell_the_scene_and_shuffled_voxels_do_not(layout):
    train, test, betas = (
        train_trials(layout, 1).table,
        test_trials(layout, 1).table,
        Betas.of(layout, 1),
    )
    label = semantics.labels(pictures.load_scenes(layout, range(len(Stimuli(layout)))))[
        :, semantics.LABELS.index("background")
    ]
    voxels, images = betas.rows(train["trial"].to_numpy()), train["image"].to_numpy()
    average, ids = average_repeats(betas.rows(test["trial"].to_numpy()), test["image"].to_numpy())
    targets = np.eye(len(scenes.BACKGROUNDS), dtype=np.float32)[label[images]]
    rng = np.random.default_rng(0)
    right = [(fit_ridge(voxels, targets, images).predict(average).argmax(1) == label[ids]).mean()]
    for _ in range(5):  # every trial keeps its values, but they come from other voxels each time
        shuffled = fit_ridge(rng.permuted(voxels, axis=1), targets, images)
        right.append(
            (shuffled.predict(rng.permuted(average, axis=1)).argmax(1) == label[ids]).mean()
        )
    assert right[0] > 0.6
    assert np.mean(right[1:]) < 0.25  # chance is 0.1, of 150 answers


def test_pictures_captions_and_descriptions_belong_together(layout):
    stimuli, captions = Stimuli(layout), load_captions(layout)
    for image, scene in zip((0, 7, 100), pictures.load_scenes(layout, (0, 7, 100))):
        assert scene == pictures.scene_of(SIZE["seed"], image)
        np.testing.assert_array_equal(
            stimuli.images([image])[0],
            np.clip(scenes.stimulus(scenes.render(scene)), 0, 1).astype(np.float32),
        )
        name = scenes.OBJECTS[scene.objects[0].object].name
        assert len(captions[image]) == 5 and sum(name in text for text in captions[image]) == 5
    last = pictures.MAX_SEED * pictures.MAX_IMAGES + pictures.MAX_IMAGES - 1
    assert last < 2**32 < CORPUS_SEED  # none of the pictures the backbones were trained on
    with pytest.raises(UserError, match="image 270"):
        pictures.load_scenes(layout, [270])


def test_subjects_differ(layout):
    one, two = (np.load(layout.truth(subject)) for subject in (1, 2))
    assert one["voxel_index"].shape != two["voxel_index"].shape
    first = min(len(one["area"]), len(two["area"]))
    assert not np.array_equal(one["area"][:first], two["area"][:first])
    np.testing.assert_array_equal(one["test_image"], two["test_image"])


# --- the design -----------------------------------------------------------------------------------


def test_the_design_is_nsd_s_at_full_size():
    design = make_design(0, 40, 750, 1000)
    assert design.images == 10000 and design.trials == 30000
    assert (np.bincount(design.place_T) == 3).all()
    training, distinct = [], []
    for session in range(40):
        shown = design.place_T[design.rows(session)]
        training.append((shown >= 1000).sum())
        distinct.append(len(np.unique(shown[shown >= 1000])))
    assert np.mean(training) / np.mean(distinct) == pytest.approx(
        688 / 536, abs=0.08
    )  # NSD's first session
    full = Arguments(8, 40, 750, nsd.VOXELS[1], 1000, 1.0, 0)
    assert {subject: full.voxels(subject) for subject in nsd.SUBJECTS} == nsd.VOXELS
    assert len({full._replace(num_voxels=50).voxels(subject) for subject in nsd.SUBJECTS}) == 8
    assert bytes_needed(full, design) > nsd.VOXELS[1] * 30000 * 4


def test_trials_that_do_not_come_out_even_leave_one_image_short():
    design = make_design(0, 2, 25, 4)
    assert design.own_images == 13 and sorted(np.bincount(design.place_T))[:2] == [2, 3]
    table = behaviour(design, 0, 2)
    np.testing.assert_array_equal(
        table[:, COLUMN["image"]] < 4, table[:, COLUMN["is_shared1000"]] == 1
    )
    first = np.unique(table[:, COLUMN["image"]], return_index=True)[1]
    assert (table[first, COLUMN["is_old"]] == 0).all() and table[
        :, COLUMN["is_old"]
    ].sum() == 50 - len(first)
    assert (
        table[:, 0].max() == 4 + 2 * 13 - 1
        and (table[:, COLUMN["session"]] == np.repeat([1, 2], 25)).all()
    )


# --- the same bytes, whatever happens -------------------------------------------------------------


def test_another_number_of_processes_writes_the_same_bytes(tiny, tmp_path):
    again = write_dataset(tmp_path / "sim", Arguments(**TINY), workers=2, show_progress=False).root
    assert _content(again) == _content(tiny)


def test_another_seed_writes_other_bytes(tiny, tmp_path):
    other = write_dataset(
        tmp_path / "sim", Arguments(**{**TINY, "seed": 2}), workers=1, show_progress=False
    ).root
    ours, theirs = _content(tiny), _content(other)
    assert ours.keys() == theirs.keys()
    for name in (
        "betas_all_subj01_fp32_renorm.hdf5",
        "coco_images_224_float16.hdf5",
        "volumes/subj01/nsdgeneral.nii.gz",
    ):
        assert ours[name] != theirs[name]


@pytest.mark.long
def test_killed_and_started_again_it_ends_with_the_same_bytes(tmp_path, monkeypatch):
    # few pictures a piece, in all three: how many go into a product at once decides its last bit on
    # some processors
    monkeypatch.setattr(dataset, "_PICTURES_AT_ONCE", 4)
    monkeypatch.setattr(dataset, "_RESPONSES_AT_ONCE", 4)
    calm = write_dataset(tmp_path / "calm", Arguments(**TINY), workers=1, show_progress=False).root
    root = tmp_path / "sim"
    code = (
        "import sys, json; from braingen.simulation import dataset; dataset._PICTURES_AT_ONCE = 4;"
        " dataset._RESPONSES_AT_ONCE = 4; dataset.write_dataset(sys.argv[1],"
        " dataset.Arguments(**json.loads(sys.argv[2])), workers=2, show_progress=False)"
    )
    command = [sys.executable, "-c", code, str(root), json.dumps(TINY)]
    marks = ("pictures/0", "subj01_responses/0", "subj01_sessions/0")
    for mark in marks:  # killed in every phase, as soon as its first piece is done
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (root / ".simulating" / mark).exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    write_dataset(root, Arguments(**TINY), workers=1, show_progress=False)
    assert _content(root) == _content(calm)


def test_a_finished_folder_is_recognised_and_a_lost_file_made_again(tiny):
    before, betas = _content(tiny), Layout.of(tiny).betas(1)
    stamp = os.stat(Layout.of(tiny).images()).st_mtime_ns
    betas.unlink()
    write_dataset(tiny, Arguments(**TINY), workers=1, show_progress=False)
    write_dataset(tiny, Arguments(**TINY), workers=1, show_progress=False)
    assert _content(tiny) == before and os.stat(Layout.of(tiny).images()).st_mtime_ns == stamp


# --- what is refused ------------------------------------------------------------------------------


def test_other_arguments_are_refused_by_name(tiny):
    before = _content(tiny)
    with pytest.raises(
        UserError, match=r"seed 1 \(now 9\).*noise|noise 1.0 \(now 0.5\).*seed 1 \(now 9\)"
    ):
        write_dataset(tiny, Arguments(**{**TINY, "seed": 9, "noise": 0.5}), show_progress=False)
    assert _content(tiny) == before


def test_real_data_are_never_written_over(tmp_path):
    (tmp_path / "coco_images_224_float16.hdf5").write_bytes(b"precious")
    with pytest.raises(UserError, match="did not write"):
        write_dataset(tmp_path, Arguments(**TINY), show_progress=False)
    assert (tmp_path / "coco_images_224_float16.hdf5").read_bytes() == b"precious" and len(
        list(tmp_path.iterdir())
    ) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_subjects": 9}, "1 to 8"),
        ({"num_voxels": 20}, "at least 50"),
        ({"seed": 5000}, "0 to 4293"),
        ({"noise": float("nan")}, "simulation.noise is nan"),
        ({"num_test_images": 16}, "nothing is left to train on"),
        ({"num_test_images": 15}, "training trials"),
        ({"num_voxels": 10**9, "num_sessions": 10**4}, "GB more"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        write_dataset(tmp_path / "sim", Arguments(**{**TINY, **change}), show_progress=False)
    assert not (tmp_path / "sim").exists()


def test_a_second_writer_is_sent_away(tmp_path):
    holding = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX);"
        " print('held', flush=True); time.sleep(9)"
    )
    (tmp_path / ".simulating").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path / ".simulating" / "lock")],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="Another process"):
            write_dataset(tmp_path, Arguments(**TINY), show_progress=False)
    finally:
        process.kill()
        process.wait()


def test_the_stage_writes_what_the_settings_say(tmp_path):
    config = Config.model_validate(
        {"data": {"root": tmp_path / "sim"}, "simulation": {**TINY, "noise": 0.0}}
    )
    layout = Layout.of(simulate(config))
    assert layout.root == tmp_path / "sim"
    assert json.loads(manifest_path(layout).read_text())["arguments"]["num_voxels"] == 60
    test, betas = (
        test_trials(layout, 1).table,
        Betas.of(layout, 1),
    )  # without noise, presentations differ by the z-scoring only
    first = betas.rows(test["trial"][test["image"] == 0].to_numpy())
    session = test["session"][test["image"] == 0].to_numpy()
    for number in np.unique(session):
        np.testing.assert_allclose(
            first[session == number],
            first[session == number][:1].repeat((session == number).sum(), 0),
            atol=1e-5,
        )
