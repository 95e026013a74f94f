"""An encoding model in reconstruction: it decodes responses, and chooses among generated samples.

N test images, V voxels, B of the images at once.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from braingen.config import Config
from braingen.data.betas import Betas
from braingen.data.trials import Repeats
from braingen.encoders.embedding_decoder import EmbeddingDecoder
from braingen.encoding_model.evidence import evidence_of
from braingen.encoding_model.library import Library
from braingen.encoding_model.run import decode_with, load_encoding, mean_responses
from braingen.generation.rerank import Similarity
from braingen.generation.sampling import seeded_noise
from braingen.targets.tables import Targets


def uses_encoding_model(config: Config) -> bool:
    """Whether a reconstruction needs the encoding model."""
    chosen = config.generation
    return chosen.decode_by == "encoding_model" or chosen.choose_by == "responses"


class ByEncodingModel:
    """The encoding model of the first subject, and the responses to the test images.

    Parameters
    ----------
    repeats : Repeats
        The test images that are generated.
    """

    def __init__(self, config: Config, targets: Targets, repeats: Repeats, betas: Betas) -> None:
        self.config, self.targets, self.repeats, self.betas = config, targets, repeats, betas
        self.trained = load_encoding(config, targets)
        if config.generation.choose_by == "responses":
            self.trained.spaces.refuse_captions()

    @cached_property
    def responses_NV(self) -> np.ndarray:
        """Averaged over presentations; for ``generation.source: random`` of normal noise."""
        first = self.config.generation.repeats == "first"
        if self.config.generation.source != "random":
            return mean_responses(self.repeats, self.betas, first)
        ids, present_NR = self.repeats.image_N.tolist(), self.repeats.rows_NR >= 0
        shape = (present_NR.shape[1], self.betas.voxels)
        noise_NRV = seeded_noise(ids, shape, self.config.run.seed, "random voxels").numpy()
        if first:
            noise_NRV, present_NR = noise_NRV[:, :1], present_NR[:, :1]
        return (noise_NRV * present_NR[..., None]).sum(1) / present_NR.sum(1)[:, None]

    def decode(
        self, image_decoder: EmbeddingDecoder, text_decoder: EmbeddingDecoder | None
    ) -> dict[str, Tensor]:
        """Decode embeddings, in the form of `braingen.generation.reconstruct.embeddings_of`.

        Captions are decoded among those of the library, where it has some.
        """
        ids = self.repeats.image_N
        true_NTD = self.targets.image(ids)
        flat_ND, pictures, _ = decode_with(
            self.trained, self.responses_NV, true_NTD.flatten(1).numpy()
        )
        found = {"ids": torch.from_numpy(ids), "image": torch.from_numpy(flat_ND)}
        found["image"] = found["image"].view(true_NTD.shape)
        if text_decoder is not None and pictures.image_N is not None:
            known_LTD = self.trained.spaces.targets.text(pictures.image_N)
            predicted_LV = self.trained.model.predict(pictures.features)
            library = Library(known_LTD.flatten(1).numpy(), predicted_LV)
            text_ND = self.trained.model.decode(self.responses_NV, library).embedding_ND
            found["text"] = torch.from_numpy(text_ND).view(-1, *known_LTD.shape[1:])
        for name, encoder in (("image", image_decoder), ("text", text_decoder)):
            if encoder is not None and name in found:
                standard = encoder.standardised(found[name].to(encoder.device))
                found[f"{name}_clip"] = standard.cpu()
        return found

    def similarity(self, rows: slice) -> Similarity:
        """How likely the measured responses of some test images make generated ones."""
        responses_BV = self.responses_NV[rows]

        def evidence(images_B3HW: Tensor) -> Tensor:
            features = self.trained.spaces.of_images(images_B3HW.clamp(0, 1))
            predicted_BV = self.trained.model.predict(features)
            return torch.from_numpy(evidence_of(self.trained.model, responses_BV, predicted_BV))

        return evidence
