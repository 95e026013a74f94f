"""Inputs of `braingen interpret`: trained decoder, responses to test images, labels, directions.

N test images, V voxels, F numbers of an embedding, C classes, M training images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.data.large_files import blocks, scratch_array
from braingen.data.places import Places, SurfacePlaces, load_any_places
from braingen.data.trials import Repeats, group_repeats, test_trials, train_trials
from braingen.data.volumes import VoxelPlaces
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.trained import load_embedding_decoder
from braingen.interpret.maps import membership
from braingen.interpret.patterns import ClassReadOut
from braingen.interpret.readout import class_directions, decode
from braingen.interpret.surface import Mesh, check_space, check_vertices, read_meshes
from braingen.interpret.volumes import check_atlases
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.errors import UserError
from braingen.simulation.pictures import load_scenes
from braingen.simulation.scenes import BACKGROUNDS, COLOUR_NAMES, NO_COLOUR, OBJECTS, POSITIONS
from braingen.targets.tables import Targets

_IMAGES = 64
"""Images per batch of embeddings."""
ABOUT = ("target", "cosine", "embedding", "label", "caption")
Labels = Callable[[np.ndarray], list[tuple[str, ...]]]


class SubjectData(NamedTuple):
    """Test images of one subject, as input to the decoder."""

    number: int
    voxels_NV: np.ndarray
    """Responses averaged over presentations, float32, in a mapped file."""
    rows_NR: np.ndarray
    """Rows of the betas of every presentation, -1 for fewer presentations."""
    image_N: np.ndarray
    places: Places
    meshes: tuple[Mesh, ...] = ()
    """Surfaces for figures."""
    about_meshes: tuple[str, ...] = ()
    """Notes on these surfaces for the report."""


class Classes(NamedTuple):
    """Categories of the images, and their directions in the embedding."""

    names: tuple[str, ...]
    member_NC: np.ndarray
    """bool, of the test images."""
    direction_CF: Tensor
    """From training images, length 1."""
    read_out: Callable[[], ClassReadOut]
    """Fit classifiers of the categories to training images; slow for thousands of images."""


class InterpretInputs(NamedTuple):
    """All inputs of an explanation."""

    embedding_decoder: EmbeddingDecoder
    subjects: tuple[SubjectData, ...]
    """Subjects with the same images."""
    true_NF: Tensor
    """True embeddings around the training mean."""
    classes: Classes | None
    """None if the images have no labels."""
    direction_NF: Tensor
    """Per test image the explained direction, of length 1, in a mapped file as true_NF."""
    simulated: bool


def averaged(betas: Betas, repeats: Repeats, out_NV: np.ndarray | None = None) -> np.ndarray:
    """Responses averaged over presentations, N x V float32, optionally into `out_NV`."""
    out_NV = (
        np.empty((len(repeats.image_N), betas.voxels), dtype=np.float32)
        if out_NV is None
        else out_NV
    )
    for row, trials in enumerate(repeats.rows_NR):
        out_NV[row] = betas.rows(trials[trials >= 0]).mean(axis=0)
    return out_NV


def read_labels(config: Config, simulated: bool) -> Labels | None:
    """Function that looks up the labels of images; None without labels.

    Raises
    ------
    UserError
        When the table or the grouping is not there.
    """
    asked = config.interpret.grouping
    if config.interpret.labels:
        path = Path(config.interpret.labels).expanduser()
        if not path.is_file():
            raise UserError(
                f"There is no table of labels {path}: give a CSV with a column image and one column"
                " per kind of label."
            )
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if "image" not in table or asked not in table:
            raise UserError(
                f"{path} has columns {', '.join(table)}; image and {asked} were expected (choose"
                " with --grouping)."
            )
        known = {
            int(image): tuple(filter(None, map(str.strip, text.split(";"))))
            for image, text in zip(table["image"], table[asked])
        }
        return lambda images: [known.get(int(image), ()) for image in images]
    if not simulated:
        return None
    things = {
        "supercategory": lambda scene: OBJECTS[scene.objects[0].object].supercategory,
        "object": lambda scene: OBJECTS[scene.objects[0].object].name,
        "colour": lambda scene: (
            "" if scene.objects[0].colour == NO_COLOUR else COLOUR_NAMES[scene.objects[0].colour]
        ),
        "background": lambda scene: BACKGROUNDS[scene.background],
        "position": lambda scene: POSITIONS[scene.position],
    }
    if asked not in things:
        raise UserError(
            f"interpret.grouping = {asked} is not known of simulated images: {', '.join(things)}"
            " are; or give --labels TABLE."
        )
    layout = Layout.of(config.data.root)
    return lambda images: [
        tuple(filter(None, [things[asked](scene)]))
        for scene in load_scenes(layout, images.tolist())
    ]


def read_subjects(
    config: Config, meshes: Mapping[int, tuple[Mesh, ...]]
) -> tuple[SubjectData, ...]:
    """The test images that all subjects saw, and every subject's surfaces, if any.

    Raises
    ------
    UserError
        When atlases or surfaces lie elsewhere than voxels, subjects share fewer than two images, or
        mask and betas differ in their number of voxels.
    """
    layout = Layout.of(config.data.root)
    places = {number: load_any_places(layout, number) for number in config.data.subjects}
    volumes = {number: each for number, each in places.items() if isinstance(each, VoxelPlaces)}
    if config.interpret.atlases and len(volumes) < len(places):
        raise UserError(
            "interpret.atlases are volumes, and the responses lie on a surface or have no places:"
            " leave --atlases out."
        )
    check_atlases(config.interpret.atlases, volumes)
    about: dict[int, tuple[str, ...]] = dict.fromkeys(places, ())
    for number, each in places.items():
        if isinstance(each, VoxelPlaces):
            about[number] = check_space(
                config.interpret.surface, meshes.get(number, ()), volumes, number
            )
        elif isinstance(each, SurfacePlaces):
            check_vertices(meshes.get(number, ()), each)
    found = {number: group_repeats(test_trials(layout, number)) for number in config.data.subjects}
    shared = [
        image
        for image in next(iter(found.values())).image_N
        if all(image in each.image_N for each in found.values())
    ]
    shared_N = np.array(shared[: config.interpret.num_images or None], dtype=np.int64)
    if len(shared_N) < 2:
        raise UserError(
            f"Subjects {', '.join(map(str, found))} share {len(shared_N)} test images; at least 2"
            " are needed."
        )
    subjects = []
    for number, repeats in found.items():
        rows_NR = repeats.rows_NR[np.searchsorted(repeats.image_N, shared_N)]
        betas = Betas.of(layout, number)
        if places[number].voxels != betas.voxels:
            raise UserError(
                f"Subject {number}: the volumes' mask has {places[number].voxels} voxels, the betas"
                f" have {betas.voxels}; they do not belong together (docs/data.md)."
            )
        voxels_NV = averaged(
            betas,
            Repeats(shared_N, rows_NR),
            scratch_array(config.run.folder, (len(shared_N), betas.voxels)),
        )
        subjects.append(
            SubjectData(
                number,
                voxels_NV,
                rows_NR,
                shared_N,
                places[number],
                meshes.get(number, ()),
                about[number],
            )
        )
    return tuple(subjects)


def training_images(config: Config) -> np.ndarray:
    """Ids of the training images of all subjects."""
    layout = Layout.of(config.data.root)
    tables = [
        train_trials(layout, number, config.data.num_sessions).table
        for number in config.data.subjects
    ]
    return np.unique(np.concatenate([table["image"].to_numpy() for table in tables]))


def training_responses(config: Config, subject: int) -> Tensor:
    """Responses to some training images, averaged over presentations: GradientSHAP's baselines."""
    layout = Layout.of(config.data.root)
    repeats = group_repeats(train_trials(layout, subject, config.data.num_sessions))
    count = min(config.interpret.baselines, len(repeats.image_N))
    chosen = np.sort(
        np.random.default_rng(config.run.seed).choice(len(repeats.image_N), count, replace=False)
    )
    return torch.from_numpy(
        averaged(
            Betas.of(layout, subject), Repeats(repeats.image_N[chosen], repeats.rows_NR[chosen])
        )
    )


