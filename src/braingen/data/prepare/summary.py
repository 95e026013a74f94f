"""What was prepared of a subject, for people: a table of two columns, and notes."""

from __future__ import annotations

from typing import Any

import numpy as np

from braingen.data import nsd
from braingen.data.scans import Scans


def summary_of(
    scans: Scans,
    subject: int,
    behav_T17: np.ndarray,
    entry: dict[str, Any],
    before: dict[str, Any] | None,
) -> str:
    """Summary of a prepared subject; `before` is its entry of the manifest of the last time."""
    who = scans.who(subject)
    test_T, image_T = behav_T17[:, nsd.IS_SHARED] == 1, behav_T17[:, nsd.IMAGE]
    inside, whole = scans.candidates(subject)
    labels = [f"{n}: {label}" for n, label in (who.get("sessions") or {}).items() if label]
    runs = who.get("runs") or len(np.unique(behav_T17[:, [nsd.SESSION, nsd.RUN]], axis=0))
    training, testing = (
        np.unique(image_T[which_T], return_counts=True)[1] for which_T in (~test_T, test_T)
    )
    left_out = [f"; {count} {reason}" for reason, count in entry["left_out_voxels"].items()]
    rows = {
        "subject": f"{subject}, label {who['label']}"
        + (f", from {who['form']}" if "form" in who else ""),
        "sessions": f"{entry['sessions']}" + (f" ({', '.join(labels)})" if labels else ""),
        "runs, trials": f"{runs}, {len(behav_T17)}"
        + (f" ({who['left_out']} left out)" if who.get("left_out") else ""),
        "training": f"{int((~test_T).sum())} trials of {_pictures(training)}",
        "test": f"{int(test_T.sum())} trials of {_pictures(testing)}; by {who['test pictures']}",
        "voxels": f"{entry['voxels']} kept of {inside} in the mask ({whole} in all)"
        + "".join(left_out),
        "z-scored over": entry["zscore"],
        "captions": who.get("captions", ""),
        **_reliability(entry["reliability"]),
    }
    notes = [*entry["notes"], *scans.notes(subject)]
    if (testing < 2).all():
        notes.append(
            "no test picture was shown twice: test responses cannot be averaged, and their noise "
            "ceiling is not known"
        )
    if _is_noise(entry["reliability"]):
        notes.append(
            "responses to the same picture are no more alike than to others: noise, or trials in "
            "another order than the responses"
        )
    if before is not None and before["voxels"] != entry["voxels"]:
        notes.append(
            f"{before['voxels']} voxels before, {entry['voxels']} now: encoders trained before do "
            "not fit any more"
        )
    width = max(map(len, rows))
    lines = [f"  {name:<{width}}  {value}" for name, value in rows.items() if value]
    return "\n".join([*lines, *(f"  note: {note}" for note in dict.fromkeys(notes))]) + "\n"


def _pictures(counts: np.ndarray) -> str:
    """Number of pictures, and how often each was shown."""
    if not len(counts) or counts.max() < 2:
        return f"{len(counts)} pictures, each once"
    often = f"{counts.min()} to " if counts.min() < counts.max() else ""
    return f"{len(counts)} pictures, {often}{counts.max()} times each"


def _reliability(found: dict[str, Any] | None) -> dict[str, str]:
    if found is None:
        nothing = "not known: nothing repeats, or fewer than four pictures do"
        return {"reliability": f"{nothing} (no noise ceiling, no averaging over repeats)"}
    rows = {
        "reliability": f"split-half {found['split_half_median']:.2f} (median), "
        f"{found['share_above_chance']:.0%} of voxels above chance (5 %), noise ceiling "
        f"{found['noise_ceiling_median_percent']:.0f} % (median), over {found['pictures']} "
        "repeated pictures"
    }
    if found["same_picture"] is not None:
        rows["likeness"] = (
            f"responses to the same picture correlate by {found['same_picture']:.2f}, to others by "
            f"{found['other_picture']:.2f}"
        )
    return rows


def _is_noise(found: dict[str, Any] | None) -> bool:
    """Whether responses to the same picture are no more alike than to others."""
    if found is None or found["same_picture"] is None:
        return False
    apart = found["same_picture"] - found["other_picture"]
    return bool(apart < 3 * found["same_picture_error"])
