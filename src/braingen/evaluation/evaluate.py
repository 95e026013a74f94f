"""Score reconstructions beside random voxels, an oracle and ridge regression, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors.torch import load_file
import torch
from torch import Tensor

from braingen.config import Config
from braingen.data.batches import RepeatBatches, average_repeats
from braingen.data.betas import Betas
from braingen.data.captions import has_captions
from braingen.data.sealed_runs import at_test_set, at_training_data
from braingen.data.trials import Repeats, group_repeats, test_trials, train_trials
from braingen.encoders.trained import load_embedding_decoder
from braingen.encoding_model.run import has_encoding
from braingen.evaluation.averaged import Scored, averaged, intervals
from braingen.evaluation.brain_correlation import BrainScorer
from braingen.evaluation.decoding import FEWEST_CANDIDATES, decoder_scores, scores_by_part
from braingen.evaluation.encoding_scores import encoding_embeddings
from braingen.evaluation.evaluate_captions import TextSpace, caption_table
from braingen.evaluation.evaluate_images import evaluate_images
from braingen.evaluation.feature_store import FeatureStore
from braingen.evaluation.human_ratings import read_study, scores_in
from braingen.evaluation.identification import two_way
from braingen.evaluation.image_files import LoadedImages
from braingen.evaluation.image_sets import PngImages, SeenImages
from braingen.evaluation.metric_table import (
    MetricTable,
    compare_metric_tables,
    score_images,
    with_baselines,
)
from braingen.evaluation.observers import observers
from braingen.evaluation.ridge import fit_ridge
from braingen.evaluation.scene_observers import load_scene_classifier, scene_attributes
from braingen.evaluation.score_files import (
    SCORES,
    Origin,
    feature_progress,
    print_scores,
    write_extremes,
    write_scores,
)
from braingen.evaluation.subject_means import write_mean
from braingen.evaluation.tables import as_json
from braingen.evaluation.uncertainty import compare, share_interval, two_way_interval
from braingen.generation.refine import refined_folder, refined_is_there
from braingen.pretrained.tiny import check_backbone
from braingen.runtime.console import Progress, console
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json, write_text
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
from braingen.simulation.scenes import COLOUR_NAMES
from braingen.targets.tables import Targets
from braingen.types import Score

COMPARISONS, BY_PART, CONTROLS = "comparisons.json", "scores_by_part.csv", "controls.json"
REFINED, REFINEMENT = "refined", "refinement.json"
"""Name of the refined images beside the sources, and the file of their scores."""
logger = logging.getLogger(__name__)

COLOUR, TWO_WAY = "colour_accuracy", "two_way_embedding"
FEW = 20
"""Number of test images below which a warning states the width of chance."""


def _decoding(
    config: Config,
    image_ND: Tensor,
    clip_ND: Tensor,
    true_ND: Tensor,
    mean_D: Tensor,
    ids: np.ndarray,
) -> Scored:
    """Score decoded embeddings: CLIP-cos, two-way identification, and retrieval.

    CLIP-cos is that of the decoded embedding in CLIP's own units. Two-way identification and
    retrieval subtract the training mean first; retrieval uses the encoder's projected output.

    Parameters
    ----------
    image_ND, true_ND : Tensor
        Decoded and true embeddings in CLIP's own units.
    clip_ND : Tensor
        The projected output minus the training mean.
    mean_D : Tensor
        Mean embedding of the training images.
    """
    true_clip_ND = true_ND - mean_D
    settings = {
        "pool": config.evaluation.retrieval_pool,
        "draws": config.evaluation.retrieval_draws,
        "resamples": config.evaluation.bootstrap,
        "seed": config.run.seed,
    }
    cosine, cosine_table = decoder_scores(image_ND.numpy(), true_ND.numpy(), ids, **settings)
    retrieval, retrieval_table = decoder_scores(
        clip_ND.numpy(), true_clip_ND.numpy(), ids, **settings
    )
    scores = {name: (cosine if name == "clip_cos" else retrieval)[name] for name in cosine}
    identified = two_way(true_clip_ND.numpy(), (image_ND - mean_D).numpy())
    interval = two_way_interval(identified.beats_NN, config.evaluation.bootstrap, config.run.seed)
    scores[TWO_WAY] = Score(
        *interval, random=None, oracle=None, ridge=None, chance=0.5, n=len(ids), pool=None
    )
    own = pd.Series(identified.share_N, index=pd.Index(ids, name="image"), name=TWO_WAY)
    table = pd.concat(
        [cosine_table[["clip_cos"]], own, retrieval_table.drop(columns="clip_cos")], axis=1
    )
    return Scored(scores, table, {TWO_WAY: identified})


def training_mean(config: Config, targets: Targets, modality: str = "image") -> Tensor:
    """Mean embedding of the subject's distinct training images in CLIP's own units, flattened."""
    table = train_trials(
        Layout.of(config.data.root), config.data.subjects[0], config.data.num_sessions
    ).table
    known_ND = targets.of(modality, np.unique(table["image"].to_numpy())).flatten(1)
    return torch.from_numpy(known_ND.numpy().mean(0))


def ridge_embeddings(
    config: Config, targets: Targets, ids: np.ndarray, modality: str = "image"
) -> tuple[Tensor, Tensor]:
    """Predict the test images' embeddings by cross-validated ridge regression.

    Ridge uses all training trials, the encoders' validation images included: it chooses its
    penalty by leave-one-image-out cross-validation.

    Returns
    -------
    tuple[Tensor, Tensor]
        raw_ND, mean_D : predictions in CLIP's own units, and the training mean.
    """
    training, subject = at_training_data(config), config.data.subjects[0]
    layout = Layout.of(training.data.root)
    betas = Betas.of(layout, subject)
    table = train_trials(layout, subject, config.data.num_sessions).table
    images = table["image"].to_numpy()
    known, row = np.unique(images, return_inverse=True)
    true_ND = (
        (targets if training == config else Targets(training))
        .of(modality, known)
        .flatten(1)
        .numpy()
    )
    ridge = fit_ridge(betas.rows(table["trial"].to_numpy()), true_ND[row], images)
    test_layout = Layout.of(config.data.root)
    repeats, betas = (
        group_repeats(test_trials(test_layout, subject)),
        Betas.of(test_layout, subject),
    )
    rows_of_image = dict(zip(repeats.image_N.tolist(), repeats.rows_NR))
    used = [rows_of_image[int(image)] for image in ids]
    used = [rows[rows >= 0] for rows in used]
    if config.generation.repeats == "first":
        used = [rows[:1] for rows in used]
    voxels = np.stack([betas.rows(rows).mean(0) for rows in used])
    return torch.from_numpy(ridge.predict(voxels)), torch.from_numpy(true_ND.mean(0))


def colour_score(words: pd.DataFrame) -> Score:
    """Accuracy of the predicted colour over the objects that come in several colours."""
    coloured = words[words["colour_true"] != ""]
    right = (coloured["colour_true"] == coloured["colour_predicted"]).to_numpy(dtype=float)
    interval = share_interval(right)
    return Score(
        *interval,
        random=None,
        oracle=None,
        ridge=None,
        chance=1 / len(COLOUR_NAMES),
        n=len(right),
        pool=None,
    )


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


@torch.no_grad()
def scores_of_parts(config: Config, targets: Targets, ids: np.ndarray) -> pd.DataFrame:
    """Score every level and every expert of the image encoder on its own.

    Embeddings are averaged over presentations, before the prior, and compared after subtracting
    the training mean.
    """
    embedding_decoder, subject = (
        load_embedding_decoder(config, "image").to(device_of(config)),
        config.data.subjects[0],
    )
    layout = Layout.of(config.data.root)
    repeats, betas = group_repeats(test_trials(layout, subject)), Betas.of(layout, subject)
    kept = np.isin(repeats.image_N, ids)
    repeats = Repeats(repeats.image_N[kept], repeats.rows_NR[kept])
    outputs: dict[str, list[Tensor]] = {}
    for batch in RepeatBatches(repeats, betas, subject, 32):
        count, presentations = batch.present_BR.shape
        out = embedding_decoder(
            batch.voxels_BRV.flatten(0, 1).to(embedding_decoder.device),
            subject,
            return_experts=True,
        )
        parts = {
            f"level {level}": out.level_backbone_BLTD[:, level]
            for level in range(out.level_backbone_BLTD.shape[1])
        }
        for level, experts_BETD in enumerate(out.expert_backbone):
            parts |= {
                f"level {level}, expert {expert}": experts_BETD[:, expert]
                for expert in range(experts_BETD.shape[1])
            }
        for name, part_BTD in parts.items():
            mean_BTD = average_repeats(
                part_BTD.float().unflatten(0, (count, presentations)),
                batch.present_BR.to(part_BTD.device),
            )
            outputs.setdefault(name, []).append(mean_BTD.flatten(1).cpu())
    true_ND = (
        embedding_decoder.cpu().standardised(targets.image(repeats.image_N)).flatten(1).numpy()
    )
    settings = {
        "pool": config.evaluation.retrieval_pool,
        "draws": config.evaluation.retrieval_draws,
        "seed": config.run.seed,
    }
    decoded = {name: torch.cat(rows).numpy() for name, rows in outputs.items()}
    return scores_by_part(
        decoded, true_ND, repeats.image_N, resamples=config.evaluation.bootstrap, **settings
    )


class ScoredSource(NamedTuple):
    """Everything that is scored of one generated sample of the images."""

    images: MetricTable
    decoding: Scored | None
    """None for refined and coarse images, which have no embeddings and captions of their own."""
    captions: Scored | None
    attributes: pd.DataFrame | None
    """Predictions of the scene classifier; simulated scenes only."""

    def together(self) -> Scored:
        """Merge all its scores."""
        parts = [
            Scored(self.images.scores, self.images.table, self.images.identified),
            *filter(None, (self.decoding, self.captions)),
        ]
        tables = [part.table for part in parts]
        if self.attributes is not None and COLOUR in self.images.scores:
            coloured = self.attributes["colour_true"] != ""
            tables.append(
                (self.attributes["colour_true"] == self.attributes["colour_predicted"])[coloured]
                .astype(float)
                .rename(COLOUR)
                .to_frame()
            )
        scores = {name: score for part in parts for name, score in part.scores.items()}
        identified = {name: found for part in parts for name, found in part.identified.items()}
        return Scored(scores, pd.concat(tables, axis=1), identified)


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


class _Scorer:
    """Loads everything that scores the sources of a run, once."""

    def __init__(self, config: Config, image_N: tuple[int, ...]) -> None:
        self.config, self.ids = config, np.array(image_N)
        self.targets = Targets(config)
        self.simulated = self.targets.stimuli.simulated
        self.networks, self.named, self.missing = observers(config, self.simulated, self.ids)
        self.truth = SeenImages(self.targets.stimuli, self.ids)
        self.true_ND = self.targets.image(self.ids).flatten(1)
        training = at_training_data(config)
        self.mean_D = training_mean(
            training, self.targets if training == config else Targets(training)
        )
        layout = Layout.of(config.data.root)
        self.space = TextSpace(self.targets) if has_captions(layout) else None
        self.brain: BrainScorer | None = None
        if has_encoding(config):
            try:
                self.brain = BrainScorer(config, self.targets, self.ids)
            except UserError as error:  # a model that needs captions
                self.missing["brain_correlation"] = f"Brain correlation is left out: {error}"
        # features of the true images, shared by all sources and later evaluations
        self.kept = layout.cache() / "features"

    def source(self, folder: Path, images_only: bool) -> ScoredSource:
        """Score one generated sample of the images; `missing` collects what cannot be scored."""
        config, ids = self.config, self.ids
        found = {} if images_only else load_file(folder / EMBEDDINGS)
        if not images_only and not np.array_equal(found["ids"].numpy(), ids):
            brain = generated_folder(config, "brain")
            raise UserError(
                f"{folder} and {brain} hold different images: generate both with the same settings."
            )
        images = PngImages(folder, ids)
        settings: dict[str, Any] = {
            "readouts": self.named,
            "resamples": config.evaluation.bootstrap,
            "seed": config.run.seed,
        }
        with (
            Progress() as progress,
            FeatureStore(self.kept, progress=feature_progress(progress)) as store,
        ):
            metric_table = score_images(
                self.truth,
                ids,
                images,
                ids,
                self.networks,
                missing=self.missing,
                store=store,
                **settings,
            )
        if self.brain is not None:
            scored, values = self.brain.scores(images, config.evaluation.bootstrap, config.run.seed)
            metric_table.scores.update(scored)
            metric_table = metric_table._replace(table=metric_table.table.assign(**values))
        attributes = None
        if self.simulated:
            attributes = scene_attributes(
                load_scene_classifier(), Layout.of(config.data.root), ids, images
            )
            if (attributes["colour_true"] != "").any():
                metric_table.scores[COLOUR] = colour_score(attributes)
        if images_only:
            return ScoredSource(metric_table, None, None, attributes)
        decoded, projected = found["image"].flatten(1), found["image_clip"].flatten(1)
        decoding = _decoding(config, decoded, projected, self.true_ND, self.mean_D, ids)
        captions, absent = caption_table(config, self.targets, self.space, folder, ids)
        self.missing.update(absent)
        return ScoredSource(metric_table, decoding, captions, attributes)


_scorer = lru_cache(maxsize=1)(_Scorer)
"""The scorer of this process, kept for the sources of one subject."""


def _score_source(
    config: Config, image_N: tuple[int, ...], folder: Path, images_only: bool
) -> tuple[ScoredSource, dict[str, str]]:
    scorer = _scorer(config, image_N)
    return scorer.source(folder, images_only), scorer.missing


def _score_ridge(config: Config, image_N: tuple[int, ...]) -> Scored:
    scorer = _scorer(config, image_N)
    raw_ND, mean_D = ridge_embeddings(config, scorer.targets, scorer.ids)
    return _decoding(config, raw_ND, raw_ND - mean_D, scorer.true_ND, mean_D, scorer.ids)


def _score_encoding(config: Config, image_N: tuple[int, ...]) -> Scored:
    scorer = _scorer(config, image_N)
    raw_ND, mean_D = encoding_embeddings(config, scorer.targets, scorer.ids), scorer.mean_D
    return _decoding(config, raw_ND, raw_ND - mean_D, scorer.true_ND, mean_D, scorer.ids)


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
    tasks = [Task("scores of ridge regression", _score_ridge, (config, image_N))]
    encoding = has_encoding(config)
    if encoding:
        tasks.append(Task("scores of the encoding model", _score_encoding, (config, image_N)))
    for name, folder in sources:
        tasks.append(
            Task(
                f"scores of {folder.name}",
                _score_source,
                (config, image_N, folder, name in (REFINED, LOW_LEVEL)),
            )
        )
    try:
        ridge, *scored = group.run(tasks)
        decoders = {"ridge": ridge} | ({"encoding model": scored.pop(0)} if encoding else {})
    finally:
        _scorer.cache_clear()
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
        name: {"drawings": len(folders[name]), "scores": intervals(averages[name])}
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
    write_text(
        folder / BY_PART,
        csv_text(scores_of_parts(config, targets, ids), index=False, float_format="%.6g"),
    )
    print_scores(scores, missing)
    return path


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
