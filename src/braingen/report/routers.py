"""The routing section: weights of levels and experts over time, and images from single levels.

S denoising steps, L levels, E experts of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
import numpy as np
from safetensors.numpy import load_file

from braingen.data import image_grid as pictures
from braingen.report.inputs import ReportInputs
from braingen.runtime.paths import ROUTING, generated_in

SHOWN = 8
"""Images whose levels are shown: the first generated ones."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 200, 40, 78, 14, 34


def _routing(run: Path) -> dict[str, np.ndarray]:
    path = generated_in(run, "brain") / ROUTING
    return load_file(path) if path.is_file() else {}


def level_chart(weights_SL: np.ndarray, times_S: np.ndarray, name: str) -> Markup:
    """Weight of every level over the denoising, from noise (left) to image (right).

    Parameters
    ----------
    weights_SL : np.ndarray
        Mean over images.
    times_S : np.ndarray
        Diffusion times, falling.
    """
    levels = weights_SL.shape[1]
    top = max(0.5, float(weights_SL.max()))

    def place(step: int, weight: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(1, len(weights_SL) - 1)
        return across, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - weight / top)

    parts = []
    for tick in (0.0, top / 2, top):
        y = place(0, tick)[1]
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.2f}</text>')
    for step, anchor in ((0, "start"), (len(weights_SL) - 1, "end")):
        parts.append(
            f'<text x="{place(step, 0)[0]:.1f}" y="{_HEIGHT - 16}" text-anchor="{anchor}">t ='
            f" {times_S[step]:.0f}</text>"
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{_HEIGHT - 2}" text-anchor="middle">denoising time, from noise'
        " to image</text>"
    )
    ranges, labels = [], sorted(range(levels), key=lambda level: -weights_SL[-1, level])
    heights: dict[int, float] = {}
    for rank, level in enumerate(labels):  # labels at the end of the lines, kept apart
        wanted = place(0, float(weights_SL[-1, level]))[1] + 4
        heights[level] = max(wanted, heights[labels[rank - 1]] + 12 if rank else 0)
    for level in range(levels):
        points = [place(step, float(weight)) for step, weight in enumerate(weights_SL[:, level])]
        path = " ".join(
            f"{'M' if number == 0 else 'L'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(points)
        )
        shade = 0.3 + 0.7 * level / max(1, levels - 1)
        parts.append(
            f'<path d="{path}" class="line {escape(name)}"'
            f' style="opacity:{shade:.2f};stroke-width:{1.2 + 0.6 * level:.1f}"/>'
        )
        parts.append(
            f'<text x="{_WIDTH - _RIGHT + 8}" y="{heights[level]:.1f}">level {level}</text>'
        )
        ranges.append(
            f"level {level} from {weights_SL[0, level]:.2f} to {weights_SL[-1, level]:.2f}"
        )
    label = f"{name}: weight of every level of experts over the denoising; {'; '.join(ranges)}"
    return Markup(
        f'<svg class="curve" role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH}'
        f' {_HEIGHT}">{"".join(parts)}</svg><p class="summary">{escape("; ".join(ranges))}</p>'
    )


def expert_chart(use_E: np.ndarray, level: int, name: str) -> Markup:
    """Use of the experts of a level, compared with an even share."""
    even, reach, width = 1 / len(use_E), max(2 / len(use_E), float(use_E.max())), 240
    each = width / len(use_E)
    parts = []
    for number, use in enumerate(use_E):
        height = 56 * use / reach
        parts.append(
            f'<rect x="{number * each + 1:.1f}" y="{60 - height:.1f}" width="{each - 2:.1f}"'
            f' height="{height:.1f}" class="bar"/>'
        )
    y = 60 - 56 * even / reach
    parts.append(f'<line x1="0" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" class="chance"/>')
    label = (
        f"{name}, level {level}: use of {len(use_E)} experts from {use_E.min():.3f} to"
        f" {use_E.max():.3f}, even share {even:.3f}"
    )
    return Markup(
        f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width}'
        f' 62">{"".join(parts)}</svg>'
    )


def _experts(use_E: np.ndarray, counts: list[int], name: str) -> list[tuple[int, Markup, str]]:
    found, start = [], 0
    for level, count in enumerate(counts):
        part_E = use_E[start : start + count]
        found.append(
            (
                level,
                expert_chart(part_E, level, name),
                f"{part_E.min():.3f} to {part_E.max():.3f}, even {1 / count:.3f}",
            )
        )
        start += count
    return found


def _counts(experts: int, levels: int, settings: Mapping[str, Any]) -> list[int]:
    """Experts of every level: from the settings of the encoder if consistent, else even."""
    encoder = settings.get("encoder") or {}
    counts = [int(encoder.get("num_exp_0") or 1)]
    for factor in encoder.get("exp_factor_list") or []:
        counts.append(counts[-1] * int(factor))
    return (
        counts if sum(counts) == experts and len(counts) == levels else [experts // levels] * levels
    )


def _levels(inputs: ReportInputs) -> list[tuple[int, str, list[str]]]:
    """(image, seen, generated by each level alone and by all levels) of some images."""
    folders = sorted(
        generated_in(inputs.run, "").glob("brain_level[0-9]*"),
        key=lambda path: int(path.name.removeprefix("brain_level")),
    )
    if not folders:
        return []
    images = [
        i for i in inputs.images if all((folder / f"{i:06d}.png").is_file() for folder in folders)
    ][:SHOWN]
    sources = [*folders, generated_in(inputs.run, "brain")]
    return [
        (
            image,
            pictures.data_uri(seen),
            [
                pictures.data_uri(pictures.open_picture(folder / f"{image:06d}.png"))
                for folder in sources
            ],
        )
        for image, seen in pictures.seen_pictures(inputs.stimuli, images)
    ]


def context(inputs: ReportInputs) -> dict[str, Any] | None:
    """Values for the template, or None without routing."""
    routing = _routing(inputs.run)
    found = []
    for name in ("image", "text"):
        levels = routing.get(f"{name}_levels")
        if levels is None:
            continue
        weights_SL = levels.mean(axis=0)
        use_E = routing[f"{name}_experts"].mean(axis=(0, 1))
        counts = _counts(len(use_E), weights_SL.shape[1], inputs.settings.get(name, {}))
        steps_S = np.arange(len(weights_SL))
        centre_S = weights_SL @ np.arange(weights_SL.shape[1])
        found.append(
            {
                "name": name,
                "chart": level_chart(
                    weights_SL, routing["times"][0] if "times" in routing else steps_S[::-1], name
                ),
                "experts": _experts(use_E, counts, name),
                "centre": (f"{centre_S[0]:.2f}", f"{centre_S[-1]:.2f}"),
                "moves": bool(centre_S[-1] > centre_S[0]),
            }
        )
    grid = _levels(inputs)
    if not found and not grid:
        return None
    return {
        "found": found,
        "grid": grid,
        "count": len(grid[0][2]) - 1 if grid else 0,
        "images": len(routing.get("ids", [])),
    }
