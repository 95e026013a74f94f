"""The cache of frozen work: each picture once, again exactly when it changed, never lost or mixed
up by an interruption.
"""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from braingen.runtime.errors import UserError
from braingen.runtime.fingerprints import digest_of_texts, fingerprint_of_files
import braingen.targets.cache as cache_module
from braingen.targets.cache import Cache

N = 40


class Model:
    """Stands for a frozen model: a row of an id and of the content its picture has now; remembers
    what it was asked.
    """

    def __init__(self) -> None:
        self.content = np.arange(N)
        self.asked: list[int] = []
        self.fail_after = np.inf

    def __call__(self, ids: np.ndarray) -> torch.Tensor:
        if len(self.asked) + len(ids) > self.fail_after:
            raise KeyboardInterrupt
        self.asked += ids.tolist()
        return torch.from_numpy(np.stack([ids, self.content[ids] * 10], axis=1)).double()[:, None]

    def digests(self, ids: np.ndarray) -> np.ndarray:
        return self.content[ids].astype(np.uint64) + np.uint64(1)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        return np.stack([ids, self.content[ids] * 10], axis=1)[:, None].astype(np.float32)


@pytest.fixture
def model() -> Model:
    return Model()


def cache_of(model: Model, folder, key: str = "a", count: int = N) -> Cache:
    return Cache(folder, "thing", {"weights": key}, count, model)


def test_rows_come_in_the_order_asked_for(model, tmp_path):
    ids = np.array([7, 3, 3, 39, 0])
    found = cache_of(model, tmp_path).of(ids, model.digests(ids))
    np.testing.assert_array_equal(found, model.rows(ids))
    assert found.dtype == np.float32
    assert sorted(model.asked) == [0, 3, 7, 39]  # each once


def test_what_was_computed_is_not_computed_again(model, tmp_path):
    ids = np.arange(20)
    cache_of(model, tmp_path).of(ids, model.digests(ids))
    model.asked.clear()
    more = np.arange(15, 25)
    np.testing.assert_array_equal(
        cache_of(model, tmp_path).of(more, model.digests(more)), model.rows(more)
    )
    assert model.asked == [20, 21, 22, 23, 24]


def test_exactly_the_changed_pictures_are_computed_again(model, tmp_path):
    ids = np.arange(20)
    cache_of(model, tmp_path).of(ids, model.digests(ids))
    model.asked.clear()
    model.content[[4, 11]] += 100
    np.testing.assert_array_equal(
        cache_of(model, tmp_path).of(ids, model.digests(ids)), model.rows(ids)
    )
    assert model.asked == [4, 11]


def test_another_key_is_another_table(model, tmp_path):
    ids = np.arange(5)
    cache_of(model, tmp_path, "a").of(ids, model.digests(ids))
    model.asked.clear()
    cache_of(model, tmp_path, "b").of(ids, model.digests(ids))
    assert model.asked == ids.tolist()
    cache_of(model, tmp_path, "a").of(ids, model.digests(ids))
    assert model.asked == ids.tolist()


def test_an_image_file_of_another_length_is_another_table(model, tmp_path):
    few = np.arange(5)
    cache_of(model, tmp_path, count=5).of(few, model.digests(few))
    ids = np.arange(N)
    np.testing.assert_array_equal(
        cache_of(model, tmp_path).of(ids, model.digests(ids)), model.rows(ids)
    )


@pytest.mark.parametrize("finished", [0, 1, 8, 9, 24])
def test_an_interruption_loses_one_batch_at_most(model, tmp_path, finished):
    ids = np.arange(32)
    model.fail_after = finished
    with pytest.raises(KeyboardInterrupt):
        cache_of(model, tmp_path).of(ids, model.digests(ids), batch=8)
    done = len(model.asked)
    assert done == finished // 8 * 8
    model.asked.clear()
    model.fail_after = np.inf
    np.testing.assert_array_equal(
        cache_of(model, tmp_path).of(ids, model.digests(ids), batch=8), model.rows(ids)
    )
    assert model.asked == list(range(done, 32))


def test_killed_between_rows_and_their_mark_they_are_made_again(model, tmp_path, monkeypatch):
    ids = np.arange(16)

    write_rows = cache_module._write_rows

    def write_or_die(path, rows, values):
        if "made_from" in path.name and values.any():
            raise KeyboardInterrupt
        write_rows(path, rows, values)

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_write_rows", write_or_die)
        with pytest.raises(KeyboardInterrupt):
            cache_of(model, tmp_path).of(ids, model.digests(ids), batch=8)
    model.asked.clear()
    np.testing.assert_array_equal(
        cache_of(model, tmp_path).of(ids, model.digests(ids), batch=8), model.rows(ids)
    )
    assert model.asked == ids.tolist()


