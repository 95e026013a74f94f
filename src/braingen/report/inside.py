"""The page of `braingen interpret`: voxels, categories and images of each expert, in one file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from braingen.data.image_grid import data_uri, open_picture, seen_pictures
from braingen.data.stimuli import Stimuli
from braingen.report.rendering import render_page
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_text
from braingen.runtime.paths import generated_in
from braingen.runtime.text_files import read_json

PAGE = "interpret.html"
SHOWN = 8
"""Images shown per part."""


def _figure(path: Path) -> str:
    """A figure as data URI in WebP, a third of the size of the PNG."""
    if not path.exists():
        return ""
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(buffer, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _overlay(picture: Image.Image, map_PP: np.ndarray) -> Image.Image:
    """Blend an image with the map of where a part contributes more than in other images."""
    side = picture.width
    map_PP = np.nan_to_num(np.asarray(map_PP, dtype=np.float32), nan=0, posinf=0, neginf=0)
    limit = float(np.quantile(map_PP, 0.99)) or float(map_PP.max()) or 1.0
    shown = np.clip(map_PP / abs(limit), 0, 1)
    heat = Image.fromarray(
        (matplotlib.colormaps["magma"](shown)[..., :3] * 255).astype(np.uint8)
    ).resize((side, side))
    return Image.blend(picture.convert("RGB"), heat, 0.55)


def _read(path: Path) -> pd.DataFrame | None:
    return pd.read_csv(path) if path.exists() else None


def _parts(folder: Path, own: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Figure, regions, categories and strongest images of every part that has maps."""
    regions, profiles, lost = (
        _read(own / "regions.csv"),
        _read(folder / "profiles.csv"),
        _read(folder / "ablation.csv"),
    )
    complete = _read(folder / "completeness.csv")
    subject = facts["subjects"][0]
    names = ["whole"]
    for depth, count in enumerate(facts["experts"]):
        names += [f"level-{depth}", *(f"level-{depth}-expert-{number}" for number in range(count))]
    found = []
    for name in names:
        notes_path = own / "maps" / f"{name}.json"
        if not notes_path.exists():
            continue
        notes = read_json(notes_path)
        title, figure = (
            name.replace("-", " ").replace(" expert", ", expert"),
            _figure(own / "figures" / f"{name}.png"),
        )
        row: dict[str, Any] = {"name": name, "title": title, "figure": figure}
        numbers: list[int | None] = [int(word) for word in name.split("-") if word.isdigit()]
        level, expert = [*numbers, None, None][:2]
        row |= {"level": level, "expert": expert}
        if regions is not None:
            mine = regions[
                (regions["map"] == name) & (regions["region"] != "in no region")
            ].sort_values("enrichment", ascending=False)
            rows = (
                (str(each["region"]), f"{each['enrichment']:.1f}", f"{each['share']:.0%}")
                for _, each in mine.head(6).iterrows()
            )
            row["regions"] = list(rows)
        if profiles is not None and expert is not None:
            mine = profiles[
                (profiles["subject"] == subject)
                & (profiles["level"] == level)
                & (profiles["expert"] == expert)
            ]
            mine = mine.sort_values("standardised", ascending=False)
            reach = max(float(mine["standardised"].abs().max()), 1e-9)
            row["classes"] = [
                (
                    str(each["class"]),
                    f"{each['standardised']:.1f}",
                    bool(each["q"] < 0.05),
                    max(0.0, float(each["standardised"])) / reach,
                )
                for _, each in mine.iterrows()
            ]
        if lost is not None:
            mine = lost[
                (lost["subject"] == subject)
                & (lost["ablated"] == name)
                & (lost["images"] == "all")
                & (lost["score"] == "cosine")
            ]
            row["loss"] = (
                ""
                if mine.empty
                else (
                    f"{mine.iloc[0]['loss']:.4f} ({mine.iloc[0]['low']:.4f} to"
                    f" {mine.iloc[0]['high']:.4f})"
                )
            )
        if complete is not None:
            mine = complete[(complete["subject"] == subject) & (complete["part"] == name)]
            row["incomplete"] = "" if mine.empty else f"{mine.iloc[0]['incomplete']:.1%}"
        saliency = own / "saliency" / f"{name}.npy"
        row["order"] = np.argsort(notes["value"])[::-1][:SHOWN].tolist()
        row["images"] = [notes["images"][place] for place in row["order"]]
        row["saliency"] = np.load(saliency, mmap_mode="r") if saliency.exists() else None
        found.append(row)
    return found


def _components(folder: Path, own: Path) -> list[dict[str, Any]]:
    loadings, related, regions = (
        _read(path)
        for path in (
            folder / "component_loadings.csv",
            folder / "component_categories.csv",
            own / "components_regions.csv",
        )
    )
    if loadings is None:
        return []
    found = []
    for k in range(min(12, loadings.shape[1] - 1)):
        name = f"component {k}"
        strongest = (
            loadings.reindex(loadings[name].abs().sort_values(ascending=False).index)["image"]
            .head(6)
            .astype(int)
            .tolist()
        )
        row: dict[str, Any] = {
            "name": name,
            "figure": _figure(own / "figures" / f"component-{k}.png"),
            "images": strongest,
        }
        row["classes"] = []
        if related is not None:
            mine = related[(related["component"] == k) & (related["q"] < 0.05)].head(3)
            row["classes"] = [f"{each['class']} (t {each['t']:.1f})" for _, each in mine.iterrows()]
        if regions is not None:
            mine = regions[
                (regions["map"] == name) & (regions["region"] != "in no region")
            ].sort_values("enrichment", ascending=False)
            row["regions"] = ", ".join(
                f"{each['region']} {each['enrichment']:.1f}" for _, each in mine.head(4).iterrows()
            )
        found.append(row)
    return found


