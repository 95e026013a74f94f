"""Malformed inputs of every command that reads files: each ends in its one sentence with exit code
2, none in a traceback or in ablate.

What is wrong with a data folder itself, before training, is the table of test_checks.py.
"""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
import re
import shutil

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat, savemat
from unit.fake_backbone import write_fake_backbone
from unit.fake_nsd import write_betas, write_fake_nsd
from unit.fake_raw import write_fake_raw
from unit.fake_scans import AFFINE, NAMES, write_fake_scans

from braingen.cli import main
from braingen.data.raw_nsd.release import RawNSD
from braingen.runtime.data_layout import Layout

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
Breaking = Callable[[Path], object]


def cut(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def told(words: list[str], capsys) -> str:
    """The one sentence a command ends in."""
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("braingen: ")]
    assert len(lines) == 1 and "Traceback" not in error and "object at 0x" not in error
    return lines[0]


def only(folder: Path, pattern: str) -> Path:
    """The first file of a pattern below a folder."""
    return sorted(folder.rglob(pattern))[0]


# --- raw NSD --------------------------------------------------------------------------------------


def raw(root: Path) -> RawNSD:
    return RawNSD(root, "betas_fithrf_GLMdenoise_RR", "nsdgeneral", "C")


def design(change: Callable[[dict], object]) -> Breaking:
    def edit(root: Path) -> None:
        path = only(root, "nsd_expdesign.mat")
        found = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
        change(found)
        savemat(path, found)

    return edit


def responses(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Breaking:
    def edit(root: Path) -> None:
        path = raw(root).data(1).parent / "behav" / "responses.tsv"
        change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False)

    return edit


def betas_hdf5(change: Callable[[np.ndarray], np.ndarray], name: str = "betas") -> Breaking:
    def edit(root: Path) -> None:
        path = raw(root).betas_folder(1) / "betas_session01.hdf5"
        with h5py.File(path) as file:
            found = file["betas"][()]
        with h5py.File(path, "w") as file:
            file[name] = change(found)

    return edit


def stimuli(change: Callable[[np.ndarray], np.ndarray]) -> Breaking:
    def edit(root: Path) -> None:
        with h5py.File(raw(root).stimuli) as file:
            found = file["imgBrick"][()]
        with h5py.File(raw(root).stimuli, "w") as file:
            file["imgBrick"] = change(found)

    return edit


def nifti(root: Path, divided_by: int = 1) -> Path:
    """Session 1 as NIfTI instead of HDF5, its numbers scaled by the header or not."""
    path = raw(root).betas_folder(1) / "betas_session01.hdf5"
    with h5py.File(path) as file:
        volume = file["betas"][()].T
    path.unlink()
    image = nibabel.Nifti1Image(
        volume / divided_by if divided_by > 1 else volume, np.diag([1.8, 1.8, 1.8, 1])
    )
    image.set_data_dtype(np.int16)
    nibabel.save(image, path.with_suffix(".nii.gz"))
    return path.with_suffix(".nii.gz")


def annotations(change: Callable[[list], object]) -> Breaking:
    def edit(root: Path) -> None:
        path = only(root, "captions_train2017.json")
        notes = json.loads(path.read_text())["annotations"]
        change(notes)
        path.write_text(json.dumps({"annotations": notes}))

    return edit


