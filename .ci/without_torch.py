"""Plugin of pytest: what cannot run for want of torch is skipped, so that Python versions that have
no CPU build of it run all the rest.

A module counts as wanting only if it is torch, or one that is not installed because it needs torch.
"""

from __future__ import annotations

from importlib.util import find_spec
import re
from typing import Any

import pytest

NEED_TORCH = ("torchvision", "accelerate", "peft", "captum", "torchmetrics")
WANTING = (
    ()
    if find_spec("torch")
    else ("torch", *(name for name in NEED_TORCH if find_spec(name) is None))
)
ABSENT = re.compile(
    rf"No module named '({'|'.join(WANTING)})['.]"
    r"|needs the PyTorch|requires the PyTorch|PyTorch was not found|Torch not compiled|is not"
    r" installed: pip install 'braingen\[interpret\]'"
)


def _is_wanting(text: str) -> bool:
    return bool(WANTING) and ABSENT.search(text) is not None


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    """A file that cannot be imported without torch is skipped."""
    report = (yield).get_result()
    if report.failed and _is_wanting(str(report.longrepr)):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, "needs torch")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    """So is a test that comes to it while it runs."""
    report = (yield).get_result()
    if report.failed and _is_wanting(str(report.longrepr)):
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, "needs torch")
