"""`braingen train encoding`: fit the encoding models of all subjects, and choose how they decode.

encoding/subj01/            the model of a subject (model.py)
encoding/subj01_voxels.npz  per voxel: explained variance, noise ceiling, bands, voxel embedding
encoding/voxel_space.safetensors  the space of voxel embeddings, over all subjects
encoding/summary.json       medians, and the way of decoding
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.data.checks import check_before_training
from braingen.data.sealed_runs import refuse_test_set
from braingen.data.trials import fold_of_images, train_trials
from braingen.encoding_model.banded_ridge import candidate_scales
from braingen.encoding_model.features import FeatureSpaces
from braingen.encoding_model.group_prior import GroupPrior
from braingen.encoding_model.library import USUAL, USUAL_BY_GROUPS, Inverse, choose_decoding
from braingen.encoding_model.model import EncodingModel
from braingen.encoding_model.people import people_groups
from braingen.encoding_model.pictures import Pictures, library_pictures
from braingen.encoding_model.responses import AveragedResponses, average_responses
from braingen.encoding_model.voxel_space import shared_space
from braingen.pretrained.tiny import check_backbone
from braingen.runtime.console import Progress, console
from braingen.runtime.data_layout import Layout, subject_name
from braingen.runtime.device import device_of
from braingen.runtime.distributed import Workers, complete, shared_run
from braingen.runtime.errors import UserError
from braingen.runtime.files import replaced_file, replaced_path, write_json
from braingen.runtime.paths import encoding_folder
from braingen.runtime.run_folder import Run

SPACE, SUMMARY = "voxel_space.safetensors", "summary.json"
REFERENCE = 1000
"""Most images whose predicted responses define the space of voxel embeddings."""
FOLDED = 500
"""Images up to which every decoding fold is fitted; of more images the first fold alone, whose
images are enough to choose by.
"""


def train_encoding(config: Config) -> Path:
    """Fit the encoding model of every subject; a finished one is kept.

    Returns
    -------
    Path
        The run folder.
    """
    refuse_test_set(config, "train")
    check_backbone(config)
    settings = config.model_dump(mode="json", include={"data", "backbone", "encoding"})
    settings["seed"] = config.run.seed
    folder = encoding_folder(config)
    workers = Workers(config)
    with shared_run(workers, folder, settings, {"run": config.run.seed}) as run:
        if not complete(workers, run, lambda: [folder / SPACE]):
            if workers.main:
                run.mark_finished(_fit_all(config, folder))
            workers.wait()
    return folder


def _fit_all(config: Config, folder: Path) -> dict[str, Any]:
    """Fit and write everything; returns the summary."""
    layout = Layout.of(config.data.root)
    captions = "caption" in config.encoding.bands
    check_before_training(layout, config.data.subjects, config.data.num_sessions, captions=captions)
    spaces = FeatureSpaces(config)
    others = other_people(config)
    pictures = library_pictures(config, spaces)
    reference_N = np.unique(
        np.concatenate(
            [
                train_trials(layout, subject, config.data.num_sessions).table["image"].to_numpy()
                for subject in config.data.subjects
            ]
        )
    )
    found: dict[int, EncodingModel] = {}
    for subject in config.data.subjects:
        trials = train_trials(layout, subject, config.data.num_sessions)
        responses = average_responses(trials, Betas.of(layout, subject))
        found[subject] = fit_subject(
            config,
            subject,
            responses,
            spaces,
            pictures,
            prior_of(others, subject, pictures.features, config.run.seed),
        )
        found[subject].save(folder / subject_name(subject))
    chosen = np.random.default_rng(config.run.seed).permutation(reference_N)[:REFERENCE]
    space_KP = shared_space(list(found.values()), spaces.of_ids(np.sort(chosen)))
    with replaced_path(folder / SPACE) as temporary:
        save_file({"space_KP": space_KP}, temporary)
    for subject, model in found.items():
        _write_voxels(folder / f"{subject_name(subject)}_voxels.npz", model, space_KP)
    summary = {subject_name(subject): facts_of(model) for subject, model in found.items()}
    write_json(folder / SUMMARY, summary)
    for name, facts in summary.items():
        console().print(f"{name}: {_words(facts)}")
    return summary


def other_people(config: Config) -> dict[int, EncodingModel]:
    """The encoding models of ``encoding.init_from``, by subject.

    Raises
    ------
    UserError
        When there are none, or they have other bands.
    """
    start = config.encoding.init_from
    if start is None:
        return {}
    folders = [folder for folder in (start / "encoding", start) if (folder / SUMMARY).is_file()]
    if not folders:
        raise UserError(
            f"encoding.init_from = {start} holds no encoding models: train them first, with"
            f" braingen train encoding --folder {start}."
        )
    theirs = Run(folders[0]).require_finished().config["encoding"]
    for name, ours in (
        ("bands", list(config.encoding.bands)),
        ("feature_width", config.encoding.feature_width),
    ):
        if theirs[name] != ours:
            raise UserError(
                f"encoding.{name} is {ours} and was {theirs[name]} in encoding.init_from = {start}:"
                " people are compared by the same features."
            )
    found = {
        subject: EncodingModel.load(folders[0] / subject_name(subject))
        for subject in range(1, 100)
        if (folders[0] / subject_name(subject)).is_dir()
    }
    return found


def prior_of(
    others: Mapping[int, EncodingModel], subject: int, features: Mapping[str, np.ndarray], seed: int
) -> GroupPrior | None:
    """Groups of other people's voxels; None without others.

    Parameters
    ----------
    features : Mapping[str, np.ndarray]
        Bands of pictures by whose predicted responses voxels are compared; of more than `REFERENCE`
        some are taken.
    """
    models = [model for number, model in others.items() if number != subject]
    if not models:
        return None
    step = -(-len(next(iter(features.values()))) // REFERENCE)
    return people_groups(models, {name: rows[::step] for name, rows in features.items()}, seed=seed)


def fit_subject(
    config: Config,
    subject: int,
    responses: AveragedResponses,
    spaces: FeatureSpaces,
    pictures: Pictures,
    prior: GroupPrior | None = None,
) -> EncodingModel:
    """Fit one person's encoding model, and choose how it decodes."""
    features = spaces.of_ids(responses.image_N)
    embedding_ND = spaces.targets.image(responses.image_N).flatten(1).numpy()
    return fit_with_decoding(
        config, responses, features, embedding_ND, pictures, f"{subject}", prior
    )


