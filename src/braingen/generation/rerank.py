"""Generate several samples per brain response, and keep the one nearest to the decoded embedding.

The criterion is the decoded embedding, never the seen image.

B responses, S samples of each, T tokens, D embedding width, H W sides in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

Embed = Callable[[Tensor], Tensor]
"""Images B x 3 x H x W in [0, 1] -> CLIP embeddings B x T x D, in the units of the cosine."""


class BestSample(NamedTuple):
    """The best samples."""

    images_B3HW: Tensor
    """float32 in [0, 1]."""
    similarity_BS: Tensor
    """Cosine of every sample's embedding with the decoded one; the largest is chosen."""


@torch.no_grad()
def best_of(
    samples: int, generate: Callable[[int], Tensor], embed: Embed, decoded_BTD: Tensor
) -> BestSample:
    """Generate several samples, and keep for every row the nearest to the decoded embedding.

    Parameters
    ----------
    samples : int
        S.
    generate : Callable[[int], Tensor]
        Index of the sample -> B x 3 x H x W in [0, 1].
    embed : Embed
        Embeds the samples.
    decoded_BTD : Tensor
        Decoded embeddings, in the units of `embed`.
    """
    decoded_BF = decoded_BTD.flatten(1).float()
    best_B3HW, columns = torch.empty(0), []
    for number in range(samples):
        sample_B3HW = generate(number)
        sample_BF = embed(sample_B3HW).flatten(1).float()
        columns.append(
            cosine_similarity(sample_BF, decoded_BF.to(sample_BF.device)).to(sample_B3HW.device)
        )
        if number == 0:
            best_B3HW, highest_B = sample_B3HW, columns[0]
            continue
        better_B = columns[-1] > highest_B  # the first of equal samples is kept
        best_B3HW = torch.where(better_B[:, None, None, None], sample_B3HW, best_B3HW)
        highest_B = torch.where(better_B, columns[-1], highest_B)
    return BestSample(best_B3HW, torch.stack(columns, dim=1))
