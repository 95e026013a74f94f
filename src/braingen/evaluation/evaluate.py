"""Score reconstructions beside random voxels, an oracle and ridge regression, with intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import logging
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from braingen.config import Config
from braingen.data.sealed_runs import at_test_set
from braingen.encoding_model.run import has_encoding
from braingen.evaluation.averaged import Scored, averaged, intervals
from braingen.evaluation.calibration import CERTAINTY, calibration_of
from braingen.evaluation.decoded_images import decode_test_images
from braingen.evaluation.decoding import FEWEST_CANDIDATES
from braingen.evaluation.evaluate_images import evaluate_images
from braingen.evaluation.human_ratings import read_study, scores_in
from braingen.evaluation.image_files import LoadedImages
from braingen.evaluation.image_sets import PngImages, SeenImages
from braingen.evaluation.metric_table import MetricTable, compare_metric_tables, with_baselines
from braingen.evaluation.part_scores import scores_of_parts
from braingen.evaluation.score_files import (
    SCORES,
    Origin,
    print_scores,
    write_extremes,
    write_scores,
)
from braingen.evaluation.scored_source import (
    ScoredSource,
    score_encoding,
    score_ridge,
    score_source,
    scorer_of,
)
from braingen.evaluation.subject_means import write_mean
from braingen.evaluation.tables import as_json
from braingen.evaluation.uncertainty import compare
from braingen.generation.refine import refined_folder, refined_is_there
from braingen.pretrained.tiny import check_backbone
from braingen.runtime.console import console
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json, write_text
from braingen.runtime.memory import give_back
from braingen.runtime.parallel import ALONE, Group, Task
from braingen.runtime.paths import (
    EMBEDDINGS,
    INDEX,
    LOW_LEVEL,
    generated_folder,
    one_subject,
    random_folders,
    subject_configs,
    typed_run,
)
from braingen.runtime.run_folder import Run
from braingen.runtime.subjects import each_subject
from braingen.runtime.text_files import read_json
from braingen.runtime.untrusted import csv_text
from braingen.targets.tables import Targets

COMPARISONS, BY_PART, CONTROLS = "comparisons.json", "scores_by_part.csv", "controls.json"
REFINED, REFINEMENT = "refined", "refinement.json"
"""Name of the refined images beside the sources, and the file of their scores."""
logger = logging.getLogger(__name__)

CONTROL_FLAGS = {"random": "--random_fmri", "oracle": "--oracle"}
"""Control -> flag of `braingen reconstruct` that generates its images."""
FEW = 20
"""Number of test images below which a warning states the width of chance."""


def _require(config: Config) -> dict[str, list[Path]]:
    """Return the finished output folders of every source."""
    brain, oracle = (generated_folder(config, source) for source in ("brain", "oracle"))
    if not (brain / INDEX).exists():
        what = typed_run(config.run.folder)
        raise UserError(
            f"There are no finished reconstructions in {brain}: run `braingen reconstruct {what}`"
            " first."
        )
    folders = {
        "brain": [brain],
        "random": random_folders(config),
        "oracle": [oracle],
        LOW_LEVEL: [generated_folder(config, LOW_LEVEL)],
    }
    there = {
        source: [folder for folder in some if (folder / INDEX).exists()]
        for source, some in folders.items()
    }
    return {source: some for source, some in there.items() if some}


def warn_of_few(count: int) -> None:
    """Warn that scores of few test images have wide intervals.

    Raises
    ------
    UserError
        For a single image, which has no distractor.
    """
    advice = (
        "prepare with more test images (prepare.test_share, prepare.test_images), or leave every"
        " image out once: braingen cross-validate --scans SCANS."
    )
    if count < 2:
        raise UserError(
            f"{count} test image cannot be scored: there is no other image to confuse it with;"
            f" {advice}"
        )
    if count < FEW:
        unsure = (
            ""
            if count >= FEWEST_CANDIDATES
            else f" Retrieval needs {FEWEST_CANDIDATES} and is left out."
        )
        logger.warning(
            "Only %d test images: two-way identification is at chance at 0.500, and by chance"
            " alone within about +-%.2f of it (95 %%).%s Better: %s",
            count,
            0.98 / np.sqrt(count),
            unsure,
            advice,
        )


def evaluate(config: Config, group: Group = ALONE) -> Path:
    """Score a run, or the images at ``evaluation.all_recons_path``.

    `braingen.evaluation.score_files` names the files that are written into the run folder.

    Parameters
    ----------
    group : Group, optional
        Processes that score the samples in parallel; by default they are scored in sequence here.

    Returns
    -------
    Path
        Path of scores.json. With several subjects it holds their mean, and each subject's scores
        are in the subject's folder.
    """
    config = at_test_set(config)
    if config.evaluation.all_recons_path:
        return evaluate_images(one_subject(config, "evaluation.all_recons_path"))
    check_backbone(config)
    configs = subject_configs(config)
    for one in configs:  # fails before minutes of scoring
        _require(one)
    each_subject(config, lambda one: evaluate_subject(one, group))
    return write_mean(config) if len(configs) > 1 else configs[0].run.folder / SCORES


def evaluate_subject(config: Config, group: Group = ALONE) -> Path:
    """Score the only subject of a configuration, and write its files."""
    folders = _require(config)
    if refined_is_there(config):
        folders[REFINED] = [refined_folder(config)]
    brain = folders["brain"][0]
    ids = load_file(brain / EMBEDDINGS)["ids"].numpy()
    warn_of_few(len(ids))
    image_N = tuple(ids.tolist())
    sources = [(name, folder) for name, some in folders.items() for folder in some]
    tasks = [Task("scores of ridge regression", score_ridge, (config, image_N))]
    encoding = has_encoding(config)
    if encoding:
        tasks.append(Task("scores of the encoding model", score_encoding, (config, image_N)))
    for name, folder in sources:
        tasks.append(
            Task(
                f"scores of {folder.name}",
                score_source,
                (config, image_N, folder, name in (REFINED, LOW_LEVEL)),
            )
        )
    try:
        ridge, *scored = group.run(tasks)
        decoders = {"ridge": ridge} | ({"encoding model": scored.pop(0)} if encoding else {})
    finally:
        scorer_of.cache_clear()
        give_back(collect=True)  # before the image encoder is loaded
    found: dict[str, list[ScoredSource]] = {name: [] for name in folders}
    missing: dict[str, str] = {}
    for (name, _), (source, absent) in zip(sources, scored, strict=True):
        found[name].append(source)
        missing |= absent
    targets = Targets(config)
    truth = SeenImages(targets.stimuli, ids)
    averages = {
        name: averaged(
            [each.together() for each in samples], config.evaluation.bootstrap, config.run.seed
        )
        for name, samples in found.items()
    }
    first = found["brain"][0]
    scores = with_baselines(
        averages["brain"],
        random=averages.get("random"),
        oracle=averages.get("oracle"),
        ridge=ridge.scores,
        encoding_model=decoders["encoding model"].scores if encoding else None,
        low_level=averages.get(LOW_LEVEL),
    )
    folder = config.run.folder
    ratings = read_study(folder)
    if ratings.get("stale"):
        console().print(
            "The images were generated again after people rated them: the study is left out."
        )
    scores |= scores_in(ratings)
    assert first.decoding is not None
    beside = [
        first.decoding.table,
        *(
            each
            for each in (first.captions and first.captions.table, first.attributes)
            if each is not None
        ),
    ]
    sessions = (
        f"{config.data.num_sessions or 'all'} session{'' if config.data.num_sessions == 1 else 's'}"
    )
    subject = config.data.subjects[0]
    origin = Origin(
        config.evaluation.method,
        f"{targets.stimuli.data_name}, subject {subject}; {sessions}",
        subject,
        config.run.seed,
    )
    path = write_scores(folder, origin, scores, first.images, beside, missing)
    write_extremes(
        folder,
        first.images.table,
        LoadedImages(truth, ids),
        LoadedImages(PngImages(brain, ids), ids),
    )
    controls = {
        name: {"draws": len(folders[name]), "scores": intervals(averages[name])}
        for name in ("random", "oracle", LOW_LEVEL)
        if name in averages
    }
    write_json(folder / CONTROLS, controls)
    write_json(folder / COMPARISONS, _comparisons(config, first.decoding, decoders, ids))
    if REFINED in found:
        write_json(
            folder / REFINEMENT, _before_and_after(config, first.images, found[REFINED][0].images)
        )
    else:
        (folder / REFINEMENT).unlink(missing_ok=True)
    decoded = decode_test_images(config, targets)
    write_text(
        folder / BY_PART,
        csv_text(scores_of_parts(config, decoded, ids), index=False, float_format="%.6g"),
    )
    if (certainty := calibration_of(config, decoded)) is not None:
        write_json(folder / CERTAINTY, certainty)
    else:
        (folder / CERTAINTY).unlink(missing_ok=True)
    print_scores(scores, missing)
    note_absent_controls(folder, averages)
    return path


def note_absent_controls(run: Path, scored: Collection[str]) -> None:
    """Print how the columns of random voxels and of the oracle are filled, where they are empty."""
    absent = [name for name in CONTROL_FLAGS if name not in scored]
    if absent:
        flags = " and ".join(CONTROL_FLAGS[name] for name in absent)
        console().print(
            f"Without scores: {' and '.join(absent)}, whose images were not generated. Type"
            f" `braingen reconstruct {typed_run(run)}` with {flags}, then evaluate again.",
            soft_wrap=True,
        )


def _comparisons(
    config: Config, brain: Scored, others: Mapping[str, Scored], ids: np.ndarray
) -> list[dict[str, float | str]]:
    """Compare the encoder with ridge regression and with the encoding model, image by image."""
    tables = {name: each.table.loc[ids] for name, each in {"encoder": brain, **others}.items()}
    columns = {
        name: {score: table[score].to_numpy() for score in table} for name, table in tables.items()
    }
    compared = compare(
        columns, dict.fromkeys(columns, ids), config.evaluation.bootstrap, config.run.seed
    )
    return [
        {
            "name": f"{each.first} minus {each.second}: {each.score}",
            "difference": each.difference,
            "low": each.low,
            "high": each.high,
            "p": each.p_holm,
        }
        for each in compared
    ]


def _before_and_after(config: Config, before: MetricTable, after: MetricTable) -> dict[str, Any]:
    """Compare scores of the images before and after refinement, image by image."""
    found_both = compare_metric_tables(
        {"after": after, "before": before}, config.evaluation.bootstrap, config.run.seed
    )
    compared = {each.score: each for each in found_both}
    first, second = as_json(before.scores), as_json(after.scores)
    found: dict[str, Any] = {}
    for name in second:
        found[name] = {"before": first[name], "after": second[name]}
        if name in compared:
            each = compared[name]
            found[name] |= {
                "difference": each.difference,
                "low": each.low,
                "high": each.high,
                "p": each.p_holm,
            }
    run = Run(refined_folder(config))
    return {
        "settings": run.config["refinement"],
        "steps": run.summary.get("steps"),
        "scores": found,
    }


def read_scores(folder: Path) -> dict[str, dict[str, float | None]]:
    """Read scores.json of a run."""
    return read_json(folder / SCORES)
