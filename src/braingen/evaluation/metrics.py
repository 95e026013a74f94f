"""The registry of metrics: title, group, direction, axis, digits and bounds of every score.

Tables, comparisons, curves, the ablation, help and the report read it. A score that is not
registered is an error everywhere, since its direction is unknown. Metrics of pixels register
themselves (pixel_metrics/). Importing this loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
import difflib

from braingen.evaluation.metric_type import (
    ALIKE,
    BRAIN,
    CAPTION,
    CLOSE,
    GROUPS,
    LIKERT,
    PEOPLE,
    WHAT,
    WHICH,
    Metric,
)
from braingen.evaluation.pixel_metrics import pixel_metrics
from braingen.runtime.errors import UserError


def _percent(title: str, words: str, meaning: str, group: str, place: int) -> Metric:
    return Metric(title, words, meaning, group, place, percent=True, digits=1)


def _named(title: str, words: str, meaning: str, place: int) -> Metric:
    return Metric(title, words, meaning, WHAT, place, percent=True, digits=1, yes_or_no=True)


def _distance(title: str, words: str, meaning: str, place: int) -> Metric:
    return Metric(title, words, meaning, ALIKE, place, higher_is_better=False)


def _correlation(region: str, place: int) -> Metric:
    meaning = "correlation over images of responses predicted to the generated images and measured"
    return Metric(
        f"Brain corr., {region}", f"Brain correlation, {region}", meaning, BRAIN, place, axis=None
    )


_TWO_WAY = "the same, to"
_PROGRAM = "no people: a program that compares images"
METRICS: dict[str, Metric] = {
    "pixcorr": Metric("PixCorr", "PixCorr", "correlation of the pixels", ALIKE, 0),
    "ssim": Metric("SSIM", "SSIM", "structural similarity", ALIKE, 1),
    "two_way_alexnet2": _percent(
        "Alex(2)", "Two-way, AlexNet(2)", f"{_TWO_WAY} AlexNet's second layer", WHICH, 7
    ),
    "two_way_alexnet5": _percent(
        "Alex(5)", "Two-way, AlexNet(5)", f"{_TWO_WAY} AlexNet's fifth layer", WHICH, 6
    ),
    "two_way_inception": _percent(
        "Incep", "Two-way, Inception", f"{_TWO_WAY} InceptionV3", WHICH, 5
    ),
    "two_way_clip": _percent(
        "CLIP",
        "Two-way, CLIP",
        "the generated image is more similar to the seen one than to another, by CLIP",
        WHICH,
        2,
    ),
    "effnet_b1": _distance("Eff", "EfficientNet-B1", "correlation distance", 7),
    "swav": _distance("SwAV", "SwAV", "correlation distance", 8),
    "dreamsim": _distance("DreamSim", "DreamSim", "perceptual distance, tuned to human ratings", 6),
    "lpips": _distance("LPIPS", "LPIPS", "perceptual distance of AlexNet features", 5),
    "psnr": Metric(
        "PSNR (dB)",
        "PSNR",
        "peak signal to noise, in decibels",
        ALIKE,
        4,
        digits=2,
        axis=None,
        unit=" dB",
    ),
    "ssim_columns": Metric(
        "SSIM, legacy columns", "SSIM, legacy columns", "as older papers computed it", ALIKE, 2
    ),
    "two_way_classifier_early": _percent(
        "Classifier early",
        "Two-way, scene classifier, early layer",
        f"{_TWO_WAY} an independent network, by edges and colours",
        WHICH,
        4,
    ),
    "two_way_classifier_late": _percent(
        "Classifier late",
        "Two-way, scene classifier, late layer",
        f"{_TWO_WAY} an independent network, by contents",
        WHICH,
        3,
    ),
    "object_accuracy": _named(
        "Object named",
        "Object",
        "an independent network finds the seen object in the generated image",
        0,
    ),
    "background_accuracy": _named("Background named", "Background", "the same for the place", 1),
    "colour_accuracy": _named("Colour named", "Colour", "the same for the object's colour", 2),
    "position_accuracy": _named(
        "Position named", "Position", "the same for where the object is", 3
    ),
    "clip_cos": Metric(
        "CLIP-cos", "CLIP cosine", "cosine of decoded and true CLIP embedding", CLOSE, 0
    ),
    "clip_cos_centred": Metric(
        "CLIP-cos, centred",
        "CLIP cosine around the mean",
        "the same, less what all embeddings share",
        CLOSE,
        1,
    ),
    "two_way_embedding": _percent(
        "Two-way, embedding",
        "Two-way, decoded embedding",
        "the decoded embedding is more similar to the seen image's than to another's",
        WHICH,
        8,
    ),
    "retrieval_brain_to_image": _percent(
        "Retrieval brain->image",
        "Retrieval, brain to image",
        "the seen image is found among {pool} from brain activity",
        WHICH,
        0,
    ),
    "retrieval_image_to_brain": _percent(
        "Retrieval image->brain",
        "Retrieval, image to brain",
        "the brain activity of a seen image is found among {pool}",
        WHICH,
        1,
    ),
    "brain_correlation": _correlation("all voxels", 0),
    "brain_correlation_v1": _correlation("V1", 1),
    "brain_correlation_v2": _correlation("V2", 2),
    "brain_correlation_v3": _correlation("V3", 3),
    "brain_correlation_v4": _correlation("V4", 4),
    "brain_correlation_higher": _correlation("higher areas", 5),
    "meteor": Metric("METEOR", "METEOR", "shared words, synonyms counted", CAPTION, 0),
    "rouge_l": Metric("ROUGE-L", "ROUGE-L", "longest common word sequence", CAPTION, 1),
    "clip_text": Metric(
        "CLIP text similarity",
        "CLIP text similarity",
        "cosine of decoded and true caption",
        CAPTION,
        2,
    ),
    "human_identification": _percent(
        "People, two-way",
        "People: which was seen",
        "shown the generated image and two others, people choose the seen one",
        PEOPLE,
        0,
    ),
    "human_preference": _percent(
        "People, preferred",
        "People: preferred",
        "people prefer this image to another method's",
        PEOPLE,
        1,
    ),
    "human_similarity": Metric(
        "People, similarity 1-7",
        "People: similarity",
        "generated and seen image, rated from 1 to 7",
        PEOPLE,
        2,
        digits=2,
        axis=LIKERT,
    ),
    "simulated_rater_identification": _percent(
        "Simulated raters, two-way", "Simulated raters: which was seen", _PROGRAM, PEOPLE, 3
    ),
    "simulated_rater_preference": _percent(
        "Simulated raters, preferred", "Simulated raters: preferred", _PROGRAM, PEOPLE, 4
    ),
    "simulated_rater_similarity": Metric(
        "Simulated raters, similarity 1-7",
        "Simulated raters: similarity",
        "no people; rated from 1 to 7",
        PEOPLE,
        5,
        digits=2,
        axis=LIKERT,
    ),
}
"""By name, in the order of tables: the eight columns of the field's tables first. Two-way,
accuracies and retrieval are in per cent.
"""
for _name, _module in pixel_metrics().items():
    if _name in METRICS:
        raise UserError(f"The metric {_name} of {_module.__name__} is registered already.")
    METRICS[_name] = _module.METRIC
FIELD = tuple(METRICS)[:8]
"""The columns that every paper of the field prints."""
ATTRIBUTES = ("object", "colour", "position", "background")
"""Attributes that the scene classifier predicts. Tables per image have ``<name>_true`` and
``<name>_predicted`` columns beside the scores.
"""


def metric(name: str) -> Metric:
    """Look up a registered score.

    Raises
    ------
    UserError
        For a score that is not registered, whose direction is unknown.
    """
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(name, METRICS, n=1)
    raise UserError(
        f"There is no score '{name}' in the registry (METRICS in braingen/evaluation/metrics.py),"
        " so it is not known whether higher is better."
        f" {f'Did you mean {near[0]}? Else register' if near else 'Register'} it there, or leave"
        " its column out."
    )


def in_tables(names: Iterable[str]) -> list[str]:
    """Sort scores in the order of tables; an unregistered one is an error."""
    present = {name: metric(name) for name in names}
    return [name for name in METRICS if name in present]


def in_report(names: Iterable[str]) -> list[str]:
    """Sort scores in the order of the report: by group, then by place within it."""
    found = {name: metric(name) for name in names}
    return sorted(found, key=lambda name: (GROUPS.index(found[name].group), found[name].place))


def score_columns(columns: Iterable[str]) -> list[str]:
    """Return the score columns of a table per image; attributes are skipped, others an error."""
    return [name for name in columns if not name.endswith(("_true", "_predicted")) and metric(name)]
