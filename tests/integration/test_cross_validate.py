"""`braingen cross-validate`: from a folder of scans to a table and a page, every picture left out
once.
"""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image
import pytest
from safetensors.torch import load_file
from unit.fake_scans import NAMES, write_fake_scans

from braingen.cli import main

SMALL = [
    "encoder.hidden_dim=16",
    "prior.depth=1",
    "training.num_epochs=1",
    "training.checkpoint=held_out",
    "training.with_ridge=false",  # two training images
    "evaluation.bootstrap=20",
]
SMALL += ["data.holdout_share=0.3", "--device", "cpu", "run.tracker=none"]


@pytest.mark.long
def test_every_picture_of_every_subject_is_left_out_once(tmp_path, capsys):
    fake = write_fake_scans(tmp_path / "scans")
    for path in fake.root.rglob("*_events.tsv"):  # nothing says which pictures are for testing
        pd.read_csv(path, sep="\t").drop(columns="split").to_csv(
            path, sep="\t", index=False, na_rep="n/a"
        )
    words = [
        "--scans",
        str(fake.root),
        "--root",
        str(tmp_path / "data"),
        "--folder",
        str(tmp_path / "run"),
        "--folds",
        "2",
    ]
    assert main(["cross-validate", *words, *SMALL]) == 0
    folder = tmp_path / "run" / "cross_validation"
    lists = [
        path.read_text(encoding="utf-8").split("\n")[:-1]
        for path in sorted((folder / "folds").glob("*.txt"))
    ]
    assert sorted(name for part in lists for name in part) == sorted(NAMES)
    found = json.loads((folder / "cross_validation.json").read_text(encoding="utf-8"))
    assert found["subjects"] == [1, 2] and found["data"] == "own scans"
    rows = {(row["method"], row["score"]): row for row in found["rows"]}
    for method in ("encoder", "ridge", "random"):
        for score in (
            "clip_cos",
            "clip_cos_centred",
            "two_way_embedding",
            "retrieval_brain_to_image",
        ):
            row = rows[method, score]
            assert row["n"] == len(NAMES) and row["subjects"] == 2
            assert row["low"] <= row["value"] <= row["high"]
    assert rows["encoder", "retrieval_brain_to_image"]["chance"] == 1 / 6
    decoded = [
        load_file(path) for path in sorted(folder.glob("subject-*/*/image/decoded.safetensors"))
    ]
    assert len(decoded) == 4
    for fold in decoded:
        assert len(fold["ids"]) == 6 and fold["random"].shape == (10, *fold["encoder"].shape)
        assert not np.allclose(fold["ridge"], fold["encoder"])
        assert not np.allclose(fold["random"][0], fold["random"][1])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "ridge regression" in page and "tiny backbone" in page
    # finished folds are kept
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("decoded.safetensors")}
    assert main(["cross-validate", *words, *SMALL]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("decoded.safetensors")}


def test_a_column_split_is_told_not_to_be_used(tmp_path, capsys):
    fake = write_fake_scans(tmp_path / "scans", subjects=("01",))
    words = ["--scans", str(fake.root), "--root", str(tmp_path / "data"), "--folds", "2"]
    assert main(["cross-validate", *words, "--folder", str(tmp_path / "run"), *SMALL]) == 0
    told = capsys.readouterr().out
    assert told.count("The column split of the events is not used here") == 1
    assert "CONTRADICTION" not in told and told.count("voxels   ") == 1
    found = json.loads(
        (tmp_path / "run" / "cross_validation" / "cross_validation.json").read_text("utf-8")
    )
    assert {row["n"] for row in found["rows"]} == {len(NAMES)}


@pytest.mark.long
def test_subjects_who_saw_different_images_are_left_out_of_theirs(tmp_path):
    one, two = (write_fake_scans(tmp_path / name, subjects=(name,)) for name in ("01", "02"))
    for path in sorted(two.root.rglob("*_events.tsv")):  # other names, other pixels
        table = pd.read_csv(path, sep="\t")
        named = table["stim_file"].str.replace("picture", "Other")
        table.assign(stim_file=named).drop(columns="split").to_csv(path, sep="\t", index=False)
    for path in sorted((two.root / "stimuli").rglob("*.png")):
        Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
        path.rename(path.with_name(path.name.replace("picture", "other")))
    for path in sorted(two.root.rglob("*_betas.nii.gz")):  # made-up responses are alike: no copy
        image = nib.load(path)
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) * 0.9, image.affine), path)
    for path in one.root.rglob("*_events.tsv"):
        table = pd.read_csv(path, sep="\t")
        table.drop(columns="split").to_csv(path, sep="\t", index=False)
    shutil.copytree(two.root / "sub-02", one.root / "sub-02")
    shutil.copytree(two.root / "stimuli", one.root / "stimuli", dirs_exist_ok=True)
    (one.root / "captions.json").unlink()
    words = ["--scans", str(one.root), "--root", str(tmp_path / "data"), "--folds", "2"]
    folder = tmp_path / "run"
    assert main(["cross-validate", *words, "--folder", str(folder), *SMALL]) == 0
    text = (folder / "cross_validation" / "cross_validation.json").read_text("utf-8")
    rows = json.loads(text)["rows"]
    assert {row["n"] for row in rows} == {2 * len(NAMES)} and {r["subjects"] for r in rows} == {2}


def test_scans_have_to_be_named(tmp_path, capsys):
    assert (
        main(
            [
                "cross-validate",
                "--root",
                str(tmp_path / "data"),
                "--folder",
                str(tmp_path / "run"),
                *SMALL,
            ]
        )
        == 2
    )
    assert "--scans" in capsys.readouterr().err
