"""A run goes on when data or models lie elsewhere than before with the same content, and is refused
when the content is another.
"""

from __future__ import annotations

from pathlib import Path
import shutil

import numpy as np
from pydantic import BaseModel
import pytest

from braingen.config import Config
from braingen.runtime.contents import PLACES, contents_of, data_fingerprint
from braingen.runtime.data_layout import Layout
from braingen.runtime.errors import UserError
from braingen.runtime.run_folder import CONTENTS, Run

# paths that no run keeps among its settings, that are free to change, or that are outputs
NOT_COMPARED = {
    "run.folder",
    "run.image",
    "run.text",
    "run.finetune",
    "run.encoding",
    "run.low_level",
    "prepare.scans",
    "prepare.coco",
    "prepare.test_images",
    "prepare.trials",
    "prepare.stimuli",
    "compare.output",
    "interpret.atlases",
    "quickstart.output",
}


def data_folder(root: Path, seed: int = 0) -> Layout:
    """Files in the places of a data folder; nothing opens them here."""
    layout = Layout.of(root)
    files = [
        layout.images(),
        layout.captions(),
        *(layout.betas(subject) for subject in (1, 2)),
        *(layout.wds_train(1, k) for k in (0, 1)),
    ]
    for number, path in enumerate(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.random.default_rng([seed, number]).bytes(300_000))
    return layout


def test_every_path_among_the_settings_is_compared_by_content():
    def paths(annotation: object) -> bool:
        return "pathlib" in str(annotation) or "Path" in str(annotation)

    found = set()
    for section, info in Config.model_fields.items():
        kinds = [
            kind
            for kind in [info.annotation, *getattr(info.annotation, "__args__", ())]
            if isinstance(kind, type)
        ]
        for kind in kinds:
            if issubclass(kind, BaseModel):
                found |= {
                    f"{section}.{name}"
                    for name, field in kind.model_fields.items()
                    if paths(field.annotation)
                }
    assert found - NOT_COMPARED <= set(PLACES)
    assert {"data.root", "training.init_from"} <= found


def settings(root: Path | str, **more: object) -> dict:
    tree = {"data": {"root": str(root), "subjects": [1]}, "loss_image": {}, **more}
    return {**tree, CONTENTS: contents_of(tree)}


def work(folder: Path, tree: dict) -> None:
    with Run.start(folder, tree) as run:
        run.log(1, loss=1.0)


@pytest.mark.parametrize(
    "way",
    ["moved", "copied", "absolute", "through a link", "with dots", "named from the home folder"],
)
def test_a_run_goes_on_with_the_same_data_elsewhere(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    data_folder(Path("data"))
    work(Path("run"), settings("data"))
    if way == "moved":
        Path("data").rename("elsewhere")
        root = "elsewhere"
    elif way == "copied":
        shutil.copytree("data", "copy")
        root = "copy"
    elif way == "through a link":
        Path("link").symlink_to("data")
        root = "link"
    else:
        root = {
            "absolute": str(tmp_path / "data"),
            "with dots": "run/../data",
            "named from the home folder": "~/data",
        }[way]
    work(Path("run"), settings(root))
    assert Run("run").config["data"]["root"] == root


def test_a_run_is_refused_with_other_data_elsewhere(tmp_path):
    data_folder(tmp_path / "data")
    work(tmp_path / "run", settings(tmp_path / "data"))
    data_folder(tmp_path / "other", seed=1)
    for root in ("other", "none"):
        with pytest.raises(UserError, match=r"other settings \(data\.root was .*/data', is now "):
            work(tmp_path / "run", settings(tmp_path / root))


def test_runs_of_earlier_versions_go_on_where_the_path_is_the_same_written_otherwise(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data_folder(Path("data"))
    tree = settings("data")
    del tree[CONTENTS]
    work(Path("run"), tree)
    work(Path("run"), settings(tmp_path / "data"))


@pytest.mark.parametrize("place", [place for place in PLACES if place != "data.root"])
def test_a_model_that_was_moved_is_the_same_model(tmp_path, place):
    section, field = place.split(".")
    for name, content in (("a", b"weights"), ("b", b"weights"), ("c", b"others!")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)

    def tree(name: str) -> dict:
        path = (
            tmp_path / name
            if "published" not in place and "labels" not in place
            else tmp_path / name / "model.safetensors"
        )
        return settings(tmp_path / "none", **{section: {field: str(path)}})

    work(tmp_path / "run", tree("a"))
    work(tmp_path / "run", tree("b"))
    with pytest.raises(UserError, match=r"\(with other content\)"):
        work(tmp_path / "run", tree("c"))


def test_a_hub_name_or_the_shipped_backbone_is_compared_as_it_is(tmp_path):
    for path in ("stabilityai/stable-diffusion-xl-base-1.0", "tiny"):
        folder = tmp_path / path.replace("/", "-")
        work(folder, settings("none", backbone={"path": path}))
        work(folder, settings("none", backbone={"path": path}))
        with pytest.raises(UserError, match=r"backbone\.path was"):
            work(folder, settings("none", backbone={"path": "somebody/else"}))


def test_what_makes_data_others(tmp_path):
    layout = data_folder(tmp_path / "data")
    whole = data_fingerprint(layout, [1])
    (layout.root / ".braingen").mkdir()
    (layout.root / ".braingen" / "cache").write_text("x", encoding="utf-8")
    layout.betas(2).write_bytes(b"of another subject")
    assert data_fingerprint(layout, [1]) == whole != data_fingerprint(layout, [1, 2])
    without = data_fingerprint(layout, [1], captions=False)
    layout.captions().write_bytes(b"corrected")
    assert (
        data_fingerprint(layout, [1], captions=False) == without
        and data_fingerprint(layout, [1]) != whole
    )
    layout.betas(1).write_bytes(layout.betas(1).read_bytes()[:-1] + b"x")
    assert data_fingerprint(layout, [1], captions=False) != without
    assert data_fingerprint(Layout.of(tmp_path / "none"), [1]) == ""
