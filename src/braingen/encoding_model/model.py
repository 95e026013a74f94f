"""The encoding model of a person: image features to voxels, with noise, ceiling and decoding.

N images, P features, V voxels, B bands, D embedding width, K dimensions of the shared space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file
import torch

from braingen.data.model_facts import model_facts
from braingen.encoding_model.banded_ridge import (
    LEFT_OUT,
    BandedRidge,
    fit_banded_ridge,
    stack_bands,
)
from braingen.encoding_model.group_prior import GroupPrior, fit_group_prior
from braingen.encoding_model.library import DecodingChoice, Inverse, Library
from braingen.encoding_model.noise import NoiseModel, fit_noise
from braingen.encoding_model.responses import AveragedResponses
from braingen.runtime.errors import UserError
from braingen.runtime.files import replaced_folder, write_json
from braingen.runtime.model_card import CARD, ScoreFacts, write_card
from braingen.runtime.model_card import FACTS as CARD_FACTS
from braingen.runtime.repository import Upload, files_below, located, upload
from braingen.runtime.text_files import read_json
from braingen.runtime.weights import read_tensors

WEIGHTS, FACTS = "model.safetensors", "model.json"
_FILES = (WEIGHTS, FACTS, CARD_FACTS, CARD)
"""Of an uploaded model, its card last."""
_AGAIN = "train it again: braingen train encoding"


class LibraryDecoding(NamedTuple):
    """Embeddings decoded from responses."""

    embedding_ND: np.ndarray
    """In the library's units, flat."""
    evidence_NL: np.ndarray
    """Log likelihood of every image of the library, less that of their mean."""


