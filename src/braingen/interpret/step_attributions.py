"""The step `attributions` of `braingen interpret`: maps of every part and image.

N images, V voxels.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from braingen.data.places import ColumnPlaces
from braingen.data.volumes import VoxelPlaces
from braingen.interpret import figures
from braingen.interpret.attribution import Explainer, Query, completeness
from braingen.interpret.inputs import SubjectData, training_responses
from braingen.interpret.maps import MapFile, mean_maps, root_mean_square
from braingen.interpret.question import Explanation
from braingen.interpret.readout import WHOLE, DecoderPart, Readout
from braingen.interpret.volumes import region_table
from braingen.runtime.console import Progress


def write_attributions(work: Explanation) -> None:
    """Write maps of every part and image, with means, categories, regions, NIfTI and figures."""
    settings = work.config.interpret
    rows = []
    with Progress() as progress:
        bar = progress.add_task("attributions", total=len(work.parts) * len(work.inputs.subjects))
        for subject in work.inputs.subjects:
            baseline = (
                training_responses(work.config, subject.number)
                if settings.method == "gradient_shap"
                else None
            )
            means: dict[str, np.ndarray] = {}
            for part in work.parts:
                file = work.map_file(subject, part)
                _fill(work, file, subject, part, baseline)
                notes, maps_NV = file.notes(), file.maps()
                value_N, error_N = np.array(notes["value"]), np.array(notes["error"])
                rows.append(
                    {
                        "subject": subject.number,
                        "part": part.name,
                        "mean": value_N.mean(),
                        "incomplete": completeness(value_N, error_N),
                    }
                )
                means[part.name] = mean_maps(maps_NV, np.ones((len(maps_NV), 1)))[0]
                _write_maps(work, subject, part, maps_NV, means[part.name])
                progress.update(
                    bar,
                    advance=1,
                    description=f"attributions: subject {subject.number}, {part.title}",
                )
            work.table(work.of(subject) / "regions.csv", region_table(means, work.regions(subject)))
    if settings.surface and WHOLE not in work.parts:
        work.report("Surface: the figure shows the map of the whole decoder; add whole to --parts.")
    table = pd.DataFrame(rows)
    work.table(work.folder / "completeness.csv", table)
    worst = table.loc[table["incomplete"].idxmax()]
    work.report(
        f"Completeness error of the maps: {table['incomplete'].median():.1%} (median of parts), at"
        f" most {worst['incomplete']:.1%} ({worst['part']}); more --points reduce it."
    )


def _fill(
    work: Explanation,
    file: MapFile,
    subject: SubjectData,
    part: DecoderPart,
    baseline: Tensor | None,
) -> None:
    settings, embedding_decoder = work.config.interpret, work.inputs.embedding_decoder
    readout = Readout(
        embedding_decoder, subject.number, part, cosine=settings.about == "cosine" and part == WHOLE
    )
    explainer = Explainer(
        readout,
        settings.method,
        None if baseline is None else baseline.to(embedding_decoder.device),
        settings.points,
        seed=work.config.run.seed,
    )

    def query(rows: np.ndarray) -> Query:
        voxels_BV = torch.from_numpy(subject.voxels_NV[rows]).to(embedding_decoder.device)
        return Query(
            subject.image_N[rows],
            voxels_BV,
            work.inputs.direction_NF[rows].to(embedding_decoder.device),
        )

    file.fill(explainer, subject.image_N, subject.voxels_NV.shape[1], query, 32)


def _write_maps(
    work: Explanation,
    subject: SubjectData,
    part: DecoderPart,
    maps_NV: np.ndarray,
    mean_V: np.ndarray,
) -> None:
    nifti, images = work.of(subject) / "nifti", work.of(subject) / "figures"
    subject.places.write(nifti / f"{part.name}-mean.nii.gz", mean_V)
    subject.places.write(nifti / f"{part.name}-size.nii.gz", root_mean_square(maps_NV))
    if work.inputs.classes is not None:
        by_class_CV = mean_maps(maps_NV, work.inputs.classes.member_NC)
        for name, value_V, member_N in zip(
            work.inputs.classes.names, by_class_CV, work.inputs.classes.member_NC.T
        ):
            if member_N.any():
                subject.places.write(
                    nifti / "categories" / f"{part.name}-{name.replace(' ', '_')}.nii.gz", value_V
                )
    if part == WHOLE:
        for row in range(min(work.config.interpret.nifti_images, len(maps_NV))):
            subject.places.write(
                nifti / "images" / f"whole-{subject.image_N[row]:06d}.nii.gz",
                np.asarray(maps_NV[row]),
            )
        title = f"subject {subject.number}: mean contribution to the decoded embedding"
        if isinstance(subject.places, VoxelPlaces):
            figures.draw_slices(images / "whole-slices.png", subject.places, mean_V)
        if subject.meshes and not isinstance(subject.places, ColumnPlaces):
            figures.draw_surface(
                images / "whole-surface.png", subject.places, mean_V, subject.meshes, title
            )
            for sentence in subject.about_meshes:
                work.report(sentence)
    work.draw(images / f"{part.name}.png", subject, mean_V, "")
