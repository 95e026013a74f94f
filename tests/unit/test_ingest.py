"""Own scans of the kinds that labs have: nothing is paired, counted, masked or scaled wrongly
without a word.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import os
from pathlib import Path
import pickle
import re
import shutil

import h5py
import nibabel
import numpy as np
import pandas as pd
from PIL import Image
import pytest
from unit.fake_forms import FORMS, nifti, renamed, volume
from unit.fake_raw import write_fake_raw
from unit.fake_scans import AFFINE, NAMES, FakeScans, write_fake_scans

from braingen.cli import main
from braingen.data.betas import Betas
from braingen.data.ingest.forms.arrays import load_arrays_of_pickle
from braingen.data.ingest.identity import Identity
from braingen.data.ingest.reliability import reliability
from braingen.data.ingest.stimuli import OwnStimuli as Pictures
from braingen.data.places import SurfacePlaces, load_any_places, surface_places
from braingen.data.stimuli import Stimuli
from braingen.data.trials import test_trials, train_trials
from braingen.data.volumes import load_places, read_regions
from braingen.data.zscore import load_statistics, percent_signal
from braingen.interpret.surface import check_vertices, meshes_of, vertex_values
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError

Change = Callable[[FakeScans], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> FakeScans:
    return write_fake_scans(tmp_path_factory.mktemp("sound") / "scans", subjects=("01",))


@pytest.fixture
def fake(sound, tmp_path) -> FakeScans:
    return sound._replace(root=Path(shutil.copytree(sound.root, tmp_path / "scans", symlinks=True)))


def prepared(fake: FakeScans, *more: str, name: str = "NSD") -> Layout:
    root = fake.root.parent / name
    assert main(["prepare", "--scans", str(fake.root), "--data_path", str(root), *more]) == 0
    return Layout.of(root)


def refused(fake: FakeScans, capsys, *more: str, name: str = "NSD") -> str:
    assert (
        main(
            [
                "prepare",
                "--scans",
                str(fake.root),
                "--data_path",
                str(fake.root.parent / name),
                *more,
            ]
        )
        == 2
    )
    found = capsys.readouterr().err.strip()
    assert found.startswith("braingen: ") and "\n" not in found and "Traceback" not in found
    return found


def raw(layout: Layout, subject: int = 1) -> np.ndarray:
    """The responses that were prepared, in the unit of the scans."""
    betas = Betas.of(layout, subject)
    rows = np.arange(betas.trials)
    return percent_signal(betas.rows(rows), rows, load_statistics(layout, subject))


def shown(layout: Layout, subject: int = 1) -> list[str]:
    """stim_file of every row of the betas, by the table of the folder."""
    name = {
        picture.image: name for name, picture in reversed(Identity(layout.root).pictures.items())
    }
    tables = [train_trials(layout, subject).table, test_trials(layout, subject).table]
    rows = pd.concat(tables).sort_values("trial")
    return [name[image] for image in rows["image"]]


def same(layout: Layout, fake: FakeScans, subject: int = 1) -> None:
    """Every response beside its picture."""
    label = next(iter(fake.responses))
    np.testing.assert_allclose(
        raw(layout, subject), np.concatenate(fake.responses[label]), rtol=1e-4, atol=1e-4
    )
    assert shown(layout, subject) == [name for order in fake.shown[label] for name in order]


def betas(fake: FakeScans, session: int = 1) -> Path:
    return next(fake.root.rglob(f"sub-01_ses-{session}_*_betas.*"))


def events(
    fake: FakeScans, change: Callable[[pd.DataFrame], pd.DataFrame], pattern: str = "*_events.tsv"
) -> None:
    for path in sorted(fake.root.rglob(pattern)):
        change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False, na_rep="n/a")


# --- forms: the same responses, whatever they are written in --------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_forms_of_responses_hold_the_same(fake, form):
    for session, response in enumerate(fake.responses["01"], start=1):
        form(fake, betas(fake, session), response)
    same(prepared(fake), fake)


@pytest.mark.parametrize("form", ["gifti", "mgh", "npy", "cifti"])
@pytest.mark.slow
def test_responses_on_surfaces_return_to_their_vertices(fake, form, tmp_path):
    rng = np.random.default_rng(0)
    for mask in fake.root.rglob("*_mask.nii.gz"):
        mask.unlink()
    whole = []
    for session in (1, 2):
        sides = {side: rng.normal(size=(12, 10)).astype(np.float32) for side in "LR"}
        sides["R"][:, 4] = np.nan  # the medial wall
        path = betas(fake, session)
        stem = path.name.partition("_betas.")[0]
        path.unlink()
        for side, response in sides.items():
            name = f"{stem}_hemi-{side}_space-fsnative_betas"
            if form == "gifti":
                arrays = [
                    nibabel.gifti.GiftiDataArray(row, "NIFTI_INTENT_NONE") for row in response
                ]
                nibabel.save(
                    nibabel.gifti.GiftiImage(darrays=arrays), path.with_name(f"{name}.func.gii")
                )
            elif form == "mgh":
                nibabel.save(
                    nibabel.MGHImage(response.T[:, None, None], np.eye(4)),
                    path.with_name(f"{name}.mgh"),
                )
            elif form == "npy":
                np.save(path.with_name(f"{name}.npy"), response)
        both = np.concatenate([sides["L"], sides["R"]], axis=1)
        if form == "cifti":
            parts = [
                nibabel.cifti2.BrainModelAxis.from_mask(np.ones(10, bool), name=f"cortex_{side}")
                for side in ("left", "right")
            ]
            axes = (
                nibabel.cifti2.ScalarAxis([f"trial {k}" for k in range(12)]),
                parts[0] + parts[1],
            )
            nibabel.save(
                nibabel.Cifti2Image(both, axes),
                path.with_name(f"{stem}_space-fsnative_betas.dscalar.nii"),
            )
        whole.append(both)
    for side, vertices in (("L", [1, 2]), ("R", [3, 4, 5])):
        np.save(
            fake.root / "sub-01" / f"sub-01_hemi-{side}_label-V1_mask.npy",
            np.isin(np.arange(10), vertices),
        )
    layout = prepared(fake)
    assert read_regions(layout, 1)["V1"].nonzero()[0].tolist() == [
        1,
        2,
        13,
        14,
    ]  # vertex 4 of the right has no signal
    places = load_any_places(layout, 1)
    assert (
        isinstance(places, SurfacePlaces)
        and places.surface == "fsnative"
        and dict(places.vertices) == {"L": 10, "R": 10}
    )
    kept = np.arange(20) != 14
    np.testing.assert_allclose(raw(layout), np.concatenate(whole)[:, kept], rtol=1e-4, atol=1e-4)
    assert 4 not in places.vertex_V[places.side_V == "R"]
    values = rng.normal(size=19).astype(np.float32)
    places.write(tmp_path / "map.nii.gz", values)
    right = nibabel.load(tmp_path / "map_hemi-R.func.gii").darrays[0].data
    np.testing.assert_array_equal(right[[0, 3, 5]], values[[10, 13, 14]])
    assert np.isnan(right[4])
    np.testing.assert_array_equal(places.read(tmp_path / "map.nii.gz"), values)
    with pytest.raises(UserError, match="on the surface fsnative"):
        load_places(layout, 1)


def test_a_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    np.save(
        tmp_path / "TYPED_X.npy", np.array({"betasmd": Evil()}, dtype=object), allow_pickle=True
    )
    with pytest.raises(UserError, match=r"it wants to run (posix|nt)\.system"):
        load_arrays_of_pickle(tmp_path / "TYPED_X.npy")
    (tmp_path / "b.npy").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="not a readable array"):
        load_arrays_of_pickle(tmp_path / "b.npy")
    assert not (tmp_path / "ran").exists()


def write_glmsingle(fake: FakeScans, order: np.ndarray | None = None) -> None:
    """All runs of all sessions in one file in a folder of its own, as GLMsingle leaves it."""
    folder = fake.root / "derivatives" / "glmsingle"
    folder.mkdir(parents=True)
    for path in fake.root.rglob("*_betas.*"):
        path.unlink()
    with h5py.File(folder / "TYPED_FITHRF_GLMDENOISE_RR.hdf5", "w") as file:
        file["betasmd"] = volume(fake, np.concatenate(fake.responses["01"]), np.nan)
    names = [name for session in fake.shown["01"] for name in session]
    conditions = np.array([NAMES.index(name) for name in names]) if order is None else order
    np.save(
        folder / "DESIGNINFO.npy",
        {"stimorder": [np.int64(c) for c in conditions], "numtrialrun": [6] * 4},
        allow_pickle=True,
    )


@pytest.mark.slow
def test_glmsingles_folder_is_cut_by_the_events(fake):
    write_glmsingle(fake)
    same(prepared(fake), fake)


def test_glmsingles_own_order_has_to_agree_with_the_events(fake, capsys):
    write_glmsingle(
        fake, np.roll([NAMES.index(name) for session in fake.shown["01"] for name in session], 1)
    )
    assert re.search(
        r"stimorder in DESIGNINFO\) contradict the pictures of the events in \d+ of 24 trials",
        refused(fake, capsys),
    )


# --- pairing --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_events_that_are_not_in_the_order_of_onsets_are_brought_into_it(fake, capsys):
    events(fake, lambda table: table[::-1])
    same(prepared(fake), fake)
    assert "sorted by onset" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_in_one_table_whose_onsets_begin_anew_keep_their_order(fake, capsys):
    runs = sorted(fake.root.rglob("sub-01_ses-1*_events.tsv"))
    pd.concat([pd.read_csv(path, sep="\t") for path in runs]).to_csv(
        runs[0].with_name("sub-01_ses-1_task-look_events.tsv"), sep="\t", index=False, na_rep="n/a"
    )
    for path in runs:
        path.unlink()
    same(prepared(fake), fake)
    assert "onsets begin anew 1 times, taken as 2 runs" in capsys.readouterr().out


@pytest.mark.slow
def test_labels_that_are_the_same_number_are_the_same_run(fake):
    for path in list(fake.root.rglob("*_run-*_events.tsv")):
        path.rename(path.with_name(re.sub(r"_run-(\d)", r"_run-0\1", path.name)))
    for session, response in enumerate(fake.responses["01"], start=1):
        stem = betas(fake, session)
        for run, part in ((1, response[:6]), (2, response[6:])):
            nifti(
                volume(fake, part), stem.with_name(stem.name.replace("_betas", f"_run-{run}_betas"))
            )
        stem.unlink()
    same(prepared(fake), fake)


@pytest.mark.slow
def test_tables_above_hold_for_what_is_below(fake):
    paths = sorted(fake.root.rglob("sub-01_ses-1*_events.tsv"))
    for number, path in enumerate(paths, start=1):
        path.rename(fake.root / f"ses-1_task-look_run-{number}_events.tsv")
    stem, response = betas(fake), fake.responses["01"][0]
    for run, part in ((1, response[:6]), (2, response[6:])):
        nifti(volume(fake, part), stem.with_name(stem.name.replace("_betas", f"_run-{run}_betas")))
    stem.unlink()
    same(prepared(fake), fake)


def copied_events(fake: FakeScans) -> Path:
    path = sorted(fake.root.rglob("*_events.tsv"))[0]
    copy = fake.root / "derivatives" / "x" / path.relative_to(fake.root)
    copy.parent.mkdir(parents=True)
    shutil.copy(path, copy)
    return copy


@pytest.mark.slow
def test_a_copy_of_a_table_counts_once(fake, capsys):
    copied_events(fake)
    same(prepared(fake), fake)
    assert "counts once" in capsys.readouterr().out


def several(fake: FakeScans, *entities: str, statmap: bool = False) -> None:
    for path in sorted(fake.root.rglob("*_betas.nii.gz")):
        for entity in entities:
            shutil.copy(
                path,
                path.with_name(
                    path.name.replace("_betas", f"_{entity}_{'statmap' if statmap else 'betas'}")
                ),
            )
        path.unlink()


CLAIMS: dict[str, tuple[Change, str, list[str]]] = {
    "spaces": (
        lambda f: several(f, "space-T1w", "space-MNI"),
        r"tells them apart is space: .*--space",
        ["--space", "T1w"],
    ),
    "statistics": (
        lambda f: several(f, "stat-effect", "stat-t", statmap=True),
        r"stat: effect, t\. .*--stat",
        ["--stat", "effect"],
    ),
    "versions": (
        lambda f: several(f, "desc-a", "desc-b"),
        r"desc: a, b\. .*--desc",
        ["--desc", "b"],
    ),
    "resolutions": (
        lambda f: several(f, "res-1", "res-2"),
        r"prepare\.entities=res-",
        ["prepare.entities=res-2"],
    ),
    "folders": (
        lambda f: shutil.copytree(
            f.root / "sub-01" / "ses-1", f.root / "derivatives" / "b" / "sub-01" / "ses-1"
        ),
        r"claim the same trials; .*--responses",
        ["--responses", "sub-01"],
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.slow
def test_files_that_claim_the_same_trials_are_named_with_what_chooses(fake, capsys, name):
    change, sentence, choice = CLAIMS[name]
    change(fake)
    assert re.search(sentence, refused(fake, capsys))
    same(prepared(fake, *choice), fake)


def another_task(fake: FakeScans) -> None:
    for path in [*fake.root.rglob("*_run-1_events.tsv"), *fake.root.rglob("*_betas.nii.gz")]:
        copy = path.with_name(path.name.replace("task-look", "task-imagine"))
        if path.name.endswith(".tsv"):
            shutil.copy(path, copy)
        else:
            nifti(np.asarray(nibabel.load(path).dataobj)[..., :6] * 9, copy)


@pytest.mark.slow
def test_tasks_are_not_mixed(fake, capsys):
    another_task(fake)
    assert "tasks imagine, look; choose one with --task" in refused(fake, capsys)
    same(prepared(fake, "--task", "look"), fake)


@pytest.mark.slow
def test_maps_of_three_axes_are_no_responses(fake, capsys):
    for path in list(fake.root.rglob("*_betas.nii.gz")):
        nifti(
            fake.mask.astype(np.float32),
            path.with_name(path.name.replace("_betas", "_stat-rSquared_statmap")),
        )
    same(prepared(fake), fake)
    assert "left out, volumes of three axes" in capsys.readouterr().out


def test_single_maps_that_nothing_numbers_are_refused(fake, capsys):
    path = betas(fake)
    for name in "abc":
        nifti(
            fake.mask.astype(np.float32),
            path.with_name(path.name.replace("_betas", f"_desc-{name}_betas")),
        )
    path.unlink()
    assert "numbers them from 1" in refused(fake, capsys)


@pytest.mark.slow
def test_other_peoples_maps_and_data_folders_among_the_scans_are_left_alone(fake):
    nifti(
        fake.mask.astype(np.float32),
        fake.root / "sub-01" / "sub-01_contrast-faces_stat-t_statmap.nii.gz",
    )
    nifti(
        fake.mask.astype(np.float32),
        fake.root / "sub-01" / "sub-01_task-floc_stat-t_statmap.nii.gz",
    )
    root = fake.root / "data"
    for _ in range(2):  # the second call sees what the first has written
        assert main(["prepare", "--scans", str(fake.root), "--data_path", str(root)]) == 0
        same(Layout.of(root), fake)


@pytest.mark.slow
def test_links_are_followed_and_dangling_ones_refused(fake, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    for name in ("sub-01", "stimuli"):
        shutil.move(str(fake.root / name), str(tmp_path / "elsewhere" / name))
        (fake.root / name).symlink_to(tmp_path / "elsewhere" / name)
    same(prepared(fake), fake)
    (fake.root / "sub-01" / "sub-01_ses-3_task-look_betas.nii.gz").symlink_to(
        ".git/annex/objects/x"
    )
    assert "its content is not here (`datalad get`" in refused(fake, capsys, name="again")


def plain_names(fake: FakeScans) -> None:
    folder = fake.root / "subject1" / "session1"
    folder.mkdir(parents=True)
    sorted(fake.root.rglob("*_events.tsv"))[0].rename(folder / "events.tsv")
    betas(fake).rename(folder / "betas.nii.gz")
    shutil.rmtree(fake.root / "sub-01")


NAMED: dict[str, tuple[Change, str]] = {
    "underscore in a subject": (
        lambda f: (f.root / "sub-01").rename(f.root / "sub-a_1"),
        r"label in sub-a_1 is not letters and digits",
    ),
    "folder and name of two subjects": (
        lambda f: betas(f).rename(betas(f).with_name("sub-02_ses-1_task-look_betas.nii.gz")),
        "lies in a folder of sub-01, but its name says sub-02",
    ),
    "two tables that differ": (
        lambda f: copied_events(f).write_text("onset\tstim_file\n1\tset0/picture00.png\n"),
        "are events of the same run and differ",
    ),
    "an unknown split": (
        lambda f: events(f, lambda t: t.assign(split="tset")),
        r"split is 'tset' in \d+ lines; allowed are train, test",
    ),
    "an onset of text": (
        lambda f: events(f, lambda t: t.assign(onset="soon")),
        "onset 'soon' in line 2 is no number",
    ),
    "a flag of text": (
        lambda f: events(f, lambda t: t.assign(bad="perhaps")),
        "column bad has 'perhaps'",
    ),
    "another column names the picture": (
        lambda f: events(f, lambda t: t.rename(columns={"stim_file": "image_name"})),
        r"the values of image_name are pictures: take it with prepare\.stimulus_column=image_name",
    ),
    "four responses per event": (
        lambda f: nifti(np.tile(np.asarray(nibabel.load(betas(f)).dataobj), 4), betas(f)),
        r"48 is 4 x 12: one response per event is needed",
    ),
    "a time series beside no responses": (
        lambda f: [
            p.rename(p.with_name(p.name.replace("_betas", "_desc-preproc_bold")))
            for p in list(f.root.rglob("*_betas.nii.gz"))
        ],
        r"there are time series .* but no single-trial responses: estimate them first",
    ),
    "Matlab": (
        lambda f: [
            p.rename(p.with_name(p.name.replace(".nii.gz", ".mat")))
            for p in list(f.root.rglob("*_betas.nii.gz"))
        ],
        r"is a Matlab file, which is not read; convert it .*scipy\.io\.loadmat",
    ),
    "plain names": (
        plain_names,
        r"no table of events .*there are subject1/session1/betas\.nii\.gz, .*call the events "
        "sub-01_ses-01_events",
    ),
    "onsets that may be runs or another order": (
        lambda f: events(f, lambda t: t.iloc[np.r_[0:9:2, 1:9:2]]),
        r"onsets begin anew 1 times .*Add a column run",
    ),
    "a mask on a flipped grid": (
        lambda f: nifti(
            f.mask[::-1].astype(np.uint8),
            f.root / "sub-01" / "sub-01_mask.nii.gz",
            np.diag([-2.0, 2, 2, 1]),
        ),
        r"the same shape \(5, 6, 4\), but affines that lead up to .* mm apart, axis x is flipped",
    ),
    "a region on another grid": (
        lambda f: nifti(
            np.ones((6, 6, 4), np.uint8), f.root / "sub-01" / "sub-01_label-V1_mask.nii.gz"
        ),
        (
            r"label-V1_mask\.nii\.gz does not fit the mask .*sub-01_mask\.nii\.gz: they have shape"
            r" \(6, 6, 4\) and \(5, 6, 4\)"
        ),
    ),
    "a mask that is no NIfTI": (lambda f: None, "no mask with the label nothing"),
}


@pytest.mark.parametrize("name", NAMED)
def test_mistakes_are_named(fake, capsys, name):
    change, sentence = NAMED[name]
    change(fake)
    more = ["--mask", "nothing"] if name == "a mask that is no NIfTI" else []
    found = refused(fake, capsys, *more)
    assert re.search(sentence, found), found
    assert not Layout.of(fake.root.parent / "NSD").images().exists()


@pytest.mark.slow
def test_labels_of_a_single_trial_are_columns_not_voxels(fake, capsys):
    for session, response in enumerate(fake.responses["01"], start=1):
        ids = [NAMES.index(name) for name in fake.shown["01"][session - 1]]
        np.save(
            renamed(betas(fake, session), "_betas.npy"),
            np.c_[ids, np.ones(12), response.astype(float)],
        )
    for mask in fake.root.rglob("*_mask.nii.gz"):
        mask.unlink()
    assert re.search(
        r"2 of \d+ columns hold whole numbers.*column 0 follows the picture number",
        refused(fake, capsys),
    )
    prepared(fake, "prepare.accept=labels")


@pytest.mark.slow
def test_a_time_series_is_no_response_and_may_be_insisted_on(fake, capsys):
    for path in list(fake.root.rglob("*_betas.nii.gz")):
        values = 5000 + 20 * np.asarray(nibabel.load(path).dataobj)
        image = nibabel.Nifti1Image(values.astype(np.int16), AFFINE)
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = 1.6
        nibabel.save(image, path)
    assert re.search(
        r"looks like a time series.*repetition time of 1\.6 s; it holds whole numbers; the mean .*"
        r" times its spread",
        refused(fake, capsys),
    )
    prepared(fake, "prepare.accept=time_series")


@pytest.mark.slow
def test_trials_are_left_out_on_both_sides(fake, capsys):
    events(
        fake, lambda t: t.assign(bad=[int(k == 2) for k in range(len(t))])
    )  # the second picture of every run
    events(
        fake,
        lambda t: t.assign(split=t["split"].where(np.arange(len(t)) != 6, " Exclude ")),
        "sub-01_ses-1*run-1_events.tsv",
    )
    layout = prepared(fake)
    names = [name for order in fake.shown["01"] for name in order]
    kept = [k for k in range(24) if k % 6 != 1 and k != 4]
    assert shown(layout) == [names[k] for k in kept]
    np.testing.assert_allclose(
        raw(layout), np.concatenate(fake.responses["01"])[kept], rtol=1e-4, atol=1e-4
    )
    told = capsys.readouterr().out
    assert "4 trials, marked as bad" in told and "1 trials, split exclude" in told


@pytest.mark.slow
def test_responses_that_lack_the_bad_trials_are_told_from_those_that_have_them(fake):
    events(fake, lambda t: t.assign(bad=[int(k == 0) for k in range(len(t))]))
    kept = np.flatnonzero(np.arange(12) % 6 != 0)
    for session, response in enumerate(fake.responses["01"], start=1):
        nifti(volume(fake, response[kept]), betas(fake, session))
    layout = prepared(fake)
    names = [name for order in fake.shown["01"] for name in order]
    both = np.r_[kept, kept + 12]
    assert shown(layout) == [names[k] for k in both]
    np.testing.assert_allclose(
        raw(layout), np.concatenate(fake.responses["01"])[both], rtol=1e-4, atol=1e-4
    )


def test_responses_without_events_are_named(fake, capsys):
    for path in fake.root.rglob("sub-01_ses-1*_events.tsv"):
        path.unlink()
    layout = prepared(fake)
    assert re.search(
        r"LEFT OUT, responses that no table of events belongs to: \S+sub-01_ses-1_task-look_betas",
        capsys.readouterr().out,
    )
    np.testing.assert_allclose(raw(layout), fake.responses["01"][1], rtol=1e-4, atol=1e-4)
    assert Identity(layout.root).sessions == {1: {"2": 1}}


@pytest.mark.parametrize("times", [("2024-01-05", "2024-01-02"), None])
@pytest.mark.slow
def test_sessions_are_in_the_order_of_acquisition(fake, times, capsys):
    if times:
        for session, time in enumerate(times, start=1):
            path = fake.root / "sub-01" / f"ses-{session}" / f"sub-01_ses-{session}_scans.tsv"
            path.write_text(
                f"filename\tacq_time\nfunc/sub-01_ses-{session}_task-look_bold.nii.gz\t{time}T10:00:00\n"
            )
    layout = prepared(fake)
    order = [1, 0] if times else [0, 1]
    np.testing.assert_allclose(
        raw(layout), np.concatenate([fake.responses["01"][k] for k in order]), rtol=1e-4, atol=1e-4
    )
    assert ("order of acquisition: 2, 1" in capsys.readouterr().out) is bool(times)


# --- identity -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_numbers_never_change_and_what_comes_later_is_appended(tmp_path):
    first = write_fake_scans(tmp_path / "one" / "scans", subjects=("AA", "CC"))
    root = tmp_path / "NSD"
    words = ["prepare", "--data_path", str(root), "--no-captions"]
    assert main([*words, "--scans", str(first.root), "--subj", "CC"]) == 0
    layout = Layout.of(root)
    before, pictures = shown(layout, 2), Stimuli(layout).images(np.arange(12))
    later = write_fake_scans(tmp_path / "two" / "scans", subjects=("BB",), seed=1)
    shutil.copytree(later.root / "sub-BB", first.root / "sub-BB")
    new = {}
    for path in (first.root / "sub-BB").rglob(
        "*_events.tsv"
    ):  # pictures that sort before all others
        path.write_text(path.read_text().replace("set", "a_set"))
    for name in NAMES:
        new[name] = first.root / "stimuli" / f"a_{name}"
        new[name].parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), len(new), np.uint8)).save(new[name])
    assert main([*words, "--scans", str(first.root), "--subj", "BB"]) == 0
    known = Identity(root)
    assert known.subjects == {"AA": 1, "CC": 2, "BB": 3}
    assert shown(layout, 2) == before and len(Stimuli(layout)) == 24
    np.testing.assert_array_equal(Stimuli(layout).images(np.arange(12)), pictures)
    assert {known.pictures[f"a_{name}"].image for name in NAMES} == set(range(12, 24))
    np.testing.assert_allclose(
        raw(layout, 3), np.concatenate(later.responses["BB"]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_equal_pictures_are_one_picture_and_never_on_both_sides(fake):
    for table in fake.root.rglob("*_ses-2_*_events.tsv"):
        table.write_text(table.read_text().replace("set", "again/set"))
    shutil.copytree(fake.root / "stimuli", fake.root / "stimuli" / "again")
    events(fake, lambda t: t.drop(columns="split"))
    layout = prepared(fake, "--no-captions", "--test_share", "0.4")
    training, testing = (
        set(trials.table["image"]) for trials in (train_trials(layout, 1), test_trials(layout, 1))
    )
    assert len(Stimuli(layout)) == 12 and not training & testing and len(training | testing) == 12


@pytest.mark.slow
def test_test_pictures_stay_on_their_side_when_others_come(tmp_path):
    fake = write_fake_scans(tmp_path / "scans", subjects=("01",), sessions=2)
    events(fake, lambda t: t.drop(columns="split"))
    aside = tmp_path / "ses-2"
    shutil.move(str(fake.root / "sub-01" / "ses-2"), str(aside))
    layout = prepared(fake, "--no-captions", "--test_share", "0.3")
    before = {name: picture.side for name, picture in Identity(layout.root).pictures.items()}
    for table in aside.rglob("*_events.tsv"):
        table.write_text(table.read_text().replace("set", "new/set"))
    for number, name in enumerate(NAMES):
        path = fake.root / "stimuli" / "new" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(path)
    shutil.move(str(aside), str(fake.root / "sub-01" / "ses-2"))
    prepared(fake, "--no-captions", "--test_share", "0.3")
    after = {name: picture.side for name, picture in Identity(layout.root).pictures.items()}
    assert (
        {name: after[name] for name in before} == before
        and set(after.values()) == {"train", "test"}
        and len(after) == 24
    )


def test_own_scans_are_not_put_into_somebody_elses_folder(fake, tmp_path, capsys):
    root = tmp_path / "NSD"
    root.mkdir()
    with h5py.File(Layout.of(root).images(), "w") as file:
        file["images"] = np.zeros((3, 3, 4, 4), np.float16)
    assert "Choose another data folder with --data_path" in refused(fake, capsys)


@pytest.mark.slow
def test_a_second_call_sees_the_world_anew(fake, capsys):
    aside = fake.root.parent / "ses-2"
    shutil.move(str(fake.root / "sub-01" / "ses-2"), str(aside))
    layout = prepared(fake)
    capsys.readouterr()
    prepared(fake)
    assert "nothing was done" in capsys.readouterr().out
    path = betas(fake)
    os.utime(path, (1, 1))  # another time, the same content
    prepared(fake)
    assert "nothing was done" in capsys.readouterr().out
    shutil.move(str(aside), str(fake.root / "sub-01" / "ses-2"))
    same(prepared(fake), fake)
    nifti(np.asarray(nibabel.load(path).dataobj) * 3, path)
    prepared(fake)
    np.testing.assert_allclose(raw(layout)[:12], 3 * fake.responses["01"][0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_exchanged_pictures_and_captions_are_written_again_under_their_ids(fake, capsys):
    layout = prepared(fake)
    before = Stimuli(layout).images(np.arange(12))
    Image.fromarray(np.full((20, 30, 3), 9, np.uint8)).save(fake.root / "stimuli" / NAMES[5])
    texts = json.loads((fake.root / "captions.json").read_text())
    (fake.root / "captions.json").write_text(json.dumps(texts | {NAMES[2]: ["another"]}))
    prepared(fake)
    told = capsys.readouterr().out
    assert (
        "pictures and captions were written" in told
        and "CHANGED: 1 pictures are other pictures" in told
    )
    after, image = Stimuli(layout).images(np.arange(12)), sorted(NAMES).index(NAMES[5])
    assert not np.array_equal(after[image], before[image])
    np.testing.assert_array_equal(np.delete(after, image, axis=0), np.delete(before, image, axis=0))
    assert json.loads(layout.captions().read_text())[str(sorted(NAMES).index(NAMES[2]))] == [
        "another"
    ]
    prepared(fake)
    assert "nothing was done" in capsys.readouterr().out


@pytest.mark.slow
def test_a_session_that_is_gone_is_refused(fake, capsys):
    prepared(fake)
    shutil.rmtree(fake.root / "sub-01" / "ses-1")
    assert "Session 1 of sub-01 was prepared before" in refused(fake, capsys)


@pytest.mark.slow
def test_subjects_are_named_by_label(tmp_path, capsys):
    fake = write_fake_scans(tmp_path / "scans", subjects=("AB", "XY"), form="npy")
    layout = prepared(fake, "--subj", "XY")
    np.testing.assert_allclose(
        raw(layout, 2), np.concatenate(fake.responses["XY"]), rtol=1e-4, atol=1e-4
    )
    assert "AB (1), XY (2)" in refused(fake, capsys, "--subj", "ZZ")


@pytest.mark.slow
def test_only_the_subjects_that_are_asked_for_are_looked_at(tmp_path):
    fake = write_fake_scans(tmp_path / "scans")
    events(fake, lambda t: t.drop(columns="stim_file"), "sub-02*_events.tsv")
    same(prepared(fake, "--subj", "1"), fake)


# --- voxels ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_voxels_without_a_signal_are_dropped_in_all_sessions(fake, capsys):
    for session, (broken, value) in enumerate(((3, np.nan), (5, 0.0)), start=1):
        response = fake.responses["01"][session - 1].copy()
        response[:, broken] = value
        nifti(volume(fake, response), betas(fake, session))
    layout = prepared(fake)
    voxels = int(fake.mask.sum())
    kept = ~np.isin(np.arange(voxels), (3, 5))
    np.testing.assert_allclose(
        raw(layout), np.concatenate(fake.responses["01"])[:, kept], rtol=1e-4, atol=1e-4
    )
    assert load_places(layout, 1).voxels == voxels - 2 == len(read_regions(layout, 1)["V1"])
    told = capsys.readouterr().out
    assert (
        f"{voxels - 2} kept of {voxels}" in told
        and "1 NaN or infinite in some trial; 1 constant in a session" in told
    )


@pytest.mark.slow
def test_masks_of_hemispheres_are_joined_and_those_of_runs_intersected(fake, capsys):
    whole = fake.root / "sub-01" / "sub-01_mask.nii.gz"
    left = np.arange(5)[:, None, None] < 2
    for side, where in (("L", left), ("R", ~left)):
        nifti(
            (fake.mask & where).astype(np.uint8),
            fake.root / "sub-01" / f"sub-01_hemi-{side}_label-V3_mask.nii.gz",
        )
    layout = prepared(fake)
    assert read_regions(layout, 1)["V3"].all()
    whole.unlink()
    for session, drop in ((1, 0), (2, 4)):
        part = fake.mask.copy()
        part[drop] = False
        nifti(
            part.astype(np.uint8),
            betas(fake, session).with_name(f"sub-01_ses-{session}_desc-brain_mask.nii.gz"),
        )
    layout = prepared(fake, name="intersected")
    both = fake.mask.copy()
    both[[0, 4]] = False
    np.testing.assert_array_equal(load_places(layout, 1).mask, both)
    assert "those in all of them are kept" in capsys.readouterr().out


@pytest.mark.slow
def test_soft_masks_and_labels_in_masks_are_told(fake, capsys):
    soft = np.where(fake.mask, 0.9, 0.2).astype(np.float32)
    nifti(soft, fake.root / "sub-01" / "sub-01_mask.nii.gz")
    same(prepared(fake), fake)
    assert f"{fake.mask.size} above 0" in capsys.readouterr().out
    nifti(np.where(fake.mask, 3, 0).astype(np.int16), fake.root / "sub-01" / "sub-01_mask.nii.gz")
    same(prepared(fake, name="labels"), fake)
    assert "is that a label volume?" in capsys.readouterr().out


@pytest.mark.slow
def test_label_volumes_with_a_table_are_regions(fake, capsys):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, fake.mask.shape).astype(np.int16)
    nifti(labels, fake.root / "sub-01" / "sub-01_desc-visual_dseg.nii.gz")
    nifti(labels, fake.root / "sub-01" / "sub-01_desc-other_dseg.nii.gz")
    (fake.root / "sub-01" / "sub-01_desc-visual_dseg.tsv").write_text("index\tname\n1\tV1\n2\tMT\n")
    layout = prepared(fake)
    np.testing.assert_array_equal(read_regions(layout, 1)["MT"], labels[fake.mask] == 2)
    assert (
        "sub-01_desc-other_dseg.nii.gz is ignored: no table names its labels"
        in capsys.readouterr().out
    )


def test_boolean_arrays_are_masks_and_regions_of_columns(fake):
    for mask in fake.root.rglob("*_mask.nii.gz"):
        mask.unlink()
    voxels = int(fake.mask.sum())
    for session, response in enumerate(fake.responses["01"], start=1):
        np.save(renamed(betas(fake, session), "_betas.npy"), response)
    np.save(fake.root / "cortex.npy", np.arange(voxels) > 4)
    np.save(fake.root / "sub-01" / "sub-01_label-V1_mask.npy", np.arange(voxels) < 7)
    layout = prepared(fake, "--mask", str(fake.root / "cortex.npy"))
    np.testing.assert_allclose(
        raw(layout), np.concatenate(fake.responses["01"])[:, 5:], rtol=1e-4, atol=1e-4
    )
    assert read_regions(layout, 1)["V1"].nonzero()[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rule", "expected"), [("auto", "subject"), ("session", "session"), ("none", "none")]
)
@pytest.mark.slow
def test_what_is_z_scored_over_is_told(fake, rule, expected, capsys):
    layout = prepared(fake, f"prepare.zscore={rule}")
    statistics = load_statistics(layout, 1)
    assert f"z-scored over  {expected}" in capsys.readouterr().out
    assert (statistics.sd_SV == 1).all() is np.bool_(expected == "none")
    assert np.array_equal(*statistics.mean_SV) is (expected != "session")
    same(layout, fake)


@pytest.mark.slow
def test_a_session_of_test_pictures_alone_is_allowed(fake):
    for session in (1, 2):
        events(
            fake,
            lambda t, s=session: t.assign(
                stim_file=[
                    (
                        n
                        if n == "n/a" or pd.isna(n)
                        else (NAMES[:3] if s == 2 else NAMES[3:])[k % (3 if s == 2 else 9)]
                    )
                    for k, n in enumerate(t["stim_file"])
                ],
                split="test" if s == 2 else "train",
            ),
            f"sub-01_ses-{session}*_events.tsv",
        )
    layout = prepared(fake)
    training, testing = train_trials(layout, 1).table, test_trials(layout, 1).table
    assert (
        set(training["session"]) == {0}
        and set(testing["session"]) == {1}
        and len(training) == len(testing) == 12
    )
    np.testing.assert_allclose(
        raw(layout), np.concatenate(fake.responses["01"]), rtol=1e-4, atol=1e-4
    )


# --- pictures, captions, tables -------------------------------------------------------------------


def test_pictures_of_all_depths_are_the_same_picture(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    for name, array in (("8", grey), ("16", grey.astype(np.uint16) * 257)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    rgba = np.dstack([grey, grey, grey, np.where(grey > 100, 255, 0).astype(np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    np.save(tmp_path / "rows.npy", np.stack([grey, grey]) / 255.0)
    with h5py.File(tmp_path / "rows.hdf5", "w") as file:
        file["pictures"] = np.repeat(grey[None, None], 3, axis=1)
    pictures = Pictures(tmp_path, tmp_path, "#ff0000")
    names = ["8", "16.png", "rows.npy#1", "rows.hdf5#0", "alpha.png"]
    found = [
        pictures.load(one) for one in pictures.find(dict.fromkeys(names, tmp_path / "events.tsv"))
    ]
    for one in found[:4]:
        np.testing.assert_array_equal(one.picture_HW3, np.repeat(grey[..., None], 3, axis=2))
    assert [one.kind for one in found] == ["", "16-bit", "", "", "transparent"]
    np.testing.assert_array_equal(
        found[4].picture_HW3[grey <= 100],
        np.broadcast_to([255, 0, 0], (int((grey <= 100).sum()), 3)),
    )
    with pytest.raises(UserError, match="has 2 pictures, the events name row 7"):
        pictures.load(pictures.find({"rows.npy#7": tmp_path / "events.tsv"})[0])


@pytest.mark.parametrize("column", ["ImgName", "trial_type"])
@pytest.mark.slow
def test_pictures_elsewhere_named_by_stem_in_another_column(fake, monkeypatch, column):
    events(
        fake,
        lambda t: (
            t.drop(columns="trial_type")
            .assign(stim_file=t["stim_file"].str.removesuffix(".png"))
            .rename(columns={"stim_file": column})
        ),
    )
    monkeypatch.chdir(fake.root.parent)
    shutil.move("scans/stimuli", "elsewhere")
    words = [
        "prepare",
        "--scans",
        "scans",
        "--data_path",
        "NSD",
        "prepare.stimuli=elsewhere",
        f"prepare.stimulus_column={column}",
    ]
    for _ in range(2):
        assert main(words) == 0
    layout = Layout.of(fake.root.parent / "NSD")
    assert [f"{name}.png" for name in shown(layout)] == [
        name for order in fake.shown["01"] for name in order
    ]
    np.testing.assert_allclose(
        raw(layout), np.concatenate(fake.responses["01"]), rtol=1e-4, atol=1e-4
    )
    with Image.open(fake.root.parent / "elsewhere" / sorted(NAMES)[3]) as picture:
        square = picture.crop((5, 0, 25, 20)).resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        np.rint(Stimuli(layout).images(np.array([3]))[0] * 255),
        np.asarray(square).transpose(2, 0, 1),
    )


@pytest.mark.parametrize("form", ["stems", "list", "coco"])
@pytest.mark.slow
def test_captions_by_stem_as_a_list_or_as_coco_has_them(fake, form):
    by_name = {name: [f"this is {name}"] for name in NAMES}
    found: object = {name.rpartition("/")[2][:-4]: texts for name, texts in by_name.items()}
    if form == "list":
        found = [{"file_name": name, "caption": texts[0]} for name, texts in by_name.items()]
    elif form == "coco":
        images = [{"id": k, "file_name": name} for k, name in enumerate(NAMES)]
        found = {
            "images": images,
            "annotations": [
                {"image_id": k, "caption": by_name[name][0]} for k, name in enumerate(NAMES)
            ],
        }
    (fake.root / "captions.json").write_text(json.dumps(found))
    written = json.loads(prepared(fake).captions().read_text())
    assert written == {str(image): by_name[name] for image, name in enumerate(sorted(NAMES))}


@pytest.mark.slow
def test_a_list_of_test_pictures_that_contradicts_the_column_is_told(fake, capsys):
    (fake.root / "tests.txt").write_text(f"{NAMES[0]}\n{NAMES[7]}\n")
    layout = prepared(fake, "--test_images", str(fake.root / "tests.txt"))
    assert set(test_trials(layout, 1).table["image"]) == {
        sorted(NAMES).index(NAMES[k]) for k in (0, 7)
    }
    assert (
        "CONTRADICTION: tests.txt and the column split disagree on 3 pictures"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_one_table_of_trials_instead_of_events(tmp_path):
    fake = write_fake_scans(tmp_path / "scans", subjects=("01",))
    rows = [
        {
            "subject": 1,
            "session": session,
            "trial": 12 * (session - 1) + k,
            "image": name,
            "split": ("train", "test")[name in NAMES[:3]],
        }
        for session, order in enumerate(fake.shown["01"], start=1)
        for k, name in enumerate(order)
    ]
    for path in list((fake.root / "sub-01").rglob("*")):
        if path.is_file():
            path.unlink()
    table = pd.DataFrame(rows).sample(
        frac=1, random_state=0
    )  # the order of lines says nothing, trial numbers do
    table.to_csv(fake.root / "trials.csv", index=False)
    np.save(fake.root / "sub-01" / "betas.npy", np.concatenate(fake.responses["01"]))
    same(prepared(fake), fake)


def test_the_summary_tells_how_reliable_responses_are():
    rng = np.random.default_rng(0)
    image = rng.permutation(np.repeat(np.arange(30), 4))
    signal, noise = rng.normal(size=(30, 50)), rng.normal(size=(120, 50))
    good = reliability(signal[image] + 0.3 * noise, image)
    assert (
        good is not None
        and np.median(good.split_half_V) > 0.9
        and np.median(good.noise_ceiling_V) > 90
        and good.same > 0.8
    )
    none = reliability(noise, image)
    assert (
        none is not None
        and abs(np.median(none.split_half_V)) < 0.15
        and (none.split_half_V > none.chance).mean() < 0.2
    )
    assert abs(none.same - none.other) < 0.05
    shifted = reliability(np.roll(signal[image], 1, axis=0) + 0.3 * noise, image)  # one trial off
    assert shifted is not None and shifted.same < 0.2
    expected = 100 * 1 / (1 + 0.09 / 4)
    np.testing.assert_allclose(np.mean(good.noise_ceiling_V), expected, atol=3)
    assert reliability(noise, np.arange(120)) is None


def test_maps_of_finer_surfaces_are_drawn_on_the_mesh_that_comes_along():
    counts = {"L": 40962, "R": 40962}
    places = surface_places(
        "fsaverage6", [(side, n, None, n) for side, n in counts.items()], "here"
    )
    values = np.arange(places.voxels, dtype=np.float32)
    left, right = meshes_of(places)
    np.testing.assert_array_equal(
        vertex_values(left, places, values), values[: len(left.vertex_N3)]
    )
    np.testing.assert_array_equal(
        vertex_values(right, places, values), values[40962 : 40962 + len(right.vertex_N3)]
    )
    some = places.restricted(np.arange(places.voxels) % 2 == 0)
    drawn = vertex_values(left, some, values[::2])
    assert np.isnan(drawn[1::2]).all() and np.array_equal(
        drawn[::2], values[: len(left.vertex_N3) : 2]
    )
    native = surface_places("fsnative", [("L", 50, None, 50)], "here")
    assert meshes_of(native) == ()
    with pytest.raises(UserError, match="10242 vertices, the left hemisphere of fsnative"):
        check_vertices([left], native)


def test_maps_of_coarser_surfaces_are_drawn_at_the_nearest_vertex():
    places = surface_places("fsaverage3", [(side, 642, None, 642) for side in "LR"], "here")
    values = np.arange(places.voxels, dtype=np.float32)
    for mesh, first in zip(meshes_of(places), (0, 642)):
        drawn = vertex_values(mesh, places, values)
        np.testing.assert_array_equal(drawn[:642], values[first : first + 642])
        assert set(drawn) == set(values[first : first + 642])
        ends = mesh.face_F3[:, [0, 1]]  # neighbours have the same value, or that of a neighbour
        assert 0.4 < (drawn[ends[:, 0]] == drawn[ends[:, 1]]).mean() < 1


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.slow
def test_nsds_betas_on_fsaverage(tmp_path, labels):
    rng = np.random.default_rng(0)
    raw_release = write_fake_raw(tmp_path / "raw")
    root, trials = raw_release.root, {}
    folder = (
        root / "nsddata_betas" / "ppdata" / "subj01" / "fsaverage" / "betas_fithrf_GLMdenoise_RR"
    )
    folder.mkdir(parents=True)
    table = pd.read_csv(
        root / "nsddata" / "ppdata" / "subj01" / "behav" / "responses.tsv", sep="\t"
    )
    for session, count in table["SESSION"].value_counts().sort_index().items():
        trials[session] = rng.normal(2, 1, (int(count), 20)).astype(np.float32)
        for side, part in (("lh", slice(0, 10)), ("rh", slice(10, 20))):
            image = nibabel.MGHImage(
                np.ascontiguousarray(trials[session][:, part].T[:, None, None]), np.eye(4)
            )
            nibabel.save(image, folder / f"{side}.betas_session{int(session):02d}.mgh")
    kept = np.ones(20, dtype=bool)
    if labels:
        place = root / "nsddata" / "freesurfer" / "fsaverage" / "label"
        place.mkdir(parents=True)
        for side in ("lh", "rh"):
            for name, values in (
                ("nsdgeneral", np.arange(10) > 2),
                ("prf-visualrois", np.arange(10) % 8),
            ):
                nibabel.save(
                    nibabel.MGHImage(values.astype(np.int32)[:, None, None], np.eye(4)),
                    place / f"{side}.{name}.mgz",
                )
        kept = np.tile(np.arange(10) > 2, 2)
    assert (
        main(
            [
                "prepare",
                "--scans",
                str(root),
                "--data_path",
                str(tmp_path / "NSD"),
                "--space",
                "fsaverage",
                "--no-captions",
            ]
        )
        == 0
    )
    layout = Layout.of(tmp_path / "NSD")
    np.testing.assert_allclose(
        raw(layout), np.concatenate(list(trials.values()))[:, kept], rtol=1e-4, atol=1e-4
    )
    places = load_any_places(layout, 1)
    assert (
        isinstance(places, SurfacePlaces)
        and places.surface == "fsaverage"
        and places.voxels == kept.sum()
    )
    if labels:
        expected = np.isin(np.tile(np.arange(10) % 8, 2)[kept], (5, 6))
        np.testing.assert_array_equal(read_regions(layout, 1)["V3"], expected)
