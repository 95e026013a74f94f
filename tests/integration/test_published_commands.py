"""The five lines of the published Quick Start, one after another, in a folder that holds nothing
but data/NSD (and the scripts).

SDXL's weights are not at hand: BRAINGEN_SET names the tiny stand-in for every command, and sizes at
which the lines take seconds. Nothing else is given; everything that is not named there is what the
lines find by themselves (configuration, data, encoders, pictures).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
import re
import shutil
import subprocess

import pytest
from unit.forking import forked_python
from unit.told_commands import ROOT

from braingen.cli import main

RUN = "runs/nsd_subj01"
LINES = [
    "bash launch_train.sh 40",
    "bash launch_train_text.sh 40",
    "bash launch_tune_diffusion.sh",
    "python Recon_inference.py --model_name_image nsd_subj01 --model_name_text nsd_subj01",
    f"python final_evaluations.py --all_recons_path {RUN}/reconstructions/brain",
]
IMAGES = 4
DATA = [
    "simulation.num_sessions=2",
    "simulation.trials_per_session=60",
    "simulation.num_voxels=100",
    f"--num_test_images={IMAGES}",
]
STAND_IN = "backbone.path=tiny backbone.image_encoder= backbone.ip_adapter= backbone.refiner= "
SIZES = (
    "encoder.hidden_dim=32 encoder.n_blocks=1 prior.depth=1 training.num_epochs=1"
    " finetune.max_train_steps=1 finetune.validation_images=2 finetune.resolution=128"
    " finetune.train_batch_size=2 finetune.gradient_accumulation_steps=1 generation.size=128"
    " generation.steps=2 evaluation.bootstrap=20 run.device=cpu run.tracker=none"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The folder, with the scripts as in the published repository."""
    folder = tmp_path_factory.mktemp("published")
    assert main(["simulate", "--root", str(folder / "data" / "NSD"), *DATA]) == 0
    for script in (ROOT / "scripts").iterdir():
        shutil.copy(script, folder)
    return folder


def run(line: str, place: Path, binaries: Path, settings: str) -> subprocess.CompletedProcess[str]:
    """Type a line in a shell in which `python` has braingen."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHON", "CONFIG") and not name.startswith("SLURM_")
    }
    environment |= {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "BRAINGEN_SET": settings,
        "PROCESSES": "1",
    }
    environment |= {"COLUMNS": "120", "VIRTUAL_ENV": str(binaries.parent)}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_published_lines_end_in_pictures_and_a_score_table(place):
    outputs = []
    with forked_python(place / "bin") as binaries:
        for line in LINES:
            done = run(line, place, binaries, STAND_IN + SIZES)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            outputs.append(done.stdout)
    assert [output.split()[-1] for output in outputs[:4]] == [
        f"{RUN}/image",
        f"{RUN}/text",
        f"{RUN}/reconstructions/brain",
        f"{RUN}/reconstructions/brain",
    ]
    pictures = sorted(
        path.name for path in (place / RUN / "reconstructions" / "brain").glob("*.png")
    )
    assert len(pictures) == IMAGES
    settings = (place / RUN / "image" / "config.yaml").read_text()
    assert "num_sessions: 40" in settings and "root: data/NSD" in settings
    scores = json.loads((place / RUN / "scores.json").read_text())
    assert {"pixcorr", "ssim"} <= set(scores) and all(
        score["n"] == IMAGES for score in scores.values()
    )
    table = outputs[4]
    for name, score in scores.items():
        assert re.search(rf"^\s*{name} +{score['value']:.3f} ", table, flags=re.MULTILINE), name
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) == ["bin", "data", "runs"]
