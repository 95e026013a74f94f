"""Generate several samples per brain response, and keep the best.

The criterion is the decoded embedding, or the measured response (by an encoding model), never the
seen image.

B responses, S samples of each, T tokens, D embedding width, H W sides in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

Similarity = Callable[[Tensor], Tensor]
"""Images B x 3 x H x W in [0, 1] -> how well each fits the response, B; the largest is best."""


class BestSample(NamedTuple):
    """The best samples."""

    images_B3HW: Tensor
    """float32 in [0, 1]."""
    similarity_BS: Tensor
    """Of every sample; the largest is chosen."""


def by_embedding(embed: Callable[[Tensor], Tensor], decoded_BTD: Tensor) -> Similarity:
    """Cosine of a sample's embedding with the decoded one.

    Parameters
    ----------
    embed : Callable[[Tensor], Tensor]
        Images -> embeddings B x T x D.
    decoded_BTD : Tensor
        Decoded embeddings, in the units of `embed`.
    """
    decoded_BF = decoded_BTD.flatten(1).float()

    def similarity(images_B3HW: Tensor) -> Tensor:
        sample_BF = embed(images_B3HW).flatten(1).float()
        return cosine_similarity(sample_BF, decoded_BF.to(sample_BF.device))

    return similarity


@torch.no_grad()
def best_of(samples: int, generate: Callable[[int], Tensor], similarity: Similarity) -> BestSample:
    """Generate several samples, and keep for every row the one that fits best.

    Parameters
    ----------
    samples : int
        S.
    generate : Callable[[int], Tensor]
        Index of the sample -> B x 3 x H x W in [0, 1].
    similarity : Similarity
        `by_embedding`, or the evidence of the measured responses.
    """
    best_B3HW, columns = torch.empty(0), []
    for number in range(samples):
        sample_B3HW = generate(number)
        columns.append(similarity(sample_B3HW).to(sample_B3HW.device))
        if number == 0:
            best_B3HW, highest_B = sample_B3HW, columns[0]
            continue
        better_B = columns[-1] > highest_B  # the first of equal samples is kept
        best_B3HW = torch.where(better_B[:, None, None, None], sample_B3HW, best_B3HW)
        highest_B = torch.where(better_B, columns[-1], highest_B)
    return BestSample(best_B3HW, torch.stack(columns, dim=1))
