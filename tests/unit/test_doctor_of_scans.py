"""`doctor --scans` reads scans as `prepare` does, in every form, and writes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from unit.fake_forms import FORMS
from unit.fake_raw import write_fake_raw
from unit.fake_scans import FakeScans, write_fake_scans

from braingen.cli import main
from braingen.config import Config, load_config
from braingen.diagnostics.doctor import examine
from braingen.diagnostics.scans import scan_findings


def config_of(scans: Path, **more: str) -> Config:
    where = {"prepare.scans": str(scans), "data.root": str(scans.parent / "data")}
    return load_config(None, where | more)


@pytest.fixture
def fake(tmp_path: Path) -> FakeScans:
    return write_fake_scans(tmp_path / "scans", subjects=("AB",), sessions=1)


@pytest.mark.parametrize("writer", FORMS)
def test_every_form_is_named_with_what_it_holds(fake, writer):
    writer(fake, next(fake.root.rglob("*_betas.nii.gz")), fake.responses["AB"][0])
    first, *more = scan_findings(config_of(fake.root))
    assert first.level == "ok" and first.sentence.startswith("Subject 1, label AB, ")
    assert "12 trials of 12 images in 1 sessions (3 test trials" in first.sentence
    assert {each.level for each in more} == {"note"}
    assert not (fake.root.parent / "data").exists()


def test_what_prepare_would_refuse_is_an_error(fake):
    path = next(fake.root.rglob("*_betas.nii.gz"))
    path.unlink()
    (found,) = scan_findings(config_of(fake.root))
    assert found.level == "error" and "holds no responses of sub-AB" in found.sentence
    np.save(path.with_name(path.name.replace(".nii.gz", ".npy")), np.full((12, 41), np.nan))
    found = next(scan_findings(config_of(fake.root)))
    assert found.level == "error" and "begins with NaN in all voxels" in found.sentence


def test_the_raw_release_and_a_folder_without_scans(tmp_path):
    found = next(scan_findings(config_of(write_fake_raw(tmp_path).root)))
    assert found.level == "ok" and "NSD's raw release" in found.sentence
    found = next(scan_findings(config_of(tmp_path / "nowhere")))
    assert found.level == "error" and "does not exist" in found.sentence


def test_doctor_asks_for_it(fake):
    items = examine(config_of(fake.root))
    found = next(item for item in items if item.area == "scans")
    assert found.level == "ok" and found.subject == 1


@pytest.mark.slow
def test_files_of_another_time_alone_are_settled_by_preparing_again(fake):
    def changed() -> list[str]:
        items = examine(config_of(fake.root))
        return [item.sentence for item in items if "in size or time" in item.sentence]

    words = ["prepare", "--scans", str(fake.root), "--data_path", str(fake.root.parent / "data")]
    assert main(words) == 0 and not changed()
    for path in fake.root.rglob("*_events.tsv"):
        os.utime(path, (1, 1))
    assert len(changed()) == 1
    assert main(words) == 0 and not changed()
