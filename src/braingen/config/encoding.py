"""Settings of encoding models: from image features to voxels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from braingen.config.values import Folder, NotNegative, Positive, Section


class EncodingConfig(Section):
    """Encoding models, image features to voxels (docs/encoding_models.md)."""

    bands: Annotated[
        tuple[Literal["embedding", "early", "middle", "late", "energy", "caption"], ...],
        Field(min_length=1),
    ] = ("embedding", "early", "middle", "late", "energy")
    """Feature spaces, each with its own penalty: the CLIP embedding, hidden states of the frozen
    image encoder, contrast energy and colour, and the text encoders' states (caption).
    """
    feature_width: Positive = 512
    """Wider bands are projected to this width at random; the pooled embedding is kept whole."""
    band_draws: NotNegative = 16
    """Random mixtures of the bands' scales that voxels choose from, beside each band alone and all
    alike.
    """
    left_out_images: Annotated[int, Field(ge=3)] = 2000
    """Most images that are left out in turn to choose penalties."""
    decoding_folds: Annotated[int, Field(ge=2)] = 5
    """Groups of images that the way of decoding is chosen on, without having been fitted on."""
    init_from: Folder | None = None
    """Run with encoding models of other people: their voxels fall into groups with the same tuning,
    by which a person's voxels are fitted; for people with few trials.
    """
    library: str = ""
    """Folder of images among which responses are decoded beside the training images of all subjects
    of the data folder. Test images are refused.
    """
    library_size: Annotated[int, Field(ge=10)] = 4000
    """Most training images, and most of the folder; a random share of more."""
