"""The report tells how reliable the responses are: from `prepare`'s own files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from unit.fake_report_inputs import write_fake_reliability, write_fake_run
from unit.fake_scans import FakeScans, save, write_fake_scans

from braingen.cli import main
from braingen.data.response_reliability import load_reliability
from braingen.report.inputs import read_inputs
from braingen.report.page import render
from braingen.report.reliability import of_subject
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.files import write_json, write_text


def prepared(fake: FakeScans) -> Layout:
    root = fake.root.parent / "data"
    words = ["prepare", "--scans", str(fake.root), "--data_path", str(root), "--no-captions"]
    assert main(words) == 0
    return Layout.of(root)


@pytest.mark.slow
def test_it_is_what_prepare_found(tmp_path):
    fake = write_fake_scans(tmp_path / "scans", subjects=("AB",), sessions=3)
    names = sorted({name for order in fake.shown["AB"] for name in order})
    planted = np.random.default_rng(5).normal(size=(len(names), int(fake.mask.sum()))) * 10
    for path, order, noise in zip(
        sorted(fake.root.rglob("*_betas.nii.gz")), fake.shown["AB"], fake.responses["AB"]
    ):
        signal = planted[[names.index(name) for name in order]]
        save(path, (signal + noise).astype(np.float32), fake.mask)
    layout = prepared(fake)
    found = load_reliability(layout, 1)
    assert found is not None and found.label == "AB"
    assert found.facts["pictures"] == 12 and np.median(found.split_half_V) > 0.7
    volume = nibabel.load(layout.volumes(1) / "noise_ceiling.nii.gz").get_fdata()
    np.testing.assert_allclose(volume[fake.mask], found.noise_ceiling_V, atol=0.01)
    context = of_subject(1, found)
    assert context["subject"] == "1 (AB)"
    assert dict(context["facts"])["Images shown more than once"] == "12, 3 times on average"
    regions = {name: voxels for name, voxels, *_ in context["regions"]}
    assert regions["V1"] == found.regions["V1"].sum() and "nsd_general" not in regions


def test_nothing_repeats_is_told_and_other_folders_have_no_section(tmp_path):
    fake = write_fake_scans(tmp_path / "scans", subjects=("01",), sessions=1)
    found = load_reliability(prepared(fake), 1)
    assert found is not None and of_subject(1, found) == {"subject": "1", "facts": []}
    assert load_reliability(Layout.of(tmp_path), 1) is None


@pytest.mark.parametrize("facts", ["some", "noise", "nothing"])
@pytest.mark.slow
def test_the_page_has_the_section(tmp_path: Path, facts: str):
    config = write_fake_run(tmp_path, 3, simulated=False, epochs=2)
    layout = Layout.of(config.data.root)
    write_fake_reliability(layout, 0.01 if facts == "some" else 0.2)
    if facts == "nothing":
        write_json(layout.prepared(), {"subjects": {"1": {"reliability": None}}})
    page = render(read_inputs(config.run.folder, config.data.root))
    section = page.partition('<section id="reliability"')[2].partition("</section>")[0]
    assert section
    if facts == "nothing":
        assert "no image was shown more than once" in section
        return
    for text in ("7, 2.5 times on average", "0.41 (median", "34 % (median", "30 to 40 %: 50%"):
        assert text in section
    assert ("no more alike" in section) == (facts == "noise")
    write_text(layout.volumes(1) / "reliability.tsv", "voxel\n0\tx\n")
    with pytest.raises(UserError, match=r"reliability\.tsv is not a table of voxel"):
        load_reliability(layout, 1)
