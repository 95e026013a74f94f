"""Voxels as people hold them (array, tensor, list, file, NIfTI image) to one batch of responses.

B decoded images, R presentations, V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import nibabel
from nibabel.spatialimages import SpatialImage
import numpy as np
import torch
from torch import Tensor

from braingen.data.model_facts import order_digest
from braingen.data.voxel_file import Responses, load_responses, responses, responses_of_image
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.model_card import SubjectFacts

VoxelInput: TypeAlias = (
    np.ndarray | Tensor | Sequence[float] | Sequence[Sequence[float]] | Path | str | SpatialImage
)
"""V (one response), B x V, B x R x V, a file of them, or a NIfTI image."""


class GivenVoxels(NamedTuple):
    """Responses by decoded image."""

    voxels_BRV: Tensor
    """float32, on the CPU; zeros where there is no presentation."""
    present_BR: Tensor
    """Which presentations there are."""
    image_ids: list[int]


def given_voxels(
    voxels: VoxelInput,
    subject: int,
    width: int,
    image_ids: Sequence[int] | None = None,
    data_root: Path | str | None = None,
    known: SubjectFacts | None = None,
) -> GivenVoxels:
    """Responses of one subject, by image.

    Parameters
    ----------
    voxels : VoxelInput
        As people hold them.
    width : int
        Voxels that the subject has.
    image_ids : Sequence[int] | None, optional
        One per image; counted from 0 when left out.
    data_root : Path | str | None, optional
        Data folder that says where the subject's voxels lie; needed for NIfTI.
    known : SubjectFacts | None, optional
        What the decoder recorded of the subject's voxels.

    Raises
    ------
    UserError
        When voxels do not fit the subject, ids do not fit the voxels, or the data folder has the
        voxels in another order than the decoder.
    """
    layout = Layout.of(data_root) if data_root is not None else None
    if layout is not None and known is not None:
        _refuse_other_order(layout, known)
    if isinstance(voxels, str | Path):
        if image_ids is not None:
            raise UserError(
                f"image_ids cannot be given with a file; put them into {voxels}, or beside it"
                " as NAME_ids.npy."
            )
        return _grouped(load_responses(voxels, subject, width, layout), width)
    if isinstance(voxels, SpatialImage):
        found = responses_of_image(voxels, subject, width, layout)
        count = len(found.voxels_NV)
    else:
        array = _array(voxels)
        found = responses(array, subject, width)
        count = 1 if array.ndim == 1 else len(array)
    given = _grouped(found, width)
    if image_ids is None:
        return given
    if len(image_ids) != count:  # images stay in the order given, whatever their ids
        raise UserError(
            f"image_ids names {len(image_ids)} pictures, voxels are of {count}; give one id for"
            " each."
        )
    return given._replace(image_ids=[int(image) for image in image_ids])


def _array(voxels: object) -> np.ndarray:
    if isinstance(voxels, nibabel.filebasedimages.FileBasedImage):
        raise UserError(
            f"voxels are a {type(voxels).__name__}; of nibabel's images NIfTI is taken: give the"
            " path of the file, or an array of the subject's voxels."
        )
    if isinstance(voxels, Tensor):
        return voxels.detach().float().cpu().numpy()
    try:
        return np.asarray(voxels)
    except ValueError as error:  # rows of different lengths
        raise UserError(
            f"voxels are a {type(voxels).__name__} that is no array ({error}); give V, B x V or B x"
            " R x V numbers."
        ) from error


def _grouped(found: Responses, width: int) -> GivenVoxels:
    repeats = found.grouped()
    present_BR = repeats.rows_NR >= 0
    voxels_BRV = np.zeros((*present_BR.shape, width), dtype=np.float32)
    voxels_BRV[present_BR] = found.rows(repeats.rows_NR[present_BR])
    return GivenVoxels(
        torch.from_numpy(voxels_BRV),
        torch.from_numpy(present_BR),
        [int(image) for image in repeats.image_N],
    )


def _refuse_other_order(layout: Layout, known: SubjectFacts) -> None:
    """Refuse a data folder whose voxels are others than the decoder's, where both are known."""
    if not known.order_digest:
        return
    try:
        there = order_digest(layout.root, known.subject)
    except UserError:
        return  # it does not say where its columns lie
    if there != known.order_digest:
        raise UserError(
            f"{layout.root} has other voxels of subject {known.subject}, or another order, than the"
            f" decoder was trained with (order digest {there}, the decoder's is"
            f" {known.order_digest}): name the data folder that it was trained on."
        )
