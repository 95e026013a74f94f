"""Surfaces of maps: which hemisphere a file is, what is refused before any work, and that a figure
shows the map on the right places.
"""

from __future__ import annotations

import gzip
from pathlib import Path
import re
import shutil

from matplotlib.image import imread
import nibabel
from nilearn import datasets
from nilearn.surface import load_surf_mesh
import numpy as np
import pytest
from unit.told_commands import ROOT

from braingen.data.volumes import ALIGNED, MNI, VoxelPlaces, load_places, save_nifti, save_places
from braingen.interpret.figures import draw_surface
from braingen.interpret.surface import FSAVERAGE, check_space, read_meshes, sample, shown, side_of
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

pytestmark = pytest.mark.slow  # left out of `make quick`

LEFT, SUBJECT = "left", 1


def back_of_the_head(side: float = 4.0, space: int = MNI) -> VoxelPlaces:
    """Every place of a grid over the back third of the standard brain, both hemispheres."""
    affine = np.diag([side, side, side, 1.0])
    affine[:3, 3] = -76, -112, -40
    return VoxelPlaces(
        np.ones(np.ceil(np.array([152, 62, 100]) / side).astype(int), dtype=bool),
        "C",
        affine,
        "a box",
        space,
    )


def shipped(name: str) -> Path:
    """A file of nilearn's fsaverage5."""
    return Path(datasets.fetch_surf_fsaverage(FSAVERAGE)[name])


def pial() -> tuple[np.ndarray, np.ndarray]:
    vertex_N3, face_F3 = load_surf_mesh(str(shipped("pial_left")))
    return np.asarray(vertex_N3, dtype=np.float64), np.asarray(face_F3)


def write_gifti(path: Path, vertex_N3: np.ndarray, face_F3: np.ndarray, **notes: str) -> Path:
    arrays = [
        nibabel.gifti.GiftiDataArray(
            vertex_N3.astype(np.float32),
            intent="NIFTI_INTENT_POINTSET",
            meta=nibabel.gifti.GiftiMetaData(notes),
        ),
        nibabel.gifti.GiftiDataArray(face_F3.astype(np.int32), intent="NIFTI_INTENT_TRIANGLE"),
    ]
    nibabel.save(nibabel.gifti.GiftiImage(darrays=arrays), path)
    return path


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("lh.pial", "left"),
        ("rh.white", "right"),
        ("rh.layerB1.gii", "right"),
        ("subj01.lh.midthickness.surf.gii", "left"),
        ("RH_pial.gii", "right"),
        ("sub-01_hemi-L_pial.surf.gii", "left"),
        ("sub-R01_hemi-L_space-T1w_white.surf.gii", "left"),
        ("sub-01_hemi-R_midthickness.surf.gii", "right"),
        ("100307.L.midthickness.32k_fs_LR.surf.gii", "left"),
        ("sub01_R.gii", "right"),
        ("pial.right.gii.gz", "right"),
        ("pial_left.gii.gz", "left"),
        ("leftPial.gii", "left"),
        ("pialLeft.gii", "left"),
        ("RIGHT.pial", "right"),
        ("bright.gii", None),
        ("light_cleft.pial", None),
        ("pial.gii", None),
        ("fs_LR.gii", None),
        ("lh_and_rh.gii", None),
        ("sub-l01_pial.gii", None),
    ],
)
def test_the_hemisphere_is_told_by_the_name_or_not_at_all(name, side):
    assert side_of(name) == side


def test_a_gifti_file_that_says_its_hemisphere_is_believed(tmp_path):
    vertex_N3, face_F3 = pial()
    path = write_gifti(
        tmp_path / "cortex.gii", vertex_N3, face_F3, AnatomicalStructurePrimary="CortexRight"
    )
    assert read_meshes([str(path)], [SUBJECT])[SUBJECT][0].side == "right"
    with pytest.raises(UserError, match="does not say which hemisphere"):
        read_meshes([str(write_gifti(tmp_path / "cortex.gii", vertex_N3, face_F3))], [SUBJECT])


