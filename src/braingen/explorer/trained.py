"""A run folder as a run to explore, with the settings that its stages recorded.

V voxels, R presentations, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
import torch
from torch import Tensor

from braingen.config import Config
from braingen.config.shipped import backbone_folder
from braingen.data.betas import Betas
from braingen.data.captions import has_captions
from braingen.data.image_grid import seen_pictures
from braingen.data.places import load_any_places
from braingen.data.trials import group_repeats, test_trials
from braingen.explorer.explored_run import ExploredRun, GenerationSettings, ShownImage
from braingen.generation.pipeline import BrainDecoder, negative_condition
from braingen.generation.reconstruct import assemble, check_generation
from braingen.interpret.volumes import known_regions
from braingen.pretrained.tiny import check_backbone
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.errors import UserError
from braingen.runtime.paths import generated_in, one_subject, run_folder
from braingen.runtime.text_files import read_json, read_yaml
from braingen.targets.tables import Targets

PREVIEW = 8
"""Denoising steps of the explorer without a GPU, at most, unless explore.preview_steps says
otherwise.
"""
RECORDED = ("data", "backbone", "generation")
"""Sections of the settings that a run's stages recorded and that the explorer takes."""


def run_config(folder: Path, given: Config) -> Config:
    """The settings of a run: those its stages recorded, under those that are given.

    Parameters
    ----------
    folder : Path
        The run folder.
    given : Config
        The settings of the command; what was typed, or stands in its file, wins.

    Raises
    ------
    UserError
        When the folder holds no trained image encoder.
    """
    config = given.model_copy(update={"run": given.run.model_copy(update={"folder": folder})})
    trained = run_folder(config, "image")
    if not (trained / "config.yaml").is_file():
        what = "does not exist" if not folder.exists() else "holds no trained image encoder"
        raise UserError(
            f"{folder} {what}: give a run folder, such as runs/demo after `braingen demo`, or none"
            " for the shipped decoder."
        )
    recorded: dict[str, Any] = {}
    for path in (trained / "config.yaml", generated_in(folder, "brain") / "config.yaml"):
        if path.is_file():
            content = read_yaml(path)
            recorded |= {name: content[name] for name in RECORDED if name in content}
            if "seed" in content:
                recorded["run"] = {"seed": content["seed"]}
    return config.model_copy(
        update={name: _under(getattr(config, name), values) for name, values in recorded.items()}
    )


def _under(section: Any, recorded: Mapping[str, Any]) -> Any:
    """A section with recorded values where nothing was given."""
    kind = type(section)
    known = {name: value for name, value in recorded.items() if name in kind.model_fields}
    typed = {name: getattr(section, name) for name in section.model_fields_set}
    return kind.model_validate({**section.model_dump(), **known, **typed})


def trained_run(folder: Path, given: Config, preview_steps: int) -> ExploredRun:
    """Load the decoder of a run and what is known of its data.

    Parameters
    ----------
    preview_steps : int
        Denoising steps; 0 for the run's own, at most `PREVIEW` without a GPU.

    Raises
    ------
    UserError
        When decoder or data are missing, or do not fit each other.
    """
    config = one_subject(run_config(folder, given), "braingen explore")
    check_backbone(config)
    check_generation(config)
    layout, subject = Layout.of(config.data.root), config.data.subjects[0]
    targets = Targets(config)
    decoder = assemble(config, targets)
    repeats, betas = group_repeats(test_trials(layout, subject)), Betas.of(layout, subject)
    if betas.voxels != decoder.voxel_count(subject):
        raise UserError(
            f"{betas.path} has {betas.voxels} voxels, and the decoder in {folder} was trained with"
            f" {decoder.voxel_count(subject)}: name its data folder with --root."
        )
    row = {int(image): number for number, image in enumerate(repeats.image_N)}
    captions = targets.captions if has_captions(layout) else None

    def responses(image: int) -> np.ndarray:
        rows_R = repeats.rows_NR[row[image]]
        return betas.rows(rows_R[rows_R >= 0])

    def seen(image: int) -> Image.Image:
        return next(picture for _, picture in seen_pictures(targets.stimuli, [image]))

    places = load_any_places(layout, subject)
    return ExploredRun(
        name=str(folder),
        folder=str(folder),
        simulated=targets.stimuli.simulated,
        subject=subject,
        decoder=decoder,
        generation=_generation_settings(config, decoder, preview_steps),
        images=tuple(
            ShownImage(image, captions[image][0] if captions and image in captions else "")
            for image in row
        ),
        seen=seen,
        responses=responses,
        true=_true_embeddings(targets),
        places=places,
        regions=known_regions(layout, subject, places),
        tuning=_tuning_maps(folder, subject, places.read),
        scores=_scores(config.run.folder),
        notes=_notes(config),
    )


def _notes(config: Config) -> tuple[str, ...]:
    """In what the images of the explorer differ from the run's own."""
    own, found = config.generation, []
    if own.decode_by != "encoder":
        found.append(
            "The run's own images were decoded by the encoding model; the explorer decodes by the"
            " encoders."
        )
    if own.repeats == "first":
        found.append(
            "The run's own images are of first presentations alone; the explorer averages all"
            " unless a presentation is chosen."
        )
    if own.samples > 1:
        found.append(
            f"The run's own images are the best of {own.samples} samples; the explorer shows the"
            " first."
        )
    return tuple(found)


def _true_embeddings(targets: Targets) -> Callable[[int], Tensor]:
    def true(image: int) -> Tensor:
        with torch.no_grad():
            return targets.image(np.array([image]))

    return true


def _generation_settings(
    config: Config, decoder: BrainDecoder, preview_steps: int
) -> GenerationSettings:
    own = config.generation
    usual = own.steps if device_of(config).type == "cuda" else min(own.steps, PREVIEW)
    return GenerationSettings(
        steps=own.steps,
        preview_steps=preview_steps or usual,
        guidance_scale=own.guidance_scale,
        guidance_end=own.guidance_end,
        ip_adapter_scale=own.ip_adapter_scale,
        size=own.size,
        use_image=own.use_image,
        use_text=own.use_text and decoder.brain_text is not None,
        strength=own.strength,
        blend=own.blend,
        negative=negative_condition(
            decoder.form, backbone_folder(config.backbone.path), own.negative_prompt
        ),
        seed=config.run.seed,
    )


def _tuning_maps(
    folder: Path, subject: int, read: Callable[[Path], np.ndarray]
) -> dict[str, Callable[[], np.ndarray]]:
    """Maps of categories that `braingen interpret` wrote; those of the newest question."""
    folders = sorted(
        folder.glob(f"interpret/*/subj{subject:02d}/nifti/tuning"),
        key=lambda path: path.stat().st_mtime,
    )
    if not folders:
        return {}
    files = sorted({_stem(path): path for path in folders[-1].iterdir()}.items())
    return {
        name.replace("_", " "): partial(read, folders[-1] / f"{name}.nii.gz") for name, _ in files
    }


def _stem(path: Path) -> str:
    """Name of a map without its ending and hemisphere."""
    return path.name.partition(".")[0].partition("_hemi-")[0]


def _scores(folder: Path) -> dict[str, Mapping[str, Any]]:
    path = folder / "scores.json"
    content = read_json(path) if path.is_file() else {}
    return {
        name: score
        for name, score in content.items()
        if isinstance(score, dict) and score.get("value") is not None
    }