RAW: dict[str, tuple[Breaking, str] | tuple[Breaking, str, list[str]]] = {
    "no such folder": (
        lambda root: shutil.rmtree(root),
        "folder of scans .* does not exist; name yours with --scans",
    ),
    "a file for a folder": (
        lambda root: (shutil.rmtree(root), root.write_text("")),
        "folder of scans .* is a file",
    ),
    "no such subject": (
        lambda root: None,
        r"no subject 7 among the scans \(there: 1\)",
        ["--subj", "7"],
    ),
    "design missing": (lambda root: only(root, "*.mat").unlink(), r"nsd_expdesign\.mat is missing"),
    "design an LFS pointer": (lambda root: only(root, "*.mat").write_bytes(LFS), "Git-LFS pointer"),
    "design noise": (
        lambda root: only(root, "*.mat").write_bytes(b"\1" * 400),
        "cannot be read as NSD's design",
    ),
    "design without a field": (
        design(lambda found: found.pop("sharedix")),
        "cannot be read as NSD's design .*sharedix",
    ),
    "design of fewer trials": (
        design(lambda found: found.update(masterordering=found["masterordering"][:, :9])),
        "do not belong together",
    ),
    "design counts from 0": (
        design(lambda found: found.update(subjectim=found["subjectim"] - 1)),
        r"both count from 1; 42 trials differ",
    ),
    "responses missing": (
        lambda root: only(root, "responses.tsv").unlink(),
        r"responses\.tsv is missing",
    ),
    "responses without a column": (
        responses(lambda t: t.drop(columns="73KID")),
        "has no column 73KID",
    ),
    "responses of another subject": (
        responses(lambda t: t.assign(SUBJECT=2)),
        "trials of subject 2, subject 1 was expected",
    ),
    "responses out of order": (responses(lambda t: t[::-1]), "not in order of sessions"),
    "responses without session 1": (
        responses(lambda t: t[t["SESSION"] > 1]),
        "not in order of sessions from 1",
    ),
    "responses shifted by a trial": (
        responses(lambda t: t.assign(**{"73KID": np.roll(t["73KID"], 1)})),
        r"trial \d+ shows picture",
    ),
    "responses binary": (
        lambda root: only(root, "responses.tsv").write_bytes(b"\xff\xfe\x00" * 50),
        "is not a table|has no column",
    ),
    "more sessions than there are": (
        lambda root: None,
        "--num_sessions is 9, .* has 2",
        ["--num_sessions", "9"],
    ),
    "no test picture": (
        design(lambda found: found.update(sharedix=np.array([[99]]))),
        "no trial shows a test picture",
    ),
    "a session's betas missing": (
        lambda r: (raw(r).betas_folder(1) / "betas_session02.hdf5").unlink(),
        "session02.*--num_sessions 1",
    ),
    "another version of the betas": (
        lambda root: None,
        r"assumehrf/betas_session01\.hdf5 .* is missing",
        ["--betas", "assumehrf"],
    ),
    "betas cut short": (
        lambda root: cut(raw(root).betas_folder(1) / "betas_session01.hdf5"),
        "cannot be opened as HDF5",
    ),
    "betas an LFS pointer": (
        lambda root: (raw(root).betas_folder(1) / "betas_session01.hdf5").write_bytes(LFS),
        "Git-LFS pointer",
    ),
    "betas without the dataset": (betas_hdf5(lambda x: x, "beta"), "has no dataset `betas`"),
    "betas with the axes of the NIfTI": (
        betas_hdf5(lambda x: x.T),
        r"holds betas of shape .* \(x, y, z, trials\)",
    ),
    "betas of fewer trials": (betas_hdf5(lambda x: x[:-1]), "of another subject, space or session"),
    "betas as floats": (betas_hdf5(lambda x: x / 300), "holds float64, integers"),
    "betas all the same": (betas_hdf5(lambda x: x * 0), "have the same value in all trials"),
    "NIfTI betas cut short": (lambda root: cut(nifti(root)), "not a readable NIfTI"),
    "NIfTI betas scaled": (
        lambda root: nifti(root, divided_by=300),
        r"betas_session\d+.nii.gz is scaled by its header",
    ),
    "no such region": (
        lambda root: None,
        r"no region volume .*hV9.* \(there: nsdgeneral, prf-visual",
        ["--mask", "hV9"],
    ),
    "labels nobody has": (
        lambda root: None,
        "no voxel has prf-visualrois in 77",
        ["--mask", "prf-visualrois:77"],
    ),
    "labels that are no numbers": (
        lambda root: None,
        "labels are numbers, or names .*V1v",
        ["--mask", "prf-visualrois:V9"],
    ),
    "mask cut short": (
        lambda root: cut(raw(root).data(1) / "roi" / "nsdgeneral.nii.gz"),
        "not a readable NIfTI",
    ),
    "stimuli missing": (lambda root: raw(root).stimuli.unlink(), r"nsd_stimuli\.hdf5 is missing"),
    "stimuli half downloaded": (lambda root: cut(raw(root).stimuli), "still being downloaded"),
    "stimuli as floats": (stimuli(lambda x: x / 255), r"`imgBrick` is float64 of shape"),
    "stimuli channels first": (
        stimuli(lambda x: x.transpose(0, 3, 1, 2)),
        r"`imgBrick` is uint8 of shape",
    ),
    "fewer stimuli than ids": (stimuli(lambda x: x[:10]), "names pictures up to 14, .* has 10"),
    "no COCO": (
        lambda root: shutil.rmtree(root / "annotations"),
        r"captions_train2017\.json is missing; get annotations.*--no-captions",
    ),
    "COCO cut short": (
        lambda root: cut(root / "annotations" / "captions_val2017.json"),
        "does not hold COCO's captions",
    ),
    "a picture without caption": (
        annotations(lambda notes: notes.__delitem__(slice(0, 6))),
        r"COCO picture .* has no caption",
    ),
    "table of pictures missing": (
        lambda root: only(root, "nsd_stim_info_merged.csv").unlink(),
        r"nsd_stim_info_merged\.csv is missing",
    ),
    "table of pictures of another form": (
        lambda r: only(r, "nsd_stim*.csv").write_text("a,b\n1,2\n"),
        "not NSD's table of pictures",
    ),
}