class EncodingModel(NamedTuple):
    """Image features to the voxels of one person."""

    ridge: BandedRidge
    noise: NoiseModel
    """Of what is not explained: trial noise and misfit."""
    snr_V: np.ndarray
    """Signal sd / noise sd of a single response, from repeats; NaN without."""
    trial_noise_V: np.ndarray
    """Variance of single responses to the same image, from repeats; NaN without."""
    presentations: float
    """Mean number of presentations of a training image."""
    share_BV: np.ndarray
    """Share of the variance of averaged responses that every band explains (product measure): sums
    to ``ridge.explained_V`` over bands.
    """
    decoding: DecodingChoice = DecodingChoice()

    @classmethod
    def fit(
        cls,
        features: Mapping[str, np.ndarray],
        responses: AveragedResponses,
        scales_CB: np.ndarray | None = None,
        left_out: int = LEFT_OUT,
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_candidate: Callable[[], object] = lambda: None,
        prior: GroupPrior | None = None,
    ) -> EncodingModel:
        """Fit features, noise and ceiling; arguments as of `fit_banded_ridge`.

        Parameters
        ----------
        features : Mapping[str, np.ndarray]
            Bands of the images of ``responses``, in their order.
        responses : AveragedResponses
            Of the training images.
        prior : GroupPrior | None, optional
            Groups of other people's voxels (`people_groups`), by which the weights of every voxel
            are fitted; ``scales_CB`` is then not used.
        """
        if prior is None:
            ridge = fit_banded_ridge(
                features,
                responses.mean_NV,
                responses.times_N,
                scales_CB,
                left_out=left_out,
                seed=seed,
                device=device,
                on_candidate=on_candidate,
            )
        else:
            ridge = fit_group_prior(
                features,
                responses.mean_NV,
                prior,
                responses.times_N,
                left_out=left_out,
                seed=seed,
                on_candidate=on_candidate,
            )
        noise = fit_noise(ridge.residual_JV, seed=seed)
        return cls(
            ridge,
            noise,
            responses.snr_V.astype(np.float32),
            responses.noise_V.astype(np.float32),
            responses.presentations,
            _band_shares(ridge, features),
        )

    @property
    def explained_V(self) -> np.ndarray:
        """Share of the variance of averaged responses explained in left-out images."""
        return self.ridge.explained_V

    @property
    def ceiling_V(self) -> np.ndarray:
        """Share that the image explains in averages of as many presentations; NaN without."""
        square_V = self.snr_V**2
        return square_V / (square_V + 1 / self.presentations)

    def predict(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Responses to images, without noise: N x V, float32."""
        return self.ridge.predict(features)

    def synthesise(
        self,
        features: Mapping[str, np.ndarray],
        generator: np.random.Generator,
        picture_N: np.ndarray | None = None,
    ) -> np.ndarray:
        """Single responses to images that nobody showed: N x V, float32.

        The noise has the correlations of the noise model and, where images repeat, the variance of
        single responses to the same image.

        Parameters
        ----------
        picture_N : np.ndarray | None, optional
            Rows of the images, each as often as it is presented; None: each once.
        """
        predicted_NV = self.predict(features)
        if picture_N is not None:
            predicted_NV = predicted_NV[picture_N]
        variance_V = self.noise.variance_V
        wanted_V = np.where(np.isfinite(self.trial_noise_V), self.trial_noise_V, variance_V)
        noise_NV = self.noise.sample(len(predicted_NV), generator)
        return predicted_NV + (noise_NV * np.sqrt(wanted_V / variance_V)).astype(np.float32)

    def decode(self, responses_NV: np.ndarray, library: Library) -> LibraryDecoding:
        """Decode averaged responses as embeddings.

        Raises
        ------
        UserError
            When responses or library are of other voxels.
        """
        voxels = len(self.snr_V)
        if responses_NV.shape[1] != voxels or library.predicted_LV.shape[1] != voxels:
            raise UserError(
                f"Responses have {responses_NV.shape[1]} voxels and the library"
                f" {library.predicted_LV.shape[1]}; this encoding model has {voxels}."
            )
        inverse = Inverse(library, self.noise)
        return LibraryDecoding(
            inverse.decode(responses_NV, self.decoding), inverse.evidence(responses_NV)
        )

    def embed_voxels(self, space_KP: np.ndarray) -> np.ndarray:
        """What every voxel responds to, in a space that people share: V x K, unit length.

        Parameters
        ----------
        space_KP : np.ndarray
            Of `braingen.encoding_model.voxel_space.shared_space`.
        """
        if space_KP.shape[1] != len(self.ridge.coefficients_PV):
            raise UserError(
                f"The shared space is of {space_KP.shape[1]} features; this encoding model has"
                f" {len(self.ridge.coefficients_PV)}."
            )
        found_VK = (space_KP @ self.ridge.coefficients_PV).T
        length_V = np.linalg.norm(found_VK, axis=1, keepdims=True)
        return (found_VK / np.maximum(length_V, 1e-12)).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write the model: safetensors and JSON, atomically."""
        tensors = {
            name: np.ascontiguousarray(getattr(self.ridge, name))
            for name in BandedRidge._fields
            if name not in ("bands", "residual_JV")
        }
        tensors |= {
            "noise_diagonal_V": self.noise.diagonal_V,
            "noise_factor_KV": self.noise.factor_KV,
            "snr_V": np.nan_to_num(self.snr_V, nan=-1.0),
            "trial_noise_V": np.nan_to_num(self.trial_noise_V, nan=-1.0),
            "share_BV": self.share_BV,
        }
        facts = {
            "bands": self.ridge.bands,
            "presentations": self.presentations,
            "noise": {"shrinkage": self.noise.shrinkage, "likelihood": self.noise.likelihood},
            "decoding": self.decoding._asdict(),
        }
        with replaced_folder(folder) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary / WEIGHTS)
            write_json(temporary / FACTS, facts)

    @classmethod
    def load(cls, folder: Path) -> EncodingModel:
        """Read what `save` wrote.

        Raises
        ------
        UserError
            When it is missing or damaged.
        """
        tensors = {k: v.numpy() for k, v in read_tensors(folder / WEIGHTS, _AGAIN).items()}
        facts: dict[str, Any] = read_json(folder / FACTS, _AGAIN)
        try:
            snr_V, trial_V = (
                np.where((found := tensors.pop(name)) < 0, np.nan, found)
                for name in ("snr_V", "trial_noise_V")
            )
            noise = NoiseModel(
                tensors.pop("noise_diagonal_V"), tensors.pop("noise_factor_KV"), **facts["noise"]
            )
            share_BV = tensors.pop("share_BV")
            bands = {str(name): int(width) for name, width in facts["bands"].items()}
            empty = np.zeros((0, len(snr_V)), dtype=np.float32)
            ridge = BandedRidge(**tensors, bands=bands, residual_JV=empty)
            return cls(
                ridge,
                noise,
                snr_V,
                trial_V,
                float(facts["presentations"]),
                share_BV,
                DecodingChoice(**facts["decoding"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder} holds no encoding model ({error}); {_AGAIN}.") from error

    @classmethod
    def from_pretrained(cls, source: Path | str, **options: Any) -> EncodingModel:
        """Load a folder that `save` wrote, or a repository of the hub that `push_to_hub` uploaded.

        Parameters
        ----------
        source : Path or str
            A folder, or ``user/name``.
        **options
            Of a repository ``revision``, ``token``, ``cache_dir``, ``local_files_only``,
            ``force_download``.

        Raises
        ------
        UserError
            When it is missing, damaged, or a repository that cannot be read.
        """
        folder = located(source, options, "an encoding model", FACTS, _FILES)
        if options:
            raise UserError(
                f"{next(iter(options))} is no option of an encoding model: leave it out."
            )
        return cls.load(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        subject: int,
        run: Path | str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the model to a repository of the hub, with a card, in one commit.

        Parameters
        ----------
        repo_id : str
            user/name; created when it does not exist.
        subject : int
            Whose voxels it predicts.
        run : Path or str or None, optional
            Run folder of ``braingen train encoding``, which the card describes.
        revision, commit_message, private, token, create_pr
            As in :meth:`braingen.BrainDecoder.push_to_hub`.

        Returns
        -------
        address : str
            Of the commit or pull request.

        Raises
        ------
        UserError
            When the run is none, or the hub refuses.
        """
        how = Upload(repo_id, commit_message, revision, private, token, create_pr)
        kind, voxels = "encoding model", {subject: len(self.snr_V)}
        facts = model_facts(kind, "banded ridge", voxels, run, only=())
        facts = facts._replace(scores=self._scores(), protocol="held-out training images")
        with tempfile.TemporaryDirectory(prefix="braingen-") as name:
            folder = Path(name) / "model"
            self.save(folder)
            write_card(folder, facts, repo_id)
            return upload(folder, files_below(folder), _FILES[:-1], how, kind)

    def _scores(self) -> tuple[ScoreFacts, ...]:
        """Explained variance for the card; n is the number of voxels."""
        found = {
            "explained_variance": ("explained variance, median over voxels", self.explained_V),
            "noise_ceiling": ("noise ceiling, median over voxels", self.ceiling_V),
        }
        return tuple(
            ScoreFacts(name, title, float(np.nanmedian(values)), None, None, len(values))
            for name, (title, values) in found.items()
            if np.isfinite(values).any()
        )


def _band_shares(ridge: BandedRidge, features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Explained variance of every voxel, shared out to bands: covariance of the band's part of the
    prediction with the prediction (Pratt's product measure, on predictions).
    """
    x_NP = stack_bands(features, ridge.bands) - ridge.feature_mean_P
    voxels = ridge.coefficients_PV.shape[1]
    found_BV = np.zeros((len(ridge.bands), voxels), dtype=np.float32)
    for start in range(0, voxels, 2048):
        part = slice(start, start + 2048)
        each = [x_NP[:, s] @ ridge.coefficients_PV[s, part] for s in ridge.slices().values()]
        each = [one - one.mean(0) for one in each]
        whole = np.sum(each, axis=0)
        total_V = np.maximum((whole**2).sum(0), 1e-12)
        for band, one in enumerate(each):
            found_BV[band, part] = (one * whole).sum(0) / total_V * ridge.explained_V[part]
    return found_BV