def _patterns(folder: Path, own: Path, subject: int) -> list[dict[str, Any]]:
    """Categories that have a figure, best decoded first."""
    table, regions = _read(folder / "patterns.csv"), _read(own / "patterns_regions.csv")
    if table is None or regions is None:
        return []
    found = []
    for _, each in table[table["subject"] == subject].iterrows():
        if figure := _figure(
            own / "figures" / f"pattern-{str(each['class']).replace(' ', '_')}.png"
        ):
            mine = regions[
                (regions["map"] == each["class"]) & (regions["region"] != "in no region")
            ].sort_values("mean", ascending=False)
            places = [
                (str(row["region"]), f"{row['mean']:.2f}") for _, row in mine.head(5).iterrows()
            ]
            found.append(
                {
                    "name": each["class"],
                    "decoded": f"{each['decoded']:.2f}",
                    "figure": figure,
                    "regions": places,
                }
            )
    return found


def _ablated(own: Path, seen: Stimuli) -> list[tuple[str, list[tuple[str, str]]]]:
    """Rows of images with their PixCorr: seen, intact, then with each ablation."""
    table = _read(own / "ablated_images.csv")
    if table is None:
        return []
    images = table["image"].drop_duplicates().astype(int).tolist()
    rows = [("seen", [(data_uri(picture, 96), "") for _, picture in seen_pictures(seen, images)])]
    for name, mine in table.groupby("ablated", sort=False):
        paths = [
            own / "ablated" / str(name).replace("/", "_") / f"{int(image):06d}.png"
            for image in mine["image"]
        ]
        scores = [f"{value:.2f}" for value in mine["pixcorr"]]
        rows.append(
            (
                str(name),
                [(data_uri(open_picture(path), 96), score) for path, score in zip(paths, scores)],
            )
        )
    return rows


def write_page(folder: Path, run: Path, data_root: Path) -> Path:
    """Write the page of one question into its folder.

    Parameters
    ----------
    folder : Path
        Of `braingen interpret`.
    run : Path
        The run folder, for generated images.
    data_root : Path
        The data folder, for seen images.

    Raises
    ------
    UserError
        When the folder has no results.
    """
    if not (folder / "facts.json").exists():
        raise UserError(f"{folder} has no results: run `braingen interpret` first.")
    facts = read_json(folder / "facts.json")
    findings = read_json(folder / "findings.json") if (folder / "findings.json").exists() else {}
    own = folder / f"subj{facts['subjects'][0]:02d}"
    parts, components = _parts(folder, own, facts), _components(folder, own)
    wanted = sorted({image for row in (*parts, *components) for image in row["images"]})
    seen = dict(seen_pictures(Stimuli(Layout.of(data_root)), wanted))
    thumbnails = {image: data_uri(picture, 96) for image, picture in seen.items()}
    for row in parts:
        maps = row.pop("saliency")
        row["looks"] = (
            []
            if maps is None
            else [
                data_uri(_overlay(seen[image], np.asarray(maps[place])), 72)
                for place, image in zip(row["order"], row["images"])
            ]
        )
    folder_of_images = generated_in(run, "brain")
    pictures = {
        image: data_uri(Image.open(path), 96)
        for image in wanted
        if (path := folder_of_images / f"{image:06d}.png").exists()
    }
    levels = _read(folder / "router_levels.csv")
    ablated = _read(folder / "ablation.csv")
    regional = None
    if ablated is not None:
        regional = ablated[
            (ablated["voxels"] > 0) & (ablated["images"] == "all") & (ablated["score"] == "cosine")
        ]
        regional = (
            regional[regional["subject"] == facts["subjects"][0]]
            .sort_values("loss", ascending=False)
            .head(20)
        )
        regional = regional.reindex(
            columns=regional.columns.union(["random", "p_random"])
        )  # absent without random controls
    text = render_page(
        "inside",
        facts=facts,
        findings=[sentence for sentences in findings.values() for sentence in sentences],
        parts=parts,
        components=components,
        patterns=_patterns(folder, own, facts["subjects"][0]),
        seen=thumbnails,
        generated=pictures,
        slices=_figure(own / "figures" / "whole-slices.png"),
        surface=_figure(own / "figures" / "whole-surface.png"),
        levels=(
            []
            if levels is None
            else levels.pivot(index="step", columns="level", values="weight").to_numpy().tolist()
        ),
        ablation=[] if regional is None else regional.to_dict("records"),
        ablated=_ablated(own, Stimuli(Layout.of(data_root))),
    )
    write_text(folder / PAGE, text)
    return folder / PAGE
