"""What `braingen explain` reads: a trained reader, test images' responses, labels, and the directions that are asked about.

N test images, V voxels, F numbers of an embedding, C classes, M training images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from braingen.brain.reader import BrainReader
from braingen.config import Config
from braingen.data.betas import Betas
from braingen.data.nsd import Layout
from braingen.data.trials import Repeats, group_repeats, test_trials, train_trials
from braingen.data.volumes import VoxelPlaces, load_places
from braingen.errors import UserError
from braingen.explain.experts import listen
from braingen.explain.maps import membership
from braingen.explain.patterns import ClassReadOut
from braingen.explain.readout import class_directions
from braingen.simulation.pictures import load_scenes
from braingen.simulation.scenes import BACKGROUNDS, COLOUR_NAMES, NO_COLOUR, OBJECTS, POSITIONS
from braingen.stages.machine import device_of
from braingen.stages.targets import Targets
from braingen.stages.trained import load_reader

ABOUT = ("target", "cosine", "embedding", "label", "caption")
Labels = Callable[[np.ndarray], list[tuple[str, ...]]]


class Subject(NamedTuple):
    """One subject's test images, as the decoder is given them."""

    number: int
    voxels_NV: np.ndarray
    """Responses averaged over presentations, float32."""
    rows_NR: np.ndarray
    """Rows of the betas of every presentation, -1 where there were fewer."""
    image_N: np.ndarray
    places: VoxelPlaces


class Classes(NamedTuple):
    """Categories of the images, and where they lie in the embedding."""

    names: tuple[str, ...]
    member_NC: np.ndarray
    """bool, of the test images."""
    direction_CF: Tensor
    """From training images, length 1."""
    read_out: Callable[[], ClassReadOut]
    """Learns from training images to tell the categories in an embedding; it takes a while with thousands of images."""


class Inputs(NamedTuple):
    """Everything there is to explain."""

    reader: BrainReader
    subjects: tuple[Subject, ...]
    """All with the same images."""
    true_NF: Tensor
    """True embeddings around the training mean."""
    classes: Classes | None
    """None where nothing is known of what the images show."""
    direction_NF: Tensor
    """Per test image the direction whose share is explained, of length 1."""
    simulated: bool


def averaged(betas: Betas, repeats: Repeats) -> np.ndarray:
    """Responses averaged over the presentations there are, N x V float32."""
    out_NV = np.empty((len(repeats.image_N), betas.voxels), dtype=np.float32)
    for row, trials in enumerate(repeats.rows_NR):
        out_NV[row] = betas.rows(trials[trials >= 0]).mean(axis=0)
    return out_NV


def read_labels(config: Config, simulated: bool) -> Labels | None:
    """How to look up the labels of images; None where there are none.

    Raises
    ------
    UserError
        When the table or the grouping is not there.
    """
    asked = config.explain.grouping
    if config.explain.labels:
        path = Path(config.explain.labels).expanduser()
        if not path.is_file():
            raise UserError(f"There is no table of labels {path}: give a CSV with a column image and one column per kind of label.")
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if "image" not in table or asked not in table:
            raise UserError(f"{path} has columns {', '.join(table)}; image and {asked} were expected (choose with --grouping).")
        known = {int(image): tuple(filter(None, map(str.strip, text.split(";")))) for image, text in zip(table["image"], table[asked])}
        return lambda images: [known.get(int(image), ()) for image in images]
    if not simulated:
        return None
    things = {
        "supercategory": lambda scene: OBJECTS[scene.objects[0].object].supercategory,
        "object": lambda scene: OBJECTS[scene.objects[0].object].name,
        "colour": lambda scene: "" if scene.objects[0].colour == NO_COLOUR else COLOUR_NAMES[scene.objects[0].colour],
        "background": lambda scene: BACKGROUNDS[scene.background],
        "position": lambda scene: POSITIONS[scene.position],
    }
    if asked not in things:
        raise UserError(f"explain.grouping = {asked} is not known of simulated images: {', '.join(things)} are; or give --labels TABLE.")
    layout = Layout.of(config.data.root)
    return lambda images: [tuple(filter(None, [things[asked](scene)])) for scene in load_scenes(layout, images.tolist())]


def read_subjects(config: Config) -> tuple[Subject, ...]:
    """The test images that all subjects saw."""
    layout = Layout.of(config.data.root)
    found = {number: group_repeats(test_trials(layout, number)) for number in config.data.subjects}
    shared = [image for image in next(iter(found.values())).image_N if all(image in each.image_N for each in found.values())]
    shared_N = np.array(shared[: config.explain.explain_images or None], dtype=np.int64)
    if len(shared_N) < 2:
        raise UserError(f"Subjects {', '.join(map(str, found))} share {len(shared_N)} test images; at least 2 are needed.")
    subjects = []
    for number, repeats in found.items():
        rows_NR = repeats.rows_NR[np.searchsorted(repeats.image_N, shared_N)]
        betas = Betas.of(layout, number)
        subjects.append(Subject(number, averaged(betas, Repeats(shared_N, rows_NR)), rows_NR, shared_N, load_places(layout, number)))
        if subjects[-1].places.voxels != betas.voxels:
            raise UserError(
                f"Subject {number}: the volumes' mask has {subjects[-1].places.voxels} voxels, the betas have {betas.voxels}; they do not"
                " belong together (docs/data.md)."
            )
    return tuple(subjects)


