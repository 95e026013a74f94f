"""Pictures of ablated decoders; the encoders have learnt next to nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
import pytest
from unit.fake_backbone import write_fake_backbone

from braingen.cli import main
from braingen.config import load_config
from braingen.config.overrides import parse_overrides
from braingen.data.betas import Betas
from braingen.generation.reconstruct import assemble
from braingen.interpret.ablated_images import generate_ablated
from braingen.interpret.inputs import read_subjects
from braingen.report.inside import write_page
from braingen.runtime.data_layout import Layout
from braingen.targets.tables import Targets

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' scheduler
SMALL = [
    "simulation.num_sessions=1",
    "simulation.trials_per_session=60",
    "simulation.num_voxels=200",
    "--num_test_images=5",
]
SMALL += [
    "encoder.hidden_dim=32",
    "training.with_ridge=false",  # which would be used alone: levels and experts all alike
    "encoder.n_blocks=1",
    "prior.depth=1",
    "training.num_epochs=1",
    "training.batch_size=20",
]
SMALL += [
    "generation.steps=2",
    "generation.guidance_scale=2",
    "generation.batch_size=2",
    "run.device=cpu",
    "run.tracker=none",
]
SMALL += ["interpret.ablation_images=2", "interpret.draws=2"]


def pixels(folder: Path) -> np.ndarray:
    return np.stack(
        [
            np.asarray(Image.open(path).convert("RGB")).astype(int)
            for path in sorted(folder.glob("*.png"))
        ]
    )


@pytest.mark.long
def test_silenced_decoders_are_drawn_beside_the_undisturbed_one(tmp_path):
    backbone = write_fake_backbone(tmp_path / "backbone", with_clip=True)
    words = [
        "--folder",
        str(tmp_path / "run"),
        "--root",
        str(tmp_path / "data"),
        "--path",
        str(backbone),
        *SMALL,
    ]
    for command in (["simulate"], ["train", "image"], ["train", "text"], ["reconstruct"]):
        assert main([*command, *words]) == 0
    again = ["interpret", *words, "--steps", "ablation,page"]
    assert main(again) == 0
    out = tmp_path / "run" / "interpret" / "image-target-integrated_gradients"
    own = out / "subj01"
    table = pd.read_csv(own / "ablated_images.csv")
    names = table["ablated"].unique().tolist()
    assert (
        names[:2] == ["undisturbed", "level-0"]
        and len(names) == 1 + 4 + 3 + 1
        and names[-1] == f"random as {names[5]}"
    )
    usual = pixels(own / "ablated" / "undisturbed")
    assert (usual == pixels(tmp_path / "run" / "reconstructions" / "brain")[:2]).all()
    assert (pixels(own / "ablated" / "level-0") != usual).any()
    assert f">{names[-1]}<" in (out / "interpret.html").read_text()
    path = next((own / "ablated" / "level-0").glob("*.png"))
    written = path.stat().st_mtime_ns
    assert main(again) == 0 and path.stat().st_mtime_ns == written

    config = load_config(*parse_overrides(words))
    targets, subject = Targets(config), read_subjects(config, {})[0]
    every_V = np.ones(subject.voxels_NV.shape[1], dtype=bool)
    betas, decoder, drawn = (
        Betas.of(Layout.of(config.data.root), 1),
        assemble(config, targets),
        tmp_path / "own",
    )
    generate_ablated(
        config, decoder, targets, betas, subject, 2, {"all": every_V, "none": ~every_V}, drawn
    )
    assert (pixels(drawn / "none") == usual).all()
    assert (pixels(drawn / "all") != usual).any(axis=(1, 2, 3)).all()

    # a region of the same name that has other voxels now is drawn again, what has not changed is
    # not
    before, kept = pixels(drawn / "all"), next((drawn / "undisturbed").glob("*.png"))
    written = kept.stat().st_mtime_ns
    generate_ablated(
        config,
        decoder,
        targets,
        betas,
        subject,
        2,
        {"all": every_V & (np.arange(len(every_V)) % 2 == 0)},
        drawn,
    )
    assert (pixels(drawn / "all") != before).any() and (pixels(drawn / "all") != usual).any()
    assert kept.stat().st_mtime_ns == written

    # a region too large to draw as many voxels beside it has no row of them; without regions the
    # pictures are on the page all the same
    ablation = pd.read_csv(out / "ablation.csv")
    ablation.drop(columns=["random", "p_random"]).to_csv(out / "ablation.csv", index=False)
    assert (
        "with the same number of random voxels"
        in write_page(out, tmp_path / "run", tmp_path / "data").read_text()
    )
    ablation[ablation["voxels"] == 0].dropna(axis=1, how="all").to_csv(
        out / "ablation.csv", index=False
    )
    page = write_page(out, tmp_path / "run", tmp_path / "data").read_text()
    assert (
        ">undisturbed<" in page
        and ">level-0<" in page
        and "with the same number of random voxels" not in page
    )
