"""Everything that is scored of one set of generated images, and of other decoders."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from braingen.config import Config
from braingen.data.captions import has_captions
from braingen.data.sealed_runs import at_training_data
from braingen.encoding_model.run import has_encoding
from braingen.evaluation.averaged import Scored
from braingen.evaluation.brain_correlation import BrainScorer
from braingen.evaluation.decoding import decoder_scores
from braingen.evaluation.encoding_scores import encoding_embeddings
from braingen.evaluation.evaluate_captions import TextSpace, caption_table
from braingen.evaluation.feature_store import FeatureStore
from braingen.evaluation.identification import two_way
from braingen.evaluation.image_sets import PngImages, SeenImages
from braingen.evaluation.metric_table import MetricTable, score_images
from braingen.evaluation.observers import observers
from braingen.evaluation.ridge_baseline import ridge_embeddings, training_mean
from braingen.evaluation.scene_observers import load_scene_classifier, scene_attributes
from braingen.evaluation.score_files import feature_progress
from braingen.evaluation.uncertainty import share_interval, two_way_interval
from braingen.runtime.console import Progress
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.paths import EMBEDDINGS, generated_folder
from braingen.simulation.scenes import COLOUR_NAMES
from braingen.targets.tables import Targets
from braingen.types import Score

COLOUR, TWO_WAY = "colour_accuracy", "two_way_embedding"


def decoding_scores(
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


class SourceScorer:
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
        decoding = decoding_scores(config, decoded, projected, self.true_ND, self.mean_D, ids)
        captions, absent = caption_table(config, self.targets, self.space, folder, ids)
        self.missing.update(absent)
        return ScoredSource(metric_table, decoding, captions, attributes)


scorer_of = lru_cache(maxsize=1)(SourceScorer)
"""The scorer of this process, kept for the sources of one subject."""


def score_source(
    config: Config, image_N: tuple[int, ...], folder: Path, images_only: bool
) -> tuple[ScoredSource, dict[str, str]]:
    scorer = scorer_of(config, image_N)
    return scorer.source(folder, images_only), scorer.missing


def score_ridge(config: Config, image_N: tuple[int, ...]) -> Scored:
    scorer = scorer_of(config, image_N)
    raw_ND, mean_D = ridge_embeddings(config, scorer.targets, scorer.ids)
    return decoding_scores(config, raw_ND, raw_ND - mean_D, scorer.true_ND, mean_D, scorer.ids)


def score_encoding(config: Config, image_N: tuple[int, ...]) -> Scored:
    scorer = scorer_of(config, image_N)
    raw_ND, mean_D = encoding_embeddings(config, scorer.targets, scorer.ids), scorer.mean_D
    return decoding_scores(config, raw_ND, raw_ND - mean_D, scorer.true_ND, mean_D, scorer.ids)
