"""The step `ablation` of `braingen interpret`: ablate levels, experts and regions, then decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from braingen.data.betas import Betas
from braingen.generation.reconstruct import assemble
from braingen.interpret.ablated_images import ablations_of, generate_ablated
from braingen.interpret.ablation import (
    AblationScores,
    ablate_part,
    ablate_voxels,
    ablation_table,
    scores_of,
)
from braingen.interpret.experts import ExpertOutputs, VoxelRows, expert_outputs_of
from braingen.interpret.question import Explanation
from braingen.interpret.readout import parts_of
from braingen.runtime.errors import UserError
from braingen.targets.tables import Targets


def write_ablation(work: Explanation) -> None:
    """Ablate levels, experts and regions, and score the decoded embeddings."""
    classes, tables = work.inputs.classes, []
    for subject in work.inputs.subjects:
        count = len(subject.image_N)
        member_NC = classes.member_NC if classes else np.zeros((count, 0), dtype=bool)
        direction_CF = (
            classes.direction_CF if classes else torch.zeros(0, work.inputs.true_NF.shape[1])
        )

        def decoded(voxels_NV: VoxelRows, number: int = subject.number) -> Iterator[ExpertOutputs]:
            return expert_outputs_of(work.inputs.embedding_decoder, voxels_NV, number)

        def score(
            outputs: Iterable[ExpertOutputs],
            directions: Tensor = direction_CF,
            members: np.ndarray = member_NC,
        ) -> AblationScores:
            return scores_of(outputs, work.inputs.true_NF, directions, members)

        groups = {"all": np.ones(count, dtype=bool)} | dict(
            zip(classes.names if classes else (), member_NC.T)
        )
        done = [
            ablate_part(
                work.inputs.embedding_decoder, part, subject.voxels_NV, subject.number, score
            )
            for part in parts_of(work.experts)
            if part.level is not None
        ]
        draws, seed = work.config.interpret.draws, work.config.run.seed
        for name, inside_V in work.regions(subject).items():
            done.append(
                ablate_voxels(
                    name,
                    inside_V,
                    subject.voxels_NV,
                    lambda voxels: score(decoded(voxels)),
                    draws,
                    seed,
                )
            )
        if not done:
            work.report(
                f"Ablation: skipped, because the encoder of subject {subject.number} has no"
                " experts and no region is known."
            )
            continue
        table = ablation_table(
            score(decoded(subject.voxels_NV)), done, groups, work.config.run.seed
        )
        table.insert(0, "subject", subject.number)
        tables.append(table)
    if not tables:
        return
    table = pd.concat(tables, ignore_index=True)
    work.table(work.folder / "ablation.csv", table)
    regional = table[
        (table["images"] == "all") & (table["score"] == "cosine") & (table["voxels"] > 0)
    ]
    if len(regional):
        most = regional.loc[regional["loss"].idxmax()]
        work.report(
            f"Ablation: {most['ablated']} ({most['voxels']} voxels) lowers the"
            f" cosine most, by {most['loss']:.3f} (same number of random voxels:"
            f" {most.get('random', float('nan')):.3f})."
        )
    write_ablated_images(work, table)


def write_ablated_images(work: Explanation, table: pd.DataFrame) -> None:
    """Generate the first images with ablated levels and regions; `table` is ablation.csv."""
    if not (count := work.config.interpret.ablation_images):
        return
    targets = Targets(work.config)
    try:
        decoder = assemble(work.config, targets)
    except (UserError, OSError) as error:
        work.report(f"Ablation: no images were generated. {error}")
        return
    for subject in work.inputs.subjects:
        mine = table[table["subject"] == subject.number]
        things = ablations_of(work.config, work.experts, work.regions(subject), mine)
        betas, own = Betas.of(work.layout, subject.number), work.of(subject)
        scores = generate_ablated(
            work.config, decoder, targets, betas, subject, count, things, own / "ablated"
        )
        work.table(own / "ablated_images.csv", scores)
