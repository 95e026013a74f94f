"""Tests import braingen before diffusers and transformers: on CPU-only machines it prepares
torchvision for them.
"""

from __future__ import annotations

import os

import pytest

import braingen  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Files are not forced onto the disk: that guards against a power cut, and tests would wait for
    it thousands of times.

    `test_files_on_disk.py` shows that it is asked for, and in which order.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
