"""The page of `peers.py`: scores with intervals, paired differences, sizes, and which differences
the seeds at hand can show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from braingen.evaluation.uncertainty import (
    compare_methods,
    holm,
    mean_interval,
    permutation_p,
    summarise,
)

SCORES = {
    "retrieval_brain_to_image": "brain to image",
    "retrieval_image_to_brain": "image to brain",
    "two_way_clip": "two-way",
    "clip_cos": "CLIP-cos",
}
REFERENCES = ("ridge", "dense")
"""Ways that every other one is compared with."""
RESAMPLES = 2000
POWER_FACTOR = 2.8
"""Normal quantiles of a two-sided test at 5 % and of a power of 80 %: 1.96 + 0.84."""
Values = dict[int, dict[int, dict[int, float]]]
"""Subject -> seed -> place of the image among the test images -> value."""


def values_of(rows: Sequence[Mapping[str, Any]], score: str) -> Values:
    """Values of a score of one way."""
    found: Values = {}
    for row in rows:
        cell = row["cell"]
        found.setdefault(cell["subject"], {})[cell["seed"]] = dict(enumerate(row["values"][score]))
    return found


def common(first: Values, second: Values) -> tuple[Values, Values]:
    """The subjects that two ways share; seeds are averaged, so that they need not be the same."""
    both = first.keys() & second.keys()
    return {s: first[s] for s in both}, {s: second[s] for s in both}


def smallest_difference(first: Values, second: Values) -> float:
    """Difference of two ways that the images and seeds at hand show with 80 % power: from the
    spread of paired differences over images, and the spread between seeds.
    """
    images = compare_methods(first, second)
    variance = images.var(ddof=1) / len(images)
    for side in (first, second):
        for seeds in side.values():
            means = [np.mean(list(values.values())) for values in seeds.values()]
            if len(means) > 1:
                variance += np.var(means, ddof=1) / len(means) / len(side) ** 2
    return POWER_FACTOR * float(np.sqrt(variance))


def write_page(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """The page as Markdown: a section per task and number of sessions."""
    groups: dict[tuple[str, int], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        cell = row["cell"]
        group = groups.setdefault((cell["task"], cell["sessions"]), {})
        group.setdefault(cell["way"], []).append(row)
    parts = []
    for (task, sessions), ways in sorted(groups.items(), key=lambda each: (each[0][0], each[0][1])):
        order = [way for way in titles if way in ways]
        parts.append(_section(task, sessions, {way: ways[way] for way in order}, titles))
    return "\n".join(parts)


def _section(
    task: str,
    sessions: int,
    ways: Mapping[str, Sequence[Mapping[str, Any]]],
    titles: Mapping[str, str],
) -> str:
    people = sorted({row["cell"]["subject"] for rows in ways.values() for row in rows})
    noun = "session" if sessions == 1 else "sessions"
    where = "One person" if task == "within" else "New persons"
    lines = [f"### {where}, {sessions} {noun}", ""]
    lines += [f"Subject{'s' if len(people) > 1 else ''} {', '.join(map(str, people))}.", ""]
    head = ["way", *SCORES.values(), "held out", "trained / all parameters", "CPU s", "seeds"]
    lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for way, rows in ways.items():
        cells = [titles[way]]
        for score in SCORES:
            flat = {
                (subject, seed): values
                for subject, seeds in values_of(rows, score).items()
                for seed, values in seeds.items()
            }
            found = summarise(flat, RESAMPLES)
            spread = "" if found.between_seeds is None else f" ± {found.between_seeds:.3f}"
            cells.append(f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f}){spread}")
        held = [row["held_out"] for row in rows if "held_out" in row]
        cells.append(f"{np.mean(held):.3f}" if held else "")
        cells.append(f"{rows[0]['trained']:,} / {rows[0]['parameters']:,}".replace(",", " "))
        cells.append(f"{np.mean([row['seconds'] for row in rows]):.0f}")
        cells.append(str(len({row["cell"]["seed"] for row in rows})))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_differences(ways, titles), *_new_combinations(ways, titles)]
    return "\n".join([*lines, ""])


def _differences(
    ways: Mapping[str, Sequence[Mapping[str, Any]]], titles: Mapping[str, str]
) -> list[str]:
    """Paired differences from the references, corrected over the whole section."""
    rows: list[tuple[str, str, str, np.ndarray, float]] = []
    for reference in REFERENCES:
        for way in ways:
            if (
                reference in ways
                and way != reference
                and not (way in REFERENCES and REFERENCES.index(way) < REFERENCES.index(reference))
            ):
                for score in SCORES:
                    pair = common(values_of(ways[way], score), values_of(ways[reference], score))
                    if pair[0]:
                        difference_N = compare_methods(*pair)
                        rows.append(
                            (reference, way, score, difference_N, smallest_difference(*pair))
                        )
    if not rows:
        return []
    p = [permutation_p(difference_N) for *_, difference_N, _ in rows]
    corrected = dict(zip([row[:3] for row in rows], holm(p)))
    lines = []
    for reference in dict.fromkeys(row[0] for row in rows):
        lines += [
            f"Minus {titles[reference]}, image by image (95 % interval over images; p by sign"
            " flips, Holm-corrected over this section; in brackets the difference that these images"
            " and seeds show with 80 % power):",
            "",
            f"| way | {' | '.join(SCORES.values())} |",
            f"|{' --- |' * (1 + len(SCORES))}",
        ]
        for way in dict.fromkeys(row[1] for row in rows if row[0] == reference):
            cells = [titles[way]]
            for base, name, score, difference_N, least in rows:
                if (base, name) == (reference, way):
                    found = mean_interval(difference_N, RESAMPLES)
                    p_value = corrected[base, name, score]
                    shown = "p < 0.001" if p_value < 0.001 else f"p {p_value:.3f}"
                    cells.append(
                        f"{found.value:+.3f} ({found.low:.3f} to {found.high:.3f}), {shown}"
                        f" [{least:.3f}]"
                    )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return lines


def _new_combinations(
    ways: Mapping[str, Sequence[Mapping[str, Any]]], titles: Mapping[str, str]
) -> list[str]:
    """Scores of test images with and without a combination that no training image shows."""
    head = [f"{name}, {kind}" for name in SCORES.values() for kind in ("familiar", "new")]
    lines = [
        "Test images without and with a combination that no training image shows (even and odd"
        " ids):",
        "",
        f"| way | {' | '.join(head)} |",
        f"|{' --- |' * (1 + len(head))}",
    ]
    for way, rows in ways.items():
        cells = [titles[way]]
        for score in SCORES:
            each = np.array([row["values"][score] for row in rows])
            cells += [f"{each[:, 0::2].mean():.3f}", f"{each[:, 1::2].mean():.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]
