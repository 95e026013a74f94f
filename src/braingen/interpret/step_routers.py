"""The step `routers` of `braingen interpret`: level weights over time, and use of the experts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from braingen.interpret.question import Explanation
from braingen.interpret.readout import parts_of
from braingen.runtime.paths import INDEX, ROUTING, generated_folder, subject_configs
from braingen.runtime.text_files import read_json


def write_routers(work: Explanation) -> None:
    """Write level weights over denoising time and expert use of images generated with routers."""
    path = (
        generated_folder(subject_configs(work.config)[0], "brain") / ROUTING
    )  # of several subjects the first
    modality = work.config.interpret.modality
    mixed = load_file(path) if path.exists() else {}
    if f"{modality}_levels" not in mixed:
        work.report(
            f"Routers: {path} does not record any for {modality}s: its images were generated"
            " without routers; run `braingen finetune`, then `braingen reconstruct`."
        )
        return
    levels_NSL, experts_NSE = (
        mixed[f"{modality}_{name}"].numpy() for name in ("levels", "experts")
    )
    index = read_json(path.parent / INDEX)["images"]
    mean_SL, sd_SL = levels_NSL.mean(axis=0), levels_NSL.std(axis=0)
    steps = [
        {"step": step, "level": level, "weight": mean_SL[step, level], "sd": sd_SL[step, level]}
        for step in range(mean_SL.shape[0])
        for level in range(mean_SL.shape[1])
    ]
    work.table(work.folder / "router_levels.csv", pd.DataFrame(steps))
    names = [part for part in parts_of(work.experts) if part.expert is not None]
    groups = {"all": np.ones(len(index), dtype=bool)}
    if work.inputs.classes is not None:
        row_of = {int(image): row for row, image in enumerate(work.inputs.subjects[0].image_N)}
        rows = np.array([row_of.get(int(image), -1) for image in index])
        classes = zip(work.inputs.classes.names, work.inputs.classes.member_NC.T)
        groups |= {name: (rows >= 0) & member_N[rows] for name, member_N in classes}
    use = [
        {
            "level": part.level,
            "expert": part.expert,
            "images": group,
            "n": inside_N.sum(),
            "use": experts_NSE[inside_N, :, k].mean(),
        }
        for group, inside_N in groups.items()
        if inside_N.any()
        for k, part in enumerate(names[: experts_NSE.shape[2]])
    ]
    work.table(work.folder / "router_experts.csv", pd.DataFrame(use))
    first, last = (", ".join(f"{weight:.2f}" for weight in mean_SL[step]) for step in (0, -1))
    work.report(
        f"Routers: {len(index)} images, {mean_SL.shape[0]} steps; level weights change from"
        f" {first} to {last}."
    )
