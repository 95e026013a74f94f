"""Every test starts alike, wherever it stands in the order and whichever process runs it.

Tests import braingen before diffusers and transformers: on CPU-only machines it prepares
torchvision for them.
"""

from __future__ import annotations

import gc
import os
import random

import pytest
from unit.once import forget_notes

import braingen  # noqa: F401

SEED = 1000
"""Not 0: a test that seeds its own noise with 0 is to add another noise than its weights have."""


def pytest_collection_finish() -> None:
    """What was imported stays: stages that look for dropped models, hundreds of times, then look at
    what tests made, not at half a million objects of libraries.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Start random numbers and notes afresh, before a test and the fixtures made for it."""
    import numpy as np
    import torch

    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    forget_notes()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Files are not forced onto the disk: that guards against a power cut, and tests would wait for
    it thousands of times.

    `test_files_on_disk.py` shows that it is asked for, and in which order.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