def test_meshes_of_all_kinds_are_the_same_mesh(tmp_path, monkeypatch):
    vertex_N3, face_F3 = pial()
    monkeypatch.setenv("HOME", str(tmp_path))
    write_gifti(tmp_path / "lh.gii", vertex_N3, face_F3)
    (tmp_path / "lh.gii.gz").write_bytes(gzip.compress((tmp_path / "lh.gii").read_bytes()))
    offset = np.array(
        [5.0, -7.0, 11.0]
    )  # FreeSurfer's coordinates are the scanner's less the centre of its volume
    header = {
        "head": [2, 0, 20],
        "valid": "1  # volume info valid",
        "filename": "orig.mgz",
        "volume": [256, 256, 256],
    }
    header |= {
        "voxelsize": [1, 1, 1],
        "xras": [-1, 0, 0],
        "yras": [0, 0, -1],
        "zras": [0, 1, 0],
        "cras": offset,
    }
    for name in ("lh.pial", "lh.layerB1"):
        nibabel.freesurfer.write_geometry(
            tmp_path / name, vertex_N3 - offset, face_F3, volume_info=header
        )
    nibabel.freesurfer.write_geometry(tmp_path / "lh.white", vertex_N3, face_F3)
    own = tmp_path / "subj01"
    own.mkdir()
    shutil.copyfile(tmp_path / "lh.gii", own / "lh.gii")
    named = [
        "~/lh.gii",
        "~/lh.gii.gz",
        "~/lh.pial",
        "~/lh.layerB1",
        "~/lh.white",
        "~/{subject}/lh.gii",
    ]
    meshes = read_meshes(named, [SUBJECT])[SUBJECT]
    assert [mesh.name for mesh in meshes] == [
        "lh.gii",
        "lh.gii.gz",
        "lh.pial",
        "lh.layerB1",
        "lh.white",
        "lh.gii",
    ]
    for mesh in meshes:
        assert mesh.side == LEFT
        np.testing.assert_allclose(mesh.vertex_N3, vertex_N3, atol=1e-4)
        np.testing.assert_array_equal(mesh.face_F3, face_F3)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (
            ["fsaverage6"],
            r"There is no surface fsaverage6 \(did you mean fsaverage5\?\): give meshes",
        ),
        (
            ["nowhere/lh.pial"],
            (
                "There is no surface nowhere/lh.pial: give meshes .* or fsaverage5 where the"
                " volumes are in MNI space"
            ),
        ),
        (
            [FSAVERAGE, "lh.pial"],
            "interpret.surface = fsaverage5,lh.pial mixes fsaverage5 with other surfaces",
        ),
        (["{folder}"], "is a folder: give meshes"),
        (["{folder}/lh.pial"], "cannot be read as a mesh"),
        (["{folder}/left.txt"], "cannot be read as a mesh"),
        (["{folder}/lh.empty"], "cannot be read as a mesh"),
        (["{folder}/lh.cut.gii"], "cannot be read as a mesh"),
        (["{folder}/lh.cut.gii.gz"], "cannot be read as a mesh"),
        (["{folder}/lh.torn.gii"], "faces of vertices that are not there"),
        (["{folder}/lh.nan.gii"], "vertices that are not finite"),
        (["{sulc_left}"], "it holds no points and triangles"),
        (["{infl_left}"], "inflated, spherical or flat surface, .* give the pial"),
        (["{sphere_left}"], "inflated, spherical or flat surface"),
        (["{folder}/lh.round.gii"], "inflated, spherical or flat surface"),
    ],
)
def test_what_is_no_surface_is_refused_in_one_sentence(tmp_path, named, told):
    vertex_N3, face_F3 = pial()
    for name in ("lh.pial", "left.txt"):
        (tmp_path / name).write_text("this is no mesh\n")
    (tmp_path / "lh.empty").touch()
    whole = shipped("pial_left").read_bytes()
    (tmp_path / "lh.cut.gii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "lh.cut.gii").write_bytes(gzip.decompress(whole)[:5000])
    write_gifti(tmp_path / "lh.torn.gii", vertex_N3[:-1], face_F3)
    write_gifti(
        tmp_path / "lh.nan.gii",
        np.where(np.arange(len(vertex_N3))[:, None] == 3, np.nan, vertex_N3),
        face_F3,
    )
    write_gifti(tmp_path / "lh.round.gii", vertex_N3, face_F3, GeometricType="Spherical")
    files = {name: shipped(name) for name in ("sulc_left", "infl_left", "sphere_left")}
    with pytest.raises(UserError, match=told) as refused:
        read_meshes([name.format(folder=tmp_path, **files) for name in named], [SUBJECT])
    assert "\n" not in str(refused.value)


def test_vertices_are_given_the_values_of_the_place_they_lie_in():
    places, mesh = back_of_the_head(), read_meshes([FSAVERAGE], [SUBJECT])[SUBJECT][0]
    inside_N = (mesh.vertex_N3[:, 1] < -60) & (np.abs(mesh.vertex_N3[:, 2] - 8) < 40)
    for axis in range(3):
        value_N = sample(mesh, places, places.millimetres_V3[:, axis])
        assert np.abs(value_N - mesh.vertex_N3[:, axis])[inside_N].max() < 0.1
    assert np.isnan(value_N[mesh.vertex_N3[:, 1] > -40]).all()


@pytest.mark.parametrize("side", [1.8, 5.0])
def test_a_constant_map_is_constant_up_to_the_edge_of_the_voxels(side):
    full, mesh = back_of_the_head(side), read_meshes([FSAVERAGE], [SUBJECT])[SUBJECT][1]
    places = full._replace(mask=np.random.default_rng(0).random(full.mask.shape) < 0.5)
    value_N = sample(mesh, places, np.full(places.voxels, 2.5))
    np.testing.assert_allclose(value_N[np.isfinite(value_N)], 2.5)
    assert 0.2 < np.isfinite(value_N).mean() < 0.6


def red(part: np.ndarray) -> int:
    """Pixels in the colours of large values."""
    return int(((part[..., 0] > 0.3) & (part[..., 1] < 0.2)).sum())


@pytest.mark.slow
def test_the_figure_follows_the_map(tmp_path):
    layout = Layout(tmp_path)
    save_places(layout, SUBJECT, back_of_the_head())
    places = load_places(layout, SUBJECT)
    right_V = (places.millimetres_V3[:, 0] > 0).astype(np.float32)
    places.write(tmp_path / "map.nii.gz", right_V)
    value_V = places.read(tmp_path / "map.nii.gz")
    meshes = read_meshes([FSAVERAGE], [SUBJECT])[SUBJECT]
    paths = [tmp_path / f"{name}.png" for name in ("first", "again", "mirrored")]
    for path, map_V in zip(paths, (value_V, value_V, -(1 - value_V))):
        draw_surface(path, places, map_V, meshes, "a map")
    first, again, mirrored = (path.read_bytes() for path in paths)
    assert first == again and first != mirrored
    above, below = np.array_split(imread(paths[0])[35:, :930], 2)  # without title and colour bar
    assert red(below) > 3000 and red(above) < 0.05 * red(below)  # the left hemisphere stands above
    negative = imread(paths[2])[35:, :930]
    assert red(negative) == 0 and ((negative[..., 2] > 0.3) & (negative[..., 0] < 0.1)).sum() > 3000


@pytest.mark.slow
def test_every_hemisphere_is_seen_from_the_sides_that_are_written_there(tmp_path):
    places, meshes = back_of_the_head(), read_meshes([FSAVERAGE], [SUBJECT])[SUBJECT]
    draw_surface(tmp_path / "outer.png", places, np.abs(places.millimetres_V3[:, 0]) > 25, meshes)
    for row in np.array_split(imread(tmp_path / "outer.png")[35:], 2):
        lateral, medial = row[:, :238], row[:, 238:475]
        assert red(lateral) > 2000 and red(medial) < 0.1 * red(lateral)


def test_a_mesh_of_ones_own_is_drawn_with_open_sulci(tmp_path):
    vertex_N3, face_F3 = pial()
    path = write_gifti(tmp_path / "lh.pial.gii", vertex_N3, face_F3)
    meshes = read_meshes([str(path)], [SUBJECT])[SUBJECT]
    places = back_of_the_head()
    draw_surface(tmp_path / "own.png", places, places.millimetres_V3[:, 2], meshes)
    assert imread(tmp_path / "own.png").std() > 0.1
    np.testing.assert_allclose(
        meshes[0].vertex_N3, vertex_N3, atol=1e-4
    )  # what is sampled next is not where something was drawn
    drawn_N3, grey_N = shown(meshes[0])
    _, sulcus_N = shown(read_meshes([FSAVERAGE], [SUBJECT])[SUBJECT][0])  # FreeSurfer's
    assert np.corrcoef(grey_N, sulcus_N)[0, 1] > 0.5
    assert 0.2 < grey_N.min() < grey_N.max() < 0.7  # white and black are left to the map
    size = np.ptp(drawn_N3, axis=0) / np.ptp(vertex_N3, axis=0)
    assert (size > 0.7).all() and (size < 1).all()


def test_what_a_standard_brain_asks_of_the_volumes_is_said(tmp_path):
    meshes = read_meshes([FSAVERAGE], [SUBJECT])[SUBJECT]
    told = check_space([FSAVERAGE], meshes, {SUBJECT: back_of_the_head()}, SUBJECT)
    assert len(told) == 1 and "of subject 1's voxels lie within 3 mm of fsaverage5" in told[0]
    _, warned = check_space(
        [FSAVERAGE], meshes, {SUBJECT: back_of_the_head(space=ALIGNED)}, SUBJECT
    )
    assert (
        "right for volumes in MNI space only" in warned
        and "NIfTI code 2, aligned; 4 is MNI152" in warned
    )
    own = read_meshes([str(shipped("pial_left"))], [SUBJECT])[SUBJECT]
    assert (
        len(check_space(["lh.pial"], own, {SUBJECT: back_of_the_head(space=ALIGNED)}, SUBJECT)) == 1
    )
    assert check_space([], (), {SUBJECT: back_of_the_head()}, SUBJECT) == ()


def test_surfaces_elsewhere_and_of_others_are_refused():
    own, places = read_meshes([str(shipped("pial_left"))], [1, 2]), back_of_the_head(space=ALIGNED)
    away = places._replace(
        affine=places.affine + np.array([[0, 0, 0, 300.0], [0] * 4, [0] * 4, [0] * 4])
    )
    with pytest.raises(
        UserError,
        match=(
            r"No voxel of subject 1 lies within 3 mm of pial_left.gii.gz \(the nearest is \d+ mm"
            r" away\)"
        ),
    ):
        check_space(["lh.pial"], own[1], {1: away}, 1)
    for named in (["lh.pial"], ["lh.pial", "{subject}/rh.pial"]):
        with pytest.raises(
            UserError,
            match=(
                r"would be used for subjects 1, 2, .* replace subj01 in the name by \{subject\}"
            ),
        ):
            check_space(named, own[1], {1: places, 2: places}, 1)
    (told,) = check_space(["{subject}/pial_left.gii.gz"], own[1], {1: places, 2: places}, 1)
    assert told.endswith("of subject 1's voxels lie within 3 mm of pial_left.gii.gz.")
    assert check_space(["lh.pial"], own[1], dict.fromkeys((1, 2), back_of_the_head()), 1)


def test_nsds_places_of_vertices_become_surfaces_as_the_docs_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places, (vertex_N3, face_F3) = back_of_the_head(1.8, ALIGNED), pial()
    own = tmp_path / "nsddata" / "ppdata" / "subj01"
    surf = tmp_path / "nsddata" / "freesurfer" / "subj01" / "surf"
    for folder in (own / "func1pt8mm" / "roi", own / "transforms", surf):
        folder.mkdir(parents=True)
    save_nifti(own / "func1pt8mm" / "roi" / "nsdgeneral.nii.gz", places.mask, places.affine)
    counted_N3 = (
        nibabel.affines.apply_affine(np.linalg.inv(places.affine), vertex_N3) + 1
    )  # from 1, as NSD's are
    for side in ("lh", "rh"):
        image = nibabel.MGHImage(counted_N3.astype(np.float32)[:, None, None], np.eye(4))
        nibabel.save(image, own / "transforms" / f"{side}.func1pt8-to-layerB2.mgz")
        nibabel.freesurfer.write_geometry(surf / f"{side}.white", vertex_N3 + 20, face_F3)
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "interpret.md").read_text(), re.S
    )
    exec(example, {})
    meshes = read_meshes(["{subject}.lh.layerB2.gii", "{subject}.rh.layerB2.gii"], [SUBJECT])[
        SUBJECT
    ]
    assert [mesh.side for mesh in meshes] == ["left", "right"]
    np.testing.assert_allclose(meshes[1].vertex_N3, vertex_N3, atol=1e-3)


