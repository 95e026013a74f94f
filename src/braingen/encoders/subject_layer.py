"""Subject layer: maps voxels to the shared width, the only part with a size per subject.

B batch, V voxels, H shared width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from braingen.runtime.errors import UserError

Subjects = Mapping[str, int] | Mapping[int, int] | Sequence[int]
"""Subject number -> voxel count (numbers become strings in config.json), or the voxel counts of
subjects 1, 2, ...
"""


def voxel_counts(subjects: Subjects) -> dict[int, int]:
    """Subject number -> voxel count, in the given order.

    Raises
    ------
    UserError
        When there is no subject, or a number or count is not positive.
    """
    pairs = subjects.items() if isinstance(subjects, Mapping) else enumerate(subjects, start=1)
    counts = {int(subject): int(count) for subject, count in pairs}
    if not counts or min(counts) < 1 or min(counts.values()) < 1:
        raise UserError(
            f"subjects={subjects!r} is not allowed: give {{number: voxel count}}, all at least 1,"
            " for instance {1: 15724}."
        )
    return counts


class SubjectLayer(nn.Module):
    """One linear map V -> H per subject (MoRE-Brain paper section 3; "ridge" in MindEye2).

    Parameters
    ----------
    subjects : Subjects
        Subject number -> voxel count.
    hidden_dim : int
        H.
    voxel_dropout : float, optional
        Share of voxels set to zero in training; the others are scaled up.
    linear : Callable[[int, int], nn.Linear], optional
        Constructor of the map of a subject from V and H.
    """

    def __init__(
        self,
        subjects: Subjects,
        hidden_dim: int,
        voxel_dropout: float = 0.0,
        linear: Callable[[int, int], nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        self.voxel_dropout = nn.Dropout(voxel_dropout)
        self.linears = nn.ModuleDict(
            {
                str(subject): linear(count, hidden_dim)
                for subject, count in voxel_counts(subjects).items()
            }
        )

    def weight_HV(self, subject: int) -> Tensor:
        """Weights of the map of a subject."""
        return cast(nn.Linear, self.linears[str(subject)]).weight

    def forward(self, voxels_BV: Tensor, subject: int) -> Tensor:
        """Map the voxels of one subject.

        Returns
        -------
        Tensor
            units_BH.

        Raises
        ------
        UserError
            For a subject without a layer, or voxels of another width.
        """
        if str(subject) not in self.linears:
            raise UserError(
                f"This encoder has no layer for subject {subject}; it has subjects"
                f" {', '.join(self.linears)}."
            )
        linear = self.linears[str(subject)]
        if voxels_BV.ndim != 2 or voxels_BV.shape[1] != linear.in_features:
            raise UserError(
                f"Voxels of subject {subject} have shape {tuple(voxels_BV.shape)}; this encoder"
                f" takes (batch, {linear.in_features})."
            )
        return linear(self.voxel_dropout(voxels_BV))
