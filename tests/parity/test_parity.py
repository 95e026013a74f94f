"""Every case of the manifest is reproduced within the tolerance that the manifest gives."""

from __future__ import annotations

from typing import Any

from cases import Case, Handler, declined, entries, handlers, is_declined, read_case
import numpy as np
import pytest
import torch

ENTRIES = entries()


@pytest.fixture(scope="module")
def handler_of() -> dict[str, Handler]:
    return handlers()


@pytest.mark.parametrize("spec", ENTRIES, ids=[entry["case"] for entry in ENTRIES])
@pytest.mark.slow
def test_case(spec: dict[str, Any], handler_of: dict[str, Handler]) -> None:
    case = read_case(spec)
    assert case.kind in handler_of, (
        f"no handler for kind {case.kind!r}; known: {sorted(handler_of)}"
    )
    wanted = [name for name in case.outputs if is_declined(case.name, case.kind, name) is None]
    if not wanted:
        pytest.skip(f"declined: {is_declined(case.name, case.kind, next(iter(case.outputs)))}")
    got = handler_of[case.kind](case)
    missing = [name for name in wanted if name not in got]
    assert not missing, f"the handler of {case.kind} returned no {missing}"
    problems = [
        text
        for name in wanted
        if (text := difference(got[name], case.outputs[name], tolerance_of(case, name), name))
    ]
    assert not problems, "\n".join(problems)


FLOAT32_ANGLES = {"sdxl_schedule": "time_embedding", "prior_parts": "sinusoid"}
"""Kind -> its table of sines and cosines of t * w. Ours is exact (tests/unit/test_sinusoids.py).
The recorded one is not: its angles are float32, where exponent, exponential and product are
rounded, which another processor does otherwise. Its error is at most 3 * 2**-24 * t
(docs/deviations.md, row 3.13); recorded values that are further off are wrong.
"""


def tolerance_of(case: Case, name: str) -> dict[str, Any]:
    """The entry's tolerance; a prior's single passes have a narrower one than its sampling, float32
    angles their rounding error.
    """
    one_pass = name.split("/")[0] in ("train", "fixed", "onestep")
    tolerance = (
        case.spec.get("tolerance_one_pass", case.spec["tolerance"])
        if one_pass
        else case.spec["tolerance"]
    )
    if FLOAT32_ANGLES.get(case.kind) == name:
        return tolerance | {
            "atol": tolerance["atol"] + 3 * 2.0**-24 * case.inputs["times"][:, None]
        }
    return tolerance


def difference(ours: Any, theirs: np.ndarray, tolerance: dict[str, Any], name: str) -> str:
    """What is wrong with an output; empty when it is right. Integers and truth values must agree
    exactly.
    """
    ours = ours.detach().cpu().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    if ours.shape != theirs.shape:
        return f"{name}: shape {ours.shape} instead of {theirs.shape}"
    if theirs.dtype.kind in "biu":
        wrong = int((ours != theirs).sum())
        return f"{name}: {wrong} of {theirs.size} differ" if wrong else ""
    bound = tolerance["atol"] + tolerance["rtol"] * np.abs(theirs.astype(np.float64))
    error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    inside = (error <= bound) | (np.isnan(ours) & np.isnan(theirs)) | (ours == theirs)
    if inside.all():
        return ""
    worst = np.nanmax(np.where(inside, 0, error / bound))
    return (
        f"{name}: {int((~inside).sum())} of {theirs.size} out of tolerance, the worst by a factor"
        f" {worst:.3g}"
    )


def test_declined_are_known_and_reasoned() -> None:
    names = (
        {entry["case"] for entry in ENTRIES}
        | {entry["kind"] for entry in ENTRIES}
        | set(handlers())
    )
    for name, reasons in declined().items():
        assert name in names, f"declined.json names {name!r}, which is neither a case nor a kind"
        assert all(reason.strip() for reason in reasons.values())