def fit_with_decoding(
    config: Config,
    responses: AveragedResponses,
    features: dict[str, np.ndarray],
    embedding_ND: np.ndarray,
    pictures: Pictures,
    name: str,
    prior: GroupPrior | None = None,
) -> EncodingModel:
    """Fit a model to all images, and choose how it decodes on images it was not fitted on.

    Parameters
    ----------
    features, embedding_ND : dict[str, np.ndarray]
        Bands, and flat CLIP embeddings, of the images of ``responses``.
    pictures : Pictures
        The library; images of the fold are left out of it too.
    name : str
        Of the person, for the progress bar.
    prior : GroupPrior | None, optional
        Of other people (`prior_of`).
    """
    settings = config.encoding
    images = len(responses.image_N)
    folds = min(settings.decoding_folds, images // 2)
    fold_N = fold_of_images(responses.image_N, folds, config.run.seed)
    used = range(folds if images <= FOLDED else 1)
    scales_CB = candidate_scales(len(features), settings.band_draws, config.run.seed)
    candidates = len(scales_CB) if prior is None else len(prior.maps_GPK) + len(features)
    with Progress() as progress:
        bar = progress.add_task(
            f"encoding model of subject {name}", total=candidates * (1 + len(used))
        )

        def fit(rows_N: np.ndarray) -> EncodingModel:
            return EncodingModel.fit(
                {band: values[rows_N] for band, values in features.items()},
                responses.rows(rows_N),
                scales_CB,
                settings.left_out_images,
                config.run.seed,
                device_of(config),
                lambda: progress.advance(bar),
                prior,
            )

        def held_out() -> Iterator[tuple[Inverse, np.ndarray, np.ndarray]]:
            for number in used:
                left_N = fold_N == number
                model = fit(~left_N)
                others = pictures.without(responses.image_N[left_N])
                inverse = Inverse(others.library(model), model.noise)
                yield inverse, responses.mean_NV[left_N], embedding_ND[left_N]

        usual = USUAL if prior is None else USUAL_BY_GROUPS
        choice = choose_decoding(held_out(), embedding_ND.mean(0), usual)
        return fit(np.ones(images, dtype=bool))._replace(decoding=choice)


def _write_voxels(path: Path, model: EncodingModel, space_KP: np.ndarray) -> None:
    """Write the table of voxels."""
    with replaced_file(path) as handle:
        np.savez(
            handle,
            explained=model.explained_V,
            ceiling=model.ceiling_V.astype(np.float32),
            snr=model.snr_V,
            bands=np.array(list(model.ridge.bands)),
            band_share=model.share_BV,
            embedding=model.embed_voxels(space_KP),
        )


def facts_of(model: EncodingModel) -> dict[str, Any]:
    """Medians and means of a model, for the summary."""
    ceiling_V = model.ceiling_V
    known = np.isfinite(ceiling_V) & (ceiling_V > 0.05)
    share_V = model.explained_V[known] / ceiling_V[known]
    median = float(np.median(ceiling_V[np.isfinite(ceiling_V)])) if known.any() else None
    return {
        "voxels": len(model.explained_V),
        "explained_mean": round(float(np.maximum(model.explained_V, 0).mean()), 4),
        "ceiling_median": None if median is None else round(median, 4),
        "share_of_ceiling_median": round(float(np.median(share_V)), 4) if known.any() else None,
        "bands": {
            band: round(float(share_V.mean()), 4)
            for band, share_V in zip(model.ridge.bands, model.share_BV)
        },
        "noise_shrinkage": model.noise.shrinkage,
        "decoding": model.decoding._asdict(),
    }


def _words(facts: dict[str, Any]) -> str:
    ceiling = facts["ceiling_median"]
    beside = (
        "no repeats, so no noise ceiling"
        if ceiling is None
        else (
            f"noise ceiling {ceiling:.1%} (median), of which {facts['share_of_ceiling_median']:.0%}"
        )
    )
    return (
        f"{facts['explained_mean']:.1%} of variance explained in left-out images ({beside});"
        f" decoded held-out images: cosine {facts['decoding']['cosine']:.3f}"
    )
