"""The page: sections one after another, each drawn from the run folder or left out where its inputs
are absent.

A section is a function from `ReportInputs` to what its template needs, or None. A further one
(routers, expert maps, ablations) is such a function, a template, and a line in SECTIONS.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
import numpy as np

from braingen.data import image_grid as pictures
from braingen.evaluation.metrics import ALIKE, METRICS, PEOPLE, WHICH, in_report, metric
from braingen.report import compared, figures, inside, parts, people, refinement, routers, tables
from braingen.report.inputs import RUNS, ReportInputs
from braingen.runtime.paths import SOURCES
from braingen.runtime.run_folder import config_text
from braingen.runtime.text_files import parse_yaml, read_json

LIMIT = 120
"""Images on a page; of a larger test set the first ones and the best and worst of the rest are
shown.
"""
FIRST_LOOK = 24
"""Images shown before anybody asks for more."""
SHEET = 24
"""Images on the plain sheet."""
COLUMNS = {
    "seen": ("seen", "the picture that was shown"),
    "brain": ("from brain", "drawn from the activity it caused, and nothing else"),
    "random": (
        "random voxels",
        "drawn by the same models from numbers drawn at random: what they make up by themselves",
    ),
    "oracle": (
        "oracle",
        "drawn from the embedding of the true picture: the best that can be drawn at all",
    ),
}
"""Column of the gallery -> its label, and what it is."""


class PageSection(NamedTuple):
    """One part of the page."""

    key: str
    """Name of its template, and of its anchor."""
    title: str
    context: Callable[[ReportInputs], dict[str, Any] | None]
    """What the template needs, or None to leave the section out."""


def _gallery(inputs: ReportInputs) -> dict[str, Any]:
    rank = tables.overall(inputs.per_image)
    images = tables.choose(inputs.images, rank, LIMIT)
    sources = [
        source for source in SOURCES if any(image in inputs.pictures[source] for image in images)
    ]
    cards = []
    for order, (image, seen) in enumerate(pictures.seen_pictures(inputs.stimuli, images)):
        row = inputs.per_image.get(image, {})
        scores = tables.image_scores(row)
        captions = (
            list(inputs.captions[image])
            if inputs.captions is not None and image in inputs.captions
            else []
        )
        shown = {"seen": pictures.data_uri(seen)}
        for source in sources:
            path = inputs.pictures[source].get(image)
            if path is not None:
                shown[source] = pictures.data_uri(pictures.open_picture(path))
        attributes = tables.image_attributes(row)
        right = {attribute.name: attribute.right for attribute in attributes}
        cards.append(
            {
                "order": order,
                "image": image,
                "pictures": shown,
                "captions": captions,
                "decoded": inputs.decoded_captions.get(image, ""),
                "attributes": attributes,
                "right": right,
                "scores": [
                    (metric(name).words, tables.number(value)) for name, value in scores.items()
                ],
                "sort": (
                    {"overall": rank.get(image)}
                    | {name: value * tables.direction(name) for name, value in scores.items()}
                ),
            }
        )
    known = {
        name for image in images for name in tables.image_scores(inputs.per_image.get(image, {}))
    }
    sortable = in_report(known)
    judged = [tables.image_attributes(inputs.per_image.get(image, {})) for image in inputs.images]
    objects = [
        attribute.right
        for attributes in judged
        for attribute in attributes
        if attribute.name == "object"
    ]
    return {
        "cannot": cannot_draw(inputs),
        "cards": cards,
        "columns": {
            name: told for name, told in COLUMNS.items() if name == "seen" or name in sources
        },
        "sorts": (
            ([("overall", "all scores together")] if rank else [])
            + [(name, metric(name).words) for name in sortable]
        ),
        "judged": len(objects),
        "named": sum(objects),
        "total": len(inputs.images),
        "first_look": FIRST_LOOK,
        "extremes": len(images) < len(inputs.images),
    }


def cannot_draw(inputs: ReportInputs) -> bool:
    """Whether even pictures generated from the true embeddings are no nearer to what was seen than
    those from random voxels.

    Decided by the scores of pictures: none of them has the oracle above random voxels by their
    intervals.
    """
    drawings = [inputs.controls.get(name) or {} for name in ("oracle", "random")]
    oracle, chance = (each.get("scores") or {} for each in drawings)
    apart = []
    for name in METRICS:
        if METRICS[name].group not in (WHICH, ALIKE) or name.startswith(
            ("retrieval", "two_way_embedding")
        ):
            continue
        ends = [
            (found.get(name) or {}).get(end)
            for found in (oracle, chance)
            for end in ("low", "high")
        ]
        low, high, random_low, random_high = (
            float(end) if isinstance(end, (int, float)) else np.nan for end in ends
        )
        if not np.isnan([low, high, random_low, random_high]).any():
            apart.append(low > random_high if METRICS[name].higher_is_better else high < random_low)
    return bool(apart) and not any(apart)


def _game(inputs: ReportInputs) -> dict[str, Any] | None:
    """A embedding decoder's own two-way identification, played with the pictures of the gallery."""
    if len(inputs.images) < 8:
        return None
    machine = (inputs.scores.get("two_way_clip") or {}).get("value")
    return {"rounds": 10, "machine": None if machine is None else tables.percent(machine)}