def training_images(config: Config) -> np.ndarray:
    """Ids of the training images of all subjects."""
    layout = Layout.of(config.data.root)
    tables = [train_trials(layout, number, config.data.num_sessions).table for number in config.data.subjects]
    return np.unique(np.concatenate([table["image"].to_numpy() for table in tables]))


def training_responses(config: Config, subject: int) -> Tensor:
    """Responses to some training images, averaged over presentations: GradientSHAP's baselines."""
    layout = Layout.of(config.data.root)
    repeats = group_repeats(train_trials(layout, subject, config.data.num_sessions))
    count = min(config.explain.baselines, len(repeats.image_N))
    chosen = np.sort(np.random.default_rng(config.run.seed).choice(len(repeats.image_N), count, replace=False))
    return torch.from_numpy(averaged(Betas.of(layout, subject), Repeats(repeats.image_N[chosen], repeats.rows_NR[chosen])))


def read_inputs(config: Config) -> Inputs:
    """Read and check everything before anything is computed.

    Raises
    ------
    UserError
        When something is missing, or what is asked about is not there.
    """
    reader = load_reader(config, config.explain.modality).to(device_of(config)).requires_grad_(False)
    targets, subjects = Targets(config), read_subjects(config)
    image_N, simulated = subjects[0].image_N, targets.stimuli.simulated

    def standard(embedding_NTD: Tensor) -> Tensor:
        return reader.standardised(embedding_NTD.to(reader.device)).flatten(1)

    true_NF = standard(targets.of(config.explain.modality, image_N))
    labels = read_labels(config, simulated)
    classes = None
    if labels is not None:
        trained_M = training_images(config)
        of_trained, of_test = labels(trained_M), labels(image_N)
        names = tuple(sorted({name for found in (*of_trained, *of_test) for name in found}))
        trained_MF, member_MC = standard(targets.of(config.explain.modality, trained_M)), membership(of_trained, names)
        direction_CF = class_directions(trained_MF, member_MC).cpu()
        read_out = partial(ClassReadOut.learn, trained_MF.cpu().numpy(), member_MC)
        classes = Classes(names, membership(of_test, names), direction_CF, read_out)
    direction_NF = _directions(config, reader, subjects[0], true_NF, classes, targets, standard)
    return Inputs(reader, subjects, true_NF.cpu(), classes, direction_NF, simulated)


def _directions(
    config: Config,
    reader: BrainReader,
    subject: Subject,
    true_NF: Tensor,
    classes: Classes | None,
    targets: Targets,
    standard: Callable[[Tensor], Tensor],
) -> Tensor:
    kind, _, name = config.explain.about.partition(":")
    if kind not in ABOUT or (name and kind in ("target", "cosine", "embedding")):
        raise UserError(
            f"explain.about = {config.explain.about} is not possible: take target, cosine, embedding, label, label:NAME, caption or "
            "caption:TEXT."
        )
    if kind in ("target", "cosine"):
        return normalize(true_NF, dim=1)
    if kind == "embedding":
        return normalize(listen(reader, subject.voxels_NV, subject.number).whole_NF.to(true_NF), dim=1)
    if kind == "caption":
        if config.explain.modality != "text":
            raise UserError("explain.about = caption asks the text encoder, whose embeddings captions have: add --modality text.")
        texts: Iterable[str] = [name] * len(true_NF) if name else [targets.captions[int(image)][0] for image in subject.image_N]
        return normalize(standard(targets.text_encoder([[text] for text in texts])), dim=1)
    if classes is None:
        raise UserError("explain.about = label needs to know what images show: give a table with --labels (docs/explain.md).")
    if name:
        if name not in classes.names:
            raise UserError(f"There is no {config.explain.grouping} '{name}' among {', '.join(classes.names)}.")
        return classes.direction_CF[[classes.names.index(name)] * len(true_NF)].to(true_NF)
    if not classes.member_NC.any(axis=1).all():
        raise UserError(
            f"Image {subject.image_N[~classes.member_NC.any(axis=1)][0]} has no {config.explain.grouping}: explain one class with"
            " --about label:NAME, or take another --grouping."
        )
    return classes.direction_CF[torch.from_numpy(classes.member_NC.argmax(axis=1))].to(true_NF)
