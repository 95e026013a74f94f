"""Data of fine-tuning: VAE latents and decoded embeddings, computed once per image, and the rows
of a pass.

N images, E all experts, T tokens, D CLIP width, C h w latent sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from braingen.config import Config
from braingen.data.batches import RepeatBatches
from braingen.data.betas import Betas
from braingen.data.trials import Repeats, group_repeats, hold_out_images, train_trials
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.generation.conditioned_unet import decode_voxels
from braingen.generation.sampling import seeded_noise
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import identity
from braingen.runtime.fingerprints import digest_of_texts, fingerprint_of_files
from braingen.runtime.memory import give_back
from braingen.runtime.paths import EMBEDDING_DECODER, run_folder
from braingen.targets.cache import Cache
from braingen.targets.tables import Targets
from braingen.training.conditioning_augmentation import DecodingError, decoding_error_of


class TrainingImages(NamedTuple):
    """Images with their decoded embeddings; tables are memory-mapped."""

    image_N: np.ndarray
    """Image ids."""
    latents: np.ndarray
    """Scaled VAE latents by image id: (all images) x C x h x w."""
    decoded: dict[str, list[np.ndarray]]
    """'image', 'text' -> per subject, the embeddings of all experts, by image id: (all images) x E
    x T x D.
    """
    truth: dict[str, Tensor]
    """'image', 'text' -> standardised true embeddings of the rows: N x T x D."""
    subject_N: np.ndarray
    """Position of the subject whose responses were decoded."""

    @property
    def rows(self) -> np.ndarray:
        """Numbers of the rows, 0 to N - 1."""
        return np.arange(len(self.image_N))

    def latents_of(self, rows: np.ndarray) -> Tensor:
        """B x C x h x w, float32."""
        return torch.from_numpy(self.latents[self.image_N[rows]].astype(np.float32))

    def decoded_of(self, name: str, rows: np.ndarray) -> Tensor:
        """B x E x T x D, float32."""
        tables = self.decoded[name]
        parts = [tables[self.subject_N[row]][self.image_N[row]] for row in rows]
        return torch.from_numpy(np.stack(parts).astype(np.float32))


class DiffusionData(NamedTuple):
    """Everything a fine-tuning learns from."""

    train: TrainingImages
    held_out: TrainingImages
    decoding_error: dict[str, DecodingError]
    """'image', 'text' -> decoding error of held-out images."""


def decoded_table(
    config: Config,
    name: str,
    embedding_decoder: EmbeddingDecoder,
    betas: Betas,
    subject: int,
    repeats: Repeats,
    images: int,
) -> np.ndarray:
    """Outputs of every expert for images, their presentations averaged, after the prior where it
    comes first, by image id.
    """
    device = next(embedding_decoder.parameters()).device
    row_of = {int(image): row for row, image in enumerate(repeats.image_N)}

    def compute(ids: np.ndarray) -> Tensor:
        some = Repeats(ids, repeats.rows_NR[[row_of[int(i)] for i in ids]])
        (batch,) = RepeatBatches(some, betas, subject, len(ids))
        noise = (
            seeded_noise(
                ids.tolist(), embedding_decoder.noise_shape, config.run.seed, f"prior of {name}"
            )
            if embedding_decoder.noise_shape
            else None
        )
        with embedding_decoder.without_held_out():
            decoded = decode_voxels(
                embedding_decoder,
                batch.voxels_BRV.to(device),
                subject,
                batch.present_BR,
                config.router.prior_order,
                experts=True,
                noise=noise,
            )
        return decoded.stack.experts_BETD

    key = {
        "embedding_decoder": fingerprint_of_files(run_folder(config, name) / EMBEDDING_DECODER),
        "betas": identity(betas.path),
        "subject": str(subject),
        "order": config.router.prior_order,
        "seed": str(config.run.seed) if embedding_decoder.noise_shape else "",
    }
    made_from = digest_of_texts([str(row) for row in rows] for rows in repeats.rows_NR)
    cache = Cache(
        Layout.of(config.data.root).cache() / "decoded",
        f"decoded_{name}",
        key,
        images,
        compute,
        np.float16,
    )
    return cache.table(repeats.image_N, made_from)


def diffusion_data(
    config: Config,
    targets: Targets,
    embedding_decoders: dict[str, EmbeddingDecoder],
    size: int,
    held_out_images: int,
) -> DiffusionData:
    """Compute or find everything frozen, one model after the other.

    Parameters
    ----------
    embedding_decoders : dict[str, EmbeddingDecoder]
        Of image and text, in eval mode; afterwards they have their scale, and a prior that is
        applied at every step, and no encoder (:meth:`EmbeddingDecoder.keep_scale`).
    size : int
        Side of the training images in pixels.
    held_out_images : int
        How many held-out images are looked at when validating; errors are measured on all of
        them.
    """
    layout = Layout.of(config.data.root)
    splits: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train": [], "held_out": []}
    decoded: dict[str, list[np.ndarray]] = {name: [] for name in embedding_decoders}
    for position, subject in enumerate(config.data.subjects):
        trials = train_trials(layout, subject, config.data.num_sessions)
        repeats, betas = group_repeats(trials), Betas.of(layout, subject)
        for name, embedding_decoder in embedding_decoders.items():
            if str(subject) not in embedding_decoder.config.encoder_config["subjects"]:
                raise UserError(
                    f"The {name} encoder in {run_folder(config, name)} does not know subject"
                    f" {subject}: name one it was trained on."
                )
            decoded[name].append(
                decoded_table(
                    config, name, embedding_decoder, betas, subject, repeats, len(targets.stimuli)
                )
            )
        for split, part in zip(
            splits, hold_out_images(trials, config.data.holdout_share, config.run.seed)
        ):
            images = np.unique(part.table["image"].to_numpy())
            splits[split].append((images, np.full(len(images), position)))
    everything = np.unique(
        np.concatenate([images for parts in splits.values() for images, _ in parts])
    )
    for embedding_decoder in embedding_decoders.values():
        embedding_decoder.keep_scale(prior=config.router.prior_order == "step")
    give_back()
    latents = targets.latents(everything, size)

    def pictures(split: str) -> TrainingImages:
        image_N, subject_N = (np.concatenate(column) for column in zip(*splits[split]))
        truth = {
            name: embedding_decoder.standardised(
                targets.of(name, image_N).to(embedding_decoder.device)
            ).cpu()
            for name, embedding_decoder in embedding_decoders.items()
        }
        return TrainingImages(image_N, latents, decoded, truth, subject_N)

    train, held_out = pictures("train"), pictures("held_out")
    decoding_error = {
        name: decoding_error_of(held_out.decoded_of(name, held_out.rows), held_out.truth[name])
        for name in embedding_decoders
    }
    shown = held_out.rows[:held_out_images]
    few = held_out._replace(
        image_N=held_out.image_N[shown],
        subject_N=held_out.subject_N[shown],
        truth={k: v[shown] for k, v in held_out.truth.items()},
    )
    return DiffusionData(train, few, decoding_error)


class StepRows:
    """Which rows make a pass: reshuffled every epoch, a function of seed, number of the pass, rank
    and world.

    Parameters
    ----------
    count : int
        Rows there are.
    batch : int
        Of a pass and process.
    """

    def __init__(self, count: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.count, self.batch, self.seed, self.rank, self.world = count, batch, seed, rank, world
        self._order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(
                count
            )
        )

    def of(self, number: int) -> np.ndarray:
        """Rows of a pass of this process; epochs follow each other without a gap."""
        first = (number * self.world + self.rank) * self.batch
        return np.array(
            [
                self._order(place // self.count)[place % self.count]
                for place in range(first, first + self.batch)
            ]
        )


def pieces(count: int, size: int) -> Iterator[np.ndarray]:
    """Rows 0 to count - 1, so many at a time."""
    for first in range(0, count, size):
        yield np.arange(first, min(count, first + size))
