"""Figures of maps: glass brain, slices, surface.

V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
import warnings

import matplotlib

matplotlib.use("Agg")  # files only: works without a screen

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
import matplotlib.pyplot as plt
import nibabel
from nilearn import plotting
import numpy as np

from braingen.data.places import Places, SurfacePlaces
from braingen.data.volumes import VoxelPlaces
from braingen.interpret.surface import Mesh, sample, shown, vertex_values
from braingen.runtime.files import replaced_path

_MAP = "RdBu_r"


def _save(figure: Figure, path: Path) -> None:
    with replaced_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def _limit(value_V: np.ndarray) -> float:
    """Limit of the symmetric colour scale: the 99th percentile of sizes, robust to outliers.

    If that is zero, the largest size; 1 if all values are zero or not finite.
    """
    size = np.abs(np.asarray(value_V, dtype=np.float64))
    size = size[np.isfinite(size)]
    if not size.size:
        return 1.0
    return float(np.quantile(size, 0.99)) or float(size.max()) or 1.0


def _titled(title: str, value_V: np.ndarray) -> str:
    """The title, with a note if the map is empty."""
    finite = np.isfinite(value_V)
    note = (
        "no finite value"
        if not finite.any()
        else "zero everywhere"
        if not np.any(np.asarray(value_V)[finite])
        else ""
    )
    return f"{title} ({note})" if title and note else title or note


def _image(places: VoxelPlaces, value_V: np.ndarray) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image(
        places.to_volume(np.asarray(value_V, dtype=np.float32)), places.affine
    )


def draw_projections(path: Path, places: VoxelPlaces, value_V: np.ndarray, title: str = "") -> None:
    """A glass brain in subject space from three sides: extreme value along the view.

    Values that are not finite are left out.

    nilearn's glass brain draws an outline of the standard (MNI) brain, into which no subject's own
    space fits, so the outline here is that of the subject's voxels.
    """
    volume = nibabel.as_closest_canonical(_image(places, value_V))
    inside = nibabel.as_closest_canonical(_image(places, np.ones(places.voxels)))
    values, mask = np.asanyarray(volume.dataobj), np.asanyarray(inside.dataobj) > 0
    size = np.where(
        mask & np.isfinite(values), np.abs(values), -1
    )  # -1: never the largest, where there is any value
    limit = _limit(value_V)
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.5), layout="constrained")
    for axis, (along, name) in zip(
        axes, ((0, "from the right"), (1, "from behind"), (2, "from above"))
    ):
        where = size.argmax(axis=along, keepdims=True)
        seen = np.take_along_axis(values, where, axis=along).squeeze(axis=along)
        outline = mask.any(axis=along)
        shown = np.where(size.max(axis=along) >= 0, seen, np.nan).T
        axis.imshow(
            shown, origin="lower", cmap=_MAP, vmin=-limit, vmax=limit, interpolation="nearest"
        )
        if min(outline.shape) > 1 and not outline.all():  # else there is no line to draw
            axis.contour(outline.T, levels=[0.5], colors="0.5", linewidths=0.6)
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    figure.suptitle(_titled(title, value_V), fontsize=10)
    _save(figure, path)


def draw_slices(
    path: Path, places: VoxelPlaces, value_V: np.ndarray, title: str = "", cuts: int = 6
) -> None:
    """Horizontal slices over the mask of the voxels (nilearn stat map), finite values only."""
    background = _image(places, np.ones(places.voxels))
    positions = np.quantile(places.millimetres_V3[:, 2], np.linspace(0.08, 0.92, cuts))
    limit = _limit(value_V)
    # nilearn leaves out what lies below the threshold: voxels without a value become 0, and those
    # of value 0 just above the threshold
    least = 1e-6 * limit
    value_V = np.asarray(value_V, dtype=np.float64)
    drawn_V = np.where(
        np.isfinite(value_V), np.where(np.abs(value_V) < 2 * least, 2 * least, value_V), 0
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "empty mask", UserWarning)  # of a map without any value
        display = plotting.plot_stat_map(
            _image(places, drawn_V),
            bg_img=background,
            display_mode="z",
            cut_coords=np.unique(np.round(positions, 1)),
            vmin=-limit,
            vmax=limit,
            symmetric_cbar=True,
            threshold=least,
            cmap=_MAP,
            black_bg=False,
            draw_cross=False,
            annotate=False,
            title=_titled(title, value_V) or None,
            colorbar=True,
            figure=plt.figure(figsize=(10, 2.2)),
        )
    _save(display.frame_axes.figure, path)


def draw_columns(path: Path, places: Places, value_V: np.ndarray, title: str = "") -> None:
    """A map of columns without positions or mesh: values row by row, in the order of the betas."""
    where = (
        f"no mesh of {places.surface} (--surface)"
        if isinstance(places, SurfacePlaces)
        else "where columns lie is not known"
    )
    value_V = np.asarray(value_V, dtype=np.float64)
    value_V = np.where(np.isfinite(value_V), value_V, np.nan)
    wide = max(1, int(np.ceil(np.sqrt(4 * len(value_V)))))
    filled = np.pad(value_V, (0, -len(value_V) % wide), constant_values=np.nan).reshape(-1, wide)
    limit = _limit(value_V)
    figure, axis = plt.subplots(figsize=(7.2, 2.5), layout="constrained")
    axis.imshow(filled, cmap=_MAP, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")
    axis.set_xlabel(f"columns, row by row; {where}", fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
    figure.suptitle(_titled(title, value_V), fontsize=10)
    _save(figure, path)


def draw_surface(
    path: Path,
    places: VoxelPlaces | SurfacePlaces,
    value_V: np.ndarray,
    meshes: Sequence[Mesh],
    title: str = "",
) -> None:
    """A map on surfaces, from four sides, with open sulci; grey without data.

    Voxels are sampled where cortex is; responses that lie on the surface stand where they are.
    """
    if isinstance(places, SurfacePlaces):
        found = [vertex_values(mesh, places, value_V) for mesh in meshes]
        meshes = [mesh for mesh, texture in zip(meshes, found) if texture is not None]
        textures = [texture for texture in found if texture is not None]
    else:
        textures = [sample(mesh, places, value_V) for mesh in meshes]
    seen = np.concatenate(textures)
    limit = _limit(seen)  # means over a ball are smaller than voxels' values
    views = ("lateral", "medial", "posterior", "ventral")
    height = 2.1 * len(meshes) + 0.4
    figure, axes = plt.subplots(
        len(meshes),
        len(views),
        figsize=(9.5, height),
        subplot_kw={"projection": "3d"},
        squeeze=False,
    )
    top = 1 - 0.4 / height
    figure.subplots_adjust(left=0, right=0.9, bottom=0, top=top, wspace=0, hspace=0)
    for number, (row, mesh, texture_N) in enumerate(zip(axes, meshes, textures)):
        figure.text(
            0.01,
            top * (1 - number / len(meshes)),
            f"{mesh.name} ({mesh.side})",
            fontsize=9,
            va="top",
        )
        inflated_N3, grey_N = shown(mesh)
        for axis, view in zip(row, views):
            plotting.plot_surf_stat_map(
                [inflated_N3.copy(), mesh.face_F3],  # a copy: nilearn shifts what it draws
                texture_N,
                hemi=mesh.side,
                view=view,
                bg_map=grey_N,
                vmin=-limit,
                vmax=limit,
                cmap=_MAP,
                colorbar=False,
                axes=axis,
                figure=figure,
                threshold=None,
            )
            axis.set_title(view, fontsize=8, color="0.35", y=0.86)
    colours = ScalarMappable(Normalize(-limit, limit), _MAP)
    figure.colorbar(
        colours,
        cax=figure.add_axes((0.9, 0.3, 0.012, 0.4)),
        ticks=(-limit, 0, limit),
        format="%.2g",
    )
    figure.suptitle(_titled(title, value_V), fontsize=10)
    _save(figure, path)


def draw_flat_cortex(
    path: Path,
    place_V2: np.ndarray,
    hemisphere_V: np.ndarray,
    area_V: np.ndarray,
    value_V: np.ndarray,
    title: str,
) -> None:
    """A map on the flat cortex of a simulated subject, with the names of its planted areas.

    Parameters
    ----------
    place_V2 : np.ndarray
        Millimetres on the sheet: from the pole forward, from dorsal to ventral.
    hemisphere_V : np.ndarray
        0 left, 1 right.
    area_V : np.ndarray
        Names.
    """
    limit = _limit(value_V)
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.3), layout="constrained", sharey=True)
    dots = 9e4 / max(1, len(value_V))
    for side, (axis, name) in enumerate(zip(axes, ("left hemisphere", "right hemisphere"))):
        inside = hemisphere_V == side
        across, down = place_V2[inside].T
        axis.scatter(
            -across if side == 0 else across,
            -down,
            c=value_V[inside],
            s=min(dots, 60),
            cmap=_MAP,
            vmin=-limit,
            vmax=limit,
            marker="s",
            lw=0,
        )
        for area in np.unique(area_V[inside]):
            mine = inside & (area_V == area)
            x, y = np.median(place_V2[mine], axis=0)
            axis.text(
                -x if side == 0 else x, -y, area, fontsize=6, ha="center", va="center", color="0.15"
            )
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
        axis.set_aspect("equal")
    figure.suptitle(_titled(title, value_V), fontsize=10)
    _save(figure, path)
