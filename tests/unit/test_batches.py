"""Batches: every trial once, the same ones again for the same (seed, epoch, step, rank, world)."""

from __future__ import annotations

import threading

import numpy as np
import pandas as pd
import pytest
import torch
from unit.fake_nsd import write_betas

from braingen.data.batches import RepeatBatches, TrainBatches, average_repeats, prefetched
from braingen.data.betas import Betas
from braingen.data.trials import group_repeats
from braingen.runtime.errors import UserError
from braingen.types import Trials


@pytest.fixture
def subject(tmp_path):
    """Maker of a subject with n trials among n + 5 rows; the response of row r is r everywhere."""

    def make(number: int, trials: int):
        rows = np.random.default_rng(number).permutation(trials + 5)[:trials]
        rows.sort()
        path = tmp_path / f"{number}.hdf5"
        write_betas(
            path, np.repeat(np.arange(trials + 5, dtype=np.float32)[:, None], 3 + number, axis=1)
        )
        table = pd.DataFrame({"trial": rows, "image": rows * 10 + number, "repeat": 0})
        return Trials(table, number), Betas(path)

    return make


@pytest.mark.parametrize("trials", [1, 7, 24, 25, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 24, 200])
def test_every_trial_once_per_epoch(subject, trials, batch_size):
    one = subject(1, trials)
    batches = TrainBatches([one], batch_size, seed=3)
    epoch = list(batches.epoch(0))
    assert len(epoch) == batches.steps == -(-trials // batch_size)
    sizes = [len(batch.image_B) for (batch,) in epoch]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    images = torch.cat([batch.image_B for (batch,) in epoch])
    assert sorted(images.tolist()) == one[0].table["image"].tolist()


def test_voxels_belong_to_the_images(subject):
    for (batch,) in TrainBatches([subject(2, 30)], 7, seed=0).epoch(4):
        assert batch.subject == 2 and batch.voxels_BV.shape == (len(batch.image_B), 5)
        assert batch.voxels_BV.dtype == torch.float32 and batch.image_B.dtype == torch.int64
        assert torch.equal(
            batch.voxels_BV * 10 + 2, batch.image_B[:, None].expand_as(batch.voxels_BV).float()
        )


def test_epochs_and_seeds_shuffle_anew_and_repeat_exactly(subject):
    one = subject(1, 50)

    def order(seed, epoch):
        return torch.cat(
            [batch.image_B for (batch,) in TrainBatches([one], 8, seed).epoch(epoch)]
        ).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_resuming_gives_the_batches_that_were_left(subject):
    subjects = [subject(1, 50), subject(2, 20)]
    whole = list(TrainBatches(subjects, 8, 0).epoch(5))
    rest = list(TrainBatches(subjects, 8, 0).epoch(5, first_step=9, ahead=0))
    assert len(rest) == len(whole) - 9
    for a, b in zip(whole[9:], rest):
        for x, y in zip(a, b):
            assert torch.equal(x.voxels_BV, y.voxels_BV) and torch.equal(x.image_B, y.image_B)
    with pytest.raises(IndexError):
        TrainBatches(subjects, 8, 0).batch(0, len(whole))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("trials", [48, 49, 13, 5])
def test_ranks_share_out_the_global_batch(subject, world, trials):
    subjects = [subject(1, trials), subject(2, 2 * trials // 3)]
    ranks = [TrainBatches(subjects, 4, 0, rank, world) for rank in range(world)]
    used = []
    for step in range(ranks[0].steps):
        chosen = [rank.chosen(0, step) for rank in ranks]
        sizes = {len(part) for rank in chosen for part in rank}
        assert len(sizes) == 1 and 0 < sizes.pop() <= 2
        used += [index for rank in chosen for index in rank[0].tolist()]
    assert len(used) == len(set(used)) == trials // world * world


def test_two_processes_see_the_batches_of_one_twice_as_large(subject):
    subjects = [subject(1, 48), subject(2, 32)]
    alone = TrainBatches(subjects, 8, 0)
    pair = [TrainBatches(subjects, 4, 0, rank, 2) for rank in (0, 1)]
    assert alone.steps == pair[0].steps
    for step in range(alone.steps):
        for position in (0, 1):
            joined = np.concatenate([rank.chosen(1, step)[position] for rank in pair])
            assert np.array_equal(joined, alone.chosen(1, step)[position])


def test_subjects_get_equal_shares_and_shorter_ones_go_round(subject):
    long, short = subject(1, 60), subject(2, 25)
    batches = TrainBatches([long, short], 12, 0)
    epoch = list(batches.epoch(0))
    assert all(
        len(a.image_B) == len(b.image_B) and (a.subject, b.subject) == (1, 2) for a, b in epoch
    )
    assert (
        sorted(torch.cat([a.image_B for a, _ in epoch]).tolist()) == long[0].table["image"].tolist()
    )
    shown = torch.cat([b.image_B for _, b in epoch]).tolist()
    for start in (0, 25):  # pass after pass, each complete
        assert sorted(shown[start : start + 25]) == short[0].table["image"].tolist()
    assert shown[:25] != shown[25:50]


def test_impossible_settings_end_in_a_sentence(subject):
    one, two = subject(1, 9), subject(2, 9)
    with pytest.raises(UserError, match="--batch_size is 1 for 2 subjects"):
        TrainBatches([one, two], 1, 0)
    with pytest.raises(UserError, match="No subject"):
        TrainBatches([], 1, 0)
    with pytest.raises(UserError, match="too few for 10 processes"):
        TrainBatches([one], 4, 0, 0, 10)
    one[0].table.loc[8, "trial"] = 14
    with pytest.raises(UserError, match="row 14 was asked for, `betas` has rows 0-13"):
        TrainBatches([one], 4, 0)
    with pytest.raises(UserError, match="--batch_size is 0"):
        RepeatBatches(group_repeats(two[0]), two[1], 2, 0)


def test_repeats_are_averaged_over_those_there_are(subject):
    trials, betas = subject(1, 8)
    table = trials.table.assign(image=[4, 4, 4, 2, 2, 9, 9, 9], repeat=[0, 1, 2, 0, 1, 0, 1, 2])
    repeats = RepeatBatches(group_repeats(Trials(table, 1)), betas, 1, batch_size=2)
    assert len(repeats) == 2
    batches = list(repeats)
    assert torch.cat([batch.image_B for batch in batches]).tolist() == [2, 4, 9]
    row = table["trial"].to_numpy()
    expected = [row[3:5].mean(), row[:3].mean(), row[5:].mean()]
    voxels = torch.cat([average_repeats(batch.voxels_BRV, batch.present_BR) for batch in batches])
    assert torch.allclose(voxels, torch.tensor(expected, dtype=torch.float32)[:, None].expand(3, 4))


def test_average_of_anything_leaves_out_what_is_missing():
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    present = torch.tensor([[True, False, True], [True, False, False]])
    assert torch.equal(average_repeats(x, present), torch.stack([(x[0, 0] + x[0, 2]) / 2, x[1, 0]]))


def test_prefetching_changes_nothing_and_passes_errors_on():
    assert list(prefetched(range(50), ahead=3)) == list(range(50))

    def breaks():
        yield 1
        raise UserError("broken")

    items = prefetched(breaks())
    assert next(items) == 1
    with pytest.raises(UserError, match="broken"):
        next(items)


def test_leaving_early_ends_the_thread():
    items = prefetched(iter(int, 1), ahead=2)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "braingen-prefetch"]
