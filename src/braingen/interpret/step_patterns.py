"""The step `patterns` of `braingen interpret`: activation patterns of the decoded categories.

N images, V voxels, C categories.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from braingen.data.betas import Betas
from braingen.data.large_files import blocks
from braingen.interpret.agreement import area_under_roc
from braingen.interpret.patterns import activation_patterns
from braingen.interpret.question import Explanation
from braingen.interpret.readout import decode
from braingen.interpret.volumes import region_table
from braingen.runtime.errors import UserError

FIGURES = 12
"""Number of figures: the best decoded categories."""
ALL = "all categories"
"""Row of the region table: root mean square over categories."""


def write_patterns(work: Explanation) -> None:
    """Write patterns, their root mean square and voxel reliability as NIfTI, tables and figures."""
    classes = work.inputs.classes
    if classes is None:
        work.report(
            "Patterns: skipped, because the images have no labels; give a table with --labels"
            " (docs/interpret.md)."
        )
        return
    read_out, tables = classes.read_out(), []
    for subject in work.inputs.subjects:

        @torch.no_grad()
        def decoded(voxels_BV: np.ndarray, number: int = subject.number) -> np.ndarray:
            embedding_decoder = work.inputs.embedding_decoder
            return read_out.probability(
                decode(
                    embedding_decoder,
                    torch.from_numpy(voxels_BV).to(embedding_decoder.device),
                    number,
                )
                .cpu()
                .numpy()
            )

        try:
            found = activation_patterns(
                Betas.of(work.layout, subject.number).rows, subject.rows_NR, decoded
            )
        except UserError as error:
            work.report(f"Patterns: skipped. {error}")
            return
        own = work.of(subject)
        subject.places.write(own / "nifti" / "reliability.nii.gz", found.reliability_V)
        subject.places.write(own / "nifti" / "patterns-size.nii.gz", found.typical_V)
        for name, map_V in zip(classes.names, found.map_CV):
            subject.places.write(
                own / "nifti" / "patterns" / f"{name.replace(' ', '_')}.nii.gz", map_V
            )
        regions = region_table(
            {**dict(zip(classes.names, found.map_CV)), ALL: found.typical_V}, work.regions(subject)
        )
        work.table(own / "patterns_regions.csv", regions)
        decoded_NC = np.concatenate(
            [decoded(subject.voxels_NV[a:b]) for a, b in blocks(len(subject.voxels_NV), 64)]
        )
        named = regions[regions["region"] != "in no region"]
        strongest = (
            named.loc[named.groupby("map")["mean"].idxmax()].set_index("map")
            if len(named)
            else None
        )
        table = pd.DataFrame(
            {
                "subject": subject.number,
                "class": classes.names,
                "images": classes.member_NC.sum(axis=0),
                "decoded": [
                    area_under_roc(decoded_N, member_N)
                    for decoded_N, member_N in zip(decoded_NC.T, classes.member_NC.T)
                ],
                "region": (
                    ""
                    if strongest is None
                    else [strongest.loc[name, "region"] for name in classes.names]
                ),
                "mean": (
                    np.nan
                    if strongest is None
                    else [strongest.loc[name, "mean"] for name in classes.names]
                ),
            }
        ).sort_values("decoded", ascending=False, ignore_index=True)
        tables.append(table)
        for name in table["class"][:FIGURES]:
            map_V = found.map_CV[classes.names.index(name)]
            work.draw(own / "figures" / f"pattern-{name.replace(' ', '_')}.png", subject, map_V, "")
    table = pd.concat(tables, ignore_index=True)
    work.table(work.folder / "patterns.csv", table)
    best = table.iloc[0]
    where = (
        f"; its pattern is strongest in {best['region']} (mean correlation {best['mean']:.2f})"
        if best["region"]
        else ""
    )
    work.report(
        f"Patterns: the decoder of subject {best['subject']} identifies {best['class']} best"
        f" (area under the ROC curve {best['decoded']:.2f}){where}."
    )