@pytest.fixture(scope="module")
def sound_raw(tmp_path_factory) -> Path:
    return write_fake_raw(tmp_path_factory.mktemp("sound")).root


@pytest.mark.parametrize("name", RAW)
def test_raw_releases(sound_raw, tmp_path, capsys, name):
    breaking, words, *more = RAW[name]
    root = shutil.copytree(sound_raw, tmp_path / "raw")
    breaking(root)
    sentence = told(
        [
            "prepare",
            "--scans",
            str(root),
            "--data_path",
            str(tmp_path / "NSD"),
            "--kind",
            "nsd",
            *(more[0] if more else []),
        ],
        capsys,
    )
    assert re.search(words, sentence), sentence
    assert (
        not Layout.of(tmp_path / "NSD").betas(1).exists()
        and not Layout.of(tmp_path / "NSD").images().exists()
    )


@pytest.mark.slow
def test_a_sound_raw_release_is_prepared_and_then_held_to_its_settings(sound_raw, tmp_path, capsys):
    words = ["prepare", "--scans", str(sound_raw), "--data_path", str(tmp_path / "NSD")]
    assert main(words) == 0
    assert re.search(r"prepared with order C \(now F\)", told([*words, "--order", "F"], capsys))
    (tmp_path / "NSD" / "prepared.json").write_text("{")
    assert "is not a manifest of `braingen prepare`" in told(words, capsys)
    (tmp_path / "NSD" / "prepared.json").unlink()
    assert "was not written by `braingen prepare`" in told(words, capsys)
    assert "prepare.scans is empty" in told(["prepare"], capsys)


# --- own scans ------------------------------------------------------------------------------------


def array(change: Callable[[np.ndarray], np.ndarray], session: int = 1) -> Breaking:
    def edit(root: Path) -> None:
        path = only(root, f"sub-01_ses-{session}_*_betas.npy")
        np.save(path, change(np.load(path)))

    return edit


def to_nifti(root: Path, affine: np.ndarray = AFFINE, trials: int = 12) -> None:
    path = only(root, "sub-01_ses-1_*_betas.npy")
    nibabel.save(
        nibabel.Nifti1Image(np.ones((5, 6, 4, trials), np.float32), affine),
        path.with_name(path.name.replace(".npy", ".nii.gz")),
    )
    path.unlink()


def events(
    change: Callable[[pd.DataFrame], pd.DataFrame], pattern: str = "sub-01_ses-1_*run-1_events.tsv"
) -> Breaking:
    def edit(root: Path) -> None:
        for path in sorted(root.rglob(pattern)):
            change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False, na_rep="n/a")

    return edit


