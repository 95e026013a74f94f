"""Trained encoders for later stages; an error names the command that is missing."""

from __future__ import annotations

import logging

from braingen.config import Config
from braingen.data.captions import has_captions
from braingen.data.sealed import training_root
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoders.latent_encoder import LatentEncoder
from braingen.runtime.data_layout import Layout
from braingen.runtime.device import device_of
from braingen.runtime.errors import UserError
from braingen.runtime.paths import (
    EMBEDDING_DECODER,
    LATENT_ENCODER,
    low_level_folder,
    run_folder,
    trained_models,
)
from braingen.runtime.run_folder import Run

logger = logging.getLogger(__name__)


def load_embedding_decoder(config: Config, modality: str) -> EmbeddingDecoder:
    """The best checkpoint of an earlier ``braingen train image`` or ``train text``."""
    folder = run_folder(config, modality)
    if not (folder / EMBEDDING_DECODER).is_dir():
        names = trained_models(modality)
        there = f" Trained here: {', '.join(names)}." if names else ""
        raise UserError(
            f"There is no trained {modality} encoder in {folder}: run `braingen train {modality}"
            f" --folder {config.run.folder}` first, or name its run: --model_name_{modality}"
            f" RUN.{there}"
        )
    Run(folder).require_finished()
    return EmbeddingDecoder.from_pretrained(folder / EMBEDDING_DECODER).eval()


def modalities(config: Config) -> tuple[str, ...]:
    """The decoded embeddings: image, and text if available.

    Images are generated from the image embedding alone if there is no text encoder and either the
    data have no captions or ``generation.use_text`` is off. Otherwise a missing text encoder is an
    error (:func:`load_embedding_decoder`).
    """
    if (run_folder(config, "text") / EMBEDDING_DECODER).is_dir():
        return ("image", "text")
    wanted = config.generation.use_text and has_captions(Layout.of(training_root(config.data.root)))
    return ("image", "text") if wanted else ("image",)


def load_embedding_decoders(config: Config) -> dict[str, EmbeddingDecoder]:
    """The trained encoders, frozen, on the configured device."""
    found = {
        name: load_embedding_decoder(config, name).requires_grad_(False).to(device_of(config))
        for name in modalities(config)
    }
    for name, each in found.items():
        if each.linear is not None and each.linear.weights.encoder == 0:
            logger.warning(
                "Held-out images chose the closed-form read-out alone for the %s embedding (ridge"
                " regression, or what training.linear=best took in its place): its levels and"
                " experts give the same, and routing has nothing to choose from. Train on more"
                " trials, or with training.with_ridge=false.",
                name,
            )
    return found


def load_latent_encoder(config: Config) -> LatentEncoder | None:
    """The trained low-level path of a run; None where none was trained.

    Raises
    ------
    UserError
        When its training is not finished.
    """
    folder = low_level_folder(config)
    if not (folder / LATENT_ENCODER).is_dir():
        return None
    Run(folder).require_finished()
    return LatentEncoder.from_pretrained(folder / LATENT_ENCODER).eval()
