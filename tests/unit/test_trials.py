"""The trial table against what was written into the tars."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from unit.fake_nsd import write_fake_nsd, write_tar

from braingen.data import trials as trials_module
from braingen.data.nsd import SIMULATED_ATTRIBUTE
from braingen.data.trials import (
    group_repeats,
    hold_out_images,
    read_behav,
    sessions_on_disk,
    test_trials,
    train_trials,
)
from braingen.runtime.errors import UserError


@pytest.fixture
def data(tmp_path):
    return write_fake_nsd(tmp_path, sessions=3, images=20)


def test_training_trials_are_those_written(data):
    layout, written = data
    table = train_trials(layout, 2).table
    assert np.array_equal(table[["session", "trial", "image"]].to_numpy(), written[2].train)
    assert set(table["subject"]) == {2} and set(table["split"]) == {"train"}
    for _, shown in table.groupby("image"):
        assert shown["repeat"].tolist() == list(range(len(shown)))


def test_first_sessions_only(data):
    layout, written = data
    table = train_trials(layout, 1, num_sessions=2).table
    assert np.array_equal(
        table[["session", "trial", "image"]].to_numpy(),
        written[1].train[written[1].train[:, 0] < 2],
    )


def test_test_trials_and_their_repeats(data):
    layout, written = data
    found = test_trials(layout, 1)
    assert np.array_equal(found.table[["session", "trial", "image"]].to_numpy(), written[1].test)
    repeats = group_repeats(found)
    assert repeats.image_N.tolist() == sorted(set(written[1].test[:, 2]))
    for image, rows in zip(repeats.image_N, repeats.rows_NR):
        assert rows.tolist() == written[1].test[written[1].test[:, 2] == image, 1].tolist()


def test_repeats_of_an_image_shown_less_often_are_filled_with_minus_one(data):
    layout, _ = data
    found = test_trials(layout, 1)
    cut = found._replace(table=found.table.iloc[:-2])
    rows = group_repeats(cut).rows_NR
    assert (rows == -1).sum() == 2 and (rows[:, 0] >= 0).all()
    assert group_repeats(found, max_repeats=1).rows_NR.shape == (4, 1)


def test_tars_are_read_once(data, monkeypatch):
    layout, _ = data
    first = train_trials(layout, 1).table
    trials_module._read_once.cache_clear()
    monkeypatch.setattr(trials_module, "read_behav", lambda path: pytest.fail("read again"))
    assert train_trials(layout, 1).table.equals(first)


def test_a_changed_tar_is_read_again(data):
    layout, written = data
    train_trials(layout, 1)
    changed = written[1].train[written[1].train[:, 0] == 0][:5]
    write_tar(layout.wds_train(1, 0), 1, changed)
    table = train_trials(layout, 1, num_sessions=1).table
    assert table["trial"].tolist() == changed[:, 1].tolist()


def test_a_read_only_data_folder_is_no_obstacle(data, monkeypatch):
    layout, written = data

    def refuse(*_, **__):
        raise UserError("read-only")

    monkeypatch.setattr(trials_module, "replaced_file", refuse)
    trials_module._read_once.cache_clear()
    assert len(train_trials(layout, 1).table) == len(written[1].train)


def test_images_are_held_out_whole_and_by_their_id_alone(data):
    layout, _ = data
    both = train_trials(layout, 1)
    training, validation = hold_out_images(both, share=0.3, seed=7)
    held = set(validation.table["image"])
    assert held and not held & set(training.table["image"])
    assert len(training.table) + len(validation.table) == len(both.table)
    assert set(validation.table["split"]) == {"validation"}
    fewer = train_trials(layout, 1, num_sessions=2)
    assert set(hold_out_images(fewer, 0.3, 7)[1].table["image"]) <= held
    assert set(hold_out_images(both, 0.3, 8)[1].table["image"]) != held


def test_share_held_out_is_met_on_average():
    ids = np.arange(20000)
    for seed in range(3):
        ticket = trials_module._lottery(ids, seed)
        assert abs((ticket < 0.1).mean() - 0.1) < 0.01
        assert abs(np.corrcoef(ids, ticket)[0, 1]) < 0.03
    assert (
        abs(np.corrcoef(trials_module._lottery(ids, 0), trials_module._lottery(ids, 1))[0, 1])
        < 0.03
    )


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_impossible_share_is_refused(data, share):
    with pytest.raises(UserError, match="share"):
        hold_out_images(train_trials(data[0], 1), share, 0)


@pytest.mark.slow
def test_truncation_anywhere_is_noticed(data):
    layout, _ = data
    path = layout.wds_train(1, 0)
    whole = path.read_bytes()
    content = len(whole.rstrip(b"\0"))
    for size in [*range(512, content, 1536), 100, content - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="cut short"):
            read_behav(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"x" * 5000, "cut short"),
        (b"x" * 5000 + b"\0" * 1024, "damaged"),
        (b"\0" * 10240, "no sample"),
    ],
)
def test_what_is_not_a_tar_is_called_what_it_is(data, content, words):
    path = data[0].wds_train(1, 0)
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        train_trials(data[0], 1)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_session_names_those_that_exist(data):
    layout, _ = data
    layout.wds_train(1, 1).unlink()
    assert sessions_on_disk(layout, 1) == [0, 2]
    with pytest.raises(UserError, match=r"session 1 of 3 missing .* has session 0, 2;"):
        train_trials(layout, 1)
    assert len(train_trials(layout, 1, num_sessions=1).table)
    with pytest.raises(UserError, match="session 1 of 3 missing"):
        train_trials(layout, 1, num_sessions=40)
    unmark(layout)
    with pytest.raises(UserError, match="1, 3-39 of 40"):
        train_trials(layout, 1, num_sessions=40)


def unmark(layout) -> None:
    """Make the folder one that does not say that it is simulated: to a reader it is NSD."""
    with h5py.File(layout.images(), "r+") as file:
        del file["images"].attrs[SIMULATED_ATTRIBUTE]


def test_more_sessions_than_a_subject_was_scanned_in_are_all_of_them(data):
    layout, _ = data
    everything = train_trials(layout, 1).table
    pd.testing.assert_frame_equal(train_trials(layout, 1, num_sessions=40).table, everything)
    unmark(layout)
    with pytest.raises(UserError, match="session 3-39 of 40 missing"):
        train_trials(layout, 1, num_sessions=40)


def test_forty_sessions_of_nsds_subjects_with_fewer(tmp_path):
    """Subject 4 was scanned thirty times: `launch_train.sh 40 --subj 4` is all of it."""
    layout, _ = write_fake_nsd(tmp_path, subjects=[4], sessions=30, images=40)
    unmark(layout)
    assert train_trials(layout, 4, num_sessions=40).table["session"].nunique() == 30
    layout.wds_train(4, 29).unlink()
    with pytest.raises(UserError, match="session 29 of 30 missing"):
        train_trials(layout, 4, num_sessions=40)


def test_wrong_subject_and_missing_subject(data):
    layout, written = data
    write_tar(layout.wds_train(1, 0), 2, written[1].train[:3])
    with pytest.raises(UserError, match="trials of subject 2, subject 1 was expected"):
        train_trials(layout, 1)
    with pytest.raises(UserError, match="no training trials of subject 5"):
        train_trials(layout, 5)
    with pytest.raises(UserError, match="is missing"):
        test_trials(layout, 5)
    with pytest.raises(UserError, match="num_sessions is -1"):
        train_trials(layout, 2, -1)


def test_a_trial_twice_and_a_trial_that_is_no_number(data, tmp_path: Path):
    layout, written = data
    rows = written[1].train[written[1].train[:, 0] == 0].astype(float)
    write_tar(layout.wds_train(1, 0), 1, np.concatenate([rows, rows[:1]]))
    with pytest.raises(UserError, match="occurs twice"):
        train_trials(layout, 1)
    rows[2, 2] = np.nan
    write_tar(layout.wds_train(1, 0), 1, rows)
    with pytest.raises(UserError, match="sample 2 has image nan"):
        train_trials(layout, 1)
