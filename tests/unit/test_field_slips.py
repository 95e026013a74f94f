"""Everyday slips in folders of own scans: told, taken as meant, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
import gzip
from pathlib import Path
import shutil
import unicodedata

import nibabel
import numpy as np
import pandas as pd
from PIL import Image
import pytest
from unit.fake_scans import NAMES, FakeScans, save, write_fake_scans

from braingen.cli import main
from braingen.data.betas import Betas
from braingen.data.ingest.identity import Identity
from braingen.data.ingest.near_names import NearNames
from braingen.data.ingest.tables import read_table
from braingen.data.trials import test_trials, train_trials
from braingen.data.zscore import load_statistics, percent_signal
from braingen.runtime import extras
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

TABLE = pd.DataFrame({"onset": [0.5, 4.25], "stim_file": ["a b.png", "ä,c.png"], "split": "train"})


@pytest.fixture
def fake(tmp_path: Path) -> FakeScans:
    return write_fake_scans(tmp_path / "scans", subjects=("01",))


def run(fake: FakeScans, *more: str) -> int:
    root = fake.root.parent / "data"
    words = ["prepare", "--scans", str(fake.root), "--data_path", str(root), "--no-captions"]
    return main([*words, *more])


def refused(fake: FakeScans, capsys, *more: str) -> str:
    assert run(fake, *more) == 2
    found = capsys.readouterr().err.strip()
    assert found.startswith("braingen: ") and "\n" not in found and "Traceback" not in found
    return found


def same(fake: FakeScans) -> None:
    """Every response beside its picture, whatever its name in the events."""
    layout = Layout.of(fake.root.parent / "data")
    betas = Betas.of(layout, 1)
    rows = np.arange(betas.trials)
    found = percent_signal(betas.rows(rows), rows, load_statistics(layout, 1))
    np.testing.assert_allclose(found, np.concatenate(fake.responses["01"]), rtol=1e-4, atol=1e-4)
    source = {p.image: p.source for p in Identity(layout.root).pictures.values()}
    tables = [train_trials(layout, 1).table, test_trials(layout, 1).table]
    shown = [source[image] for image in pd.concat(tables).sort_values("trial")["image"]]
    assert shown == [f"stimuli/{name}" for order in fake.shown["01"] for name in order]


def events(fake: FakeScans, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    for path in sorted(fake.root.rglob("*_events.tsv")):
        table = change(pd.read_csv(path, sep="\t"))
        table.to_csv(path, sep="\t", index=False, na_rep="n/a")


# --- tables ---------------------------------------------------------------------------------------


def as_text(separator: str, encoding: str, end: str = "\n", decimal: str = ".") -> bytes:
    text = TABLE.to_csv(sep=separator, index=False, decimal=decimal, lineterminator=end)
    return text.encode(encoding)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", as_text("\t", "utf-8")),
        ("t.csv", as_text(",", "utf-8")),
        ("t.csv", as_text(";", "utf-8", decimal=",")),  # as Excel writes it in much of Europe
        ("t.tsv", as_text(";", "utf-8-sig", "\r\n", ",")),
        ("t.tsv", as_text(",", "utf-8", "\r\n")),
        ("t.csv", as_text("\t", "utf-16")),
        ("t.tsv", as_text("\t", "utf-16")),
        ("t.tsv.gz", gzip.compress(as_text("\t", "utf-8-sig"), mtime=0)),
        ("t.csv.gz", gzip.compress(as_text(";", "utf-8", decimal=","), mtime=0)),
    ],
)
def test_tables_are_the_same_however_they_are_written(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = read_table(tmp_path / name)
    assert found["stim_file"].tolist() == TABLE["stim_file"].tolist()
    assert pd.to_numeric(found["onset"]).tolist() == TABLE["onset"].tolist()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.tsv", b"onset duration stim_file\n1 2 a.png\n", "separated by blanks .*; write tabs"),
        ("t.tsv", b"onset\tstim_file\tstim_file\n1\ta\tb\n", "has two columns stim_file"),
        ("t.csv", "stim_file,x\nä,1\n".encode("latin-1"), "is no UTF-8 text .* save it as UTF-8"),
        ("t.xlsx", b"PK\x03\x04", "is a workbook, not a table of text; save it as CSV"),
        ("t.tsv.gz", gzip.compress(b"a\tb\n" * 500, mtime=0)[:-9], "is not a table"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        read_table(tmp_path / name)
    assert str(caught.value).count(name) == 1


def test_a_parquet_table_needs_an_extra_that_is_named(tmp_path, monkeypatch):
    (tmp_path / "trials.parquet").write_bytes(b"PAR1 and more")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs pyarrow, .*braingen\[parquet\]"):
        read_table(tmp_path / "trials.parquet")


def test_a_parquet_table_is_read(tmp_path):
    pytest.importorskip("pyarrow")
    TABLE.assign(trial=[1, 2], bad=[True, False]).to_parquet(tmp_path / "trials.parquet")
    found = read_table(tmp_path / "trials.parquet")
    assert found["stim_file"].tolist() == TABLE["stim_file"].tolist()
    assert found["trial"].tolist() == [1, 2]
    (tmp_path / "trials.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(UserError, match="is not a table"):
        read_table(tmp_path / "trials.parquet")


@pytest.mark.slow
def test_headers_count_whatever_their_case(fake):
    def shout(table: pd.DataFrame) -> pd.DataFrame:
        backwards = table.iloc[::-1]  # the order is that of the onsets
        return backwards.rename(columns={n: f" {n.title()}" for n in table.columns})

    events(fake, shout)
    assert run(fake) == 0
    same(fake)
    layout = Layout.of(fake.root.parent / "data")
    known = Identity(layout.root).pictures
    assert {name for name, picture in known.items() if picture.side == "test"} == set(NAMES[:3])


@pytest.mark.slow
def test_equal_tables_of_two_forms_count_once(fake, capsys):
    for path in sorted(fake.root.rglob("*_events.tsv")):
        pd.read_csv(path, sep="\t").to_csv(path.with_suffix(".csv"), index=False)
    assert run(fake) == 0
    assert "counts once" in capsys.readouterr().out
    same(fake)


# --- names of pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        lambda name: name.upper(),
        lambda name: name.replace("/", "\\"),
        lambda name: f"C:\\exp\\stimuli\\{name}".replace("/", "\\"),
        lambda name: f"/home/anna/exp/stimuli/{name}",
        lambda name: f"stimuli\\{name.title()}",
    ],
)
@pytest.mark.slow
def test_names_that_differ_a_little_are_found_and_told(fake, capsys, written):
    events(fake, lambda t: t.assign(stim_file=t["stim_file"].map(written, na_action="ignore")))
    assert run(fake) == 0
    assert "12 pictures are written differently in the events" in capsys.readouterr().out
    same(fake)


def test_accents_and_whole_numbers_are_found(tmp_path):
    for name in (unicodedata.normalize("NFD", "Bär.png"), "12.png", "one/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    near = NearNames(tmp_path, (".png",))
    assert near.find(unicodedata.normalize("NFC", "bär.png")) == unicodedata.normalize(
        "NFD", "Bär.png"
    )
    assert near.find("12.0") == "12.png"
    assert near.find("../12.png") is None and near.find("nothing.png") is None


def test_different_pictures_are_never_taken_for_one(tmp_path):
    for name in ("a/1.png", "b/1.PNG", "2.png", "2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    near = NearNames(tmp_path, (".png", ".jpg"))
    assert near.find("/x/a/1.png") == "a/1.png" and near.find("/x/b/1.png") == "b/1.PNG"
    with pytest.raises(UserError, match=r"may be 2\.(png|jpg) or 2\.(png|jpg); write"):
        near.find("2")
    assert near.find("/one/2.png") == "2.png"
    with pytest.raises(UserError, match=r"/one/2\.png and /two/2\.png .* would both be 2\.png"):
        near.find("/two/2.png")


@pytest.mark.slow
def test_what_a_picture_file_says_beside_its_pixels_is_told(fake, capsys):
    folder = fake.root / "stimuli"
    first, second = NAMES[4], NAMES[6]
    frames = [Image.open(folder / name) for name in (first, second)]
    frames[0].save(folder / "set0/many.gif", save_all=True, append_images=frames[1:])
    exif = frames[1].getexif()
    exif[0x0112] = 6
    frames[1].save(folder / "set0/turned.jpg", exif=exif)
    change = {first: "set0/many.gif", second: "set0/turned.jpg"}
    events(fake, lambda table: table.assign(stim_file=table["stim_file"].replace(change)))
    assert run(fake) == 0
    found = capsys.readouterr().out
    assert "1 pictures have several frames, the first is taken" in found
    assert "1 photographs say in their EXIF data that they are to be turned" in found


# --- responses ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_copied_file_of_responses_is_refused(fake, capsys):
    one, two = (next(fake.root.rglob(f"*ses-{k}*_betas.nii.gz")) for k in (1, 2))
    shutil.copy(one, two)
    told = refused(fake, capsys)
    assert "trial 1 of run 1 of session 2 are those to trial 1 of run 1 of session 1" in told
    assert "12 of 24 trials" in told
    assert run(fake, "--accept", "copies") == 0


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.slow
def test_responses_that_are_a_copy_of_another_subjects_are_refused(tmp_path, capsys, together):
    fake = write_fake_scans(tmp_path / "scans", subjects=("01", "02", "03"))
    two, three = (sorted(fake.root.rglob(f"sub-{label}_*run-1*_betas*")) for label in ("02", "03"))
    shutil.copy(two[0], three[0])
    if together:
        told = refused(fake, capsys, "--subj", "1,2,3")
    else:
        assert run(fake, "--subj", "2") == 0
        told = refused(fake, capsys, "--subj", "3")
    assert "of subject 3, is equal to sub-02/" in told and "byte for byte" in told
    assert run(fake, "--subj", "2,3", "--accept", "copies") == 0


@pytest.mark.slow
def test_sessions_in_different_units_are_told(fake, capsys):
    path = next(fake.root.rglob("*ses-2*_betas.nii.gz"))
    assert run(fake) == 0 and "UNITS" not in capsys.readouterr().out
    save(path, 300 * fake.responses["01"][1], fake.mask)
    assert run(fake) == 0
    assert "in session 2" in capsys.readouterr().out.partition("UNITS")[2]


def test_a_transposed_array_is_called_so(fake, capsys):
    for path, response in zip(sorted(fake.root.rglob("*_betas.nii.gz")), fake.responses["01"]):
        path.unlink()
        np.save(path.with_name(path.name.replace(".nii.gz", ".npy")), response.T)
    assert "It has 12 columns: is it transposed? Trials come first." in refused(fake, capsys)


def test_a_hemisphere_that_says_it_is_the_other_is_refused(fake, capsys):
    for path, response in zip(sorted(fake.root.rglob("*_betas.nii.gz")), fake.responses["01"]):
        path.unlink()
        for side, inside in (("L", "CortexRight"), ("R", "CortexLeft")):
            arrays = [nibabel.gifti.GiftiDataArray(row, "NIFTI_INTENT_NONE") for row in response]
            meta = nibabel.gifti.GiftiMetaData({"AnatomicalStructurePrimary": inside})
            name = path.name.replace("_betas.nii.gz", f"_hemi-{side}_betas.func.gii")
            nibabel.save(nibabel.gifti.GiftiImage(darrays=arrays, meta=meta), path.with_name(name))
    assert "by its name, but says inside that it is of CortexRight" in refused(fake, capsys)


@pytest.mark.parametrize("ending", [".pt", ".csv", "+orig.HEAD", ".img"])
def test_responses_in_a_form_that_is_not_read_are_named(fake, capsys, ending):
    for path in sorted(fake.root.rglob("*_betas.nii.gz")):
        path.rename(path.with_name(path.name.replace(".nii.gz", ending)))
    told = refused(fake, capsys)
    assert f"_betas{ending} is of no form that is read" in told and ".npy" in told


def test_a_label_with_an_accent_is_refused_with_one_that_is_allowed(fake, capsys):
    (fake.root / "sub-01").rename(fake.root / "sub-Jörg")
    for path in sorted((fake.root / "sub-Jörg").rglob("sub-01*")):
        path.rename(path.with_name(path.name.replace("sub-01", "sub-Jörg")))
    assert "rename it, for instance sub-Jorg" in refused(fake, capsys)


def test_a_session_without_responses_is_not_said_to_have_some_that_are_not_read(fake, capsys):
    next(fake.root.rglob("*ses-2*_betas.nii.gz")).unlink()
    told = refused(fake, capsys)
    assert "holds no responses of sub-01_ses-2" in told and "of no form that is read" not in told


@pytest.mark.parametrize(
    "name", ["*ses-2*_betas.nii.gz", "*ses-2*run-1*_events.tsv", "stimuli/*/*"]
)
def test_a_git_annex_pointer_is_called_so(fake, capsys, name):
    path = next(fake.root.glob(name) if "/" in name else fake.root.rglob(name))
    path.write_text("/annex/objects/MD5E-s12345--d41d8cd98f00b204e9800998ecf8427e.nii.gz\n")
    assert "is a git-annex pointer, its content is not here; run `datalad get`" in refused(
        fake, capsys
    )


def test_marks_of_missing_values_are_told(fake, capsys):
    path = next(fake.root.rglob("*ses-2*_betas.nii.gz"))
    response = fake.responses["01"][1].copy()
    response[::3, [4, 9]] = -9999
    save(path, response, fake.mask)
    assert run(fake) == 0
    assert "VALUES: 2 voxels hold -999" in capsys.readouterr().out
