"""Precompute CLIP targets and VAE latents of all images before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from braingen.config import Config
from braingen.data.captions import has_captions
from braingen.data.checks import check_before_training
from braingen.data.trials import test_trials, train_trials
from braingen.diagnostics.resources import cache_bytes
from braingen.pretrained.sdxl import own_size, pixels_per_latent, refuse_side
from braingen.runtime.data_layout import Layout
from braingen.runtime.distributed import Workers, main_first
from braingen.runtime.files import refuse_small_disk
from braingen.targets.cache import Cache
from braingen.targets.tables import Targets


class Table(NamedTuple):
    """A table to compute."""

    cache: Cache
    digests: Callable[[np.ndarray], np.ndarray]
    """Image ids -> digests of the rows' inputs."""
    batch: int
    """Images per batch."""


def used_images(config: Config, targets: Targets) -> np.ndarray:
    """Ids of the used images, ascending."""
    if config.precompute.images == "all":
        return np.arange(len(targets.stimuli))
    layout, used = Layout.of(config.data.root), []
    for subject in config.data.subjects:
        used.append(
            train_trials(layout, subject, config.data.num_sessions).table["image"].to_numpy()
        )
        if layout.wds_test(subject).exists():
            used.append(test_trials(layout, subject).table["image"].to_numpy())
    return np.unique(np.concatenate(used))


def tables(config: Config, targets: Targets) -> dict[str, Table]:
    """Return the requested tables by name."""
    batch = config.precompute.batch_size
    if "latents" in _wanted(config):
        refuse_side(
            config.finetune.resolution,
            pixels_per_latent(config.backbone.path),
            "finetune.resolution",
        )
    size = config.finetune.resolution or (
        own_size(config.backbone.path) if "latents" in config.precompute.what else 0
    )
    made: dict[str, Callable[[], Table]] = {
        "image": lambda: Table(targets.image_cache(), targets.stimuli.digests, batch),
        "text": lambda: Table(targets.text_cache(), targets.text_digests, batch),
        "latents": lambda: Table(
            targets.latents_cache(size), targets.stimuli.digests, max(1, batch // 4)
        ),
    }
    return {name: made[name]() for name in _wanted(config)}


def _wanted(config: Config) -> tuple[str, ...]:
    """Names of the tables: text by default only where there are captions."""
    default = config.precompute.what == Config().precompute.what
    if default and not has_captions(Layout.of(config.data.root)):
        return tuple(name for name in config.precompute.what if name != "text")
    return config.precompute.what


def _check(config: Config, layout: Layout) -> None:
    """Check data and disk space, and hash the images once, before several processes need it."""
    check_before_training(
        layout, config.data.subjects, config.data.num_sessions, captions="text" in _wanted(config)
    )
    targets = Targets(config)
    ids = used_images(config, targets)
    refuse_small_disk(
        layout.cache(),
        cache_bytes(config, len(ids)),
        "The caches",
        "choose fewer with precompute.what, or fewer subjects",
    )
    targets.stimuli.digests(ids)


def cache(config: Config) -> Path:
    """Fill the tables; processes of ``accelerate launch`` split the images.

    An interrupted command continues where it stopped.

    Returns
    -------
    Path
        The folder of the tables, ``.braingen`` of the data folder.
    """
    workers = Workers(config)
    layout = Layout.of(config.data.root)
    main_first(workers, lambda: _check(config, layout))
    targets = Targets(config)
    ids = used_images(config, targets)
    for table in tables(config, targets).values():
        # one process lists the missing images, so that all use the same list
        missing = workers.broadcast(
            ids[table.cache.stale(ids, table.digests(ids))] if workers.main else None
        )
        assert missing is not None
        mine = np.array(workers.split(missing.tolist()), dtype=np.int64)
        table.cache.fill(mine, table.digests(mine), table.batch)
        targets.free()  # before the model of the next table
        workers.wait()
    return layout.cache()
