"""The subject layer: one linear map per subject, kind refusals."""

from __future__ import annotations

import pytest
import torch

from braingen.encoders.subject_layer import SubjectLayer, voxel_counts
from braingen.runtime.errors import UserError


def test_each_subject_has_its_own_linear_map() -> None:
    layer = SubjectLayer({1: 7, 5: 9}, hidden_dim=4)
    voxels_BV = torch.randn(3, 9)
    linear = layer.linears["5"]
    torch.testing.assert_close(layer(voxels_BV, 5), voxels_BV @ linear.weight.T + linear.bias)
    assert layer(torch.randn(2, 7), 1).shape == (2, 4)


def test_subjects_survive_json() -> None:
    assert voxel_counts({"1": 7, "5": 9}) == voxel_counts({1: 7, 5: 9}) == {1: 7, 5: 9}
    assert voxel_counts([7, 9]) == {1: 7, 2: 9}


@pytest.mark.parametrize("subjects", [{}, {0: 7}, {1: 0}, []])
def test_impossible_subjects_are_refused(subjects: dict[int, int]) -> None:
    with pytest.raises(UserError, match="subjects="):
        voxel_counts(subjects)


def test_wrong_subject_and_wrong_width_are_named() -> None:
    layer = SubjectLayer({1: 7, 5: 9}, hidden_dim=4)
    with pytest.raises(UserError, match=r"subject 2.*1, 5"):
        layer(torch.randn(3, 7), 2)
    with pytest.raises(UserError, match=r"\(3, 7\).*9"):
        layer(torch.randn(3, 7), 5)


def test_voxel_dropout_acts_in_training_only() -> None:
    layer = SubjectLayer({1: 50}, hidden_dim=4, voxel_dropout=0.5)
    voxels_BV = torch.randn(3, 50)
    assert not torch.equal(layer(voxels_BV, 1), layer(voxels_BV, 1))
    layer.eval()
    torch.testing.assert_close(layer(voxels_BV, 1), layer.linears["1"](voxels_BV))