def read_inputs(config: Config) -> InterpretInputs:
    """Read and check everything before anything is computed.

    Raises
    ------
    UserError
        When something is missing, or what is asked about is not there.
    """
    meshes = read_meshes(config.interpret.surface, config.data.subjects)
    embedding_decoder = (
        load_embedding_decoder(config, config.interpret.modality)
        .to(device_of(config))
        .requires_grad_(False)
    )
    targets, subjects = Targets(config), read_subjects(config, meshes)
    image_N, simulated = subjects[0].image_N, targets.stimuli.simulated

    def standard(embedding_BTD: Tensor) -> Tensor:
        return embedding_decoder.standardised(embedding_BTD.to(embedding_decoder.device)).flatten(1)

    def true(images: np.ndarray) -> Tensor:
        table = targets.table(config.interpret.modality, images)
        return on_disk(
            config, len(images), lambda rows: standard(torch.from_numpy(table[images[rows]]))
        )

    true_NF = true(image_N)
    labels = read_labels(config, simulated)
    classes = None
    if labels is not None:
        trained_M = training_images(config)
        of_trained, of_test = labels(trained_M), labels(image_N)
        names = tuple(sorted({name for found in (*of_trained, *of_test) for name in found}))
        trained_MF, member_MC = true(trained_M), membership(of_trained, names)
        direction_CF = class_directions(trained_MF, member_MC)
        read_out = partial(ClassReadOut.learn, trained_MF.numpy(), member_MC)
        classes = Classes(names, membership(of_test, names), direction_CF, read_out)
    of_rows = _directions(
        config, embedding_decoder, subjects[0], true_NF, classes, targets, standard
    )
    direction_NF = on_disk(config, len(image_N), lambda rows: normalize(of_rows(rows), dim=1))
    return InterpretInputs(embedding_decoder, subjects, true_NF, classes, direction_NF, simulated)


