"""Every test starts alike, whatever ran before it in the same process."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from braingen.runtime.device import _note_without_tensorboard

FIRST: list[tuple[float, float, float]] = []
"""What the first of the tests below drew."""


@pytest.mark.parametrize("_turn", range(2))
def test_random_numbers_begin_afresh(_turn: int) -> None:
    FIRST.append((random.random(), float(np.random.random()), float(torch.rand(()))))
    assert FIRST[-1] == FIRST[0]


@pytest.mark.parametrize("_turn", range(2))
def test_a_note_that_is_printed_once_is_printed_to_each(_turn: int, capsys) -> None:
    for _ in range(2):
        _note_without_tensorboard()
    assert capsys.readouterr().out.count("metrics.jsonl alone") == 1