def _scores(inputs: ReportInputs) -> dict[str, Any] | None:
    groups = tables.score_rows(inputs.scores)
    if not groups:
        return None
    reach = max(
        (
            abs(c[key])
            for c in inputs.comparisons
            for key in ("difference", "low", "high")
            if c.get(key) is not None
        ),
        default=0,
    )
    present = {name for _, rows in groups for row in rows for name in row.figures}
    marks = [
        "brain",
        *(name for name in ("random", "ridge", "oracle", "chance") if name in present),
    ]
    asked = {name for name in inputs.scores if metric(name).group == PEOPLE}
    others = [
        score
        for name, score in inputs.scores.items()
        if isinstance(score, dict) and name not in asked
    ]
    numbers = sorted({score["n"] for score in others if score.get("n")})
    return {
        "groups": [
            (group, [(row, figures.interval_chart(row)) for row in rows]) for group, rows in groups
        ],
        "keys": [(name, figures.mark(name)) for name in marks],
        "n": " or ".join(map(str, numbers)),
        "asked": bool(asked),
        "random_baseline": tables.random_baseline(inputs.controls),
        "comparisons": [
            {
                "name": tables.comparison_name(str(each.get("name", ""))),
                "difference": tables.number(each.get("difference")),
                "interval": (
                    f"{tables.number(each.get('low'))} to {tables.number(each.get('high'))}"
                ),
                "p": tables.p_value(each.get("p")),
                "chart": figures.difference_chart(each, reach or 1.0),
            }
            for each in inputs.comparisons
        ],
    }


def _curves(inputs: ReportInputs) -> dict[str, Any] | None:
    panels = figures.curve_panels(inputs.metrics)
    if not panels:
        return None
    groups = [
        (group, [panel for panel in panels if panel.group == group])
        for group in ("held-out", "training", "other")
    ]
    encoders = [name for name, records in inputs.metrics.items() if records]
    return {"groups": [(group, found) for group, found in groups if found], "encoders": encoders}


def _run(inputs: ReportInputs) -> dict[str, Any] | None:
    settings = _merged(
        {RUNS[name]: config_text(config) for name, config in inputs.settings.items()}
    )
    if not (settings or inputs.provenance or inputs.timings):
        return None
    return {
        "settings": [
            (names, tables.changed_settings(parse_yaml(text)), text) for names, text in settings
        ],
        "provenance": [
            (RUNS[name], tables.provenance_facts(found))
            for name, found in inputs.provenance.items()
        ],
        "times": figures.times_chart(inputs.timings) if inputs.timings else [],
        "total": tables.duration(sum(inputs.timings.values())),
    }


def _explained(inputs: ReportInputs) -> dict[str, Any] | None:
    """Pages of `braingen interpret`, and what each found."""
    pages = []
    for page in sorted((inputs.run / "interpret").glob(f"*/{inside.PAGE}")):
        findings = read_json(page.parent / "findings.json")
        told = [sentence for step in findings.values() for sentence in step]
        pages.append(
            {
                "name": page.parent.name.replace("_", " "),
                "link": page.relative_to(inputs.run).as_posix(),
                "findings": told,
            }
        )
    return {"pages": pages} if pages else None


def _merged(texts: dict[str, str]) -> list[tuple[str, str]]:
    """(names, text), names of equal texts joined."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    return [(" and ".join(found), text) for text, found in names.items()]


SECTIONS: tuple[PageSection, ...] = (
    PageSection("gallery", "The pictures", _gallery),
    PageSection("game", "Your turn", _game),
    PageSection("scores", "How good it is", _scores),
    PageSection("parts", "What each part reads", parts.context),
    PageSection("compared", "Beside other runs", compared.context),
    PageSection("refinement", "Before and after refinement", refinement.context),
    PageSection("people", "What raters say", people.context),
    PageSection("routers", "Which experts were listened to", routers.context),
    PageSection("explained", "Looking inside", _explained),
    PageSection("curves", "How it learned", _curves),
    PageSection("run", "What was run", _run),
)


def _opening(inputs: ReportInputs, gallery: dict[str, Any]) -> dict[str, Any]:
    return {
        "simulated": inputs.simulated,
        "subject": inputs.subject,
        "total": len(inputs.images),
        "first": gallery["cards"][:4],
        "tiles": tables.tiles(inputs.scores),
    }


def render(inputs: ReportInputs) -> str:
    """The page as one self-contained HTML text: no request leaves it."""
    found = [(section, section.context(inputs)) for section in SECTIONS]
    sections = [(section, context) for section, context in found if context is not None]
    gallery = next(context for section, context in sections if section.key == "gallery")
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html.j2").render(
        sections=sections, opening=_opening(inputs, gallery), simulated=inputs.simulated
    )


def draw_sheet(inputs: ReportInputs, path: Path) -> None:
    """Write the first test images, seen above what was drawn from brain activity, as one plain
    picture.
    """
    images = list(inputs.images[:SHEET])
    seen = pictures.seen_pictures(inputs.stimuli, images)
    pairs = [
        (picture, pictures.open_picture(inputs.pictures["brain"][image])) for image, picture in seen
    ]
    who = "Simulated subject" if inputs.simulated else "Subject"
    pictures.write_sheet(
        path, pairs, f"{who} {inputs.subject}: the first {len(pairs)} test images, not chosen"
    )