def on_disk(config: Config, count: int, make: Callable[[np.ndarray], Tensor]) -> Tensor:
    """Compute embeddings of `count` images in batches, into a mapped file."""
    kept_NF: np.ndarray | None = None
    for first, last in blocks(count, _IMAGES):
        some_BF = make(np.arange(first, last)).cpu().numpy()
        kept_NF = (
            scratch_array(config.run.folder, (count, some_BF.shape[1]))
            if kept_NF is None
            else kept_NF
        )
        kept_NF[first:last] = some_BF
    return torch.from_numpy(kept_NF)


def _directions(
    config: Config,
    embedding_decoder: EmbeddingDecoder,
    subject: SubjectData,
    true_NF: Tensor,
    classes: Classes | None,
    targets: Targets,
    standard: Callable[[Tensor], Tensor],
) -> Callable[[np.ndarray], Tensor]:
    """What makes the directions of some rows, of any length."""
    kind, colon, name = config.interpret.about.partition(":")
    if (
        kind not in ABOUT
        or (colon and not name)
        or (name and kind in ("target", "cosine", "embedding"))
    ):
        raise UserError(
            f"interpret.about = {config.interpret.about} is not possible: take target, cosine,"
            " embedding, label, label:NAME, caption or caption:TEXT."
        )
    if kind in ("target", "cosine"):
        return lambda rows: true_NF[rows]
    if kind == "embedding":

        @torch.no_grad()
        def decoded(rows: np.ndarray) -> Tensor:
            return decode(
                embedding_decoder,
                torch.from_numpy(subject.voxels_NV[rows]).to(embedding_decoder.device),
                subject.number,
            )

        return decoded
    if kind == "caption":
        if config.interpret.modality != "text":
            raise UserError(
                "interpret.about = caption needs the text encoder, which predicts captions:"
                " add --modality text."
            )
        texts = (
            [name] * len(true_NF)
            if name
            else [targets.captions[int(image)][0] for image in subject.image_N]
        )
        return lambda rows: standard(targets.text_encoder([[texts[row]] for row in rows]))
    if classes is None:
        raise UserError(
            "interpret.about = label needs labels of the images: give a table with --labels"
            " (docs/interpret.md)."
        )
    if name:
        if name not in classes.names:
            raise UserError(
                f"There is no {config.interpret.grouping} '{name}' among"
                f" {', '.join(classes.names)}."
            )
        named = classes.names.index(name)
        return lambda rows: classes.direction_CF[[named] * len(rows)]
    if not classes.member_NC.any(axis=1).all():
        raise UserError(
            f"Image {subject.image_N[~classes.member_NC.any(axis=1)][0]} has no"
            f" {config.interpret.grouping}: explain one class with --about label:NAME, or take"
            " another --grouping."
        )
    first_N = classes.member_NC.argmax(axis=1)
    return lambda rows: classes.direction_CF[first_N[rows]]
