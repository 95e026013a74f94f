"""The step `experts` of `braingen interpret`: voxels and category profiles of every expert."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from braingen.interpret.agreement import group_agreement
from braingen.interpret.experts import evidence, expert_outputs_of, profile, voxel_selectivity
from braingen.interpret.question import Explanation
from braingen.interpret.readout import DecoderPart
from braingen.interpret.volumes import region_table
from braingen.runtime.errors import UserError


def write_experts(work: Explanation) -> None:
    """Write voxel selectivity from the weights, and category profiles, of every expert."""
    if not work.experts:
        work.report("Experts: skipped, because this encoder has none.")
        return
    agreement = []
    for subject in work.inputs.subjects:
        some_BV = torch.from_numpy(subject.voxels_NV[:64]).to(work.inputs.embedding_decoder.device)
        try:
            levels = voxel_selectivity(work.inputs.embedding_decoder, subject.number, some_BV)
        except UserError as error:
            work.report(str(error))
            break
        regions = work.regions(subject)
        shares: dict[str, np.ndarray] = {}
        for level, found in enumerate(levels):
            path = work.of(subject) / "nifti" / f"selectivity-level-{level}.nii.gz"
            subject.places.write(path, found.share_EV.T.astype(np.float32))
            shares |= {
                DecoderPart(level, expert).name: share_V
                for expert, share_V in enumerate(found.share_EV)
            }
            if regions:
                names = np.array([*regions, "none"])
                inside_RV = np.array(
                    [*regions.values(), np.ones(subject.places.voxels, dtype=bool)]
                )
                agreed = group_agreement(
                    found.chosen_V, names[inside_RV.argmax(axis=0)], seed=work.config.run.seed
                )
                agreement.append(
                    {
                        "subject": subject.number,
                        "level": level,
                        "exact": found.exact,
                        **agreed._asdict(),
                    }
                )
        work.table(work.of(subject) / "selectivity_regions.csv", region_table(shares, regions))
    if agreement:
        table = pd.DataFrame(agreement)
        work.table(work.folder / "expert_regions.csv", table)
        finest = table[table["level"] == table["level"].max()].iloc[0]
        work.report(
            "Experts as maps: adjusted mutual information of the voxels of the finest level with"
            f" regions {finest['value']:.3f} (permuted voxels: up to"
            f" {finest['permuted_high']:.3f})."
        )
    write_profiles(work)


def write_profiles(work: Explanation) -> None:
    """Write the category evidence of every expert."""
    classes = work.inputs.classes
    if classes is None:
        work.report(
            "Categories: skipped, because the images have no labels; give a table with --labels"
            " (docs/interpret.md)."
        )
        return
    tables = []
    for subject in work.inputs.subjects:
        outputs = expert_outputs_of(
            work.inputs.embedding_decoder, subject.voxels_NV, subject.number
        )
        pieces = [
            [evidence(out_BEF, classes.direction_CF) for out_BEF in some.experts]
            for some in outputs
        ]
        for level, evidence_BEC in enumerate(zip(*pieces)):
            found = profile(
                np.concatenate(evidence_BEC),
                classes.member_NC,
                work.config.interpret.permutations,
                work.config.run.seed,
            )
            found.insert(0, "level", level)
            found.insert(0, "subject", subject.number)
            tables.append(found)
    table = pd.concat(tables, ignore_index=True)
    table["class"] = [classes.names[number] for number in table["class"]]
    work.table(work.folder / "profiles.csv", table)
    work.report(
        f"Expert profiles: {(table['q'] < 0.05).mean():.0%} of"
        f" expert-{work.config.interpret.grouping} pairs are significant at FDR 5 %."
    )