@pytest.mark.parametrize(
    ("sform", "qform", "known"),
    [(4, 0, MNI), (0, 4, MNI), (2, 4, ALIGNED), (1, 1, 1), (0, 0, ALIGNED)],
)
def test_the_headers_word_for_the_space_is_kept(tmp_path, sform, qform, known):
    layout, places = Layout(tmp_path), back_of_the_head()
    save_places(layout, SUBJECT, places)
    image = nibabel.Nifti1Image(places.mask.astype(np.uint8), places.affine)
    image.set_sform(places.affine, code=sform)
    image.set_qform(places.affine, code=qform)
    nibabel.save(image, layout.volumes(SUBJECT) / "nsdgeneral.nii.gz")
    back = load_places(layout, SUBJECT)
    assert back.space == known
    back.write(tmp_path / "map.nii.gz", np.arange(back.voxels, dtype=np.float32))
    written = nibabel.load(tmp_path / "map.nii.gz")
    assert written.header["sform_code"] == known
    np.testing.assert_allclose(written.affine, back.affine)


def test_a_volume_whose_space_nobody_named_is_aligned_with_something(tmp_path):
    save_nifti(tmp_path / "a.nii", np.zeros((2, 2, 2), dtype=np.float32), np.eye(4))
    assert nibabel.load(tmp_path / "a.nii").header["sform_code"] == ALIGNED
