"""One thread and no gradients left over: parity is checked on the CPU in float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import sys

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