def test_two_processes_fill_one_table(model, tmp_path):
    """The second starts before the first has marked anything; neither wipes out the other's
    rows.
    """
    other, mine, theirs = Model(), np.arange(20), np.arange(10, 30)
    inner = cache_of(other, tmp_path)

    def interleaved(ids: np.ndarray) -> torch.Tensor:
        if not model.asked:
            inner.of(theirs, other.digests(theirs), batch=8)
        return model(ids)

    outer = Cache(tmp_path, "thing", {"weights": "a"}, N, interleaved)
    np.testing.assert_array_equal(outer.of(mine, model.digests(mine), batch=8), model.rows(mine))
    everything = np.arange(30)
    np.testing.assert_array_equal(
        cache_of(model, tmp_path).of(everything, model.digests(everything)), model.rows(everything)
    )
    assert not list(tmp_path.glob(".*"))  # nothing temporary is left


def test_a_table_someone_removed_is_made_again(model, tmp_path):
    ids = np.arange(6)
    cache_of(model, tmp_path).of(ids, model.digests(ids))
    for path in tmp_path.glob("*.rows.npy"):
        path.unlink()
    np.testing.assert_array_equal(
        cache_of(model, tmp_path).of(ids, model.digests(ids)), model.rows(ids)
    )


def test_a_removed_tables_marks_vouch_for_nothing(model, tmp_path):
    cache_of(model, tmp_path).of(np.arange(6), model.digests(np.arange(6)))
    next(tmp_path.glob("*.rows.npy")).unlink()
    cache_of(model, tmp_path).of(np.arange(3), model.digests(np.arange(3)))
    ids = np.arange(6)
    np.testing.assert_array_equal(
        cache_of(model, tmp_path).of(ids, model.digests(ids)), model.rows(ids)
    )


def test_a_table_on_disk_is_as_small_as_what_is_in_it(model, tmp_path):
    wide = 1 << 20
    ids = np.array([2, wide - 1])
    cache = Cache(tmp_path, "wide", {}, wide, lambda ids: torch.ones(len(ids), 512), np.float32)
    assert cache.of(ids, ids.astype(np.uint64)).shape == (2, 512)
    (rows,) = tmp_path.glob("wide-*.rows.npy")
    assert rows.stat().st_size > 2 * 10**9
    assert rows.stat().st_blocks * 512 < 10**6


def test_digests_of_texts_tell_texts_apart():
    texts = [["a cat", "a dog"], ["a cata dog"], ["a cat"], ["a dog", "a cat"], []]
    digests = digest_of_texts(texts)
    assert (
        digests.dtype == np.uint64
        and len(set(digests.tolist())) == len(texts)
        and (digests != 0).all()
    )
    np.testing.assert_array_equal(digests, digest_of_texts(texts))


def test_a_fingerprint_changes_with_the_weights(tmp_path):
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(bytes(1000))
    first = fingerprint_of_files(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("a card")
    assert first == fingerprint_of_files(tmp_path / "model")
    weights.write_bytes(bytes(999) + b"1")
    changed = fingerprint_of_files(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert (
        len(
            {
                first,
                changed,
                fingerprint_of_files(tmp_path / "model"),
                fingerprint_of_files("some/hub-name"),
            }
        )
        == 4
    )
    assert (
        fingerprint_of_files("some/hub-name")
        == fingerprint_of_files("some/hub-name")
        != fingerprint_of_files("another/hub-name")
    )


def test_what_is_no_table_is_made_again(model, tmp_path):
    ids = np.arange(6)
    objects = np.array([{}, {}], dtype=object)
    for number, damage in enumerate(
        (
            lambda path: np.save(path, objects, allow_pickle=True),
            lambda path: np.save(path, np.zeros(3)),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': no one\n"),
            lambda path: path.write_bytes(path.read_bytes()[:-40]),
        )
    ):
        for pattern in ("*.rows.npy", "*.made_from.npy"):
            folder = tmp_path / f"{number}{pattern[2:4]}"
            cache_of(model, folder).of(ids, model.digests(ids))
            (path,) = folder.glob(pattern)
            damage(path)
            np.testing.assert_array_equal(
                cache_of(model, folder).of(ids, model.digests(ids)), model.rows(ids)
            )


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, np.float32), (np.inf, np.float32), (1e6, np.float16)]
)
def test_a_row_that_is_no_number_is_refused_with_its_image(tmp_path, value, dtype):
    def compute(ids: np.ndarray) -> torch.Tensor:
        return torch.where(torch.from_numpy(ids == 7)[:, None], value, 1.0)

    cache = Cache(tmp_path, "thing", {}, N, compute, dtype)
    digests = np.arange(1, 11, dtype=np.uint64)
    with pytest.raises(UserError, match=r"thing of image 7 .* is NaN or infinite as float"):
        cache.of(np.arange(10), digests)
    assert cache.of(np.arange(5), digests[:5]).all()


def test_a_full_disk_is_an_error_not_the_end_of_the_process(model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    ids = np.arange(6)
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(UserError, match=r"Cannot write .*rows\.npy: the disk is full"):
            cache_of(model, tmp_path).of(ids, model.digests(ids))
    np.testing.assert_array_equal(
        cache_of(model, tmp_path).of(ids, model.digests(ids)), model.rows(ids)
    )