def mask_of_nothing(root: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((5, 6, 4), np.uint8), AFFINE), only(root, "sub-01_mask.nii.gz")
    )


def two_files_for_three_runs(root: Path) -> None:
    path = only(root, "sub-01_ses-1_*_betas.npy")
    for run in (1, 3):
        shutil.copyfile(path, path.with_name(path.name.replace("_betas", f"_run-{run}_betas")))
    path.unlink()


OWN: dict[str, tuple[Breaking, str] | tuple[Breaking, str, list[str]]] = {
    "no events": (
        lambda root: [p.unlink() for p in root.rglob("*_events.tsv")],
        "holds no table of events",
    ),
    "events without stim_file": (
        events(lambda t: t.drop(columns="stim_file")),
        r"no column stim_file \(it has onset",
    ),
    "events without pictures": (events(lambda t: t.assign(stim_file=np.nan)), "names no picture"),
    "events empty": (lambda root: only(root, "*_events.tsv").write_bytes(b""), "is empty"),
    "one event too few": (
        events(lambda t: t[1:]),
        "responses to 12 trials, its events name a picture in 11",
    ),
    "responses missing": (
        lambda root: only(root, "sub-01_ses-2*_betas.npy").unlink(),
        "holds no responses of sub-01_ses-2",
    ),
    "runs that do not match": (
        two_files_for_three_runs,
        "responses are of runs 1, 3, the events of runs 1, 2",
    ),
    "responses transposed": (array(lambda x: x.T), r"responses to \d+ trials"),
    "responses of three axes": (
        array(lambda x: x[None]),
        r"numbers of \(trials, voxels\) were expected",
    ),
    "responses of text": (
        array(lambda x: x.astype(str)),
        r"numbers of \(trials, voxels\) were expected",
    ),
    "responses pickled": (
        lambda root: np.save(only(root, "*_betas.npy"), [{}], allow_pickle=True),
        "not a readable array",
    ),
    "responses cut short": (lambda root: cut(only(root, "*_betas.npy")), "not a readable array"),
    "a trial of NaN": (
        array(lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x)),
        "trial 2 of run 2 .* the trial is lost",
    ),
    "a trial never written": (
        array(lambda x: np.where(np.arange(len(x))[:, None] == 3, 0, x)),
        "trial 4 of run 1 .* the trial is lost",
    ),
    "no voxel without NaN": (
        array(
            lambda x: np.where(
                np.eye(*x.shape, dtype=bool) | (np.arange(x.shape[1]) > 9), np.nan, x
            )
        ),
        "no voxel has a signal",
    ),
    "responses constant": (array(lambda x: x * 0 + 5), "have the same value in all trials"),
    "sessions of different width": (
        array(lambda x: x[:, :9], session=2),
        "has 9 voxels, the mask or the first session has",
    ),
    "NIfTI without a mask": (
        lambda r: (to_nifti(r), [p.unlink() for p in r.rglob("*_mask.nii.gz")]),
        "no mask that says which voxels",
    ),
    "NIfTI in another space": (
        lambda root: to_nifti(root, np.eye(4)),
        r"affines that lead up to .* mm apart.*_betas.nii.gz has shape "
        ".* in the space of the mask was expected",
    ),
    "NIfTI of other trials": (lambda root: to_nifti(root, trials=7), "responses to 7 trials"),
    "mask of nothing": (mask_of_nothing, "no voxel above 0"),
    "mask of an unknown label": (
        lambda root: None,
        r"no mask with the label V9 \(there: .*V1",
        ["--mask", "V9"],
    ),
    "picture missing": (
        lambda root: (root / "stimuli" / NAMES[4]).unlink(),
        r"picture04\.png is missing \(1 of 12 pictures",
    ),
    "picture an LFS pointer": (
        lambda root: (root / "stimuli" / NAMES[4]).write_bytes(LFS),
        "Git-LFS pointer",
    ),
    "picture cut short": (lambda root: cut(root / "stimuli" / NAMES[4]), "not a readable picture"),
    "picture of text": (
        lambda root: (root / "stimuli" / NAMES[4]).write_text("a picture"),
        "not a readable picture",
    ),
    "captions cut short": (
        lambda root: cut(root / "captions.json"),
        r"captions\.json is not JSON or cut short",
    ),
    "captions a list": (
        lambda root: (root / "captions.json").write_text("[1]"),
        r"captions\.json is not \{stim_file",
    ),
    "caption missing": (
        lambda root: (root / "captions.json").write_text(json.dumps({NAMES[0]: ["a"]})),
        r"no caption for .* \(11 such\)",
    ),
    "unknown pictures for testing": (
        lambda r: (r / "t.txt").write_text("none.png\n"),
        "names none.png",
        ["--test_images", "SCANS/t.txt"],
    ),
    "test picture in training": (
        events(lambda t: t.assign(split="train")),
        "is a test picture in some events and a training picture in",
    ),
    "no test picture": (
        events(lambda t: t.assign(split="train"), "*_events.tsv"),
        "no trial shows a test picture",
    ),
    "nothing to train on": (
        events(lambda t: t.assign(split="test"), "*_events.tsv"),
        "Subject 1 has 0 training trials in 2 sessions",
    ),
    "the same number twice": (
        lambda r: shutil.copyfile(only(r, "*_events.tsv"), r / "sub-1_events.tsv"),
        "the same number twice",
    ),
    "too many sessions": (
        lambda root: None,
        "--num_sessions is 5, subject 1 has 2",
        ["--num_sessions", "5"],
    ),
}


