"""Small folders of the forms that the pages of docs/data describe, made of planted responses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pandas as pd
from PIL import Image
from unit.fake_raw import write_fake_raw

EXAMPLES = Path(__file__).parents[2] / "examples"
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
NAMES = [f"img_{number:03d}.png" for number in range(12)]


def example(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_stimuli(root: Path) -> None:
    (root / "stimuli").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "stimuli" / name)


def shown(repeats: int, seed: int) -> list[str]:
    """Every picture some times, in some order."""
    return [NAMES[k] for k in np.random.default_rng(seed).permutation(np.tile(range(12), repeats))]


def planted(names: list[str], voxels: int) -> np.ndarray:
    """Responses to pictures, alike for the same one: trials x voxels."""
    signal = np.random.default_rng(7).normal(size=(len(NAMES), voxels))
    noise = np.random.default_rng([NAMES.index(name) for name in names])
    return (
        signal[[NAMES.index(name) for name in names]]
        + 0.5 * noise.normal(size=(len(names), voxels))
    ).astype(np.float32)


def write_events(path: Path, names: list[str], apart: float = 4.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    onsets = apart * (1 + np.arange(len(names)))
    table = pd.DataFrame({"onset": onsets, "duration": 1.0, "stim_file": names})
    table.to_csv(path, sep="\t", index=False)


def glmsingle(folder: Path) -> None:
    example("glmsingle").write_scans(folder / "MYSCANS")


def fmriprep(folder: Path) -> None:
    """Two sessions of a run of 36 trials; every response lasts two volumes, a second apart."""
    root = folder / "MYSCANS"
    write_stimuli(root)
    mask = np.zeros((4, 4, 3), dtype=bool)
    mask[1:3, 1:3, :] = True
    for session in (1, 2):
        names = shown(3, session)
        stem = f"sub-01_ses-0{session}_task-images_run-1"
        inside = Path("sub-01", f"ses-0{session}", "func")
        write_events(root / inside / f"{stem}_events.tsv", names, 6.0)
        course = np.zeros((6 * len(names) + 24, int(mask.sum())))
        for trial, response in enumerate(planted(names, int(mask.sum()))):
            course[6 * (trial + 1) + 4 : 6 * (trial + 1) + 7] += response
        bold = np.zeros((*mask.shape, len(course)), np.float32)
        bold[mask] = (1000 + 20 * course).T
        out = root / "derivatives" / "fmriprep" / inside
        out.mkdir(parents=True)
        image = nibabel.Nifti1Image(bold, AFFINE)
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = 1.0
        nibabel.save(image, out / f"{stem}_space-T1w_desc-preproc_bold.nii.gz")
        brain = nibabel.Nifti1Image(mask.astype(np.uint8), AFFINE)
        nibabel.save(brain, out / f"{stem}_space-T1w_desc-brain_mask.nii.gz")


def nifti(folder: Path) -> None:
    """Two sessions of two runs of 18 trials."""
    root = folder / "MYSCANS"
    write_stimuli(root)
    mask = np.zeros((5, 4, 3), dtype=bool)
    mask[1:4, 1:3, :] = True
    (root / "sub-01").mkdir()
    kept = nibabel.Nifti1Image(mask.astype(np.uint8), AFFINE)
    nibabel.save(kept, root / "sub-01" / "sub-01_mask.nii.gz")
    for session in (1, 2):
        names = shown(3, session)
        inside = root / "sub-01" / f"ses-0{session}" / "func"
        for run in (1, 2):
            stem = f"sub-01_ses-0{session}_task-images_run-{run}"
            of_run = names[18 * (run - 1) : 18 * run]
            write_events(inside / f"{stem}_events.tsv", of_run)
            volumes = np.zeros((*mask.shape, len(of_run)), np.float32)
            volumes[mask] = planted(of_run, int(mask.sum())).T
            nibabel.save(nibabel.Nifti1Image(volumes, AFFINE), inside / f"{stem}_betas.nii.gz")


def arrays(folder: Path) -> None:
    root, table_root, voxels = folder / "MYSCANS", folder / "MYTABLE", 40
    write_stimuli(root)
    write_stimuli(table_root)
    rows, every = [], []
    for session in (1, 2):
        names = shown(3, session)
        stem = root / "sub-01" / f"ses-0{session}" / f"sub-01_ses-0{session}"
        write_events(stem.with_name(f"{stem.name}_events.tsv"), names)
        np.save(stem.with_name(f"{stem.name}_betas.npy"), planted(names, voxels))
        rows += [("01", session, trial, name) for trial, name in enumerate(names)]
        every.append(planted(names, voxels))
    np.save(root / "sub-01" / "sub-01_label-V1_mask.npy", np.arange(voxels) < 9)
    (table_root / "sub-01").mkdir()
    np.save(table_root / "sub-01" / "betas.npy", np.concatenate(every))
    table = pd.DataFrame(rows, columns=["subject", "session", "trial", "image"])
    table.sample(frac=1, random_state=0).to_csv(table_root / "trials.csv", index=False)


def surfaces(folder: Path) -> None:
    """On fsaverage5: 10242 vertices a hemisphere."""
    root, vertices = folder / "MYSCANS", 10242
    write_stimuli(root)
    names = shown(3, 1)
    stem = root / "sub-01" / "ses-01" / "func" / "sub-01_ses-01_task-images"
    write_events(stem.with_name(f"{stem.name}_events.tsv"), names)
    both = planted(names, 2 * vertices)
    for side, response in (("L", both[:, :vertices]), ("R", both[:, vertices:])):
        made = [nibabel.gifti.GiftiDataArray(row, "NIFTI_INTENT_NONE") for row in response]
        name = f"{stem.name}_hemi-{side}_space-fsaverage5_betas.func.gii"
        nibabel.save(nibabel.gifti.GiftiImage(darrays=made), stem.with_name(name))
        inside = (np.arange(vertices) < 50).astype(np.float32)
        label = nibabel.gifti.GiftiDataArray(inside, "NIFTI_INTENT_NONE")
        path = root / "sub-01" / f"sub-01_hemi-{side}_label-V1_mask.label.gii"
        nibabel.save(nibabel.gifti.GiftiImage(darrays=[label]), path)


def nsd(folder: Path) -> None:
    raw = write_fake_raw(folder / "making")
    raw.root.rename(folder / "RAW")


MAKERS = {
    "nifti": nifti,
    "glmsingle": glmsingle,
    "fmriprep": fmriprep,
    "arrays": arrays,
    "surfaces": surfaces,
    "nsd": nsd,
}
"""Page of docs/data -> what makes its folder."""
