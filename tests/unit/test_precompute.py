"""`braingen precompute`: what later stages ask for is there afterwards; it goes on after a stop,
and notices what changed.
"""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from unit.fake_backbone import write_fake_backbone
from unit.fake_nsd import write_fake_nsd

from braingen.cli import main
from braingen.config import load_config
from braingen.diagnostics.precompute import used_images
from braingen.runtime.data_layout import Layout
from braingen.runtime.distributed import Workers
from braingen.targets.cache import Cache
from braingen.targets.tables import Targets


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_fake_backbone(tmp_path_factory.mktemp("cache") / "backbone", with_clip=True)


@pytest.fixture
def words(backbone, tmp_path) -> list[str]:
    write_fake_nsd(tmp_path / "NSD", subjects=[1])
    return [
        "data.root=" + str(tmp_path / "NSD"),
        f"backbone.path={backbone}",
        "run.device=cpu",
        "finetune.resolution=16",
        "precompute.batch_size=8",
    ]


@pytest.fixture
def computed(monkeypatch) -> list[tuple[str, int]]:
    """What is computed: (table, image)."""
    made: list[tuple[str, int]] = []
    fill = Cache.fill

    def counting(self, image_ids, digests, batch=64):
        compute = self.compute
        self.compute = lambda ids: made.extend((self.name, int(i)) for i in ids) or compute(ids)
        fill(self, image_ids, digests, batch)
        self.compute = compute

    monkeypatch.setattr(Cache, "fill", counting)
    return made


def config_of(words: list[str]):
    return load_config(None, dict(word.split("=", 1) for word in words))


@pytest.mark.slow
def test_later_stages_find_everything(words, computed):
    assert main(["precompute", *words]) == 0
    config = config_of(words)
    targets = Targets(config)
    ids = used_images(config, targets)
    assert ids.tolist() == list(range(14))
    assert sorted(computed) == sorted(
        (name, i) for name in ("image_embedding", "text_embedding", "latents") for i in range(14)
    )
    computed.clear()
    assert (
        targets.image(ids).shape[0] == targets.text(ids).shape[0] == 14
        and targets.latents(ids, 16)[ids].any()
    )
    assert main(["precompute", *words]) == 0
    assert computed == []


@pytest.mark.slow
def test_exactly_a_changed_picture_is_computed_again(words, computed):
    assert main(["precompute", *words]) == 0
    computed.clear()
    with h5py.File(Layout.of(config_of(words).data.root).images(), "a") as file:
        file["images"][5] = 0.5
    assert main(["precompute", *words]) == 0
    assert sorted(computed) == [("image_embedding", 5), ("latents", 5)]


@pytest.mark.slow
def test_stopped_and_started_it_goes_on(words, computed, monkeypatch):
    stop_at = Targets.image_cache

    def stopping(self):
        cache = stop_at(self)
        compute = cache.compute

        def stop(ids):
            if 8 in ids:
                raise KeyboardInterrupt
            return compute(ids)

        cache.compute = stop
        return cache

    with monkeypatch.context() as patch:
        patch.setattr(Targets, "image_cache", stopping)
        assert main(["precompute", *words, "precompute.what=image"]) == 130
    computed.clear()
    assert main(["precompute", *words, "precompute.what=image"]) == 0
    assert sorted(computed) == [("image_embedding", i) for i in range(8, 14)]


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_share_the_pictures(words, computed, monkeypatch):
    """Each is given a half; together they fill what one would."""
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(Workers, "split", lambda self, items, rank=rank: list(items)[rank::2])
            patch.setattr(
                Workers,
                "broadcast",
                lambda self, value: np.arange(14) if isinstance(value, np.ndarray) else value,
            )
            assert main(["precompute", *words, "precompute.what=image,latents"]) == 0
    assert sorted(computed) == sorted(
        (name, i) for name in ("image_embedding", "latents") for i in range(14)
    )
    computed.clear()
    assert main(["precompute", *words, "precompute.what=image,latents"]) == 0
    assert computed == []
