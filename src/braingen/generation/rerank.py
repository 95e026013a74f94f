"""Several drawings of a brain, and the one that fits best what was read out of it.

The judge is the decoded embedding, never the picture that was seen.

B brains, S drawings of each, T tokens, D embedding width, H W sides in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

Embed = Callable[[Tensor], Tensor]
"""Pictures B x 3 x H x W in [0, 1] -> CLIP embeddings B x T x D, in the units in which cosines are
compared.
"""


class BestSample(NamedTuple):
    """The best drawings."""

    images_B3HW: Tensor
    """float32 in [0, 1]."""
    similarity_BS: Tensor
    """Cosine of every drawing's embedding with the decoded one; the largest of a row is the chosen
    drawing's.
    """


@torch.no_grad()
def best_of(
    samples: int, draw: Callable[[int], Tensor], embed: Embed, decoded_BTD: Tensor
) -> BestSample:
    """Draw several times and keep, row by row, what is nearest to the decoded embedding.

    Parameters
    ----------
    samples : int
        S.
    draw : Callable[[int], Tensor]
        Number of the drawing -> B x 3 x H x W in [0, 1].
    embed : Embed
        How pictures are read.
    decoded_BTD : Tensor
        What was read out of the brain, in the units of `embed`.
    """
    asked_BF = decoded_BTD.flatten(1).float()
    best_B3HW, columns = torch.empty(0), []
    for number in range(samples):
        drawn_B3HW = draw(number)
        said_BF = embed(drawn_B3HW).flatten(1).float()
        columns.append(
            cosine_similarity(said_BF, asked_BF.to(said_BF.device)).to(drawn_B3HW.device)
        )
        if number == 0:
            best_B3HW, highest_B = drawn_B3HW, columns[0]
            continue
        better_B = columns[-1] > highest_B  # the first of equals stays
        best_B3HW = torch.where(better_B[:, None, None, None], drawn_B3HW, best_B3HW)
        highest_B = torch.where(better_B, columns[-1], highest_B)
    return BestSample(best_B3HW, torch.stack(columns, dim=1))