@pytest.fixture(scope="module")
def sound_scans(tmp_path_factory) -> Path:
    return write_fake_scans(tmp_path_factory.mktemp("scans") / "scans", form="npy").root


@pytest.mark.parametrize("name", OWN)
def test_own_scans(sound_scans, tmp_path, capsys, name):
    breaking, words, *more = OWN[name]
    root = shutil.copytree(sound_scans, tmp_path / "scans")
    breaking(root)
    extra = [word.replace("SCANS", str(root)) for word in (more[0] if more else [])]
    sentence = told(
        ["prepare", "--scans", str(root), "--data_path", str(tmp_path / "NSD"), *extra], capsys
    )
    assert re.search(words, sentence), sentence
    assert sentence.count("docs/data.md") <= 1  # a sentence, not one inside another
    assert not Layout.of(tmp_path / "NSD").images().exists()


# --- backbones, for the doctor --------------------------------------------------------------------


def weights(part: str) -> Callable[[Path], Path]:
    return lambda folder: only(folder / part, "*.safetensors")


BACKBONE: dict[str, tuple[Breaking, str]] = {
    "VAE missing": (lambda f: shutil.rmtree(f / "vae"), "has no folder vae"),
    "U-Net cut short": (
        lambda f: cut(weights("unet")(f), 0.9),
        r"bytes, \d+ were expected: it is cut short",
    ),
    "U-Net an LFS pointer": (lambda f: weights("unet")(f).write_bytes(LFS), "Git-LFS pointer"),
    "U-Net noise": (
        lambda f: weights("unet")(f).write_bytes(b"\xff" * 999),
        "not a safetensors file or cut short",
    ),
    "U-Net without weights": (
        lambda f: weights("unet")(f).unlink(),
        r"holds no weights that diffusers loads \(diffusion_pytorch_model\.safetensors",
    ),
    "text encoder without configuration": (
        lambda f: (f / "text_encoder_2" / "config.json").unlink(),
        r"text_encoder_2/config\.json is missing",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_2"), "has no tokenizer_2"),
    "no image encoder": (
        lambda f: shutil.rmtree(f / "image_encoder"),
        "has no folder image_encoder",
    ),
    "no IP-Adapter": (lambda f: shutil.rmtree(f / "ip_adapter"), "There is no IP-Adapter in"),
    "IP-Adapter cut short": (
        lambda f: cut(f / "ip_adapter" / "ip-adapter.safetensors", 0.3),
        "is cut short",
    ),
    "no folder at all": (lambda f: shutil.rmtree(f), "is neither a folder nor a hub name"),
}


@pytest.fixture(scope="module")
def sound_backbone(tmp_path_factory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("doctor")
    write_fake_nsd(base / "NSD", subjects=[1])
    return write_fake_backbone(base / "backbone", with_clip=True), base / "NSD"


def ask(backbone: Path | str, data: Path, folder: Path) -> list[str]:
    return [
        "doctor",
        "--data_path",
        str(data),
        "--device",
        "cpu",
        "--model_name",
        str(folder),
        f"backbone.path={backbone}",
    ]


@pytest.mark.parametrize("name", BACKBONE)
def test_backbones(sound_backbone, tmp_path, capsys, monkeypatch, name):
    # SDXL, where a folder has no configuration, may be too large for the machine of a test
    monkeypatch.setattr("braingen.diagnostics.doctor.needs_of", lambda *_: [])
    breaking, words = BACKBONE[name]
    folder = shutil.copytree(sound_backbone[0], tmp_path / "backbone")
    breaking(folder)
    assert re.search(words, told(ask(folder, sound_backbone[1], tmp_path / "run"), capsys))


@pytest.mark.slow
def test_a_hub_name_offline(sound_backbone, tmp_path, capsys, monkeypatch):
    # SDXL may be too large for the machine of a test, and takes long to count
    monkeypatch.setattr("braingen.diagnostics.doctor.needs_of", lambda *_: [])
    monkeypatch.setattr("braingen.pretrained.files.hub_answers", lambda: False)
    monkeypatch.setattr("braingen.pretrained.files.hub_folder", lambda name: None)
    sentence = told(ask("someone/some-model", sound_backbone[1], tmp_path), capsys)
    assert re.search(
        "not in the cache and the hub does not answer .*hf download someone/some-model", sentence
    )
    monkeypatch.setattr("braingen.pretrained.files.hub_answers", lambda: True)
    words = [*ask("someone/some-model", sound_backbone[1], tmp_path), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ready"] and any(
        f["level"] == "warning" and "hf download someone/some-model" in f["sentence"]
        for f in found["findings"]
    )


# --- later stages ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_on_another_subjects_betas_ends_before_anything_is_trained(tmp_path, capsys):
    layout, written = write_fake_nsd(tmp_path / "NSD")
    write_betas(layout.betas(1), written[2].betas)
    for stage in (["train", "image"], ["train", "text"], ["precompute"], ["doctor"]):
        words = [
            *stage,
            "--data_path",
            str(layout.root),
            "--model_name",
            str(tmp_path / "run"),
            "--device",
            "cpu",
        ]
        assert re.search("42 voxels, the width of subj02; subject 1 has 41", told(words, capsys))
    assert not (tmp_path / "run" / "image" / "embedding_decoder").exists()


@pytest.mark.slow
def test_later_stages_without_the_earlier_ones(tmp_path, capsys):
    layout, _ = write_fake_nsd(tmp_path / "NSD")
    words = [
        "--data_path",
        str(layout.root),
        "--model_name",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    for stage, told_of in (
        ("reconstruct", "run/image|run folder"),
        ("evaluate", "reconstructions|run folder"),
        ("report", "run"),
    ):
        assert re.search(told_of, told([stage, *words], capsys)), stage
    (tmp_path / "gone").mkdir()
    for stage in (["train", "image"], ["precompute"], ["reconstruct"], ["doctor"]):
        sentence = told(
            [
                *stage,
                "--data_path",
                str(tmp_path / "none"),
                "--model_name",
                str(tmp_path / "run2"),
                "--device",
                "cpu",
            ],
            capsys,
        )
        assert "none" in sentence or "run2" in sentence


def test_there_are_enough_of_them():
    from unit.test_checks import MALFORMED

    assert len(RAW) + len(OWN) + len(BACKBONE) >= 80 and len(MALFORMED) >= 50
