"""The step `components` of `braingen interpret`: independent components of the maps."""

from __future__ import annotations

import pandas as pd

from braingen.interpret.components import components_of, expression_table, related_classes
from braingen.interpret.question import Explanation
from braingen.interpret.readout import WHOLE
from braingen.interpret.volumes import region_table


def write_components(work: Explanation) -> None:
    """Write independent components of the maps of the whole decoder."""
    maps = [work.map_file(subject, WHOLE).maps() for subject in work.inputs.subjects]
    count = min(work.config.interpret.components, max(1, len(maps[0]) // 4))
    found = components_of(maps, count, work.config.run.seed)
    for subject, map_KV in zip(work.inputs.subjects, found.maps):
        subject.places.write(work.of(subject) / "nifti" / "components.nii.gz", map_KV.T)
        regions = work.regions(subject)
        table = region_table(
            {f"component {k}": value_V for k, value_V in enumerate(map_KV)}, regions
        )
        work.table(work.of(subject) / "components_regions.csv", table)
        for k, value_V in enumerate(map_KV[:12]):
            work.draw(work.of(subject) / "figures" / f"component-{k}.png", subject, value_V, "")
    loadings = pd.DataFrame(found.loading_NK, columns=[f"component {k}" for k in range(count)])
    loadings.insert(0, "image", work.inputs.subjects[0].image_N)
    work.table(work.folder / "component_loadings.csv", loadings)
    work.table(
        work.folder / "component_expression.csv",
        expression_table(found, [each.number for each in work.inputs.subjects]),
    )
    sentence = f"Components: {count} explain {found.explained:.0%} of the maps" + (
        "" if found.converged else " (ICA did not converge)"
    )
    if work.inputs.classes is not None:
        table = related_classes(found.loading_NK, work.inputs.classes.member_NC)
        table["class"] = [work.inputs.classes.names[number] for number in table["class"]]
        work.table(work.folder / "component_categories.csv", table)
        sentence += (
            f"; {table[table['q'] < 0.05]['component'].nunique()} of them are related to a"
            f" {work.config.interpret.grouping} (FDR 5 %)"
        )
    work.report(sentence + ".")
